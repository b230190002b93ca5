"""What bodies of gated experts have in common: streams that have experts of their own, and options."""

from collections.abc import Mapping, Sequence

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
        if all(state is states[0] for state in states):  # the lowest level: no need for a copy per expert
            outputs = self.experts(states[0])
        else:
            outputs = self.experts(torch.stack([states[stream] for stream in self.reads], dim=1))
        return torch.split(outputs, self.counts, dim=1)


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
