"""Small building blocks, how their parameters start, and where their randomness comes from."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise, zip_longest
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.nn import fused

Draw = Callable[[str], np.random.Generator]
_NUMBERS, _LEAST, _MOST = 1 << 20, 256, 1 << 14  # of a layer's outputs, and of rows, that are evaluated at once
REDUCED = "reduced"
"""The attribute of a layer that computes in bfloat16 (see :mod:`polytask.nn.precision`)."""


@runtime_checkable
class Initialized(Protocol):
    """A module that starts its own parameters; ``draw`` gives the generator of a parameter's name."""

    def initialize(self, name: str, draw: Draw) -> None:
        """Fill every parameter the module holds itself."""


class Uniform(nn.Module):
    """Numbers from U[0, 1), ``width`` per row, for a module that needs chance in training.

    They are drawn outside the model, as a function of seed, epoch and step, so that stacked replicas and resumed
    runs see the same; the model puts them in ``values`` [B, width] for one forward pass. None means: no chance.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.values: Tensor | None = None

    def forward(self) -> Tensor | None:
        """The numbers [B, width] of this pass; None outside training."""
        return self.values


class Dropout(nn.Module):
    """Zero a share of ``width`` features in training, scale the rest by 1 / (1 - share) (Srivastava et al., 2014).

    The features may be those of several experts: each has numbers of its own.
    """

    def __init__(self, width: int, share: float) -> None:
        super().__init__()
        self.share, self.uniform = share, Uniform(width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, width], or [B, E, width / E] of E experts, with a part of it zeroed; outside training x itself."""
        chance = self.uniform()
        return x if chance is None else x * (chance.reshape(x.shape) >= self.share) / (1 - self.share)


def dropouts(widths: Sequence[int], share: float) -> nn.ModuleList:
    """One :class:`Dropout` for each of ``widths``; where the share is 0 modules that draw and do nothing."""
    return nn.ModuleList(Dropout(width, share) if share else nn.Identity() for width in widths)


def mlp(sizes: Sequence[int], *, output: bool = False, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers of ``sizes``, each followed by ReLU and ``dropout``; with ``output`` the last one has neither."""
    layers: list[nn.Module] = []
    for number, (width_in, width_out) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(width_in, width_out))
        if not output or number < len(sizes) - 2:
            layers += [nn.ReLU(), *([Dropout(width_out, dropout)] if dropout else [])]
    return Layers(*layers)


class Layers(nn.Sequential):
    """What :func:`mlp` is made of; in training a linear layer and the ReLU after it are one operator."""

    def forward(self, x: Tensor) -> Tensor:
        """The layers in turn, of x [B, width]; in the precision of x, whatever that of the layers."""
        if not self.training:
            return super().forward(x)  # type: ignore[no-any-return, no-untyped-call]
        y, large = x, list[fused.Layer]()
        for module, after in zip_longest(self, [*self][1:]):
            relu = isinstance(after, nn.ReLU)
            if isinstance(module, nn.Linear) and fused.worth(len(x), 1, *module.weight.shape):
                large.append(fused.Layer(module.weight.T[None], module.bias[None], relu, reduced(module)))
            elif not isinstance(module, nn.ReLU):
                y, large = _together(y, large), []
                y = module(y.to(module.weight.dtype) if isinstance(module, nn.Linear) else y)
                y = F.relu(y) if relu else y
        return _together(y, large).to(x.dtype)


def _together(x: Tensor, large: Sequence[fused.Layer]) -> Tensor:
    return fused.layers(x, large, training=True).squeeze(1) if large else x


def rows_at_once(model: nn.Module) -> int:
    """Rows to evaluate a model for at once: 16,384, or fewer where its widest layer's outputs would take over 4 MiB."""
    widths = [m.out_features for m in model.modules() if isinstance(m, nn.Linear)]
    widths += [m.bias.numel() for m in model.modules() if isinstance(m, ExpertLinear)]
    return max(_LEAST, min(_MOST, _NUMBERS // max(widths, default=1)))


def reduced(layer: nn.Module) -> bool:
    """Whether a layer was chosen to compute in bfloat16."""
    return bool(getattr(layer, REDUCED, False))


class ExpertLinear(nn.Module):
    """``experts`` linear layers side by side, one kernel call for all; each starts from numbers of its own."""

    def __init__(self, experts: int, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(experts, width_in, width_out))
        self.bias = nn.Parameter(torch.zeros(experts, width_out))

    def initialize(self, name: str, draw: Draw) -> None:
        """Weights and biases from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as a linear layer."""
        bound = self.weight.shape[1] ** -0.5
        for part, parameter in self.named_parameters():
            fill(parameter, draw(f"{name}.{part}").uniform(-bound, bound, parameter.shape))

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """[B, E, width_out] of x [B, width_in], which every expert reads, or of x [B, E, width_in]."""
        return fused.layers(x, [self.layer(relu=relu)], training=self.training)

    def layer(self, *, relu: bool) -> fused.Layer:
        """What it computes, for an operator that computes several layers."""
        return fused.Layer(self.weight, self.bias, relu, reduced(self))


class Experts(nn.Module):
    """``count`` MLPs of equal ``sizes`` [width_in, *hidden]; every layer is followed by ReLU and ``dropout``."""

    def __init__(self, count: int, sizes: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.count, self.width = count, sizes[-1]
        self.layers = nn.ModuleList(ExpertLinear(count, a, b) for a, b in pairwise(sizes))
        self.dropouts = dropouts([count * width for width in sizes[1:]], dropout)

    def forward(self, x: Tensor, *, keep: bool = False) -> Tensor:
        """[B, E, width] of x [B, width_in] or, one input per expert, of x [B, E, width_in].

        It is in the precision of x; with ``keep`` in that of the last layer, for a mixture that reads it as it is.
        """
        y, chain = x, list[fused.Layer]()
        for layer, dropout in zip(self.layers, self.dropouts, strict=True):
            assert isinstance(layer, ExpertLinear)
            chain.append(layer.layer(relu=True))
            if not isinstance(dropout, nn.Identity):
                y, chain = dropout(fused.layers(y, chain, training=self.training)), []
        y = fused.layers(y, chain, training=self.training)
        return y if keep else y.to(x.dtype)


class Gate(nn.Module):
    """softmax(W x) over ``experts`` without a bias: how much of each expert the reader takes.

    ``reader`` is the number of the task that reads the mixture, None for a shared stream. The weights start near
    zero, so that every gate starts near uniform. With ``dropout`` an expert's share is set to zero with that
    probability in training and the rest renormalized, against polarization (Zhao et al., RecSys 2019).
    """

    def __init__(self, width: int, experts: int, reader: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.experts, self.reader, self.share = experts, reader, dropout
        self.weight = nn.Parameter(torch.zeros(experts, width))
        self.uniform = Uniform(experts) if dropout else None

    def initialize(self, name: str, draw: Draw) -> None:
        """Start from N(0, 0.01^2): near uniform."""
        fill(self.weight, draw(f"{name}.weight").standard_normal(self.weight.shape) * 0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Shares [B, experts], each row summing to 1, of the gate's input x [B, width]."""
        return self.shares(F.linear(x, self.weight))

    def shares(self, logits: Tensor) -> Tensor:
        """Shares [B, experts] of the products [B, experts] of the gate's input and weights."""
        chance = None if self.uniform is None else self.uniform()
        if chance is not None:
            dropped = chance < self.share
            dropped = dropped & ~dropped.all(dim=-1, keepdim=True)  # where every expert would be dropped, none is
            logits = logits.masked_fill(dropped, -1e4)
        return torch.softmax(logits, dim=-1)


def shares_of(gates: Sequence[Any], x: Tensor) -> list[Tensor]:
    """Shares [B, experts] of each :class:`Gate` of ``gates``, which all read x [B, width].

    In training it is one product for all; outside it each is called by itself, so that its use can be seen.
    """
    if not all(gate.training for gate in gates):
        return [gate(x) for gate in gates]
    logits = F.linear(x, torch.cat([gate.weight for gate in gates]))
    parts = torch.split(logits, [gate.experts for gate in gates], dim=-1)
    return [gate.shares(part) for gate, part in zip(gates, parts, strict=True)]


def mixture(gate: Tensor, experts: Tensor) -> Tensor:
    """Sum [B, h] of experts [B, E, h], weighted by gate [B, E]."""
    # on a CPU faster than the product of [1, E] and [E, h] for each row, which einsum makes of it
    return (gate[..., None] * experts).sum(dim=-2)


def fill(parameter: nn.Parameter, values: np.ndarray) -> None:
    """Overwrite a parameter with numbers drawn for it."""
    parameter.data.copy_(torch.from_numpy(values))


def initialize_linear(layer: nn.Linear, name: str, draw: Draw) -> None:
    """Weights and bias from U(−1/√fan_in, 1/√fan_in), PyTorch's own start for a linear layer."""
    bound = 1 / math.sqrt(layer.in_features)
    for part, parameter in layer.named_parameters():
        fill(parameter, draw(f"{name}.{part}").uniform(-bound, bound, parameter.shape))
