"""The additive lookup classifier, its integer form, and the linear baseline.

All give score differences against class 0, shape (trials, classes - 1). The predicted
class is argmax(0, score 1, score 2, ...), and a tie goes to the lower class.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from features import all_edges, to_levels

# Encrypted scores live modulo 128: no sum may leave -63..63.
SCORE_LIMIT = 63

# How much of a table's shape is penalised per step between neighbouring levels instead
# of per level. It makes neighbours share evidence: there are few trials per level.
STEP_WEIGHT = 0.5


@dataclass(frozen=True)
class Lookup:
    """Scores are sums of one table entry per feature, and a bias."""

    edges: np.ndarray  # (features, levels - 1)
    tables: np.ndarray  # (classes - 1, features, levels)
    bias: np.ndarray  # (classes - 1,)

    def scores(self, values: np.ndarray) -> np.ndarray:
        """Score a (trials, features) matrix."""
        levels = to_levels(values, self.edges)
        feature = np.arange(levels.shape[1])
        return self.tables[:, feature, levels].sum(axis=2).T + self.bias

    def largest_score(self) -> float:
        """Bound every score that any input can have."""
        return (np.abs(self.tables).max(axis=2).sum(axis=1) + np.abs(self.bias)).max()


@dataclass(frozen=True)
class Linear:
    """Scores are weighted sums of the standardised features."""

    scaler: StandardScaler
    weights: np.ndarray  # (classes - 1, features)
    bias: np.ndarray  # (classes - 1,)

    def scores(self, values: np.ndarray) -> np.ndarray:
        """Score a (trials, features) matrix."""
        return self.scaler.transform(values) @ self.weights.T + self.bias


def predict(scores: np.ndarray) -> np.ndarray:
    """Return the class index of each trial."""
    return np.argmax(with_class_0(scores), axis=1)


def with_class_0(scores: np.ndarray) -> np.ndarray:
    """Put class 0's score, which is always 0, before the others."""
    return np.pad(scores, ((0, 0), (1, 0)))


def fit_logistic(inputs: np.ndarray, classes: np.ndarray, strength: float):
    """Fit L2-penalised logistic regression; return weights and bias against class 0."""
    model = LogisticRegression(C=strength, tol=1e-6, max_iter=10_000)
    model.fit(inputs, classes)
    if len(model.classes_) == 2:
        return model.coef_, model.intercept_
    return model.coef_[1:] - model.coef_[0], model.intercept_[1:] - model.intercept_[0]


def fit_linear(values: np.ndarray, classes: np.ndarray, strength: float) -> Linear:
    """Fit the baseline."""
    scaler = StandardScaler().fit(values)
    weights, bias = fit_logistic(scaler.transform(values), classes, strength)
    return Linear(scaler, weights, bias)


def fit_lookup(
    values: np.ndarray, classes: np.ndarray, strength: float, levels: int
) -> Lookup:
    """Fit edges and real-valued tables."""
    edges = all_edges(values, levels)
    basis = level_basis(levels)
    inputs = basis[to_levels(values, edges)].reshape(len(values), -1)
    weights, bias = fit_logistic(inputs, classes, strength)
    weights = weights.reshape(len(weights), values.shape[1], basis.shape[1])
    return Lookup(edges, weights @ basis.T, bias)


def level_basis(levels: int) -> np.ndarray:
    """Return one row per level: which level it is, and which steps lie below it."""
    level = np.eye(levels)
    steps = np.tri(levels, levels - 1, k=-1)
    return np.hstack([level, STEP_WEIGHT * steps])


def to_integers(model: Lookup) -> Lookup:
    """Round to the finest integer tables whose scores stay within SCORE_LIMIT.

    Each table is first shifted so that its extremes are opposite (the shift moves into
    the bias), which halves what it takes of the limit. All scores share one scale, or
    the comparison between two of them would change.
    """
    middle = (model.tables.max(axis=2) + model.tables.min(axis=2)) / 2
    tables = model.tables - middle[:, :, None]
    bias = model.bias + middle.sum(axis=1)
    for scale in np.geomspace(100, 0.01, 2000):
        candidate = Lookup(
            model.edges,
            np.rint(scale * tables).astype(int),
            np.rint(scale * bias).astype(int),
        )
        if candidate.largest_score() <= SCORE_LIMIT:
            return candidate
    raise ValueError("the tables are too large for the score limit")
