"""Experts for all tasks, and gates that say how much of each a task takes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.nn import fused
from polytask.nn.bodies.experts import check_options, pairs
from polytask.nn.bodies.shape import Shape
from polytask.nn.layers import Experts, Gate, mixture, shares_of


class Mmoe(nn.Module):
    """MMoE: multi-gate mixture of experts (Ma et al., KDD 2018, section 4.2).

        y_t = Σ_e g^t(v)_e f_e(v)      g^t(v) = softmax(W_t v)      v: all embeddings side by side

    The ``experts`` f_e are MLPs of hidden widths ``layers``, shared by the tasks; each task has a gate.
    ``gate_dropout`` is that of :class:`Gate`, ``dropout`` follows every layer of an expert. Zhao et al. (RecSys 2019)
    let experts and gates read a hidden layer in place of v: put an ``mlp`` block before the body.

    With more than one of ``levels`` it is ML-MMoE, a baseline of Tang et al. (RecSys 2020): an expert above the
    lowest level reads a mixture, by a gate of its own, of the level below. All gates of all levels read v.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        experts: int = 4,
        layers: Sequence[int] = (64,),
        levels: int = 1,
        gate_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_options("mmoe", {"experts": experts, "levels": levels}, layers, gate_dropout, dropout)
        self.width = layers[-1]
        widths = [shape.width, *[self.width] * (levels - 1)]
        readers: list[list[int | None]] = [[None] * experts for _ in range(levels - 1)] + [[*range(shape.tasks)]]
        self.levels = nn.ModuleList(
            Level(
                Experts(experts, [width, *layers], dropout),
                [Gate(shape.width, experts, r, gate_dropout) for r in level],
            )
            for width, level in zip(widths, readers, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Representations, T times [B, width], of embeddings [B, F, dim]."""
        z = v = x.flatten(start_dim=1)
        for level in self.levels:
            z = level(z, v)
        return list(z.unbind(dim=1))


class Level(nn.Module):
    """Experts, and ``gates`` each of which mixes them for one reader above."""

    def __init__(self, experts: Experts, gates: Sequence[Gate]) -> None:
        super().__init__()
        self.experts, self.gates = experts, nn.ModuleList(gates)
        self.pairs = pairs([range(experts.count)] * len(gates))

    def forward(self, z: Tensor, v: Tensor) -> Tensor:
        """Mixtures [B, readers, h]; the experts read z [B, width] or [B, experts, width], the gates v [B, width]."""
        shares, experts = shares_of([*self.gates], v), self.experts(z, keep=True)
        if self.training and fused.worth_mixing(experts, len(self.pairs[0])):
            return fused.mix(torch.cat(shares, dim=1), experts, *self.pairs)
        return torch.einsum("bre,beh->brh", torch.stack(shares, dim=1), experts.to(v.dtype))


class Omoe(nn.Module):
    """OMoE: a mixture of experts with one gate for all tasks (Jacobs et al., 1991; Ma et al., KDD 2018, section 4.1).

        y_1 = ... = y_T = Σ_e g(v)_e f_e(v)      g(v) = softmax(W v)

    The options are those of :class:`Mmoe`, without levels.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        experts: int = 4,
        layers: Sequence[int] = (64,),
        gate_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_options("omoe", {"experts": experts}, layers, gate_dropout, dropout)
        self.tasks, self.width = shape.tasks, layers[-1]
        self.experts = Experts(experts, [shape.width, *layers], dropout)
        self.gate = Gate(shape.width, experts, None, gate_dropout)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Representations, T times [B, width], of embeddings [B, F, dim]."""
        v = x.flatten(start_dim=1)
        return [mixture(self.gate(v), self.experts(v))] * self.tasks
