"""Who sets the pace: each task's share of weights, loss, gradients and update by epoch, a line per setting."""

from collections.abc import Sequence

import plotly.graph_objects as go  # type: ignore[import-untyped]
from plotly.subplots import make_subplots  # type: ignore[import-untyped]

from polytask.report.canvas import HEAD, Style, by_epoch, finished, name
from polytask.report.conflicts import Share

_ROW = 200  # pixels
_TITLES = {
    "weights": "weights in force",
    "loss": "weighted loss",
    "gradients": "gradient norms",
    "update": "update",
}


def pace(shares: Sequence[Share], look: dict[str, Style]) -> str:
    """One row per task, one column per kind of share."""
    tasks = list(dict.fromkeys(s.task for s in shares))
    tasks = tasks[:1] if len(tasks) == 2 else tasks  # the other's share is the rest
    kinds = [k for k in _TITLES if any(s.kind == k for s in shares)]
    titles = [f"{name(t)}: share of {_TITLES[k]}" for t in tasks for k in kinds]
    height = _ROW * len(tasks) + HEAD + 60
    figure = make_subplots(
        len(tasks), len(kinds), subplot_titles=titles, vertical_spacing=75 / height, horizontal_spacing=0.05
    )
    legend: set[str] = set()
    for r, task in enumerate(tasks, 1):
        for c, kind in enumerate(kinds, 1):
            for share in shares:
                if (share.task, share.kind) == (task, kind):
                    figure.add_trace(_line(share, look[share.setting], share.setting not in legend), row=r, col=c)
                    legend.add(share.setting)
    by_epoch(figure)
    figure.update_yaxes(range=[0, 1], tickformat=".0%")
    return finished(figure, height)


def _line(share: Share, style: Style, legend: bool) -> go.Scatter:
    return go.Scatter(
        x=share.epochs,
        y=share.values,
        mode="lines+markers" if len(share.epochs) < 12 else "lines",
        line=style,
        marker={"size": 4},
        name=name(share.setting),
        legendgroup=name(share.setting),
        showlegend=legend,
        hovertemplate="%{y:.1%}",
    )
