"""Rows that a loader refuses, values that it restates, and several files as one data set."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import polars as pl

from polytask.data.table import Dataset, Rejects
from polytask.data.text import KEPT, Raw, Reject

_BEIJING = 8 * 3600


def refuse(raw: Raw, mask: pl.Series, column: str, reason: str) -> Raw:
    """``raw`` without the rows of ``mask`` [N] bool, recorded as rejected: ``column``, its value, ``reason``."""
    mask = mask.fill_null(False)
    found = [_reject(raw, row, column, reason) for row in mask.arg_true().head(KEPT).to_list()]
    return replace(
        raw,
        frame=raw.frame.filter(~mask),
        lines=raw.lines[~mask.to_numpy()],
        ragged=tuple(sorted((*raw.ragged, *found), key=lambda reject: reject.line)[:KEPT]),
        ragged_count=raw.ragged_count + int(mask.sum()),
    )


def joined(parts: Sequence[Dataset], name: str, official: Sequence[bool] | None = None) -> Dataset:
    """One data set of the rows of ``parts``, which share a schema; ``official`` says which are the official test."""
    rejects = Rejects(
        sum(p.rejects.read for p in parts),
        sum(p.rejects.accepted for p in parts),
        tuple(chain.from_iterable(p.rejects.rows for p in parts))[:KEPT],
    )
    heights = [p.interactions.height for p in parts]
    return replace(
        parts[0],
        name=name,
        interactions=pl.concat([p.interactions for p in parts]),
        rejects=rejects,
        official=None if official is None else np.repeat(np.array(official, bool), heights),
    )


def seconds(milliseconds: str) -> pl.Expr:
    """The text column ``milliseconds`` in seconds; what is no number stays as it is, to be rejected."""
    number = pl.col(milliseconds).str.strip_chars().cast(pl.Float64, strict=False) / 1000
    return pl.coalesce(number.cast(pl.String), pl.col(milliseconds))


def hour(time: pl.Expr) -> pl.Expr:
    """Hour of the day in Beijing, "0" to "23", of the ``time`` in seconds as text; null where it is no number."""
    number = time.str.strip_chars().cast(pl.Float64, strict=False)
    return ((number + _BEIJING) // 3600 % 24).cast(pl.Int64, strict=False).cast(pl.String)


def _reject(raw: Raw, row: int, column: str, reason: str) -> Reject:
    value = str(raw.frame[column][row])[:60]
    return Reject(raw.source, int(raw.lines[row]), column, value, f"{column} {value} {reason}", raw.unit)
