"""What an exported model is given, row by row: indices of a user and an item, and the columns of the row itself."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from polytask.data.encode import Encoder
from polytask.errors import ConfigError
from polytask.recommend.rows import context, indices
from polytask.schema import Schema

USER, ITEM = "user_index", "item_index"
"""The inputs that every model of users and items has."""


@dataclass(frozen=True, slots=True)
class Given:
    """One input, read from the column ``column`` of raw rows.

    ``index``: places in a vocabulary [B] int64, 0 where unknown. ``bag``: several [B, ``length``], filled up with 0.
    ``number``: the raw value [B] float64, NaN where missing.
    """

    name: str
    column: str
    kind: Literal["index", "bag", "number"]
    length: int = 0

    @property
    def dtype(self) -> str:
        """The type of its elements."""
        return "float64" if self.kind == "number" else "int64"

    def to_dict(self) -> dict[str, Any]:
        """Name, column, type and shape, as plain values."""
        shape = ["batch", self.length] if self.kind == "bag" else ["batch"]
        return {"name": self.name, "column": self.column, "kind": self.kind, "dtype": self.dtype, "shape": shape}


def inputs(schema: Schema) -> tuple[Given, ...]:
    """The inputs of a model of ``schema``, in order: the ids, context fields, and second columns of tasks.

    Fields of the display are none: what they explain is left out after training. A task that bears the name of an
    input is a :class:`ConfigError`.
    """
    ids = [Given(n, c, "index") for n, c in ((USER, schema.user), (ITEM, schema.item)) if c]
    found = {given.name: given for given in [*ids, *_context(schema)]}
    for task in schema.tasks:
        if task.by and task.by not in found:
            found[task.by] = Given(task.by, task.by, "number")
    for name in (*schema.task_names, *(f.name for f in schema.inputs if f.side == "context")):
        if name in (USER, ITEM) or (name in schema.task_names and name in found):
            raise ConfigError(f"export: '{name}' would name two things in the exported file; rename it in the schema")
    return tuple(found.values())


def arrays(encoder: Encoder, given: tuple[Given, ...], frame: pl.DataFrame) -> dict[str, np.ndarray]:
    """Raw rows ``frame`` as inputs by name, as a caller of the exported file makes them; columns may be missing."""
    slots, start = context(encoder, frame).ids.numpy(), 0
    places: dict[str, np.ndarray] = {}
    for field in (i for i in encoder.inputs if i.side == "context"):
        places[field.name] = slots[:, start : start + field.slots]
        start += field.slots
    found: dict[str, np.ndarray] = {}
    for one in given:
        if one.name in (USER, ITEM):
            found[one.name] = indices(encoder, frame, "user" if one.name == USER else "item").numpy()
        elif one.kind == "number":
            found[one.name] = _numbers(frame, one.column)
        else:
            found[one.name] = places[one.name] if one.kind == "bag" else places[one.name][:, 0]
    return found


def unknown(given: tuple[Given, ...], rows: int) -> dict[str, np.ndarray]:
    """Inputs by name of ``rows`` rows of which nothing is known."""
    shapes = {one: (rows, one.length) if one.kind == "bag" else (rows,) for one in given}
    return {one.name: np.full(s, np.nan if one.kind == "number" else 0, one.dtype) for one, s in shapes.items()}


def _context(schema: Schema) -> Iterator[Given]:
    for one in schema.inputs:
        if one.side != "context" or one.kind == "history" or one.name in schema.bias_fields:
            continue
        if one.kind == "categories":
            yield Given(one.name, one.name, "bag", one.length)
        else:
            yield Given(one.name, one.name, "number" if one.kind == "number" else "index")


def _numbers(frame: pl.DataFrame, name: str) -> np.ndarray:
    if name not in frame.columns:
        return np.full(frame.height, np.nan)
    return frame[name].cast(pl.Float64).fill_null(float("nan")).to_numpy(writable=True)
