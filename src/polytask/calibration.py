"""Calibration: a map per task from predicted to calibrated probabilities, fitted on rows the model was not trained on.

Every map is non-decreasing, so the order of predictions stays, apart from ties that it may make.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from polytask.errors import ConfigError, DataError, TrainingError, did_you_mean

CLIP = 1e-7
"""Probabilities are kept this far from 0 and 1 before their logit is taken."""
_STEPS = 100
_TOLERANCE = 1e-12


class Calibration(Protocol):
    """A non-decreasing map of probabilities, and how it is fitted, written and read."""

    @classmethod
    def fit(cls, prediction: Tensor, label: Tensor, weight: Tensor) -> Self:
        """Fit to predictions in 0..1, labels 0 or 1 of both classes and weights > 0, each [N] float64."""

    def apply(self, prediction: Tensor) -> Tensor:
        """Calibrated probabilities of predictions, any shape; NaN stays NaN."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values that :func:`from_dict` reads back, fit for strict JSON."""


@dataclass(frozen=True, slots=True)
class Platt:
    """sigmoid(slope * logit(p) + shift), slope >= 0 (Platt, 1999).

    A model that orders its rows worse than chance gets slope 0, a constant.
    """

    slope: float
    shift: float

    def __post_init__(self) -> None:
        if not (0 <= self.slope < math.inf and math.isfinite(self.shift)):
            raise ConfigError(f"platt: slope = {self.slope} must be finite and >= 0, shift = {self.shift} finite")

    @classmethod
    def fit(cls, prediction: Tensor, label: Tensor, weight: Tensor) -> Self:
        """Newton's method on the cross-entropy with Platt's targets (1999, section 2.2); [N] float64 each.

        Targets are (P + 1) / (P + 2) for the P positives and 1 / (Q + 2) for the Q negatives, so that separable
        rows have a finite solution. Weights count relative to their mean. Constant predictions are only shifted.
        """
        weight = weight / weight.mean()
        positives, negatives = (weight * label).sum(), (weight * (1 - label)).sum()
        target = torch.where(label == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
        logit = _logit(prediction)
        center = (weight * logit).mean()
        base = float(_logit((weight * target).mean()))
        scale = float((weight * (logit - center).square()).mean().sqrt())
        if scale < _TOLERANCE:
            return cls(1.0, base - float(center))
        slope, shift = _newton((logit - center) / scale, target, weight, base)
        if slope <= 0:  # the best with slope >= 0, since the loss is convex
            return cls(0.0, base)
        return cls(slope / scale, shift - slope / scale * float(center))

    def apply(self, prediction: Tensor) -> Tensor:
        """Calibrated probabilities of predictions in 0..1, any shape."""
        return torch.sigmoid(self.slope * _logit(prediction.double()) + self.shift).to(prediction.dtype)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that :func:`from_dict` reads back."""
        return {"kind": "platt", "slope": self.slope, "shift": self.shift}


@dataclass(frozen=True, slots=True)
class Isotonic:
    """The non-decreasing step function nearest to the labels (Zadrozny & Elkan, 2002), with its gaps bridged.

    ``values`` at the knots ``predictions``, both ascending: the first and last prediction of every pooled block. So
    the map is flat within a block, where it is the fitted solution, linear between two blocks, and constant
    outside. Needs some thousand rows: a block at an end may well say 0 or 1.
    """

    predictions: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "predictions", tuple(self.predictions))
        object.__setattr__(self, "values", tuple(self.values))
        x, y = self.predictions, self.values
        inside = all(0 <= v <= 1 for v in (*x, *y))
        ascending = all(a < b for a, b in pairwise(x)) and all(a <= b for a, b in pairwise(y))
        if not x or len(x) != len(y) or not inside or not ascending:
            raise ConfigError("isotonic: predictions must ascend, with one value each that never falls, all in 0..1")

    @classmethod
    def fit(cls, prediction: Tensor, label: Tensor, weight: Tensor) -> Self:
        """Pool adjacent violators (Ayer et al., 1955), equal predictions first; [N] float64 each."""
        distinct, place = torch.unique(prediction, return_inverse=True)
        mass = torch.bincount(place, weights=weight)
        mean = torch.bincount(place, weights=weight * label) / mass
        blocks: list[tuple[float, float, int]] = []  # mean, weight, distinct predictions
        for level, weighs in zip(mean.tolist(), mass.tolist(), strict=True):
            block = (level, weighs, 1)
            while blocks and blocks[-1][0] >= block[0]:
                block = _pooled(blocks.pop(), block)
            blocks.append(block)
        sizes = torch.tensor([size for *_, size in blocks])
        last = sizes.cumsum(dim=0) - 1
        knots = torch.stack([last - sizes + 1, last], dim=1).flatten()
        values = [min(level, 1.0) for level, *_ in blocks for _ in range(2)]
        single = torch.cat([knots.diff() == 0, knots.new_zeros(1).bool()])  # a block of one prediction is one knot
        kept = (~single).nonzero().flatten().tolist()
        return cls(tuple(distinct[knots[kept]].tolist()), tuple(values[k] for k in kept))

    def apply(self, prediction: Tensor) -> Tensor:
        """Calibrated probabilities of predictions, any shape."""
        x, y = (torch.tensor(v, dtype=torch.float64) for v in (self.predictions, self.values))
        p = prediction.double().clamp(x[0], x[-1])
        right = torch.searchsorted(x, p).clamp(1 if len(x) > 1 else 0, len(x) - 1)
        left = (right - 1).clamp(min=0)
        share = (p - x[left]) / torch.where(right > left, x[right] - x[left], 1.0)
        # not torch.lerp, which may fall by a rounding error where it should rise
        return torch.minimum(y[left] + share * (y[right] - y[left]), y[right]).to(prediction.dtype)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that :func:`from_dict` reads back."""
        return {"kind": "isotonic", "predictions": list(self.predictions), "values": list(self.values)}


CALIBRATIONS: dict[str, type[Calibration]] = {"platt": Platt, "isotonic": Isotonic}
"""Every kind of calibration by name."""


def fit_calibration(kind: str, prediction: Tensor, label: Tensor, weight: Tensor | None = None) -> Calibration:
    """Fit a calibration to prediction [N] in 0..1 and label [N] 0 or 1.

    Rows whose label is NaN or whose weight [N] is 0 are left out. An unknown kind is a :class:`ConfigError`, rows of
    one class only a :class:`DataError`, a prediction that is not finite a :class:`TrainingError`. Two shapes, or
    values out of range, are a ValueError.
    """
    if kind not in CALIBRATIONS:
        raise ConfigError(did_you_mean("calibration", kind, CALIBRATIONS))
    weight = torch.ones_like(label) if weight is None else weight
    if not prediction.shape == label.shape == weight.shape or label.dim() != 1:
        shapes = ", ".join(str([*t.shape]) for t in (prediction, label, weight))
        raise ValueError(f"{kind}: prediction, label and weight must be [N], not {shapes}")
    known = ~label.isnan() & (weight > 0)
    p, y, w = (t.detach()[known].double() for t in (prediction, label, weight))
    _check(kind, p, y, w)
    return CALIBRATIONS[kind].fit(p, y, w)


def check_classes(kind: str, label: Tensor) -> None:
    """Raise :class:`DataError` unless known labels [N], to fit a calibration on, are of both classes."""
    if not bool((label != label[:1]).any()):
        found = f"every label is {int(label[0])}" if len(label) else "no row has a label"
        raise DataError(f"{kind}: {found}; a calibration needs rows of both classes, so give it more or other rows")


def from_dict(value: Mapping[str, Any]) -> Calibration:
    """Read what ``to_dict`` gave; a key that is unknown or missing, or a value that does not fit, is a ConfigError."""
    kind = value.get("kind")
    if kind not in CALIBRATIONS:
        raise ConfigError(did_you_mean("calibration", str(kind), CALIBRATIONS))
    known = [f.name for f in fields(CALIBRATIONS[kind])]  # type: ignore[arg-type]
    for key in value:
        if key not in (*known, "kind"):
            raise ConfigError(f"calibration '{kind}': " + did_you_mean("key", key, known))
    try:
        return CALIBRATIONS[kind](**{name: value[name] for name in known})
    except KeyError as error:
        raise ConfigError(f"calibration '{kind}': key {error} is missing") from None
    except TypeError as error:
        raise ConfigError(f"calibration '{kind}': {error}") from None


def _check(kind: str, prediction: Tensor, label: Tensor, weight: Tensor) -> None:
    if bad := int((~torch.isfinite(prediction)).sum()):
        raise TrainingError(f"{kind}: {bad} of {len(prediction)} predictions are not finite")
    if bool(((prediction < 0) | (prediction > 1)).any()) or bool(((label != 0) & (label != 1)).any()):
        raise ValueError(f"{kind}: predictions must be probabilities in 0..1 and labels 0 or 1")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(f"{kind}: weights must be finite and not below 0")
    check_classes(kind, label)


def _logit(p: Tensor) -> Tensor:
    return torch.logit(p, eps=CLIP)


def _newton(z: Tensor, target: Tensor, weight: Tensor, shift: float) -> tuple[float, float]:
    """Slope and shift that minimize the mean cross-entropy of sigmoid(slope z + shift), z of mean 0 and variance 1.

    A step is halved until the loss falls, so it converges from anywhere (Lin, Lin & Weng, 2007).
    """
    inputs = torch.stack([z, torch.ones_like(z)])

    def loss_at(at: Tensor) -> Tensor:
        score = at @ inputs
        return (weight * (torch.nn.functional.softplus(score) - target * score)).mean()

    at = torch.tensor([0.0, shift], dtype=torch.float64)
    for _ in range(_STEPS):
        p = torch.sigmoid(at @ inputs)
        gradient = inputs @ (weight * (p - target)) / len(z)
        hessian = (inputs * (weight * p * (1 - p))) @ inputs.T / len(z)
        step = torch.linalg.solve(hessian + _TOLERANCE * torch.eye(2, dtype=torch.float64), gradient)
        before, size = loss_at(at), 1.0
        while loss_at(at - size * step) > before and size > _TOLERANCE:
            size /= 2
        at = at - size * step
        if float(gradient @ step) < _TOLERANCE:
            break
    return float(at[0]), float(at[1])


def _pooled(first: tuple[float, float, int], second: tuple[float, float, int]) -> tuple[float, float, int]:
    weight = first[1] + second[1]
    return (first[0] * first[1] + second[0] * second[1]) / weight, weight, first[2] + second[2]
