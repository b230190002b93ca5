"""What all figures have in common: colors, names, and a clear ground on which the page's own one shows through."""

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go  # type: ignore[import-untyped]

from polytask.errors import visible
from polytask.report.settings import Setting

# Okabe and Ito's colors that stand out on white and on black, told apart with any color vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DIVERGING = ((0.0, "#C8401F"), (0.5, "#E9EBEE"), (1.0, "#1F6FB2"))
"""From conflict over nothing to agreement."""
RISING = ((0.0, "#EEF2F6"), (1.0, "#0B5A94"))
"""From none to all."""
GRAY = "#8A8A8A"
FAINT = "rgba(128,128,128,0.2)"
HEAD = 90
"""Pixels above the panels, for the legend."""
_DASHES = ("dash", "dot", "dashdot")
_LONG = 34

Style = dict[str, object]


def styles(settings: Sequence[Setting]) -> dict[str, Style]:
    """Color by setting, the same in all figures; dashes where nothing is shared: such lines often cover each other."""
    joint = [s for s in settings if s.kind == "joint"]
    apart = [s.name for s in joint if s.share == "separate"]
    found: dict[str, Style] = {s.name: {"color": GRAY, "width": 1.5, "dash": "longdash"} for s in settings}
    for number, setting in enumerate(joint):
        again = number // len(COLORS)  # past the last color they start over with another dash
        dash = _DASHES[apart.index(setting.name) % 3] if setting.name in apart else ("solid", *_DASHES)[again % 4]
        found[setting.name] = {"color": COLORS[number % len(COLORS)], "width": 2, "dash": dash}
    return found


def finished(figure: go.Figure, height: int, head: int = HEAD) -> str:
    """The figure as JSON; the page sets the text's color."""
    figure.update_layout(
        template="none",
        height=height,
        autosize=True,
        margin={"l": 50, "r": 10, "t": head, "b": 40},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12},
        legend={"orientation": "h", "yref": "container", "y": 1, "yanchor": "top", "x": 0},
    )
    figure.update_annotations(font_size=13)
    return str(figure.to_json())


def by_epoch(figure: go.Figure) -> None:
    """Axes of panels whose x is the epoch."""
    figure.update_layout(hovermode="x unified")
    figure.update_xaxes(title={"text": "epoch", "standoff": 4}, zeroline=False, gridcolor="rgba(128,128,128,0.15)")
    figure.update_yaxes(zeroline=False, gridcolor="rgba(128,128,128,0.25)", nticks=6)


def rounded(values: Sequence[float]) -> list[float]:
    """Five digits are more than a plot shows, and keep the page small."""
    return [float(f"{value:.5g}") for value in values]


def name(text: str) -> str:
    """A name as Plotly shows it: it reads tags and entities in its texts."""
    return escape(visible(text), quote=False)


def short(text: str) -> str:
    """A name cut to what fits beside a panel."""
    shown = visible(text)
    return escape(shown if len(shown) <= _LONG else f"{shown[: _LONG - 1]}…", quote=False)
