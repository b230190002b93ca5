import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from polytask import rng
from polytask.errors import ConfigError
from polytask.nn.bodies.shape import Shape
from polytask.nn.bodies.snr import HardConcrete, Snr
from polytask.nn.layers import Experts
from polytask.schema import Input


def shape(tasks: int = 2) -> Shape:
    return Shape(tuple(Input(f"f{n}", "category", "context", 5) for n in range(2)), 3, tasks)


def random(body: torch.nn.Module, seed: int = 1) -> Any:
    draw = torch.Generator().manual_seed(seed)
    for parameter in body.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw))
    return body


def rows(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(seed))


def chance(body: torch.nn.Module, count: int, seed: int = 5) -> Any:
    """The body with numbers for one pass put in its gates, the extremes among them."""
    draw = torch.Generator().manual_seed(seed)
    for gate in (m for m in body.modules() if isinstance(m, HardConcrete)):
        gate.uniform.values = torch.rand(count, gate.experts, generator=draw)
        gate.uniform.values[0, 0] = 0.0
    return body


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


def opened(gate: Any, row: int) -> list[float]:
    """z of one row, connection by connection, as METHODS and the paper have it."""
    found = []
    for expert, log in enumerate(gate.alpha.tolist()):
        s = sigmoid(log)
        if gate.uniform.values is not None:
            u = min(max(gate.uniform.values[row, expert].item(), 1e-6), 1 - 1e-6)
            s = sigmoid((math.log(u) - math.log(1 - u) + log) / (2 / 3))
        found.append(min(1.0, max(0.0, s * (1.1 + 0.1) - 0.1)))
    return found


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("routing", ["trans", "aver"])
def test_outputs_are_those_of_the_equations(routing: str, training: bool) -> None:
    body = random(Snr(shape(), experts=3, layers=(5, 4), levels=2, routing=routing))
    found = (chance(body, 4) if training else body)(rows())
    for row, x in enumerate(rows().flatten(start_dim=1).double().numpy()):
        inputs = [x] * 3
        for experts, connections in zip(body.levels, body.connections, strict=True):
            outputs = []
            for e in range(3):
                v = inputs[e]
                for layer in experts.layers:
                    weight, bias = (p[e].detach().double().numpy() for p in (layer.weight, layer.bias))
                    v = np.maximum(v @ weight + bias, 0)
                outputs.append(v)
            inputs = []
            for i, gate in enumerate(connections.gates):
                z = opened(gate, row)
                terms = [
                    u if routing == "aver" else u @ connections.weight[i, j].detach().double().numpy()
                    for j, u in enumerate(outputs)
                ]
                inputs.append(sum(z_ij * term for z_ij, term in zip(z, terms, strict=True)))
        for task in range(2):
            np.testing.assert_allclose(found[task][row].detach(), inputs[task], rtol=1e-3, atol=1e-4)


def test_open_connections_of_one_level_are_a_sum_of_experts_and_closed_ones_give_nothing() -> None:
    body = random(Snr(shape(), experts=3, layers=(4,), levels=1, routing="aver"))
    for gate, log in zip(body.connections[0].gates, (9.0, -9.0), strict=True):
        gate.alpha.data.fill_(log)
    experts = Experts(3, [6, 4])
    experts.load_state_dict(body.levels[0].state_dict())
    reads_all, reads_none = body(rows())
    torch.testing.assert_close(reads_all, experts(rows().flatten(start_dim=1)).sum(dim=1))
    assert not reads_none.any()


def test_a_connection_is_closed_and_fully_open_as_often_as_the_formulas_say() -> None:
    gate = HardConcrete(3)
    gate.alpha.data = torch.tensor([-2.0, 0.0, 2.0])
    gate.uniform.values = torch.rand(200_000, 3, generator=torch.Generator().manual_seed(0))
    z = gate(torch.zeros(200_000, 6))
    expected = torch.tensor([sigmoid(log - 2 / 3 * math.log(0.1 / 1.1)) for log in (-2.0, 0.0, 2.0)])
    torch.testing.assert_close((z > 0).float().mean(dim=0), expected, rtol=0, atol=0.005)
    full = torch.tensor(
        [sigmoid(log - 2 / 3 * math.log(11)) for log in (-2.0, 0.0, 2.0)]
    )  # s above (1 − γ) / (ζ − γ) = 11 / 12
    torch.testing.assert_close((z == 1).float().mean(dim=0), full, rtol=0, atol=0.005)
    assert gate.expected().item() == pytest.approx(expected.sum().item())


def test_the_penalty_is_the_expected_number_of_open_connections_in_training_alone() -> None:
    body = Snr(shape(3), experts=4, layers=(4,), levels=2, sparsity=0.5)
    body(rows())  # alpha at zero: 4 · 4 + 3 · 4 connections
    assert body.penalty is not None
    assert body.penalty.item() == pytest.approx(0.5 * 28 * 11 ** (2 / 3) / (1 + 11 ** (2 / 3)))
    body.penalty.backward()
    assert all((m.alpha.grad > 0).all() for m in body.modules() if isinstance(m, HardConcrete))  # type: ignore[union-attr, operator]
    body.penalty = None
    body.eval()(rows())
    assert body.penalty is None


def test_gradients_are_finite_whatever_is_drawn() -> None:
    body = chance(random(Snr(shape(), experts=3, layers=(4,))), 4)
    for gate in (m for m in body.modules() if isinstance(m, HardConcrete)):
        gate.uniform.values = torch.tensor([[0.0] * 3, [1 - 2**-24] * 3, [0.5] * 3, [2**-24] * 3])
    outputs = body(rows())
    (outputs[0].square().sum() + outputs[1].square().sum() + body.penalty).backward()
    assert all(p.grad.isfinite().all() for p in body.parameters())


def test_every_task_reads_through_a_gate_that_names_it_and_others_are_shared() -> None:
    body = Snr(shape(3), experts=2, layers=(4,), levels=2)
    gates = [m for m in body.modules() if isinstance(m, HardConcrete)]
    assert [(g.reader, g.experts) for g in gates] == [(None, 2), (None, 2), (0, 2), (1, 2), (2, 2)]


def test_connections_start_half_open() -> None:
    gate = HardConcrete(5)
    gate.initialize("gate", lambda name: rng.generator(0, f"init/{name}"))
    assert 0 < gate.alpha.abs().max() < 0.05
    torch.testing.assert_close(gate(torch.zeros(1, 6)), torch.full((1, 5), 0.5), rtol=0.05, atol=0)


@pytest.mark.parametrize("routing", ["trans", "aver"])
def test_stacked_replicas_in_training_give_what_each_gives_alone(routing: str) -> None:
    bodies = [random(Snr(shape(), experts=2, layers=(4,), routing=routing), seed) for seed in range(3)]
    parameters, _ = stack_module_state(bodies)
    x = torch.stack([rows(5, seed) for seed in range(3)])
    chance(bodies[0], 5)
    values = [m.uniform.values for m in bodies[0].modules() if isinstance(m, HardConcrete)]

    def one(parameters: Any, x: Tensor) -> tuple[list[Tensor], Tensor]:
        found = functional_call(bodies[0], (parameters, {}), (x,))
        penalty, bodies[0].penalty = bodies[0].penalty, None
        return found, penalty

    outputs, penalties = vmap(one)(parameters, x)
    for number, body in enumerate(bodies):
        for gate, given in zip((m for m in body.modules() if isinstance(m, HardConcrete)), values, strict=True):
            gate.uniform.values = given
        for stacked, alone in zip(outputs, body(x[number]), strict=True):
            torch.testing.assert_close(stacked[number], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(penalties[number], body.penalty)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 0}, "at least 1"),
        ({"levels": 0}, "at least 1"),
        ({"layers": ()}, "one or more widths"),
        ({"sparsity": -1.0}, "at least 0"),
        ({"routing": "tran"}, "routing 'tran' is unknown. Did you mean 'trans'"),
    ],
)
def test_a_wrong_option_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"body 'snr': .*{message}") as caught:
        Snr(shape(), **options)
    assert "\n" not in str(caught.value)
