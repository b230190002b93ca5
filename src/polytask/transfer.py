"""Joint training against training alone, paired over seeds: who gained, who paid, and how sure that is."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, stdev
from typing import Literal

from mpmath import betainc

from polytask.errors import ConfigError
from polytask.metrics import metric
from polytask.run import Run

Verdict = Literal["positive transfer", "negative transfer", "no change", "inconclusive", "nothing shared"]


@dataclass(frozen=True)
class Gain:
    """The first metric of ``task`` in two sets of runs, paired over seeds.

    ``joint`` and ``alone`` are means over the seeds; ``gains`` the paired differences, signed so that above 0
    is better for the joint model; ``low`` and ``high`` the ends of the 95 % interval of their mean (paired t;
    None with a single pair), ``p`` its two-sided probability under no difference. ``margin`` is what counts
    as no change. The epochs are those the values were read at, per seed.
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
    verdict: Verdict
    epochs: tuple[tuple[int, int], ...] = ()

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
    def artefact(self) -> bool:
        """Whether harm at the kept epoch vanishes at the task's own best epoch."""
        return self.kept.verdict == "negative transfer" and self.own.verdict != "negative transfer"


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
    def seesaw(self) -> bool:
        """Whether one task gained and another paid, both beyond noise."""
        verdicts = {t.own.verdict for t in self.tasks.values()}
        return {"positive transfer", "negative transfer"} <= verdicts


def transfer(joint: Sequence[Run], others: Sequence[Run], *, margin: float = 0.01) -> Transfer:
    """Compare the ``joint`` runs of one setting with the single-task runs among ``others``, paired by seed.

    A task's baseline is the setting that trained it alone, with the same network where there is a choice; or
    else a setting that shares nothing, which is single-task models side by side. ``margin`` is the share of
    the baseline's value that counts as no change. Where ``joint`` shares nothing there is no transfer to judge,
    and differences are rounding or chance. Without a baseline for any task: :class:`ConfigError`.
    """
    found = {}
    for task in joint[0].tasks:
        if alone := baseline(joint, others, task):
            own, kept = (gain(joint, alone, task, margin=margin, kept=k) for k in (False, True))
            if not joint[0].shares:
                own, kept = replace(own, verdict="nothing shared"), replace(kept, verdict="nothing shared")
            found[task] = TaskTransfer(alone[0].name, own, kept)
    if not found:
        raise ConfigError(
            f"setting '{joint[0].name}': no run trained one of its tasks alone on the same seeds; "
            "train single-task baselines to say who gained"
        )
    return Transfer(joint[0].name, *parts(joint), found)


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
    """The design but for sharing, and the training configuration but for its seed: what makes a baseline fair."""
    return json.dumps([run.design | {"share": None}, asdict(run.config.stackable())], default=str, sort_keys=True)


def parts(runs: Sequence[Run]) -> tuple[str, str]:
    """Where metrics are read (test if it was scored) and where epochs are chosen (valid if there is any)."""
    scored = runs[0].parts()
    if not scored:
        raise ConfigError(f"run '{runs[0].name}' was scored on no validation or test data, so it cannot be compared")
    return ("test" if "test" in scored else "valid"), ("valid" if "valid" in scored else "test")


def gain(first: Sequence[Run], second: Sequence[Run], task: str, *, margin: float = 0.01, kept: bool = False) -> Gain:
    """What ``task`` gains from the ``second`` runs to the ``first``, paired by seed.

    Read at each run's own best epoch for the task, or with ``kept`` at the epoch whose weights it keeps.
    """
    part, chosen_on = parts(first)
    name = first[0].schema.task(task).metrics[0]
    seeds = {r.config.seed: r for r in second}
    pairs = [(r, seeds[r.config.seed]) for r in first if r.config.seed in seeds]
    if not pairs:
        raise ConfigError(f"setting '{first[0].name}': no run of another setting shares a seed for task '{task}'")
    epochs = [tuple(r.kept if kept else r.best_epoch(chosen_on, task) for r in pair) for pair in pairs]
    values = [
        tuple(_value(r, part, task, name, e) for r, e in zip(pair, at, strict=True))
        for pair, at in zip(pairs, epochs, strict=True)
    ]
    return paired(task, name, [v[0] for v in values], [v[1] for v in values], margin, [(e[0], e[1]) for e in epochs])


def _value(run: Run, part: str, task: str, name: str, epoch: int) -> float:
    curve = run.curve(part, task, name)
    if epoch not in curve:
        raise ConfigError(f"run '{run.name}': {name} of task '{task}' could not be computed on {part} at epoch {epoch}")
    return curve[epoch]


def paired(
    task: str,
    name: str,
    joint: Sequence[float],
    alone: Sequence[float],
    margin: float = 0.01,
    epochs: Sequence[tuple[int, int]] = (),
) -> Gain:
    """The paired t statistics of ``joint`` [S] against ``alone`` [S] and the verdict they allow.

    Above or below 0 with 95 % confidence is transfer; a 90 % interval within the margin is no change (two
    one-sided tests); anything else is inconclusive.
    """
    better = metric(name).better
    sign = 1 if better == "higher" else -1
    gains = tuple(sign * (j - a) for j, a in zip(joint, alone, strict=True))
    mean, base = fmean(gains), fmean(alone)
    width = margin * abs(base)
    low = high = p = None
    verdict: Verdict = "inconclusive"
    if len(gains) > 1:
        error, freedom = stdev(gains) / len(gains) ** 0.5, len(gains) - 1
        half, narrow = error * t_quantile(0.975, freedom), error * t_quantile(0.95, freedom)
        low, high = mean - half, mean + half
        p = t_probability(mean / error, freedom) if error else float(mean == 0)
        verdict = _verdict(low, high, abs(mean) + narrow <= width)
    return Gain(task, name, better, fmean(joint), base, gains, mean, low, high, p, width, verdict, tuple(epochs))


def _verdict(low: float, high: float, equivalent: bool) -> Verdict:
    if low > 0:
        return "positive transfer"
    if high < 0:
        return "negative transfer"
    return "no change" if equivalent else "inconclusive"


def t_probability(t: float, freedom: int) -> float:
    """Two-sided probability of a Student t at least as far from 0 as ``t``."""
    return float(betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True))


def t_quantile(q: float, freedom: int) -> float:
    """The ``q`` quantile (q > 0.5) of Student's t, by bisection to 12 digits."""
    low, high = 0.0, 1.0
    while t_probability(high, freedom) > 2 * (1 - q):
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, freedom) > 2 * (1 - q) else (low, middle)
    return high
