"""Sweeps over static weights, and whether any balancing method beats the weights that validation data choose."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from statistics import fmean
from typing import Literal

from polytask.balance import make_balancer
from polytask.report.settings import Settings
from polytask.report.wording import joined, percent, probability, share_interval
from polytask.run import Run
from polytask.significance import LEVEL, Estimate, equivalence, holm, t_quantile
from polytask.sweep import best
from polytask.transfer import Gain, delta_m, gain, judged

Outcome = Literal["better", "worse", "equivalent", "not apart", "unknown"]

_NAMED = 3  # tasks whose weights are all told


@dataclass(frozen=True)
class Sweep:
    """A sweep over static weights: its ``points`` are settings, of which validation data chose ``chosen``.

    The report shows the chosen one as the setting ``name``, with its ``weights`` by task.
    """

    name: str
    points: tuple[str, ...]
    chosen: str
    weights: dict[str, float]


@dataclass(frozen=True)
class Match:
    """A balancing method against static weights of the same network, both at the epochs they keep.

    ``static`` is a setting; ``tried`` the number of weights it was chosen from, 1 if it was not tuned. ``overall`` is
    the mean relative gain over the tasks in percent, ``adjusted`` its probability after Holm's correction for the
    methods; ``tasks`` are the gains of each task, corrected for methods and tasks. The ``outcome`` is found as for a
    task: *equivalent* comes first, within ``margin`` percent, the mean of the tasks' own margins.
    """

    setting: str
    static: str
    tried: int
    overall: Estimate
    margin: float
    adjusted: float | None
    outcome: Outcome
    tasks: tuple[Gain, ...]


def sweeps(settings: Settings) -> tuple[Sweep, ...]:
    """The sweeps among ``settings`` that validation data can choose from: without any no point is hidden."""
    groups: dict[str, dict[str, Sequence[Run]]] = {}
    for name, runs in settings.items():
        if runs[0].sweep:
            groups.setdefault(runs[0].sweep, {})[name] = runs
    return tuple(_sweep(n, g, settings) for n, g in groups.items() if len(g) > 1 and all(map(choosable, g.values())))


def _sweep(name: str, points: Mapping[str, Sequence[Run]], settings: Settings) -> Sweep:
    chosen = best(points)
    return Sweep(chosen if name in settings else name, tuple(points), chosen, dict(points[chosen][0].weights))


def choosable(runs: Sequence[Run]) -> bool:
    """Whether all ``runs`` have the metrics on validation data by which a setting is chosen."""
    names = {t: runs[0].schema.task(t).metrics[0] for t in runs[0].tasks}
    return all("valid" in r.parts() and all(r.kept in r.curve("valid", t, m) for t, m in names.items()) for r in runs)


def shown(settings: Settings, found: Sequence[Sweep]) -> dict[str, list[Run]]:
    """The settings without the points of sweeps that were not chosen; those that were bear their sweep's name."""
    sweep = {p: s for s in found for p in s.points}
    kept: dict[str, list[Run]] = {}
    for name, runs in settings.items():
        if name not in sweep:
            kept[name] = list(runs)
        elif name == sweep[name].chosen:
            kept[sweep[name].name] = [replace(r, name=sweep[name].name) for r in runs]
    return kept


def static(run: Run) -> bool:
    """Whether the weights of the losses stand still in training."""
    return bool(getattr(make_balancer(run.config.balance), "constant", False))


def network(run: Run) -> str:
    """What is trained, whatever the weights: design and training but for seed, learning rate and balance."""
    train = asdict(run.config.stackable()) | {"balance": None}
    return json.dumps([run.design, train], default=str, sort_keys=True)


def reference(settings: Settings, found: Sequence[Sweep], name: str) -> str | None:
    """The joint static setting of the network of setting ``name``: the tuned one if there is any, else the first."""
    tuned, run = {s.name for s in found}, settings[name][0]
    joint = {n: r[0] for n, r in settings.items() if r[0].alone is None and set(run.tasks) <= set(r[0].tasks)}
    fixed = [n for n, r in joint.items() if static(r) and network(r) == network(run)]
    return next((n for n in fixed if n in tuned), fixed[0] if fixed else None)


def matches(settings: Settings, found: Sequence[Sweep], margin: float | None) -> tuple[Match, ...]:
    """Every balancing method among the shown ``settings`` that has static weights to be compared with."""
    tried = {s.name: len(s.points) for s in found}
    read: list[tuple[str, str, list[Gain], Estimate]] = []
    for name, runs in settings.items():
        other = None if runs[0].alone or static(runs[0]) else reference(settings, found, name)
        if other and {r.config.seed for r in runs} & {r.config.seed for r in settings[other]}:
            gains = [gain(runs, settings[other], t, margin=margin, kept=True) for t in runs[0].tasks]
            if (overall := delta_m(gains)) is not None:
                read.append((name, other, gains, overall))
    tested = iter(holm([overall.p for *_, overall in read if overall.p is not None]))
    gains_ = iter(judged([g for _, _, gains, _ in read for g in gains]))
    return tuple(
        _match(
            Match(
                name,
                other,
                tried.get(other, 1),
                overall,
                _margin(gains),
                p,
                "unknown",
                tuple(islice(gains_, len(gains))),
            )
        )
        for name, other, gains, overall in read
        for p in [None if overall.p is None else next(tested)]
    )


def _match(found: Match) -> Match:
    outcome: Outcome = "unknown"
    if found.adjusted is not None:
        outcome = "not apart" if found.adjusted >= LEVEL else "better" if found.overall.mean > 0 else "worse"
        outcome = "equivalent" if _equivalent(found) else outcome
    return replace(found, outcome=outcome)


def _equivalent(found: Match) -> bool:
    """Whether the 90 % interval of the mean gain lies within the margin."""
    overall, freedom = found.overall, min(len(g.seeds) for g in found.tasks) - 1
    if overall.low is None or overall.high is None:
        return False
    error = (overall.high - overall.low) / 2 / t_quantile(1 - LEVEL / 2, freedom)
    return equivalence(overall.mean, error, freedom, found.margin) <= LEVEL


def _margin(gains: Sequence[Gain]) -> float:
    """The mean over the tasks of what counts as equivalent, in percent of their values."""
    return 100 * fmean(g.margin / abs(g.alone) if g.alone else 0.0 for g in gains)


def balanced(found: Sequence[Match], sweeps: Sequence[Sweep]) -> str:
    """Whether any balancing method beat static weights, in one sentence; nothing where none was tried."""
    if not found:
        return ""
    ranked = sorted(found, key=lambda m: -m.overall.mean)
    against, count = _against(found, sweeps), _methods(len(found))
    if ranked[0].outcome == "unknown":
        best_ = f"'{ranked[0].setting}' is ahead by {percent(ranked[0].overall.mean / 100)}"
        return f"With one pair of seeds it cannot be said whether a balancing method beats {against}; {best_}."
    beat = [m for m in ranked if m.outcome == "better"]
    if not beat:
        none = "The one balancing method does not beat" if len(found) == 1 else f"None of {count} beats"
        return f"{none} {against}; the nearest is {_result(ranked[0])}."
    more = [f"{len(beat) - 2} more"] if len(beat) > 2 else []
    payers = [m for m in beat if any(g.verdict == "negative transfer" for g in m.tasks)]
    harm = f" At least one task pays for it in {len(payers)} of them." if payers else ""
    verb = "beats" if len(beat) == 1 else "beat"
    which = "The one balancing method" if len(found) == 1 else f"{len(beat)} of {count}"
    return f"{which} {verb} {against}: {joined([*map(_result, beat[:2]), *more])}.{harm}"


def _methods(count: int) -> str:
    return f"{count} balancing method{'s' if count > 1 else ''}"


def _against(found: Sequence[Match], sweeps: Sequence[Sweep]) -> str:
    named = dict.fromkeys(m.static for m in found)
    tuned = {s.name for s in sweeps} >= set(named)
    what = "tuned static weights" if tuned else "static weights, which were not tuned,"
    if len(named) > 1:
        return f"{what} of the same network"
    return (
        f"{what} ({next(chosen(s) for s in sweeps if s.name in named)})" if tuned else f"{what} of '{found[0].static}'"
    )


def chosen(found: Sweep) -> str:
    """Which weights were chosen of how many."""
    return f"{_described(found.weights)}, chosen of {len(found.points)} on validation data"


def _described(weights: Mapping[str, float]) -> str:
    """The weights, of many tasks only those that differ from what most have."""
    values = list(weights.values())
    most = max(values, key=values.count)
    if len(values) <= _NAMED:
        return "/".join(f"{w:g}" for w in values)
    apart = [f"'{t}' {w:g}" for t, w in weights.items() if w != most]
    return ", ".join([*apart, f"all others {most:g}"]) if apart else f"all {most:g}"


def _result(found: Match) -> str:
    sure = f"{share_interval(found.overall)}, p {_p(found.adjusted)}"
    return f"'{found.setting}' ({percent(found.overall.mean / 100)} over all tasks, {sure})"


def _p(value: float | None) -> str:
    text = probability(value)
    return text if text.startswith("<") else f"= {text}"


def labels(found: Sequence[Sweep]) -> Iterator[str]:
    """What the name of each shown point of a sweep stands for."""
    for sweep in found:
        yield f"'{sweep.name}' stands for static weights {chosen(sweep)}."
