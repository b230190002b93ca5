"""What in a data set will hurt, each as one sentence with numbers and a remedy."""

import unicodedata
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

import polars as pl

from polytask.data.bias import Popularity
from polytask.data.columns import column_hazards
from polytask.data.labels import values_of
from polytask.data.table import Dataset
from polytask.schema import Task

EARLIEST = datetime(1990, 1, 1, tzinfo=UTC).timestamp()
LATEST = datetime(2100, 1, 1, tzinfo=UTC).timestamp()
_CROWDED = 0.8  # share of the rows on a tenth of the items, above which popularity alone ranks well


def hazards(dataset: Dataset, copies: int, popularity: Popularity | None) -> Iterator[str]:
    """Every warning about the rows and columns of ``dataset``, labels and leaks aside; ``copies`` rows repeat."""
    schema, rows = dataset.schema, dataset.interactions
    if copies:
        yield (
            f"{copies:,} of {rows.height:,} rows are exact copies of another: they weigh twice and may stand in train "
            "and test at once; remove them if they are a fault of the log"
        )
    yield from _contradictions(dataset)
    yield from _time(rows, schema.time)
    yield from column_hazards(dataset)
    if schema.user is not None:
        yield from _users(rows[schema.user])
        yield from _unlisted("user", rows[schema.user], dataset.users)
        yield from _look_alikes("user", rows[schema.user])
    if schema.item is not None:
        yield from _items(rows[schema.item])
        yield from _crowded(popularity)
        yield from _unlisted("item", rows[schema.item], dataset.items)
        yield from _look_alikes("item", rows[schema.item])


def copies(rows: pl.DataFrame) -> int:
    """How many of ``rows`` repeat an earlier one exactly."""
    alike = rows.filter(rows.hash_rows().is_duplicated())  # few, and only these are compared
    return alike.height - alike.n_unique() if alike.height else 0


def _contradictions(dataset: Dataset) -> Iterator[str]:
    """Repeated (user, item) pairs whose labels differ."""
    schema, rows = dataset.schema, dataset.interactions
    tasks = [t for t in schema.tasks if t.column is not None]
    if schema.user is None or schema.item is None or not tasks:
        return
    frame = pl.DataFrame({"user": rows[schema.user], "item": rows[schema.item]})
    frame = frame.with_columns(_label(rows, t, n) for n, t in enumerate(tasks))
    repeated = frame.filter(pl.struct("user", "item").is_duplicated())
    if not repeated.height:
        return
    names = [f"label{n}" for n in range(len(tasks))]
    differ = [(pl.col(n).min() != pl.col(n).max()).fill_null(False).alias(n) for n in names]
    pairs = repeated.group_by("user", "item").agg(differ)
    counts = {t.name: int(pairs[n].sum()) for n, t in zip(names, tasks, strict=True)}
    if any(counts.values()):
        shown = ", ".join(f"{task} in {count:,}" for task, count in counts.items() if count)
        yield (
            f"of {pairs.height:,} repeated (user, item) pairs the labels differ, {shown}: no model of user and item "
            "alone can fit them; keep the last row or their mean, or add a feature that tells the rows apart"
        )


def _label(rows: pl.DataFrame, task: Task, number: int) -> pl.Series:
    return pl.Series(f"label{number}", values_of(rows, task)).fill_nan(None)


def _time(rows: pl.DataFrame, time: str | None) -> Iterator[str]:
    if time is None:
        yield 'no time column: a temporal split is impossible; set time = "column" if there is one'
        return
    outside = rows.filter(~pl.col(time).is_between(EARLIEST, LATEST))[time]
    if outside.len():
        first = outside[0]
        unit = " (it would fit as milliseconds: divide by 1,000)" if EARLIEST <= first / 1000 <= LATEST else ""
        yield (
            f"{outside.len():,} of {rows.height:,} times in {time} lie outside 1990..2100, the first is {first:.15g}"
            f"{unit}; times are seconds since 1970, so convert or remove them"
        )


def _users(ids: pl.Series) -> Iterator[str]:
    counts = ids.value_counts(name="rows")["rows"]
    if few := int((counts < 3).sum()):
        yield (
            f"{few:,} of {counts.len():,} users have fewer than 3 rows and cannot be in train, valid and test at once; "
            "filter them, or split by rows at random"
        )


def _items(ids: pl.Series) -> Iterator[str]:
    counts = ids.value_counts(sort=True, name="rows")
    if once := int((counts["rows"] == 1).sum()):
        yield (
            f"{once:,} of {counts.height:,} items are seen once, so one in test was never in train; filter them, or "
            "give item fields to learn from"
        )
    name, most = counts.row(0)
    if most > 0.05 * ids.len() and counts.height > 1:
        yield (
            f"item {name!r} has {most:,} of {ids.len():,} rows ({100 * most / ids.len():.3g} %): popularity alone will "
            "look good; compare with a popularity baseline"
        )


def _crowded(popularity: Popularity | None) -> Iterator[str]:
    if popularity is not None and popularity.top_10 > _CROWDED:
        yield (
            f"{100 * popularity.top_10:.3g} % of the rows are on 10 % of the items (Gini {popularity.gini:.3f}): "
            'popularity alone ranks well, so compare with it, and try negatives = "popularity"'
        )


def _unlisted(side: str, ids: pl.Series, table: pl.DataFrame | None) -> Iterator[str]:
    if table is None:
        return
    if missing := int((~ids.is_in(table[ids.name].implode())).sum()):
        yield (
            f"{missing:,} of {ids.len():,} rows have a {side} that is not in the {side}s table, so it is unknown and "
            f"has no fields; complete the table"
        )


def _look_alikes(side: str, ids: pl.Series) -> Iterator[str]:
    """Ids that differ only in Unicode normalization or surrounding blanks stay distinct, but are rarely meant to."""
    known = ids.unique().drop_nulls()
    odd = known.filter(known.str.contains(r"[^\x00-\x7F]") | (known.str.strip_chars() != known))
    if not odd.len():
        return
    keys = Counter(map(_key, odd.to_list()))
    plain = known.filter(known.is_in(list(keys)) & ~known.is_in(odd.implode()))
    keys.update(plain.to_list())
    if pairs := sorted(i for i in [*odd.to_list(), *plain.to_list()] if keys[_key(i)] > 1):
        shown = ", ".join(ascii(i[:40]) for i in pairs[:4])
        yield (
            f"{len(pairs):,} {side} ids differ only in Unicode form or surrounding blanks, as {shown}; they count as "
            "different, so normalize the column if they are one"
        )


def _key(text: str) -> str:
    return text.strip() if text.isascii() else unicodedata.normalize("NFKC", text).strip()
