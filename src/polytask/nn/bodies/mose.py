"""Experts that read a sequence: what the user did before, in order."""

import torch
from torch import Tensor, nn

from polytask.nn.bodies.experts import check_options
from polytask.nn.bodies.shape import Shape
from polytask.nn.layers import Draw, Gate, fill, mixture


class Mose(nn.Module):
    """MoSE: a mixture of sequential experts (Qin et al., KDD 2020).

        s_1..s_L = trunk(events)      y_t = Σ_e softmax(W_t s_L)_e · expert_e(s_1..s_L)_L

    The trunk and each of the ``experts`` are an LSTM with a state of ``width``. The events are the items of the
    user's history, oldest first, and last the row itself, its fields joined and brought to an event's width by a
    linear layer: as in the paper the model reads the moment that it predicts for, and a user without a history is
    a sequence of one. The paper gives an output at every event and lets a task's tower be an LSTM; here the
    towers are the model's and read the output at the last. ``gate_dropout`` is that of :class:`Gate`.
    """

    sequential = True

    def __init__(self, shape: Shape, *, experts: int = 4, width: int = 64, gate_dropout: float = 0.0) -> None:
        super().__init__()
        check_options("mose", {"experts": experts, "width": width}, [width], gate_dropout)
        self.width = width
        self.row = nn.Linear(shape.width, shape.dim)
        self.trunk = Recurrence(1, shape.dim, width)
        self.experts = Recurrence(experts, width, width)
        self.gates = nn.ModuleList(Gate(width, experts, task, gate_dropout) for task in range(shape.tasks))

    def forward(self, x: Tensor, history: Tensor, present: Tensor) -> list[Tensor]:
        """Representations, T times [B, width], of embeddings [B, F, dim] and those of past items [B, L, dim].

        ``present`` [B, L] says which of the L there are; the others, wherever they stand, are passed over.
        """
        events = torch.cat([history, self.row(x.flatten(start_dim=1))[:, None]], dim=1)
        there = torch.cat([present, torch.ones_like(present[:, :1])], dim=1)
        states = self.trunk(events, there).squeeze(2)
        experts = self.experts(states, there)[:, -1]
        return [mixture(gate(states[:, -1]), experts) for gate in self.gates]


class Recurrence(nn.Module):
    """``count`` LSTMs side by side that read one sequence (Hochreiter and Schmidhuber, 1997; with forget gates).

        i, f, o = σ(·)   g = tanh(·)   each of W x + U h + b      c' = f ∘ c + i ∘ g      h' = o ∘ tanh(c')

    An event that is absent leaves c and h as they are. The columns of ``read`` (W), ``recall`` (U) and ``bias``
    stand in the order i, f, g, o. Written out, because torch.nn.LSTM can be neither stacked nor exported.
    """

    def __init__(self, count: int, width_in: int, width: int) -> None:
        super().__init__()
        self.read = nn.Parameter(torch.zeros(count, width_in, 4 * width))
        self.recall = nn.Parameter(torch.zeros(count, width, 4 * width))
        self.bias = nn.Parameter(torch.zeros(count, 4 * width))

    def initialize(self, name: str, draw: Draw) -> None:
        """Every parameter from U(-1/sqrt(width), 1/sqrt(width)), PyTorch's own start for an LSTM."""
        bound = self.recall.shape[1] ** -0.5
        for part, parameter in self.named_parameters():
            fill(parameter, draw(f"{name}.{part}").uniform(-bound, bound, parameter.shape))

    def forward(self, events: Tensor, present: Tensor) -> Tensor:
        """States [B, L, count, width] after each of the events [B, L, width_in], of which ``present`` [B, L] are."""
        read = torch.einsum("bld,edg->bleg", events, self.read) + self.bias
        h = c = torch.zeros_like(read[:, 0, :, : self.recall.shape[1]])
        states = []
        # unbind, since the gradient of each read[:, step] would be a tensor of all steps
        for event, there in zip(read.unbind(dim=1), present.unbind(dim=1), strict=True):
            i, f, g, o = (event + torch.einsum("beh,ehg->beg", h, self.recall)).chunk(4, dim=-1)
            kept = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            here = there[:, None, None]
            h, c = torch.where(here, torch.sigmoid(o) * torch.tanh(kept), h), torch.where(here, kept, c)
            states.append(h)
        return torch.stack(states, dim=1)
