"""The workloads by name, in the order in which they are run and shown."""

from case import Workload

from workloads import comparison, growth, industrial, loading, ranking, reference, retrieval, stacks

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        reference.WORKLOAD,
        comparison.WORKLOAD,
        stacks.WORKLOAD,
        *industrial.WORKLOADS,
        *ranking.WORKLOADS,
        *retrieval.WORKLOADS,
        loading.WORKLOAD,
        *growth.WORKLOADS,
    )
}
