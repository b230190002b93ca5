"""Experts of a task beside experts of all, in one level or, separated step by step, in several."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.nn import fused
from polytask.nn.bodies.experts import StreamExperts, alike, check_options, pairs
from polytask.nn.bodies.shape import Shape
from polytask.nn.layers import Gate, mixture, shares_of


class Cgc(nn.Module):
    """CGC: customized gate control (Tang et al., RecSys 2020, section 4.1).

        y_t = softmax(W_t v) · S^t(v)      S^t(v) = [E_t,1(v) .. E_t,m(v); E_s,1(v) .. E_s,n(v)]

    Each task has m = ``experts`` of its own beside the n = ``shared_experts`` of all, MLPs of hidden widths
    ``layers``; it reads no expert of another task. v are all embeddings side by side. ``gate_dropout`` is that of
    :class:`Gate`, ``dropout`` follows every layer of an expert.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        experts: int = 2,
        shared_experts: int = 2,
        layers: Sequence[int] = (64,),
        gate_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_options("cgc", {"experts": experts, "shared_experts": shared_experts}, layers, gate_dropout, dropout)
        self.tasks, self.width = shape.tasks, layers[-1]
        counts = [*[experts] * shape.tasks, shared_experts]
        self.level = Extraction(counts, [shape.width, *layers], gate_dropout, dropout, last=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Representations, T times [B, width], of embeddings [B, F, dim]."""
        found: list[Tensor] = self.level([x.flatten(start_dim=1)] * (self.tasks + 1))
        return found


class Ple(nn.Module):
    """PLE: progressive layered extraction (Tang et al., RecSys 2020, section 4.2), ``levels`` of CGC.

        g^t,j = softmax(W_t,j g^t,j−1) · [E_t,j(g^t,j−1); E_s,j(g^s,j−1)]                        for each task t
        g^s,j = softmax(W_s,j g^s,j−1) · [E_1,j(g^1,j−1); ..; E_T,j(g^T,j−1); E_s,j(g^s,j−1)]    the shared stream
        g^t,0 = g^s,0 = v, all embeddings side by side      y_t = g^t,N

    Shared experts read the shared stream and no task's: it learns from all experts of the level below, and its gate
    in the last level, which nobody reads, is left out. Every level has ``experts`` per task and ``shared_experts``,
    MLPs of hidden widths ``layers``; in the paper's experiments an expert is a single layer. ``gate_dropout`` is
    that of :class:`Gate`, ``dropout`` follows every layer of an expert.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        experts: int = 2,
        shared_experts: int = 2,
        layers: Sequence[int] = (64,),
        levels: int = 2,
        gate_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        counted = {"experts": experts, "shared_experts": shared_experts, "levels": levels}
        check_options("ple", counted, layers, gate_dropout, dropout)
        self.tasks, self.width = shape.tasks, layers[-1]
        counts = [*[experts] * shape.tasks, shared_experts]
        widths = [shape.width, *[self.width] * (levels - 1)]
        self.levels = nn.ModuleList(
            Extraction(counts, [width, *layers], gate_dropout, dropout, last=number == levels - 1)
            for number, width in enumerate(widths)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Representations, T times [B, width], of embeddings [B, F, dim]."""
        states = [x.flatten(start_dim=1)] * (self.tasks + 1)
        for level in self.levels:
            states = level(states)
        return states


class Extraction(nn.Module):
    """One level: from the states of T tasks and the shared one to the next, in the ``last`` level the tasks' alone.

    ``counts`` are the numbers of experts by stream, the shared last, ``sizes`` their widths [input, *hidden].
    """

    def __init__(
        self, counts: Sequence[int], sizes: Sequence[int], gate_dropout: float, dropout: float, *, last: bool
    ) -> None:
        super().__init__()
        *of_tasks, of_all = counts
        self.experts = StreamExperts(counts, sizes, dropout)
        self.gates = nn.ModuleList(Gate(sizes[0], m + of_all, t, gate_dropout) for t, m in enumerate(of_tasks))
        self.shared_gate = None if last else Gate(sizes[0], sum(counts), None, gate_dropout)
        places = self.experts.places()
        reads = [[*places[t], *places[-1]] for t in range(len(of_tasks))]
        self.pairs = pairs(reads if last else [*reads, range(sum(counts))])

    def forward(self, states: Sequence[Tensor]) -> list[Tensor]:
        """States [B, h], those of the tasks first, of states T + 1 times [B, width]."""
        every = self.experts.together(states, keep=True)
        shares = self._shares(states)
        if self.training and fused.worth_mixing(every, len(self.pairs[0])):
            return list(fused.mix(torch.cat(shares, dim=1), every, *self.pairs).unbind(dim=1))
        *own, shared = torch.split(every.to(states[0].dtype), self.experts.counts, dim=1)
        found = [mixture(share, torch.cat([mine, shared], dim=1)) for share, mine in zip(shares, own, strict=False)]
        return found if self.shared_gate is None else [*found, mixture(shares[-1], torch.cat([*own, shared], dim=1))]

    def _shares(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Shares [B, experts] of the tasks' gates and, but in the last level, of the shared one."""
        gates = [*self.gates, *([] if self.shared_gate is None else [self.shared_gate])]
        if alike(states):
            return shares_of(gates, states[0])
        return [gate(state) for gate, state in zip(gates, states, strict=False)]
