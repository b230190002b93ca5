"""Users or items by what somebody types: part of an id, or of a text in their table."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl

from polytask.errors import ConfigError
from polytask.recommend.query import check_text

MOST = 100
"""The most rows of one answer."""
_LONGEST = 200  # letters: a longer text takes polars seconds to make a pattern of
_BETWEEN = "\x1f"  # no text holds it that anybody types


@dataclass(frozen=True, eq=False)
class Finder:
    """The rows of a side, those first that are to be shown first; lower-cased once, as they are asked for often.

    ``ids`` and ``texts`` are Strings [N] in small letters, ``texts`` all texts of a row side by side.
    """

    table: pl.DataFrame
    ids: pl.Series
    texts: pl.Series

    @classmethod
    def of(cls, ids: pl.Series, table: pl.DataFrame | None, popularity: np.ndarray | None) -> Self:
        """Rows of the known ``ids`` [N] with the columns of a ``table``, by ``popularity`` [N] or as they stand."""
        rows = ids.to_frame()
        if table is not None:
            rest = pl.exclude(ids.name)
            rows = rows.join(table.select(ids.name, rest), on=ids.name, how="left", maintain_order="left")
        if popularity is not None:
            rows = rows[np.argsort(-popularity, kind="stable")]
        texts = [pl.col(n).str.to_lowercase() for n, kind in rows.schema.items() if kind == pl.String]
        found = rows.select(ids=texts[0], texts=pl.concat_str(texts, separator=_BETWEEN, ignore_nulls=True))
        return cls(rows, found["ids"], found["texts"])

    def find(self, text: str, limit: int) -> pl.DataFrame:
        """At most ``limit`` rows: the id itself first, then ids that start so, then all that hold ``text`` anywhere.

        Small and capital letters are the same; an empty text finds the first rows, one of over 200 letters only ids
        that start with it.
        """
        check_text("search", text)
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MOST:
            raise ConfigError(f"limit = {limit} must be a whole number from 1 to {MOST}")
        if not text:
            return self.table.head(limit)
        wanted = str(pl.Series([text]).str.to_lowercase()[0])
        if len(wanted) > _LONGEST:
            places = self.ids.str.starts_with(wanted).arg_true()
        else:
            places = self.texts.str.contains(wanted, literal=True).arg_true()
        ids, own = self.ids.gather(places), self.table.to_series(0).gather(places)
        better = [own == text, ids == wanted, ids.str.starts_with(wanted)]
        later = np.select([b.to_numpy() for b in better], [0, 1, 2], default=3)
        return self.table[places.to_numpy()[np.argsort(later, kind="stable")[:limit]]]
