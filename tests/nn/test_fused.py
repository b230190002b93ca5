"""Layers as one operator: values and gradients of the plain form, however they are evaluated, in both precisions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from polytask.kernels import memory
from polytask.nn import fused, precision
from polytask.nn.bodies import BODIES, Shape
from polytask.nn.layers import ExpertLinear, Layers, initialize_linear, mlp, rows_at_once
from polytask.rng import generator
from polytask.schema import Input

OPERATORS = {"layers", "layers_backward", "mix", "mix_backward"}
MIXED = {"mmoe": {"levels": 2}, "ple": {"levels": 2}, "cgc": {}, "adatt": {}, "aitm": {}, "shared_bottom": {}}
MIXED |= {"home": {}, "omoe": {}, "stem": {}}
CPU = torch.device("cpu")


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators of their own for layers of any size."""
    monkeypatch.setattr(fused, "LEAST", 0)


def tensors(rows: int, experts: int, shared: bool) -> list[Tensor]:
    draw = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 12, generator=draw) if shared else torch.randn(rows, experts, 12, generator=draw)
    return [x, torch.randn(experts, 12, 10, generator=draw) / 3, torch.randn(experts, 10, generator=draw) / 3]


def layer(x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool, reduced: bool) -> Tensor:
    return fused.layers(x, [fused.Layer(weight, bias, relu, reduced)], training=True)


def gradients(run: Callable[..., Tensor], inputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    leaves = [t.clone().requires_grad_() for t in inputs]
    found = run(*leaves)
    weights = torch.linspace(-1, 1, found.numel()).view(found.shape)
    return found.detach(), list(torch.autograd.grad((found.float() * weights).sum(), leaves))


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("rows", "experts"), [(1, 1), (7, 3), (64, 2), (129, 5)])
def test_one_operator_gives_values_and_gradients_of_the_plain_form(
    everywhere: None, rows: int, experts: int, shared: bool, relu: bool, reduced: bool
) -> None:
    inputs = tensors(rows, experts, shared)
    y, found = gradients(lambda *t: layer(*t, relu=relu, reduced=reduced), inputs)
    plain, expected = gradients(lambda *t: fused.plain(*t, relu, torch.float32), inputs)
    assert y.dtype == (torch.bfloat16 if reduced else torch.float32)
    assert [g.dtype for g in found] == [torch.float32] * 3
    bound = 3e-2 if reduced else 1e-5
    torch.testing.assert_close(y.float(), plain, rtol=bound, atol=bound)
    for got, wanted in zip(found, expected, strict=True):  # in bfloat16 a unit near zero may be on the other side
        assert (got - wanted).norm() <= (5 * bound if reduced else bound) * wanted.norm().clamp(min=1)


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("rows", "experts"), [(1, 1), (40, 3), (129, 2)])
def test_several_layers_in_blocks_of_rows_give_what_each_gives_in_turn(
    everywhere: None, monkeypatch: pytest.MonkeyPatch, rows: int, experts: int, shared: bool, reduced: bool
) -> None:
    monkeypatch.setattr(fused, "_BLOCK", 2000)
    draw = torch.Generator().manual_seed(1)
    widths = [(10, 7), (7, 9)]
    further = [torch.randn(experts, *w, generator=draw) / 3 for w in widths]
    further += [torch.randn(experts, w, generator=draw) / 3 for _, w in widths]

    def together(x: Tensor, first: Tensor, bias: Tensor, *rest: Tensor) -> Tensor:
        weights, biases = (first, *rest[:2]), (bias, *rest[2:])
        chain = [fused.Layer(*both, relu, reduced) for *both, relu in zip(weights, biases, (1, 1, 0), strict=True)]
        return fused.layers(x, chain, training=True)

    def in_turn(x: Tensor, first: Tensor, bias: Tensor, *rest: Tensor) -> Tensor:
        for weight, own, relu in zip((first, *rest[:2]), (bias, *rest[2:]), (1, 1, 0), strict=True):
            x = fused.plain(x, weight, own, bool(relu), torch.float32)
        return x

    inputs = [*tensors(rows, experts, shared), *further]
    y, found = gradients(together, inputs)
    plain, expected = gradients(in_turn, inputs)
    bound = 5e-2 if reduced else 1e-5
    torch.testing.assert_close(y.float(), plain, rtol=bound, atol=bound)
    for got, wanted in zip(found, expected, strict=True):
        assert (got - wanted).norm() <= (5 * bound if reduced else bound) * wanted.norm().clamp(min=1)


def test_layers_of_different_precision_are_not_one_operator(everywhere: None) -> None:
    made = torch.nn.ModuleList([ExpertLinear(2, 12, 10), ExpertLinear(2, 10, 8), ExpertLinear(2, 8, 6)])
    made[2].reduced = True
    layers = [layer.layer(relu=True) for layer in made]  # type: ignore[operator]
    graph = make_fx(lambda x: fused.layers(x, layers, training=True))(torch.ones(3, 12))
    sizes = [len(n.args[1]) for n in graph.graph.nodes if str(n.target).startswith("polytask.layers")]
    assert sizes == [2, 1]


def test_rows_with_gaps_and_transposed_weights_are_read_right(everywhere: None) -> None:
    x, weight, bias = tensors(9, 3, shared=False)
    wide, turned = torch.randn(9, 3, 40), weight.transpose(1, 2).contiguous().transpose(1, 2)
    wide[..., :12] = x
    given = [wide[..., :12], turned, bias]
    found = layer(*given, relu=True, reduced=False)
    torch.testing.assert_close(found, fused.plain(x, weight, bias, True, torch.float32))


@pytest.mark.parametrize("reduced", [False, True])
def test_under_vmap_each_model_gets_what_it_gets_alone(everywhere: None, reduced: bool) -> None:
    inputs = [torch.stack([t, 2 * t]) for t in tensors(5, 3, shared=True)]

    def one(*given: Tensor) -> Tensor:
        return layer(*given, relu=True, reduced=reduced)

    def program(run: Callable[..., Tensor], *given: Tensor) -> tuple[Tensor, ...]:
        y, pull = vjp(run, *given)
        return y, *pull(torch.ones_like(y))

    alone = [program(one, *(t[r] for t in inputs)) for r in range(2)]
    for found, wanted in zip(program(vmap(one), *inputs), zip(*alone, strict=True), strict=True):
        assert torch.equal(found, torch.stack(list(wanted)))


def test_under_vmap_each_model_has_its_own_mixture() -> None:
    draw = torch.Generator().manual_seed(0)
    shares, experts = torch.rand(2, 6, 3, generator=draw), torch.randn(2, 6, 2, 9, generator=draw)
    found = vmap(lambda s, e: fused.mix(s, e, [0, 0, 1], [0, 1, 1]))(shares, experts)
    assert torch.equal(
        found, torch.stack([fused.mix(*own, [0, 0, 1], [0, 1, 1]) for own in zip(shares, experts, strict=True)])
    )


def body(name: str, dropout: float = 0.0) -> torch.nn.Module:
    shape = Shape(tuple(Input(f"f{i}", "category", "context", 5) for i in range(3)), 4, 2, ("a", "b"))
    options: dict[str, Any] = dict(MIXED[name]) | ({"dropout": dropout} if dropout else {})
    made: torch.nn.Module = BODIES[name](shape, **options)
    for place, module in made.named_modules():
        if isinstance(module, torch.nn.Linear):
            initialize_linear(module, place, lambda n: generator(1, n))
        elif hasattr(module, "initialize"):
            module.initialize(place, lambda n: generator(1, n))
    return made.train()


def embeddings(name: str) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.randn(*([3] if name == "stem" else []), 11, 3, 4, generator=draw)


def evaluated(made: torch.nn.Module, x: Tensor, trace: bool) -> tuple[list[Tensor], set[str]]:
    """Outputs and all gradients, of one reader after the other, and the operators of the program."""
    dense = {n: p.detach() for n, p in made.named_parameters()}

    def program(dense: dict[str, Tensor], x: Tensor) -> list[Tensor]:
        found, pull = vjp(lambda d, x: torch.stack(list(functional_call(made, d, (x,)))), dense, x)
        scale = torch.arange(1.0, 1 + found.numel()).view(found.shape) / found.numel()
        of_dense, of_x = pull(scale)
        return [found, of_x, *of_dense.values()]

    with torch.no_grad():
        if not trace:
            return program(dense, x), set()
        graph = make_fx(program)(dense, x)
        names = {str(n.target).split(".")[1] for n in graph.graph.nodes if str(n.target).startswith("polytask.")}
        return graph(dense, x), names


@pytest.mark.parametrize("name", sorted(MIXED))
def test_bodies_give_the_same_with_operators_of_their_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = body(name), embeddings(name)
    plain, _ = evaluated(made, x, trace=False)
    monkeypatch.setattr(fused, "LEAST", 0)
    traced, names = evaluated(made, x, trace=True)
    assert {"layers", "layers_backward"} <= names <= OPERATORS
    if name in ("mmoe", "ple", "cgc"):
        assert names == OPERATORS
    for found in (traced, evaluated(made, x, trace=False)[0]):
        for got, wanted in zip(found, plain, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(MIXED))
def test_bodies_in_bfloat16_point_where_those_in_float32_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = body(name), embeddings(name)
    plain, _ = evaluated(made, x, trace=False)
    monkeypatch.setattr(fused, "LEAST", 0)
    monkeypatch.setattr(precision, "pays", lambda *_: True)
    assert precision.choose(made, 11).startswith("bfloat16 in ")
    found, _ = evaluated(made, x, trace=True)
    assert [t.dtype for t in found] == [torch.float32] * len(plain)
    flat, wanted = (torch.cat([t.flatten() for t in each[1:]]) for each in (found, plain))
    assert torch.cosine_similarity(flat, wanted, dim=0) > 0.997


@pytest.mark.parametrize("name", ["mmoe", "shared_bottom"])
def test_evaluation_and_small_layers_use_operators_of_pytorch_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = body(name), embeddings(name)
    assert evaluated(made, x, trace=True)[1] == set()
    monkeypatch.setattr(fused, "LEAST", 0)
    assert evaluated(made, x, trace=True)[1] != set()
    assert evaluated(made.eval(), x, trace=True)[1] == set()


@pytest.mark.parametrize("name", ["mmoe", "ple", "shared_bottom"])
def test_layers_in_bfloat16_are_evaluated_in_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = body(name).eval(), embeddings(name)
    before = made(x)
    monkeypatch.setattr(precision, "pays", lambda *_: True)
    assert precision.choose(made, 11)
    assert all(torch.equal(a, b) for a, b in zip(made(x), before, strict=True))


def test_what_is_not_a_number_reaches_only_the_experts_that_were_read(everywhere: None) -> None:
    made = body("ple")
    for parameter in made.parameters():
        parameter.data.fill_(0.1)
    dense = {n: p.detach() for n, p in made.named_parameters()}
    _, pull = vjp(lambda d: torch.stack(list(functional_call(made, d, (torch.ones(4, 3, 4),)))), dense)
    marks = torch.zeros(2, 4, 64)
    marks[0] = torch.nan
    (found,) = pull(marks)
    experts = found["levels.1.experts.experts.layers.0.weight"]  # two of each task, then two of all
    assert experts.isnan().flatten(1).any(dim=1).tolist() == [True, True, False, False, True, True]
    assert experts.isnan().flatten(1).all(dim=1).tolist() == [True, True, False, False, True, True]


def test_layers_keep_names_and_give_the_same_with_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    made = mlp([6, 8, 8, 1], output=True, dropout=0.3).train()
    assert isinstance(made, Layers)
    assert [n for n, _ in made.named_parameters()] == [f"{i}.{p}" for i in (0, 3, 6) for p in ("weight", "bias")]
    made[2].uniform.values = torch.rand(5, 8, generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr]
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    plain = torch.nn.Sequential(*made)(x)
    torch.testing.assert_close(made(x), plain)
    monkeypatch.setattr(fused, "LEAST", 0)
    torch.testing.assert_close(made(x), plain)


def test_bfloat16_is_for_large_layers_and_processors_that_multiply_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "multiplies", lambda _: True)
    assert precision.pays(4096, 448, 256, CPU)
    assert not precision.pays(256, 96, 64, CPU)
    assert not precision.pays(1 << 20, 64, 1, CPU)
    layers = torch.nn.ModuleList([ExpertLinear(8, 448, 256), mlp([128, 64, 1], output=True)])
    assert precision.choose(layers, 4096) == "bfloat16 in 8 experts 448-256, layer 128-64"
    assert precision.choose(layers, 16) == ""
    monkeypatch.setattr(precision, "multiplies", lambda _: False)
    assert precision.choose(layers, 4096) == ""


def test_under_autocast_operators_compute_in_its_precision(everywhere: None) -> None:
    x, weight, bias = tensors(6, 2, shared=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x, weight, bias, relu=True, reduced=False)
    assert y.dtype == torch.bfloat16


def test_operators_describe_themselves_to_compilers() -> None:
    x, weight, bias = tensors(6, 2, shared=True)
    given = [weight, torch.randn(2, 10, 10) / 3], [bias, bias], [True, True]
    torch.library.opcheck(fused.fused_layers, (x, *given, torch.float32))
    outputs = fused.fused_layers(x, *given, torch.float32)
    for reads in (True, False):
        torch.library.opcheck(fused.fused_layers_backward, (outputs[1] + 1, x, outputs, given[0], given[2], reads))
    shares, g, y = torch.rand(6, 3), torch.randn(6, 2, 10), outputs[1]
    torch.library.opcheck(fused.fused_mix, (shares, y, [0, 0, 1], [0, 1, 1]))
    torch.library.opcheck(fused.fused_mix_backward, (g, shares, y, [0, 0, 1], [0, 1, 1]))


def test_room_is_cut_from_what_is_given_and_begins_anew_with_every_call() -> None:
    given, like = torch.zeros(400, dtype=torch.uint8), torch.ones(1)
    room, anew = memory.Room(given), memory.Room()
    for _ in range(2):
        room.clear()
        first, second = room(like, (2, 5)), room(like, (3,), torch.bfloat16)
        assert room.used == 128 and first.shape == (2, 5) and second.dtype == torch.bfloat16
        first.fill_(1.0)
        second.fill_(2.0)
        assert first.data_ptr() == given.data_ptr() and second.data_ptr() == given.data_ptr() + 64
        assert bool((first == 1).all())
    assert anew(like, (2, 5)).shape == (2, 5) and anew.used == 64


def test_wide_models_are_evaluated_for_fewer_rows_at_once() -> None:
    assert rows_at_once(mlp([8, 64, 1], output=True)) == 1 << 14
    assert rows_at_once(torch.nn.ModuleList([ExpertLinear(8, 12, 256), mlp([8, 64])])) == 512
    assert rows_at_once(mlp([8, 1 << 14])) == 256


def test_only_glibc_is_told_to_keep_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    assert memory.keep_freed() is False
