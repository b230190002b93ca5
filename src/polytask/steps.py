"""Each task's gradient on every parameter of a stack, by halves of a batch, and the optimizer's step from it alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from polytask.gradients import Gradient, Named, Readers
from polytask.gramian import table_of
from polytask.nn.embedding import Tables
from polytask.nn.models import Model
from polytask.replicas import Stack


@dataclass(frozen=True)
class Block:
    """Gradients ``values`` [2, n, K, N] of n tasks on one parameter of R replicas, by half of the batch.

    A cell is an expert, or the whole parameter where it has none, or a touched row of a table; ``part`` [K] numbers
    what it belongs to, replica · E + expert, where the fields of a table stand for experts. ``readers`` [T, E]: which
    of all tasks read an expert. Of a table ``rows`` [K] are the row numbers, ascending, and ``places`` by half and
    name the cells of what was looked up.
    """

    values: Tensor
    part: Tensor
    readers: Tensor
    replicas: int
    rows: Tensor | None = None
    places: Sequence[Mapping[str, Tensor]] = ({}, {})

    @property
    def experts(self) -> int:
        """The number E of experts; 1 where there are none."""
        return self.readers.shape[1]

    @property
    def together(self) -> Tensor:
        """Whether two tasks or more read an expert: [E]."""
        return self.readers.sum(dim=0) > 1

    @property
    def chosen(self) -> Tensor:
        """1 where two tasks or more read a cell, else 0: [K, 1]."""
        return self.together[self.part % self.experts, None].float()

    def by_task(self, weights: Tensor) -> Tensor:
        """``weights`` [R, n] of each replica's tasks, laid out as the cells are: [n, K, 1]."""
        return weights[self.part // self.experts].T[:, :, None]

    def sums(self, values: Tensor) -> Tensor:
        """Sums [R, E, ...] over the cells of ``values`` [..., K, N], in float64."""
        by_cell = values.sum(dim=-1, dtype=torch.float64).movedim(-1, 0)
        found = by_cell.new_zeros(self.replicas * self.experts, *by_cell.shape[1:]).index_add_(0, self.part, by_cell)
        return found.view(self.replicas, self.experts, *by_cell.shape[1:])

    def products(self) -> Tensor:
        """Products [R, E, 2n, 2n] of the gradients, the tasks on the first half before those on the second."""
        flat = self.values.flatten(end_dim=1)
        if self.rows is None:
            cells = flat.transpose(0, 1)
            return (cells @ cells.mT).double().view(self.replicas, self.experts, len(flat), len(flat))
        ends = torch.searchsorted(self.part, torch.arange(self.replicas * self.experts + 1)).tolist()
        each = [flat[:, a:b].flatten(start_dim=1) for a, b in pairwise(ends)]
        found = torch.stack([rows @ rows.T for rows in each]).double()
        return found.view(self.replicas, self.experts, *found.shape[1:])


def blocks_of(
    gradients: Sequence[Gradient], lookups: Sequence[Named], known: Readers, ends: Mapping[str, Tensor]
) -> dict[str, Block]:
    """The block of every parameter, by name, from a gradient per task of 2R replicas, those of half a first.

    ``lookups`` are the row numbers [R, B, S] behind the looked-up rows of each half, ``ends`` [R, E] where the rows of
    a table's fields end in every replica, all replicas laid end to end.
    """
    tables = dict.fromkeys(table_of(n) for n in lookups[0])
    found = {n: _of_table(n, gradients, lookups, known, ends[n]) for n in tables}
    for name in gradients[0].dense:
        readers = known.of[name].view(len(known.of[name]), -1)
        values = torch.stack([g.dense[name] for g in gradients])
        replicas = values.shape[1] // 2
        cells = replicas * readers.shape[1]
        values = values.reshape(len(gradients), 2, cells, -1).transpose(0, 1)
        found[name] = Block(values, torch.arange(cells), readers, replicas)
    return found


def _of_table(
    table: str, gradients: Sequence[Gradient], lookups: Sequence[Named], known: Readers, ends: Tensor
) -> Block:
    names = [n for n in lookups[0] if table_of(n) == table]
    sources = [(half, name) for half in range(2) for name in names]
    indices = [lookups[half][name].flatten() for half, name in sources]
    rows, inverse = torch.unique(torch.cat(indices), return_inverse=True)
    replicas, width = len(lookups[0][names[0]]), gradients[0].rows[names[0]].shape[-1]
    values = gradients[0].rows[names[0]].new_zeros(2, len(gradients), len(rows), width)
    places: tuple[Named, Named] = ({}, {})
    for (half, name), place in zip(sources, inverse.split([len(i) for i in indices]), strict=True):
        places[half][name] = place
        for task, gradient in enumerate(gradients):
            own = gradient.rows[name][half * replicas : (half + 1) * replicas]
            values[half, task].index_add_(0, place, own.reshape(-1, width))
    readers = torch.stack([known.of[n] for n in names]).any(dim=0)[:, None].expand(-1, ends.shape[1])
    part = torch.searchsorted(ends.flatten(), rows, right=True)
    return Block(values, part, readers, replicas, rows, places)


def field_ends(stack: Stack, table: str) -> Tensor:
    """Where the rows of each field of a table end [R, E], the padded replicas laid end to end."""
    ends = [torch.tensor(_tables(model, table).ends) for model in stack.models]
    height = stack.parameters[table].shape[1]
    return torch.stack([e + r * height for r, e in enumerate(ends)])


def fields_of(stack: Stack, table: str) -> tuple[str, ...]:
    """The names of the fields whose rows a table holds."""
    return _tables(stack.models[0], table).fields


def _tables(model: Model, name: str) -> Tables:
    found = model.get_submodule(name.rpartition(".")[0])
    assert isinstance(found, Tables)
    return found


def clip_scale(blocks: Iterable[Block], weights: Tensor, bound: float) -> Tensor:
    """What the bound on the joint gradient's norm (0: none) multiplies it by: [R], for ``weights`` [R, n]."""
    if not bound:
        return torch.ones(len(weights))
    joint = sum(b.sums((b.by_task(weights) * b.values.sum(dim=0)).sum(dim=0).square()).sum(dim=1) for b in blocks)
    assert isinstance(joint, Tensor)
    scale: Tensor = (bound / joint.sqrt().clamp(min=1e-12)).clamp(max=1.0)
    return scale.float()


def precondition(stack: Stack, name: str, block: Block, weights: Tensor, factor: float) -> Tensor:
    """What the optimizer's next step, without its momentum, multiplies the gradient by: [K, N] or [K, 1].

    With Adam the learning rate over sqrt(v) + eps. Here v has taken in the tasks' gradients times ``weights`` [R, n],
    as if they were unrelated: so no row that was never trained before gives an endless step. Else the rate alone.
    """
    updates, rates = stack.updates, stack.rates[block.part // block.experts]
    squares = (block.by_task(weights) * block.values.sum(dim=0)).square().sum(dim=0)
    if name in updates.by_row:
        assert block.rows is not None
        return updates.by_row[name].scale(block.rows, squares, rates, factor)
    rate = (rates * factor)[:, None]
    group = updates.optimizer.param_groups[0]
    moment = _second_moment(stack, name, block)
    if moment is None:
        return rate
    second, steps = moment
    beta, eps = group["betas"][1], group["eps"]
    corrected = (beta * second + (1 - beta) * squares) / (1 - beta ** (steps + 1))
    scale: Tensor = rate / (corrected.sqrt() + eps)
    return scale


def _second_moment(stack: Stack, name: str, block: Block) -> tuple[Tensor, float] | None:
    """The running mean [K, N] of the squared gradient and the number of steps; None if the optimizer keeps none."""
    states = stack.updates.state_of(name)
    if any("exp_avg_sq" not in state for state in states):
        return None
    kept = [state["exp_avg_sq"] for state in states]
    if block.rows is None:
        second = torch.cat(kept).reshape(len(block.part), -1)
    else:
        ends = [0, *torch.tensor([k.shape[0] * k.shape[1] for k in kept]).cumsum(dim=0).tolist()]
        cuts = torch.searchsorted(block.rows, torch.tensor(ends)).tolist()
        within = [block.rows[a:b] - start for (a, b), start in zip(pairwise(cuts), ends, strict=False)]
        second = torch.cat([k.flatten(end_dim=1)[rows] for k, rows in zip(kept, within, strict=True)])
    return second, float(states[0]["step"])
