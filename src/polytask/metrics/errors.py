"""Errors of values in the unit of the label: how far predictions are off, and in which order they stand."""

import torch
from torch import Tensor

from polytask.metrics.base import AUC_MARGIN, Grouped, Metric, Rows
from polytask.metrics.pairs import ordered_pairs


def squared_error(rows: Rows, _: int) -> Tensor:
    """(p - y)^2 of every row [N]."""
    return (rows.prediction - rows.label).square()


def root(rows: Rows, k: int) -> Tensor:
    """Root [] of the pooled mean squared error."""
    return rows.mean(squared_error(rows, k)).sqrt()


def absolute_error(rows: Rows, _: int) -> Tensor:
    """|p - y| of every row [N]."""
    return (rows.prediction - rows.label).abs()


def clipped_squared_error(rows: Rows, _: int) -> Tensor:
    """Squared error of every row [N], predictions cut to the label's range first."""
    return (rows.prediction.clamp(*rows.range) - rows.label).square()


def xauc(rows: Rows, _: int) -> Tensor:
    """Share [] of the pairs with y_i > y_j that have p_i > p_j, ties in p one half (Zhan et al., 2022).

    Labels are replaced by their ranks; a pair is counted at the highest bit in which its two ranks differ,
    where it is a pair of a positive and a negative among the rows that agree in all higher bits.
    """
    order = rows.prediction.argsort()
    rank = torch.unique(rows.label, return_inverse=True)[1]
    prediction, rank, weight = rows.prediction[order], rank[order], rows.weight[order]
    right, every = weight.new_zeros(()), weight.new_zeros(())
    for bit in reversed(range(int(rank.max()).bit_length())):
        found = ordered_pairs(prediction, (rank >> bit) % 2 == 1, weight, rank >> (bit + 1))
        right, every = right + found[0].sum(), every + found[1].sum()
        order = (rank >> bit).argsort(stable=True)  # predictions still ascend within the finer groups
        prediction, rank, weight = prediction[order], rank[order], weight[order]
    return right / every


def field_rce(rows: Rows, k: int) -> Grouped:
    """Relative calibration error |sum(y - p)| / |sum y| of each of k buckets of ``by`` (Pan et al., 2020).

    The buckets hold equal weight of rows, but equal values of ``by`` are never parted; their weight counts in the
    mean. A bucket whose labels sum to 0 has no value.
    """
    place = torch.unique(rows.by, return_inverse=True)[1]
    below = torch.bincount(place, weights=rows.weight).cumsum(dim=0)
    below, total = torch.cat([below.new_zeros(1), below[:-1]]), below[-1]
    bucket = torch.unique((below * k / total).long().clamp(max=k - 1), return_inverse=True)[1][place]
    off, label, weight = (
        torch.bincount(bucket, weights=rows.weight * x)
        for x in (rows.label - rows.prediction, rows.label, torch.ones_like(rows.label))
    )
    return Grouped(torch.where(label == 0, torch.nan, off.abs() / label.abs()), weight)


ERRORS: dict[str, Metric] = {
    "mse": Metric("mse", "lower", "values", squared_error),
    "rmse": Metric("rmse", "lower", "values", root),
    "mae": Metric("mae", "lower", "values", absolute_error),
    "mse_clipped": Metric("mse_clipped", "lower", "values", clipped_squared_error, reads=("range",)),
    "xauc": Metric("xauc", "higher", "values", xauc, undefined="every label is the same", margin=AUC_MARGIN),
    "field_rce": Metric(
        "field_rce",
        "lower",
        "values",
        field_rce,
        cutoff=True,
        undefined="the labels of every bucket sum to 0",
        reads=("by",),
        k=10,
    ),
}
"""Metrics of regression and binary tasks by name."""
