"""Every task's gradient on a stack, exact on embeddings: the rows a batch touches, coalesced, and never a whole table.

All tasks read the same rows of a batch, so the products of their gradients on a table are sums over these rows alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from polytask.errors import ConfigError
from polytask.gradients import Gradient, Named, Readers
from polytask.nn.model import EVERY


def table_of(name: str) -> str:
    """The table a set of looked-up rows comes from."""
    return name.removesuffix(EVERY)


Rows = list[tuple[str, Tensor, Tensor]]
"""Gradients [N, D] on the rows [N] of a table (among the replicas' rows laid end to end), by its name."""


class Found(NamedTuple):
    """Losses [R, T], and the gradient that an optimizer is given: dense [R, ...] by name, and on rows of tables."""

    losses: Tensor
    dense: Named
    rows: Rows


@dataclass(frozen=True)
class Touched:
    """Gradients on a table: ``rows`` [U], ascending, among the replicas' rows laid end to end, ``values`` [U, T, D]."""

    rows: Tensor
    values: Tensor


@dataclass(frozen=True)
class TaskGradients:
    """The gradient of each of T tasks for R replicas: ``dense`` [T, R, ...] and ``tables``, by parameter name.

    ``readers`` says which tasks read what; a parameter that two tasks read is shared, of a stack of experts those
    that two tasks read. Where the model adds a penalty its gradient stands behind those of the tasks.
    ``height`` holds the rows of one replica of each table.
    """

    dense: Named
    tables: dict[str, Touched]
    readers: Readers
    height: Mapping[str, int]

    @property
    def shared(self) -> list[str]:
        """The shared parameters, tables first, in the order of the model."""
        return [n for n in (*self.tables, *self.dense) if self._together(n).any()]

    @property
    def count(self) -> int:
        """The number of tasks."""
        return len(next(iter(self.readers.of.values())))

    def gramians(self, names: Sequence[str]) -> Tensor:
        """Products [R, P, T, T] of the tasks' gradients on each of P shared parameters, in float64."""
        return torch.stack([self._products(n) for n in names], dim=1)

    def _products(self, name: str) -> Tensor:
        if name in self.tables:
            values = self.tables[name].values[:, : self.count]
            parts = [values[part].transpose(0, 1).flatten(start_dim=1) for part in self._by_replica(name)]
            return torch.stack([flat @ flat.T for flat in parts]).double()
        flat = self._shared_part(name)
        return torch.einsum("trn,srn->rts", flat, flat).double()

    def _by_replica(self, name: str) -> list[slice]:
        """Where each replica's rows stand among the touched ones."""
        rows, height = self.tables[name].rows, self.height[name]
        replicas = int(rows[-1]) // height + 1  # a batch looks up rows of every replica
        ends = torch.searchsorted(rows, torch.arange(replicas + 1) * height).tolist()
        return [slice(a, b) for a, b in pairwise(ends)]

    def _shared_part(self, name: str) -> Tensor:
        """Gradients [T, R, N] on the shared part of a dense parameter."""
        value, together = self.dense[name][: self.count], self._together(name)
        if together.dim() and not together.all():
            value = value[:, :, together]
        return value.flatten(start_dim=2)

    def _together(self, name: str) -> Tensor:
        """Whether two tasks or more read a parameter: [] or, by expert, [E]."""
        same = [m for n, m in self.readers.of.items() if table_of(n) == name]
        return torch.stack(same).any(dim=0).sum(dim=0) > 1

    def jacobian(self, names: Sequence[str], replica: int) -> Tensor:
        """Gradients [T, D] of one replica on the dense ones of ``names``, in float64."""
        dense = [self._shared_part(n)[:, replica] for n in names if n in self.dense]
        if not dense:
            raise ConfigError("this balance remembers gradients of a shared trunk, and the tasks share tables alone")
        return torch.cat(dense, dim=1).double()

    def combined(self, names: Sequence[str], weights: Tensor, own: Tensor) -> tuple[Named, Rows]:
        """The sum over the tasks: dense [R, ...] by name, and on the touched rows of tables.

        The weights are ``weights`` [R, P, T] on the P shared parameters ``names``, elsewhere ``own`` [R, T]. A penalty
        counts once.
        """
        places = {n: self._with_penalty(weights[:, p]) for p, n in enumerate(names)}
        rest = self._with_penalty(own)
        dense = {n: self._dense_sum(n, places.get(n, rest), rest) for n in self.dense}
        rows = []
        for name, touched in self.tables.items():
            of_row = places.get(name, rest)[touched.rows // self.height[name]]
            rows.append((name, touched.rows, torch.einsum("utd,ut->ud", touched.values, of_row.to(touched.values))))
        return dense, rows

    def _with_penalty(self, weights: Tensor) -> Tensor:
        return torch.cat([weights, torch.ones_like(weights[:, :1])], dim=1) if self.readers.penalty else weights

    def _dense_sum(self, name: str, weights: Tensor, own: Tensor) -> Tensor:
        value, together = self.dense[name], self._together(name)
        found = _summed(value, weights)
        if together.any() and not together.all():  # experts that one task alone reads keep its own gradient
            chosen = together.view(-1, *[1] * (value.dim() - 3))
            found = torch.where(chosen, found, _summed(value, own))
        return found


def _summed(value: Tensor, weights: Tensor) -> Tensor:
    """Sum [R, ...] over the tasks of value [T, R, ...] by weights [R, T]."""
    return torch.einsum("tr...,rt->r...", value, weights.to(value.dtype))


def collect(
    gradients: Sequence[Sequence[Gradient]],
    lookups: Sequence[Named],
    tasks: tuple[int, ...],
    known: Readers,
    height: Mapping[str, int],
) -> TaskGradients:
    """The gradients of ``tasks`` (then, if there is one, of the penalty) summed over some micro-batches.

    ``gradients`` holds those of each micro-batch, ``lookups`` the row numbers [R, B, S] behind their rows.
    """
    count = next(iter(known.of.values())).shape[0]
    places = [*tasks, *([count] if known.penalty else [])]
    dense = {}
    for name, first in gradients[0][0].dense.items():
        dense[name] = first.new_zeros(count + known.penalty, *first.shape)
        for place, each in zip(places, zip(*gradients, strict=True), strict=True):
            dense[name][place] = sum_of([g.dense[name] for g in each])
    tables = {}
    for table in dict.fromkeys(table_of(n) for n in lookups[0]):
        parts = [
            (index.flatten(), torch.stack([g.rows[n].reshape(-1, g.rows[n].shape[-1]) for g in each], dim=1))
            for each, found in zip(gradients, lookups, strict=True)
            for n, index in found.items()
            if table_of(n) == table
        ]
        rows, place = torch.unique(torch.cat([index for index, _ in parts]), return_inverse=True)
        read = torch.cat([values for _, values in parts])
        summed = read.new_zeros(len(rows), *read.shape[1:]).index_add_(0, place, read)
        values = read.new_zeros(len(rows), count + known.penalty, read.shape[2])
        values[:, places] = summed
        tables[table] = Touched(rows, values)
    return TaskGradients(dense, tables, known, height)


def output_gramians(found: Sequence[Gradient], names: Sequence[str], tasks: Sequence[int], count: int) -> Tensor:
    """Products [R, 1, T, T] of the gradients of ``tasks``, of ``count``, at the output of the tables ``names``."""
    flat = torch.cat([torch.stack([g.rows[n].flatten(start_dim=1) for g in found]) for n in names], dim=2)
    products = torch.einsum("trn,srn->rts", flat, flat).double()
    whole = products.new_zeros(len(products), count, count)
    index = torch.tensor(tasks)
    whole[:, index[:, None], index] = products
    return whole[:, None]


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape; of one, itself."""
    first, *rest = tensors
    for tensor in rest:
        first = first + tensor
    return first
