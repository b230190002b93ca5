"""Columns named in a word to fields and tasks: the kind of each is read off its values."""

from collections.abc import Sequence

import polars as pl

from polytask.errors import DataError, did_you_mean
from polytask.schema import Field, FieldKind, Schema, Task

_FEW = 20  # a number of at most so many values is a code or a grade, and each value is told apart


def inferred(names: Sequence[str], *tables: pl.DataFrame | None) -> tuple[Field, ...]:
    """A field for each column of ``names``, by the first of ``tables`` that has it.

    Numbers of more than 20 distinct values are ``number``, also where they are written as text; all else is
    ``category``, and so are codes with leading zeros. A name that is in no table is a :class:`DataError`.
    """
    return tuple(Field(name, kind_of(_column(name, tables))) for name in names)


def _column(name: str, tables: Sequence[pl.DataFrame | None]) -> pl.Series:
    frames = [frame for frame in tables if frame is not None]
    for frame in frames:
        if name in frame.columns:
            return frame[name]
    raise DataError("features: " + did_you_mean("column", name, {c for frame in frames for c in frame.columns}))


def kind_of(column: pl.Series) -> FieldKind:
    """The kind of field that the values of ``column`` make."""
    if column.dtype.is_float() or column.dtype.is_decimal():
        return "number"  # whose values cannot be told apart by name: 7 would become "7.0"
    values = column.drop_nulls().unique()
    if column.dtype == pl.String:
        values = values.str.strip_chars().unique()
        values = values.filter(values != "")
        coded = values.str.contains(r"^-?0\d").any()
        if coded or values.cast(pl.Float64, strict=False).null_count():
            return "category"
    elif not column.dtype.is_integer():
        return "category"
    return "number" if values.len() > _FEW else "category"


def plain_schema(frame: pl.DataFrame, user: str, item: str, time: str | None, labels: Sequence[str]) -> Schema:
    """A schema for a table that has none: which items belong to a user, each label, and all else as features.

    A label is binary where it is 0 or 1 throughout. Columns of dates, lists and the like are not read.
    """
    tasks = [Task("interaction", "ranking", head="dot")]
    tasks += [Task(c, "binary" if _is_binary(frame, c) else "regression", label=c) for c in labels]
    rest = [c for c in frame.columns if c not in (user, item, time, *labels) and _is_plain(frame[c].dtype)]
    return Schema(tuple(tasks), inferred(rest, frame), user=user, item=item, time=time)


def _is_plain(kind: pl.DataType) -> bool:
    return kind.is_numeric() or kind in (pl.String, pl.Boolean, pl.Categorical, pl.Enum, pl.Null)


def _is_binary(frame: pl.DataFrame, name: str) -> bool:
    if name not in frame.columns or not _is_plain(frame[name].dtype):
        return False
    column = frame[name].drop_nulls().unique()
    if column.dtype == pl.String:
        column = column.str.strip_chars()
        column = column.filter(column != "")
    return set(column.cast(pl.Float64, strict=False).to_list()) == {0.0, 1.0}
