"""What in a data set will hurt, each as one sentence with numbers and a remedy."""

import unicodedata
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

import polars as pl

from polytask.data.labels import Label
from polytask.data.table import Dataset

EARLIEST = datetime(1990, 1, 1, tzinfo=UTC).timestamp()
LATEST = datetime(2100, 1, 1, tzinfo=UTC).timestamp()


def hazards(dataset: Dataset, labels: tuple[Label, ...]) -> Iterator[str]:
    """Every warning about ``dataset``; ``labels`` are those of its tasks."""
    schema, rows = dataset.schema, dataset.interactions
    for label in labels:
        yield from _label(label)
    yield from _duplicates(dataset)
    yield from _time(rows, schema.time)
    yield from _fields(dataset)
    if schema.user is not None:
        yield from _users(rows[schema.user])
        yield from _unlisted("user", rows[schema.user], dataset.users)
        yield from _look_alikes("user", rows[schema.user])
    if schema.item is not None:
        yield from _items(rows[schema.item])
        yield from _unlisted("item", rows[schema.item], dataset.items)
        yield from _look_alikes("item", rows[schema.item])


def _label(label: Label) -> Iterator[str]:
    if label.column is None:
        return
    where = f"task '{label.task}': {label.column}"
    if not label.present:
        yield f"{where} has no value in any row, so nothing can be learned; check the column or leave the task out"
        return
    if label.minimum == label.maximum or label.base in (0.0, 1.0):
        yield f"{where} is constant ({label.minimum:g} to {label.maximum:g}, one class): leave the task out"
    elif label.base is not None and not 0.01 <= label.base <= 0.99:
        share = f"{100 * label.base:.3g} %"
        yield f"{where} is positive in {share} of its rows: judge it by AUC and calibration, never by accuracy"
    if label.coverage < 0.5:
        yield (
            f"{where} is missing in {100 * (1 - label.coverage):.3g} % of the rows: the loss is a mean over the rest, "
            "so give larger batches or a larger weight"
        )


def _duplicates(dataset: Dataset) -> Iterator[str]:
    rows = dataset.interactions
    if copies := rows.height - rows.n_unique():
        yield (
            f"{copies:,} of {rows.height:,} rows are exact copies of another: they weigh twice and may stand in train "
            "and test at once; remove them if they are a fault of the log"
        )


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


def _fields(dataset: Dataset) -> Iterator[str]:
    tables = {"user": dataset.users, "item": dataset.items, "context": dataset.interactions}
    for field in dataset.schema.fields:
        table = tables[field.side]
        if table is None or field.kind != "category" or table.height < 2:
            continue
        if table[field.name].n_unique() == table.height:
            yield (
                f"field '{field.name}' has {table.height:,} different values in {table.height:,} rows: each is seen "
                'once, so nothing is learned; bucket it, make it kind = "number", or leave it out'
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
    known = ids.unique().drop_nulls().to_list()
    keys = Counter(_key(i) for i in known)
    if pairs := sorted(i for i in known if keys[_key(i)] > 1):
        shown = ", ".join(ascii(i[:40]) for i in pairs[:4])
        yield (
            f"{len(pairs):,} {side} ids differ only in Unicode form or surrounding blanks, as {shown}; they count as "
            "different, so normalize the column if they are one"
        )


def _key(text: str) -> str:
    return text.strip() if text.isascii() else unicodedata.normalize("NFKC", text).strip()
