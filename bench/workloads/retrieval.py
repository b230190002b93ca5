"""Exact top 10 among 100,000 and a million items."""

from case import Aim, Column, Contender, Workload

PEERS = "implicit", "faiss, flat"


def workload(name: str, label: str, users: int, items: int) -> Workload:
    """Top-10 queries among ``items``."""
    size = {"users": users, "items": items, "held_out": 1, "seen": 1}
    aim = Aim(
        f"exact top 10 at {label} items against implicit and faiss flat: queries/s",
        ("polytask",),
        PEERS,
        "queries_per_second",
        "speed",
        2,
        3,
    )
    return Workload(
        name,
        f"Exact top 10 among {items:,} items",
        f"{users:,} queries in one call, vectors of width 32, inner product. The mean score of the ten found shows "
        "that all find the same.",
        "workloads.ranking:make",
        (
            Contender("polytask", "peers.ours:top_ten"),
            Contender("plain PyTorch", "peers.plain:top_ten", "product in blocks of 64 MiB and `topk`"),
            Contender("implicit", "peers.implicit:top_ten", "`recommend` of a model with these factors"),
            Contender("faiss, flat", "peers.faiss:top_ten", "`IndexFlatIP.search`"),
        ),
        (Column("queries_per_second", "queries/s"), Column("score", "mean score", "{:.5f}")),
        {"quick": size | {"users": 64, "items": 20_000}, "standard": size, "full": size},
        (aim,) if items == 100_000 else (),
    )


WORKLOADS = (workload("top10-100k", "100 k", 2000, 100_000), workload("top10-1m", "1 M", 500, 1_000_000))
