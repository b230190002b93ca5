"""Static weights to sweep over, and which of them validation data choose: the baseline of every balancing method."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from polytask.metrics import metric
from polytask.run import Run

_OF_TWO = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
_EMPHASIS = 4.0


def grid(tasks: Sequence[str]) -> list[dict[str, float]]:
    """Weights by task: for two tasks from .01/.99 to .99/.01; for more all equal, and each in turn four times the rest.

    Under Adam only the ratios of weights matter on what tasks share, so one weight of two is free.
    """
    if len(tasks) == 2:
        return [dict(zip(tasks, (w, round(1 - w, 2)), strict=True)) for w in _OF_TWO]
    equal = dict.fromkeys(tasks, 1.0)
    return [equal, *(equal | {t: _EMPHASIS} for t in tasks)]


def best(settings: Mapping[str, Sequence[Run]]) -> str:
    """The setting whose validation metrics, at the kept epochs, fall least short of the best of any, in the mean.

    A task's shortfall is relative to the best mean over the seeds of its first metric among ``settings``.
    """
    values = {name: _values(runs) for name, runs in settings.items()}
    tasks = next(iter(values.values()))
    top = {t: max(v[t] for v in values.values()) for t in tasks}
    return min(values, key=lambda n: fmean((top[t] - values[n][t]) / max(abs(top[t]), 1e-12) for t in tasks))


def _values(runs: Sequence[Run]) -> dict[str, float]:
    """By task the mean of its first metric on validation data at the kept epochs, signed so that higher is better."""
    found = {}
    for task in runs[0].tasks:
        name = runs[0].schema.task(task).metrics[0]
        sign = 1 if metric(name).better == "higher" else -1
        found[task] = sign * fmean(r.curve("valid", task, name)[r.kept] for r in runs)
    return found
