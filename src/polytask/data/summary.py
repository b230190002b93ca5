"""What an encoder is fitted on: the values of each column, how often they occur, and the moments of numbers."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import polars as pl
import torch
from torch import Tensor

from polytask.errors import ConfigError
from polytask.schema import Field, Schema

_DENSE = 1 << 24  # whole numbers within such a span are counted in one array


class Summary(Protocol):
    """The columns of some interactions."""

    def values(self, one: Field, least: int = 1) -> pl.Series:
        """The distinct values of a category field that occur at least ``least`` times, in any order."""

    def scale(self, one: Field) -> tuple[float, float]:
        """Mean and standard deviation of a number field."""

    def edges(self, one: Field) -> np.ndarray:
        """Inner edges of the quantile buckets of a number field."""


@dataclass(frozen=True, eq=False)
class Whole:
    """The summary of a table in memory."""

    frame: pl.DataFrame

    def values(self, one: Field, least: int = 1) -> pl.Series:
        """See :class:`Summary`."""
        column = single(self.frame[one.name], one)
        if least == 1:
            return column.unique()
        return _often(column.value_counts(name="rows"), least)

    def scale(self, one: Field) -> tuple[float, float]:
        """See :class:`Summary`."""
        column = scaled(self.frame[one.name], one)
        mean, scale = column.mean(), column.std()
        return float(str(mean or 0.0)), float(str(scale)) if scale else 1.0

    def edges(self, one: Field) -> np.ndarray:
        """See :class:`Summary`; fewer edges where values repeat."""
        known = self.frame[one.name].drop_nulls().to_numpy()
        if not len(known):
            return np.zeros(0)
        return np.unique(np.quantile(known, np.arange(1, one.buckets) / one.buckets))


class Running:
    """The summary of interactions that are never all in memory, added block by block.

    It holds a count for every distinct value. Columns of the users' and items' tables are not among them, but the
    ids are.
    """

    def __init__(self, schema: Schema, owned: set[str]) -> None:
        own = [f for f in schema.inputs if f.side not in owned or f.name in (schema.user, schema.item)]
        if sorted_out := [f.name for f in own if f.scale == "quantile"]:
            raise ConfigError(
                f"field '{sorted_out[0]}': scale = \"quantile\" needs all values at once, which a stream never has; "
                'use scale = "log" or "standard"'
            )
        ids = (schema.user, schema.item)
        self.counts = {f.name: Counts() for f in own if f.kind != "number" and (f.name in ids or not f.buckets)}
        self.moments = {f.name: Moments() for f in own if f.kind == "number"}
        self.fields = {f.name: f for f in own}

    def add(self, frame: pl.DataFrame) -> None:
        """Take in some rows."""
        for name, counts in self.counts.items():
            counts.add(single(frame[name], self.fields[name]))
        for name, moments in self.moments.items():
            moments.add(scaled(frame[name], self.fields[name]).drop_nulls().to_numpy())

    def values(self, one: Field, least: int = 1) -> pl.Series:
        """See :class:`Summary`."""
        return _often(self.counts[one.name].table(), least)

    def scale(self, one: Field) -> tuple[float, float]:
        """See :class:`Summary`."""
        return self.moments[one.name].scale()

    def edges(self, one: Field) -> np.ndarray:
        """Never asked for: such fields were refused."""
        raise NotImplementedError(one.name)


class Counts:
    """How often each value occurs; memory grows with the distinct values alone."""

    def __init__(self) -> None:
        self.first, self.dense = 0, np.zeros(0, dtype=np.int64)  # counts of the numbers from ``first`` on
        self.sparse: list[pl.DataFrame] = []

    def add(self, column: pl.Series) -> None:
        """Count the values of ``column``, of which none is missing."""
        if not column.dtype.is_integer() or not self._reach(column):
            self.sparse.append(_counted(column))
            if len(self.sparse) > 16:
                self.sparse = [_merged(self.sparse)]
            return
        numbers = column.cast(pl.Int64).to_numpy()
        self.dense += np.bincount(numbers - self.first if self.first else numbers, minlength=len(self.dense))

    def table(self) -> pl.DataFrame:
        """Columns ``value`` and ``rows``."""
        found = np.flatnonzero(self.dense)
        own = pl.DataFrame({"value": found + self.first, "rows": self.dense[found]})
        if not self.sparse:
            return own
        return _merged([*self.sparse, *([own] if own.height else [])])

    def _reach(self, column: pl.Series) -> bool:
        """Make the array as long as the values of ``column`` ask; False where it would be too long."""
        if not len(column):
            return True
        low, high = (int(str(end)) for end in (column.min(), column.max()))
        if len(self.dense):
            low, high = min(low, self.first), max(high, self.first + len(self.dense) - 1)
        if high - low >= _DENSE:
            return False
        if high - low + 1 > len(self.dense):
            before, start = self.dense, self.first - low
            self.first, self.dense = low, np.zeros(high - low + 1, dtype=np.int64)
            self.dense[start : start + len(before)] = before
        return True


@dataclass
class Moments:
    """Mean and variance of numbers that come in blocks (Chan et al., 1983)."""

    count: int = 0
    mean: float = 0.0
    squares: float = field(default=0.0)  # sum of squared distances from the mean

    def add(self, values: np.ndarray) -> None:
        """Take in ``values`` [N]."""
        if not len(values):
            return
        mean, total = float(values.mean()), self.count + len(values)
        step = mean - self.mean
        self.squares += float(np.square(values - mean).sum()) + step**2 * self.count * len(values) / total
        self.mean += step * len(values) / total
        self.count = total

    def scale(self) -> tuple[float, float]:
        """Mean and standard deviation (with n - 1), 1 for numbers that do not vary."""
        if self.count < 2:
            return self.mean, 1.0
        return self.mean, float(np.sqrt(self.squares / (self.count - 1))) or 1.0


def single(column: pl.Series, one: Field) -> pl.Series:
    """The values of a category field that are there, those of a bag one by one."""
    return exploded(column, one)[1] if one.kind == "categories" else column.drop_nulls()


def exploded(values: pl.Series, one: Field) -> tuple[Tensor, pl.Series]:
    """The values of every bag [M], and the row each stands in [M]; a value that is there twice counts once."""
    frame = pl.DataFrame({"row": np.arange(len(values)), "value": values.str.split(one.separator)})
    frame = frame.explode("value").filter(pl.col("value").is_not_null() & (pl.col("value") != ""))
    frame = frame.unique(maintain_order=True)
    return torch.from_numpy(frame["row"].to_numpy().copy()), frame["value"]


def scaled(column: pl.Series, one: Field) -> pl.Series:
    """The number before it is standardized: itself, or log(1 + x) with the sign of x kept."""
    if one.scale == "log":
        numbers = column.to_numpy()  # NaN where there is none; NumPy takes a third of polars' time
        return pl.Series(column.name, np.copysign(np.log1p(np.abs(numbers)), numbers), nan_to_null=True)
    return column


def _counted(column: pl.Series) -> pl.DataFrame:
    kind = pl.Int64 if column.dtype.is_integer() else pl.String
    return column.cast(kind).alias("value").value_counts(name="rows").with_columns(pl.col("rows").cast(pl.Int64))


def _merged(tables: list[pl.DataFrame]) -> pl.DataFrame:
    kind = pl.String if any(t["value"].dtype == pl.String for t in tables) else pl.Int64
    every = pl.concat([t.with_columns(pl.col("value").cast(kind)) for t in tables])
    return every.group_by("value").agg(pl.col("rows").sum())


def _often(counts: pl.DataFrame, least: int) -> pl.Series:
    return counts.filter(pl.col("rows") >= least).to_series(0)
