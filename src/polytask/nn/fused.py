"""Linear layers of one or several experts with their ReLU as one operator, whose gradient is written by hand.

    y_e = ReLU(x_e W_e + b_e)        g_e = 1[y_e > 0] ∘ ∂/∂y_e
    ∂/∂W_e = x_eᵀ g_e        ∂/∂b_e = Σ_rows g_e        ∂/∂x_e = g_e W_eᵀ

It never writes a transposed copy of an activation, remembers the input and the output alone, and computes in
bfloat16 where it is told to. :func:`plain` is the same in PyTorch's own operators, and the reference.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from polytask.kernels import mixture

_ONEDNN = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
LEAST = 1 << 24
"""Multiplications below which an operator written by hand costs more than it saves."""


def linear(x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool, reduced: bool, training: bool) -> Tensor:
    """Outputs [B, E, width_out] of E experts, of x [B, width_in] that all of them read or of x [B, E, width_in].

    ``weight`` [E, width_in, width_out], ``bias`` [E, width_out]. In ``training`` it is one operator where it is
    large, and with ``reduced`` computed and returned in bfloat16; else it is made of PyTorch's own operators.
    """
    dtype = _dtype(x.device.type, weight.dtype, reduced and training)
    if not training or not worth(x.shape[0], *weight.shape):
        return plain(x, weight, bias, relu, dtype)
    found: Tensor = Linear.apply(x, weight, bias, relu, dtype)  # type: ignore[no-untyped-call]
    return found


def plain(x: Tensor, weight: Tensor, bias: Tensor, relu: bool, dtype: torch.dtype) -> Tensor:
    """What :func:`linear` computes, in ``dtype``."""
    equation = "bd,edh->beh" if x.dim() == 2 else "bed,edh->beh"
    y = torch.einsum(equation, x.to(dtype), weight.to(dtype)) + bias.to(dtype)
    return F.relu(y) if relu else y


def worth(rows: int, experts: int, width_in: int, width_out: int) -> bool:
    """Whether a layer is large enough for an operator of its own."""
    return rows * experts * width_in * width_out >= LEAST


def _dtype(device: str, own: torch.dtype, reduced: bool) -> torch.dtype:
    """What to compute in: what autocast asks for, else bfloat16 if ``reduced``, else the layer's own precision."""
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.bfloat16 if reduced else own


@torch.library.custom_op("polytask::linear", mutates_args=())
def fused_linear(x: Tensor, weight: Tensor, bias: Tensor, relu: bool, dtype: torch.dtype) -> Tensor:
    """:func:`plain` as one operator."""
    experts, _, width_out = weight.shape
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    if x.dim() == 2:
        return _product(x, _side_by_side(weight), bias.flatten(), relu).view(-1, experts, width_out)
    y = x.new_empty(len(x), experts, width_out)
    for e in range(experts):
        if _by_onednn(x):
            y[:, e] = _product(x[:, e], weight[e], bias[e], relu)
        else:
            torch.addmm(bias[e], x[:, e], weight[e], out=y[:, e])
    return y.relu_() if relu and not _by_onednn(x) else y


@fused_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, relu: bool, dtype: torch.dtype) -> Tensor:
    return x.new_empty(x.shape[0], *bias.shape, dtype=dtype)


@torch.library.custom_op("polytask::linear_backward", mutates_args=())
def fused_linear_backward(
    g: Tensor, y: Tensor, x: Tensor, weight: Tensor, relu: bool, reads: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of weight, bias and, if anything ``reads`` it (else it is empty), of x.

    The outputs y and their gradient g are [B, E, width_out].
    """
    experts, width_in, width_out = weight.shape
    g = (torch.ops.aten.threshold_backward(g, y, 0) if relu else g).contiguous()
    of_bias = g.sum(dim=0).to(torch.float32)  # a sum asked for in float32 would first convert all of g
    own, w = x.to(y.dtype), weight.to(y.dtype)
    of_weight, of_x = torch.empty_like(weight, memory_format=torch.contiguous_format), x.new_empty(0)
    if x.dim() == 2:
        flat = g.view(len(g), -1)
        of_weight.copy_(_weights(own, flat).view(width_in, experts, width_out).transpose(0, 1))
        if reads:
            of_x = _product(flat, _side_by_side(w).T).to(x.dtype)
        return of_weight, of_bias, of_x
    if reads:
        of_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    for e in range(experts):
        of_weight[e] = _weights(own[:, e], g[:, e])
        if reads:
            of_x[:, e] = _product(g[:, e], w[e].T)
    return of_weight, of_bias, of_x


@fused_linear_backward.register_fake
def _(g: Tensor, y: Tensor, x: Tensor, weight: Tensor, relu: bool, reads: bool) -> tuple[Tensor, Tensor, Tensor]:
    return (
        weight.new_empty(weight.shape),
        y.new_empty(y.shape[1:], dtype=torch.float32),
        x.new_empty(x.shape if reads else 0),
    )


class Linear(torch.autograd.Function):
    """:func:`plain` with its gradient; both are one operator to whoever traces or compiles them."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, relu: bool, dtype: torch.dtype) -> Tensor:
        """The outputs [B, E, width_out]."""
        found: Tensor = fused_linear(x, weight, bias, relu, dtype)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the gradient is made of."""
        x, weight, _, ctx.relu, _ = inputs
        ctx.save_for_backward(x, weight, output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and bias, given that of the outputs."""
        x, weight, y = ctx.saved_tensors
        reads = ctx.needs_input_grad[0]
        of_weight, of_bias, of_x = fused_linear_backward(g, y, x, weight, ctx.relu, reads)
        return of_x if reads else None, of_weight, of_bias, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        """For several models at once: each gets what it would get alone."""
        return _one_by_one(Linear, info.batch_size, in_dims, inputs), 0


def mix(shares: Tensor, experts: Tensor, reader: Sequence[int], expert: Sequence[int]) -> Tensor:
    """What each reader gets [B, R, h] of experts [B, E, h], by the shares [B, P] of its pairs (:func:`mixture.mix`)."""
    found: Tensor = Mixture.apply(shares, experts, list(reader), list(expert))  # type: ignore[no-untyped-call]
    return found


@torch.library.custom_op("polytask::mix", mutates_args=())
def fused_mix(shares: Tensor, experts: Tensor, reader: Sequence[int], expert: Sequence[int]) -> Tensor:
    """:func:`polytask.kernels.mixture.mix` as one operator."""
    return mixture.mix(shares, experts, reader, expert)


@fused_mix.register_fake
def _(shares: Tensor, experts: Tensor, reader: Sequence[int], expert: Sequence[int]) -> Tensor:
    return shares.new_empty(shares.shape[0], max(reader) + 1, experts.shape[2])


@torch.library.custom_op("polytask::mix_backward", mutates_args=())
def fused_mix_backward(
    g: Tensor, shares: Tensor, experts: Tensor, reader: Sequence[int], expert: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """:func:`polytask.kernels.mixture.mix_backward` as one operator."""
    return mixture.mix_backward(g, shares, experts, reader, expert)


@fused_mix_backward.register_fake
def _(
    g: Tensor, shares: Tensor, experts: Tensor, reader: Sequence[int], expert: Sequence[int]
) -> tuple[Tensor, Tensor]:
    return shares.new_empty(shares.shape), experts.new_empty(experts.shape)


class Mixture(torch.autograd.Function):
    """:func:`mix` with its gradient."""

    @staticmethod
    def forward(shares: Tensor, experts: Tensor, reader: list[int], expert: list[int]) -> Tensor:
        """What the readers get [B, R, h]."""
        found: Tensor = fused_mix(shares, experts, reader, expert)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the gradient is made of."""
        shares, experts, ctx.reader, ctx.expert = inputs
        ctx.save_for_backward(shares, experts)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of shares and experts, given that of what the readers get."""
        return *fused_mix_backward(g, *ctx.saved_tensors, ctx.reader, ctx.expert), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        """For several models at once: each gets what it would get alone."""
        return _one_by_one(Mixture, info.batch_size, in_dims, inputs), 0


def _one_by_one(
    function: type[torch.autograd.Function], count: int, in_dims: Sequence[Any], inputs: Sequence[Any]
) -> Tensor:
    """Outputs [R, ...] for R = ``count`` models, given the dimension along which each of ``inputs`` holds theirs."""
    each = [
        [t.select(d, r) if isinstance(d, int) else t for t, d in zip(inputs, in_dims, strict=True)]
        for r in range(count)
    ]
    return torch.stack([function.apply(*own) for own in each])  # type: ignore[no-untyped-call]


def _side_by_side(weight: Tensor) -> Tensor:
    """Weights [E, in, out] as those of one layer [in, E * out]."""
    return weight.transpose(0, 1).reshape(weight.shape[1], -1)


def _by_onednn(x: Tensor) -> bool:
    # in float32 PyTorch multiplies by MKL, which takes twice as long as oneDNN on processors of other makers
    return x.device.type == "cpu" and x.dtype == torch.float32 and _ONEDNN


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """x [B, in] times weight [in, out], plus bias [out]."""
    if x.device.type == "cpu" and (bias is not None or _by_onednn(x)) and _ONEDNN:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight.T, bias, "relu" if relu else "none", [], "")
        return found
    y = torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)
    return y.relu_() if relu else y


def _weights(x: Tensor, g: Tensor) -> Tensor:
    """x [B, in] transposed times g [B, out]."""
    if _by_onednn(x):  # which falls back to a loop over numbers where rows have gaps
        return _product(g.contiguous().T, x.contiguous()).T
    return torch.mm(x.T, g)
