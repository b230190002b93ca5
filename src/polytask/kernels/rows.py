"""Gradients on some rows of a large table: their sums by row, and optimizers that touch these rows alone.

Nothing here is as large as the table but its own state: one number per row for row-wise Adagrad.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from polytask.kernels.compiled import compiled
from polytask.kernels.threads import in_parts

_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: neighboring rows land far apart


class RowSums(NamedTuple):
    """Different ``rows`` [U] int64 of a table, and what is added up for each: ``sums`` [U, D]."""

    rows: Tensor
    sums: Tensor


def sum_rows(index: Tensor, values: Tensor) -> RowSums:
    """Add up values [M, D] by the row number index [M] each belongs to; rows in order of their first appearance."""
    if index.device.type != "cpu":
        return _plain_sum_rows(index, values)
    index, values = index.contiguous(), values.detach().contiguous()
    places, rows = np.empty(len(index), dtype=np.int32), np.empty(len(index), dtype=np.int64)
    bits = max(4, int(2 * len(index)).bit_length())
    count = _places(index.numpy(), np.zeros(1 << bits, dtype=np.int32), 64 - bits, places, rows)
    sums = torch.zeros(count, values.shape[1])
    given, found = values.numpy(), sums.numpy()
    in_parts(count, lambda first, end: _accumulate(places, given, first, end, found))
    return RowSums(torch.from_numpy(rows[:count]), sums)


def _plain_sum_rows(index: Tensor, values: Tensor) -> RowSums:
    rows, inverse = torch.unique(index, return_inverse=True)
    return RowSums(rows, values.new_zeros(len(rows), values.shape[1]).index_add_(0, inverse, values))


def rowwise_adagrad(table: Tensor, state: Tensor, found: RowSums, rates: Tensor, eps: float) -> None:
    """Update rows of table [N, D] and state [N] in place, by the rates [U] of those rows.

        s_r += mean_d g_rd^2        w_r -= rate · g_r / (√s_r + eps)

    Adagrad with one accumulator per row (Duchi et al., 2011; Mudigere et al., ISCA 2022, section 4.1.4).
    """
    if table.device.type != "cpu":
        _plain_rowwise_adagrad(table, state, found, rates, eps)
        return
    own, total, rows, sums, each = (t.numpy() for t in (table.detach(), state, found.rows, found.sums, rates))
    in_parts(len(rows), lambda *part: _rowwise_adagrad(own, total, (rows, sums), each, eps, part))


def _plain_rowwise_adagrad(table: Tensor, state: Tensor, found: RowSums, rates: Tensor, eps: float) -> None:
    new = state[found.rows] + found.sums.square().mean(dim=1)
    state[found.rows] = new
    table.detach().index_add_(0, found.rows, found.sums * (-rates / (new.sqrt() + eps))[:, None])


class AdamScales(NamedTuple):
    """What a step of Adam is made of: decay ``beta1``, ``beta2`` of the moments, their corrections, ``eps``."""

    beta1: float
    beta2: float
    correction1: float  # 1 - beta1^t
    correction2: float  # √(1 - beta2^t)
    eps: float


def lazy_adam(table: Tensor, first: Tensor, second: Tensor, found: RowSums, rates: Tensor, scales: AdamScales) -> None:
    """Update rows of table [N, D] and of Adam's moments [N, D] in place; the moments of other rows do not decay.

    The corrections are those of the number of steps, whichever rows they touched, as in PyTorch's SparseAdam.
    """
    if table.device.type != "cpu":
        _plain_lazy_adam(table, first, second, found, rates, scales)
        return
    own, moment, square = (t.numpy() for t in (table.detach(), first, second))
    rows, sums, each = (t.numpy() for t in (found.rows, found.sums, rates))
    in_parts(len(rows), lambda *part: _lazy_adam(own, (moment, square), (rows, sums), each, scales, part))


def _plain_lazy_adam(
    table: Tensor, first: Tensor, second: Tensor, found: RowSums, rates: Tensor, scales: AdamScales
) -> None:
    m = scales.beta1 * first[found.rows] + (1 - scales.beta1) * found.sums
    v = scales.beta2 * second[found.rows] + (1 - scales.beta2) * found.sums.square()
    first[found.rows], second[found.rows] = m, v
    steps = m / scales.correction1 / (v.sqrt() / scales.correction2 + scales.eps)
    table.detach().index_add_(0, found.rows, -rates[:, None] * steps)


@compiled
def _places(index: np.ndarray, slots: np.ndarray, shift: int, places: np.ndarray, rows: np.ndarray) -> int:
    """Number the different values of ``index`` in order of appearance, by open addressing; how many there are."""
    mask, count = len(slots) - 1, 0
    for i in range(len(index)):
        row = index[i]
        at = np.int64((np.uint64(row) * _SPREAD) >> np.uint64(shift))
        while slots[at] != 0 and rows[slots[at] - 1] != row:
            at = (at + 1) & mask
        if slots[at] == 0:
            rows[count] = row
            count += 1
            slots[at] = count
        places[i] = slots[at] - 1
    return count


@compiled
def _accumulate(places: np.ndarray, values: np.ndarray, first: int, end: int, sums: np.ndarray) -> None:
    for i in range(len(places)):
        place = places[i]
        if first <= place < end:
            for d in range(values.shape[1]):
                sums[place, d] += values[i, d]


@compiled
def _rowwise_adagrad(
    table: np.ndarray,
    state: np.ndarray,
    found: tuple[np.ndarray, np.ndarray],
    rates: np.ndarray,
    eps: float,
    part: tuple[int, int],
) -> None:
    rows, sums = found
    width = np.float32(sums.shape[1])
    for u in range(part[0], part[1]):
        row, squares = rows[u], np.float32(0.0)
        for d in range(sums.shape[1]):
            squares += sums[u, d] * sums[u, d]
        state[row] += squares / width
        step = rates[u] / (np.sqrt(state[row]) + np.float32(eps))
        for d in range(sums.shape[1]):
            table[row, d] -= step * sums[u, d]


@compiled
def _lazy_adam(
    table: np.ndarray,
    moments: tuple[np.ndarray, np.ndarray],
    found: tuple[np.ndarray, np.ndarray],
    rates: np.ndarray,
    scales: AdamScales,
    part: tuple[int, int],
) -> None:
    (first, second), (rows, sums), one = moments, found, np.float32(1.0)
    b1, b2, eps = np.float32(scales.beta1), np.float32(scales.beta2), np.float32(scales.eps)
    c1, c2 = np.float32(scales.correction1), np.float32(scales.correction2)
    for u in range(part[0], part[1]):
        row = rows[u]
        for d in range(sums.shape[1]):
            g = sums[u, d]
            m = b1 * first[row, d] + (one - b1) * g
            v = b2 * second[row, d] + (one - b2) * g * g
            first[row, d], second[row, d] = m, v
            table[row, d] -= rates[u] * (m / c1) / (np.sqrt(v) / c2 + eps)
