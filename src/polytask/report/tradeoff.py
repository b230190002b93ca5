"""What settings trade between tasks: their points, the front of those, and how much of the box each method covers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from polytask.metrics import Better, metric
from polytask.pareto import fronts
from polytask.report.balancing import Sweep, static
from polytask.report.settings import Settings
from polytask.run import Run
from polytask.transfer import Transfer, parts


@dataclass(frozen=True)
class Point:
    """The tasks' first metrics in one setting at the kept epochs, means over the seeds.

    ``kind`` is *static*, *method* or *single-task*; ``method`` the name under which fronts count it: its sweep's, or
    its own. ``front``: whether no other joint setting has all means as good and one better; ``chosen``: whether
    validation data chose it of a sweep.
    """

    setting: str
    kind: str
    method: str
    values: tuple[float, ...]
    front: bool
    chosen: bool = False


@dataclass(frozen=True)
class Cover:
    """The settings of ``method`` that none of its others dominates, and the ``share`` of the box they dominate."""

    method: str
    settings: tuple[str, ...]
    share: float


@dataclass(frozen=True)
class TradeOff:
    """Points of all joint settings and of the single-task models beside them, and what each method covers.

    The box lies between the ``worst`` and the ``best`` value per task of any point; its hypervolume counts as 1.
    """

    tasks: tuple[str, ...]
    metrics: tuple[str, ...]
    better: tuple[str, ...]
    part: str
    worst: tuple[float, ...]
    best: tuple[float, ...]
    points: tuple[Point, ...]
    covers: tuple[Cover, ...]


def tradeoff(settings: Settings, sweeps: Sequence[Sweep], found: Sequence[Transfer]) -> TradeOff | None:
    """The trade-off over all ``settings``, sweeps in full; None with fewer than two of the same tasks that share."""
    joint = {n: runs for n, runs in settings.items() if runs[0].shares}
    first = next((runs[0] for runs in joint.values()), None)
    if first is None:
        return None
    metrics = tuple(first.schema.task(t).metrics[0] for t in first.tasks)
    better, part = tuple(metric(m).better for m in metrics), parts([first])[0]
    read = {n: v for n, runs in joint.items() if (v := _values(runs, first.tasks, metrics, part))}
    if len(read) < 2 or "near 1" in better:
        return None
    sweep = {p: s.name for s in sweeps for p in s.points}
    chosen = {s.chosen for s in sweeps}
    methods: dict[str, dict[str, tuple[float, ...]]] = {}
    for name, values in read.items():
        methods.setdefault(sweep.get(name, name), {})[name] = values
    alone = _alone(settings, found, first.tasks, metrics, part)
    box = [(min(c), max(c)) for c in zip(*read.values(), *alone.values(), strict=True)]
    worst = tuple(low if b == "higher" else high for (low, high), b in zip(box, better, strict=True))
    best = tuple(high if b == "higher" else low for (low, high), b in zip(box, better, strict=True))
    (whole,) = fronts({"": read}, better)
    points = [
        Point(n, "static" if static(joint[n][0]) else "method", sweep.get(n, n), v, n in whole.settings, n in chosen)
        for n, v in read.items()
    ]
    points += [Point(n, "single-task", n, v, False) for n, v in alone.items()]
    covers = _covers(methods, worst, best)
    return TradeOff(first.tasks, metrics, better, part, worst, best, tuple(points), covers)


def _values(runs: Sequence[Run], tasks: Sequence[str], metrics: Sequence[str], part: str) -> tuple[float, ...] | None:
    """Means over the seeds at the kept epochs; None unless every run has all of them."""
    found = [[r.curve(part, t, m).get(r.kept) for r in runs] for t, m in zip(tasks, metrics, strict=True)]
    known = [[v for v in values if v is not None] for values in found]
    if any(len(values) < len(runs) for values in known):
        return None
    return tuple(fmean(values) for values in known)


def _alone(
    settings: Settings, found: Sequence[Transfer], tasks: Sequence[str], metrics: Sequence[str], part: str
) -> dict[str, tuple[float, ...]]:
    """The single-task models that serve as baselines, taken together, by a name for them.

    Without any, the settings that share nothing.
    """
    sets = dict.fromkeys(tuple(t.tasks[n].baseline for n in tasks) for t in found if all(n in t.tasks for n in tasks))
    sets_alone = [s for s in sets if all(n in settings and settings[n][0].alone for n in s)]
    values: dict[str, tuple[float, ...]] = {}
    for names in sets_alone:
        own = [_values(settings[n], [t], [m], part) for n, t, m in zip(names, tasks, metrics, strict=True)]
        if all(own):
            name = "single-task models" if len(sets_alone) == 1 else f"single-task models ({names[0]}, ...)"
            values[name] = tuple(v[0] for v in own if v)
    apart = {n: runs for n, runs in settings.items() if runs[0].alone is None and not runs[0].shares}
    return values or {n: v for n, runs in apart.items() if (v := _values(runs, tasks, metrics, part))}


def _covers(
    methods: Mapping[str, Mapping[str, tuple[float, ...]]], worst: Sequence[float], best: Sequence[float]
) -> tuple[Cover, ...]:
    scaled = {
        m: {
            n: tuple(_scaled(v, w, b) for v, w, b in zip(values, worst, best, strict=True)) for n, values in own.items()
        }
        for m, own in methods.items()
    }
    better: list[Better] = ["higher"] * len(worst)
    found = fronts(scaled, better, (0.0,) * len(worst))
    return tuple(Cover(f.method, f.settings, f.hypervolume) for f in sorted(found, key=lambda f: -f.hypervolume))


def _scaled(value: float, worst: float, best: float) -> float:
    return (value - worst) / (best - worst) if best != worst else 1.0
