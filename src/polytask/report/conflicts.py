"""What the probes saw in the joint settings: conflict by group of parameters and epoch, who leads, who helps whom."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from polytask.affinity import (
    TOTAL,
    Affinity,
    Reading,
    Summary,
    mean_lookahead,
    pairs,
    readings_of,
    summaries,
    summarize,
)
from polytask.evidence import Evidence, evidence
from polytask.grouping import Grouping, group_tasks
from polytask.report.balancing import static
from polytask.report.settings import Settings
from polytask.report.wording import counted, quoted

Probed = Mapping[str, Sequence[Mapping[int, list[Reading]]]]
"""By setting, for every run its readings by epoch."""

_COLUMNS = 20  # epochs of a heat map, more are taken together
_PAIRS = 3  # drawn and listed per setting, those in the worst conflict
_GROUPED = 10  # tasks; the work of grouping grows as 3^T


@dataclass(frozen=True)
class Relation:
    """How the gradients of two ``tasks`` relate in one setting until the best epochs, by :mod:`polytask.evidence`.

    ``cosine`` is that on all shared parameters which the relation hangs on, ``error`` its standard error over seeds,
    ``conflict`` the share of readings with a cosine below 0. ``worst`` is the group of parameters of the lowest
    cosine that is told from noise, with its ``lowest`` cosine.
    """

    setting: str
    tasks: tuple[str, str]
    relation: str
    cosine: float | None
    error: float | None
    conflict: float | None
    worst: str
    lowest: float | None


@dataclass(frozen=True)
class Trace:
    """The cosine of two ``tasks``' gradients on one ``group`` of parameters, without noise, by spans of epochs.

    ``relations`` say of each span whether it can be told from noise. ``epochs`` are the last of each span.
    """

    setting: str
    tasks: tuple[str, str]
    group: str
    epochs: tuple[int, ...]
    cosine: tuple[float | None, ...]
    relations: tuple[str, ...]


@dataclass(frozen=True)
class Share:
    """The share of one task by epoch, mean over the seeds, of ``kind``: what is shared out among the tasks.

    *weights* in force, weighted *loss*, norms of the *gradients*, lengths of the parts of the *update*.
    """

    setting: str
    task: str
    kind: str
    epochs: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Lookahead:
    """Mean lookahead affinity of one setting: row i, column j is the share by which a step of i alone lowers j."""

    setting: str
    tasks: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Probes:
    """All that the probes saw. ``grouping`` is a sentence on which tasks should share a model, if it can be said."""

    relations: tuple[Relation, ...]
    traces: tuple[Trace, ...]
    lookaheads: tuple[Lookahead, ...]
    grouping: str


def probes(settings: Settings) -> Probes:
    """What the probes saw in the joint ``settings``; empty without any."""
    seen = probed(settings)
    summary = {n: summaries(every(seen, n)) for n in seen}
    worst = {n: _worst(s) for n, s in summary.items()}
    return Probes(
        tuple(
            _relation(n, told, s, p)
            for n, s in summary.items()
            if (told := evidence(settings[n])) is not None
            for p in worst[n]
        ),
        tuple(t for n in seen for p in worst[n][:_PAIRS] for t in _traces(n, seen, p)),
        tuple(_lookahead(n, every(seen, n)) for n in seen),
        _grouping(settings, seen),
    )


def probed(settings: Settings) -> Probed:
    """The readings of the joint settings that have any."""
    found = {
        n: [{h["epoch"]: own for h in r.history if (own := readings_of([h]))} for r in runs]
        for n, runs in settings.items()
        if runs[0].shares
    }
    return {n: runs for n, runs in found.items() if any(runs)}


def every(seen: Probed, setting: str) -> list[Reading]:
    """All readings of the seeds of one setting."""
    return [r for run in seen[setting] for readings in run.values() for r in readings]


def _tasks(seen: Probed, setting: str) -> tuple[str, ...]:
    return every(seen, setting)[0].tasks


def _worst(found: Mapping[str, Summary]) -> list[int]:
    """The pairs by number, the lowest cosine on all parameters first; those without one last."""
    total = found[TOTAL].disattenuated
    return sorted(range(len(total)), key=lambda p: (math.isnan(total[p]), total[p]))


def _relation(setting: str, evident: Evidence, found: Mapping[str, Summary], pair: int) -> Relation:
    total = evident.cosines[TOTAL][pair]
    first, second = pairs(len(evident.tasks))[pair]
    groups = {g: cosines[pair] for g, cosines in evident.cosines.items() if g != TOTAL}
    told = {g: c.told[0] for g, c in groups.items() if c.relation != "noise"}
    worst = min(told, key=lambda g: told[g], default="")
    cosine, error = total.told
    return Relation(
        setting,
        (evident.tasks[first], evident.tasks[second]),
        total.relation,
        known(cosine),
        known(error),
        known(found[TOTAL].conflict[pair]),
        worst,
        told.get(worst),
    )


def _traces(setting: str, seen: Probed, pair: int) -> list[Trace]:
    """One row per group of parameters, and one for all, of the heat map of a pair of tasks."""
    tasks = _tasks(seen, setting)
    spans = _spans(sorted({e for run in seen[setting] for e in run}))
    read = [[r for run in seen[setting] for e in span for r in run.get(e, ())] for span in spans]
    names = [*dict.fromkeys(g for readings in read for r in readings for g in r.groups), TOTAL]
    first, second = pairs(len(tasks))[pair]
    found = []
    for name in names:
        cells = [_cell([a for r in readings if (a := _of(r, name))], pair) for readings in read]
        cosine, relations = tuple(c for c, _ in cells), tuple(r for _, r in cells)
        ends = tuple(span[-1] for span in spans)
        found.append(Trace(setting, (tasks[first], tasks[second]), name, ends, cosine, relations))
    return found


def _of(reading: Reading, group: str) -> Affinity | None:
    return reading.total if group == TOTAL else reading.groups.get(group)


def _cell(found: Sequence[Affinity], pair: int) -> tuple[float | None, str]:
    """The cosine of a cell, within -1 to 1, and what it says."""
    if not found:
        return None, "noise"
    summary = summarize(found)
    cosine = known(summary.disattenuated[pair])
    return None if cosine is None else max(-1.0, min(1.0, cosine)), summary.relations[pair]


def _spans(epochs: Sequence[int]) -> list[list[int]]:
    """The epochs in spans of equal number, at most as many as a heat map has columns."""
    width = math.ceil(len(epochs) / _COLUMNS)
    return [list(epochs[at : at + width]) for at in range(0, len(epochs), width)]


def known(value: float) -> float | None:
    """A number with six digits, or None."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _lookahead(setting: str, readings: Sequence[Reading]) -> Lookahead:
    rows = tuple(tuple(known(v) for v in row) for row in mean_lookahead(readings))
    return Lookahead(setting, readings[0].tasks, rows)


def shares(settings: Settings) -> tuple[Share, ...]:
    """Every share of every joint setting that has it."""
    seen, found = probed(settings), []
    for name, runs in settings.items():
        if runs[0].alone is None:
            found += _curves(name, "weights", [_weights(r.history) for r in runs])
        if name in seen:
            for kind, of in _KINDS.items():
                found += _curves(name, kind, [_mean_shares(run, of) for run in seen[name]])
    return tuple(found)


_KINDS: dict[str, Callable[[Reading], tuple[float, ...]]] = {
    "loss": lambda r: r.loss_share,
    "gradients": lambda r: r.total.dominance,
    "update": lambda r: r.total.update_share,
}

ByEpoch = dict[int, dict[str, float]]


def _weights(history: Sequence[Mapping[str, object]]) -> ByEpoch:
    found: ByEpoch = {}
    for record in history:
        own = record.get("weights")
        if isinstance(own, Mapping) and (total := sum(own.values())):
            found[int(str(record["epoch"]))] = {t: v / total for t, v in own.items()}
    return found


def _mean_shares(run: Mapping[int, list[Reading]], of: Callable[[Reading], tuple[float, ...]]) -> ByEpoch:
    return {
        e: {t: fmean(v) for n, t in enumerate(own[0].tasks) if (v := [x for r in own if not math.isnan(x := of(r)[n])])}
        for e, own in run.items()
    }


def _curves(setting: str, kind: str, runs: Sequence[ByEpoch]) -> list[Share]:
    epochs = sorted({e for run in runs for e in run})
    found = []
    for task in dict.fromkeys(t for run in runs for own in run.values() for t in own):
        values = {e: [run[e][task] for run in runs if task in run.get(e, ())] for e in epochs}
        kept = tuple(e for e in epochs if values[e])
        found.append(Share(setting, task, kind, kept, tuple(float(f"{fmean(values[e]):.4g}") for e in kept)))
    return found


def _grouping(settings: Settings, seen: Probed) -> str:
    """Which tasks should share a model, by the lookahead of a setting whose weights stand still, if there is one."""
    names = [*(n for n in seen if static(settings[n][0])), *seen]
    if not names or not 2 < len(_tasks(seen, names[0])) <= _GROUPED:
        return ""
    name, tasks = names[0], _tasks(seen, names[0])
    by_seed = [mean_lookahead([r for own in run.values() for r in own]) for run in seen[name] if run]
    whole = mean_lookahead(every(seen, name))
    if any(math.isnan(v) for z in (whole, *by_seed) for row in z for v in row):
        return ""
    most = 2 if len(tasks) < 6 else 3
    found = group_tasks(whole, most)
    same = sum(set(group_tasks(z, most).groups) == set(found.groups) for z in by_seed)
    how = f"by how each task's step changes the others' losses in '{name}' (lookahead affinity, Fifty et al., 2021)"
    return (
        f"Grouping of tasks {how}, with at most {most} models: {_groups(found, tasks)}; "
        f"{same} of {counted(len(by_seed), 'seed')} alone would say the same. "
        "It is a suggestion to try, not a verdict."
    )


def _groups(found: Grouping, tasks: Sequence[str]) -> str:
    if len(found.groups) == 1:
        return "one model for all"
    return "; ".join(
        f"{quoted([tasks[t] for t in group])}{_served(found, n, tasks)}" for n, group in enumerate(found.groups)
    )


def _served(found: Grouping, number: int, tasks: Sequence[str]) -> str:
    """Which of a group's tasks it serves, if not all."""
    served = [tasks[t] for t, by in enumerate(found.serving) if by == number]
    if len(served) == len(found.groups[number]):
        return ""
    return f" (serving {quoted(served)})"
