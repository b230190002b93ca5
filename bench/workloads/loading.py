"""Reading: a Parquet file of 20 million rows, the first batch and all of them."""

from case import Aim, Case, Column, Contender, Found, Workload

USERS, ITEMS, PIECE, GROUP = 1_000_000, 100_000, 1_000_000, 262_144
STREAMED = "polytask, streamed"


def make(case: Case) -> Found:
    """Write ``rows{N}.parquet`` for each N of ``rows``; a larger file starts as a smaller one."""
    import pyarrow.parquet as pq

    found: Found = {}
    for rows in case.size["rows"]:
        path, first = case.folder / f"rows{rows}.parquet", piece(0, 1)
        with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
            for start in range(0, rows, PIECE):
                writer.write_table(piece(start // PIECE, min(PIECE, rows - start)), row_group_size=GROUP)
        found[f"megabytes of {rows:,} rows"] = round(path.stat().st_size / 1e6)
    return found


def piece(number: int, rows: int):  # type: ignore[no-untyped-def]
    """Rows of a log: user, item, hour, device, price, click and like."""
    import numpy as np
    import pyarrow as pa

    draw = np.random.default_rng([0, number])
    user = (USERS * draw.random(PIECE) ** 2).astype(np.int64)
    item = (ITEMS * draw.random(PIECE) ** 3).astype(np.int64)
    hour, device = draw.integers(0, 24, PIECE), draw.integers(0, 500, PIECE)
    price = np.exp(draw.standard_normal(PIECE))
    logit = np.sin(user) + np.cos(item) + 0.3 * np.sin(device) - 1.5
    click = (draw.random(PIECE) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    like = (draw.random(PIECE) < 0.3 * click + 0.02).astype(np.int64)
    columns = {"user": user, "item": item, "hour": hour, "device": device, "price": price, "click": click, "like": like}
    return pa.table({name: values[:rows] for name, values in columns.items()})


WORKLOAD = Workload(
    "load",
    "Reading 20 million rows",
    "A Parquet file (zstd, row groups of 262,144) of seven columns, some 450 MB: seconds to the first batch of 4,096 "
    "encoded rows, and until all rows have been in a batch; the memory that adds, in GB.",
    "workloads.loading:make",
    (
        Contender(STREAMED, "peers.stream:load", "one pass fits the encoder, the next shuffles, encodes and batches"),
        Contender(
            "polytask, in memory",
            "peers.stream:load",
            "`read_dataset`, `split`; shuffled over all rows",
            {"whole": True},
        ),
        Contender("polars", "peers.files:polars_batches", "streamed into tensors; nothing encoded or shuffled"),
        Contender("pyarrow", "peers.files:pyarrow_batches", "`iter_batches` into tensors; nothing encoded or shuffled"),
    ),
    (
        Column("first_batch", "first batch, s", "{:.2f}"),
        Column("all_rows", "all rows, s", "{:.2f}"),
        Column("added_memory", "added memory, GB", "{:.2f}"),
    ),
    {"quick": {"rows": [1_000_000]}, "standard": {"rows": [20_000_000]}, "full": {"rows": [20_000_000]}},
    (Aim("first batch of a 20 M-row file", (STREAMED,), (), "first_batch", "value", 2, 2, unit=" s"),),
)
