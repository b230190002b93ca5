"""Ranges of rows given to threads: kernels run without the interpreter's lock."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import torch

_WORTH = 1 << 14  # rows below which handing a part to another thread costs more than it saves


def in_parts(count: int, run: Callable[[int, int], None], worth: int = _WORTH) -> None:
    """Call ``run(first, end)`` on ranges that make up ``range(count)``, in as many threads as PyTorch may use.

    Ranges have ``worth`` rows at least, so that there is enough to do for each.
    """
    parts = max(1, min(torch.get_num_threads(), count // max(1, worth)))
    if parts == 1:
        run(0, count)
        return
    bounds = [count * n // parts for n in range(parts + 1)]
    others = [_pool(parts - 1).submit(run, *span) for span in pairwise(bounds[1:])]
    try:
        run(0, bounds[1])
    finally:
        for other in others:
            other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="polytask-kernel")


if hasattr(os, "register_at_fork"):  # the threads of a pool do not live on in a child, which would wait for them
    os.register_at_fork(after_in_child=_pool.cache_clear)
