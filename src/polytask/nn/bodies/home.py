"""Tasks in groups: experts for all, for a group and for a task, each with an input of its own choosing."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import ConfigError, did_you_mean
from polytask.nn.bodies.experts import check_options
from polytask.nn.bodies.shape import Shape
from polytask.nn.layers import Draw, ExpertLinear, Gate, dropouts, fill, mixture


class Home(nn.Module):
    """HoME: hierarchy of multi-gate experts (Wang et al., 2024), after summaries; formulas not checked with the paper.

    With v the joined embeddings, K the groups of tasks, and E_k(·) the stacked outputs of the ``experts`` of kind k:

        level 1   z_all = gate(v) · E_all(v)
                  z_k   = gate_k(v) · [E_all(v); E_k(v)] + self_k(v) · E_k(v)                for each group k
        level 2   y_t   = gate_t([z_k; z_all]) · [F_all(z_all); F_k(z_k); F_t(z_k)] + self_t(z_k) · F_t(z_k)

    where k is the group of task t. The brackets are the mask of the paper: a task reads the experts of no other
    group, so it moves none of them. Each expert has a feature gate in front (:class:`FeatureGate`, of low ``rank``)
    and is built of :class:`NormedExperts`.

    ``groups`` are the tasks' names by group, as in ``[["click", "like"], ["watch"]]``; tasks that are not listed form
    one group more. ``layers`` are the hidden widths of an expert, of both levels, each layer followed by ``dropout``;
    ``gate_dropout`` is that of :class:`Gate`. Where the paper normalizes over the batch, this normalizes over the units
    of an expert.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        groups: Sequence[Sequence[str]] = (),
        experts: int = 2,
        layers: Sequence[int] = (64,),
        rank: int = 8,
        gate_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_options("home", {"experts": experts, "rank": rank}, layers, gate_dropout, dropout)
        if min(layers) < 2:
            raise ConfigError(f"body 'home': layers = {list(layers)}: a width of 1 cannot be normalized")
        self.group = grouped(groups, shape)
        self.experts, self.width = experts, layers[-1]
        kinds = 1 + max(self.group) + 1
        self.first = NormedExperts(kinds * experts, [shape.width, *layers], rank, dropout)
        self.second = NormedExperts((kinds + shape.tasks) * experts, [self.width, *layers], rank, dropout)
        self.gate = Gate(shape.width, experts, None, gate_dropout)
        self.group_gates = nn.ModuleList(Gate(shape.width, 2 * experts, None, gate_dropout) for _ in range(kinds - 1))
        self.group_selves = nn.ModuleList(SelfGate(shape.width, experts) for _ in range(kinds - 1))
        self.task_gates = nn.ModuleList(Gate(2 * self.width, 3 * experts, t, gate_dropout) for t in range(shape.tasks))
        self.task_selves = nn.ModuleList(SelfGate(self.width, experts) for _ in range(shape.tasks))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Representations, T times [B, width], of embeddings [B, F, dim]."""
        v = x.flatten(start_dim=1)
        for_all, *for_group = self._by_kind(self.first(v))
        z_all = mixture(self.gate(v), for_all)
        z = [
            mixture(gate(v), torch.cat([for_all, own], dim=1)) + mixture(self_gate(v), own)
            for gate, self_gate, own in zip(self.group_gates, self.group_selves, for_group, strict=True)
        ]
        read = [z_all, *z, *(z[k] for k in self.group)]
        finer = self._by_kind(self.second(torch.stack(read, dim=1).repeat_interleave(self.experts, dim=1)))
        found = []
        for task, k in enumerate(self.group):
            own = finer[1 + len(z) + task]
            shares = self.task_gates[task](torch.cat([z[k], z_all], dim=1))
            seen = mixture(shares, torch.cat([finer[0], finer[1 + k], own], dim=1))
            found.append(seen + mixture(self.task_selves[task](z[k]), own))
        return found

    def _by_kind(self, experts: Tensor) -> tuple[Tensor, ...]:
        """Outputs [B, kinds · E, h] of all experts as [B, E, h] for each kind."""
        return torch.split(experts, self.experts, dim=1)


class FeatureGate(nn.Module):
    """v ∘ 2σ(v B A) before each of ``experts``: what an expert reads of its input v, by matrices of low ``rank``.

    A starts at zero, so that every expert starts by reading all of v as it is.
    """

    def __init__(self, experts: int, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.zeros(experts, width, rank))
        self.up = nn.Parameter(torch.zeros(experts, rank, width))

    def initialize(self, name: str, draw: Draw) -> None:
        """B from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), A at zero."""
        bound = self.down.shape[1] ** -0.5
        fill(self.down, draw(f"{name}.down").uniform(-bound, bound, self.down.shape))
        self.up.data.zero_()

    def forward(self, v: Tensor) -> Tensor:
        """[B, E, width] of v [B, width], which every expert reads, or of v [B, E, width]."""
        equation = "bd,edr->ber" if v.dim() == 2 else "bed,edr->ber"
        share = torch.sigmoid(torch.einsum("ber,erd->bed", torch.einsum(equation, v, self.down), self.up))
        return (v[:, None] if v.dim() == 2 else v) * 2 * share


class NormedExperts(nn.Module):
    """``count`` MLPs of equal ``sizes`` with a feature gate in front; a layer is dropout(Swish(LayerNorm(W v + b))).

    Normalized outputs are of one scale for all experts, so that gates compare like with like, and Swish leaves no
    dead units: both are the paper's. It normalizes over the batch (BatchNorm); over the batch a row's output depends
    on its neighbors, and running means are a state that stacked and exported models must not have. LayerNorm gives
    the same scale row by row. It has no scale and shift to learn: b and the next layer do their work.
    """

    def __init__(self, count: int, sizes: Sequence[int], rank: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.feature_gate = FeatureGate(count, sizes[0], rank)
        self.layers = nn.ModuleList(ExpertLinear(count, a, b) for a, b in pairwise(sizes))
        self.dropouts = dropouts([count * width for width in sizes[1:]], dropout)

    def forward(self, v: Tensor) -> Tensor:
        """[B, E, sizes[-1]] of v [B, sizes[0]] or, one input per expert, of v [B, E, sizes[0]]."""
        v = self.feature_gate(v)
        for layer, dropout in zip(self.layers, self.dropouts, strict=True):
            v = layer(v)
            v = dropout(F.silu(F.layer_norm(v, v.shape[-1:])))
        return v


class SelfGate(nn.Module):
    """How much of a task's or group's own ``count`` experts is added to its mixture, whatever the other gate does.

    softmax(W v), or σ(w·v) for a single expert: a sure path for their gradient.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count, width))

    def initialize(self, name: str, draw: Draw) -> None:
        """Start from N(0, 0.01^2), as the other gates."""
        fill(self.weight, draw(f"{name}.weight").standard_normal(self.weight.shape) * 0.01)

    def forward(self, v: Tensor) -> Tensor:
        """Shares [B, count] of the gate's input v [B, width]."""
        logits = F.linear(v, self.weight)
        return torch.sigmoid(logits) if len(self.weight) == 1 else torch.softmax(logits, dim=-1)


def grouped(groups: Sequence[Sequence[str]], shape: Shape) -> list[int]:
    """The number of each task's group; tasks that ``groups`` do not list form the last one.

    A single task is a group of its own, whatever ``groups`` say. An unknown name, a name in two groups and an
    empty group are a :class:`ConfigError`.
    """
    if shape.tasks == 1:
        return [0]
    found: dict[str, int] = {}
    for number, names in enumerate(groups):
        if not names:
            raise ConfigError(f"body 'home': groups[{number}] is empty; name at least one task in each group")
        for name in names:
            if name not in shape.names:
                raise ConfigError("body 'home': " + did_you_mean("task", name, shape.names))
            if name in found:
                raise ConfigError(f"body 'home': task '{name}' is named twice in groups; a task has one group")
            found[name] = number
    return [found.get(name, len(groups)) for name in shape.names] or [0] * shape.tasks
