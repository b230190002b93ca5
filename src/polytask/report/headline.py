"""The outcome in at most four sentences."""

from collections.abc import Sequence

from polytask.diagnose import Finding
from polytask.report.comparisons import first_mark
from polytask.report.settings import Settings
from polytask.report.verdicts import Verdict
from polytask.report.wording import epochs, interval, joined, number, percent, quoted, where
from polytask.transfer import parts

_SHOWN = 3  # settings named per sentence; the tables hold the rest


def headline(settings: Settings, verdicts: Sequence[Verdict], findings: Sequence[Finding]) -> tuple[str, ...]:
    """Who paid, who gained, who was left alone, and what to know before believing it."""
    blind = [v for v in verdicts if v.own.low is None]
    sharing = [v for v in verdicts if v.own.verdict != "nothing shared"]
    judged = [_moved(sharing, "negative"), _moved(sharing, "positive"), _unmoved(sharing)]
    said = [_blind(blind)] if blind else judged
    if not verdicts:
        said = ["Without single-task runs it cannot be said who gained from sharing and who paid."]
    found = [*(s for s in said if s), *_overfitting(settings, findings), *_single(findings)]
    return tuple(found[:4])


def _moved(verdicts: Sequence[Verdict], way: str) -> str:
    """One sentence on the tasks with ``way`` transfer, the largest difference of each first."""
    rows = [v for v in verdicts if v.own.verdict == f"{way} transfer"]
    rows.sort(key=lambda v: -abs(v.own_relative))
    parts_ = []
    for task in dict.fromkeys(v.task for v in rows):
        mine = [v for v in rows if v.task == task]
        more = [f"{len(mine) - _SHOWN} more"] if len(mine) > _SHOWN else []
        parts_.append(f"on '{task}': {joined([*(_row(v) for v in mine[:_SHOWN]), *more])}")
        if not any(v.task == task and v.own.verdict == "negative transfer" for v in verdicts):
            parts_[-1] += "; no setting harms it beyond noise"
    return f"{way.capitalize()} transfer {'; '.join(parts_)}." if parts_ else ""


def _row(found: Verdict) -> str:
    own = found.own
    values = f"{own.metric} {number(own.joint)} against {number(own.alone)} alone"
    return f"'{found.setting}' ({values}, {percent(found.own_relative)}, {interval(own)})"


def _unmoved(verdicts: Sequence[Verdict]) -> str:
    """The tasks that no setting moved: equivalent, unharmed where no mean loss exceeds the margin, or unknown."""
    moved = {v.task for v in verdicts if v.own.verdict.endswith("transfer")}
    same: list[str] = []
    safe: list[str] = []
    unknown: list[str] = []
    for task in dict.fromkeys(v.task for v in verdicts if v.task not in moved):
        rows = [v for v in verdicts if v.task == task]
        ends = " to ".join(dict.fromkeys(percent(f(v.own_relative for v in rows)) for f in (min, max)))
        group = safe if all(v.own.mean >= -v.own.margin for v in rows) else unknown
        group = same if all(v.own.verdict == "equivalent" for v in rows) else group
        group.append(f"'{task}' (relative gain {ends})")
    said = [f"{joined(same)} {_are(same)} equivalent to training alone in every setting."] if same else []
    said += [f"{joined(safe)} {_are(safe)} not harmed by any setting beyond noise."] if safe else []
    said += [f"Noise hides whether sharing helps or harms {joined(unknown)}."] if unknown else []
    return " ".join(said)


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _blind(verdicts: Sequence[Verdict]) -> str:
    worst = min(verdicts, key=lambda v: v.own_relative)
    return (
        f"With one pair of seeds nothing can be told from noise; the largest loss is {percent(worst.own_relative)} on "
        f"'{worst.task}' in '{worst.setting}'."
    )


def _overfitting(settings: Settings, findings: Sequence[Finding]) -> list[str]:
    """How far each overfitted task drifts past its best epoch in each joint setting, worst first."""
    cases: dict[str, list[tuple[float, str]]] = {}
    for found in findings:
        if found.kind != "overfitting" or not found.task or settings[found.settings[0]][0].alone:
            continue
        mark = first_mark(settings[found.settings[0]], found.task)
        if mark.best and mark.last is not None:
            rise = (mark.last - mark.best) / abs(mark.best)
            text = f"{percent(rise)} in '{found.settings[0]}' (best at {epochs(mark.epochs)})"
            cases.setdefault(found.task, []).append((-abs(rise), text))
    said = [_drift(settings, task, [text for _, text in sorted(rows)]) for task, rows in cases.items()]
    return [f"{'; '.join(said)}."] if said else []


def _drift(settings: Settings, task: str, rows: Sequence[str]) -> str:
    runs = next(runs for runs in settings.values() if task in runs[0].tasks)
    metric, part = runs[0].schema.task(task).metrics[0], where(parts(runs)[0])
    more = [f"{len(rows) - 4} more"] if len(rows) > 4 else []
    return f"'{task}' overfits; from best to last epoch {metric} on {part} changes by {joined([*rows[:4], *more])}"


def _single(findings: Sequence[Finding]) -> list[str]:
    idle = {n for f in findings if f.kind == "no effect" for n in f.settings}
    found = []
    for names in (f.settings for f in findings if f.kind == "single-task"):
        verb, are = ("shares", "it is") if len(names) == 1 else ("share", "they are")
        weights = ", and loss weights have no effect there" if set(names) <= idle else ""
        found.append(f"{quoted(names)} {verb} nothing, so {are} single-task models side by side{weights}.")
    return found
