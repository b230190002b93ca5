"""Every joint setting against its single-task baselines: who gained and who paid."""

from collections.abc import Sequence
from dataclasses import dataclass

from polytask.bootstrap import keeps_predictions, kept_predictions, user_bootstrap
from polytask.metrics import metric
from polytask.report.settings import Settings
from polytask.run import Run
from polytask.significance import Estimate
from polytask.transfer import Gain, Transfer, delta_m

_SEPARATE = (
    "Where no single-task run was given, a setting that shares nothing is the baseline: it is exactly single-task "
    "models side by side."
)
_NONE = (
    "There is no single-task run and no setting that shares nothing with the same seeds, so it cannot be said who "
    "gained from sharing and who paid; the settings are compared with each other only."
)
_SOME = "No baseline shares a seed, so no verdict, for: "


@dataclass(frozen=True)
class Verdict:
    """One task in one joint setting against the setting ``baseline``, which trained it alone.

    ``own``: both at the task's own best epoch; ``kept``: both at the epoch whose weights they keep. Relative
    gains are shares of the single-task value.
    """

    setting: str
    task: str
    baseline: str
    own: Gain
    kept: Gain
    own_relative: float
    kept_relative: float


@dataclass(frozen=True)
class Change:
    """Δ_m of one joint setting, in percent over its ``tasks``, at their own best epochs and at the kept ones."""

    setting: str
    tasks: tuple[str, ...]
    own: Estimate | None
    kept: Estimate | None


def verdicts(found: Sequence[Transfer]) -> tuple[Verdict, ...]:
    """The rows of the verdict table."""
    return tuple(
        Verdict(t.setting, task, v.baseline, v.own, v.kept, v.own.relative, v.kept.relative)
        for t in found
        for task, v in t.tasks.items()
    )


def changes(found: Sequence[Transfer]) -> tuple[Change, ...]:
    """The rows of the table of settings: all tasks of each as one number."""
    return tuple(
        Change(t.setting, tuple(g.task for g in t.own if g.relatives), delta_m(t.own), delta_m(t.kept)) for t in found
    )


@dataclass(frozen=True)
class Resampled:
    """What ``task`` gains in one joint setting over its single-task model, at the kept epoch of one ``seed``.

    The interval of ``gain`` is over resampled users of the test part, not over seeds.
    """

    setting: str
    task: str
    metric: str
    baseline: str
    seed: int
    gain: Estimate


def resampled(settings: Settings, found: Sequence[Transfer]) -> tuple[Resampled, ...]:
    """The first seed of every verdict whose two runs keep their test predictions, by the bootstrap over users."""
    rows = []
    for setting in found:
        for task, verdict in setting.tasks.items():
            gain, seed = verdict.kept, min(verdict.kept.seeds)
            joint, alone = (_of_seed(settings[name], seed) for name in (setting.setting, verdict.baseline))
            kept = keeps_predictions(joint) and keeps_predictions(alone)
            if kept and gain.verdict != "nothing shared" and metric(gain.metric).needs != "lists":
                change = user_bootstrap(kept_predictions(joint), kept_predictions(alone), task, gain.metric)
                rows.append(Resampled(setting.setting, task, gain.metric, verdict.baseline, seed, change))
    return tuple(rows)


def _of_seed(runs: Sequence[Run], seed: int) -> Run:
    return next(r for r in runs if r.config.seed == seed)


def note(settings: Settings, rows: Sequence[Verdict]) -> str:
    """What the reader must know about the baselines, if anything."""
    if not rows:
        return _NONE
    judged = {(v.setting, v.task) for v in rows}
    shared = [(n, t) for n, runs in settings.items() if runs[0].shares for t in runs[0].tasks]
    missing = [f"'{t}' in '{n}'" for n, t in shared if (n, t) not in judged]
    said = [_SEPARATE] if any(settings[v.baseline][0].alone is None for v in rows) else []
    return " ".join([*said, *([_SOME + ", ".join(missing) + "."] if missing else [])])
