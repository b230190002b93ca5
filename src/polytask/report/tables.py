"""The report's tables as text, for the page and for Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from polytask.report.document import Document
from polytask.report.settings import Mark, Setting
from polytask.report.verdicts import Verdict
from polytask.report.wording import ARROWS, MINUS, ends, epochs, number, percent, probability, spread
from polytask.significance import Estimate
from polytask.transfer import Gain

ICONS = {
    "positive transfer": "▲",
    "negative transfer": "▼",
    "equivalent": "=",
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

    @property
    def edges(self) -> set[int]:
        """Where a group of columns begins."""
        starts = [sum(span for _, span in self.groups[:n]) for n in range(len(self.groups))]
        return {start for start, (text, _) in zip(starts, self.groups, strict=True) if text}


def verdict_tables(document: Document) -> list[Table]:
    """What there is on who gained and who paid; nothing without a baseline."""
    found = [verdict_table(document), change_table(document)] if document.verdicts else []
    return [*found, *([resampled_table(document)] if document.resampled else [])]


def verdict_table(document: Document) -> Table:
    """Joint against alone, at each task's own best epoch and at the epoch kept, side by side."""
    columns = (
        "Joint",
        "Alone",
        "Gain",
        "95 % interval",
        "p (Holm)",
        "Verdict",
        "Seeds needed",
        "Epochs, joint / alone",
    )
    return Table(
        "Joint training against training alone, paired over seeds",
        ("Setting", "Task", "Metric", *columns, *columns),
        tuple(_verdict_row(v) for v in document.verdicts),
        (("", 3), ("Own best epoch: what sharing did", 8), ("Kept epoch: what would ship", 8)),
    )


def _verdict_row(found: Verdict) -> tuple[str, ...]:
    head = (found.setting, found.task, f"{found.own.metric} {ARROWS[found.own.better]}")
    return (*head, *_gain(found.own, found.own_relative), *_gain(found.kept, found.kept_relative))


def _gain(gain: Gain, relative: float) -> tuple[str, ...]:
    verdict = f"{ICONS[gain.verdict]} {gain.verdict}"
    at = [epochs([pair[side] for pair in gain.epochs]).partition(" ")[2].replace(" to ", "–") for side in (0, 1)]
    change = f"{number(gain.mean, gain.alone, '+')} ({percent(relative)})"
    sure = ends(gain).replace(" to ", ", "), probability(gain.adjusted), verdict, _needed(gain)
    return number(gain.joint), number(gain.alone), change, *sure, " / ".join(at)


def _needed(gain: Gain) -> str:
    """How many seeds would settle an inconclusive verdict."""
    if gain.verdict != "inconclusive" or gain.low is None:
        return "–"
    return "> 1,000" if gain.needed is None else f"{gain.needed:,}"


def change_table(document: Document) -> Table:
    """All tasks of a setting in one number."""
    return Table(
        "Δ_m: the mean relative gain over tasks, in percent; positive means that joint training is better",
        ("Setting", "Tasks", *("Δ_m", "95 % interval") * 2),
        tuple((c.setting, str(len(c.tasks)), *change(c.own), *change(c.kept)) for c in document.changes),
        (("", 2), ("Own best epoch: what sharing did", 2), ("Kept epoch: what would ship", 2)),
    )


def resampled_table(document: Document) -> Table:
    """How far gains hang on the users of the test part."""
    rows = tuple(
        (r.setting, r.task, r.metric, str(r.seed), f"{r.gain.mean:+.4f}", f"{r.gain.low:+.4f}, {r.gain.high:+.4f}")
        for r in document.resampled
    )
    return Table(
        "The chance of the test users alone: gains at the kept epoch of one seed, users resampled 2,000 times",
        ("Setting", "Task", "Metric", "Seed", "Gain", "95 % interval over users"),
        tuple(tuple(cell.replace("-", MINUS) if n > 3 else cell for n, cell in enumerate(row)) for row in rows),
    )


def change(found: Estimate | None) -> tuple[str, str]:
    """An estimate in percent and its interval."""
    if found is None:
        return "–", "–"
    if found.low is None or found.high is None:
        return percent(found.mean / 100), "one pair of seeds"
    return percent(found.mean / 100), f"{percent(found.low / 100)}, {percent(found.high / 100)}"


def cost_table(document: Document) -> Table:
    """What each setting costs: parameters and seconds beside the cheapest, steps and memory beside static weights."""
    rows = tuple(
        (
            s.name,
            s.kind,
            f"{s.parameters:,}",
            _times(s.times_parameters),
            f"{s.seconds:,.1f}",
            _times(s.times_seconds),
            "–" if s.step_seconds is None else f"{1000 * s.step_seconds:,.3g}",
            _times(s.times_step),
            "–" if s.memory is None else f"{s.memory / 2**20:,.0f}",
            _times(s.times_memory),
            "–" if s.step_seconds is None and s.memory is None else s.beside,
        )
        for s in document.settings
    )
    columns = ("Setting", "Kind", "Parameters", "× smallest", "Seconds per run", "× fastest")
    step = ("Milliseconds per step", "×", "Peak memory, MiB", "×", "beside")
    caption = (
        "What each setting costs; steps and memory are relative to static weights of the same network, if there are any"
    )
    return Table(caption, (*columns, *step), rows, (("", 6), ("One training step, and the process", 5)))


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def setting_table(document: Document) -> Table:
    """How each setting was trained."""
    columns = ("Setting", "Weights", "Balance", "Share", "Body", "Seeds", "Epochs trained", "Epochs kept")
    return Table("How each setting was trained", columns, tuple(_setting_row(s) for s in document.settings))


def _setting_row(found: Setting) -> tuple[str, ...]:
    weights = ", ".join(f"{task} {found.weights[task]:g}" for task in found.tasks)
    share = "one task alone" if found.kind == "single-task" else found.share
    return (
        found.name,
        weights,
        found.balance,
        share,
        found.body,
        _list(found.seeds),
        _list(found.trained),
        _list(found.kept),
    )


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
