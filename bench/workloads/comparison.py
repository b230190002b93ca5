"""A, stacked: twelve runs with an evaluation after every epoch, on all cores."""

from case import Aim, Column, Contender, Workload

from workloads import reference

WORKLOAD = Workload(
    "a12",
    "A, twelve runs: training and evaluation",
    "The model and data of A, twelve seeds, each with its own split; seconds per run and epoch, of training and an "
    "evaluation after it. polytask and the plain exercise: test MSE and the MRR of all users over the whole catalogue, "
    "what was seen left out. TensorFlow Recommenders: `evaluate` with `FactorizedTopK`, as its tutorials have it, "
    "nothing left out.",
    reference.WORKLOAD.make,
    (
        Contender("polytask compare", "peers.ours:comparison", "stacked, one process of one thread per core"),
        Contender(
            "polytask compare, compile = true",
            "peers.ours:comparison",
            "the same, a step as one graph; without the seconds that compiling takes at the start",
            {"compile": True},
        ),
        Contender("plain PyTorch", "peers.plain:comparison", "one run after the other"),
        Contender(
            "TensorFlow Recommenders", "peers.tfrs:comparison", "one run after the other", environment=".venv-tf"
        ),
    ),
    (Column("seconds_per_run_epoch", "seconds per run and epoch", "{:.3f}"),),
    {
        "quick": {"shape": {"users": 200, "items": 300, "rows": 12000}, "epochs": 3, "runs": 4},
        "standard": {"epochs": 6, "runs": 12},
        "full": {"epochs": 10, "runs": 12},
    },
    (
        Aim(
            "A, 12 stacked runs, per run, training + evaluation, against TensorFlow Recommenders",
            ("polytask compare", "polytask compare, compile = true"),
            ("TensorFlow Recommenders",),
            "seconds_per_run_epoch",
            "time",
            8,
            15,
        ),
    ),
)
