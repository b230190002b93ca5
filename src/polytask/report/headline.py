"""The outcome in at most four sentences."""

from collections.abc import Sequence

from polytask.diagnose import Finding
from polytask.report.balancing import choosable
from polytask.report.comparisons import first_mark
from polytask.report.settings import Settings
from polytask.report.verdicts import Verdict
from polytask.report.wording import counted, epochs, joined, number, percent, share_interval
from polytask.significance import Estimate
from polytask.sweep import best

_SENTENCES = 4
_SHOWN = 2  # tasks or settings named per sentence; the picture and the tables hold the rest
_WORDS = {
    "positive transfer": "gains",
    "negative transfer": "pays",
    "equivalent": "equal within the margin",
    "inconclusive": "not decided",
}


def headline(
    settings: Settings, verdicts: Sequence[Verdict], findings: Sequence[Finding], balancing: str
) -> tuple[str, ...]:
    """Who paid, who gained, what validation data would ship, whether balancing paid off; then what else to know."""
    blind = [v for v in verdicts if v.own.low is None]
    sharing = [v for v in verdicts if v.own.verdict != "nothing shared"]
    judged = [_moved(sharing, "negative"), _rest(sharing), _choice(settings, verdicts)]
    said = [_blind(blind)] if blind else judged
    if not verdicts:
        said = ["Without single-task runs it cannot be said who gained from sharing and who paid."]
    found = [*said, balancing, *_overfitting(settings, findings), *_single(findings)]
    return tuple([s for s in found if s][:_SENTENCES])


def _rest(verdicts: Sequence[Verdict]) -> str:
    """Who gained, and the tasks that nothing moved."""
    gained, unmoved = _moved(verdicts, "positive"), _unmoved(verdicts)
    return " ".join(s for s in (gained, unmoved) if s)


def _moved(verdicts: Sequence[Verdict], way: str) -> str:
    """One sentence on the tasks with ``way`` transfer, the largest difference first."""
    rows = sorted((v for v in verdicts if v.own.verdict == f"{way} transfer"), key=lambda v: -abs(v.own_relative))
    if not rows:
        return ""
    verb = "harms" if way == "negative" else "helps"
    names, every = list(dict.fromkeys(v.task for v in rows)), {v.task for v in verdicts}
    if len(rows) == 1:
        own = rows[0].own
        values = f"{own.metric} {number(own.joint)} against {number(own.alone)} alone"
        return f"Sharing {verb} '{names[0]}' in {_row(rows[0])}: {values}."
    said = [_where([v for v in rows if v.task == t], verdicts) for t in names[:_SHOWN]]
    more = [counted(len(names) - _SHOWN, "more task")] if len(names) > _SHOWN else []
    count = f"{len(names)} of {counted(len(every), 'task')}: " if len(every) > _SHOWN else ""
    return f"Sharing {verb} {count}{joined([*said, *more])}."


def _where(rows: Sequence[Verdict], verdicts: Sequence[Verdict]) -> str:
    """One task and the settings that moved it, the farthest by name."""
    tried = sum(v.task == rows[0].task for v in verdicts)
    if len(rows) == 1:
        return f"'{rows[0].task}' in {_row(rows[0])}"
    return f"'{rows[0].task}' in {len(rows)} of {counted(tried, 'setting')}, most in {_row(rows[0])}"


def _row(found: Verdict) -> str:
    low, high = (100 * (end or 0.0) / abs(found.own.alone or 1.0) for end in (found.own.low, found.own.high))
    sure = share_interval(Estimate(0.0, low, high))
    return f"'{found.setting}' ({percent(found.own_relative)}, {sure})"


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
        group.append(f"'{task}' ({ends})")
    said = [f"{_few(same)} {_are(same)} equal to training alone within the margin in every setting."] if same else []
    said += [f"{_few(safe)} {_are(safe)} not harmed by any setting beyond noise."] if safe else []
    said += [_open(verdicts, unknown)] if unknown else []
    return " ".join(said)


def _open(verdicts: Sequence[Verdict], tasks: Sequence[str]) -> str:
    seeds, count = min(len(v.own.gains) for v in verdicts), counted(len(verdicts), "verdict")
    return f"{seeds} seeds are too few for {count} to say whether sharing helps or harms {_few(tasks)}."


def _few(names: Sequence[str]) -> str:
    """The first names, and how many more."""
    more = [f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return joined([*names[:_SHOWN], *more])


def _choice(settings: Settings, verdicts: Sequence[Verdict]) -> str:
    """What the setting that validation data choose does to each task at the epoch it keeps."""
    named = {v.setting for v in verdicts if v.kept.verdict != "nothing shared"}
    open_ = {n: r for n, r in settings.items() if n in named and choosable(r)}
    if len({r[0].tasks for r in open_.values()}) != 1 or len(open_) < 2:
        return ""
    name = best(open_)
    rows = [v for v in verdicts if v.setting == name]
    said = [f"{_kept(v)}, {_WORDS[v.kept.verdict]}" for v in rows] if len(rows) <= _SHOWN else _outcomes(rows)
    return f"Of the settings that share, validation data choose '{name}'; against training alone: {'; '.join(said)}."


def _outcomes(rows: Sequence[Verdict]) -> list[str]:
    """How many tasks gain, pay and so on, with names where something is certain."""
    said = []
    for verdict, words in _WORDS.items():
        own = [v for v in rows if v.kept.verdict == verdict]
        names = f" ({_few([_kept(v) for v in own])})" if verdict.endswith("transfer") else ""
        said += [f"{counted(len(own), 'task')} {words}{names}"] if own else []
    return said


def _kept(found: Verdict) -> str:
    return f"'{found.task}' {percent(found.kept_relative)}"


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _blind(verdicts: Sequence[Verdict]) -> str:
    worst = min(verdicts, key=lambda v: v.own_relative)
    return (
        f"With one pair of seeds nothing can be told from noise; the largest loss is {percent(worst.own_relative)} on "
        f"'{worst.task}' in '{worst.setting}'."
    )


def _overfitting(settings: Settings, findings: Sequence[Finding]) -> list[str]:
    """How far each overfitted task drifts past its best epoch in the joint setting where it is worst."""
    cases: dict[str, list[tuple[float, str]]] = {}
    for found in findings:
        if found.kind != "overfitting" or not found.task or settings[found.settings[0]][0].alone:
            continue
        mark = first_mark(settings[found.settings[0]], found.task)
        if mark.best and mark.last is not None:
            rise = (mark.last - mark.best) / abs(mark.best)
            text = f"{mark.metric} {percent(rise)} from {epochs(mark.epochs)} to the last in '{found.settings[0]}'"
            cases.setdefault(found.task, []).append((-abs(rise), text))
    said = [_drift(task, sorted(rows)) for task, rows in cases.items()]
    more = [f"{counted(len(said) - _SHOWN, 'more task')}"] if len(said) > _SHOWN else []
    return [f"{joined([*said[:_SHOWN], *more])}."] if said else []


def _drift(task: str, rows: Sequence[tuple[float, str]]) -> str:
    most = "most: " if len(rows) > 1 else ""
    return f"'{task}' overfits in {counted(len(rows), 'setting')} ({most}{rows[0][1]})"


def _single(findings: Sequence[Finding]) -> list[str]:
    idle = {n for f in findings if f.kind == "no effect" for n in f.settings}
    found = []
    for names in (f.settings for f in findings if f.kind == "single-task"):
        verb, are = ("shares", "it is") if len(names) == 1 else ("share", "they are")
        weights = ", and loss weights have no effect there" if set(names) <= idle else ""
        few = _few([f"'{n}'" for n in names])
        found.append(f"{few} {verb} nothing, so {are} single-task models side by side{weights}.")
    return found
