"""What turns gradients into updates: a dense optimizer, or for large tables one that works by row."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from polytask.kernels.rows import AdamScales, RowSums, lazy_adam, rowwise_adagrad

Group = Mapping[str, Any]
"""A group of parameters of one rate, as PyTorch's optimizers have it."""

_LARGE = 1 << 18  # rows from which a table is trained by row, if also
_SPARSE = 8  # it has so many times the rows that a batch looks up


class RowOptimizer(Protocol):
    """Trains a table by the rows that a batch looked up, and leaves the others alone; tensors of state by name."""

    state: dict[str, Tensor]

    def update(self, table: Tensor, found: RowSums, rates: Tensor, factor: float) -> None:
        """Update table [N, D] in place by the gradients ``found`` on U rows.

        ``rates`` [U] are the model's learning rates for them, ``factor`` the schedule's.
        """

    def scale(self, rows: Tensor, squares: Tensor, rates: Tensor, factor: float) -> Tensor:
        """What the next update multiplies the gradients on ``rows`` [U] by, [U, D] or [U, 1]; nothing is changed.

        ``squares`` [U, D] are those of the gradients as they then will be.
        """


class RowwiseAdagrad:
    """Adagrad with one accumulator per row, at a rate ``lr`` of its own: see :func:`polytask.kernels.rows`."""

    eps = 1e-8

    def __init__(self, table: Tensor, lr: float) -> None:
        self.lr, self.state = lr, {"sum": table.new_zeros(len(table))}

    def update(self, table: Tensor, found: RowSums, rates: Tensor, factor: float) -> None:
        """See :class:`RowOptimizer`."""
        rowwise_adagrad(table, self.state["sum"], found, torch.full_like(rates, self.lr * factor), self.eps)

    def scale(self, rows: Tensor, squares: Tensor, rates: Tensor, factor: float) -> Tensor:
        """See :class:`RowOptimizer`."""
        total = self.state["sum"][rows] + squares.mean(dim=1)
        return (self.lr * factor / (total.sqrt() + self.eps))[:, None]


class LazyAdam:
    """Adam whose moments decay only in the rows a batch looked up, at the model's learning rate."""

    betas, eps = (0.9, 0.999), 1e-8

    def __init__(self, table: Tensor, lr: float) -> None:
        zeros = torch.zeros_like
        self.state = {"first": zeros(table), "second": zeros(table), "step": torch.zeros((), dtype=torch.int64)}

    def update(self, table: Tensor, found: RowSums, rates: Tensor, factor: float) -> None:
        """See :class:`RowOptimizer`."""
        self.state["step"] += 1
        step, (beta1, beta2) = int(self.state["step"]), self.betas
        scales = AdamScales(beta1, beta2, 1 - beta1**step, (1 - beta2**step) ** 0.5, self.eps)
        lazy_adam(table, self.state["first"], self.state["second"], found, rates * factor, scales)

    def scale(self, rows: Tensor, squares: Tensor, rates: Tensor, factor: float) -> Tensor:
        """See :class:`RowOptimizer`; the momentum is left out."""
        beta, step = self.betas[1], int(self.state["step"]) + 1
        second = (beta * self.state["second"][rows] + (1 - beta) * squares) / (1 - beta**step)
        return (rates * factor)[:, None] / (second.sqrt() + self.eps)


TABLE_OPTIMIZERS: dict[str, Callable[[Tensor, float], RowOptimizer]] = {
    "lazy_adam": LazyAdam,
    "rowwise_adagrad": RowwiseAdagrad,
}
TABLES = ("auto", "dense", *TABLE_OPTIMIZERS)


class Optimizers(NamedTuple):
    """Which optimizer trains what: ``dense`` all parameters, but for the tables named in ``by_row``.

    These have one of :data:`TABLE_OPTIMIZERS` each, as pairs of both names; ``rate`` is that of row-wise Adagrad.
    """

    dense: str = "adam"
    by_row: tuple[tuple[str, str], ...] = ()
    rate: float = 0.1

    def of_table(self, name: str, table: Tensor) -> RowOptimizer | None:
        """The optimizer of the table ``name`` [N, D], if it has one of its own."""
        kind = dict(self.by_row).get(name)
        return None if kind is None else TABLE_OPTIMIZERS[kind](table, self.rate)


PLAIN = Optimizers()


def by_row(tables: str, height: int, lookups: int) -> str | None:
    """How a table of ``height`` rows, of which a batch reads ``lookups``, is trained; None: as what is dense.

    ``tables``: one of :data:`TABLES`; "auto" is row-wise Adagrad for large tables of which a batch reads little.
    """
    if tables == "auto":
        return "rowwise_adagrad" if height >= max(_LARGE, _SPARSE * lookups) else None
    return None if tables == "dense" else tables


class Dense(NamedTuple):
    """A dense optimizer: how it is made, the moments it keeps for each parameter, and its formula.

    ``scalars(group, rate, step)`` gives the two numbers of a step, counted from 1, that ``update(group, gradient,
    moments, scalars [2])`` multiplies by; that gives what is taken off a parameter and the new moments, as part of a
    larger program.
    """

    make: Callable[..., torch.optim.Optimizer]
    moments: tuple[str, ...]
    scalars: Callable[[Group, float, float], list[float]]
    update: Callable[[Group, Tensor, Sequence[Tensor], Tensor], tuple[Tensor, list[Tensor]]]

    def start(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the state that ``optimizer`` would make in its first step."""
        for parameter in [p for group in optimizer.param_groups for p in group["params"]]:
            if self.moments and not optimizer.state[parameter]:
                zeros = {name: torch.zeros_like(parameter.detach()) for name in self.moments}
                optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device)} | zeros


def _adam_scalars(group: Group, rate: float, step: float) -> list[float]:
    beta1, beta2 = group["betas"]
    return [rate / (1 - beta1**step), (1 - beta2**step) ** -0.5]


def _adam(group: Group, gradient: Tensor, moments: Sequence[Tensor], scalars: Tensor) -> tuple[Tensor, list[Tensor]]:
    """m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2; rate m / (1 - b1^t) / (√v / √(1 - b2^t) + eps).

    Kingma and Ba, ICLR 2015.
    """
    (beta1, beta2), (first, second) = group["betas"], moments
    m = beta1 * first + (1 - beta1) * gradient
    v = beta2 * second + (1 - beta2) * gradient * gradient
    return scalars[0] * m / (v.sqrt() * scalars[1] + group["eps"]), [m, v]


def _sgd_scalars(group: Group, rate: float, step: float) -> list[float]:
    return [rate, 1.0]


def _sgd(group: Group, gradient: Tensor, moments: Sequence[Tensor], scalars: Tensor) -> tuple[Tensor, list[Tensor]]:
    return scalars[0] * gradient, []


OPTIMIZERS: dict[str, Dense] = {
    "adam": Dense(partial(torch.optim.Adam, fused=True), ("exp_avg", "exp_avg_sq"), _adam_scalars, _adam),
    "sgd": Dense(partial(torch.optim.SGD, fused=True), (), _sgd_scalars, _sgd),
}
