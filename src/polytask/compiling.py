"""A traced program compiled into native code by TorchInductor, where the machine has a C++ compiler."""

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule


@cache
def can_compile() -> bool:
    """Whether there is a C++ compiler that TorchInductor takes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def compile_graph(graph: GraphModule, tensors: Sequence[Tensor]) -> Callable[..., Any]:
    """``graph``, a function of flat ``tensors``, compiled for their shapes; what is not contiguous is copied first."""
    first: list[Any] = [t.contiguous() for t in tensors]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what the compiler itself imports
        try:
            # kernels are called from C++ too: a tenth of a small step; on a GPU that would ask for CUDA's headers
            compiled = torch._inductor.compile(graph, first, options={"cpp_wrapper": all(t.is_cpu for t in first)})
        except RuntimeError:  # some operators have no form for that
            compiled = torch._inductor.compile(graph, first)
    return lambda *given: compiled(*(t.contiguous() for t in given))
