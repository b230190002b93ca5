"""Small generated tables, and finished runs on them that were never trained, which is nothing to a bundle."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from polytask.bundle import Bundle
from polytask.calibration import Calibration
from polytask.data.batch import Part
from polytask.data.split import Split, split
from polytask.data.table import read_dataset
from polytask.nn.design import Design
from polytask.nn.models import make_model
from polytask.run import Run, TrainConfig
from polytask.schema import Field, Schema, Task

USERS, ITEMS, ROWS = 15, 25, 240
WATCH = Task("watch", "ranking")
DOT = Task("watch", "ranking", head="dot")
STARS = Task("stars", "regression", label="rating")
CLICK = Task("click", "binary", label="clicked")
BUY = Task("buy", "binary", label="bought", given="click")
FIELDS = (
    Field("city", side="user"),
    Field("age", "number", side="user", scale="quantile", buckets=4),
    Field("genre", "categories", side="item", length=3),
    Field("brand", side="item", buckets=7),
    Field("price", "number", side="item", scale="log"),
    Field("device"),
    Field("hour", "number"),
    Field("tags", "categories", separator=";", length=2),
)
PAST = Field("past", "history", length=4)


def log(rows: int = ROWS, seed: int = 0) -> pl.DataFrame:
    draw = np.random.default_rng(seed)
    clicked = draw.integers(0, 2, rows)
    frame = pl.DataFrame(
        {
            "user": [f"u{k}" for k in draw.integers(0, USERS, rows)],
            "item": [f"i{k}" for k in draw.integers(0, ITEMS, rows)],
            "time": draw.integers(0, 4 * rows, rows),
            "rating": draw.integers(1, 6, rows).astype(float),
            "clicked": clicked,
            "bought": clicked * draw.integers(0, 2, rows),
            "seconds": draw.exponential(30.0, rows) * (draw.random(rows) < 0.9),
            "length": draw.uniform(10, 200, rows),
            "device": draw.choice(list("abc"), rows),
            "hour": draw.normal(12, 5, rows),
            "place": draw.integers(1, 5, rows),
            "tags": draw.choice(["x;y", "y", "z;x;y", ""], rows),
        }
    )
    gone = pl.Series(draw.random(rows) < 0.1)
    return frame.with_columns(pl.when(gone).then(None).otherwise(pl.col(n)).alias(n) for n in ("rating", "hour"))


def people() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "user": [f"u{k}" for k in range(USERS)],
            "city": ["Oslo", "Bergen", None] * 5,
            "age": [None, *(float(20 + k) for k in range(USERS - 1))],
        }
    )


def things() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "item": [f"i{k}" for k in range(ITEMS)],
            "genre": ["x|y", "y", "x|y|z", None, "z"] * 5,
            "brand": [f"b{k % 9}" for k in range(ITEMS)],
            "price": [float(k) for k in range(ITEMS)],
            "title": [f"The {w} of {k}" for k, w in enumerate(["Rose", "Name", "İstanbul", "straße", "Ring"] * 5)],
        }
    )


def cut(tasks: Sequence[Task], *fields: Field, time: bool = True, test: float = 0.2, valid: float = 0.0) -> Split:
    """Tables with those of ``fields`` that the tasks do not read, cut into parts."""
    schema = Schema(tuple(tasks), fields, user="user", item="item", time="time" if time else None)
    data = read_dataset(log(), schema, users=people(), items=things(), name="made up")
    return split(data, "temporal" if time else "random", valid=valid, test=test)


def finished(
    parts: Split,
    *,
    calibration: dict[str, Calibration] | None = None,
    weights: dict[str, float] | None = None,
    **design: Any,
) -> Run:
    """A run whose model has random parameters, the zeros of a start included."""
    chosen = Design(**{"body": "shared_bottom", "dim": 3, "tower": (4,)} | design)
    model = make_model(parts.train, chosen)
    draw = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    schema = parts.train.schema
    return Run(
        name="small",
        schema=schema,
        weights=weights or dict.fromkeys(schema.task_names, 1.0),
        config=TrainConfig(),
        design=chosen._asdict(),
        history=[{"epoch": 1, "train": {}, "test": {t: {} for t in schema.task_names}}],
        kept=1,
        own={},
        seconds=1.0,
        parameters=sum(p.numel() for p in model.parameters()),
        calibration={t: c.to_dict() for t, c in (calibration or {}).items()},
        model=model,
        sources={n: p for n, p in parts.__dict__.items() if p is not None},
    )


def rows_of(part: Part) -> pl.DataFrame:
    """The raw rows of a part."""
    assert part.source is not None
    return part.source.interactions[part.rows]


def shipped(run: Run, folder: Path, **options: Any) -> Bundle:
    """The bundle of ``run``, written and read back."""
    return Bundle.load(Bundle.save(folder, run, **options))


def scores(bundle: Bundle, frame: pl.DataFrame) -> torch.Tensor:
    """Predictions [N, T]."""
    return bundle.score(frame).select(bundle.tasks).to_torch()
