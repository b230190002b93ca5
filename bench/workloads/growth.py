"""How the time of an epoch grows with rows, tasks and experts."""

from case import Aim, Column, Contender, Workload

ROWS = {
    "quick": [200_000, 1_000_000],
    "standard": [1_000_000, 10_000_000],
    "full": [1_000_000, 10_000_000, 100_000_000],
}
SHAPE = {"fields": 20, "largest": 100_000, "dim": 16, "batch": 4096, "train": 307_200, "test": 20_000}
QUICK = SHAPE | {"largest": 5_000, "batch": 512, "train": 62_000, "test": 2_000}


def _rows() -> Workload:
    every = sorted({n for rows in ROWS.values() for n in rows})
    contenders = tuple(
        Contender(
            f"{rows:,} rows",
            "peers.stream:grown",
            options={"rows": rows, "epochs": 2 if rows < 10**8 else 1},
            profiles=tuple(p for p, own in ROWS.items() if rows in own),
        )
        for rows in every
    )

    def aim(rows: int) -> Aim:
        label = f"epoch time against rows: seconds per million of {rows:,} rows over that of a million"
        return Aim(label, (f"{rows:,} rows",), ("1,000,000 rows",), "seconds_per_million", "share", 1.1, 1.1)

    return Workload(
        "growth-rows",
        "Cost growth: rows, streamed from Parquet",
        "Shared bottom [64] with two binary towers [32] on user, item, hour, device (width 16) and a price, batches of "
        "4,096; seconds of training, reading included, without the pass that fits the encoder; memory that training "
        "adds, as a multiple of the tables.",
        "workloads.loading:make",
        contenders,
        (
            Column("seconds_per_million", "seconds per million rows", "{:.2f}"),
            Column("epoch", "seconds per epoch", "{:.1f}"),
            Column("fitted", "encoder fitted, s", "{:.1f}"),
            Column("added_memory", "added memory", "{:.2f}"),
        ),
        {profile: {"rows": rows, "batch": 4096} for profile, rows in ROWS.items()},
        (aim(10_000_000), aim(100_000_000)),
        {"quick": 1, "standard": 1, "full": 1},
    )


def _model(name: str, title: str, text: str, tasks: int, options: list[dict[str, int]]) -> Workload:
    contenders = tuple(
        Contender(
            ", ".join(f"{v} {k}" for k, v in given.items()),
            "peers.ours:industrial",
            options={"body": "mmoe", "train": {"probes": False}} | given,
        )
        for given in options
    )
    rounds = {"quick": 1, "standard": 1, "full": 4}
    columns = (Column("samples_per_second", "samples/s"),)
    sizes = {"quick": QUICK | {"tasks": tasks}, "standard": SHAPE | {"tasks": tasks}, "full": SHAPE | {"tasks": tasks}}
    return Workload(name, title, text, "workloads.industrial:make", contenders, columns, sizes, (), rounds)


WORKLOADS = (
    _rows(),
    _model(
        "growth-tasks",
        "Cost growth: tasks",
        "MMoE with 8 experts [256, 128] as in B, tables of 260,000 rows in all, towers [64] for 2, 8 or 32 tasks.",
        32,
        [{"tasks": n} for n in (2, 8, 32)],
    ),
    _model(
        "growth-experts",
        "Cost growth: experts",
        "The same with 4 tasks and 4, 8 and 32 experts.",
        4,
        [{"experts": n} for n in (4, 8, 32)],
    ),
)
