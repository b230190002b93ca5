"""Losses of a task that is conditional on another, as a conversion is on its click, over every row.

``context.given`` is the log-probability of the condition, and gradients go through it to the tasks it is made of.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.loss.base import Context, Loss, Observed, WeightUse, check_option, joint_label
from polytask.loss.pointwise import bce, log_odds

_LN2 = math.log(2)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) of x <= 0, elementwise, exact for x near 0 and far from it (Mächler 2012); finite at 0."""
    x = x.clamp(max=-torch.finfo(x.dtype).tiny)
    near = torch.log(-torch.expm1(x))
    far = torch.log1p(-torch.exp(x.clamp(max=-_LN2)))  # not near 0, where its unused gradient would be 0 * inf
    return torch.where(x > -_LN2, near, far)


def entire_space(logit: Tensor, given: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy [B] of the joint label [B] and p(condition) sigmoid(logit), given = log p(condition) [B].

    The product is a sum of logarithms, so that neither factor's gradient is lost where it is near 0 or 1
    (ESMM; Ma et al., SIGIR 2018).
    """
    log_joint = given + F.logsigmoid(logit)
    return -label * log_joint - (1 - label) * log1mexp(log_joint)


def inverse_propensity(given: Tensor, given_label: Tensor, clip: float = 0.05) -> Tensor:
    """o / max(p, clip) [B], o = 1 where the condition held (given_label [B] is 1), p = e^given; without gradient."""
    return torch.where(given_label == 1, 1 / given.detach().exp().clamp(min=clip), 0.0)


def effective_sample_size(weight: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 of weights [N]: []; how many rows of equal weight say as much (Kish 1965); 0 without any."""
    squares = weight.square().sum(dim=0)
    return weight.sum(dim=0).square() / torch.where(squares > 0, squares, 1.0)


class EntireSpace(nn.Module):
    """ESMM: the task's probability times its condition's against the label of both, over every row.

    A row whose condition did not hold counts as a joint 0, whatever its label; :func:`entire_space`.
    """

    outputs = 1

    def __init__(self, observed: Observed) -> None:
        super().__init__()
        self.mean = observed.held.mean

    def target(self, label: Tensor, context: Context) -> Tensor:
        """The joint label."""
        return joint_label(label, context.given_label)

    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        """Cross-entropy [B] of the joint label."""
        return entire_space(logits, given_of(context), target)

    def predict(self, logits: Tensor, context: Context) -> Tensor:
        """p(task | condition)."""
        return torch.sigmoid(logits)

    def log_probability(self, logits: Tensor, context: Context) -> Tensor:
        """log p(task | condition) [B]."""
        return F.logsigmoid(logits)

    def start(self) -> list[float]:
        """Log-odds of the rate where the condition held."""
        return [log_odds(self.mean)]


class Counterfactual(nn.Module):
    """ESCM²: ``conditional`` times a debiased loss of p(task | condition), plus ``joint`` times ESMM's.

    With o whether the condition held, e the cross-entropy of the row and w = o / max(p(condition), ``clip``), whose
    gradient is stopped, the debiased loss is w e (IPS), or with an ``imputed`` error ê, a second output,
    ê + w (e - ê) + w (e - ê)^2 (DR), where the square teaches ê alone (Wang et al., SIGIR 2022). Rows whose
    condition is unknown do not count. Few rows carry large weights: :meth:`weight_use` says how few.
    """

    def __init__(
        self, observed: Observed, imputed: bool, clip: float = 0.05, conditional: float = 1.0, joint: float = 1.0
    ) -> None:
        super().__init__()
        check_option("clip", clip, 1e-6, 1)
        check_option("conditional", conditional, 0)
        check_option("joint", joint, 0)
        self.imputed, self.outputs, self.mean = imputed, 2 if imputed else 1, observed.held.mean
        self.clip, self.conditional, self.joint = clip, conditional, joint

    def target(self, label: Tensor, context: Context) -> Tensor:
        """The joint label; NaN where it is unknown whether the condition held."""
        return joint_label(label, context.given_label) + 0 * held_of(context)

    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        """Both terms [B]."""
        given = given_of(context)
        logit = logits[:, 0] if self.imputed else logits
        weight = inverse_propensity(given, held_of(context), self.clip)
        debiased = weight * bce(logit, target)
        if self.imputed:
            guess = F.softplus(logits[:, 1])
            debiased = debiased + guess * (1 - weight) + weight * (bce(logit, target).detach() - guess).square()
        return self.conditional * debiased + self.joint * entire_space(logit, given, target)

    def weight_use(self, context: Context) -> WeightUse:
        """The :func:`effective_sample_size` of w over the rows where the condition held."""
        given, held = given_of(context), held_of(context) == 1
        weight = inverse_propensity(given, held_of(context), self.clip)
        clipped = (held & (given.exp() < self.clip)).sum() / held.sum().clamp(min=1)
        return WeightUse(float(effective_sample_size(weight)), int(held.sum()), float(clipped))

    def predict(self, logits: Tensor, context: Context) -> Tensor:
        """p(task | condition)."""
        return self.log_probability(logits, context).exp()

    def log_probability(self, logits: Tensor, context: Context) -> Tensor:
        """log p(task | condition) [B]."""
        return F.logsigmoid(logits[:, 0] if self.imputed else logits)

    def start(self) -> list[float]:
        """Log-odds of the rate where the condition held; the imputed error at the error of that constant."""
        start = log_odds(self.mean)
        rate = 1 / (1 + math.exp(-start))
        error = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
        return [start, math.log(math.expm1(error))][: self.outputs]


class Ordered(nn.Module):
    """AITM: the logit is that of condition and task together, held below the condition's by a penalty.

    Cross-entropy of the joint label, plus ``alpha`` max(p(both) - p(condition), 0) (Xi et al., KDD 2021).
    """

    outputs = 1

    def __init__(self, observed: Observed, *, alpha: float = 0.6) -> None:
        super().__init__()
        check_option("alpha", alpha, 0)
        self.alpha, self.mean = alpha, observed.joint.mean

    def target(self, label: Tensor, context: Context) -> Tensor:
        """The joint label."""
        return joint_label(label, context.given_label)

    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        """Cross-entropy and penalty [B]."""
        excess = (torch.sigmoid(logits) - given_of(context).exp()).clamp(min=0)
        return bce(logits, target) + self.alpha * excess

    def predict(self, logits: Tensor, context: Context) -> Tensor:
        """p(task | condition) = min(p(both) / p(condition), 1)."""
        return self.log_probability(logits, context).exp()

    def log_probability(self, logits: Tensor, context: Context) -> Tensor:
        """log p(task | condition) [B]."""
        return (F.logsigmoid(logits) - given_of(context)).clamp(max=0)

    def start(self) -> list[float]:
        """Log-odds of the joint rate."""
        return [log_odds(self.mean)]


def given_of(context: Context) -> Tensor:
    """log p(condition) [B], which a conditional loss cannot do without."""
    if context.given is None:
        raise ValueError("this loss needs context.given: the log-probability of the task's condition")
    return context.given


def held_of(context: Context) -> Tensor:
    """Whether the condition held [B]."""
    if context.given_label is None:
        raise ValueError("this loss needs context.given_label: whether the task's condition held")
    return context.given_label


def _ips(observed: Observed, *, clip: float = 0.05, conditional: float = 1.0, joint: float = 1.0) -> Counterfactual:
    return Counterfactual(observed, False, clip, conditional, joint)


def _dr(observed: Observed, *, clip: float = 0.05, conditional: float = 1.0, joint: float = 1.0) -> Counterfactual:
    return Counterfactual(observed, True, clip, conditional, joint)


CONDITIONAL: dict[str, Loss] = {
    "entire_space": Loss(EntireSpace, "pointwise", ("binary",), given=True),
    "escm_ips": Loss(_ips, "pointwise", ("binary",), given=True),
    "escm_dr": Loss(_dr, "pointwise", ("binary",), given=True),
    "ordered": Loss(Ordered, "pointwise", ("binary",), given=True),
}
