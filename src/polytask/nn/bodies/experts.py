"""What bodies of gated experts have in common: streams that have experts of their own, and options."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from polytask.errors import ConfigError
from polytask.nn.layers import Experts


class StreamExperts(nn.Module):
    """Experts of several streams, ``counts`` of them by stream, MLPs of equal ``sizes`` that are computed at once.

    ``dropout`` is that of :class:`Experts`. An expert reads the state of its stream: a task's, or the one that all
    tasks share.
    """

    def __init__(self, counts: Sequence[int], sizes: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.counts = list(counts)
        self.reads = [stream for stream, count in enumerate(counts) for _ in range(count)]
        self.experts = Experts(len(self.reads), sizes, dropout)

    def forward(self, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Outputs [B, count, h] of each stream's experts, given every stream's state [B, width]."""
        return torch.split(self.together(states), self.counts, dim=1)

    def together(self, states: Sequence[Tensor], *, keep: bool = False) -> Tensor:
        """Outputs [B, E, h] of all experts side by side; ``keep`` is that of :class:`Experts`."""
        if alike(states):  # no need for a copy per expert
            return self.experts(states[0], keep=keep)  # type: ignore[no-any-return]
        inputs = torch.stack([states[stream] for stream in self.reads], dim=1)
        return self.experts(inputs, keep=keep)  # type: ignore[no-any-return]

    def places(self) -> list[range]:
        """Where each stream's experts stand among all."""
        ends = [0, *accumulate(self.counts)]
        return [range(first, end) for first, end in pairwise(ends)]


def alike(states: Sequence[Tensor]) -> bool:
    """Whether all streams are in the same state, as in the lowest level."""
    return all(state is states[0] for state in states)


def pairs(reads: Sequence[Iterable[int]]) -> tuple[list[int], list[int]]:
    """The readers and the experts of all (reader, expert) pairs, given the experts that each reader reads."""
    found = [(reader, expert) for reader, experts in enumerate(reads) for expert in experts]
    return [reader for reader, _ in found], [expert for _, expert in found]


def check_options(
    body: str, counts: Mapping[str, int], layers: Sequence[int], gate_dropout: float = 0.0, dropout: float = 0.0
) -> None:
    """A :class:`ConfigError` unless ``counts``, by option name, and the widths ``layers`` are at least 1.

    So is a ``gate_dropout`` or ``dropout`` that is no share below 1.
    """
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"body '{body}': {name} = {count} must be at least 1")
    if not layers or min(layers) < 1:
        raise ConfigError(f"body '{body}': layers = {list(layers)} must be one or more widths of at least 1")
    for name, share in (("gate_dropout", gate_dropout), ("dropout", dropout)):
        if not 0 <= share < 1:
            raise ConfigError(f"body '{body}': {name} = {share} must be at least 0 and below 1")
