"""How a kernel is compiled: at its first call, without a compiler on the machine, and kept on disk."""

from collections.abc import Callable
from functools import cache, wraps
from types import FunctionType
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def compiled(kernel: F) -> F:
    """``kernel``, a function over NumPy arrays and numbers, compiled by Numba when it is first called.

    It runs without the interpreter's lock and is not allowed to reorder sums, so results do not depend on the
    processor's vector width. Importing the module that holds it does not import Numba. A kernel may call another.
    """

    @cache
    def made() -> Callable[..., Any]:
        from numba import njit

        names = {n: kernel.__globals__[n] for n in kernel.__code__.co_names if n in kernel.__globals__}
        others = {n: k.made() for n, k in names.items() if hasattr(k, "made")}
        linked = FunctionType(kernel.__code__, kernel.__globals__ | others, kernel.__name__, kernel.__defaults__)
        linked.__module__, linked.__qualname__ = kernel.__module__, kernel.__qualname__
        found: Callable[..., Any] = njit(linked, nogil=True, cache=True, error_model="numpy")
        return found

    @wraps(kernel)
    def call(*arguments: Any) -> Any:
        return made()(*arguments)

    call.made = made  # type: ignore[attr-defined]  # what another kernel calls
    return call  # type: ignore[return-value]
