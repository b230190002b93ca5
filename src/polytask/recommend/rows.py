"""Raw rows as a model reads them: ids and columns by name, unknown ids by their features."""

import polars as pl
import torch
from torch import Tensor

from polytask.data.encode import Catalogue, Encoder
from polytask.errors import DataError
from polytask.schema import Field, Side


def indices(encoder: Encoder, frame: pl.DataFrame, side: Side) -> Tensor:
    """Index [N] of the user or item of every row; 0 where it is unknown or there is none."""
    name = encoder.schema.user if side == "user" else encoder.schema.item
    if name is None or name not in frame.columns:
        return torch.zeros(frame.height, dtype=torch.int64)
    return encoder.index(name, _texts(frame, name))


def catalogue(encoder: Encoder, frame: pl.DataFrame, side: Side, index: Tensor) -> Catalogue:
    """Encoded fields [N, S] of users or items ``index`` [N]; of unknown ones by their columns, where there are some."""
    known = encoder.users if side == "user" else encoder.items
    if known is None:
        return Catalogue.empty(frame.height)
    name = encoder.schema.user if side == "user" else encoder.schema.item
    found = Catalogue(known.ids[index], known.numbers[index])
    fields = [f for f in encoder.schema.inputs if f.side == side and f.kind != "history"]
    new = (index == 0).nonzero().flatten()
    if not len(new) or not any(f.name in frame.columns and f.name != name for f in fields):
        return found
    own = encoder.side(_typed(frame[new.numpy()], fields), side)
    return Catalogue(found.ids.index_copy(0, new, own.ids), found.numbers.index_copy(0, new, own.numbers))


def context(encoder: Encoder, frame: pl.DataFrame) -> Catalogue:
    """Encoded context fields [N, C]; unknown where a column is missing."""
    return encoder.side(_typed(frame, [f for f in encoder.schema.inputs if f.side == "context"]), "context")


def further(encoder: Encoder, frame: pl.DataFrame, typical: Tensor | None) -> Tensor | None:
    """Second columns [N, T] of the tasks, those of the frame before the ``typical`` ones [N, T]."""
    tasks = encoder.schema.tasks
    if typical is None or not any(t.by for t in tasks):
        return None
    columns = []
    for number, task in enumerate(tasks):
        own = typical[:, number]
        if task.by and task.by in frame.columns:
            given = torch.from_numpy(_numbers(frame, task.by).fill_null(float("nan")).to_numpy().copy()).float()
            own = torch.where(given.isnan(), own, given)
        columns.append(own)
    return torch.stack(columns, dim=1)


def _typed(frame: pl.DataFrame, fields: list[Field]) -> pl.DataFrame:
    """The columns of ``fields`` in the types the encoder reads; null where a column is missing."""
    found = [pl.Series("", [0] * frame.height)]  # so that the height is known where there is no field
    for one in fields:
        kind = pl.Float64 if one.kind == "number" else pl.String
        if one.kind == "history":
            continue
        if one.name not in frame.columns:
            found.append(pl.Series(one.name, [None] * frame.height, dtype=kind))
        else:
            found.append(_numbers(frame, one.name) if kind == pl.Float64 else _texts(frame, one.name))
    return pl.DataFrame(found)


def _texts(frame: pl.DataFrame, name: str) -> pl.Series:
    column = frame[name]
    if column.dtype.is_float():
        raise DataError(f"column '{name}' holds decimal numbers; ids and categories are text or whole numbers")
    return column.cast(pl.String)


def _numbers(frame: pl.DataFrame, name: str) -> pl.Series:
    column = frame[name]
    found = column.cast(pl.Float64, strict=False)
    if (bad := found.is_null() & column.is_not_null()).any():
        raise DataError(f"column '{name}' of row {bad.arg_max()} is {column.filter(bad)[0]!r}; it must be a number")
    return found
