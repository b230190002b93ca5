"""The trade-off between two tasks as a picture: sweeps as lines, methods as points, the front, the single tasks."""

import plotly.graph_objects as go  # type: ignore[import-untyped]

from polytask.report.canvas import COLORS, FAINT, GRAY, finished, name, short
from polytask.report.tradeoff import Point, TradeOff
from polytask.report.wording import ARROWS, number

Look = dict[str, object]
_LABELED = 24
_SYMBOLS = ("circle", "square", "diamond", "x", "triangle-up", "star", "pentagon", "hexagon")


def scatter(found: TradeOff) -> str:
    """The means of two tasks' metrics at the kept epochs; better is up and to the right."""
    figure = go.Figure()
    joint = [p for p in found.points if p.kind != "single-task"]
    sweeps = list(dict.fromkeys(p.method for p in joint if p.method != p.setting))
    figure.add_trace(_front(found))
    for place, sweep in enumerate(sweeps):
        figure.add_trace(_sweep(found, sweep, COLORS[place % len(COLORS)]))
    for place, point in enumerate([p for p in joint if p.method == p.setting]):
        style: Look = {
            "color": COLORS[(place + len(sweeps)) % len(COLORS)],
            "symbol": _SYMBOLS[place // len(COLORS) % len(_SYMBOLS)],
        }
        figure.add_trace(_point(point, style, len(joint) <= _LABELED))
    for point in found.points:
        if point.kind == "single-task":
            style = {"color": GRAY, "symbol": "cross-thin-open", "line": {"width": 2, "color": GRAY}}
            figure.add_trace(_point(point, style, True))
    for axis, at in ((figure.update_xaxes, 0), (figure.update_yaxes, 1)):
        text = f"{name(found.tasks[at])}: {found.metrics[at]} {ARROWS[found.better[at]]}"
        turned = "reversed" if found.better[at] == "lower" else True
        axis(title=text, autorange=turned, gridcolor=FAINT, zeroline=False, automargin=True)
    figure.update_layout(hovermode="closest")
    return finished(figure, 520)


def _front(found: TradeOff) -> go.Scatter:
    """Rings around the points that no other joint setting dominates."""
    points = [p for p in found.points if p.front]
    return go.Scatter(
        x=[p.values[0] for p in points],
        y=[p.values[1] for p in points],
        mode="markers",
        marker={"symbol": "circle-open", "size": 19, "color": GRAY, "line": {"width": 1.5}},
        name="front",
        hoverinfo="skip",
    )


def _sweep(found: TradeOff, sweep: str, color: str) -> go.Scatter:
    points = [p for p in found.points if p.method == sweep]
    return go.Scatter(
        x=[p.values[0] for p in points],
        y=[p.values[1] for p in points],
        mode="lines+markers+text",
        text=["chosen" if p.chosen else "" for p in points],
        textposition="bottom center",
        textfont={"size": 10},
        line={"color": color, "width": 1.5},
        marker={"size": 6},
        name=f"{name(sweep)} (all weights)",
        hovertext=[_told(p) for p in points],
        hoverinfo="text",
    )


def _point(point: Point, style: Look, labeled: bool) -> go.Scatter:
    return go.Scatter(
        x=[point.values[0]],
        y=[point.values[1]],
        mode="markers+text" if labeled else "markers",
        text=[short(point.setting)],
        textposition="top center",
        textfont={"size": 10},
        marker={"size": 11} | style,
        name=name(point.setting),
        hovertext=[_told(point)],
        hoverinfo="text",
    )


def _told(point: Point) -> str:
    return f"{short(point.setting)}<br>{' / '.join(number(v) for v in point.values)}"
