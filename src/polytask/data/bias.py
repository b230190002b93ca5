"""The two biases of every log: a few items hold most rows, and what comes later explains what came before."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from polytask import rng
from polytask.data.table import Dataset

_TEST = 0.1


@dataclass(frozen=True)
class Popularity:
    """Shares of the rows on the most popular 1 % and 10 % of the items seen, and the Gini coefficient of the counts.

    Gini is 0 where all items have equally many rows, and near 1 where one has nearly all.
    """

    top_1: float
    top_10: float
    gini: float

    def __str__(self) -> str:
        shares = f"{100 * self.top_1:.3g} % of the rows on 1 % of the items, {100 * self.top_10:.3g} % on 10 %"
        return f"popularity: {shares}, Gini {self.gini:.3f}"


def popularity(dataset: Dataset) -> Popularity | None:
    """How the rows are spread over the items; None without an item column."""
    if dataset.schema.item is None or not dataset.interactions.height:
        return None
    counts = np.sort(dataset.interactions[dataset.schema.item].value_counts(name="rows")["rows"].to_numpy())[::-1]
    total, items = int(counts.sum()), len(counts)
    top_1, top_10 = (int(counts[: -(-items // part)].sum()) / total for part in (100, 10))
    # G = sum_k (n + 1 - 2 k) c_k / (n sum c) with the counts c in descending order, k = 1..n
    places = np.arange(1, items + 1)
    return Popularity(top_1, top_10, float(((items + 1 - 2 * places) * counts).sum() / (items * total)))


def time_travel(dataset: Dataset) -> float | None:
    """Share of the test rows of a random split (one in ten) for whose user train holds later rows.

    None without user and time columns.
    """
    schema, rows = dataset.schema, dataset.interactions
    if schema.user is None or schema.time is None or rows.height < 2:
        return None
    test = np.zeros(rows.height, dtype=bool)
    test[rng.generator(0, "check").permutation(rows.height)[: max(1, round(_TEST * rows.height))]] = True
    frame = pl.DataFrame({"user": rows[schema.user], "time": rows[schema.time], "test": test})
    last = frame.filter(~pl.col("test")).group_by("user").agg(pl.col("time").max().alias("last"))
    held = frame.filter("test").join(last, on="user", how="left")
    return int((held["last"] > held["time"]).sum()) / held.height
