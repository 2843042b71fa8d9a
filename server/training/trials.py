"""Read the Robot Execution Failures recordings as distinct, labelled trials.

Invariants:
- a trial is 15 samples of 6 integer channels (fx, fy, fz, tx, ty, tz);
- no two trials have the same samples; the order is that of first occurrence;
- every file a trial occurs in agrees on its class.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FILES = ("lp1", "lp2", "lp3", "lp4", "lp5")
CHANNELS = ("fx", "fy", "fz", "tx", "ty", "tz")
SAMPLES = 15
CLASSES = ("normal", "collision", "obstruction")

# What happened to the arm. The other labels of lp3 tell where the part ended after a
# collision in transfer, not what happened, so they name no class.
CLASS_OF_LABEL = {
    "normal": "normal",
    "ok": "normal",
    "collision": "collision",
    "fr_collision": "collision",
    "front_col": "collision",
    "back_col": "collision",
    "left_col": "collision",
    "right_col": "collision",
    "bottom_collision": "collision",
    "collision_in_part": "collision",
    "collision_in_tool": "collision",
    "obstruction": "obstruction",
    "bottom_obstruction": "obstruction",
}
LABELS_WITHOUT_CLASS = ("moved", "slightly_moved", "lost")

# Two windows that share this many consecutive samples were cut from one recording.
OVERLAP_SAMPLES = 3


@dataclass(frozen=True)
class Trial:
    """One distinct recording and where it was first seen."""

    file: str
    number: int
    samples: tuple[tuple[int, ...], ...]
    grasp_class: str

    @property
    def name(self) -> str:
        """File and 1-based position in it, such as `lp2:7`."""
        return f"{self.file}:{self.number}"


def check_digests(directory: Path) -> None:
    """Refuse recordings that are not the published ones."""
    for line in (directory / "SHA256SUMS").read_text().splitlines():
        expected, name = line.split()
        actual = hashlib.sha256((directory / name).read_bytes()).hexdigest()
        if actual != expected:
            raise ValueError(f"{directory / name}: SHA-256 differs from SHA256SUMS")


def parse(text: str) -> list[tuple[str, tuple[tuple[int, ...], ...]]]:
    """Split one file into (label, samples) pairs."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    trials = []
    for start in range(0, len(lines), 1 + SAMPLES):
        (label,), *rows = lines[start : start + 1 + SAMPLES]
        samples = tuple(tuple(int(value) for value in row) for row in rows)
        if len(samples) != SAMPLES or any(len(row) != len(CHANNELS) for row in samples):
            raise ValueError(f"trial {start // (1 + SAMPLES) + 1}: not 15 x 6 integers")
        trials.append((label, samples))
    return trials


def load(directory: Path) -> list[Trial]:
    """Read lp1 to lp5 and keep each signal once, with the class of its first label."""
    check_digests(directory)
    distinct: dict[tuple, Trial] = {}
    for file in FILES:
        pairs = parse((directory / f"{file}.data").read_text())
        for number, (label, samples) in enumerate(pairs, start=1):
            known = distinct.get(samples)
            if known is None:
                distinct[samples] = Trial(file, number, samples, CLASS_OF_LABEL[label])
            elif contradicts(label, known.grasp_class):
                raise ValueError(f"{file}:{number} contradicts {known.name}")
    return list(distinct.values())


def contradicts(label: str, grasp_class: str) -> bool:
    """Tell whether a label names another class."""
    if label in LABELS_WITHOUT_CLASS:
        return False
    return CLASS_OF_LABEL[label] != grasp_class


def windows(trials: list[Trial]) -> np.ndarray:
    """Return the samples as floats, shape (trials, samples, channels)."""
    return np.array([trial.samples for trial in trials], dtype=float)


def class_indices(trials: list[Trial]) -> np.ndarray:
    """Return 0 for normal, 1 for collision, 2 for obstruction."""
    return np.array([CLASSES.index(trial.grasp_class) for trial in trials])


def recordings(trials: list[Trial]) -> np.ndarray:
    """Return the recording each trial was cut from, as a number.

    Trials that share OVERLAP_SAMPLES consecutive samples share a recording.
    """
    group = np.arange(len(trials))
    first_with: dict[tuple, int] = {}
    for index, trial in enumerate(trials):
        for start in range(SAMPLES - OVERLAP_SAMPLES + 1):
            run = trial.samples[start : start + OVERLAP_SAMPLES]
            other = first_with.setdefault(run, index)
            group[group == group[index]] = group[other]
    return group
