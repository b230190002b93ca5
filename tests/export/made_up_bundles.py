"""Bundles of models with random parameters over a small table that has a column of every kind."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from polytask.bundle import Bundle
from polytask.data.split import split
from polytask.data.table import Dataset, read_dataset
from polytask.nn.design import Design
from polytask.nn.models import make_model
from polytask.run import Run, TrainConfig
from polytask.schema import Field, Schema, Task

WATCH = Task("watch", "ranking")
DOT = Task("watch", "ranking", head="dot")
STARS = Task("stars", "regression", label="rating")
LIKE = Task("like", "binary", positive="rating >= 3")
SHARE = Task("share", "binary", positive="rating >= 5", given="like")
SECONDS = Task("seconds", "regression", label="seconds", by="duration", loss="d2q", options={"groups": 3})

GENRES = Field("genres", "categories", side="item", length=3)
PAST = Field("past", "history", length=4)
CONTEXT = (
    Field("device"),
    Field("page", buckets=5),
    Field("tags", "categories", length=3),
    Field("price", "number"),
    Field("delay", "number", scale="log"),
    Field("hour", "number", scale="quantile", buckets=4),
    Field("place", "category"),
)


def table(rows: int = 300) -> pl.DataFrame:
    draw = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "user": [f"u{k}" for k in draw.integers(0, 12, rows)],
            "item": [f"i{k}" for k in draw.integers(0, 25, rows)],
            "time": draw.integers(0, 400, rows),
            "rating": draw.integers(1, 6, rows).astype(float),
            "seconds": draw.exponential(20, rows),
            "duration": [None if k == 0 else float(k * 9) for k in draw.integers(0, 9, rows)],
            "device": [f"d{k}" for k in draw.integers(0, 4, rows)],
            "page": [f"p{k}" for k in draw.integers(0, 9, rows)],
            "tags": ["|".join(f"t{v}" for v in draw.integers(0, 6, k)) or None for k in draw.integers(0, 5, rows)],
            "price": [None if k == 0 else float(k) for k in draw.integers(0, 30, rows)],
            "delay": draw.exponential(500, rows) * draw.choice([-1, 1], rows),
            "hour": draw.integers(0, 24, rows).astype(float),
            "place": [f"x{k}" for k in draw.integers(0, 4, rows)],
        }
    )


def dataset(tasks: Sequence[Task], fields: Sequence[Field], *, timed: bool = True, ids: bool = True) -> Dataset:
    rows, names = table(), [f.name for f in fields]
    named = {"user": "user", "item": "item"} if ids else {}
    schema = Schema(tuple(tasks), fields=tuple(fields), time="time" if timed else None, **named)
    draw = np.random.default_rng(1)
    genres = ["|".join(f"g{v}" for v in draw.integers(0, 5, draw.integers(0, 4))) or None for _ in range(28)]
    durations = draw.integers(1, 9, 28) * 9.0
    items = pl.DataFrame({"item": [f"i{k}" for k in range(28)], "genres": genres, "duration": durations})
    users = pl.DataFrame({"user": [f"u{k}" for k in range(13)]})
    sides = {"users": users, "items": items.select("item", *(n for n in names if n in items.columns))} if ids else {}
    return read_dataset(rows, schema, **sides)


def made_up(
    path: Path,
    tasks: Sequence[Task] = (WATCH, STARS, LIKE),
    fields: Sequence[Field] = (),
    *,
    design: Design | None = None,
    calibration: Mapping[str, Any] | None = None,
    mix: str | None = None,
    data: Dataset | None = None,
) -> Bundle:
    """The bundle at ``path`` of a model whose parameters start as ever, with noise on top."""
    parts = split(data or dataset(tasks, fields), valid=0.1, test=0.1)
    design = design or Design("mmoe", 6, tower=(8,), options=Design.frozen({"layers": (8,)}))
    model, draw = make_model(parts.train, design), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=draw) / 5)
    schema = parts.train.schema
    run = Run(
        name="made-up",
        schema=schema,
        weights=dict.fromkeys(schema.task_names, 1.0),
        config=TrainConfig(),
        design=design._asdict(),
        history=[],
        kept=0,
        own={},
        seconds=0.0,
        parameters=sum(p.numel() for p in model.parameters()),
        calibration=dict(calibration or {}),
        model=model,
        sources={name: part for name, part in parts.__dict__.items() if part is not None},
    )
    return Bundle.load(Bundle.save(path, run, mix=mix))
