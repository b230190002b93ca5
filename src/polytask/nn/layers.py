"""Small building blocks, and how their parameters start."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import nn

Draw = Callable[[str], np.random.Generator]


def mlp(sizes: Sequence[int], *, output: bool = False) -> nn.Sequential:
    """Linear layers of ``sizes``, each followed by ReLU; with ``output`` the last one has none."""
    layers: list[nn.Module] = []
    for number, (width_in, width_out) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(width_in, width_out))
        if not output or number < len(sizes) - 2:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def initialize_linear(layer: nn.Linear, name: str, draw: Draw) -> None:
    """Weights and bias from U(−1/√fan_in, 1/√fan_in), PyTorch's own start for a linear layer."""
    bound = layer.in_features**-0.5
    for part, parameter in layer.named_parameters():
        values = draw(f"{name}.{part}").uniform(-bound, bound, parameter.shape)
        parameter.data.copy_(torch.from_numpy(values))
