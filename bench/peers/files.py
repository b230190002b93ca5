"""Readers of Parquet: rows into tensors, nothing more."""

from collections.abc import Iterable

import torch
from case import Case, Found
from timing import Memory, stopwatch

BATCH = 4096


def _measured(batches: Iterable[dict[str, torch.Tensor]], rows: int) -> Found:
    memory = Memory()
    with stopwatch() as seconds:
        first = seen = 0.0
        for batch in batches:
            first = first or seconds()
            seen += len(next(iter(batch.values())))
        found = {"first_batch": first, "all_rows": seconds()}
    assert seen == rows
    return found | {"added_memory": memory.over(10**9)["added_memory"]}


def polars_batches(case: Case) -> Found:
    """polars' ``collect_batches``."""
    import polars as pl

    (rows,) = case.size["rows"]
    frames = pl.scan_parquet(case.folder / f"rows{rows}.parquet").collect_batches(chunk_size=BATCH)
    return _measured(({c.name: torch.from_numpy(c.to_numpy(writable=True)) for c in f} for f in frames), rows)


def pyarrow_batches(case: Case) -> Found:
    """pyarrow's ``iter_batches``."""
    import pyarrow.parquet as pq

    (rows,) = case.size["rows"]
    batches = pq.ParquetFile(case.folder / f"rows{rows}.parquet").iter_batches(BATCH)
    tables = (zip(b.schema.names, b.columns, strict=True) for b in batches)
    return _measured(({n: torch.from_numpy(c.to_numpy().copy()) for n, c in table} for table in tables), rows)
