"""Linear layers of one or several experts with their ReLU as one operator, whose gradient is written by hand.

    y_e = ReLU(x_e W_e + b_e)        g_e = 1[y_e > 0] ∘ ∂/∂y_e
    ∂/∂W_e = x_eᵀ g_e        ∂/∂b_e = Σ_rows g_e        ∂/∂x_e = g_e W_eᵀ

Consecutive layers are one operator, which takes the rows in blocks on the way back: no gradient of a hidden layer is
ever held whole, and each is masked where it stands. It never writes a transposed copy of an activation, remembers
inputs and outputs alone, and computes in bfloat16 where it is told to. :func:`plain` is the same in PyTorch's own
operators, and the reference.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from polytask.kernels import mixture
from polytask.kernels.memory import Places, Room

_ONEDNN = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
LEAST = 1 << 24
"""Multiplications below which an operator written by hand costs more than it saves."""
_BLOCK = 1 << 21  # bytes of a hidden layer's gradient that are held at once, on a CPU


class Layer(NamedTuple):
    """A layer of E experts: ``weight`` [E, width_in, width_out], ``bias`` [E, width_out].

    ``relu`` says whether a ReLU follows, ``reduced`` whether it may compute in bfloat16.
    """

    weight: Tensor
    bias: Tensor
    relu: bool
    reduced: bool


def layers(x: Tensor, chain: Sequence[Layer], *, training: bool) -> Tensor:
    """Outputs [B, E, width_out] of the last layer, of x [B, width_in] that all experts read or [B, E, width_in].

    In ``training`` neighbors that are large are one operator, and those that are reduced are computed and returned in
    bfloat16; else they are made of PyTorch's own operators.
    """

    def form(layer: Layer) -> tuple[torch.dtype, bool]:
        dtype = _dtype(x.device.type, layer.weight.dtype, layer.reduced and training)
        return dtype, training and worth(x.shape[0], *layer.weight.shape)

    for (dtype, large), group in groupby(chain, form):
        weights, biases, relu, _ = zip(*group, strict=True)
        if large:
            *_, x = Chain.apply(x, list(relu), dtype, *weights, *biases)  # type: ignore[no-untyped-call]
            continue
        for weight, bias, active in zip(weights, biases, relu, strict=True):
            x = plain(x, weight, bias, active, dtype)
    return x


def plain(x: Tensor, weight: Tensor, bias: Tensor, relu: bool, dtype: torch.dtype) -> Tensor:
    """One layer of :func:`layers`, in ``dtype``."""
    equation = "bd,edh->beh" if x.dim() == 2 else "bed,edh->beh"
    y = torch.einsum(equation, x.to(dtype), weight.to(dtype)) + bias.to(dtype)
    return F.relu(y) if relu else y


def worth(rows: int, experts: int, width_in: int, width_out: int) -> bool:
    """Whether a layer is large enough for an operator of its own."""
    return rows * experts * width_in * width_out >= LEAST


def worth_mixing(experts: Tensor, pairs: int) -> bool:
    """Whether a mixture of experts [B, E, h] is; those in bfloat16 would first be copied to float32."""
    rows, _, width = experts.shape
    return worth(rows, 1, pairs, width * (4 if experts.dtype == torch.bfloat16 else 1))


def _dtype(device: str, own: torch.dtype, reduced: bool) -> torch.dtype:
    """What to compute in: what autocast asks for, else bfloat16 if ``reduced``, else the layer's own precision."""
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.bfloat16 if reduced else own


@torch.library.custom_op("polytask::layers", mutates_args=())
def fused_layers(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], relu: Sequence[bool], dtype: torch.dtype
) -> list[Tensor]:
    """The outputs of each of several layers as one operator."""
    return _layers(x, weights, biases, relu, dtype, out=Places([None] * len(relu), Room()))


@fused_layers.register_fake
def _(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], relu: Sequence[bool], dtype: torch.dtype
) -> list[Tensor]:
    return [x.new_empty(x.shape[0], *bias.shape, dtype=dtype) for bias in biases]


def _layers(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    relu: Sequence[bool],
    dtype: torch.dtype,
    *,
    out: Places,
) -> list[Tensor]:
    places, room = out
    room.clear()
    y, found = _as(x, dtype, room), list[Tensor]()
    stored = [_stored(w, n == 0 and x.dim() == 2, dtype, room) for n, w in enumerate(weights)]
    for weight, bias, active, place in zip(stored, biases, relu, places, strict=True) if not room.measured else ():
        y = _outputs(y, weight, bias.to(dtype), active, place)
        found.append(y)
    return found


def _outputs(x: Tensor, weight: Tensor, bias: Tensor, relu: bool, out: Tensor | None) -> Tensor:
    if x.dim() == 2:
        if out is None:
            return _product(x, weight, bias.flatten(), relu).view(-1, *bias.shape)
        for rows in _blocks([out], _BLOCK // 4):  # a product that is copied should still be in a cache
            out[rows].flatten(start_dim=1).copy_(_product(x[rows], weight, bias.flatten(), relu))
        return out
    y = x.new_empty(len(x), *bias.shape) if out is None else out
    for e, own in enumerate(weight):
        if _by_onednn(x):
            y[:, e] = _product(x[:, e], own, bias[e], relu)
        else:
            torch.addmm(bias[e], x[:, e], own, out=y[:, e])
    return y.relu_() if relu and not _by_onednn(x) else y


@torch.library.custom_op("polytask::layers_backward", mutates_args=())
def fused_layers_backward(
    g: Tensor, x: Tensor, outputs: Sequence[Tensor], weights: Sequence[Tensor], relu: Sequence[bool], reads: bool
) -> list[Tensor]:
    """Gradients of all weights, then of all biases, then, if anything ``reads`` it (else it is empty), of x.

    ``outputs`` [B, E, width_out] are those of :func:`fused_layers`, and g the gradient of the last.
    """
    out = Places([None] * (2 * len(weights) + 1), Room())
    return _layers_backward(g, x, outputs, weights, relu, reads, out=out)


@fused_layers_backward.register_fake
def _(
    g: Tensor, x: Tensor, outputs: Sequence[Tensor], weights: Sequence[Tensor], relu: Sequence[bool], reads: bool
) -> list[Tensor]:
    biases = [w.new_empty(w.shape[0], w.shape[2]) for w in weights]
    return [*(w.new_empty(w.shape) for w in weights), *biases, x.new_empty(x.shape if reads else 0)]


def _layers_backward(
    g: Tensor,
    x: Tensor,
    outputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    relu: Sequence[bool],
    reads: bool,
    *,
    out: Places,
) -> list[Tensor]:
    places, room = out
    room.clear()
    count, step = len(weights), next(_blocks(outputs, _BLOCK)).stop
    inputs = [_as(x, g.dtype, room), *outputs[:-1]]
    stored = [_stored(w, n == 0 and x.dim() == 2, g.dtype, room) for n, w in enumerate(weights)]
    masked = room(g, (step, *g.shape[1:]))
    below = [room(g, (step, *t.shape[1:])) if n or reads else g[:0] for n, t in enumerate(inputs)]
    products = [room(g, own.shape) if own.dim() == 2 else g[:0] for own in stored]
    if room.measured:
        return []
    of_weights = [w.new_empty(w.shape) if o is None else o for w, o in zip(weights, places, strict=False)]
    of_biases = [w.new_zeros(w.shape[0], w.shape[2]) for w in weights]
    of_x = x.new_empty(x.shape if reads else 0) if places[-1] is None else places[-1]
    for total in of_weights:
        total.zero_()
    for rows in _blocks(outputs, _BLOCK):
        h = g[rows]
        for n in reversed(range(count)):
            if relu[n]:
                h = _masked(h, outputs[n][rows], masked[: len(h)] if n == count - 1 else h)
            h = h.contiguous()
            of_biases[n] += h.sum(dim=0)
            _add_products(of_weights[n], inputs[n][rows], h, products[n])
            if n or reads:
                h = _products(h, stored[n], below[n][: len(h)])
        if reads:
            of_x[rows] = h
    return [*of_weights, *of_biases, of_x]


def _as(x: Tensor, dtype: torch.dtype, room: Room) -> Tensor:
    return x if x.dtype == dtype else room(x, x.shape, dtype).copy_(x)


def _stored(weight: Tensor, shared: bool, dtype: torch.dtype, room: Room) -> Tensor:
    """Weights [E, in, out] in ``dtype``; as those of one layer [in, E * out] if all experts have ``shared`` inputs."""
    if not shared:
        return _as(weight, dtype, room)
    if len(weight) == 1:
        return _as(weight[0], dtype, room)
    beside = weight.transpose(0, 1)
    return room(weight, beside.shape, dtype).copy_(beside).flatten(start_dim=1)


def _masked(g: Tensor, y: Tensor, found: Tensor) -> Tensor:
    """The gradient where y is above 0, else 0."""
    return torch.ops.aten.threshold_backward.grad_input(g, y, 0, grad_input=found)  # type: ignore[no-any-return]


def _add_products(sums: Tensor, x: Tensor, g: Tensor, product: Tensor) -> None:
    """Add to ``sums`` [E, width_in, width_out] x transposed times g [B, E, width_out]."""
    if x.dim() == 2:
        product = _transposed_product(x, g.flatten(start_dim=1), product)
        sums += product.view(x.shape[1], *g.shape[1:]).transpose(0, 1)
        return
    for e, own in enumerate(sums):
        own += _transposed_product(x[:, e], g[:, e])


def _products(g: Tensor, weight: Tensor, found: Tensor) -> Tensor:
    """g [B, E, width_out] times weights [E, width_in, width_out] transposed, or one product by [width_in, E * out]."""
    if weight.dim() == 2:
        g = g.flatten(start_dim=1)
        return _product(g, weight.T) if _by_onednn(g) else torch.mm(g, weight.T, out=found)
    for e, own in enumerate(weight):
        if _by_onednn(g):
            found[:, e] = _product(g[:, e], own.T)
        else:
            torch.mm(g[:, e], own.T, out=found[:, e])
    return found


def _blocks(outputs: Sequence[Tensor], most: int) -> Iterator[slice]:
    """Rows that are taken at once, on a CPU: no more than ``most`` bytes of the widest of ``outputs``."""
    count, row = len(outputs[0]), max(y[0].nbytes for y in outputs)
    step = min(count, max(1, most // row)) if outputs[0].device.type == "cpu" else count
    yield from (slice(first, first + step) for first in range(0, count, step))


class Chain(torch.autograd.Function):
    """:func:`fused_layers` with its gradient, which only the last layer's output has."""

    @staticmethod
    def forward(x: Tensor, relu: list[bool], dtype: torch.dtype, *parameters: Tensor) -> tuple[Tensor, ...]:
        """The outputs [B, E, width_out] of every layer; ``parameters`` are all weights, then all biases."""
        count = len(relu)
        return tuple(fused_layers(x, parameters[:count], parameters[count:], relu, dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the gradient is made of."""
        x, ctx.relu, _, *parameters = inputs
        ctx.mark_non_differentiable(*output[:-1])
        ctx.save_for_backward(x, *output, *parameters[: len(output)])

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weights and biases, given that of the last output."""
        x, *kept = ctx.saved_tensors
        count, reads = len(kept) // 2, ctx.needs_input_grad[0]
        *found, of_x = fused_layers_backward(g[-1], x, kept[:count], kept[count:], ctx.relu, reads)
        return of_x if reads else None, None, None, *found

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        """For several models at once: each gets what it would get alone."""
        found = _one_by_one(Chain, info.batch_size, in_dims, inputs)
        return found, (0,) * len(found)


def mix(shares: Tensor, experts: Tensor, reader: Sequence[int], expert: Sequence[int]) -> Tensor:
    """What each reader gets [B, R, h] of experts [B, E, h], by the shares [B, P] of its pairs (:func:`mixture.mix`)."""
    # under autocast a softmax on a CPU is in bfloat16
    found: Tensor = Mixture.apply(shares.float(), experts, list(reader), list(expert))  # type: ignore[no-untyped-call]
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


INTO: dict[Any, Any] = {
    torch.ops.polytask.layers.default: _layers,
    torch.ops.polytask.layers_backward.default: _layers_backward,
    torch.ops.polytask.mix.default: mixture.mix,
    torch.ops.polytask.mix_backward.default: mixture.mix_backward,
}
"""By operator, what writes its results to ``out`` where that says where: one tensor, a list, or :class:`Places`."""
ROOMS = frozenset({_layers, _layers_backward})
"""What takes :class:`Places`."""


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
) -> Any:
    """Outputs [R, ...] for R = ``count`` models, given the dimension along which each of ``inputs`` holds theirs."""
    each = [
        [t.select(d, r) if isinstance(d, int) else t for t, d in zip(inputs, in_dims, strict=True)]
        for r in range(count)
    ]
    return tree_map(lambda *own: torch.stack(own), *(function.apply(*own) for own in each))  # type: ignore[no-untyped-call]


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


def _transposed_product(x: Tensor, g: Tensor, found: Tensor | None = None) -> Tensor:
    """x [B, in] transposed times g [B, out]."""
    if _by_onednn(x):  # which falls back to a loop over numbers where rows have gaps
        return _product(g.contiguous().T, x.contiguous()).T
    return torch.mm(x.T, g) if found is None else torch.mm(x.T, g, out=found)
