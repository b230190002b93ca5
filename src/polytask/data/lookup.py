"""Whole numbers that stand for something, looked up in a vocabulary of text without becoming text themselves."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl

_SPARSE = 16  # a table may have so many places per value that is known


def is_whole(kind: pl.DataType) -> bool:
    """Whether values of this type are kept as whole numbers; larger ones than an Int64 holds become text."""
    return kind.is_integer() and kind not in (pl.UInt64, pl.Int128, pl.UInt128)


@dataclass(frozen=True, eq=False)
class Lookup:
    """Where a number stands in a vocabulary: ``table`` [span + 2] int32 holds the place of ``first`` + n at n + 1.

    Both ends of the table, and what is unknown, are 0. Without a table the numbers lie too far apart for one:
    ``known`` are those that are known, sorted, and ``places`` theirs.
    """

    first: int
    table: np.ndarray | None
    known: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, vocabulary: pl.Series) -> Self:
        """The i-th value of ``vocabulary`` has place i + 1; "07" is another value than the number 7."""
        numbers = vocabulary.cast(pl.Int64, strict=False)
        plain = (numbers.cast(pl.String) == vocabulary).fill_null(False).to_numpy()
        values, places = numbers.fill_null(0).to_numpy()[plain], np.flatnonzero(plain) + 1
        order = np.argsort(values)
        known, places = values[order], places[order]
        first = int(known[0]) if len(known) else 0
        span = int(known[-1]) - first + 1 if len(known) else 0
        if span > _SPARSE * len(known) + (1 << 16):
            return cls(first, None, known, places)
        table = np.zeros(span + 2, dtype=np.int32)
        table[known - first + 1] = places
        return cls(first, table, known, places)

    def places_of(self, values: pl.Series) -> np.ndarray:
        """The place [N] int64 of each of ``values``, whole numbers; 0 where it is unknown or missing."""
        numbers = values.fill_null(0).cast(pl.Int64).to_numpy()
        if self.table is not None:
            # what lies outside is clipped to an end, where 0 stands
            found = np.take(self.table, numbers - self.first + 1, mode="clip").astype(np.int64)
        else:
            at = np.minimum(np.searchsorted(self.known, numbers), len(self.known) - 1)
            found = np.where(self.known[at] == numbers, self.places[at], 0)
        if values.null_count():
            found[values.is_null().to_numpy()] = 0
        return found
