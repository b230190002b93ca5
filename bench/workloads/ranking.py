"""Full rankings: all users of A, and exact ranks among 100,000 and a million items."""

from case import Aim, Case, Column, Contender, Found, Workload

WIDTH, HELD_OUT, SEEN = 32, 5, 100  # of a vector; held-out and left-out items of a user


def make(case: Case) -> Found:
    """Save vectors ``users`` [U, 32] and ``items`` [I, 32], and pairs [N, 2] ``held_out`` and ``seen``, all apart."""
    import numpy as np

    draw, (users, items) = np.random.default_rng(0), (int(case.size[n]) for n in ("users", "items"))
    for name, count in (("users", users), ("items", items)):
        np.save(case.folder / f"{name}.npy", draw.standard_normal((count, WIDTH), dtype=np.float32))
    each = case.size.get("held_out", HELD_OUT), case.size.get("seen", SEEN)
    own = np.stack([draw.choice(items, sum(each), replace=False) for _ in range(users)])
    row = np.arange(users)[:, None]
    for name, part in (("held_out", own[:, : each[0]]), ("seen", own[:, each[0] :])):
        pairs = np.stack([np.broadcast_to(row, part.shape), part], axis=2).reshape(-1, 2)
        np.save(case.folder / f"{name}.npy", pairs.astype(np.int64))
    return {"users": users, "items": items}


def workload(name: str, items: str, users: int, size: int, aim: tuple[Aim, ...], *others: Contender) -> Workload:
    """Ranks of ``users`` among ``items``, beside the product that only writes the scores."""
    return Workload(
        name,
        f"Exact ranks among {items} items",
        f"{users:,} users, vectors of width 32, the scores of every item, the average rank of 5 held-out items of each "
        f"user, 100 others left out, and their MRR; seconds for all users.",
        "workloads.ranking:make",
        (
            Contender("polytask", "peers.ours:ranks"),
            Contender("scores alone", "peers.plain:scores", "`torch.mm` that writes the matrix of scores, no ranks"),
            *others,
        ),
        (Column("seconds", "seconds", "{:.4f}"), Column("mrr", "MRR", "{:.7f}")),
        {
            "quick": {"users": min(users, 64), "items": min(size, 20_000)},
            "standard": {"users": users, "items": size},
            "full": {"users": users, "items": size},
        },
        aim,
    )


def _beside_scores(items: str) -> Aim:
    return Aim(
        f"exact ranks at {items} items against the product that writes the scores: share of its time",
        ("polytask",),
        ("scores alone",),
        "seconds",
        "share",
        1.5,
        0.8,
    )


_COUNTED = Contender("plain PyTorch", "peers.plain:counted", "product in blocks, `(scores > target).sum`")
_REFERENCE = Workload(
    "a-rank",
    "A: full ranking of all users",
    "943 users, 1,682 items, vectors of width 32, 5 held-out items of each user, 100 others left out: scores, average "
    "ranks, MRR; seconds for all users. `evaluate` reads a model and a data set's part, and the rest vectors.",
    "workloads.ranking:make",
    (
        Contender("polytask", "peers.ours:ranks"),
        Contender("polytask evaluate", "peers.ours:evaluated", "`pt.evaluate` with the metric mrr, whole call"),
        Contender("SciPy", "peers.plain:scipy_ranks", "`rankdata` user by user"),
        _COUNTED,
        Contender("scores alone", "peers.plain:scores", "no ranks"),
    ),
    (Column("seconds", "seconds", "{:.5f}"), Column("mrr", "MRR", "{:.7f}")),
    {p: {"users": 943, "items": 1682} for p in ("quick", "standard", "full")},
    (
        Aim(
            "A, full MRR of all users against SciPy's rankdata per user",
            ("polytask",),
            ("SciPy",),
            "seconds",
            "time",
            60,
            300,
        ),
    ),
)

WORKLOADS = (
    _REFERENCE,
    workload("ranks-100k", "100,000", 1000, 100_000, (_beside_scores("100 k"),), _COUNTED),
    workload("ranks-1m", "1,000,000", 256, 1_000_000, ()),
)
