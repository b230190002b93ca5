"""Which experts the gates take at the kept epoch, and what calibration changed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from polytask.metrics import metric
from polytask.report.settings import Settings
from polytask.run import Run
from polytask.transfer import parts


@dataclass(frozen=True)
class Gate:
    """The mean share of every expert under one gate at the kept epoch of one ``seed``.

    One seed and not the mean: experts have no order, so the first of one seed is not the first of another. ``task``
    reads what is mixed (None: a shared stream).
    """

    setting: str
    seed: int
    gate: str
    task: str | None
    shares: tuple[float, ...]
    entropy: float
    dead: int


@dataclass(frozen=True)
class Calibrated:
    """A metric of one task on test at the kept epochs, means over the seeds, ``before`` and ``after`` calibration."""

    setting: str
    task: str
    kind: str
    metric: str
    better: str
    before: float
    after: float


def gates(settings: Settings) -> tuple[Gate, ...]:
    """The gates of the joint settings that have any, of each setting's first seed."""
    found = []
    for name, runs in settings.items():
        first = min(runs, key=lambda r: r.config.seed)
        kept = next((h for h in first.history if h["epoch"] == first.kept), {})
        for gate in kept.get("gates", ()) if first.alone is None else ():
            shares = tuple(float(f"{s:.4g}") for s in gate["mean"])
            seed = first.config.seed
            found.append(Gate(name, seed, gate["gate"], gate["task"], shares, gate["entropy"], gate["dead"]))
    return tuple(found)


def calibrations(settings: Settings) -> tuple[Calibrated, ...]:
    """Every metric that calibration may have changed."""
    return tuple(
        row
        for name, runs in settings.items()
        for task in runs[0].tasks
        for measure in runs[0].schema.task(task).metrics
        for row in _calibrated(name, [r for r in runs if task in r.calibrated], task, measure)
    )


def _calibrated(setting: str, runs: Sequence[Run], task: str, name: str) -> Iterator[Calibrated]:
    if not runs:
        return
    part = parts(runs)[0]
    read = [(r.curve(part, task, name).get(r.kept), r.calibrated[task].get(name)) for r in runs]
    known = [(before, after) for before, after in read if before is not None and after is not None]
    if known:
        kind = str(runs[0].calibration.get(task, {}).get("kind", ""))
        before, after = (fmean(values) for values in zip(*known, strict=True))
        yield Calibrated(setting, task, kind, name, metric(name).better, before, after)
