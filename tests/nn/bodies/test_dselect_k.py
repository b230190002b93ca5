import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from polytask import rng
from polytask.errors import ConfigError
from polytask.nn.bodies.dselect_k import DSelectK, Selection, smooth_step
from polytask.nn.bodies.shape import Shape
from polytask.schema import Input


def shape(tasks: int = 2) -> Shape:
    return Shape(tuple(Input(f"f{n}", "category", "context", 5) for n in range(2)), 3, tasks)


def random(body: torch.nn.Module, seed: int = 1, scale: float = 0.3) -> Any:
    draw = torch.Generator().manual_seed(seed)
    for parameter in body.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw) * scale)
    return body


def rows(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(seed))


def selector(z: np.ndarray, experts: int) -> np.ndarray:
    """r(z) [experts] of bits z [m], one expert and one bit at a time."""
    found = []
    for expert in range(experts):
        product = 1.0
        for bit, t in enumerate(z):
            on = 0.0 if t <= -0.5 else 1.0 if t >= 0.5 else -2 * t**3 + 1.5 * t + 0.5
            product *= on if expert // 2**bit % 2 else 1 - on
        found.append(product)
    return np.array(found)


def plain(gate: Selection, x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """q [E] and every selector's r [E] for one row."""
    values = {n: p.detach().double().numpy() for n, p in gate.named_parameters()}
    z, w = values["z"], values["w"]
    if "z_weight" in values:
        z, w = z + values["z_weight"] @ x, w + values["w_weight"] @ x
    r = [selector(bits, gate.experts) for bits in z]
    return np.exp(w) / np.exp(w).sum() @ np.stack(r), r


def test_the_smooth_step_by_hand() -> None:
    given = torch.tensor([-3.0, -0.5, -0.25, 0.0, 0.25, 0.5, 9.0], requires_grad=True)
    found = smooth_step(given)
    torch.testing.assert_close(found.detach(), torch.tensor([0, 0, 0.15625, 0.5, 0.84375, 1, 1]))
    found.sum().backward()
    assert given.grad is not None
    torch.testing.assert_close(given.grad, torch.tensor([0, 0, 1.125, 1.5, 1.125, 0, 0]))


@pytest.mark.parametrize("per_example", [False, True])
@pytest.mark.parametrize(("experts", "bits"), [(2, 1), (3, 2), (4, 2), (5, 3)])
def test_outputs_are_those_of_the_equation(experts: int, bits: int, per_example: bool) -> None:
    body = random(DSelectK(shape(), experts=experts, k=2, layers=(4,), per_example=per_example))
    assert body.gates[0].z.shape == (2, bits)
    found, shares = body(rows()), [gate(rows().flatten(start_dim=1)) for gate in body.gates]
    (layer,) = body.experts.layers
    weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
    for row, x in enumerate(rows().flatten(start_dim=1).double().numpy()):
        outputs = np.stack([np.maximum(x @ weight[e] + bias[e], 0) for e in range(experts)])
        for task in range(2):
            q, _ = plain(body.gates[task], x)
            np.testing.assert_allclose(shares[task][row].detach(), q, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(found[task][row].detach(), q @ outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("per_example", [False, True])
@pytest.mark.parametrize("experts", [3, 4])
def test_the_penalty_is_entropy_and_where_codes_are_unused_the_mass_on_experts(experts: int, per_example: bool) -> None:
    body = DSelectK(shape(), experts=experts, k=2, layers=(4,), per_example=per_example, entropy=0.5)
    random(body, scale=0.1)(rows())
    assert body.penalty is not None
    expected = 0.0
    for x in rows().flatten(start_dim=1).double().numpy():
        for gate in body.gates:
            assert isinstance(gate, Selection)
            for r in plain(gate, x)[1]:
                entropy = -sum(share * math.log(share) for share in r if share > 0)
                expected += (0.5 * entropy + (1 / r.sum() if experts == 3 else 0)) / len(rows())
    assert body.penalty.item() == pytest.approx(expected, rel=1e-4)
    body.penalty = None
    body.eval()(rows())
    assert body.penalty is None


def test_a_selector_that_is_undecided_has_the_largest_entropy_and_one_that_is_decided_none() -> None:
    gate, x = Selection(0, 4, 1), torch.zeros(1, 6)
    assert gate.cost(x, 1.0).item() == pytest.approx(math.log(4), rel=1e-4)
    gate.z.data = torch.tensor([[0.6, -0.6]])  # bits 1 and 0: expert 1
    assert gate(x).tolist() == [[0, 1, 0, 0]]
    assert gate.cost(x, 1.0).item() == pytest.approx(0, abs=1e-5)


def test_once_decided_at_most_k_experts_have_a_share() -> None:
    gate = random(Selection(0, 8, 3), scale=10.0)
    shares = gate(torch.zeros(5, 6))
    assert 1 <= int((shares[0] > 0).sum()) <= 3
    assert shares.sum(dim=1).tolist() == pytest.approx([1.0] * 5)


def test_a_code_without_an_expert_costs_and_even_there_all_is_finite() -> None:
    costs = []
    for z in (-0.4, 0.4, 9.0):  # bits 0 0: expert 0; bits 1 1: none
        gate = Selection(0, 3, 1)
        gate.z.data.fill_(z)
        cost = gate.cost(torch.zeros(1, 6), 0.01)
        cost.backward()
        assert gate.z.grad is not None and gate.z.grad.isfinite().all()
        costs.append(cost.item())
    assert 1 < costs[0] < 1.1 < costs[1] < costs[2] < math.inf
    gate = Selection(0, 3, 1)
    gate.cost(torch.zeros(1, 6), 0.0).backward()
    assert gate.z.grad is not None and (gate.z.grad > 0).all()  # descent lowers the bits, away from 1 1


def test_selectors_start_undecided_and_different() -> None:
    gate = Selection(0, 4, 2)
    gate.initialize("gate", lambda name: rng.generator(0, f"init/{name}"))
    assert gate.z.abs().max() <= 0.01 and gate.w.abs().max() <= 0.05
    assert (gate.z[0] != gate.z[1]).all()
    torch.testing.assert_close(gate(torch.zeros(1, 6)), torch.full((1, 4), 0.25), rtol=0.1, atol=0)


def test_a_static_gate_gives_all_rows_the_same_and_one_per_example_does_not() -> None:
    x = rows().flatten(start_dim=1)
    static, per_example = random(Selection(0, 4, 2)), random(Selection(6, 4, 2))
    assert (static(x) == static(x)[:1]).all() and static(x).shape == (4, 4)
    assert (per_example(x)[0] != per_example(x)[1]).any()


def test_stacked_replicas_in_training_give_what_each_gives_alone() -> None:
    bodies = [random(DSelectK(shape(), experts=3, layers=(4,), per_example=True), seed) for seed in range(3)]
    parameters, buffers = stack_module_state(bodies)
    x = torch.stack([rows(5, seed) for seed in range(3)])

    def one(parameters: Any, buffers: Any, x: Tensor) -> tuple[list[Tensor], Tensor]:
        found = functional_call(bodies[0], (parameters, buffers), (x,))
        penalty, bodies[0].penalty = bodies[0].penalty, None
        return found, penalty

    outputs, penalties = vmap(one)(parameters, buffers, x)
    for number, body in enumerate(bodies):
        for stacked, alone in zip(outputs, body(x[number]), strict=True):
            torch.testing.assert_close(stacked[number], alone)
        torch.testing.assert_close(penalties[number], body.penalty)


@pytest.mark.parametrize(
    "options", [{"experts": 1}, {"k": 0}, {"k": 5}, {"layers": ()}, {"layers": (0,)}, {"entropy": -1.0}]
)
def test_a_wrong_option_is_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"body 'dselect_k': .* at least") as caught:
        DSelectK(shape(), **options)
    assert "\n" not in str(caught.value)
