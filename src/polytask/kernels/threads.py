"""Ranges of rows given to threads: kernels run without the interpreter's lock."""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch

_WORTH = 1 << 14  # rows below which handing a part to another thread costs more than it saves
_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def in_parts(rows: int, run: Callable[[int, int], None], worth: int = _WORTH) -> None:
    """Call ``run(first, end)`` on ranges that make up ``range(rows)``, in as many threads as PyTorch may use.

    Ranges have ``worth`` rows at least, so that there is enough to do for each. They are PyTorch's own threads where
    it uses OpenMP: after each of its operators these wait for the next by spinning, and others would have to share
    their processors.
    """
    parts = max(1, min(torch.get_num_threads(), rows // max(1, worth)))
    spans = list(pairwise(rows * n // parts for n in range(parts + 1)))
    if parts == 1:
        run(*spans[0])
    elif library := _openmp(os.getpid()):
        _in_team(library, spans, run)
    else:
        others = [_pool(parts - 1).submit(run, *span) for span in spans[1:]]
        try:
            run(*spans[0])
        finally:
            for other in others:
                other.result()


def _in_team(library: ctypes.CDLL, spans: list[tuple[int, int]], run: Callable[[int, int], None]) -> None:
    left, failed = iter(spans), list[BaseException]()

    def body(_: object) -> None:
        try:
            for span in left:  # whoever comes first: a team may have fewer threads than were asked for
                run(*span)
        except BaseException as error:  # nothing may pass through a frame of C
            failed.append(error)

    library.GOMP_parallel(_BODY(body), None, ctypes.c_uint(len(spans)), ctypes.c_uint(0))
    if failed:
        raise failed[0]


@cache
def _openmp(process: int) -> ctypes.CDLL | None:
    """The OpenMP library that PyTorch has loaded, if it can be found; in a child by fork its threads are gone."""
    if process != _PROCESS or not Path("/proc/self/maps").exists():
        return None
    home = str(Path(torch.__file__).parent)
    for line in Path("/proc/self/maps").read_text("utf-8", "replace").splitlines():
        path = line.split(maxsplit=5)[5:]
        if path and path[0].startswith(home) and "omp" in Path(path[0]).name:
            with suppress(OSError):
                library = ctypes.CDLL(path[0])
                if hasattr(library, "GOMP_parallel"):
                    return library
    return None


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="polytask-kernel")


_PROCESS = os.getpid()
if hasattr(os, "register_at_fork"):  # the threads of a pool do not live on in a child, which would wait for them
    os.register_at_fork(after_in_child=_pool.cache_clear)
