"""Model documents: the JSON files the server loads.

Invariants of every document made here (`validate` refuses anything else):
- each feature has `levels - 1` strictly increasing, finite edges;
- each feature has one table of `levels` integers per score;
- no input can take a score out of -63..63;
- a threshold alarm has 15 features at most: their number must fit a 4-bit message.
"""

import json
import math

import numpy as np

from alarm import Limits
from classifiers import SCORE_LIMIT, Lookup
from features import STATISTICS
from trials import CHANNELS, SAMPLES

MOST_LIMITS = 15


def lookup_document(
    name: str, labels: tuple[str, ...], model: Lookup, provenance: dict[str, str]
) -> dict:
    """Describe an integer lookup model; features without influence are left out."""
    used = np.flatnonzero(np.abs(model.tables).max(axis=(0, 2)))
    features = [
        {
            "channel": int(index) // len(STATISTICS),
            "statistic": STATISTICS[int(index) % len(STATISTICS)],
            "transform": "signed_log",
            "edges": model.edges[index].tolist(),
        }
        for index in used
    ]
    return {
        "format": 1,
        "id": name,
        "kind": "lookup",
        "levels": model.tables.shape[2],
        "window": {"samples": SAMPLES, "channels": list(CHANNELS)},
        "labels": list(labels),
        "features": features,
        "tables": model.tables[:, used].swapaxes(0, 1).tolist(),
        "bias": model.bias.tolist(),
        "provenance": provenance,
    }


def alarm_document(name: str, limits: Limits, provenance: dict[str, str]) -> dict:
    """Describe a threshold alarm; its only score is 1 when a limit is passed."""
    features, tables = [], []
    for channel in range(len(CHANNELS)):
        for statistic, limit, table in (
            ("max", limits.upper[channel], [0, 1]),
            ("min", limits.lower[channel], [1, 0]),
        ):
            features.append(
                {
                    "channel": channel,
                    "statistic": statistic,
                    "transform": "none",
                    "edges": [float(limit)],
                }
            )
            tables.append([table])
    return {
        "format": 1,
        "id": name,
        "kind": "threshold",
        "levels": 2,
        "window": {"samples": SAMPLES, "channels": list(CHANNELS)},
        "labels": ["clear", "alarm"],
        "features": features,
        "tables": tables,
        "bias": [],
        "provenance": provenance,
    }


def validate(document: dict) -> None:
    """Raise ValueError unless the document keeps the invariants."""
    name, levels, scores = document["id"], document["levels"], score_count(document)
    if levels not in (2, 4, 8, 16) or len(document["bias"]) not in (0, scores):
        raise ValueError(f"{name}: wrong number of levels or biases")
    if document["kind"] == "threshold" and len(document["features"]) > MOST_LIMITS:
        raise ValueError(f"{name}: more than {MOST_LIMITS} limits")
    if len(document["features"]) != len(document["tables"]):
        raise ValueError(f"{name}: not one table per feature")
    for feature, tables in zip(document["features"], document["tables"], strict=True):
        edges = feature["edges"]
        if len(edges) != levels - 1 or edges != sorted(set(edges)):
            raise ValueError(f"{name}: edges are not strictly increasing")
        if not all(math.isfinite(edge) for edge in edges):
            raise ValueError(f"{name}: an edge is not finite")
        if len(tables) != scores or any(len(table) != levels for table in tables):
            raise ValueError(f"{name}: a table has the wrong shape")
    if largest_sum(document) > SCORE_LIMIT:
        raise ValueError(f"{name}: a score can pass {SCORE_LIMIT}")


def largest_sum(document: dict) -> int:
    """Bound the absolute value of every sum that any input can have."""
    largest = [abs(bias) for bias in start_scores(document)]
    for tables in document["tables"]:
        for score, table in enumerate(tables):
            largest[score] += max(abs(entry) for entry in table)
    return max(largest)


def start_scores(document: dict) -> list[int]:
    """Return the biases; none means zeros."""
    return list(document["bias"]) or [0] * score_count(document)


def score_count(document: dict) -> int:
    """Return the number of scores: one per label but the first."""
    return len(document["labels"]) - 1


def feature_value(feature: dict, samples: tuple[tuple[int, ...], ...]) -> float:
    """Compute one feature of one window in plain Python."""
    readings = [row[feature["channel"]] for row in samples]
    mean = math.fsum(readings) / len(readings)
    squares = math.fsum((reading - mean) ** 2 for reading in readings)
    value = {
        "mean": mean,
        "std": math.sqrt(squares / len(readings)),
        "max": max(readings),
        "min": min(readings),
    }[feature["statistic"]]
    if feature["transform"] == "signed_log":
        return math.copysign(math.log1p(abs(value)), value)
    return value


def evaluate(document: dict, samples: tuple[tuple[int, ...], ...]) -> list[int]:
    """Score one window as the document says, independently of the training code."""
    scores = start_scores(document)
    for feature, tables in zip(document["features"], document["tables"], strict=True):
        value = feature_value(feature, samples)
        level = sum(edge <= value for edge in feature["edges"])
        for score, table in enumerate(tables):
            scores[score] += table[level]
    if document["kind"] == "threshold":
        return [int(scores[0] > 0)]
    return scores


def label(document: dict, scores: list[int]) -> str:
    """Return the label with the highest score; the first label's score is 0."""
    full = [0, *scores]
    return document["labels"][full.index(max(full))]


def to_text(document: dict) -> str:
    """Write JSON with one line per field, and one per entry of a list of records."""
    fields = []
    for key, value in document.items():
        if isinstance(value, list) and value and isinstance(value[0], dict | list):
            lines = ",\n".join(f"    {json.dumps(entry)}" for entry in value)
            fields.append(f'  "{key}": [\n{lines}\n  ]')
        elif key == "provenance":
            fields.append(f'  "{key}": ' + json.dumps(value, indent=4)[:-1] + "  }")
        else:
            fields.append(f'  "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(fields) + "\n}\n"
