"""Metrics of probabilities against labels 0 and 1: order, likelihood and calibration."""

import torch
from torch import Tensor

from polytask.metrics.base import AUC_MARGIN, Grouped, Metric, Rows
from polytask.metrics.pairs import ordered_pairs

CLIP = 1e-7
"""Probabilities are kept this far from 0 and 1 in ``logloss`` and ``ne``."""


def auc(rows: Rows, _: int) -> Tensor:
    """The share [] of (positive, negative) pairs in the right order, ties one half (Mann & Whitney, 1947)."""
    order = rows.prediction.argsort()
    right, every = ordered_pairs(*_sorted(rows, order))
    return (right / every).sum()


def gauc(rows: Rows, _: int) -> Grouped:
    """AUC of each group [G], the mean over groups weighted by their rows (Zhu et al., 2017); one class has none."""
    order = rows.prediction.argsort()
    right, every = ordered_pairs(*_sorted(rows, order[rows.group[order].argsort(stable=True)]))
    return Grouped(right / every, torch.bincount(rows.group, weights=rows.weight))


def logloss(rows: Rows, _: int) -> Tensor:
    """-y log p - (1 - y) log(1 - p) of every row [N]."""
    _check_probabilities("logloss", rows)
    p = rows.prediction.clamp(CLIP, 1 - CLIP)
    return -torch.where(rows.label == 1, p, 1 - p).log()


def normalized_entropy(rows: Rows, k: int) -> Tensor:
    """Log loss over the entropy [] of the base rate: below 1 is better than that constant (He et al., 2014)."""
    base = rows.mean(rows.label)
    entropy = -torch.xlogy(base, base) - torch.xlogy(1 - base, 1 - base)
    return torch.where(entropy > 0, rows.mean(logloss(rows, k)) / entropy, torch.nan)


def pcoc(rows: Rows, _: int) -> Tensor:
    """Predicted over observed positives []: sum p / sum y, 1 is right."""
    _check_probabilities("pcoc", rows)
    label = rows.mean(rows.label)
    return torch.where(label > 0, rows.mean(rows.prediction) / label, torch.nan)


def expected_calibration_error(rows: Rows, k: int) -> Tensor:
    """sum_b n_b / n |mean p - mean y| [] over k bins of equal width, [b/k, (b + 1)/k) (Naeini et al., 2015)."""
    _check_probabilities("ece", rows)
    b = (rows.prediction * k).long().clamp(max=k - 1)
    return torch.bincount(b, weights=rows.weight * (rows.prediction - rows.label)).abs().sum() / rows.weight.sum()


def _sorted(rows: Rows, order: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return rows.prediction[order], rows.label[order] == 1, rows.weight[order], rows.group[order]


def _check_probabilities(name: str, rows: Rows) -> None:
    if bool(((rows.prediction < 0) | (rows.prediction > 1)).any()):
        raise ValueError(f"{name}: predictions must be probabilities in 0..1, not logits")


_ONE_CLASS = "every label is of the same class"

PROBABILITIES: dict[str, Metric] = {
    "auc": Metric("auc", "higher", "values", auc, undefined=_ONE_CLASS, binary=True, margin=AUC_MARGIN),
    "gauc": Metric(
        "gauc",
        "higher",
        "values",
        gauc,
        undefined="no user has labels of both classes",
        binary=True,
        reads=("group",),
        margin=AUC_MARGIN,
    ),
    "logloss": Metric("logloss", "lower", "values", logloss, binary=True),
    "ne": Metric("ne", "lower", "values", normalized_entropy, undefined=_ONE_CLASS, binary=True),
    "pcoc": Metric("pcoc", "near 1", "values", pcoc, undefined="no label is 1", binary=True),
    "ece": Metric("ece", "lower", "values", expected_calibration_error, cutoff=True, binary=True, k=15),
}
"""Metrics of binary tasks by name."""
