"""Every joint setting against its single-task baselines: who gained and who paid."""

from collections.abc import Sequence
from dataclasses import dataclass

from polytask.report.settings import Settings
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


def note(settings: Settings, rows: Sequence[Verdict]) -> str:
    """What the reader must know about the baselines, if anything."""
    if not rows:
        return _NONE
    judged = {(v.setting, v.task) for v in rows}
    shared = [(n, t) for n, runs in settings.items() if runs[0].shares for t in runs[0].tasks]
    missing = [f"'{t}' in '{n}'" for n, t in shared if (n, t) not in judged]
    said = [_SEPARATE] if any(settings[v.baseline][0].alone is None for v in rows) else []
    return " ".join([*said, *([_SOME + ", ".join(missing) + "."] if missing else [])])
