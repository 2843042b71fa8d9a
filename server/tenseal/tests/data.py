"""The recordings that the models were trained on."""

from .golden import ROOT

SAMPLES = 15


def windows() -> list[list[list[float]]]:
    """Return the distinct trials of all files, each 15 samples of 6 channels."""
    trials: dict[str, list[list[float]]] = {}
    for path in sorted((ROOT / "data" / "robot-execution-failures").glob("lp*.data")):
        lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
        for start in range(0, len(lines), SAMPLES + 1):
            rows = lines[start + 1 : start + 1 + SAMPLES]
            trials[repr(rows)] = [[float(value) for value in row] for row in rows]
    return list(trials.values())
