"""What went on in the runs of a setting, each finding a sentence with its numbers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any, Literal, NamedTuple

from polytask.affinity import TOTAL, pairs
from polytask.causes import Cause, causes
from polytask.evidence import evidence
from polytask.run import Run
from polytask.transfer import Gain, Transfer, gain, judged, parts, seesaw

_EVEN = 0.05  # a gate whose mean shares have less than this part of the largest entropy follows a single expert
_FEW = 0.1  # below this part of the rows the effective sample size of a weighted loss is worth a sentence
_SHOWN = 3  # pairs of tasks named per relation
_RELATIONS = {
    "conflict": "in conflict",
    "aligned": "aligned",
    "unrelated": "unrelated",
    "noise": "too noisy to tell",
}
_OVERFIT = 0.05  # a rise above the best value that is worth a sentence, as a share of the best


Kind = Cause | Literal["overfitting", "no effect", "single-task", "seesaw", "collapsed gate", "few rows", "relation"]


@dataclass(frozen=True)
class Finding:
    """One finding on ``settings``: its ``kind``, the ``task`` it concerns (if one) and a ``text`` with numbers.

    The kinds that are a :data:`~polytask.causes.Cause` say why a task pays for sharing; ``remedy`` is a command to try.
    """

    kind: Kind
    settings: tuple[str, ...]
    task: str | None
    text: str
    remedy: str = ""


def diagnose(settings: Mapping[str, Sequence[Run]], transfers: Sequence[Transfer] = ()) -> list[Finding]:
    """Everything found in ``settings`` (their runs by name) and their ``transfers`` to single-task baselines."""
    joint = {name: runs for name, runs in settings.items() if runs[0].alone is None}
    return [
        *_seesaws(joint, transfers),
        *_separate(joint),
        *(f for t in transfers for f in _artefacts(t)),
        *(Finding(h.cause, (h.setting,), h.task, h.text, h.remedy) for h in causes(settings, transfers)),
        *(f for name, runs in joint.items() for f in _relations(name, runs)),
        *(f for name, runs in settings.items() for f in _overfitting(name, runs)),
        *(f for name, runs in joint.items() for f in _collapsed(name, runs)),
        *(f for name, runs in settings.items() for f in _few_rows(name, runs)),
    ]


def no_effect(run: Run) -> bool:
    """Whether loss weights act on no task: nothing shared, and an optimizer that ignores a gradient's scale.

    Adam divides a gradient by its own size, so a constant factor on a loss changes nothing on parameters that
    only this task reads; a bound on the joint gradient's norm would couple the tasks again.
    """
    return not run.shares and run.config.optimizer == "adam" and run.config.clip == 0


def _separate(settings: Mapping[str, Sequence[Run]]) -> Iterator[Finding]:
    """Runs that share nothing: single-task models side by side, whose weights may act on no task."""
    names = [name for name, runs in settings.items() if not runs[0].shares]
    if not names:
        return
    count = len(settings[names[0]][0].tasks)
    verb = "shares" if len(names) == 1 else "share"
    text = f"{_quoted(names)} {verb} no parameter between tasks: each run is {count} single-task models side by side."
    yield Finding("single-task", tuple(names), None, text)
    idle = [name for name in names if no_effect(settings[name][0])]
    if idle:
        text = "Nothing is shared and the optimizer is Adam, so loss weights have no effect on any task."
        yield Finding("no effect", tuple(idle), None, text + _evidence([settings[n] for n in idle]))


def _evidence(groups: Sequence[Sequence[Run]]) -> str:
    """How far runs of equal seed and different weights lie apart, if there are such runs."""
    if len(groups) < 2:
        return ""
    part, _ = parts(groups[0])
    apart = []
    for task in groups[0][0].tasks:
        name = groups[0][0].schema.task(task).metrics[0]
        pairs = [(a, b) for a in groups[0] for b in groups[1] if a.config.seed == b.config.seed]
        if not pairs:
            return ""
        largest = max(_distance(a, b, part, task, name) for a, b in pairs)
        apart.append(f"{largest:.2g} in {name} of '{task}'")
    weights = " and ".join(_weights(g[0]) for g in groups[:2])
    return f" Between weights {weights} on equal seeds the largest difference at any epoch is {', '.join(apart)}."


def _distance(first: Run, second: Run, part: str, task: str, name: str) -> float:
    one, two = first.curve(part, task, name), second.curve(part, task, name)
    return max((abs(one[e] - two[e]) for e in one.keys() & two.keys()), default=0.0)


def _weights(run: Run) -> str:
    return "/".join(f"{run.weights[t]:g}" for t in run.tasks)


def _artefacts(found: Transfer) -> Iterator[Finding]:
    if found.artefact:
        moved = "; ".join(f"'{t}' {v.kept.verdict} ({_gain(v.kept)})" for t, v in found.tasks.items())
        text = (
            f"'{found.setting}' trades one task for another at the kept epochs ({moved}) but not at each task's own "
            "best epoch: this seesaw is when training stopped, not what was shared."
        )
        yield Finding("early stopping", (found.setting,), None, text)


def _relations(name: str, runs: Sequence[Run]) -> Iterator[Finding]:
    """What the tasks are to each other on all they share: noise and unrelated are different answers."""
    if not runs[0].shares or (known := evidence(runs)) is None:
        return
    named = {
        f"'{known.tasks[i]}' and '{known.tasks[j]}' ({cosine})": cosine.relation
        for (i, j), cosine in zip(pairs(len(known.tasks)), known.cosines[TOTAL], strict=True)
    }
    said = []
    for relation, words in _RELATIONS.items():
        which = [text for text, found in named.items() if found == relation]
        more = f" and {len(which) - _SHOWN} more pairs" if len(which) > _SHOWN else ""
        said += [f"{words}: {', '.join(which[:_SHOWN])}{more}"] if which else []
    text = f"'{name}', gradients on all that is shared, {known.probes} probes: {'; '.join(said)}."
    yield Finding("relation", (name,), None, text)


def _overfitting(name: str, runs: Sequence[Run]) -> Iterator[Finding]:
    for task in runs[0].tasks:
        rise = _rise(runs, task)
        if rise.share > _OVERFIT and rise.loss_last < rise.loss_best:
            moved = "rises" if rise.last > rise.best else "falls"
            text = (
                f"'{name}': '{task}' overfits after epoch {_spread(rise.epochs)}: until epoch {_spread(rise.ends)} its "
                f"training loss falls from {rise.loss_best:.3f} to {rise.loss_last:.3f} while {rise.metric} on "
                f"{rise.where} {moved} from {rise.best:.4g} to {rise.last:.4g} ({rise.share:.0%} of the best)."
            )
            yield Finding("overfitting", (name,), task, text)


class _Rise(NamedTuple):
    """A task's first metric and training loss at its best epochs and at its last, means over the runs."""

    metric: str
    where: str
    epochs: tuple[int, ...]
    ends: tuple[int, ...]
    best: float
    last: float
    loss_best: float
    loss_last: float

    @property
    def share(self) -> float:
        return abs(self.last - self.best) / abs(self.best) if self.best else 0.0


def _rise(runs: Sequence[Run], task: str) -> _Rise:
    _, chosen_on = parts(runs)
    name = runs[0].schema.task(task).metrics[0]
    curves, losses = [r.curve(chosen_on, task, name) for r in runs], [r.curve("train", task, "") for r in runs]
    best, ends = tuple(r.best_epoch(chosen_on, task) for r in runs), tuple(max(c) for c in curves)
    at = [[fmean(c[e] for c, e in zip(kind, when, strict=True)) for when in (best, ends)] for kind in (curves, losses)]
    return _Rise(name, _where(chosen_on), best, ends, at[0][0], at[0][1], at[1][0], at[1][1])


def _collapsed(name: str, runs: Sequence[Run]) -> Iterator[Finding]:
    """Gates that take one expert on every row, or leave experts unused, at the epoch whose weights are kept."""
    kept: list[list[dict[str, Any]]] = [_kept(r).get("gates", []) for r in runs]
    for gate in kept[0]:
        same = [g for gates in kept for g in gates if g["gate"] == gate["gate"]]
        balance, dead, experts = fmean(g["balance"] for g in same), fmean(g["dead"] for g in same), len(gate["mean"])
        if balance >= _EVEN and dead < experts / 2:
            continue
        reader = f"task '{gate['task']}'" if gate["task"] else "the shared stream"
        text = (
            f"'{name}': the gate {gate['gate']} of {reader} has collapsed: {dead:.3g} of {experts} experts get less "
            f"than 1 % on average and the entropy of the mean shares is {balance:.2f} of the largest; use fewer "
            "experts, or gate_dropout."
        )
        yield Finding("collapsed gate", (name,), gate["task"], text)


def _few_rows(name: str, runs: Sequence[Run]) -> Iterator[Finding]:
    """Losses weighted by inverse propensity in which a few rows say most, at the epoch whose weights are kept."""
    kept: list[dict[str, dict[str, float]]] = [_kept(r).get("propensity", {}) for r in runs]
    for task in kept[0]:
        same = [k[task] for k in kept if task in k]
        effective, rows, clipped = (fmean(use[part] for use in same) for part in ("effective", "rows", "clipped"))
        if effective < _FEW * rows:
            text = (
                f"'{name}': the loss of '{task}' hangs on few rows: the {rows:,.0f} validation rows where its "
                f"condition held weigh as {effective:,.3g} of equal weight do, and {clipped:.0%} of the weights are at "
                "their bound; raise clip, or take a loss without inverse propensities."
            )
            yield Finding("few rows", (name,), task, text)


def _kept(run: Run) -> dict[str, Any]:
    """The record of the epoch whose weights are kept."""
    return next((h for h in run.history if h["epoch"] == run.kept), {})


def _seesaws(settings: Mapping[str, Sequence[Run]], transfers: Sequence[Transfer]) -> Iterator[Finding]:
    """Settings that trade one task for another: against the baselines, and against each other."""
    for found in transfers:
        if found.seesaw:
            moved = "; ".join(f"'{t}' {v.own.verdict} ({_gain(v.own)})" for t, v in found.tasks.items())
            yield Finding("seesaw", (found.setting,), None, f"'{found.setting}' trades one task for another: {moved}.")
    names = [n for n, runs in settings.items() if runs[0].shares]
    pairs = [p for p in combinations(names, 2) if _seeds(settings[p[0]]) & _seeds(settings[p[1]])]
    gains = {(p, t): gain(settings[p[1]], settings[p[0]], t) for p in pairs for t in _common(settings, p)}
    corrected = dict(zip(gains, judged(list(gains.values())), strict=True))
    for first, second in pairs:
        tasks = {t: corrected[(first, second), t] for t in _common(settings, (first, second))}
        if seesaw(list(tasks.values())):
            moved = "; ".join(f"'{t}' {_gain(g)}" for t, g in tasks.items())
            text = f"Seesaw between '{first}' and '{second}': from the first to the second {moved}."
            yield Finding("seesaw", (first, second), None, text)


def _common(settings: Mapping[str, Sequence[Run]], names: tuple[str, str]) -> list[str]:
    """The tasks that both settings train."""
    return [t for t in settings[names[0]][0].tasks if t in settings[names[1]][0].tasks]


def _seeds(runs: Sequence[Run]) -> set[int]:
    return {r.config.seed for r in runs}


def _gain(found: Gain) -> str:
    interval = "" if found.low is None else f", 95 % interval {found.low:+.4f} to {found.high:+.4f}"
    return f"gains {found.mean:+.4f} {found.metric} ({found.relative:+.1%}{interval})"


def _spread(epochs: Sequence[int]) -> str:
    low, high = min(epochs), max(epochs)
    return str(low) if low == high else f"{low} to {high}"


def _where(part: str) -> str:
    return "validation data" if part == "valid" else "test data"


def _quoted(names: Sequence[str]) -> str:
    return " and ".join(f"'{n}'" for n in names)
