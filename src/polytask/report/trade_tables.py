"""The tables on balancing, trade-offs, probes, gates and calibration; none for what the runs do not have."""

from collections.abc import Sequence

from polytask.report.document import Document
from polytask.report.seesaw import LOOKS
from polytask.report.tables import ICONS, Table, change
from polytask.report.tradeoff import Point
from polytask.report.verdicts import Verdict
from polytask.report.wording import ARROWS, MINUS, number, percent, probability

_LISTED = 3  # pairs of tasks per setting, those in the worst conflict


def seesaw_table(document: Document) -> list[Table]:
    """The seesaw picture as text: settings x tasks, verdict, relative gain and its interval."""
    tasks = list(dict.fromkeys(v.task for v in document.verdicts))
    cells = {(v.setting, v.task): _cell(v) for v in document.verdicts}
    names = dict.fromkeys(v.setting for v in document.verdicts)
    rows = tuple((n, *(cells.get((n, t), "") for t in tasks)) for n in names)
    legend = ", ".join(f"{icon} {LOOKS[verdict][2]}" for verdict, icon in ICONS.items())
    caption = f"What each task gains against training alone, with 95 % interval: {legend}"
    return [Table(caption, ("Setting", *tasks), rows)] if rows else []


def _cell(found: Verdict) -> str:
    gain, text = found.own, f"{ICONS[found.own.verdict]} {percent(found.own_relative)}"
    if gain.low is None or gain.high is None or not gain.alone:
        return text
    return f"{text} ({percent(gain.low / abs(gain.alone))}, {percent(gain.high / abs(gain.alone))})"


def balancing_tables(document: Document) -> list[Table]:
    """Every balancing method against static weights."""
    if not document.matches:
        return []
    tasks = list(dict.fromkeys(g.task for m in document.matches for g in m.tasks))
    rows = []
    for m in document.matches:
        own = {g.task: f"{ICONS[g.verdict]} {percent(g.relative)}" for g in m.tasks}
        gains = (own.get(t, "") for t in tasks)
        rows.append((m.setting, m.static, *change(m.overall), probability(m.adjusted), m.outcome, *gains))
    columns = ("Method", "Static weights", "Δ_m", "95 % interval", "p (Holm)", "Outcome", *tasks)
    groups = (("", 2), ("All tasks", 4), ("Each task", len(tasks)))
    return [Table("Balancing methods against static weights, at the epochs they keep", columns, tuple(rows), groups)]


def tradeoff_tables(document: Document) -> list[Table]:
    """The points of the trade-off, and how much of the box each method covers."""
    found = document.tradeoff
    if found is None:
        return []
    marks = [f"{t}: {m} {ARROWS[b]}" for t, m, b in zip(found.tasks, found.metrics, found.better, strict=True)]
    points = tuple((p.setting, p.kind, *map(number, p.values), _marked(p)) for p in found.points)
    several = any(p.method != p.setting for p in found.points)
    box = ", ".join(
        f"{t} {number(w)} to {number(b)}" for t, w, b in zip(found.tasks, found.worst, found.best, strict=True)
    )
    fair = "; a sweep has many points and a method one" if several else ""
    covers = tuple((c.method, str(len(c.settings)), f"{c.share:.3f}") for c in found.covers)
    return [
        Table(
            f"Every point: means over the seeds on {found.part}, at the kept epochs",
            ("Setting", "Kind", *marks, "Marks"),
            points,
        ),
        Table(
            f"Hypervolume: the share of the box from worst to best value of any setting ({box}) in which some "
            f"setting of the method is at least as good{fair}",
            ("Method", "Settings on its front", "Share of the box"),
            covers,
        ),
    ]


def _marked(point: Point) -> str:
    return ", ".join([*(["front"] if point.front else []), *(["chosen"] if point.chosen else [])])


def probe_tables(document: Document) -> list[Table]:
    """How the gradients of the tasks relate, by pair."""
    shown: list[tuple[str, ...]] = []
    for name in dict.fromkeys(r.setting for r in document.probes.relations):
        own = [r for r in document.probes.relations if r.setting == name][:_LISTED]
        for r in own:
            cosine = _signed(r.cosine) + ("" if r.error is None else f" ± {r.error:.2g}")
            share = "–" if r.conflict is None else f"{r.conflict:.0%}"
            worst = f"{r.worst} ({_signed(r.lowest)})" if r.worst else "–"
            shown.append((name, " / ".join(r.tasks), r.relation, cosine, share, worst))
    more = len(document.probes.relations) > len(shown)
    caption = "How the tasks' gradients relate over all of training" + (
        f"; of each setting the {_LISTED} pairs of the lowest cosine" if more else ""
    )
    columns = ("Setting", "Tasks", "Relation", "Cosine without noise", "Readings below 0", "Lowest group")
    return [Table(caption, columns, tuple(shown))] if shown else []


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}".replace("-", MINUS)


def gate_tables(document: Document) -> list[Table]:
    """The gates in numbers."""
    rows = tuple(
        (g.setting, g.gate, g.task or "shared stream", _shares(g.shares), f"{g.entropy:.2f}", str(g.dead))
        for g in document.gates
    )
    columns = ("Setting", "Gate", "Read by", "Mean share of each expert", "Entropy", "Unused experts")
    return [Table("Gates at the kept epoch of the first seed", columns, rows)] if rows else []


def _shares(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.2f}" for v in values)


def calibration_tables(document: Document) -> list[Table]:
    """What calibration changed."""
    rows = tuple(
        (c.setting, c.task, c.kind, f"{c.metric} {ARROWS[c.better]}", number(c.before), number(c.after))
        for c in document.calibrations
    )
    columns = ("Setting", "Task", "Calibration", "Metric", "Before", "After")
    caption = "Calibration, fitted on validation data: means over the seeds on test, at the kept epochs"
    return [Table(caption, columns, rows)] if rows else []
