"""What the labels of the tasks hold: each alone, every two together, and what in them will hurt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from polytask.schema import Schema, Task

Floats = NDArray[np.float64]
Matrix = tuple[tuple[float | None, ...], ...]

_SAME = 0.99  # labels of a higher correlation are one label twice


@dataclass(frozen=True)
class Label:
    """The label of one task: rows that have it, and its mean, minimum and maximum; ``base`` is the positive share.

    A task without a label column (every row is positive) has the numbers None.
    """

    task: str
    kind: str
    column: str | None
    present: int
    coverage: float
    mean: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    base: float | None = None

    def __str__(self) -> str:
        if self.column is None:
            return f"task {self.task} ({self.kind}): every row is positive"
        text = f"task {self.task} ({self.kind}): {self.column} on {self.present:,} rows ({100 * self.coverage:.3g} %)"
        if self.mean is not None:
            text += f", mean {self.mean:.4g}, {self.minimum:g}..{self.maximum:g}"
        return text if self.base is None else f"{text}, base rate {100 * self.base:.3g} %"


@dataclass(frozen=True)
class Together:
    """Every two of the tasks that have a label column: ``share`` [T, T] of the rows have both labels.

    ``correlation`` [T, T] is Pearson's over those rows (phi where both are binary), None where one is constant.
    """

    tasks: tuple[str, ...]
    share: Matrix
    correlation: Matrix

    def lines(self) -> list[str]:
        """Both tables as text; nothing for fewer than two tasks."""
        if len(self.tasks) < 2:
            return []
        percent = tuple(tuple(None if s is None else 100 * s for s in row) for row in self.share)
        complete = all(share == 1 for row in self.share for share in row)
        return [
            *([] if complete else _table("rows with both labels, %", self.tasks, percent, "z.3g")),
            *_table("correlation of labels", self.tasks, self.correlation, "z.2f"),
        ]


def label_of(rows: pl.DataFrame, task: Task) -> Label:
    """Count the label of ``task`` over ``rows``."""
    if task.column is None:
        return Label(task.name, task.kind, None, rows.height, 1.0)
    present = rows[task.column].drop_nulls()
    coverage = present.len() / max(rows.height, 1)
    if not present.len():
        return Label(task.name, task.kind, task.column, 0, coverage)
    values = present.to_numpy()
    mean, low, high = float(values.mean()), float(values.min()), float(values.max())
    base = mean if task.kind == "binary" else None
    if task.condition is not None:
        base = int(task.condition.holds(present).sum()) / present.len()
    return Label(task.name, task.kind, task.column, present.len(), coverage, mean, low, high, base)


def values_of(rows: pl.DataFrame, task: Task) -> Floats:
    """The label [N] of every row, NaN where it is missing: the value of a regression, else 1 or 0."""
    if task.column is None:
        return np.ones(rows.height)
    values: Floats = rows[task.column].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    if task.condition is not None:
        return np.where(np.isnan(values), np.nan, task.condition.holds(values))
    return np.where(np.isnan(values), np.nan, values > 0) if task.kind == "ranking" else values


def together(rows: pl.DataFrame, tasks: Sequence[Task]) -> Together:
    """Overlap and correlation of the labels of every two of ``tasks``."""
    named = [t for t in tasks if t.column is not None]
    labels = np.stack([values_of(rows, t) for t in named], axis=1) if named else np.zeros((rows.height, 0))
    present = (~np.isnan(labels)).astype(np.float64)
    counts = present.T @ present
    x = np.where(present > 0, labels, 0.0)
    x -= present * (x.sum(axis=0) / np.maximum(present.sum(axis=0), 1.0))  # centered, for the sake of the differences
    sums, squares = x.T @ present, (x * x).T @ present
    # over the rows that have both: r = (n Sxy - Sx Sy) / sqrt((n Sxx - Sx^2) (n Syy - Sy^2))
    spread = counts * squares - sums**2
    flat = spread <= 1e-12 * counts * squares
    scale = np.sqrt(np.where(flat | flat.T, np.inf, spread * spread.T))
    correlation = np.clip((counts * (x.T @ x) - sums * sums.T) / scale, -1.0, 1.0)
    correlation[flat | flat.T] = np.nan
    names = tuple(t.name for t in named)
    return Together(names, _plain(counts / max(rows.height, 1)), _plain(correlation))


def label_hazards(rows: pl.DataFrame, schema: Schema, labels: Sequence[Label], pairs: Together) -> Iterator[str]:
    """Labels that are missing, constant or rare, that never meet or are one, that break what they are given."""
    for label in labels:
        yield from _alone(label)
    present = [label.task for label in labels if label.present]
    yield from _pairs(pairs, schema, present)
    for task in schema.tasks:
        yield from _given(rows, schema, task)
        yield from _by(rows, task)
        yield from _weights(rows, task)


def _alone(label: Label) -> Iterator[str]:
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


def _pairs(pairs: Together, schema: Schema, present: Sequence[str]) -> Iterator[str]:
    for i, first in enumerate(pairs.tasks):
        for j, second in enumerate(pairs.tasks[:i]):
            names = f"tasks '{second}' and '{first}'"
            share, correlation = pairs.share[i][j], pairs.correlation[i][j]
            if share == 0 and first in present and second in present:
                yield (
                    f"{names} have labels in 0 rows together, so no row teaches both and sharing rests on the fields "
                    'alone; compare with share = "separate" before you trust the joint model'
                )
            if correlation is not None and abs(correlation) > _SAME:
                related = schema.task(first).column == schema.task(second).column
                if not related:
                    yield f"{names} are nearly one label (correlation {correlation:.4f}): leave one of them out"


def _given(rows: pl.DataFrame, schema: Schema, task: Task) -> Iterator[str]:
    """A conditional label that holds where its condition did not."""
    if task.given is None:
        return
    own, parent = values_of(rows, task) == 1, values_of(rows, schema.task(task.given))
    without, unknown = int((own & (parent == 0)).sum()), int((own & np.isnan(parent)).sum())
    if without or unknown:
        yield (
            f"task '{task.name}' is given '{task.given}', but {without:,} of its {int(own.sum()):,} positives have "
            f"{task.given} = 0 and {unknown:,} have none: they count as no {task.name}; mend the log, or drop given"
        )


def _by(rows: pl.DataFrame, task: Task) -> Iterator[str]:
    """A column that the loss divides or buckets by must be there, and above 0, where the label is."""
    if task.by is None:
        return
    labeled = rows.filter(~np.isnan(values_of(rows, task)))[task.by]
    missing, low = labeled.null_count(), int((labeled <= 0).sum())
    if missing or low:
        yield (
            f"task '{task.name}': by = '{task.by}' is missing in {missing:,} and 0 or less in {low:,} of the "
            f"{labeled.len():,} rows with a label; fill it, or leave the label of these rows empty"
        )


def _weights(rows: pl.DataFrame, task: Task) -> Iterator[str]:
    if task.row_weight is None:
        return
    weights = rows.filter(~np.isnan(values_of(rows, task)))[task.row_weight].fill_null(0.0).to_numpy()
    where = f"task '{task.name}': row_weight = '{task.row_weight}'"
    if not weights.sum():
        yield f"{where} is 0 in all of its {len(weights):,} rows, so nothing is learned; give weights above 0"
        return
    # Kish's effective sample size (1965): (sum w)^2 / sum w^2
    effective = weights.sum() ** 2 / (weights**2).sum()
    if effective < 0.1 * len(weights):
        yield (
            f"{where} is so uneven that {len(weights):,} rows count like {effective:,.0f}: the metrics are as "
            "uncertain as over so few; cap the weights"
        )


def _plain(values: Floats) -> Matrix:
    return tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in values)


def _table(title: str, names: Sequence[str], values: Matrix, form: str) -> list[str]:
    """Rows and columns of ``values``, formatted as ``form``, under short names, aligned."""
    short = [n if len(n) <= 12 else f"{n[:11]}~" for n in names]
    left, width = max(len(title), 2 + max(map(len, short))), [max(len(n), 6) for n in short]
    lines = ["  ".join([title.ljust(left), *(n.rjust(w) for n, w in zip(short, width, strict=True))])]
    for name, row in zip(short, values, strict=True):
        cells = [("-" if v is None else f"{v:{form}}").rjust(w) for v, w in zip(row, width, strict=True)]
        lines.append("  ".join([f"  {name}".ljust(left), *cells]))
    return lines
