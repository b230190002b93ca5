"""Losses of watch time: labels in seconds of 0 or more, and predictions in seconds.

Each starts at the constant with the least training loss. What that constant predicts is the mean of the training
labels where the loss says so, and otherwise the statistic it names.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.loss.base import Context, Loss, Observed, check_option
from polytask.loss.quantiles import DurationQuantile, Quantile
from polytask.loss.seconds import seconds, softplus_inverse
from polytask.loss.tree import Tree

_NARROWEST = 0.01  # least s of the log-normal: without a bound, equal labels would make its likelihood infinite
_SHORTEST = 1e-3  # seconds that stand for a mean of 0 under a logarithm


class WeightedLogistic(nn.Module):
    """Weighted logistic regression: watched rows weigh their seconds w, and e^logit predicts seconds.

    ``exact``: w softplus(-s) + softplus(s), whose best constant is e^s = mean w. Otherwise as published, w softplus(-s)
    where w > 0 and softplus(s) where w = 0, whose e^s = sum w / (number of zeros) is too large by the factor
    1 / (share of zeros) (Covington et al., RecSys 2016).
    """

    outputs = 1

    def __init__(self, observed: Observed, *, exact: bool = True) -> None:
        super().__init__()
        label = seconds(observed)
        self.exact = exact
        unit = len(label) if exact else max(int((label == 0).sum()), 1)
        self.odds = float(label.sum()) / unit

    def target(self, label: Tensor, context: Context) -> Tensor:
        """Seconds."""
        return label

    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        """Weighted cross-entropy [B]."""
        unit = 1.0 if self.exact else (target == 0).to(logits.dtype)
        return target * F.softplus(-logits) + unit * F.softplus(logits)

    def predict(self, logits: Tensor, context: Context) -> Tensor:
        """e^logit seconds."""
        return logits.exp()

    def start(self) -> list[float]:
        """Log of the mean, or of the published form's odds."""
        return [math.log(max(self.odds, _SHORTEST))]


class LogMse(nn.Module):
    """Squared error of z = log(1 + w); predicts e^(logit + c) - 1 seconds, where c undoes the logarithm's bias.

    c = ``unexplained`` log mean e^(z - mean z) over the training labels (Duan 1983), which is half the variance of z
    where 1 + w is log-normal. With ``unexplained = 1`` a constant predicts the mean. A model that explains a share R²
    of the variance predicts too much by that share of c: 1 - R² corrects it, and 0 predicts log-normal medians.
    """

    outputs = 1
    smearing: Tensor

    def __init__(self, observed: Observed, *, unexplained: float = 1.0) -> None:
        super().__init__()
        check_option("unexplained", unexplained, 0, 1)
        label = seconds(observed)
        self.mean = float(label.log1p().mean())
        smearing = unexplained * (label.mean().log1p() - self.mean)
        self.register_buffer("smearing", smearing.to(observed.label.dtype))

    def target(self, label: Tensor, context: Context) -> Tensor:
        """log(1 + seconds)."""
        return label.log1p()

    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        """Squared error [B]."""
        return (logits - target).square()

    def predict(self, logits: Tensor, context: Context) -> Tensor:
        """Seconds, never below 0."""
        return torch.expm1(logits + self.smearing).clamp(min=0)

    def start(self) -> list[float]:
        """Mean of log(1 + w)."""
        return [self.mean]


class LogNormal(nn.Module):
    """Likelihood of 1 + w as log-normal: ((log(1 + w) - m) / s)^2 / 2 + log s, its two outputs m and s.

    The second logit is softplus^-1(s - 0.01). Predicts e^(m + s^2 / 2) - 1 seconds. One second is added so that
    rows of 0 seconds have a logarithm; where they are many, s grows to reach them and the mean comes out too large.
    """

    outputs = 2

    def __init__(self, observed: Observed) -> None:
        super().__init__()
        label = seconds(observed).log1p()
        self.mean, self.deviation = float(label.mean()), float(label.std(correction=0))

    def target(self, label: Tensor, context: Context) -> Tensor:
        """log(1 + seconds)."""
        return label.log1p()

    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        """Negative log-likelihood [B] of logits [B, 2], up to a constant."""
        mean, deviation = _moments(logits)
        return ((target - mean) / deviation).square() / 2 + deviation.log()

    def predict(self, logits: Tensor, context: Context) -> Tensor:
        """Seconds, never below 0."""
        mean, deviation = _moments(logits)
        return torch.expm1(mean + deviation.square() / 2).clamp(min=0)

    def start(self) -> list[float]:
        """Mean and standard deviation of log(1 + w)."""
        return [self.mean, softplus_inverse(max(self.deviation - _NARROWEST, _NARROWEST))]


def _moments(logits: Tensor) -> tuple[Tensor, Tensor]:
    return logits[:, 0], F.softplus(logits[:, 1]) + _NARROWEST


WATCH_TIME: dict[str, Loss] = {
    "weighted_logistic": Loss(WeightedLogistic, "pointwise", ("regression",)),
    "log_mse": Loss(LogMse, "pointwise", ("regression",)),
    "log_normal": Loss(LogNormal, "pointwise", ("regression",)),
    "quantile": Loss(Quantile, "pointwise", ("regression",)),
    "d2q": Loss(DurationQuantile, "pointwise", ("regression",), by=True),
    "tree": Loss(Tree, "pointwise", ("regression",)),
}
