"""Train the models that are served under CKKS, and write `server/tenseal/models`.

A linear model and a network with one hidden layer and squares for its activation: what
CKKS can compute. Inputs are the features of the lookup models, standardised and clamped;
scores are those of every label but the first, whose score is 0.

The output is the same bytes on every run; `--check` derives everything again and compares.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

import evaluation
from classifiers import fit_logistic, with_class_0
from features import STATISTICS
from train import Dataset, unchanged
from trials import CHANNELS, CLASSES, SAMPLES

MODELS = Path(__file__).parents[1] / "tenseal" / "models"

# Inputs beyond so many standard deviations are clamped: it bounds every score.
INPUT_LIMIT = 4.0
DECIMALS = 6
HIDDEN = 8
# The network's two layers multiply: it takes a stronger penalty than a linear model.
PENALTY_FACTOR = 0.03
SEED = 17


@dataclass(frozen=True)
class Network:
    """Standardise, clamp, then layers of weights and biases with squares between."""

    offset: np.ndarray  # (features,)
    divisor: np.ndarray  # (features,)
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]  # (inputs, outputs), (outputs,)

    def inputs(self, values: np.ndarray) -> np.ndarray:
        """Standardise and clamp a (trials, features) matrix."""
        standard = (values - self.offset) / self.divisor
        return np.clip(standard, -INPUT_LIMIT, INPUT_LIMIT)

    def scores(self, values: np.ndarray) -> np.ndarray:
        """Score a (trials, features) matrix."""
        return forward(self.inputs(values), self.layers)

    def bound(self) -> float:
        """Bound the absolute value of every score that any input can have."""
        largest = np.full(len(self.offset), INPUT_LIMIT)
        for index, (weights, bias) in enumerate(self.layers):
            largest = np.square(largest) if index else largest
            largest = largest @ np.abs(weights) + np.abs(bias)
        return float(largest.max())

    def scaled_to(self, limit: float) -> "Network":
        """Scale all scores alike, which changes no label, so that none passes the limit."""
        *inner, (weights, bias) = self.layers
        factor = min(1.0, limit / self.bound())
        return Network(
            self.offset, self.divisor, (*inner, (factor * weights, factor * bias))
        )


def forward(inputs: np.ndarray, layers) -> np.ndarray:
    """Apply layers with squares between them."""
    for index, (weights, bias) in enumerate(layers):
        inputs = np.square(inputs) if index else inputs
        inputs = inputs @ weights + bias
    return inputs


def standardiser(values: np.ndarray) -> Network:
    """Return a network without layers."""
    return Network(
        values.mean(axis=0).round(DECIMALS), values.std(axis=0).round(DECIMALS), ()
    )


def fit_linear(values: np.ndarray, classes: np.ndarray, strength: float) -> Network:
    """Fit logistic regression on the clamped inputs."""
    empty = standardiser(values)
    weights, bias = fit_logistic(empty.inputs(values), classes, strength)
    return Network(empty.offset, empty.divisor, ((weights.T, bias),))


def fit_network(values: np.ndarray, classes: np.ndarray, strength: float) -> Network:
    """Fit the two layers together, from a fixed start."""
    strength *= PENALTY_FACTOR
    empty = standardiser(values)
    inputs = empty.inputs(values)
    scores = int(classes.max())
    shapes = ((inputs.shape[1], HIDDEN), (HIDDEN,), (HIDDEN, scores), (scores,))
    sizes = [int(np.prod(shape)) for shape in shapes]
    start = np.random.default_rng(SEED).normal(0, 0.15, sum(sizes))
    truth = np.eye(scores + 1)[classes][:, 1:]

    def unpack(flat: np.ndarray):
        parts = np.split(flat, np.cumsum(sizes)[:-1])
        first, bias, second, offset = (
            part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)
        )
        return (first, bias), (second, offset)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        (first, bias), (second, offset) = unpack(flat)
        sums = inputs @ first + bias
        squares = np.square(sums)
        result = squares @ second + offset
        total = np.logaddexp.reduce(with_class_0(result), axis=1)
        data = total.sum() - (result * truth).sum()
        squared = np.square(first).sum() + np.square(second).sum()
        penalty = squared / (2 * strength)
        error = np.exp(result - total[:, None]) - truth
        inner = (error @ second.T) * 2 * sums
        gradient = (
            inputs.T @ inner + first / strength,
            inner.sum(axis=0),
            squares.T @ error + second / strength,
            error.sum(axis=0),
        )
        return data + penalty, np.concatenate([part.ravel() for part in gradient])

    options = {"maxiter": 500}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    return Network(empty.offset, empty.divisor, unpack(found.x))


@dataclass(frozen=True)
class Shape:
    """A model to train, and the CKKS parameters it is served under."""

    name: str
    labels: tuple[str, ...]
    kind: str
    method: str
    parameters: dict
    block: int
    windows: int
    limit: float
    error: float
    precision: float


# Bits between a result's prime and the scale are the room of a score: 5 bits are ±16.
LINEAR_LIMIT = 14.0
# For the network 15 bits are there.
NETWORK_LIMIT = 14000.0
# What products with a 24 x n matrix and a smaller one rotate by.
MATMUL_ROTATIONS = [-8, -4, -2, -1, 1, 2, 4, 8, 16, 32]

SHAPES = (
    Shape(
        "failure-linear",
        ("normal", "failure"),
        "linear",
        "dot",
        {
            "poly_modulus_degree": 4096,
            "coeff_mod_bit_sizes": [33, 28, 45],
            # The second prime: then rescaling is exact.
            "global_scale": 268369921.0,
            "public_key": False,
            "relinearisation_keys": False,
            "rotations": [1, 2, 4, 8, 16],
        },
        block=32,
        windows=64,
        limit=LINEAR_LIMIT,
        error=0.001,
        precision=0.01,
    ),
    Shape(
        "grasp-linear",
        CLASSES,
        "linear",
        "matmul",
        {
            "poly_modulus_degree": 4096,
            "coeff_mod_bit_sizes": [37, 32, 37],
            "global_scale": 4294828033.0,
            "public_key": True,
            "relinearisation_keys": False,
            "rotations": MATMUL_ROTATIONS,
        },
        block=24,
        windows=1,
        limit=LINEAR_LIMIT,
        error=0.001,
        precision=0.01,
    ),
    Shape(
        "grasp-mlp",
        CLASSES,
        "mlp",
        "matmul",
        {
            "poly_modulus_degree": 8192,
            "coeff_mod_bit_sizes": [50, 35, 35, 35, 50],
            "global_scale": 2.0**35,
            "public_key": True,
            "relinearisation_keys": True,
            "rotations": MATMUL_ROTATIONS,
        },
        block=24,
        windows=1,
        limit=NETWORK_LIMIT,
        error=0.001,
        precision=0.1,
    ),
)


def document(shape: Shape, network: Network, provenance: dict[str, str]) -> dict:
    """Describe a model as the server reads it."""
    features = [
        {
            "channel": index // len(STATISTICS),
            "statistic": STATISTICS[index % len(STATISTICS)],
            "transform": "signed_log",
            "offset": float(network.offset[index]),
            "divisor": float(network.divisor[index]),
        }
        for index in range(len(network.offset))
    ]
    return {
        "format": 1,
        "id": shape.name,
        "kind": shape.kind,
        "method": shape.method,
        "parameters": shape.parameters,
        "window": {"samples": SAMPLES, "channels": list(CHANNELS)},
        "features": features,
        "input_limit": INPUT_LIMIT,
        "block": shape.block,
        "windows": shape.windows,
        "labels": list(shape.labels),
        "error": shape.error,
        "precision": shape.precision,
        "layers": [
            {
                "weights": weights.round(DECIMALS).tolist(),
                "bias": bias.round(DECIMALS).tolist(),
            }
            for weights, bias in network.layers
        ],
        "provenance": provenance,
    }


def to_text(fields: dict) -> str:
    """Write JSON with one line per field, and one per feature and row of weights."""
    lines = []
    for key, value in fields.items():
        if key == "features":
            rows = ",\n".join(f"    {json.dumps(entry)}" for entry in value)
            lines.append(f'  "{key}": [\n{rows}\n  ]')
        elif key == "layers":
            layers = []
            for layer in value:
                rows = ",\n".join(f"      {json.dumps(row)}" for row in layer["weights"])
                bias = json.dumps(layer["bias"])
                layers.append(f'    {{"weights": [\n{rows}\n    ], "bias": {bias}}}')
            lines.append(f'  "{key}": [\n' + ",\n".join(layers) + "\n  ]")
        elif key in ("parameters", "provenance"):
            lines.append(f'  "{key}": ' + json.dumps(value, indent=4)[:-1] + "  }")
        else:
            lines.append(f'  "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def train(data: Dataset, shape: Shape, measure: bool) -> dict:
    """Fit one model on all trials, and measure it by cross-validation if asked to."""
    problem = data.problem(shape.labels, together=True)
    fit = {"linear": fit_linear, "mlp": fit_network}[shape.kind]
    strength = evaluation.choose_strength(fit, data.features, problem)
    network = fit(data.features, problem.classes, strength).scaled_to(shape.limit)
    provenance = {
        "data": "Robot Execution Failures, Luis Seabra Lopes and Luis M. "
        "Camarinha-Matos, 1999, DOI 10.24432/C5M89N, CC BY 4.0",
        "trained_by": "server/training/ckks.py",
    }
    path = MODELS / f"{shape.name}.json"
    if measure:
        run = partial(evaluation.cross_validate, fit, {"model": unchanged})
        accuracy = run(data.features, problem)["model"].summary()["accuracy"]
        quoted = f"{accuracy:.1f} % (recordings kept together)"
    else:
        quoted = json.loads(path.read_text())["provenance"]["cross_validated_accuracy"]
    provenance["cross_validated_accuracy"] = quoted
    return document(shape, network, provenance)


def main() -> int:
    """Write the files, or compare with them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument(
        "--keep-figures",
        action="store_true",
        help="take the cross-validated accuracy from the files that are there",
    )
    arguments = parser.parse_args()
    # One thread: sums in a fixed order, hence the same bytes every time.
    with threadpool_limits(1):
        data = Dataset.load()
        measure = not arguments.keep_figures
        texts = {
            MODELS / f"{shape.name}.json": to_text(train(data, shape, measure))
            for shape in SHAPES
        }
    if arguments.check:
        wrong = [
            path
            for path, text in texts.items()
            if not path.exists() or path.read_text() != text
        ]
        for path in wrong:
            print(f"differs: {path}", file=sys.stderr)
        return 1 if wrong else 0
    MODELS.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
