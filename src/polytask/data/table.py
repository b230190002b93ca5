"""The three tables of a data set, read against its schema: ids exact, bad rows counted, errors in one line."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from polytask.data.convert import check_sides, convert_interactions, convert_side, placed
from polytask.data.source import Source, open_table
from polytask.data.text import Raw
from polytask.data.text import Reject as Reject
from polytask.errors import DataError
from polytask.schema import Schema

_LIMIT = 0.01


@dataclass(frozen=True)
class Rejects:
    """Rows of the interactions read and accepted, and the first 1,000 that were not: read = accepted + count."""

    read: int
    accepted: int
    rows: tuple[Reject, ...] = ()

    @property
    def count(self) -> int:
        """Number of rejected rows."""
        return self.read - self.accepted


@dataclass(frozen=True, eq=False)
class Dataset:
    """Interactions, and users and items where they are known, in the types the schema asks for.

    Ids and categories are strings, exactly as they were read (null: unknown), or still whole numbers where a column
    of the interactions holds such; numbers, labels and times (seconds) are Float64 (null: missing). ``users`` and
    ``items`` start with the id; columns that are no field stay strings.
    ``official`` [N] bool marks the rows of the official test part, where the publisher made one.
    """

    name: str
    schema: Schema
    interactions: pl.DataFrame
    users: pl.DataFrame | None
    items: pl.DataFrame | None
    rejects: Rejects
    official: np.ndarray | None = None

    def __post_init__(self) -> None:
        flags = self.official
        if flags is not None and (flags.dtype != np.bool_ or flags.shape != (self.interactions.height,)):
            raise DataError(
                f"{self.name}: official has {flags.size:,} values of type {flags.dtype}; give one bool for each of the "
                f"{self.interactions.height:,} rows, or None"
            )

    def as_text(self) -> "Dataset":
        """The same data with every id and category as text."""
        return replace(self, interactions=self.interactions.with_columns(pl.selectors.integer().cast(pl.String)))

    def fingerprint(self) -> str:
        """SHA-256 (64 hexadecimal digits) of the tables' column names and values, in order, and of ``official``."""
        digest = hashlib.sha256()
        rows = self.as_text().interactions
        for role, table in (("interactions", rows), ("users", self.users), ("items", self.items)):
            for column in [] if table is None else table.get_columns():
                missing = column.is_null().to_numpy().tobytes()
                parts = [f"{role}\0{column.name}\0{column.dtype}".encode(), missing, *_content(column)]
                for part in parts:
                    digest.update(len(part).to_bytes(8, "little") + part)
        if self.official is not None:
            digest.update(b"official\0" + self.official.tobytes())
        return digest.hexdigest()


def read_dataset(
    interactions: Source,
    schema: Schema,
    *,
    users: Source | None = None,
    items: Source | None = None,
    name: str = "",
    separator: str | None = None,
    columns: list[str] | None = None,
) -> Dataset:
    """Read the tables and check them against ``schema``.

    A table is a path (CSV or TSV, also ``.gz``; Parquet; a folder of Parquet), a polars frame or a pandas frame.
    A context field that stands in the users or items table alone is that side's. ``separator`` and ``columns``
    (names, for a file without header) are those of the interactions file. Rows with an empty id, a value that is
    no number, or a label outside its range are left out and recorded; more than 1 %
    of them, or any in the users and items tables, is a :class:`DataError`.
    """
    return build(
        open_table(interactions, "interactions", separator, columns),
        schema,
        users=None if users is None else open_table(users, "users"),
        items=None if items is None else open_table(items, "items"),
        name=name,
    )


def build(raw: Raw, schema: Schema, *, users: Raw | None, items: Raw | None, name: str) -> Dataset:
    """The data set of tables that were read already."""
    schema = placed(schema, raw, users, items)
    check_sides(raw, schema, users, items)
    frame, bad = convert_interactions(raw, schema)
    kept = frame.filter(~bad.mask) if bad.count else frame
    read = frame.height + raw.ragged_count
    rejects = judged(Rejects(read, kept.height, bad.rows(raw)))
    if not read:
        raise DataError(f"{raw.source} is empty: it has no rows after the header")
    sides = convert_side(users, schema, "user"), convert_side(items, schema, "item")
    return Dataset(name or raw.source, schema, kept, sides[0], sides[1], rejects)


def judged(rejects: Rejects) -> Rejects:
    """``rejects`` themselves; a :class:`DataError` where they are more than 1 %."""
    if rejects.count > _LIMIT * rejects.read:
        share = 100 * rejects.count / rejects.read
        count = f"{rejects.count:,} of {rejects.read:,} rows rejected, {share:.3g} %: over 1 %"
        raise DataError(f"{rejects.rows[0]} ({count})")
    return rejects


def with_schema(data: Dataset, schema: Schema) -> Dataset:
    """The tables of ``data`` for another ``schema``, whose columns are converted; what does not fit is an error."""
    raw, users, items = (
        None if frame is None else Raw(f"{data.name}{role}", frame, np.arange(1, frame.height + 1), "row")
        for role, frame in (("", data.interactions), (" users", data.users), (" items", data.items))
    )
    assert raw is not None
    schema = placed(schema, raw, users, items)
    check_sides(raw, schema, users, items)
    frame, bad = convert_interactions(raw, schema)
    if bad.count:
        raise DataError(f"{bad.rows(raw)[0]} ({bad.count:,} such rows)")
    sides = convert_side(users, schema, "user"), convert_side(items, schema, "item")
    rows = data.interactions.with_columns(frame.get_columns())
    return replace(data, schema=schema, interactions=rows, users=sides[0], items=sides[1])


def _content(column: pl.Series) -> list[bytes]:
    """The values of one column as bytes: numbers as they are, strings with their lengths."""
    if column.dtype == pl.String:
        text = column.fill_null("")
        return [text.str.len_bytes().to_numpy().astype("<i8").tobytes(), text.str.join("").item().encode()]
    return [column.cast(pl.Float64).fill_null(0.0).to_numpy().astype("<f8").tobytes()]
