"""Mixtures of experts: weighted sums over lists of (reader, expert) pairs, and their gradients.

Experts are read, and their gradients written, in the precision they are stored in, float32 or bfloat16; shares, sums
and what readers get are float32. An expert that a reader does not list neither gives nor gets anything, not even
what is not a number.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from polytask.kernels.compiled import compiled
from polytask.kernels.threads import in_parts

_WORTH = 1 << 20  # multiplications


def mix(
    shares: Tensor, experts: Tensor, reader: Sequence[int], expert: Sequence[int], *, out: Tensor | None = None
) -> Tensor:
    """What each reader gets [B, R, h]: the sum over its pairs of shares [B, P] times experts [B, E, h].

    Pair p says that reader ``reader[p]`` reads expert ``expert[p]``; the readers are 0 to R - 1. On a CPU it is
    written to ``out``, if that is given.
    """
    if experts.device.type != "cpu":
        return plain_mix(shares, experts, reader, expert)
    found = torch.zeros(len(shares), max(reader) + 1, experts.shape[2]) if out is None else out.zero_()
    given, kept = shares.contiguous().numpy(), found.numpy()
    bits, pairs = _bits(experts), _pairs(reader, expert)
    in_parts(len(shares), lambda first, end: _mix(given, bits, *pairs, first, end, kept), _rows(kept, len(reader)))
    return found


def plain_mix(shares: Tensor, experts: Tensor, reader: Sequence[int], expert: Sequence[int]) -> Tensor:
    """:func:`mix` in PyTorch's own operators."""
    found = []
    for number in range(max(reader) + 1):
        own = [p for p, r in enumerate(reader) if r == number]
        part = shares.index_select(1, torch.tensor(own, device=shares.device))
        read = experts.index_select(1, torch.tensor([expert[p] for p in own], device=experts.device))
        found.append((part[..., None] * read).sum(dim=1))
    return torch.stack(found, dim=1)


def mix_backward(
    g: Tensor,
    shares: Tensor,
    experts: Tensor,
    reader: Sequence[int],
    expert: Sequence[int],
    *,
    out: Sequence[Tensor | None] = (None, None),
) -> tuple[Tensor, Tensor]:
    """Gradients of shares [B, P] and of experts [B, E, h], given g [B, R, h], that of what the readers got.

    On a CPU they are written to ``out``, where that is given.
    """
    if experts.device.type != "cpu":
        return plain_mix_backward(g, shares, experts, reader, expert)
    of_shares = torch.empty(shares.shape) if out[0] is None else out[0]
    of_experts = torch.empty(experts.shape, dtype=experts.dtype) if out[1] is None else out[1]
    of_readers, given, pairs = g.contiguous().numpy(), shares.contiguous().numpy(), _pairs(reader, expert)
    bits, sums, found = _bits(experts), of_shares.numpy(), _bits(of_experts)

    def part(first: int, end: int) -> None:
        _of_shares(of_readers, bits, *pairs, first, end, sums)
        _of_experts(of_readers, given, *pairs, first, end, found)

    in_parts(len(g), part, _rows(of_readers, len(reader)))
    return of_shares, of_experts


def plain_mix_backward(
    g: Tensor, shares: Tensor, experts: Tensor, reader: Sequence[int], expert: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """:func:`mix_backward` in PyTorch's own operators."""
    of_shares = [(g[:, r] * experts[:, e]).sum(dim=1) for r, e in zip(reader, expert, strict=True)]
    of_experts = torch.zeros_like(experts, dtype=torch.float32)
    for p, (r, e) in enumerate(zip(reader, expert, strict=True)):
        of_experts[:, e] += shares[:, p, None] * g[:, r]
    return torch.stack(of_shares, dim=1), of_experts.to(experts.dtype)


def _bits(values: Tensor) -> np.ndarray:
    """The bits of float32 numbers as uint32, of bfloat16 as uint16: the upper half of the same number in float32."""
    kind = torch.uint16 if values.dtype == torch.bfloat16 else torch.uint32
    found: np.ndarray = values.contiguous().view(kind).numpy()
    return found


def _rows(of_readers: np.ndarray, pairs: int) -> int:
    """Rows that are worth a thread of their own."""
    return max(1, _WORTH // max(1, pairs * int(of_readers.shape[2])))


def _pairs(reader: Sequence[int], expert: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(reader, dtype=np.int64), np.array(expert, dtype=np.int64)


@compiled
def _widen(stored: np.ndarray, bits: np.ndarray) -> None:
    """Write numbers [E, h] that are stored as the upper halves of float32 numbers, or as these, as whole ones."""
    shift = np.uint32(32 - 8 * stored.itemsize)
    for k in range(stored.shape[0]):
        for j in range(stored.shape[1]):
            bits[k, j] = np.uint32(stored[k, j]) << shift


@compiled
def _mix(
    shares: np.ndarray,
    experts: np.ndarray,
    reader: np.ndarray,
    expert: np.ndarray,
    first: int,
    end: int,
    found: np.ndarray,
) -> None:
    width = experts.shape[2]
    bits = np.empty(experts.shape[1:], dtype=np.uint32)
    values = bits.view(np.float32)
    for row in range(first, end):
        _widen(experts[row], bits)
        for p in range(len(reader)):
            r, e, share = reader[p], expert[p], shares[row, p]
            for j in range(width):
                found[row, r, j] += share * values[e, j]


@compiled
def _of_shares(
    g: np.ndarray,
    experts: np.ndarray,
    reader: np.ndarray,
    expert: np.ndarray,
    first: int,
    end: int,
    found: np.ndarray,
) -> None:
    width = experts.shape[2]
    bits = np.empty(experts.shape[1:], dtype=np.uint32)
    x = bits.view(np.float32)
    n = width // 8
    parts = np.empty(n, dtype=np.float32)
    for row in range(first, end):
        _widen(experts[row], bits)
        for p in range(len(reader)):
            r, e = np.uint64(reader[p]), np.uint64(expert[p])
            for j in range(n):  # eight terms at a time: a sum over all in turn would wait for itself
                low = g[row, r, j] * x[e, j] + g[row, r, j + n] * x[e, j + n]
                low += g[row, r, j + 2 * n] * x[e, j + 2 * n] + g[row, r, j + 3 * n] * x[e, j + 3 * n]
                high = g[row, r, j + 4 * n] * x[e, j + 4 * n] + g[row, r, j + 5 * n] * x[e, j + 5 * n]
                high += g[row, r, j + 6 * n] * x[e, j + 6 * n] + g[row, r, j + 7 * n] * x[e, j + 7 * n]
                parts[j] = low + high
            total = np.float32(0.0)
            for j in range(n):
                total += parts[j]
            for j in range(8 * n, width):
                total += g[row, r, j] * x[e, j]
            found[row, p] = total


@compiled
def _of_experts(
    g: np.ndarray,
    shares: np.ndarray,
    reader: np.ndarray,
    expert: np.ndarray,
    first: int,
    end: int,
    found: np.ndarray,
) -> None:
    count, width = found.shape[1], found.shape[2]
    half = found.itemsize == 2
    bits = np.empty((count, width), dtype=np.uint32)
    x = bits.view(np.float32)
    for row in range(first, end):
        x[:] = np.float32(0.0)
        for p in range(len(reader)):
            r, e, share = np.uint64(reader[p]), np.uint64(expert[p]), shares[row, p]
            for j in range(width):
                x[e, j] += share * g[row, r, j]
        for k in range(count):
            for j in range(width):
                u = bits[k, j]
                if half:  # to the nearest bfloat16, ties to even
                    u = (u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
                found[row, k, j] = u
