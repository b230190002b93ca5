"""The columns the schema reads: what each holds, and which of them a model cannot learn from as they are."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from polytask.data.summary import exploded
from polytask.data.table import Dataset
from polytask.schema import Field

_SPREAD = 20.0  # a value so many standard deviations from the mean leaves the others no room
_FEW = 20  # fewer values than this are not worth a bucket


@dataclass(frozen=True)
class Column:
    """One column that the schema reads: its table, what it is for, its missing and distinct values."""

    table: str
    name: str
    role: str
    missing: int
    distinct: int

    def __str__(self) -> str:
        return f"column {self.name} ({self.table}, {self.role}): {self.distinct:,} distinct, {self.missing:,} missing"


def columns(dataset: Dataset) -> Iterator[Column]:
    """Every column of the tables that the schema names."""
    roles = _roles(dataset)
    tables = {"interactions": dataset.interactions, "users": dataset.users, "items": dataset.items}
    for table, frame in tables.items():
        for column in frame.get_columns() if frame is not None else ():
            if column.name in roles:
                distinct = column.drop_nulls().n_unique()
                yield Column(table, column.name, ", ".join(roles[column.name]), column.null_count(), distinct)


def _roles(dataset: Dataset) -> dict[str, list[str]]:
    """What each named column is for, all of it."""
    schema = dataset.schema
    named: list[tuple[str | None, str]] = [(schema.user, "user"), (schema.item, "item"), (schema.time, "time")]
    named += [(f.name, str(f.kind)) for f in schema.fields if f.name not in (schema.user, schema.item)]
    for task in schema.tasks:
        own = ((task.column, "label"), (task.by, "by"), (task.row_weight, "row weight"))
        named += [(column, f"{what} of {task.name}") for column, what in own]
    roles: dict[str, list[str]] = {}
    for name, role in named:
        if name is not None:
            roles.setdefault(name, []).append(role)
    return roles


def column_hazards(dataset: Dataset) -> Iterator[str]:
    """Fields that are constant, mostly seen once, longer than what is read of them, or of a heavy tail."""
    tables = {"user": dataset.users, "item": dataset.items, "context": dataset.interactions}
    for field in dataset.schema.fields:
        table = tables[field.side]
        if table is None or field.kind == "history" or field.name not in table.columns or table.height < 2:
            continue
        column = table[field.name]
        if (constant := _constant(field, column)) is not None:
            yield constant
        elif field.kind == "category":
            yield from _category(field, column)
        elif field.kind == "categories":
            yield from _bag(field, column)
        elif field.scale == "standard":
            yield from _number(field, column)


def _constant(field: Field, column: pl.Series) -> str | None:
    known = column.drop_nulls()
    if not known.len():
        return f"field '{field.name}' has no value in any of {column.len():,} rows; check the column or leave it out"
    if known.len() == column.len() and (known == known[0]).all():
        return (
            f"field '{field.name}' is {str(known[0])[:40]!r} in all of {column.len():,} rows: it tells nothing; "
            "leave it out"
        )
    return None


def _category(field: Field, column: pl.Series) -> Iterator[str]:
    if field.buckets or field.min_count > 1:
        return
    counts = column.drop_nulls().value_counts(name="rows")["rows"]
    once = int((counts == 1).sum())
    if once == column.len():
        yield (
            f"field '{field.name}' has {once:,} different values in {column.len():,} rows: each is seen "
            'once, so nothing is learned; bucket it, make it kind = "number", or leave it out'
        )
    elif counts.len() >= _FEW and once > counts.len() / 2:
        other = "row" if field.side == "context" else field.side
        yield (
            f"field '{field.name}': {once:,} of its {counts.len():,} values are seen once, and what is learned of them "
            f"helps no other {other}; set min_count = 2, which keeps {counts.len() - once:,}, or buckets"
        )


def _bag(field: Field, column: pl.Series) -> Iterator[str]:
    joints = column.drop_nulls().str.count_matches(field.separator, literal=True)
    if not (joints >= field.length).any():
        return
    rows, _ = exploded(column.drop_nulls().filter(joints >= field.length), field)
    sizes = np.bincount(rows.numpy())
    long = sizes[sizes > field.length]
    if len(long):
        yield (
            f"field '{field.name}': {len(long):,} of {column.len():,} rows hold more than length = {field.length} "
            f"values, up to {int(long.max()):,}, and the rest is not read; raise length, or put what matters first"
        )


def _number(field: Field, column: pl.Series) -> Iterator[str]:
    stats = pl.DataFrame({"x": column.drop_nulls()}).select(
        mean=pl.col("x").mean(), spread=pl.col("x").std(), low=pl.col("x").min(), high=pl.col("x").max()
    )
    mean, spread, low, high = stats.row(0)
    if not spread:
        return
    furthest = high if high - mean >= mean - low else low
    if abs(furthest - mean) > _SPREAD * spread:
        yield (
            f"field '{field.name}' has a heavy tail: {furthest:.6g} lies {abs(furthest - mean) / spread:.0f} standard "
            f'deviations from the mean {mean:.6g}; set scale = "log", or leave codes for "unknown" empty'
        )
