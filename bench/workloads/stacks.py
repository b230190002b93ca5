"""How a stack of replicas pays: the model of A, 1 to 24 times, in one process."""

from case import Column, Contender, Workload

from workloads import reference

WORKLOAD = Workload(
    "stacks",
    "Replicas in one stack",
    "The model and data of A, each replica with its own seed, in one process with the threads it is given; samples/s "
    "of all replicas together.",
    reference.WORKLOAD.make,
    tuple(
        Contender(f"{count} {'replica' if count == 1 else 'replicas'}", "peers.ours:stack", options={"replicas": count})
        for count in (1, 4, 12, 24)
    ),
    (Column("samples_per_second", "samples/s"), Column("per_replica", "per replica")),
    {
        "quick": {"shape": {"users": 200, "items": 300, "rows": 12000}, "epochs": 3},
        "standard": {"epochs": 4},
        "full": {"epochs": 6},
    },
)
