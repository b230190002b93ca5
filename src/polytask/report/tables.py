"""The report's tables as text, for the page and for Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from polytask.report.document import Document
from polytask.report.settings import Mark, Setting
from polytask.report.verdicts import Verdict
from polytask.report.wording import ARROWS, ends, epochs, number, percent, spread
from polytask.transfer import Gain

ICONS = {
    "positive transfer": "▲",
    "negative transfer": "▼",
    "no change": "=",
    "inconclusive": "?",
    "nothing shared": "–",
}


@dataclass(frozen=True)
class Table:
    """A table of text. ``groups`` are headings over several columns: (text, number of columns)."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    groups: tuple[tuple[str, int], ...] = ()


def verdict_table(document: Document) -> Table:
    """Joint against alone, at each task's own best epoch and at the epoch kept, side by side."""
    columns = ("Joint", "Alone", "Gain", "95 % interval", "Verdict", "Epochs, joint / alone")
    return Table(
        "Joint training against training alone, paired over seeds",
        ("Setting", "Task", "Metric", *columns, *columns),
        tuple(_verdict_row(v) for v in document.verdicts),
        (("", 3), ("Own best epoch: what sharing did", 6), ("Kept epoch: what would ship", 6)),
    )


def _verdict_row(found: Verdict) -> tuple[str, ...]:
    head = (found.setting, found.task, f"{found.own.metric} {ARROWS[found.own.better]}")
    return (*head, *_gain(found.own, found.own_relative), *_gain(found.kept, found.kept_relative))


def _gain(gain: Gain, relative: float) -> tuple[str, ...]:
    verdict = f"{ICONS[gain.verdict]} {gain.verdict}"
    at = [epochs([pair[side] for pair in gain.epochs]).partition(" ")[2].replace(" to ", "–") for side in (0, 1)]
    change = f"{number(gain.mean, gain.alone, '+')} ({percent(relative)})"
    return number(gain.joint), number(gain.alone), change, ends(gain).replace(" to ", ", "), verdict, " / ".join(at)


def cost_table(document: Document) -> Table:
    """Parameters and seconds, absolute and as multiples of the cheapest."""
    rows = tuple(
        (s.name, s.kind, f"{s.parameters:,}", _times(s.times_parameters), f"{s.seconds:,.1f}", _times(s.times_seconds))
        for s in document.settings
    )
    columns = ("Setting", "Kind", "Parameters", "× smallest", "Seconds per run", "× fastest")
    return Table("What each setting costs; × is relative to the cheapest", columns, rows)


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def setting_table(document: Document) -> Table:
    """How each setting was trained."""
    columns = ("Setting", "Weights", "Share", "Body", "Seeds", "Epochs trained", "Epochs kept")
    return Table("How each setting was trained", columns, tuple(_setting_row(s) for s in document.settings))


def _setting_row(found: Setting) -> tuple[str, ...]:
    weights = ", ".join(f"{task} {found.weights[task]:g}" for task in found.tasks)
    share = "one task alone" if found.kind == "single-task" else found.share
    return found.name, weights, share, found.body, _list(found.seeds), _list(found.trained), _list(found.kept)


def _list(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else ", ".join(map(str, values))


def mark_table(document: Document) -> Table:
    """Every metric of every setting, at the best and at the last epoch."""
    rows = tuple((s.name, *_mark_row(m)) for s in document.settings for m in s.marks)
    columns = ("Setting", "Task", "Metric", "Best", "At", "Last")
    return Table("Every metric: mean ± standard deviation over seeds", columns, rows)


def _mark_row(found: Mark) -> tuple[str, ...]:
    best, last = spread(found.best, found.best_sd), spread(found.last, found.last_sd)
    return found.task, f"{found.metric} {ARROWS[found.better]}", best, epochs(found.epochs), last
