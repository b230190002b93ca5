"""Bundles whose model holds planted tastes instead of trained ones: even users like even items, odd users odd ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from polytask.bundle import Bundle
from polytask.data.split import split
from polytask.data.table import read_dataset
from polytask.nn.design import Design
from polytask.nn.model import MultiTask
from polytask.nn.models import make_model
from polytask.run import Run, TrainConfig
from polytask.schema import Field, Schema, Task

USERS, ITEMS, EACH = 40, 30, 8
DOT = Task("watch", "ranking", head="dot")
TOWER = Task("watch", "ranking")
STARS = Task("stars", "regression", label="rating")
DOT_STARS = Task("stars", "regression", label="rating", head="dot")


def taste(name: str) -> float:
    """1 for an even number at the end of an id, else -1."""
    return 1.0 - 2.0 * (int(name[1:]) % 2)


def rows() -> pl.DataFrame:
    """Every user takes ``EACH`` items of one taste, no pair twice."""
    draw = np.random.default_rng(0)
    user = np.repeat(np.arange(USERS), EACH)
    item = np.concatenate([2 * draw.permutation(ITEMS // 2)[:EACH] + u % 2 for u in range(USERS)])
    ids = {"user": [f"u{k:02}" for k in user], "item": [f"i{k:02}" for k in item]}
    return pl.DataFrame(ids | {"time": draw.permutation(len(user)), "rating": draw.integers(1, 6, len(user))})


def bundle(
    folder: Path, *tasks: Task, fields: Sequence[Field] = (), frame: pl.DataFrame | None = None, **design: Any
) -> Bundle:
    """A bundle of the planted model; ``time`` is read where there is a field to read it for."""
    frame = rows() if frame is None else frame
    schema = Schema(tuple(tasks), tuple(fields), user="user", item="item", time="time" if fields else None)
    parts = split(read_dataset(frame, schema, name="planted"), valid=0.0, test=0.0)
    chosen = Design(**{"dim": 4, "tower": (6,)} | design)
    model = make_model(parts.train, chosen)
    draw = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=draw))
    if isinstance(model, MultiTask):
        plant(model, [parts.train.encoder.vocabularies[name].to_list() for name in ("user", "item")])
    history = [{"epoch": 1, "train": {}}]
    run = Run(
        name="planted",
        schema=schema,
        weights=dict.fromkeys(schema.task_names, 1.0),
        config=TrainConfig(),
        design=chosen._asdict(),
        history=history,
        kept=1,
        own={},
        seconds=1.0,
        parameters=sum(p.numel() for p in model.parameters()),
        model=model,
        sources={"train": parts.train},
    )
    return Bundle.load(Bundle.save(folder / "bundle", run))


def plant(model: MultiTask, names: Sequence[Sequence[str]]) -> None:
    """Put the taste into the first number of the embeddings of known ids (of the form letter, number)."""
    if not all(n[0].isalpha() and n[1:].isdigit() for side in names for n in side):
        return
    slots = (model.user_slots, model.item_slots)
    for number in range(len(model.tables)):
        tables = model._tables(number)
        for place, side in zip(slots, names, strict=True):
            first = int(tables.offsets[place.start]) + 1
            values = torch.tensor([2.0 * taste(n) for n in side])
            tables.weight.data[first : first + len(side), 0] += values
