"""The threshold alarm: tell whether any reading is beyond its channel's limit.

Limits come from normal trials alone: the 95 % quantile of the trials' maxima and the
5 % quantile of their minima, each widened by a quarter of the distance between the
two. Quantiles, unlike extremes, do not hang on the one oddest trial; the margin gives
the false alarms back. A limit lies between two integers, so no reading equals it.
"""

from dataclasses import dataclass

import numpy as np

QUANTILE = 0.95
MARGIN = 0.25


@dataclass(frozen=True)
class Limits:
    """Lower and upper limit of each channel."""

    lower: np.ndarray
    upper: np.ndarray

    def alarms(self, windows: np.ndarray) -> np.ndarray:
        """Tell which windows have a reading beyond a limit."""
        above = windows.max(axis=1) >= self.upper
        below = windows.min(axis=1) < self.lower
        return (above | below).any(axis=1)


def fit_limits(normal_windows: np.ndarray) -> Limits:
    """Choose the limits from windows in which nothing went wrong."""
    upper = np.quantile(normal_windows.max(axis=1), QUANTILE, axis=0)
    lower = np.quantile(normal_windows.min(axis=1), 1 - QUANTILE, axis=0)
    margin = MARGIN * (upper - lower)
    return Limits(np.ceil(lower - margin) - 0.5, np.floor(upper + margin) + 0.5)
