"""What the label of a task holds: coverage, mean, range and the share of positives."""

from dataclasses import dataclass

import polars as pl

from polytask.schema import Task


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
