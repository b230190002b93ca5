"""Joint training against training alone, paired over seeds: who gained, who paid, and how sure that is."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, stdev
from typing import Literal

from polytask.errors import ConfigError
from polytask.metrics import metric
from polytask.run import Run
from polytask.significance import (
    LEVEL,
    Estimate,
    equivalence,
    holm,
    holm_factors,
    paired_t,
    seeds_needed,
    standard_error,
    wilcoxon,
)

Verdict = Literal["positive transfer", "negative transfer", "equivalent", "inconclusive", "nothing shared"]

MARGIN = 0.01
"""The share of the single-task value that counts as equivalent, where neither user nor metric says otherwise."""

_SIGN = {"higher": 1, "lower": -1, "near 1": 0}
_LEFT = 0.25  # of a harm that counts as vanished
_WILCOXON = 8  # pairs from which the signed-rank test can say something


@dataclass(frozen=True)
class Gain:
    """The first metric of ``task`` in two sets of runs, paired over ``seeds``.

    ``joint`` and ``alone`` are means over the seeds; ``gains`` the paired differences, signed so that above 0
    is better for the joint model; ``low`` and ``high`` the ends of the plain 95 % interval of their mean (paired t;
    None with a single pair), ``p`` its two-sided probability under no difference and ``adjusted`` the same after
    Holm's correction for the family it was judged in. ``wilcoxon`` is the probability by the signed-rank test, from
    eight pairs on. ``margin`` is what counts as equivalent, ``equivalence`` the probability of so small a gain if it
    were on the margin. ``needed``: seeds that would settle an inconclusive verdict were mean and spread as seen.
    ``relatives`` are the gains as shares of the single-task values, each a mean over all metrics of the task. The
    epochs are those the values were read at.
    """

    task: str
    metric: str
    better: str
    joint: float
    alone: float
    gains: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None
    p: float | None
    margin: float
    verdict: Verdict = "inconclusive"
    adjusted: float | None = None
    wilcoxon: float | None = None
    equivalence: float | None = None
    needed: int | None = None
    seeds: tuple[int, ...] = ()
    epochs: tuple[tuple[int, int], ...] = ()
    relatives: tuple[float, ...] = ()

    @property
    def relative(self) -> float:
        """The mean gain as a share of the single-task value."""
        return self.mean / abs(self.alone) if self.alone else 0.0


@dataclass(frozen=True)
class TaskTransfer:
    """The verdict on one task against the setting ``baseline``, read twice.

    ``own``: both models at the task's own best epoch, which says what sharing did. ``kept``: both at the
    epoch whose weights they keep, which says what you would ship. Where the two disagree the cause is when
    training stopped, not what was shared.
    """

    baseline: str
    own: Gain
    kept: Gain

    @property
    def harmed(self) -> bool:
        """Whether the task pays beyond noise, at its own best epoch or at the kept one."""
        return "negative transfer" in (self.own.verdict, self.kept.verdict)

    @property
    def artefact(self) -> bool:
        """Whether harm at the kept epoch vanishes at the task's own best epoch: at most a quarter of it is left."""
        gone = -self.own.mean <= _LEFT * -self.kept.mean
        return self.kept.verdict == "negative transfer" and self.own.verdict != "negative transfer" and gone


@dataclass(frozen=True)
class Transfer:
    """One setting against its single-task baselines: a :class:`TaskTransfer` per task that has one.

    ``part`` is where the metrics were read; ``chosen_on`` where each task's best epoch was (``test`` only
    where no validation data was kept, as in the published exercise).
    """

    setting: str
    part: str
    chosen_on: str
    tasks: dict[str, TaskTransfer]

    @property
    def own(self) -> tuple[Gain, ...]:
        """The gains at each task's own best epoch."""
        return tuple(t.own for t in self.tasks.values())

    @property
    def kept(self) -> tuple[Gain, ...]:
        """The gains at the kept epochs."""
        return tuple(t.kept for t in self.tasks.values())

    @property
    def seesaw(self) -> bool:
        """Whether one task gained and another paid, both beyond noise, each at its own best epoch."""
        return seesaw(self.own)

    @property
    def artefact(self) -> bool:
        """Whether a seesaw at the kept epochs vanishes at the tasks' own best ones: a matter of early stopping."""
        return seesaw(self.kept) and not self.seesaw


def seesaw(gains: Sequence[Gain]) -> bool:
    """Whether one of the tasks gained and another paid, both beyond noise."""
    return {"positive transfer", "negative transfer"} <= {g.verdict for g in gains}


def delta_m(gains: Sequence[Gain]) -> Estimate | None:
    """Δ_m in percent over the tasks of ``gains``: above 0 the joint model is better (Maninis et al., 2019).

    Per seed 100/T sum_t s_t (M_t - M_t alone) / |M_t alone|, s_t = -1 where lower is better; a task's several
    metrics are averaged first. None where no task has a value to relate to, or no seed is common to the tasks.
    """
    read = [dict(zip(g.seeds, g.relatives, strict=True)) for g in gains if g.relatives]
    common = sorted(set.intersection(*map(set, read))) if read else []
    return paired_t([100 * fmean(of[s] for of in read) for s in common]) if common else None


def transfers(settings: Mapping[str, Sequence[Run]], *, margin: float | None = None) -> list[Transfer]:
    """The joint ``settings`` (their runs by name) that have a baseline for some task, judged as one family."""
    every = [run for runs in settings.values() for run in runs]
    joint = [runs for runs in settings.values() if runs[0].alone is None]
    found = [r for r in joint if any(baseline(r, every, t) for t in r[0].tasks)]
    return corrected([transfer(r, every, margin=margin) for r in found])


def transfer(joint: Sequence[Run], others: Sequence[Run], *, margin: float | None = None) -> Transfer:
    """Compare the ``joint`` runs of one setting with the single-task runs among ``others``, paired by seed.

    A task's baseline is the setting that trained it alone, with the same network where there is a choice; or
    else a setting that shares nothing, which is single-task models side by side. ``margin`` is the share of
    the baseline's value that counts as equivalent (None: the metric's own margin, or :data:`MARGIN`). The verdicts
    are corrected for the number of tasks; :func:`transfers` corrects for that of settings too. Where ``joint`` shares
    nothing there is no transfer to judge, and differences are rounding or chance. Without a baseline for any task:
    :class:`ConfigError`.
    """
    found = {}
    for task in joint[0].tasks:
        if alone := baseline(joint, others, task):
            own, kept = (gain(joint, alone, task, margin=margin, kept=k) for k in (False, True))
            if not joint[0].shares:
                own, kept = _unshared(own), _unshared(kept)
            found[task] = TaskTransfer(alone[0].name, own, kept)
    if not found:
        raise ConfigError(
            f"setting '{joint[0].name}': no run trained one of its tasks alone on the same seeds; "
            "train single-task baselines to say who gained"
        )
    return corrected([Transfer(joint[0].name, *parts(joint), found)])[0]


def _unshared(gain: Gain) -> Gain:
    return replace(gain, verdict="nothing shared", adjusted=None, needed=None)


def corrected(found: Sequence[Transfer]) -> list[Transfer]:
    """Judge all tasks of all settings in ``found`` as one family, once per reading."""
    own = iter(judged([g for t in found for g in t.own]))
    kept = iter(judged([g for t in found for g in t.kept]))
    return [
        replace(f, tasks={n: replace(t, own=next(own), kept=next(kept)) for n, t in f.tasks.items()}) for f in found
    ]


def judged(gains: Sequence[Gain]) -> list[Gain]:
    """The ``gains`` of one family with Holm's adjusted p, and the verdicts it allows.

    Equivalent: the 90 % interval lies within the margin. Else positive or negative transfer: adjusted p < .05. Else
    inconclusive. Gains of a single pair, and those of settings that share nothing, are not in the family.
    """
    tested = [(n, g.p) for n, g in enumerate(gains) if g.p is not None and g.verdict != "nothing shared"]
    p, found = [q for _, q in tested], list(gains)
    for (number, _), adjusted, factor in zip(tested, holm(p), holm_factors(p), strict=True):
        found[number] = _judged(gains[number], adjusted, factor)
    return found


def _judged(gain: Gain, adjusted: float, factor: int) -> Gain:
    verdict, needed = _verdict(gain, adjusted), None
    if verdict == "inconclusive":
        needed = seeds_needed(gain.mean, stdev(gain.gains), gain.margin, level=LEVEL / factor)
        needed = needed and max(needed, len(gain.gains) + 1)  # that of another in the family may hold this one back
    return replace(gain, adjusted=adjusted, verdict=verdict, needed=needed)


def _verdict(gain: Gain, adjusted: float) -> Verdict:
    if gain.equivalence is not None and gain.equivalence <= LEVEL:
        return "equivalent"
    if adjusted < LEVEL:
        return "positive transfer" if gain.mean > 0 else "negative transfer"
    return "inconclusive"


def baseline(joint: Sequence[Run], others: Sequence[Run], task: str) -> list[Run]:
    """The runs among ``others`` that serve as the baseline of ``task`` for ``joint``; none if there is none."""
    seeds = {r.config.seed for r in joint}
    near = [r for r in others if r.name != joint[0].name and r.config.seed in seeds and task in r.tasks]
    pool = [r for r in near if r.alone == task]
    if not pool and joint[0].shares:
        pool = [r for r in near if not r.shares]
    best = min(pool, key=lambda r: _network(r) != _network(joint[0]), default=None)
    return [r for r in pool if best and r.name == best.name]


def _network(run: Run) -> str:
    """The design but for sharing, the training configuration but for seed and balance: what makes a baseline fair."""
    train = asdict(run.config.stackable()) | {"balance": None}
    return json.dumps([run.design | {"share": None}, train], default=str, sort_keys=True)


def parts(runs: Sequence[Run]) -> tuple[str, str]:
    """Where metrics are read (test if it was scored) and where epochs are chosen (valid if there is any)."""
    scored = runs[0].parts()
    if not scored:
        raise ConfigError(f"run '{runs[0].name}' was scored on no validation or test data, so it cannot be compared")
    return ("test" if "test" in scored else "valid"), ("valid" if "valid" in scored else "test")


def gain(
    first: Sequence[Run], second: Sequence[Run], task: str, *, margin: float | None = None, kept: bool = False
) -> Gain:
    """What ``task`` gains from the ``second`` runs to the ``first``, paired by seed, judged by itself.

    Read at each run's own best epoch for the task, or with ``kept`` at the epoch whose weights it keeps.
    """
    part, chosen_on = parts(first)
    name = first[0].schema.task(task).metrics[0]
    others = {r.config.seed: r for r in second}
    pairs = [(r, others[r.config.seed]) for r in first if r.config.seed in others]
    if not pairs:
        raise ConfigError(f"setting '{first[0].name}': no run of another setting shares a seed for task '{task}'")
    epochs = [[r.kept if kept else r.best_epoch(chosen_on, task) for r in pair] for pair in pairs]
    values = [
        [_value(r, part, task, name, e) for r, e in zip(pair, at, strict=True)]
        for pair, at in zip(pairs, epochs, strict=True)
    ]
    found = paired(task, name, [v[0] for v in values], [v[1] for v in values], margin)
    return replace(
        found,
        seeds=tuple(r.config.seed for r, _ in pairs),
        epochs=tuple((e[0], e[1]) for e in epochs),
        relatives=_relatives(pairs, epochs, part, task),
    )


def _value(run: Run, part: str, task: str, name: str, epoch: int) -> float:
    curve = run.curve(part, task, name)
    if epoch not in curve:
        raise ConfigError(f"run '{run.name}': {name} of task '{task}' could not be computed on {part} at epoch {epoch}")
    return curve[epoch]


def _relatives(
    pairs: Sequence[tuple[Run, Run]], epochs: Sequence[Sequence[int]], part: str, task: str
) -> tuple[float, ...]:
    """Per pair the mean of s (M - M alone) / |M alone| over the metrics of ``task`` that have both in every pair."""
    found = []
    for name in pairs[0][0].schema.task(task).metrics:
        sign = _SIGN[metric(name).better]
        values = [
            [r.curve(part, task, name).get(e) for r, e in zip(*z, strict=True)] for z in zip(pairs, epochs, strict=True)
        ]
        known = [(j, a) for j, a in values if j is not None and a]
        if sign and len(known) == len(pairs):
            found.append([sign * (j - a) / abs(a) for j, a in known])
    return tuple(fmean(column) for column in zip(*found, strict=True))


def paired(task: str, name: str, joint: Sequence[float], alone: Sequence[float], margin: float | None = None) -> Gain:
    """The paired statistics of ``joint`` [S] against ``alone`` [S] and the verdict they allow by themselves.

    ``margin`` is the share of the mean of ``alone`` that counts as equivalent; None is the metric's own margin, or
    :data:`MARGIN`. With one pair the verdict is inconclusive.
    """
    chosen, base = metric(name), fmean(alone)
    gains = tuple(_SIGN[chosen.better] * (j - a) for j, a in zip(joint, alone, strict=True))
    found = paired_t(gains)
    width = chosen.margin if margin is None and chosen.margin else (MARGIN if margin is None else margin) * abs(base)
    result = Gain(
        task, name, chosen.better, fmean(joint), base, gains, found.mean, found.low, found.high, found.p, width
    )
    if found.p is None:
        return result
    return judged(
        [
            replace(
                result,
                wilcoxon=wilcoxon(gains) if len(gains) >= _WILCOXON else None,
                equivalence=equivalence(found.mean, standard_error(gains), len(gains) - 1, width),
            )
        ]
    )[0]
