"""Tables of a task's own beside shared ones, and experts that only their own task moves."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.errors import ConfigError
from polytask.nn.bodies.experts import StreamExperts, check_options
from polytask.nn.bodies.shape import Shape
from polytask.nn.layers import Gate, mixture, mlp


class Stem(nn.Module):
    """STEM-Net: shared and task-specific embeddings (Su et al., AAAI 2024), for ``share = "both"``.

        z_t = gate_t(x_t + x_s) · [sg E_1; ..; E_t; ..; sg E_T; E_s]      E_t = experts of t, read x_t; E_s read x_s

    x_t are the embeddings of task t's own tables side by side, x_s those of the shared ones, sg stops the gradient:
    a task reads all experts and moves its own and the shared ones (all-forward, task-specific-backward), so what
    its tables learn is its own. A gate is an MLP of hidden widths ``gate_layers``, then :class:`Gate`.

    With more than one of ``levels`` z_t takes the place of x_t, and of x_s a mixture of all experts by a gate that
    reads x_s, in which no gradient is stopped. That of the last level, which nobody reads, is left out. Every level
    has ``experts`` per task and ``shared_experts``, MLPs of hidden widths ``layers``. Every layer of an expert is
    followed by ReLU, where the last of the authors' code is not.
    """

    both = True

    def __init__(
        self,
        shape: Shape,
        *,
        experts: int = 1,
        shared_experts: int = 1,
        layers: Sequence[int] = (64,),
        gate_layers: Sequence[int] = (128, 64),
        levels: int = 1,
        gate_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        counted = {"experts": experts, "shared_experts": shared_experts, "levels": levels}
        check_options("stem", counted, layers, gate_dropout)
        if min(gate_layers, default=1) < 1:
            raise ConfigError(f"body 'stem': gate_layers = {list(gate_layers)}: every width must be at least 1")
        self.width = layers[-1]
        counts = [*[experts] * shape.tasks, shared_experts]
        widths = [shape.width, *[self.width] * (levels - 1)]
        self.levels = nn.ModuleList(
            Separation(counts, [width, *layers], gate_layers, last=number == levels - 1, dropout=gate_dropout)
            for number, width in enumerate(widths)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Representations, T times [B, width], of embeddings [T + 1, B, F, dim], those of the shared tables last."""
        states = list(x.flatten(start_dim=2).unbind(dim=0))
        for level in self.levels:
            states = level(states)
        return states


class Separation(nn.Module):
    """One level: from the states of T tasks and the shared one to the next, in the ``last`` level the tasks' alone.

    ``counts`` are the numbers of experts by stream, the shared last, ``sizes`` their widths [input, *hidden].
    """

    def __init__(
        self, counts: Sequence[int], sizes: Sequence[int], gate_layers: Sequence[int], *, last: bool, dropout: float
    ) -> None:
        super().__init__()
        self.experts = StreamExperts(counts, sizes)
        hidden = [sizes[0], *gate_layers]

        def gate(reader: int | None) -> nn.Module:
            return nn.Sequential(mlp(hidden), Gate(hidden[-1], sum(counts), reader, dropout))

        self.gates = nn.ModuleList(gate(task) for task in range(len(counts) - 1))
        self.shared_gate = None if last else gate(None)

    def forward(self, states: Sequence[Tensor]) -> list[Tensor]:
        """States [B, h], those of the tasks first, of states T + 1 times [B, width]."""
        experts, shared = self.experts(states), len(states) - 1
        found = []
        for task, gate in enumerate(self.gates):
            moved = [e if stream in (task, shared) else e.detach() for stream, e in enumerate(experts)]
            found.append(mixture(gate(states[task] + states[-1]), torch.cat(moved, dim=1)))
        if self.shared_gate is not None:
            found.append(mixture(self.shared_gate(states[-1]), torch.cat(experts, dim=1)))
        return found
