from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polytask.errors import ConfigError
from polytask.nn.bodies.mmoe import Mmoe
from polytask.nn.bodies.ple import Cgc, Ple
from polytask.nn.bodies.shape import Shape
from polytask.nn.layers import Gate
from polytask.schema import Input


def shape(tasks: int = 3) -> Shape:
    return Shape(tuple(Input(f"f{n}", "category", "context", 5) for n in range(2)), 3, tasks)


def random(body: torch.nn.Module, seed: int = 1) -> Any:
    draw = torch.Generator().manual_seed(seed)
    for parameter in body.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw) / 2)
    return body


def rows(count: int = 4) -> Tensor:
    return torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(0))


class Plain:
    """PLE of one row, expert by expert, in float64; the shared stream is the last of the states."""

    def __init__(self, body: Ple, experts: int, shared: int) -> None:
        self.values = {n: p.detach().double().numpy() for n, p in body.named_parameters()}
        self.levels, self.m, self.n = len(body.levels), experts, shared

    def expert(self, level: int, number: int, v: np.ndarray) -> np.ndarray:
        for layer in range(2):
            name = f"levels.{level}.experts.experts.layers.{layer}"
            v = np.maximum(v @ self.values[f"{name}.weight"][number] + self.values[f"{name}.bias"][number], 0)
        return v

    def mix(self, name: str, state: np.ndarray, experts: Sequence[np.ndarray]) -> np.ndarray:
        scores = np.exp(self.values[f"{name}.weight"] @ state)
        assert len(scores) == len(experts)
        return sum(score * expert for score, expert in zip(scores / scores.sum(), experts, strict=True))

    def __call__(self, v: np.ndarray, tasks: int) -> list[np.ndarray]:
        states, shared = [v] * tasks, v
        for level in range(self.levels):
            own = [[self.expert(level, t * self.m + j, states[t]) for j in range(self.m)] for t in range(tasks)]
            of_all = [self.expert(level, tasks * self.m + j, shared) for j in range(self.n)]
            found = [self.mix(f"levels.{level}.gates.{t}", states[t], own[t] + of_all) for t in range(tasks)]
            if level < self.levels - 1:
                shared = self.mix(f"levels.{level}.shared_gate", shared, [*(e for each in own for e in each), *of_all])
            states = found
        return states


@pytest.mark.parametrize(("experts", "shared"), [(1, 1), (2, 3)])
@pytest.mark.parametrize(("levels", "tasks"), [(1, 3), (2, 1), (2, 3), (3, 2)])
def test_outputs_are_those_of_the_equations(levels: int, tasks: int, experts: int, shared: int) -> None:
    body = random(Ple(shape(tasks), experts=experts, shared_experts=shared, layers=(5, 4), levels=levels))
    found, plain = body(rows()), Plain(body, experts, shared)
    assert [z.shape for z in found] == [(4, 4)] * tasks
    for row, v in enumerate(rows().flatten(start_dim=1).double().numpy()):
        for task, expected in enumerate(plain(v, tasks)):
            np.testing.assert_allclose(found[task][row].detach(), expected, rtol=1e-3, atol=1e-4)


def test_one_level_is_cgc() -> None:
    progressive, customized = random(Ple(shape(), levels=1, layers=(5, 4))), Cgc(shape(), layers=(5, 4))
    customized.level.load_state_dict(progressive.levels[0].state_dict())
    for one, other in zip(progressive(rows()), customized(rows()), strict=True):
        assert torch.equal(one, other)


def test_cgc_whose_gates_take_shared_experts_alone_is_mmoe() -> None:
    customized, multi_gate = random(Cgc(shape(), experts=2, shared_experts=3)), Mmoe(shape(), experts=3)
    for own, layer in zip(customized.level.experts.experts.layers, multi_gate.levels[0].experts.layers, strict=True):
        layer.weight.data, layer.bias.data = own.weight[-3:].detach(), own.bias[-3:].detach()
    for own, gate in zip(customized.level.gates, multi_gate.levels[0].gates, strict=True):
        own.weight.data[:2] = -1e3
        gate.weight.data = own.weight[2:].detach()
    x = rows().abs()  # at positive inputs the scores of a task's own experts are far below 0
    for one, other in zip(customized(x), multi_gate(x), strict=True):
        torch.testing.assert_close(one, other)


def moved(body: Any, task: int) -> dict[str, list[bool]]:
    """Which experts of each level get a gradient of the ``task``'s output."""
    body.zero_grad(set_to_none=True)
    body(rows())[task].sum().backward()
    weights = {n: p.grad for n, p in body.named_parameters() if n.endswith("experts.layers.0.weight")}
    return {n.split(".")[1]: [bool(g.any()) for g in gradient] for n, gradient in weights.items()}


def test_a_task_moves_its_own_and_the_shared_experts_and_through_the_shared_stream_those_below() -> None:
    body = random(Ple(shape(), experts=1, shared_experts=2, levels=2))
    for task in range(3):
        above = [n == task for n in range(3)] + [True] * 2
        assert moved(body, task) == {"0": [True] * 5, "1": above}
    assert moved(random(Ple(shape(), experts=1, shared_experts=2, levels=1)), 1) == {
        "0": [False, True, False, True, True]
    }


def test_shared_experts_read_no_state_of_a_task() -> None:
    body = random(Ple(shape(), experts=1, shared_experts=1, levels=2))
    seen: list[Tensor] = []
    body.levels[1].experts.experts.register_forward_hook(lambda _, given, __: seen.append(given[0][:, -1]))
    body(rows())
    body.levels[0].gates[0].weight.data += 1  # moves what the first task reads above, and not the shared stream
    changed = body(rows())
    assert torch.equal(*seen)
    body.levels[0].shared_gate.weight.data[0] += 1
    body(rows())
    assert not torch.equal(seen[1], seen[2])
    assert len(changed) == 3


def test_gates_name_their_reader_and_the_last_level_has_none_for_the_shared_stream() -> None:
    body = Ple(shape(2), experts=1, shared_experts=2, levels=2)
    found = {n: (m.reader, m.experts) for n, m in body.named_modules() if isinstance(m, Gate)}
    assert found == {
        "levels.0.gates.0": (0, 3),
        "levels.0.gates.1": (1, 3),
        "levels.0.shared_gate": (None, 4),
        "levels.1.gates.0": (0, 3),
        "levels.1.gates.1": (1, 3),
    }


def test_it_holds_as_many_numbers_as_its_experts_and_gates() -> None:
    count = sum(p.numel() for p in Ple(shape(2), experts=2, shared_experts=3, layers=(5,), levels=2).parameters())
    experts = 7 * ((6 + 1) * 5 + (5 + 1) * 5)
    gates = (2 * 5 + 7) * 6 + 2 * 5 * 5
    assert count == experts + gates


@pytest.mark.parametrize("name", ["cgc", "ple"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 0}, "experts = 0 must be at least 1"),
        ({"shared_experts": 0}, "shared_experts = 0 must be at least 1"),
        ({"layers": (0,)}, r"layers = \[0\]"),
        ({"gate_dropout": 2.0}, "gate_dropout = 2.0"),
    ],
)
def test_a_wrong_option_is_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"body '{name}': {message}") as caught:
        {"cgc": Cgc, "ple": Ple}[name](shape(), **options)
    assert "\n" not in str(caught.value)


def test_there_is_at_least_one_level() -> None:
    with pytest.raises(ConfigError, match="body 'ple': levels = 0 must be at least 1"):
        Ple(shape(), levels=0)
