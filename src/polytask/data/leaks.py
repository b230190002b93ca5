"""Columns that know the answer: one feature that alone predicts a label nearly perfectly.

Such a column is mostly written after the label (the amount of an order, the reason of a return), so a model that
reads it is excellent on a log and useless in service. Every column is judged alone: the mean label per value is taken
on one half of the rows and read on the other, where it must order the labels; a number may order them itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from polytask import rng
from polytask.data.labels import Floats, values_of
from polytask.data.table import Dataset
from polytask.metrics import metric
from polytask.schema import Field, Schema, Task

THRESHOLD = 0.99
SAMPLE = 100_000  # rows looked at, drawn at random
LEAST = 50  # rows in the judged half, for a verdict
_CLASS = 20  # rows of either class there, for a binary label

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Leak:
    """A field that alone predicts a task: ``measure`` (AUC, or the size of the correlation) over ``rows`` rows."""

    field: str
    task: str
    measure: str
    value: float
    rows: int

    def __str__(self) -> str:
        return (
            f"field '{self.field}' alone predicts task '{self.task}' with {self.measure} {self.value:.4f} on "
            f"{self.rows:,} rows it was not fitted on: if it is known only after the label, leave it out"
        )


@dataclass(frozen=True, eq=False)
class _Column:
    """A field of every row: a code [N] per value, ascending for numbers, missing a value of its own."""

    field: Field
    codes: Ints
    values: Floats | None

    @property
    def size(self) -> int:
        return int(self.codes.max(initial=0)) + 1


def leaks(dataset: Dataset) -> tuple[Leak, ...]:
    """Every field that predicts a task with AUC or correlation of at least ``THRESHOLD``.

    Values seen once say nothing of other rows: a column is judged where at least half of the rows have a value that
    the first half holds twice. A conditional task is judged where its condition held.
    """
    order = rng.generator(0, "check").permutation(dataset.interactions.height)[:SAMPLE]
    sample = dataset.interactions[order]
    labels = {t.name: _label(sample, dataset.schema, t) for t in dataset.schema.tasks if t.column is not None}
    fitted = np.arange(sample.height) < sample.height // 2
    columns = list(_columns(dataset, sample))
    found = (_judged(c, t, labels[t.name], fitted) for t in dataset.schema.tasks if t.name in labels for c in columns)
    return tuple(leak for leak in found if leak is not None and leak.value >= THRESHOLD)


def _label(rows: pl.DataFrame, schema: Schema, task: Task) -> Floats:
    own = values_of(rows, task)
    return own if task.given is None else np.where(values_of(rows, schema.task(task.given)) == 1, own, np.nan)


def _columns(dataset: Dataset, sample: pl.DataFrame) -> Iterator[_Column]:
    tables = {"user": (dataset.schema.user, dataset.users), "item": (dataset.schema.item, dataset.items)}
    for field in dataset.schema.fields:
        ids, table = tables.get(field.side, (None, None))
        if field.kind == "history" or field.name in (dataset.schema.user, dataset.schema.item):
            continue
        values = sample[field.name] if table is None else _joined(sample, str(ids), table, field.name)
        codes = values.rank("dense").fill_null(0).to_numpy().astype(np.int64)
        number = values.fill_null(float("nan")).to_numpy() if field.kind == "number" else None
        yield _Column(field, codes, number)


def _joined(sample: pl.DataFrame, ids: str, table: pl.DataFrame, name: str) -> pl.Series:
    """The column ``name`` of the users or items table, for every row of ``sample``."""
    keys = pl.DataFrame({"id": sample[ids]})
    columns = pl.DataFrame({"id": table[ids], "value": table[name]})
    return keys.join(columns, on="id", how="left", maintain_order="left")["value"]


def _judged(column: _Column, task: Task, label: Floats, fitted: NDArray[np.bool_]) -> Leak | None:
    """The best that ``column`` does for ``task`` on the half that is not ``fitted``, if that can be judged."""
    labeled = ~np.isnan(label)
    train, test = labeled & fitted, labeled & ~fitted
    counts = np.bincount(column.codes[train], minlength=column.size)
    means = np.bincount(column.codes[train], weights=label[train], minlength=column.size) / np.maximum(counts, 1)
    known = test & (counts >= 2)[column.codes]
    found: list[tuple[float, int]] = []
    judge = _correlation if task.kind == "regression" else _auc
    if known.sum() >= max(LEAST, 0.5 * test.sum()):
        found.append((judge(means[column.codes[known]], label[known]), int(known.sum())))
    if column.values is not None:
        if task.kind == "regression":
            test &= ~np.isnan(column.values)
            if test.sum() >= LEAST:
                found.append((_correlation(column.values[test], label[test]), int(test.sum())))
        elif test.sum() >= LEAST:
            found.append((_auc(column.codes[test], label[test]), int(test.sum())))
    if not found:
        return None
    value, rows = max(found)
    return Leak(column.field.name, task.name, "correlation" if task.kind == "regression" else "AUC", value, rows)


def _auc(score: NDArray[np.generic], label: Floats) -> float:
    """Share of (positive, negative) pairs in order, ties half, in the better direction; 0.5 for too few of a class."""
    if min(label.sum(), (1 - label).sum()) < _CLASS:
        return 0.5
    area = float(metric("auc")(torch.from_numpy(score.astype(np.float64)), torch.from_numpy(label)))
    return max(area, 1 - area)


def _correlation(score: Floats, label: Floats) -> float:
    """Size of the larger of Pearson's correlation and Spearman's (of the ranks); 0 where one side is constant."""
    if score.min() == score.max() or label.min() == label.max():
        return 0.0
    ranks = [pl.Series(x).rank().to_numpy() for x in (score, label)]
    return max(abs(float(np.corrcoef(x, y)[0, 1])) for x, y in ((score, label), (ranks[0], ranks[1])))
