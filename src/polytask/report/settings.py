"""What the report shows of each setting: how it was trained, what it came to, its curves over the seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import fmean, stdev
from typing import NamedTuple

from polytask.errors import ConfigError
from polytask.metrics import metric
from polytask.run import Run
from polytask.transfer import parts

Settings = Mapping[str, Sequence[Run]]


@dataclass(frozen=True)
class Mark:
    """One metric of one task: mean and standard deviation over the seeds, at two epochs of each run.

    ``best``: at the epoch where the task's *first* metric is best (``epochs``, per seed). ``last``: at the end.
    """

    task: str
    metric: str
    better: str
    best: float | None
    best_sd: float | None
    epochs: tuple[int, ...]
    last: float | None
    last_sd: float | None


@dataclass(frozen=True)
class Setting:
    """One setting. ``kind`` is ``joint``, or ``single-task`` where one task alone was trained.

    ``kept`` and ``trained`` are the epochs kept and trained, per seed; ``seconds`` the mean of a run;
    ``times_parameters`` and ``times_seconds`` how often they hold those of the cheapest setting. ``step_seconds`` of
    one training step and the most bytes ``memory`` held are None where unknown, and compared with ``beside``: static
    weights of the same network, or the cheapest setting.
    """

    name: str
    kind: str
    tasks: tuple[str, ...]
    weights: dict[str, float]
    share: str
    body: str
    balance: str
    seeds: tuple[int, ...]
    parameters: int
    seconds: float
    times_parameters: float | None
    times_seconds: float | None
    step_seconds: float | None
    memory: float | None
    beside: str
    times_step: float | None
    times_memory: float | None
    trained: tuple[int, ...]
    kept: tuple[int, ...]
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Curve:
    """A loss or metric by epoch: mean, lowest and highest value over the seeds that reached the epoch.

    ``part`` is ``train`` (``metric`` is ``loss``; ``task`` may be ``joint``), ``valid`` or ``test``.
    """

    setting: str
    part: str
    task: str
    metric: str
    epochs: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs by the name of their setting, in the order of first appearance."""
    settings: dict[str, list[Run]] = {}
    for run in runs:
        own = settings.setdefault(run.name, [])
        if run.config.seed in {r.config.seed for r in own}:
            raise ConfigError(
                f"two runs of '{run.name}' have seed {run.config.seed}; report on one comparison at a time"
            )
        own.append(run)
    return settings


def describe(settings: Settings, beside: Mapping[str, str | None]) -> tuple[Setting, ...]:
    """A :class:`Setting` for each of ``settings``; ``beside`` names the one that its cost is compared with, if any."""
    costs = {name: _cost(runs) for name, runs in settings.items()}
    least = _Cost(*(min((c for c in column if c), default=None) for column in zip(*costs.values(), strict=True)))
    cheapest = min(costs, key=lambda n: (costs[n].step or inf, costs[n].seconds or inf))
    return tuple(_setting(n, r, costs, least, beside[n] or cheapest) for n, r in settings.items())


class _Cost(NamedTuple):
    """What a run of a setting costs in the mean; None is unknown."""

    parameters: float | None
    seconds: float | None
    step: float | None
    memory: float | None


def _cost(runs: Sequence[Run]) -> _Cost:
    return _Cost(
        runs[0].parameters or None,
        fmean(r.seconds for r in runs) or None,
        fmean(r.step_seconds for r in runs) if all(r.step_seconds for r in runs) else None,
        fmean(r.memory for r in runs) if all(r.memory for r in runs) else None,
    )


def _times(value: float | None, other: float | None) -> float | None:
    return value / other if value and other else None


def _setting(name: str, runs: Sequence[Run], costs: Mapping[str, _Cost], least: _Cost, beside: str) -> Setting:
    first, cost, other = runs[0], costs[name], costs[beside]
    return Setting(
        name=name,
        kind="single-task" if first.alone else "joint",
        tasks=first.tasks,
        weights=dict(first.weights),
        share=str(first.design["share"]),
        body=str(first.design["body"]),
        balance=first.config.balance.kind,
        seeds=tuple(r.config.seed for r in runs),
        parameters=first.parameters,
        seconds=cost.seconds or 0.0,
        times_parameters=_times(cost.parameters, least.parameters),
        times_seconds=_times(cost.seconds, least.seconds),
        step_seconds=cost.step,
        memory=cost.memory,
        beside=beside,
        times_step=_times(cost.step, other.step),
        times_memory=_times(cost.memory, other.memory),
        trained=tuple(r.history[-1]["epoch"] for r in runs),
        kept=tuple(r.kept for r in runs),
        marks=tuple(mark(runs, t, m) for t in first.tasks for m in first.schema.task(t).metrics),
    )


def mark(runs: Sequence[Run], task: str, name: str) -> Mark:
    """The metric ``name`` of ``task`` in the runs of one setting."""
    part, chosen_on = parts(runs)
    best = tuple(r.best_epoch(chosen_on, task) for r in runs)
    curves = [r.curve(part, task, name) for r in runs]
    at_best = [c[e] for c, e in zip(curves, best, strict=True) if e in c]
    (mean, sd), (last, last_sd) = _mean(at_best), _mean([c[max(c)] for c in curves if c])
    return Mark(task, name, metric(name).better, mean, sd, best, last, last_sd)


def _mean(values: Sequence[float]) -> tuple[float | None, float | None]:
    if not values:
        return None, None
    return fmean(values), stdev(values) if len(values) > 1 else None


def curves(settings: Settings) -> tuple[Curve, ...]:
    """Every curve of every setting."""
    found = []
    for name, runs in settings.items():
        first = runs[0]
        wanted = [("train", task, "loss") for task in (*first.tasks, "joint")]
        wanted += [(p, t, m) for p in first.parts() for t in first.tasks for m in first.schema.task(t).metrics]
        found += [
            c for part, task, m in wanted if (c := _curve(name, [r.curve(part, task, m) for r in runs], part, task, m))
        ]
    return tuple(found)


def _curve(name: str, values: Sequence[Mapping[int, float]], part: str, task: str, kind: str) -> Curve | None:
    epochs = sorted(set().union(*values))
    if not epochs:
        return None
    columns = [[v[e] for v in values if e in v] for e in epochs]
    mean, low, high = (tuple(_short(f(c)) for c in columns) for f in (fmean, min, max))
    return Curve(name, part, task, kind, tuple(epochs), mean, low, high)


def _short(value: float) -> float:
    """Six digits are more than a plot shows and keep the files small."""
    return float(f"{value:.6g}")
