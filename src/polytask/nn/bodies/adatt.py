"""Every task reads the experts of all, and its own once more."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.errors import ConfigError
from polytask.nn.bodies.experts import StreamExperts, check_options
from polytask.nn.bodies.shape import Shape
from polytask.nn.layers import Draw, Gate, fill, mixture


class Adatt(nn.Module):
    """AdaTT: adaptive task-to-task fusion (Li et al., KDD 2023), in ``levels``.

        s_t^l = softmax(W_t,l s_t^l−1) · [E_1,l; ..; E_T,l] + v_t,l · E_t,l      E_t,l = experts of t, read s_t^l−1
        s_t^0 = all embeddings side by side      y_t = s_t^L

    The gate weighs the ``experts`` of all tasks; the second term, which it has no say in, keeps what is the task's
    own, with weights v that are free (:class:`Native`). With ``shared_experts`` it is the general variant: they are
    a stream like a task's, with a state, gate and v of its own, that all gates read and that ends below the last
    level. ``layers`` are the hidden widths of an expert, each layer followed by ``dropout``; ``gate_dropout`` is that
    of :class:`Gate`. Gates have no bias, where the authors' code has one.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        experts: int = 2,
        shared_experts: int = 0,
        layers: Sequence[int] = (64,),
        levels: int = 2,
        gate_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_options("adatt", {"experts": experts, "levels": levels}, layers, gate_dropout, dropout)
        if shared_experts < 0:
            raise ConfigError(f"body 'adatt': shared_experts = {shared_experts} must be at least 0")
        self.width = layers[-1]
        counts = [experts] * shape.tasks + [shared_experts] * (shared_experts > 0)
        self.streams = len(counts)
        widths = [shape.width, *[self.width] * (levels - 1)]
        kept = [*[self.streams] * (levels - 1), shape.tasks]
        self.levels = nn.ModuleList(
            Fusion(counts, [width, *layers], gate_dropout, dropout, tasks=shape.tasks, kept=streams)
            for width, streams in zip(widths, kept, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Representations, T times [B, width], of embeddings [B, F, dim]."""
        states = [x.flatten(start_dim=1)] * self.streams
        for level in self.levels:
            states = level(states)
        return states


class Fusion(nn.Module):
    """One level: from the states of all streams to those of the first ``kept``.

    ``counts`` are the numbers of experts by stream, first those of the ``tasks``; ``sizes`` [input, *hidden].
    """

    def __init__(
        self, counts: Sequence[int], sizes: Sequence[int], gate_dropout: float, dropout: float, *, tasks: int, kept: int
    ) -> None:
        super().__init__()
        self.experts = StreamExperts(counts, sizes, dropout)
        readers = [stream if stream < tasks else None for stream in range(kept)]
        self.gates = nn.ModuleList(Gate(sizes[0], sum(counts), reader, gate_dropout) for reader in readers)
        self.natives = nn.ModuleList(Native(count) for count in counts[:kept])

    def forward(self, states: Sequence[Tensor]) -> list[Tensor]:
        """States, ``kept`` times [B, h], of the states [B, width] of all streams."""
        own = self.experts(states)
        every = torch.cat(own, dim=1)
        streams = zip(self.gates, self.natives, states, own, strict=False)
        return [mixture(gate(state), every) + native(mine) for gate, native, state, mine in streams]


class Native(nn.Module):
    """Σ_j v_j E_j over the ``count`` experts of a stream; a single one counts as it is."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count)) if count > 1 else None

    def initialize(self, name: str, draw: Draw) -> None:
        """Start v from U(-1/sqrt(count), 1/sqrt(count)), as the authors do."""
        if self.weight is not None:
            bound = len(self.weight) ** -0.5
            fill(self.weight, draw(f"{name}.weight").uniform(-bound, bound, self.weight.shape))

    def forward(self, experts: Tensor) -> Tensor:
        """[B, h] of a stream's experts [B, count, h]."""
        return experts.squeeze(dim=1) if self.weight is None else torch.einsum("e,beh->bh", self.weight, experts)
