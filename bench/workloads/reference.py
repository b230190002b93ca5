"""A: the course exercise, one model: a dot product that ranks, a small network that rates."""

from dataclasses import replace

from case import Aim, Case, Column, Contender, Found, Workload

LEARNED = (Column("mse", "test MSE", "{:.4f}"), Column("mrr", "test MRR", "{:.4f}"))
OTHER_TASK = (
    "no ranking task to be had: the shared bottom [64] reads [u; q], its tasks are rating >= 4 and the rating of the "
    "same rows, no negatives"
)


def make(case: Case) -> Found:
    """Save ``train`` [N, 3] and ``test`` [M, 3]: user, item, rating; users and items count from 0."""
    import numpy as np

    import polytask as pt

    data = dataset(**case.size.get("shape", {}))
    part = pt.split(data, "exercise", valid=0.0, test=0.05, seed=0)
    users, items = part.train.encoder.users, part.train.encoder.items
    assert users and items and part.test
    for found in (part.train, part.test):
        rows = np.stack([found.user - 1, found.item - 1, found.labels[:, -1].long()], axis=1)
        np.save(case.folder / f"{found.name}.npy", rows.astype(np.int64))
    return {"users": len(users) - 1, "items": len(items) - 1, "rows": len(part.train), "held_out": len(part.test)}


def dataset(**shape: int):  # type: ignore[no-untyped-def]
    """MovieLens 100K if it is there and no ``shape`` is asked for, else generated data of its shape."""
    import polytask as pt
    from polytask.config import read
    from polytask.data.datasets.download import Offline

    config, _ = read("cs330")
    try:
        data = pt.synthetic(**shape) if shape else config.load_data()
    except Offline:
        data = pt.synthetic()
    return replace(data, schema=config.schema_for(data))


WORKLOAD = Workload(
    "a",
    "A: the course exercise, one model",
    "943 users, 1,682 items, width 32, a network 96-64-1 on [u; q; u * q], a ranking task with one negative per "
    "row and a rating, loss weights .5 and .5, batches of 256, Adam 1e-3 on all rows, 95,000 rows per epoch. Time "
    "of training epochs, no evaluation between them.",
    "workloads.reference:make",
    (
        Contender("polytask", "peers.ours:reference"),
        Contender(
            "polytask, compile = true",
            "peers.ours:reference",
            "forward, gradient and update as one graph",
            {"compile": True},
        ),
        Contender("plain PyTorch", "peers.plain:reference", "the exercise written the plain way, bench/exercise.py"),
        Contender(
            "TensorFlow Recommenders",
            "peers.tfrs:reference",
            "`tfrs.Model`; the same two losses and start; batches shuffled once and cached, as its tutorial has it",
            environment=".venv-tf",
        ),
        Contender(
            "TensorFlow Recommenders, its losses",
            "peers.tfrs:reference",
            "`tasks.Retrieval` (softmax over the batch, summed) and `tasks.Ranking`, as in its multi-task tutorial",
            {"retrieval": True},
            environment=".venv-tf",
        ),
        Contender("torch-rechub SharedBottom", "peers.rechub:reference", OTHER_TASK, {"epochs": 3}),
        Contender("DeepCTR-Torch SharedBottom", "peers.deepctr:reference", OTHER_TASK, {"epochs": 3}),
    ),
    (Column("samples_per_second", "samples/s"), *LEARNED),
    {
        "quick": {"shape": {"users": 200, "items": 300, "rows": 12000}, "epochs": 4},
        "standard": {"epochs": 10},
        "full": {"epochs": 20},
    },
    (
        Aim(
            "A, one model, batch 256, same learning: samples/s against TensorFlow Recommenders",
            ("polytask", "polytask, compile = true"),
            ("TensorFlow Recommenders",),
            "samples_per_second",
            "speed",
            2.5,
            5,
            {"mse": "lower", "mrr": "higher"},
        ),
    ),
    {"quick": 1, "standard": 4, "full": 4},
)
