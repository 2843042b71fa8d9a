"""Train the models of `server/models` and measure them by cross-validation.

    python train.py                  write the models, the reports, expected.json
    python train.py --check          derive them again, compare with what is in place
    python train.py --keep-figures   don't cross-validate again: seconds, not minutes

The output is the same bytes on every run.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

import documents
import evaluation
from alarm import fit_limits
from classifiers import Lookup, fit_linear, fit_lookup, to_integers
from evaluation import Outcome, Problem
from features import signed_log, statistics
from report import to_markdown
from trials import (
    CLASSES,
    FILES,
    Trial,
    class_indices,
    load,
    parse,
    recordings,
    windows,
)

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data" / "robot-execution-failures"
MODELS = ROOT / "server" / "models"
TRAINING = ROOT / "server" / "training"
FIGURES = TRAINING / "cross-validation.json"
PAGE = TRAINING / "cross-validation.md"

TASKS = {
    "lp1": "approach to grasp",
    "lp2": "transfer of a part",
    "lp4": "approach to ungrasp",
}
PROCEDURE = (
    f"{evaluation.FOLDS}-fold stratified cross-validation, repeated with "
    f"{evaluation.REPEATS} seeds; accuracy is the mean over the repeats. Edges, "
    "weights, integer tables and the penalty's strength (by an inner "
    f"{evaluation.FOLDS}-fold cross-validation) are fitted inside each training fold."
)


@dataclass(frozen=True)
class Task:
    """One lookup model to ship."""

    name: str
    labels: tuple[str, ...]
    levels: int


LOOKUPS = (
    Task("grasp", CLASSES, levels=8),
    Task("failure", ("normal", "failure"), levels=16),
)


@dataclass(frozen=True)
class Dataset:
    """The distinct trials in every shape the methods need."""

    trials: list[Trial]
    windows: np.ndarray
    features: np.ndarray
    readings: np.ndarray
    grasp_classes: np.ndarray
    recordings: np.ndarray

    @classmethod
    def load(cls) -> "Dataset":
        """Read and transform the recordings."""
        trials = load(DATA)
        samples = windows(trials)
        return cls(
            trials,
            samples,
            signed_log(statistics(samples)),
            samples.reshape(len(trials), -1),
            class_indices(trials),
            recordings(trials),
        )

    def problem(self, labels: tuple[str, ...], together: bool) -> Problem:
        """Pose a problem; `together` keeps each recording in one fold.

        With two labels, collision and obstruction are one class.
        """
        classes = np.minimum(self.grasp_classes, len(labels) - 1)
        alone = np.arange(len(self.trials))
        return Problem(labels, classes, self.recordings if together else alone)


def unchanged(model: Lookup) -> Lookup:
    """Test the model as fitted."""
    return model


def compare_methods(data: Dataset, problem: Problem) -> dict[str, dict]:
    """Cross-validate the lookup models and the baselines on one problem."""
    rows: dict[str, Outcome] = {}
    for levels in (8, 16):
        forms: dict[str, Callable] = {
            f"lookup, {levels} levels, integer tables": to_integers,
            f"lookup, {levels} levels, real-valued tables": unchanged,
        }
        fit = partial(fit_lookup, levels=levels)
        rows |= evaluation.cross_validate(fit, forms, data.features, problem)
    for name, values in (
        ("linear on the same features", data.features),
        ("linear on the 90 readings", data.readings),
    ):
        forms = {name: unchanged}
        rows |= evaluation.cross_validate(fit_linear, forms, values, problem)
    return {name: outcome.summary() for name, outcome in rows.items()}


def cross_validation(data: Dataset, together: bool) -> dict[str, dict]:
    """Measure every model under one way of splitting."""
    result = {}
    for task in LOOKUPS:
        problem = data.problem(task.labels, together)
        result[task.name] = compare_methods(data, problem)
    problem = data.problem(("clear", "alarm"), together)
    alarm = evaluation.cross_validate_alarm(data.windows, problem)
    result["force-alarm"] = {"limits of normal trials": alarm.summary()}
    return result


def across_tasks(data: Dataset) -> dict[str, dict[str, float]]:
    """Measure how the methods do on a task they were not trained on."""
    files = np.array([trial.file for trial in data.trials])
    result = {}
    for task in LOOKUPS:
        problem = data.problem(task.labels, together=True)
        lookup = partial(fit_lookup, levels=task.levels)
        for method, fit, form in (
            ("lookup, integer tables", lookup, to_integers),
            ("linear", fit_linear, unchanged),
        ):
            result[f"{task.name}, {method}"] = {
                title: evaluation.unseen_task(
                    fit, form, data.features, problem, files == file
                )
                for file, title in TASKS.items()
            }
        result[f"{task.name}, most frequent class"] = {
            title: evaluation.percent(
                100
                * np.bincount(problem.classes[files == file]).max()
                / np.sum(files == file)
            )
            for file, title in TASKS.items()
        }
    return result


def train(data: Dataset, results: dict) -> tuple[dict[str, dict], dict[str, float]]:
    """Fit the models to ship on all trials; return documents and penalty strengths."""
    models, strengths = {}, {}
    for task in LOOKUPS:
        problem = data.problem(task.labels, together=True)
        fit = partial(fit_lookup, levels=task.levels)
        strength = evaluation.choose_strength(fit, data.features, problem)
        model = to_integers(fit(data.features, problem.classes, strength))
        method = f"lookup, {task.levels} levels, integer tables"
        models[task.name] = documents.lookup_document(
            task.name, task.labels, model, provenance(results, task.name, method)
        )
        strengths[task.name] = strength
    limits = fit_limits(data.windows[data.grasp_classes == 0])
    models["force-alarm"] = documents.alarm_document(
        "force-alarm",
        limits,
        provenance(results, "force-alarm", "limits of normal trials"),
    )
    return models, strengths


def provenance(results: dict, name: str, method: str) -> dict[str, str]:
    """Say where a model comes from and how good it is."""
    accuracy = ", ".join(
        f"{result[name][method]['accuracy']:.1f} % ({split})"
        for split, result in results.items()
    )
    return {
        "data": "Robot Execution Failures, Luis Seabra Lopes and Luis M. "
        "Camarinha-Matos, 1999, DOI 10.24432/C5M89N, CC BY 4.0",
        "trained_by": "server/training/train.py",
        "cross_validated_accuracy": accuracy,
    }


def check_documents(data: Dataset, models: dict[str, dict]) -> None:
    """Refuse documents that break their rules or leave a trial close to an edge."""
    for document in models.values():
        documents.validate(document)
        for feature in document["features"]:
            for trial in data.trials:
                value = documents.feature_value(feature, trial.samples)
                if min(abs(value - edge) for edge in feature["edges"]) < 1e-5:
                    raise ValueError(f"{document['id']}: {trial.name} lies on an edge")


def expected_predictions(data: Dataset, models: dict[str, dict]) -> dict:
    """Evaluate every document on every distinct trial, in order of first occurrence."""
    entries = []
    for trial in data.trials:
        entry = {"trial": trial.name, "class": trial.grasp_class}
        for name, document in models.items():
            scores = documents.evaluate(document, trial.samples)
            entry[name] = {"scores": scores, "label": documents.label(document, scores)}
        entries.append(entry)
    return {"trials": entries}


def true_label(document: dict, trial: Trial) -> str:
    """Return what the model should answer."""
    index = CLASSES.index(trial.grasp_class)
    return document["labels"][min(index, len(document["labels"]) - 1)]


def shipped_summary(
    data: Dataset, models: dict, strengths: dict, expected: dict
) -> dict[str, dict]:
    """Describe the shipped models and count what they get right."""
    summary = {}
    for name, document in models.items():
        pairs = zip(data.trials, expected["trials"], strict=True)
        right = sum(
            entry[name]["label"] == true_label(document, trial)
            for trial, entry in pairs
        )
        summary[name] = {
            "levels": document["levels"],
            "features": len(document["features"]),
            "largest_sum": documents.largest_sum(document),
            "strength": strengths.get(name, "none"),
            "right": right,
            "accuracy": evaluation.percent(100 * right / len(data.trials)),
        }
    return summary


def data_summary(data: Dataset) -> dict:
    """Count the trials."""
    in_files = sum(len(parse((DATA / f"{file}.data").read_text())) for file in FILES)
    counts = np.bincount(data.grasp_classes)
    return {
        "trials": in_files,
        "distinct": len(data.trials),
        "recordings": len(np.unique(data.recordings)),
        "classes": {
            name: int(count) for name, count in zip(CLASSES, counts, strict=True)
        },
    }


def measure(data: Dataset) -> dict:
    """Cross-validate everything: minutes."""
    return {
        "splits": {
            "recordings kept together": cross_validation(data, together=True),
            "trials split at random": cross_validation(data, together=False),
        },
        "across_tasks": across_tasks(data),
    }


def derive(keep_figures: bool) -> dict[Path, str]:
    """Return the text of every file this program writes."""
    data = Dataset.load()
    figures = json.loads(FIGURES.read_text()) if keep_figures else measure(data)
    models, strengths = train(data, figures["splits"])
    check_documents(data, models)
    expected = expected_predictions(data, models)
    report = {
        "data": data_summary(data),
        "procedure": PROCEDURE,
        "splits": figures["splits"],
        "across_tasks": figures["across_tasks"],
        "shipped": shipped_summary(data, models, strengths, expected),
    }
    texts = {
        MODELS / f"{name}.json": documents.to_text(document)
        for name, document in models.items()
    }
    texts[TRAINING / "expected.json"] = documents.to_text(expected)
    texts[FIGURES] = json.dumps(report, indent=2) + "\n"
    texts[PAGE] = to_markdown(report)
    return texts


def differing(texts: dict[Path, str]) -> list[Path]:
    """Return the files that are missing or hold something else."""
    return [
        path
        for path, text in texts.items()
        if not path.exists() or path.read_text() != text
    ]


def main() -> int:
    """Write the files, or compare with them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument(
        "--keep-figures",
        action="store_true",
        help="take the cross-validation's figures from cross-validation.json",
    )
    arguments = parser.parse_args()
    # One thread: sums in a fixed order, hence the same bytes every time.
    with threadpool_limits(1):
        texts = derive(arguments.keep_figures)
    if arguments.check:
        wrong = differing(texts)
        for path in wrong:
            print(f"differs: {path.relative_to(ROOT)}", file=sys.stderr)
        return 1 if wrong else 0
    MODELS.mkdir(exist_ok=True)
    for path, text in texts.items():
        path.write_text(text)
    print(texts[PAGE])
    return 0


if __name__ == "__main__":
    sys.exit(main())
