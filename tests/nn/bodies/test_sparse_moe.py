import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from polytask import rng
from polytask.errors import ConfigError
from polytask.nn.bodies.shape import Shape
from polytask.nn.bodies.sparse_moe import (
    Routed,
    Router,
    SparseMoe,
    TopK,
    picked,
    squared_variation,
    switch_loss,
    union,
    z_loss,
)
from polytask.nn.layers import Gate, mixture
from polytask.schema import Input

NORMAL = NormalDist()


def shape(tasks: int = 2) -> Shape:
    return Shape(tuple(Input(f"f{n}", "category", "context", 5) for n in range(2)), 3, tasks)


def random(body: torch.nn.Module, seed: int = 1) -> Any:
    draw = torch.Generator().manual_seed(seed)
    for parameter in body.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw))
    return body


def rows(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(seed))


def chance(body: Any, count: int) -> Any:
    """The body with numbers for one pass put in its router."""
    uniform = body.router.uniform
    uniform.values = torch.rand(count, uniform.width, generator=torch.Generator().manual_seed(5))
    return body


class Plain:
    """The body row by row, in float64: logits, shares and probabilities [B, T, E] as lists."""

    def __init__(self, body: SparseMoe, x: Tensor, experts: int, k: int) -> None:
        values = {n: p.detach().double().numpy() for n, p in body.named_parameters()}
        chance = None if body.router.uniform is None else body.router.uniform.values
        self.k, self.clean, self.noisy, self.scale = k, [], [], []
        for row, v in enumerate(x.flatten(start_dim=1).double().numpy()):
            clean = [[w @ v for w in task] for task in values["router.weight"]]
            if "router.noise_weight" in values:
                scale = [[math.log1p(math.exp(w @ v)) + 0.01 for w in task] for task in values["router.noise_weight"]]
            noisy = [[*task] for task in clean]
            for t in range(len(clean)):
                for e in range(experts):
                    if chance is not None:
                        noisy[t][e] += NORMAL.inv_cdf(chance[row, t * experts + e].item()) * scale[t][e]
            self.clean.append(clean)
            self.noisy.append(noisy)
            self.scale.append(scale if "router.noise_weight" in values else None)
        self.shares = [[self.share(task) for task in row] for row in self.noisy]

    def share(self, logits: list[float]) -> list[float]:
        best = sorted(range(len(logits)), key=lambda e: -logits[e])[: self.k]
        whole = range(len(logits)) if self.k == 1 else best
        total = sum(math.exp(logits[e]) for e in whole)
        return [math.exp(z) / total if e in best else 0.0 for e, z in enumerate(logits)]

    def pick(self, row: int, task: int, expert: int) -> float:
        others = sorted((z for e, z in enumerate(self.noisy[row][task]) if e != expert), reverse=True)
        return NORMAL.cdf((self.clean[row][task][expert] - others[self.k - 1]) / self.scale[row][task][expert])

    def z(self) -> float:
        every = [math.log(sum(map(math.exp, task))) ** 2 for row in self.clean for task in row]
        return sum(every) / len(every)


def variation(amounts: Any) -> float:
    return float(np.var(amounts) / np.mean(amounts) ** 2)


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_outputs_are_those_of_the_equations(k: int, noise: bool) -> None:
    body = random(SparseMoe(shape(), experts=4, k=k, layers=(5,), noise=noise))
    found = (chance(body, 4) if noise else body)(rows())
    expected = Plain(body, rows(), 4, k).shares
    (layer,) = body.experts.layers
    weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
    for row, x in enumerate(rows().flatten(start_dim=1).double().numpy()):
        outputs = np.stack([np.maximum(x @ weight[e] + bias[e], 0) for e in range(4)])
        for task in range(2):
            np.testing.assert_allclose(
                found[task][row].detach(), np.array(expected[row][task]) @ outputs, rtol=1e-3, atol=1e-4
            )


@pytest.mark.parametrize("drawn", [True, False])
def test_the_penalty_is_that_of_importance_load_of_the_union_and_logits(drawn: bool) -> None:
    body = random(SparseMoe(shape(), experts=4, k=2, layers=(5,), balance=0.5, z_loss=0.25))
    (chance(body, 4) if drawn else body)(rows())
    plain = Plain(body, rows(), 4, 2)
    importance = np.array(plain.shares).sum(axis=(0, 1))
    load = [sum(1 - math.prod(1 - plain.pick(row, task, e) for task in range(2)) for row in range(4)) for e in range(4)]
    expected = 0.5 * (variation(importance) + variation(load)) + 0.25 * plain.z()
    assert body.penalty.item() == pytest.approx(expected, rel=1e-4)


def test_without_noise_or_with_every_expert_picked_importance_alone_counts() -> None:
    for options in ({"k": 2, "noise": False}, {"k": 3}):
        body = random(SparseMoe(shape(), experts=3, layers=(5,), balance=0.5, z_loss=0.0, **options))
        body(rows())
        importance = np.array(Plain(body, rows(), 3, body.k).shares).sum(axis=(0, 1))
        assert body.penalty.item() == pytest.approx(0.5 * variation(importance), rel=1e-4)


def test_the_penalty_of_one_expert_per_row_is_that_of_switch() -> None:
    body = random(SparseMoe(shape(), experts=3, k=1, layers=(5,), balance=0.5, z_loss=0.0))
    chance(body, 4)(rows())
    plain = Plain(body, rows(), 3, 1)
    routed, mean = np.zeros(3), np.zeros(3)
    for logits in (task for row in plain.noisy for task in row):
        routed[int(np.argmax(logits))] += 1 / 8
        mean += np.exp(logits) / np.exp(logits).sum() / 8
    assert body.penalty.item() == pytest.approx(0.5 * 3 * (routed * mean).sum(), rel=1e-4)


def test_there_is_no_penalty_outside_training() -> None:
    body = random(SparseMoe(shape(), experts=3, layers=(5,))).eval()
    body(rows())
    assert body.penalty is None


def test_known_values_of_the_balance_losses() -> None:
    assert squared_variation(torch.tensor([2.0, 2.0, 2.0])).item() == 0
    assert squared_variation(torch.tensor([1.0, 3.0])).item() == pytest.approx(0.25)
    assert squared_variation(torch.tensor([4.0, 0.0, 0.0, 0.0])).item() == pytest.approx(3)  # E − 1: one does all
    even, uniform = torch.eye(4)[:, None], torch.full((4, 1, 4), 0.25)
    assert switch_loss(even * uniform, uniform).item() == 1
    crowded = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]).expand(4, 1, 4)
    assert switch_loss(crowded, crowded).item() == 4  # E
    assert z_loss(torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])).item() == pytest.approx(
        (math.log(2) ** 2 + math.log(4) ** 2) / 2
    )
    assert union(torch.tensor([[[0.5, 0.0], [0.5, 1.0]]])).tolist() == [[0.75, 1.0]]


def test_an_expert_is_picked_as_often_as_its_probability_says() -> None:
    clean, scale = torch.tensor([0.3, -0.2, 0.1, -0.5]), torch.tensor([0.5, 1.0, 0.8, 1.5])
    noise = torch.randn(4, generator=torch.Generator().manual_seed(0)) * scale
    routed = Routed((clean)[None, None], (clean + noise)[None, None], scale[None, None])
    found = picked(routed, 2)[0, 0]
    for expert in range(4):
        again = (clean + noise).repeat(100_000, 1)
        fresh = torch.randn(100_000, generator=torch.Generator().manual_seed(1 + expert))
        again[:, expert] = clean[expert] + fresh * scale[expert]
        often = (torch.topk(again, 2).indices == expert).any(dim=1).float().mean()
        assert found[expert].item() == pytest.approx(often.item(), abs=0.005)


def test_a_union_that_is_even_costs_nothing_even_where_every_task_has_experts_of_its_own() -> None:
    body = SparseMoe(shape(), experts=4, k=2, layers=(5,), noise=False, balance=1.0, z_loss=0.0)
    x = torch.ones(4, 2, 3)
    body.router.weight.data = torch.tensor([[1.0, 1.0, -1.0, -1.0], [-1.0, -1.0, 1.0, 1.0]])[..., None].expand(2, 4, 6)
    body(x)
    assert body.penalty is not None and body.penalty.item() == pytest.approx(0, abs=1e-6)
    body.router.weight.data = torch.tensor([[1.0, 1.0, -1.0, -1.0]] * 2)[..., None].expand(2, 4, 6)
    body(x)
    assert body.penalty.item() == pytest.approx(1)  # half of the experts do all


def test_with_all_experts_picked_it_is_a_mixture_of_experts_with_soft_gates() -> None:
    body = random(SparseMoe(shape(), experts=3, k=3, layers=(5,))).eval()
    v = rows().flatten(start_dim=1)
    for task, found in enumerate(body(rows())):
        gate = Gate(6, 3)
        gate.weight.data = body.router.weight.data[task]
        torch.testing.assert_close(found, mixture(gate(v), body.experts(v)))


def test_of_one_expert_per_row_the_router_still_learns() -> None:
    body = random(SparseMoe(shape(), experts=3, k=1, layers=(5,), noise=False, balance=0.0, z_loss=0.0))
    body(rows())[0].sum().backward()
    grad = body.router.weight.grad
    assert grad[0].any() and not grad[1].any()


def test_shares_of_the_experts_not_picked_are_zero_and_get_no_gradient() -> None:
    gate, logits = TopK(4, 2, reader=1), torch.tensor([[0.0, 2.0, 1.0, -1.0]], requires_grad=True)
    shares = gate(logits)
    sure = 1 / (1 + math.exp(-1))
    torch.testing.assert_close(shares.detach(), torch.tensor([[0.0, sure, 1 - sure, 0.0]]))
    shares[0, 1].backward()
    assert logits.grad is not None and (logits.grad != 0).tolist() == [[False, True, True, False]]
    assert TopK(3, 2)(torch.zeros(1, 3)).count_nonzero() == 2  # of equal ones, too
    assert (gate.experts, gate.reader) == (4, 1)


def test_noise_is_normal_with_the_scale_of_the_router_and_finite_at_the_ends() -> None:
    router = Router(6, 1, 2, noise=True)
    assert router.uniform is not None
    router.uniform.values = torch.rand(100_000, 2, generator=torch.Generator().manual_seed(0))
    routed = router(torch.zeros(100_000, 6))
    assert routed.noisy.std().item() == pytest.approx(math.log(2) + 0.01, rel=0.01)
    assert routed.noisy.mean().item() == pytest.approx(0, abs=0.01)
    router.uniform.values = torch.tensor([[0.0, 1 - 2**-24]])
    assert router(torch.zeros(1, 6)).noisy.isfinite().all()


def test_the_router_computes_in_float32() -> None:
    body = random(SparseMoe(shape(), experts=3, layers=(5,))).bfloat16()
    x = rows().bfloat16()
    assert body.router(x.flatten(start_dim=1)).noisy.dtype == torch.float32
    assert [z.dtype for z in body(x)] == [torch.bfloat16] * 2


def test_gates_start_near_even_and_noise_at_softplus_of_zero() -> None:
    router = random(Router(6, 2, 3, noise=True))
    router.initialize("router", lambda name: rng.generator(0, f"init/{name}"))
    assert 0 < router.weight.abs().max() < 0.05 and not router.noise_weight.any()


@pytest.mark.parametrize(("k", "expected"), [(1, 0.01), (2, 0.1)])
def test_the_weight_of_the_balance_goes_by_the_number_picked(k: int, expected: float) -> None:
    assert SparseMoe(shape(), k=k).balance == expected
    assert SparseMoe(shape(), k=k, balance=0.0).balance == 0


@pytest.mark.parametrize("k", [1, 2])
def test_stacked_replicas_in_training_give_what_each_gives_alone(k: int) -> None:
    bodies = [random(SparseMoe(shape(), experts=4, k=k, layers=(4,)), seed) for seed in range(3)]
    parameters, _ = stack_module_state(bodies)
    x = torch.stack([rows(5, seed) for seed in range(3)])
    chance(bodies[0], 5)

    def one(parameters: Any, x: Tensor) -> tuple[list[Tensor], Tensor]:
        found = functional_call(bodies[0], (parameters, {}), (x,))
        penalty, bodies[0].penalty = bodies[0].penalty, None
        return found, penalty

    outputs, penalties = vmap(one)(parameters, x)
    for number, body in enumerate(bodies):
        for stacked, alone in zip(outputs, chance(body, 5)(x[number]), strict=True):
            torch.testing.assert_close(stacked[number], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(penalties[number], body.penalty)


@pytest.mark.parametrize(
    "options",
    [{"k": 0}, {"k": 5, "experts": 4}, {"layers": ()}, {"layers": (0,)}, {"balance": -1.0}, {"z_loss": -1.0}],
)
def test_a_wrong_option_is_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"body 'sparse_moe': .* must be") as caught:
        SparseMoe(shape(), **options)
    assert "\n" not in str(caught.value)
