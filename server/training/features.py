"""Turn windows into features, and features into small integer levels.

A level is the number of edges that are at or below the feature's value. Edges lie
half-way between neighbouring values of the training trials, so rounding differences
between two implementations cannot change a level of any trial.
"""

import numpy as np

STATISTICS = ("mean", "std", "max", "min")

# Neighbouring values closer than this may be one value seen through rounding errors.
SMALLEST_GAP = 1e-4
EDGE_DECIMALS = 6


def statistics(windows: np.ndarray) -> np.ndarray:
    """Return mean, population deviation, max and min of each channel.

    Shape (trials, 4 x channels); channel 0's four statistics come first.
    """
    per_channel = [
        windows.mean(axis=1),
        windows.std(axis=1),
        windows.max(axis=1),
        windows.min(axis=1),
    ]
    return np.stack(per_channel, axis=2).reshape(len(windows), -1)


def signed_log(values: np.ndarray) -> np.ndarray:
    """Compress a wide range, keeping the sign: sign(x) * ln(1 + |x|)."""
    return np.sign(values) * np.log1p(np.abs(values))


def possible_edges(values: np.ndarray) -> np.ndarray:
    """Return the midpoints between neighbouring distinct values."""
    distinct = np.unique(values)
    wide = np.diff(distinct) >= SMALLEST_GAP
    midpoints = (distinct[1:] + distinct[:-1]) / 2
    return np.unique(midpoints[wide].round(EDGE_DECIMALS))


def quantile_edges(values: np.ndarray, levels: int) -> np.ndarray:
    """Choose `levels - 1` edges that split one feature's values about evenly."""
    candidates = possible_edges(values)
    if len(candidates) < levels - 1:
        raise ValueError(f"too few distinct values for {levels} levels")
    share_below = np.searchsorted(np.sort(values), candidates) / len(values)
    edges = []
    first = 0
    for level in range(1, levels):
        last = len(candidates) - (levels - 1 - level)  # leave one for each to come
        distance = np.abs(share_below[first:last] - level / levels)
        chosen = first + int(np.argmin(distance))
        edges.append(candidates[chosen])
        first = chosen + 1
    return np.array(edges)


def all_edges(values: np.ndarray, levels: int) -> np.ndarray:
    """Choose the edges of every feature, shape (features, levels - 1)."""
    return np.stack([quantile_edges(column, levels) for column in values.T])


def to_levels(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Quantise a (trials, features) matrix with each feature's own edges."""
    columns = [
        np.searchsorted(feature_edges, column, side="right")
        for column, feature_edges in zip(values.T, edges, strict=True)
    ]
    return np.stack(columns, axis=1)
