"""Cross-validation in which nothing sees the trials it is tested on.

Edges, weights, integer tables and the strength of the penalty are all fitted inside
each training fold; the strength by a cross-validation of its own within that fold.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from sklearn.metrics import recall_score
from sklearn.model_selection import StratifiedGroupKFold

from alarm import fit_limits
from classifiers import predict, with_class_0

FOLDS = 5
REPEATS = 10
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
INNER_SEED = 1000


@dataclass(frozen=True)
class Problem:
    """What is to be told apart, and which trials must stay in one fold."""

    labels: tuple[str, ...]
    classes: np.ndarray
    recordings: np.ndarray

    def subset(self, rows: np.ndarray) -> "Problem":
        """Return the problem on some of the trials."""
        return Problem(self.labels, self.classes[rows], self.recordings[rows])


@dataclass
class Outcome:
    """Predictions of one method for every trial, one array per repeat."""

    problem: Problem
    predictions: list[np.ndarray] = field(default_factory=list)
    strengths: Counter = field(default_factory=Counter)

    def summary(self) -> dict:
        """Return accuracy and recall in percent, averaged over the repeats."""
        truth = self.problem.classes
        accuracy = [100 * np.mean(p == truth) for p in self.predictions]
        recall = np.mean(
            [recall_score(truth, p, average=None) for p in self.predictions], axis=0
        )
        chosen = {str(key): count for key, count in sorted(self.strengths.items())}
        return {
            "accuracy": percent(np.mean(accuracy)),
            "lowest": percent(min(accuracy)),
            "highest": percent(max(accuracy)),
            "recall": {
                label: percent(100 * value)
                for label, value in zip(self.problem.labels, recall, strict=True)
            },
            "strengths_chosen": chosen,
        }


def percent(value: float) -> float:
    """Round for a report."""
    return round(float(value), 1)


def folds(problem: Problem, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (training rows, test rows), stratified, recordings kept together."""
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    return splitter.split(problem.classes, problem.classes, problem.recordings)


def log_loss(scores: np.ndarray, classes: np.ndarray) -> float:
    """Return the summed negative log-likelihood of the true classes."""
    full = with_class_0(scores)
    log_total = np.logaddexp.reduce(full, axis=1)
    return float((log_total - full[np.arange(len(full)), classes]).sum())


def choose_strength(fit: Callable, values: np.ndarray, problem: Problem) -> float:
    """Pick the strength with the least log loss in a cross-validation."""
    losses = dict.fromkeys(STRENGTHS, 0.0)
    for training, held_out in folds(problem, INNER_SEED):
        for strength in STRENGTHS:
            model = fit(values[training], problem.classes[training], strength)
            scores = model.scores(values[held_out])
            losses[strength] += log_loss(scores, problem.classes[held_out])
    return min(losses, key=losses.get)


def cross_validate(
    fit: Callable, forms: dict[str, Callable], values: np.ndarray, problem: Problem
) -> dict[str, Outcome]:
    """Cross-validate one method; `forms` turn the fitted model into what is tested."""
    outcomes = {name: Outcome(problem) for name in forms}
    for seed in range(REPEATS):
        predictions = {name: np.zeros_like(problem.classes) for name in forms}
        for training, test in folds(problem, seed):
            strength = choose_strength(fit, values[training], problem.subset(training))
            model = fit(values[training], problem.classes[training], strength)
            for name, form in forms.items():
                predictions[name][test] = predict(form(model).scores(values[test]))
                outcomes[name].strengths[strength] += 1
        for name in forms:
            outcomes[name].predictions.append(predictions[name])
    return outcomes


def cross_validate_alarm(windows: np.ndarray, problem: Problem) -> Outcome:
    """Cross-validate the alarm, whose class 0 is the normal one."""
    outcome = Outcome(problem)
    for seed in range(REPEATS):
        predictions = np.zeros_like(problem.classes)
        for training, test in folds(problem, seed):
            normal = training[problem.classes[training] == 0]
            predictions[test] = fit_limits(windows[normal]).alarms(windows[test])
        outcome.predictions.append(predictions)
    return outcome


def unseen_task(
    fit: Callable,
    form: Callable,
    values: np.ndarray,
    problem: Problem,
    in_task: np.ndarray,
) -> float:
    """Train on the other tasks, test on this one; return the accuracy in percent."""
    training, test = np.flatnonzero(~in_task), np.flatnonzero(in_task)
    strength = choose_strength(fit, values[training], problem.subset(training))
    model = form(fit(values[training], problem.classes[training], strength))
    hits = predict(model.scores(values[test])) == problem.classes[test]
    return percent(100 * hits.mean())
