"""Models: what a server computes, and the cards that say so.

Invariants:
- a Model that exists keeps the limits of the protocol; its id, names and numbers are checked;
- no input within its limits leaves the range that its result has room for;
- a card holds no weight.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from . import cbor, names
from .contexts import Context

MAX_MODEL_LEN = 4 << 20
MAX_SAMPLES = 65_536
MAX_CHANNELS = 256
MAX_FEATURES = 2048
MAX_LABELS = 64
MAX_HIDDEN = 2048
MAX_RESULT_LEN = 262_144
STATISTICS = ("mean", "std", "max", "min")
TRANSFORMS = ("none", "signed_log")
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,64}")

_KEYS = frozenset(
    {
        "format",
        "id",
        "kind",
        "method",
        "parameters",
        "window",
        "features",
        "input_limit",
        "block",
        "windows",
        "labels",
        "error",
        "precision",
        "layers",
        "provenance",
    }
)

Fields = Mapping[str, object]


class ModelError(ValueError):
    """A model file that cannot be served; the message names the field."""


def _need(holds: bool, field: str, rule: str) -> None:
    if not holds:
        raise ModelError(f"`{field}` {rule}")


def _object(value: object, field: str, keys: frozenset[str] | set[str]) -> Fields:
    _need(isinstance(value, dict) and value.keys() == keys, field, f"must have {sorted(keys)}")
    assert isinstance(value, dict)
    return value


def _list(value: object, field: str, least: int, most: int) -> list[object]:
    _need(
        isinstance(value, list) and least <= len(value) <= most,
        field,
        f"must have {least} to {most} entries",
    )
    assert isinstance(value, list)
    return value


def _integer(value: object, field: str, least: int, most: int) -> int:
    _need(type(value) is int and least <= value <= most, field, f"must be {least} to {most}")
    assert isinstance(value, int)
    return value


def _number(value: object, field: str, above: float = -math.inf) -> float:
    number = float(value) if isinstance(value, int | float) else math.nan
    _need(math.isfinite(number) and number > above, field, f"must be a number above {above}")
    return number


def _choice(value: object, field: str, choices: tuple[str, ...]) -> str:
    _need(value in choices, field, f"must be one of {', '.join(choices)}")
    return str(value)


def _names(value: object, field: str, least: int, most: int) -> tuple[str, ...]:
    entries = _list(value, field, least, most)
    for entry in entries:
        _need(
            isinstance(entry, str) and _PRINTABLE.fullmatch(entry) is not None,
            field,
            "must be names of 1 to 64 printable characters",
        )
    return tuple(str(entry) for entry in entries)


@dataclass(frozen=True)
class Layer:
    """Weights (one row for each input, one column for each output) and biases."""

    weights: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]

    @classmethod
    def from_fields(cls, value: object, inputs: int) -> "Layer":
        """Return a layer of so many inputs."""
        fields = _object(value, "layers", {"weights", "bias"})
        bias = _list(fields["bias"], "layers.bias", 1, MAX_HIDDEN)
        rows = _list(fields["weights"], "layers.weights", inputs, inputs)
        weights = [_list(row, "layers.weights", len(bias), len(bias)) for row in rows]
        return cls(
            tuple(tuple(_number(entry, "layers.weights") for entry in row) for row in weights),
            tuple(_number(entry, "layers.bias") for entry in bias),
        )

    def column(self, output: int) -> list[float]:
        """Return the weights of one output."""
        return [row[output] for row in self.weights]

    def apply(self, inputs: list[float]) -> list[float]:
        """Return the outputs in the clear."""
        return [
            math.fsum(w * x for w, x in zip(self.column(k), inputs, strict=True)) + bias
            for k, bias in enumerate(self.bias)
        ]

    def bound(self, inputs: list[float]) -> list[float]:
        """Bound the absolute values of the outputs, given bounds of the inputs."""
        return [
            math.fsum(abs(w) * x for w, x in zip(self.column(k), inputs, strict=True)) + abs(bias)
            for k, bias in enumerate(self.bias)
        ]


@dataclass(frozen=True)
class Feature:
    """One input of a model."""

    channel: int
    statistic: str
    transform: str
    offset: float
    divisor: float

    @classmethod
    def from_fields(cls, value: object, channels: int) -> "Feature":
        """Return a feature of a window of so many channels."""
        keys = {"channel", "statistic", "transform", "offset", "divisor"}
        fields = _object(value, "features", keys)
        return cls(
            channel=_integer(fields["channel"], "features.channel", 0, channels - 1),
            statistic=_choice(fields["statistic"], "features.statistic", STATISTICS),
            transform=_choice(fields["transform"], "features.transform", TRANSFORMS),
            offset=_number(fields["offset"], "features.offset"),
            divisor=_number(fields["divisor"], "features.divisor", above=0),
        )

    def value(self, samples: list[list[float]]) -> float:
        """Return the standardised feature of a window, before it is clamped."""
        readings = [row[self.channel] for row in samples]
        mean = math.fsum(readings) / len(readings)
        squares = math.fsum((reading - mean) ** 2 for reading in readings)
        value = {
            "mean": mean,
            "std": math.sqrt(squares / len(readings)),
            "max": max(readings),
            "min": min(readings),
        }[self.statistic]
        if self.transform == "signed_log":
            value = math.copysign(math.log1p(abs(value)), value)
        return (value - self.offset) / self.divisor


@dataclass(frozen=True)
class Model:
    """A card's contents, and the weights."""

    id: str
    kind: str
    method: str
    context: Context
    samples: int
    channels: tuple[str, ...]
    features: tuple[Feature, ...]
    input_limit: float
    block: int
    windows: int
    labels: tuple[str, ...]
    error: float
    precision: float
    layers: tuple[Layer, ...]

    @classmethod
    def from_json(cls, data: bytes) -> "Model":
        """Return the model in a file, or raise ModelError."""
        _need(len(data) <= MAX_MODEL_LEN, "the file", "is too long")
        try:
            parsed = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"not JSON: {error}") from error
        fields = _object(parsed, "the file", _KEYS)
        _integer(fields["format"], "format", 1, 1)
        name = fields["id"]
        _need(isinstance(name, str) and names.is_id(name), "id", "must be [A-Za-z0-9_-]{1,64}")
        window = _object(fields["window"], "window", {"samples", "channels"})
        channels = _names(window["channels"], "window.channels", 1, MAX_CHANNELS)
        features = _list(fields["features"], "features", 1, MAX_FEATURES)
        layers = _list(fields["layers"], "layers", 1, 2)
        parameters = fields["parameters"]
        try:
            context = Context.from_fields(parameters if isinstance(parameters, dict) else {})
        except ValueError as error:
            raise ModelError(f"`parameters`: {error}") from error
        first = Layer.from_fields(layers[0], len(features))
        second = [Layer.from_fields(layer, len(first.bias)) for layer in layers[1:]]
        noise = _number(fields["error"], "error", above=0)
        model = cls(
            id=str(name),
            kind=_choice(fields["kind"], "kind", ("linear", "mlp")),
            method=_choice(fields["method"], "method", ("dot", "matmul")),
            context=context,
            samples=_integer(window["samples"], "window.samples", 1, MAX_SAMPLES),
            channels=channels,
            features=tuple(Feature.from_fields(entry, len(channels)) for entry in features),
            input_limit=_number(fields["input_limit"], "input_limit", above=0),
            block=_integer(fields["block"], "block", len(features), context.slots),
            windows=_integer(fields["windows"], "windows", 1, context.slots),
            labels=_names(fields["labels"], "labels", 2, MAX_LABELS),
            error=noise,
            precision=_number(fields["precision"], "precision", above=math.nextafter(noise, 0)),
            layers=(first, *second),
        )
        model._check()
        return model

    def _check(self) -> None:
        context, is_dot = self.context, self.method == "dot"
        layers = {"linear": 1, "mlp": 2}[self.kind]
        _need(len(self.layers) == layers, "layers", f"of this kind must be {layers}")
        _need(
            len(self.layers[-1].bias) == len(self.labels) - 1,
            "layers",
            "must end in a score for each label but the first",
        )
        _need(not is_dot or self.kind == "linear", "method", "of a network must be matmul")
        if is_dot:
            _need(self.block & (self.block - 1) == 0, "block", "for dot must be a power of two")
            fits = self.block * self.windows <= context.slots
            _need(fits, "windows", "do not fit a ciphertext")
        else:
            fits = self.block == len(self.features) and self.windows == 1
            _need(fits, "block", "for matmul must be the number of features, and windows 1")
        needed = self._rotations()
        _need(needed <= set(context.rotations), "parameters.rotations", f"must have {needed}")
        _need(context.public_key or is_dot, "parameters.public_key", "is needed for matmul")
        _need(
            context.relinearisation_keys or self.kind == "linear",
            "parameters.relinearisation_keys",
            "are needed for a network",
        )
        _need(self.primes >= 1, "parameters.coeff_mod_bit_sizes", "are too few")
        room = math.prod(2.0 ** (bits - 1) for bits in context.coeff_mod_bit_sizes[: self.primes])
        _need(
            self.score_limit + self.error < room / context.global_scale,
            "layers",
            f"give scores up to {self.score_limit:.1f}, for which the result has no room",
        )
        _need(self.max_result_len <= MAX_RESULT_LEN, "labels", "make a result too long")

    def _rotations(self) -> set[int]:
        """Return the steps that TenSEAL takes for this model."""
        if self.method == "dot":
            return {1 << bit for bit in range((self.block - 1).bit_length())}
        widest = max(len(layer.weights) for layer in self.layers)
        return {step for by in range(1, widest) for step in non_adjacent_form(by)}

    @property
    def primes(self) -> int:
        """Primes of a result's ciphertexts: each product consumes one."""
        consumed = {"linear": 1, "mlp": 3}[self.kind]
        return self.context.data_primes - consumed

    @property
    def ciphertexts(self) -> int:
        """Ciphertexts of a result."""
        return len(self.labels) - 1 if self.method == "dot" else 1

    @property
    def max_result_len(self) -> int:
        """The most bytes of a result."""
        return self.ciphertexts * self.context.ciphertext_len(self.primes) + 64

    @cached_property
    def score_limit(self) -> float:
        """No input within its limits gives a score of larger absolute value."""
        bounds = [self.input_limit] * len(self.features)
        for index, layer in enumerate(self.layers):
            bounds = layer.bound([bound**2 for bound in bounds] if index else bounds)
        return max(bounds)

    def inputs(self, samples: list[list[float]]) -> list[float]:
        """Return the inputs that a robot would encrypt for a window."""
        limit = self.input_limit
        return [min(max(feature.value(samples), -limit), limit) for feature in self.features]

    def scores(self, inputs: list[float]) -> list[float]:
        """Return the scores in the clear, as the reference for ciphertexts."""
        values = inputs
        for index, layer in enumerate(self.layers):
            values = layer.apply([value**2 for value in values] if index else values)
        return values

    def label(self, scores: list[float]) -> str:
        """Return the label of the largest score; the first label's is 0."""
        full = [0.0, *scores]
        return self.labels[full.index(max(full))]

    def card(self) -> dict[int | str, cbor.Item]:
        """Return the public part."""
        parameters: dict[int | str, cbor.Item] = {}
        for name, value in self.context.fields().items():
            parameters[name] = list(value) if isinstance(value, list) else value
        return {
            "format": 1,
            "scheme": "ckks",
            "id": self.id,
            "kind": self.kind,
            "method": self.method,
            "context": self.context.id.hex(),
            "parameters": parameters,
            "window": {"samples": self.samples, "channels": list(self.channels)},
            "features": [
                {
                    "channel": feature.channel,
                    "statistic": feature.statistic,
                    "transform": feature.transform,
                    "offset": feature.offset,
                    "divisor": feature.divisor,
                }
                for feature in self.features
            ],
            "input_limit": self.input_limit,
            "block": self.block,
            "windows": self.windows,
            "labels": list(self.labels),
            "result": {"ciphertexts": self.ciphertexts, "primes": self.primes},
            "score_limit": self.score_limit,
            "error": self.error,
            "precision": self.precision,
        }


def non_adjacent_form(value: int) -> list[int]:
    """Return the signed powers of two that SEAL splits a rotation into (seal/util/numth.h)."""
    steps, power = [], 1
    while value:
        if value & 1:
            digit = 2 - (value & 3)
            steps.append(digit * power)
            value -= digit
        value >>= 1
        power <<= 1
    return steps


def load(directory: Path) -> dict[str, Model]:
    """Read every `*.json` in a directory as a model."""
    models: dict[str, Model] = {}
    for path in sorted(directory.glob("*.json")):
        try:
            with path.open("rb") as file:
                model = Model.from_json(file.read(MAX_MODEL_LEN + 1))
        except (OSError, ModelError) as error:
            raise ModelError(f"{path}: {error}") from error
        if model.id in models:
            raise ModelError(f"{path}: there is another model {model.id}")
        models[model.id] = model
    if not models:
        raise ModelError(f"there is no model in {directory}")
    return models
