from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polytask.errors import ConfigError
from polytask.nn.bodies.shape import Shape
from polytask.nn.bodies.stem import Stem
from polytask.nn.layers import Gate
from polytask.schema import Input


def shape(tasks: int = 3) -> Shape:
    return Shape(tuple(Input(f"f{n}", "category", "context", 5) for n in range(2)), 3, tasks)


def random(body: torch.nn.Module, seed: int = 1) -> Any:
    draw = torch.Generator().manual_seed(seed)
    for parameter in body.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw) / 2)
    return body


def rows(tasks: int = 3, count: int = 4) -> Tensor:
    return torch.randn(tasks + 1, count, 2, 3, generator=torch.Generator().manual_seed(0))


class Plain:
    """STEM-Net of one row, expert by expert, in float64."""

    def __init__(self, body: Stem) -> None:
        self.values = {n: p.detach().double().numpy() for n, p in body.named_parameters()}
        self.levels = len(body.levels)

    def expert(self, level: int, number: int, v: np.ndarray) -> np.ndarray:
        name = f"levels.{level}.experts.experts.layers.0"
        return np.maximum(v @ self.values[f"{name}.weight"][number] + self.values[f"{name}.bias"][number], 0)

    def shares(self, name: str, v: np.ndarray) -> np.ndarray:
        layer = 0
        while f"{name}.0.{layer}.weight" in self.values:  # a ReLU stands at every other place
            v = np.maximum(self.values[f"{name}.0.{layer}.weight"] @ v + self.values[f"{name}.0.{layer}.bias"], 0)
            layer += 2
        scores = np.exp(self.values[f"{name}.1.weight"] @ v)
        return scores / scores.sum()

    def __call__(self, own: list[np.ndarray], shared: np.ndarray, m: int, n: int) -> list[np.ndarray]:
        for level in range(self.levels):
            experts = [self.expert(level, t * m + j, v) for t, v in enumerate(own) for j in range(m)]
            experts += [self.expert(level, len(own) * m + j, shared) for j in range(n)]
            outputs = np.stack(experts)
            own = [self.shares(f"levels.{level}.gates.{t}", v + shared) @ outputs for t, v in enumerate(own)]
            if level < self.levels - 1:
                shared = self.shares(f"levels.{level}.shared_gate", shared) @ outputs
        return own


@pytest.mark.parametrize("gate_layers", [(), (7, 5)])
@pytest.mark.parametrize(("experts", "shared"), [(1, 1), (2, 3)])
@pytest.mark.parametrize(("levels", "tasks"), [(1, 1), (1, 3), (2, 3), (3, 2)])
def test_outputs_are_those_of_the_equations(
    levels: int, tasks: int, experts: int, shared: int, gate_layers: tuple[int, ...]
) -> None:
    options: dict[str, Any] = {"layers": (4,), "levels": levels, "gate_layers": gate_layers}
    body = random(Stem(shape(tasks), experts=experts, shared_experts=shared, **options))
    found, plain = body(rows(tasks)), Plain(body)
    assert [z.shape for z in found] == [(4, 4)] * tasks
    flat = rows(tasks).flatten(start_dim=2).double().numpy()
    for row in range(4):
        for task, expected in enumerate(plain([*flat[:-1, row]], flat[-1, row], experts, shared)):
            np.testing.assert_allclose(found[task][row].detach(), expected, rtol=1e-3, atol=1e-4)


def reached(body: Any, task: int, levels: int = 1) -> tuple[list[bool], list[list[bool]]]:
    """Which tables (the shared last) and which experts of each level get a gradient of the ``task``'s output."""
    body.zero_grad(set_to_none=True)
    x = rows().requires_grad_()
    body(x)[task].sum().backward()
    weights = [level.experts.experts.layers[0].weight.grad for level in body.levels]
    assert x.grad is not None
    return [bool(g.any()) for g in x.grad], [[bool(g.any()) for g in weight] for weight in weights]


def test_a_task_moves_its_own_and_the_shared_tables_and_experts_and_no_others() -> None:
    body = random(Stem(shape(), layers=(16,), gate_layers=(8,)))
    for task in range(3):
        own = [n in (task, 3) for n in range(4)]
        assert reached(body, task) == (own, [own])


def test_yet_it_reads_the_experts_of_all() -> None:
    body = random(Stem(shape(), layers=(16,)))
    plain = body(rows())
    for table in range(4):
        x = rows()
        x[table] += 1
        changed = body(x)
        assert all((a != b).any(dim=1).all() for a, b in zip(changed, plain, strict=True))


def test_what_a_gate_learns_does_not_depend_on_where_gradients_are_stopped() -> None:
    body, free = (random(Stem(shape(), layers=(16,), gate_layers=())) for _ in range(2))
    x = rows()
    experts = free.levels[0].experts(x.flatten(start_dim=2).unbind(dim=0))
    shares = free.levels[0].gates[1]((x[1] + x[3]).flatten(start_dim=1))
    torch.einsum("be,beh->bh", shares, torch.cat(experts, dim=1)).sum().backward()
    body(x)[1].sum().backward()
    torch.testing.assert_close(body.levels[0].gates[1][1].weight.grad, free.levels[0].gates[1][1].weight.grad)


def test_in_the_shared_stream_nothing_is_stopped() -> None:
    body = random(Stem(shape(), layers=(16,), levels=2))
    for task in range(3):
        assert reached(body, task) == ([True] * 4, [[True] * 4, [n in (task, 3) for n in range(4)]])


def test_gates_name_their_reader_and_the_last_level_has_none_for_the_shared_stream() -> None:
    body = Stem(shape(2), experts=2, shared_experts=1, levels=2)
    assert [(m.reader, m.experts) for m in body.modules() if isinstance(m, Gate)] == [
        (0, 5),
        (1, 5),
        (None, 5),
        (0, 5),
        (1, 5),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 0}, "experts = 0 must be at least 1"),
        ({"shared_experts": 0}, "shared_experts = 0 must be at least 1"),
        ({"levels": 0}, "levels = 0 must be at least 1"),
        ({"layers": ()}, r"layers = \[\]"),
        ({"gate_layers": (4, 0)}, r"gate_layers = \[4, 0\]: every width must be at least 1"),
        ({"gate_dropout": 1.0}, "gate_dropout = 1.0"),
    ],
)
def test_a_wrong_option_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"body 'stem': {message}") as caught:
        Stem(shape(), **options)
    assert "\n" not in str(caught.value)
