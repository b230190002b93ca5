"""What losses of watch time measure on the training labels: seconds of 0 or more, and their quantiles."""

import math

import torch
from torch import Tensor

from polytask.errors import ConfigError
from polytask.loss.base import Observed


def seconds(observed: Observed) -> Tensor:
    """The labels that are known [M] float64, one 0 where none is; a label below 0 is a :class:`ConfigError`."""
    label = observed.label[~observed.label.isnan()].double()
    if (label < 0).any():
        raise ConfigError(f"a loss of watch time needs labels of 0 seconds or more, not {float(label.min()):g}")
    return label if len(label) else label.new_zeros(1)


def quantiles(values: Tensor, levels: Tensor) -> Tensor:
    """Quantiles [M] of values [N] at levels [M] in 0..1, linear between neighbors, for N of any size."""
    ordered = values.sort().values
    place = levels * (len(ordered) - 1)
    low = place.floor().long()
    return torch.lerp(ordered[low], ordered[(low + 1).clamp(max=len(ordered) - 1)], place - low)


def softplus_inverse(value: float) -> float:
    """The x with log(1 + e^x) = value > 0."""
    return value + math.log(-math.expm1(-value))
