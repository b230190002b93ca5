"""One figure per comparison: training losses and metrics by epoch, a line per setting with a band over its seeds."""

from collections.abc import Iterator, Sequence

import plotly.graph_objects as go  # type: ignore[import-untyped]
from plotly.subplots import make_subplots  # type: ignore[import-untyped]

from polytask.report.canvas import HEAD, Style, by_epoch, finished, name, rounded, styles
from polytask.report.comparisons import Comparison
from polytask.report.document import Document
from polytask.report.settings import Curve
from polytask.report.wording import ARROWS

_ROW = 300  # pixels

Panel = tuple[str, str, str]  # part, task, metric
_JOINT: Panel = ("train", "joint", "loss")


def figures(document: Document) -> list[str]:
    """The figure of each comparison as Plotly's JSON; a setting looks the same in all of them."""
    look = styles(document.settings)
    return [_figure(document, comparison, look) for comparison in document.comparisons]


def _figure(document: Document, comparison: Comparison, look: dict[str, Style]) -> str:
    names = (*comparison.settings, *comparison.baselines)
    alone = {s.name for s in document.settings if s.kind != "joint"}
    shown = {(c.setting, c.part, c.task, c.metric): c for c in document.curves if c.setting in names}
    rows = _panels(document, comparison.settings)
    wide = max(len(row) for row in rows)
    # a row with fewer panels, as that of the joint loss, gives its last one the rest of the width
    specs: list[list[dict[str, int] | None]] = [
        [{}] * (len(r) - 1) + [{"colspan": wide - len(r) + 1}] + [None] * (wide - len(r)) for r in rows
    ]
    titles = [_title(document, panel) for row in rows for panel in row]
    height = _ROW * len(rows) + HEAD
    figure = make_subplots(
        len(rows), wide, specs=specs, subplot_titles=titles, vertical_spacing=80 / height, horizontal_spacing=0.07
    )
    legend: set[str] = set()
    for r, row in enumerate(rows, 1):
        for c, panel in enumerate(row, 1):
            drawn = [n for n in names if panel != _JOINT or n not in alone]
            for trace in _traces([shown[n, *panel] for n in drawn if (n, *panel) in shown], look, legend):
                figure.add_trace(trace, row=r, col=c)
    by_epoch(figure)
    return finished(figure, height)


def _panels(document: Document, names: Sequence[str]) -> list[list[Panel]]:
    """Per task its training loss and every metric on every scored part, the first metric first; then the joint loss."""
    chosen = [s for s in document.settings if s.name in names]
    parts = [p for p in ("valid", "test") if any(c.part == p and c.setting in names for c in document.curves)]
    rows: list[list[Panel]] = []
    for task in dict.fromkeys(t for s in chosen for t in s.tasks):
        metrics = dict.fromkeys(m.metric for s in chosen for m in s.marks if m.task == task)
        panels: list[Panel] = [("train", task, "loss"), *((p, task, m) for m in metrics for p in parts)]
        width = 1 + len(parts)
        rows += [panels[at : at + width] for at in range(0, len(panels), width)]
    return [*rows, [_JOINT]] if any(s.kind == "joint" for s in chosen) else rows


def _title(document: Document, panel: Panel) -> str:
    part, task, metric = panel
    if panel == _JOINT:
        return "joint loss, train"
    if part == "train":
        return f"{name(task)}: loss, train"
    better = next(m.better for s in document.settings for m in s.marks if m.metric == metric)
    return f"{name(task)}: {metric} {ARROWS[better]}, {part}"


def _traces(curves: Sequence[Curve], look: dict[str, Style], legend: set[str]) -> Iterator[go.Scatter]:
    """Bands first, so that no band lies over a line."""
    for curve in curves:
        if curve.low != curve.high:
            yield _band(curve, str(look[curve.setting]["color"]))
    for curve in curves:
        yield go.Scatter(
            x=curve.epochs,
            y=rounded(curve.mean),
            mode="lines" if len(curve.epochs) > 1 else "markers",
            line=look[curve.setting],
            name=name(curve.setting),
            legendgroup=name(curve.setting),
            showlegend=curve.setting not in legend,
            hovertemplate="epoch %{x}: %{y:.4g}",
        )
        legend.add(curve.setting)


def _band(curve: Curve, color: str) -> go.Scatter:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return go.Scatter(
        x=(*curve.epochs, *reversed(curve.epochs)),
        y=rounded((*curve.high, *reversed(curve.low))),
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.15)",
        line={"width": 0},
        mode="lines",
        legendgroup=name(curve.setting),
        showlegend=False,
        hoverinfo="skip",
    )
