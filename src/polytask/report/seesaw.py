"""The seesaw picture: what every task gains or pays in every joint setting, at a glance."""

from collections.abc import Sequence

import plotly.graph_objects as go  # type: ignore[import-untyped]
from plotly.subplots import make_subplots  # type: ignore[import-untyped]

from polytask.report.canvas import FAINT, GRAY, finished, name, short
from polytask.report.document import Document
from polytask.report.verdicts import Verdict
from polytask.report.wording import ARROWS, percent

_ROW = 30  # pixels
_WIDE = 5  # panels side by side; more tasks stand in two rows
_READ = 48  # marks in the picture that still have room for their numbers

LOOKS = {  # verdict: color, symbol, words
    "positive transfer": ("#12875B", "triangle-up", "gains"),
    "negative transfer": ("#D1442B", "triangle-down", "pays"),
    "equivalent": ("#5F7082", "square", "equal within the margin"),
    "inconclusive": ("#C08A00", "circle-open", "not decided"),
    "nothing shared": (GRAY, "line-ew-open", "nothing shared"),
}


def seesaw(document: Document) -> str:
    """One panel per task, one row per joint setting: relative gains at the own best epoch, and at the kept one."""
    rows = list(dict.fromkeys(v.setting for v in document.verdicts))
    tasks = list(dict.fromkeys(v.task for v in document.verdicts))
    wide = len(tasks) if len(tasks) <= _WIDE else (len(tasks) + 1) // 2
    deep = -(-len(tasks) // wide)
    panel = _ROW * len(rows) + 30
    height = deep * panel + (deep - 1) * 70 + 110
    titles = [_title(document, t) for t in tasks]
    figure = make_subplots(
        deep, wide, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.02, vertical_spacing=70 / height
    )
    seen: set[str] = set()
    for number, task in enumerate(tasks):
        place = {"row": number // wide + 1, "col": number % wide + 1}
        own = [v for v in document.verdicts if v.task == task]
        _panel(figure, own, rows, place, seen, len(document.verdicts) <= _READ)
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=[short(r) for r in rows],
        range=[len(rows) - 0.4, -0.8],
        automargin=True,
        zeroline=False,
        gridcolor=FAINT,
    )
    figure.update_xaxes(zeroline=False, gridcolor=FAINT, nticks=5, ticksuffix=" %")
    figure.update_layout(hovermode="closest")
    return finished(figure, height, head=75)


def _panel(
    figure: go.Figure,
    own: Sequence[Verdict],
    rows: Sequence[str],
    place: dict[str, int],
    seen: set[str],
    told: bool,
) -> None:
    """The marks of one task, its zero line, and the band of gains too small to act on."""
    left, right = _range(own)
    figure.update_xaxes(range=[left, right], **place)
    always = {"exclude_empty_subplots": False}  # the panel's marks come after
    margin = max(100 * v.own.margin / abs(v.own.alone) for v in own if v.own.alone)
    figure.add_vrect(-margin, margin, fillcolor=GRAY, opacity=0.14, line_width=0, layer="below", **always, **place)
    figure.add_vline(0, line={"color": GRAY, "width": 1.5}, layer="below", **always, **place)
    kept = [v for v in own if v.kept.verdict != "nothing shared"]
    figure.add_trace(_kept(kept, rows, "kept" not in seen), **place)
    seen.add("kept")
    for verdict, (color, symbol, words) in LOOKS.items():
        if marks := [v for v in own if v.own.verdict == verdict]:
            trace = _marks(marks, rows, told)
            trace.update(marker={"color": color, "symbol": symbol, "size": 11, "line": {"width": 2, "color": color}})
            trace.update(name=words, legendgroup=words, showlegend=verdict not in seen, textfont={"color": color})
            trace.update(error_x={"color": color, "thickness": 1.5, "width": 4})
            figure.add_trace(trace, **place)
            seen.add(verdict)


def _marks(marks: Sequence[Verdict], rows: Sequence[str], told: bool) -> go.Scatter:
    ends = [_ends(v) or (v.own_relative, v.own_relative) for v in marks]
    return go.Scatter(
        x=[_percent(v.own_relative) for v in marks],
        y=[rows.index(v.setting) for v in marks],
        mode="markers+text" if told else "markers",
        text=[percent(v.own_relative) for v in marks],
        textposition="top center",
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [_percent(high - v.own_relative) for v, (_, high) in zip(marks, ends, strict=True)],
            "arrayminus": [_percent(v.own_relative - low) for v, (low, _) in zip(marks, ends, strict=True)],
        },
        hovertext=[_told(v) for v in marks],
        hoverinfo="text",
    )


def _kept(marks: Sequence[Verdict], rows: Sequence[str], legend: bool) -> go.Scatter:
    """The same at the kept epochs, small: where it is far from the other, training stopped at the wrong time."""
    return go.Scatter(
        x=[_percent(v.kept_relative) for v in marks],
        y=[rows.index(v.setting) + 0.3 for v in marks],
        mode="markers",
        marker={"symbol": "diamond", "size": 5, "color": GRAY},
        name="at the kept epoch",
        legendgroup="kept",
        showlegend=legend,
        hovertext=[f"{short(v.setting)}<br>at the kept epoch {percent(v.kept_relative)}" for v in marks],
        hoverinfo="text",
    )


def _range(own: Sequence[Verdict]) -> tuple[float, float]:
    """Room for all means and for intervals up to twice as far out; longer whiskers run out of the panel."""
    means = [100 * x for v in own for x in (v.own_relative, v.kept_relative)]
    reach = 2 * max(0.5, *(abs(m) for m in means))
    ends = [100 * e for v in own for e in _ends(v) or ()]
    left = min(*means, 0, *(max(e, -reach) for e in ends))
    right = max(*means, 0, *(min(e, reach) for e in ends))
    room = 0.15 * (right - left)
    return _short(left - room), _short(right + room)


def _ends(found: Verdict) -> tuple[float, float] | None:
    """The ends of the interval as shares of the single-task value."""
    gain = found.own
    if gain.low is None or gain.high is None or not gain.alone:
        return None
    return gain.low / abs(gain.alone), gain.high / abs(gain.alone)


def _told(found: Verdict) -> str:
    ends = _ends(found)
    sure = "one pair of seeds" if ends is None else f"95 % interval {percent(ends[0])} to {percent(ends[1])}"
    return f"{short(found.setting)}<br>{percent(found.own_relative)}, {sure}<br>{found.own.verdict}"


def _title(document: Document, task: str) -> str:
    own = next(v.own for v in document.verdicts if v.task == task)
    return f"<b>{name(task)}</b>: gain in {own.metric} {ARROWS[own.better]}"


def _percent(share: float) -> float:
    return _short(100 * share)


def _short(value: float) -> float:
    return float(f"{value:.4g}")
