"""Watch time by a tree of yes-or-no questions on which interval it falls in."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import ConfigError
from polytask.loss.base import Context, Observed, check_option
from polytask.loss.pointwise import log_odds
from polytask.loss.seconds import quantiles, seconds


class Tree(nn.Module):
    """TPM: ``leaves`` intervals of equally many training labels under a balanced binary tree (Lin et al., KDD 2023).

    Each of the leaves - 1 outputs, level by level, is a node's logit of going right, to the longer times. The loss is
    the cross-entropy of the nodes on the way to the label's leaf, plus ``squared`` times the squared error of the
    expected seconds, plus ``variance`` times their variance, both in units of the training labels' variance. Predicts
    sum p(leaf) mean(leaf); a constant predicts the mean. A ``variance`` above 0 sharpens the distribution and moves
    the prediction off the mean.
    """

    edges: Tensor
    means: Tensor
    scale: Tensor

    def __init__(self, observed: Observed, *, leaves: int = 32, squared: float = 1.0, variance: float = 0.0) -> None:
        super().__init__()
        check_option("squared", squared, 0)
        check_option("variance", variance, 0)
        if leaves not in (2**depth for depth in range(2, 13)):
            raise ConfigError(f"leaves = {leaves} must be a power of 2 from 4 to 4096")
        self.outputs, self.squared, self.penalized = leaves - 1, squared, variance
        label = seconds(observed)
        edges = quantiles(label, torch.linspace(0, 1, leaves + 1, dtype=torch.float64)[1:-1])
        # placed as the buffers will place them: rounding may move an edge over a label
        edges = edges.to(observed.label.dtype).double()
        leaf = torch.bucketize(label, edges)  # as leaf_of, without its [N, leaves]
        counts = torch.bincount(leaf, minlength=leaves).double()
        empty = torch.cat([edges, edges[-1:]])  # no label falls there: any value inside will do
        means = torch.where(counts > 0, torch.bincount(leaf, label, leaves) / counts.clamp(min=1), empty)
        self.first = _node_log_odds(counts)
        scale = label.std(correction=0)
        kept = {"edges": edges, "means": means, "scale": scale if scale > 0 else torch.ones_like(scale)}
        for name, value in kept.items():
            self.register_buffer(name, value.to(observed.label.dtype))

    def target(self, label: Tensor, context: Context) -> Tensor:
        """Seconds."""
        return label

    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        """Cross-entropy and the two terms of the expectation [B]."""
        log_share = log_shares(logits)
        loss = -log_share.gather(1, leaf_of(target, self.edges)[:, None])[:, 0]
        mean, variance = self.moments(logits)
        return loss + (self.squared * (mean - target).square() + self.penalized * variance) / self.scale.square()

    def moments(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [B] and variance [B] of the row's seconds over the leaves: a prediction and its uncertainty."""
        share = log_shares(logits).exp()
        mean = (share * self.means).sum(dim=1)
        return mean, (share * (self.means - mean[:, None]).square()).sum(dim=1)

    def predict(self, logits: Tensor, context: Context) -> Tensor:
        """Expected seconds."""
        return self.moments(logits)[0]

    def start(self) -> list[float]:
        """Log-odds of every node among the training rows that reach it."""
        return self.first


def leaf_of(label: Tensor, edges: Tensor) -> Tensor:
    """Leaf [B] of each label [B]: how many edges [K - 1] are below it."""
    return (label[:, None] > edges).sum(dim=1)


def log_shares(logits: Tensor) -> Tensor:
    """log p(leaf) [B, K] of node logits [B, K - 1]: the sum over the way down of log sigmoid(± logit)."""
    log_share, first = torch.zeros_like(logits[:, :1]), 0
    while first < logits.shape[1]:
        nodes = logits[:, first : 2 * first + 1]
        first = 2 * first + 1
        log_share = torch.stack([log_share + F.logsigmoid(-nodes), log_share + F.logsigmoid(nodes)], dim=2).flatten(1)
    return log_share


def _node_log_odds(counts: Tensor) -> list[float]:
    found: list[float] = []
    width = len(counts)
    while width > 1:
        left, right = counts.view(-1, 2, width // 2).sum(dim=2).T
        found += [
            log_odds(r / (le + r)) if le + r else 0.0 for le, r in zip(left.tolist(), right.tolist(), strict=True)
        ]
        width //= 2
    return found
