"""Each peer through its own trainer, as its documentation tells, on the arrays of a workload."""
