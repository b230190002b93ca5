"""Every joint setting against its single-task baselines: who gained and who paid."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from polytask.report.settings import Settings
from polytask.run import Run
from polytask.transfer import Gain, TaskTransfer, Transfer, gain, parts

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


def transfers(settings: Settings, margin: float) -> list[Transfer]:
    """The joint settings that have a baseline for some task, against it."""
    found = []
    for name, runs in settings.items():
        against = {t: settings[b] for t in runs[0].tasks if (b := baseline(settings, name, t))}
        if against and runs[0].alone is None:
            tasks = {t: _both(runs, alone, t, margin) for t, alone in against.items()}
            found.append(Transfer(name, *parts(runs), tasks))
    return found


def _both(joint: Sequence[Run], alone: Sequence[Run], task: str, margin: float) -> TaskTransfer:
    own, kept = (gain(joint, alone, task, margin=margin, kept=k) for k in (False, True))
    return TaskTransfer(own, kept)


def baseline(settings: Settings, name: str, task: str) -> str | None:
    """The setting that trained ``task`` alone, with a seed and if possible the network in common with ``name``.

    Where there is none and ``name`` shares, a joint setting that shares nothing.
    """
    first, seeds = settings[name][0], {r.config.seed for r in settings[name]}
    near = {n: runs for n, runs in settings.items() if n != name and seeds & {r.config.seed for r in runs}}
    pool = [n for n, runs in near.items() if runs[0].alone == task]
    if not pool and first.shares:
        pool = [n for n, runs in near.items() if _separate(runs[0]) and task in runs[0].tasks]
    return min(pool, key=lambda n: _network(settings[n][0]) != _network(first), default=None)


def _separate(run: Run) -> bool:
    return run.alone is None and not run.shares


def _network(run: Run) -> str:
    """The design but for sharing, and the configuration, as text: a design read from a file holds lists for tuples."""
    return json.dumps([run.design | {"share": None}, str(run.config.stackable())], default=str, sort_keys=True)


def verdicts(settings: Settings, found: Sequence[Transfer]) -> tuple[Verdict, ...]:
    """The rows of the verdict table."""
    return tuple(
        Verdict(
            t.setting, task, baseline(settings, t.setting, task) or "", v.own, v.kept, v.own.relative, v.kept.relative
        )
        for t in found
        for task, v in t.tasks.items()
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
