"""One figure per comparison: training losses and metrics by epoch, a line per setting with a band over its seeds."""

from collections.abc import Iterator, Sequence
from html import escape

import plotly.graph_objects as go  # type: ignore[import-untyped]
from plotly.subplots import make_subplots  # type: ignore[import-untyped]

from polytask.errors import visible
from polytask.report.comparisons import Comparison
from polytask.report.document import Document
from polytask.report.settings import Curve
from polytask.report.wording import ARROWS

# Okabe and Ito's colors that stand out on white and on black, told apart with any color vision.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("dash", "dot", "dashdot")
_ALONE = "#8A8A8A"
_ROW = 300  # pixels
_HEAD = 90

Panel = tuple[str, str, str]  # part, task, metric
_JOINT: Panel = ("train", "joint", "loss")
Style = dict[str, object]


def figures(document: Document) -> list[str]:
    """The figure of each comparison as Plotly's JSON; a setting looks the same in all of them."""
    styles = _styles(document)
    return [_figure(document, comparison, styles) for comparison in document.comparisons]


def _styles(document: Document) -> dict[str, Style]:
    """Color by setting; dashes where nothing is shared, since such lines often cover each other."""
    joint = [s for s in document.settings if s.kind == "joint"]
    apart = [s.name for s in joint if s.share == "separate"]
    found: dict[str, Style] = {s.name: {"color": _ALONE, "width": 1.5, "dash": "longdash"} for s in document.settings}
    for number, setting in enumerate(joint):
        again = number // len(_COLORS)  # past the last color they start over with another dash
        dash = _DASHES[apart.index(setting.name) % 3] if setting.name in apart else ("solid", *_DASHES)[again % 4]
        found[setting.name] = {"color": _COLORS[number % len(_COLORS)], "width": 2, "dash": dash}
    return found


def _figure(document: Document, comparison: Comparison, styles: dict[str, Style]) -> str:
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
    height = _ROW * len(rows) + _HEAD
    figure = make_subplots(
        len(rows), wide, specs=specs, subplot_titles=titles, vertical_spacing=80 / height, horizontal_spacing=0.07
    )
    legend: set[str] = set()
    for r, row in enumerate(rows, 1):
        for c, panel in enumerate(row, 1):
            drawn = [n for n in names if panel != _JOINT or n not in alone]
            for trace in _traces([shown[n, *panel] for n in drawn if (n, *panel) in shown], styles, legend):
                figure.add_trace(trace, row=r, col=c)
    return _finished(figure, height)


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
        return f"{_name(task)}: loss, train"
    better = next(m.better for s in document.settings for m in s.marks if m.metric == metric)
    return f"{_name(task)}: {metric} {ARROWS[better]}, {part}"


def _traces(curves: Sequence[Curve], styles: dict[str, Style], legend: set[str]) -> Iterator[go.Scatter]:
    """Bands first, so that no band lies over a line."""
    for curve in curves:
        if curve.low != curve.high:
            yield _band(curve, str(styles[curve.setting]["color"]))
    for curve in curves:
        yield go.Scatter(
            x=curve.epochs,
            y=_rounded(curve.mean),
            mode="lines" if len(curve.epochs) > 1 else "markers",
            line=styles[curve.setting],
            name=_name(curve.setting),
            legendgroup=_name(curve.setting),
            showlegend=curve.setting not in legend,
            hovertemplate="epoch %{x}: %{y:.4g}",
        )
        legend.add(curve.setting)


def _band(curve: Curve, color: str) -> go.Scatter:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return go.Scatter(
        x=(*curve.epochs, *reversed(curve.epochs)),
        y=_rounded((*curve.high, *reversed(curve.low))),
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.15)",
        line={"width": 0},
        mode="lines",
        legendgroup=_name(curve.setting),
        showlegend=False,
        hoverinfo="skip",
    )


def _rounded(values: Sequence[float]) -> list[float]:
    """Five digits are more than a plot shows, and keep the page small."""
    return [float(f"{value:.5g}") for value in values]


def _finished(figure: go.Figure, height: int) -> str:
    """Clear ground, so that the page's own light or dark one shows through; the page sets the text's color."""
    figure.update_layout(
        template="none",
        height=height,
        autosize=True,
        margin={"l": 50, "r": 10, "t": _HEAD, "b": 45},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12},
        hovermode="x unified",
        legend={"orientation": "h", "yref": "container", "y": 1, "yanchor": "top", "x": 0},
    )
    figure.update_annotations(font_size=13)
    figure.update_xaxes(title={"text": "epoch", "standoff": 4}, zeroline=False, gridcolor="rgba(128,128,128,0.15)")
    figure.update_yaxes(zeroline=False, gridcolor="rgba(128,128,128,0.25)", nticks=6)
    return str(figure.to_json())


def _name(text: str) -> str:
    """Plotly reads tags and entities in its texts."""
    return escape(visible(text), quote=False)
