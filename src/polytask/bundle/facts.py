"""What is to be said about a bundle, as plain values: the model card and the server tell it alike."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from polytask.data.batch import Part
from polytask.errors import ConfigError
from polytask.nn.models import Model
from polytask.schema import Schema

_TITLES = ("title", "name", "headline", "movie_title")


class Trained(Protocol):
    """What a bundle is made from: a finished run with its model and its parts in memory."""

    name: str
    schema: Schema
    weights: dict[str, float]
    design: dict[str, Any]
    history: list[dict[str, Any]]
    kept: int
    parameters: int
    calibration: dict[str, Any]
    environment: dict[str, Any]
    model: Model | None
    sources: Mapping[str, Part]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that were trained."""


def facts(run: Trained, report: str | Path | Mapping[str, Any] | None) -> dict[str, Any]:
    """All but the mixes: data, tasks with their metrics, what sharing did to them, how items are shown."""
    train = run.sources["train"]
    last = next((h for h in run.history if h["epoch"] == run.kept), {})
    tasks = []
    for task in (run.schema.task(t) for t in run.tasks):
        metrics = {part: last[part].get(task.name, {}) for part in ("valid", "test") if part in last}
        about = {"name": task.name, "kind": task.kind, "range": task.range, "given": task.given, "loss": task.loss}
        tasks.append(
            {**about, "calibrated": task.name in run.calibration, "weight": run.weights[task.name], "metrics": metrics}
        )
    counts: dict[str, Any] = {"rows": {name: len(part) for name, part in run.sources.items()}}
    counts |= {f"{side}s": len(known) - 1 for side, known in train.sides.items() if known is not None}
    context = [
        {"name": f.name, "kind": f.kind} for f in run.schema.inputs if f.side == "context" and f.kind != "history"
    ]
    return {
        "name": run.name,
        "data": train.source.name if train.source else "",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "user": run.schema.user,
        "item": run.schema.item,
        "body": run.design["body"],
        "share": run.design["share"],
        "parameters": run.parameters,
        "environment": run.environment,
        "tasks": tasks,
        "counts": counts,
        "context": [f for f in context if f["name"] not in run.schema.bias_fields],
        "display": _display(train),
        "verdicts": _verdicts(run.name, report),
    }


def _display(part: Part) -> dict[str, Any]:
    """The column of the items' table that names an item, if any, and those to show beside it."""
    table = part.source.items if part.source else None
    columns = [] if table is None else [c for c in table.columns if c != part.schema.item]
    title = next((c for name in _TITLES for c in columns if c.lower() == name), None)
    return {"title": title, "columns": [c for c in columns if c != title]}


def _verdicts(name: str, report: str | Path | Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """What the report of a comparison says of the run's setting, task by task."""
    if report is None:
        return []
    if not isinstance(report, Mapping):
        try:
            report = json.loads(Path(report).read_text("utf-8"))
        except (OSError, ValueError):
            raise ConfigError(f"{report} is no report of a comparison; name its report.json") from None
    rows: Sequence[Mapping[str, Any]] = report.get("verdicts", ()) if isinstance(report, Mapping) else ()
    found = []
    for row in rows:
        if row["setting"] == name:
            own = row["own"]
            interval = "" if own["low"] is None else f", 95 % interval {own['low']:+.4f} to {own['high']:+.4f}"
            text = f"{own['metric']} {own['joint']:.4f} against {own['alone']:.4f} alone: {own['mean']:+.4f}{interval}"
            found.append({"task": row["task"], "verdict": own["verdict"], "text": text})
    return found
