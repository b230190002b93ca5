"""Memory of a training step: what the C library does with freed blocks, and room for what lasts one call."""

import ctypes
import math
import platform
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

ALIGNED = 64
"""Bytes at whose multiples tensors start."""

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of malloc.h
_BYTES = 1 << 30


def keep_freed() -> bool:
    """Let the process keep blocks of up to 1 GiB that it frees, for its next ones; whether the C library can.

    By default glibc maps each block above 32 MiB anew, and the system fills it with zeros page by page: writing to it
    for the first time takes several times as long as computing what is written. Only glibc, on Linux, is told.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(_MMAP_THRESHOLD, _BYTES) and library.mallopt(_TRIM_THRESHOLD, 2 * _BYTES - 1))


class Room:
    """Tensors that are needed during one call: cut from ``given`` bytes, or made anew where there are none.

    If it is to be ``measured``, who calls for them does nothing else: ``used`` says how many bytes they are.
    """

    def __init__(self, given: Tensor | None = None, *, measured: bool = False) -> None:
        self.given, self.measured, self.used = given, measured, 0

    def clear(self) -> None:
        """Begin a call: what was cut before may be written over."""
        self.used = 0

    def __call__(self, like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """A tensor that is not filled, on the device of ``like`` and, unless it has a ``dtype``, of its precision."""
        dtype, first = dtype or like.dtype, self.used
        size = math.prod(shape) * dtype.itemsize
        self.used += -(-size // ALIGNED) * ALIGNED
        if self.given is None:
            return like.new_empty(shape, dtype=dtype)
        return self.given[first : first + size].view(dtype).view(shape)


class Places(NamedTuple):
    """Where an operator's ``results`` go, None for one that it makes itself, and room for what it needs meanwhile."""

    results: Sequence[Tensor | None]
    room: Room
