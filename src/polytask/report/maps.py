"""Heat maps: conflict over parameters and time, who helps whom, and which experts the gates take."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import plotly.graph_objects as go  # type: ignore[import-untyped]
from plotly.subplots import make_subplots  # type: ignore[import-untyped]

from polytask.report.canvas import DIVERGING, RISING, finished, short
from polytask.report.conflicts import Lookahead, Trace
from polytask.report.experts import Gate

_CELL = 22  # pixels
_MOST = 12  # panels
_MARKS = {"noise": "·", "conflict": "▼", "aligned": "", "unrelated": ""}


class _Panel(NamedTuple):
    """One heat map of rows x columns; ``marks`` are written into its cells."""

    title: str
    rows: list[str]
    columns: list[str]
    values: list[list[float | None]]
    marks: list[list[str]]


def conflict_map(traces: Sequence[Trace]) -> str:
    """A panel per setting and pair of tasks: groups of parameters x epochs, -1 opposed to 1 of one direction."""
    panels = []
    for setting, tasks in list(dict.fromkeys((t.setting, t.tasks) for t in traces))[:_MOST]:
        own = [t for t in traces if (t.setting, t.tasks) == (setting, tasks)]
        title = f"{short(setting)}<br>{short(tasks[0])} / {short(tasks[1])}"
        marks = [[_MARKS[r] for r in t.relations] for t in own]
        columns = [str(e) for e in own[0].epochs]
        panels.append(_Panel(title, [short(t.group) for t in own], columns, [list(t.cosine) for t in own], marks))
    return _drawn(panels, 2, DIVERGING, (-1.0, 1.0), "cosine")


def lookahead_map(found: Sequence[Lookahead]) -> str:
    """A panel per setting: the task that steps x the task whose loss changes, in thousandths of that loss."""
    panels = []
    for own in found[:_MOST]:
        names = [short(t) for t in own.tasks]
        values = [[None if v is None else float(f"{1000 * v:.3g}") for v in row] for row in own.values]
        marks = [["" if v is None else f"{v:+.2g}" for v in row] for row in values]
        panels.append(_Panel(short(own.setting), [f"{n} steps" for n in names], names, values, marks))
    most = max((abs(v) for p in panels for row in p.values for v in row if v is not None), default=1.0)
    return _drawn(panels, 3, DIVERGING, (-most, most), "‰ of the loss")


def gate_map(found: Sequence[Gate]) -> str:
    """A panel per setting: gates x experts, the mean share of each."""
    panels = []
    for setting in list(dict.fromkeys(g.setting for g in found))[:_MOST]:
        own = [g for g in found if g.setting == setting]
        wide = max(len(g.shares) for g in own)
        values: list[list[float | None]] = [[*g.shares, *[None] * (wide - len(g.shares))] for g in own]
        marks = [["" if v is None else f"{100 * v:.0f}" for v in row] for row in values]
        rows = [f"{short(g.task or 'shared stream')} ({_level(g.gate)})" for g in own]
        panels.append(_Panel(f"{short(setting)}, seed {own[0].seed}", rows, _experts(wide), values, marks))
    return _drawn(panels, 2, RISING, (0.0, 1.0), "share")


def _level(gate: str) -> str:
    """The numbers in a gate's path, which tell gates of one task apart."""
    return ".".join(part for part in gate.split(".") if part.isdigit()) or short(gate)


def _experts(count: int) -> list[str]:
    return [str(n + 1) for n in range(count)]


def _drawn(
    panels: Sequence[_Panel], wide: int, scale: Sequence[tuple[float, str]], ends: tuple[float, float], unit: str
) -> str:
    wide = min(wide, len(panels))
    deep = -(-len(panels) // wide)
    rows = [max(len(p.rows) for p in panels[at * wide : (at + 1) * wide]) for at in range(deep)]
    height = sum(rows) * _CELL + deep * 85 + 70
    figure = make_subplots(
        deep,
        wide,
        subplot_titles=[p.title for p in panels],
        row_heights=rows,
        vertical_spacing=min(90 / height, 1 / deep),
        horizontal_spacing=0.16 if wide > 1 else 0,
    )
    for number, (panel, trace) in enumerate(zip(panels, _maps(panels), strict=True)):
        place = {"row": number // wide + 1, "col": number % wide + 1}
        figure.add_trace(trace, **place)
        figure.update_yaxes(tickvals=list(range(len(panel.rows))), ticktext=panel.rows, **place)
    bar = {"title": unit, "thickness": 12, "len": min(1.0, 220 / height), "y": 1, "yanchor": "top"}
    figure.update_layout(coloraxis={"colorscale": scale, "cmin": ends[0], "cmax": ends[1], "colorbar": bar})
    figure.update_xaxes(showgrid=False, zeroline=False, type="category")
    figure.update_yaxes(showgrid=False, zeroline=False, automargin=True, autorange="reversed")
    return finished(figure, height, head=60)


def _maps(panels: Sequence[_Panel]) -> Iterator[go.Heatmap]:
    for panel in panels:
        yield go.Heatmap(
            z=panel.values,
            x=panel.columns,
            y=list(range(len(panel.rows))),
            text=panel.marks,
            texttemplate="%{text}",
            textfont={"size": 10},  # Plotly picks black or white
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            customdata=[[row] * len(panel.columns) for row in panel.rows],
            hovertemplate="%{customdata}, %{x}: %{z:.3g}<extra></extra>",
        )
