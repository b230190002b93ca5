from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polytask import rng
from polytask.errors import ConfigError
from polytask.nn.bodies.mmoe import Mmoe, Omoe
from polytask.nn.bodies.shape import Shape
from polytask.nn.bodies.shared_bottom import SharedBottom
from polytask.nn.layers import Gate, Initialized
from polytask.schema import Input


def shape(tasks: int = 3, fields: int = 2, dim: int = 3) -> Shape:
    return Shape(tuple(Input(f"f{n}", "category", "context", 5) for n in range(fields)), dim, tasks)


def random(body: torch.nn.Module, seed: int = 1) -> Any:
    draw = torch.Generator().manual_seed(seed)
    for parameter in body.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw))
    return body


def rows(count: int = 4, fields: int = 2, dim: int = 3) -> Tensor:
    return torch.randn(count, fields, dim, generator=torch.Generator().manual_seed(0))


def softmax(v: np.ndarray) -> np.ndarray:
    return np.exp(v - v.max()) / np.exp(v - v.max()).sum()


def expert(values: dict[str, np.ndarray], name: str, number: int, v: np.ndarray) -> np.ndarray:
    """The ``number``-th expert of one row, layer by layer."""
    layer = 0
    while f"{name}.layers.{layer}.weight" in values:
        weight, bias = (values[f"{name}.layers.{layer}.{part}"][number] for part in ("weight", "bias"))
        v, layer = np.maximum(v @ weight + bias, 0), layer + 1
    return v


def mmoe(values: dict[str, np.ndarray], v: np.ndarray, experts: int, levels: int, tasks: int) -> list[np.ndarray]:
    """One row, from the equations: each expert above the lowest level and each task has a gate that reads v."""
    inputs = [v] * experts
    for level in range(levels):
        outputs = [expert(values, f"levels.{level}.experts", e, inputs[e]) for e in range(experts)]
        readers = tasks if level == levels - 1 else experts
        inputs = []
        for reader in range(readers):
            shares = softmax(values[f"levels.{level}.gates.{reader}.weight"] @ v)
            inputs.append(sum(shares[e] * outputs[e] for e in range(experts)))
    return inputs


@pytest.mark.parametrize(("experts", "levels", "tasks"), [(1, 1, 3), (3, 1, 3), (4, 2, 3), (2, 3, 3), (3, 2, 1)])
def test_outputs_are_those_of_the_equations(experts: int, levels: int, tasks: int) -> None:
    body = random(Mmoe(shape(tasks), experts=experts, layers=(5, 4), levels=levels))
    values = {n: p.detach().double().numpy() for n, p in body.named_parameters()}
    found = body(rows())
    assert [z.shape for z in found] == [(4, 4)] * tasks
    for row, v in enumerate(rows().flatten(start_dim=1).double().numpy()):
        for task, expected in enumerate(mmoe(values, v, experts, levels, tasks)):
            np.testing.assert_allclose(found[task][row].detach(), expected, rtol=1e-3, atol=1e-4)


def test_two_experts_of_one_unit_by_hand() -> None:
    body = Mmoe(shape(2, fields=1, dim=2), experts=2, layers=(1,))
    body.levels[0].experts.layers[0].weight.data = torch.tensor([[[1.0], [0.0]], [[0.0], [1.0]]])
    body.levels[0].gates[1].weight.data = torch.tensor([[0.0, 0.0], [float(np.log(3.0)), 0.0]])
    first, second = body(torch.tensor([[[1.0, 9.0]]]))
    assert first.item() == pytest.approx((1 + 9) / 2)
    assert second.item() == pytest.approx((1 + 3 * 9) / 4)


def test_one_gate_for_all_tasks_is_omoe() -> None:
    one, many = random(Omoe(shape(), experts=3, layers=(5, 4))), Mmoe(shape(), experts=3, layers=(5, 4))
    many.levels[0].experts.load_state_dict(one.experts.state_dict())
    for gate in many.levels[0].gates:
        gate.load_state_dict(one.gate.state_dict())
    for of_one, of_many in zip(one(rows()), many(rows()), strict=True):
        torch.testing.assert_close(of_many, of_one)


@pytest.mark.parametrize("kind", [Mmoe, Omoe])
def test_one_expert_is_a_shared_bottom(kind: Any) -> None:
    body, bottom = random(kind(shape(), experts=1, layers=(5, 4))), SharedBottom(shape(), layers=(5, 4))
    (weights,) = (m for m in body.modules() if hasattr(m, "layers"))
    for linear, layer in zip((bottom.network[0], bottom.network[2]), weights.layers, strict=True):
        linear.weight.data, linear.bias.data = layer.weight[0].T, layer.bias[0]
    for mixed, plain in zip(body(rows()), bottom(rows()), strict=True):
        torch.testing.assert_close(mixed, plain)


def test_gates_name_their_reader() -> None:
    def found(body: torch.nn.Module) -> list[tuple[int | None, int]]:
        return [(m.reader, m.experts) for m in body.modules() if isinstance(m, Gate)]

    assert found(Mmoe(shape(), experts=2, levels=2)) == [(None, 2), (None, 2), (0, 2), (1, 2), (2, 2)]
    assert found(Omoe(shape(), experts=4)) == [(None, 4)]


@pytest.mark.parametrize("kind", [Mmoe, Omoe])
def test_gates_start_near_even_and_experts_apart(kind: Any) -> None:
    body = random(kind(shape(), experts=3, layers=(6,)))
    for name, module in body.named_modules():
        if isinstance(module, Initialized):
            module.initialize(name, lambda part: rng.generator(0, part))
    v = rows().flatten(start_dim=1)
    for gate in (m for m in body.modules() if isinstance(m, Gate)):
        torch.testing.assert_close(gate(v), torch.full((4, 3), 1 / 3), atol=0.03, rtol=0)
    (weights,) = (m for m in body.modules() if hasattr(m, "layers"))
    assert all((weights.layers[0].weight[a] != weights.layers[0].weight[b]).all() for a in range(3) for b in range(a))


def test_a_dropped_expert_has_no_share_and_the_others_keep_their_proportions() -> None:
    body = random(Mmoe(shape(1), experts=4, gate_dropout=0.1)).train()
    (gate,) = body.levels[0].gates
    v = rows().flatten(start_dim=1)
    whole = gate(v)
    gate.uniform.values = torch.tensor([[0.05, 0.1, 0.5, 0.9], [0.2] * 4, [0.0] * 4, [0.05, 0.05, 0.05, 0.9]])
    dropped = gate(v)
    assert dropped[0, 0] == 0 and dropped[3].tolist() == [0, 0, 0, 1]
    torch.testing.assert_close(dropped[0, 1:], whole[0, 1:] / whole[0, 1:].sum())
    torch.testing.assert_close(dropped[1], whole[1])
    torch.testing.assert_close(dropped[2], whole[2])  # where all would be dropped, none is


@pytest.mark.parametrize("name", ["mmoe", "omoe"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 0}, "experts = 0 must be at least 1"),
        ({"layers": ()}, r"layers = \[\] must be one or more widths of at least 1"),
        ({"layers": (4, 0)}, r"layers = \[4, 0\]"),
        ({"gate_dropout": 1.0}, "gate_dropout = 1.0 must be at least 0 and below 1"),
        ({"gate_dropout": -0.1}, "gate_dropout = -0.1"),
    ],
)
def test_a_wrong_option_is_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"body '{name}': {message}") as caught:
        {"mmoe": Mmoe, "omoe": Omoe}[name](shape(), **options)
    assert "\n" not in str(caught.value)


def test_there_is_at_least_one_level() -> None:
    with pytest.raises(ConfigError, match="body 'mmoe': levels = 0 must be at least 1"):
        Mmoe(shape(), levels=0)
