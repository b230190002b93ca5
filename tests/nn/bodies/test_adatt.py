from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polytask import rng
from polytask.errors import ConfigError
from polytask.nn.bodies.adatt import Adatt, Native
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


def plain(body: Adatt, v: np.ndarray, counts: Sequence[int], tasks: int) -> list[np.ndarray]:
    """One row, stream by stream, in float64; ``counts`` are the numbers of experts, a shared stream last."""
    values = {n: p.detach().double().numpy() for n, p in body.named_parameters()}
    states = [v] * len(counts)
    for level in range(len(body.levels)):
        own: list[list[np.ndarray]] = []
        number = 0
        for stream, count in enumerate(counts):
            own.append([])
            for _ in range(count):
                name = f"levels.{level}.experts.experts.layers.0"
                weight, bias = values[f"{name}.weight"][number], values[f"{name}.bias"][number]
                own[-1].append(np.maximum(states[stream] @ weight + bias, 0))
                number += 1
        found = []
        for stream in range(tasks if level == len(body.levels) - 1 else len(counts)):
            scores = np.exp(values[f"levels.{level}.gates.{stream}.weight"] @ states[stream])
            mixed = scores / scores.sum() @ np.stack([e for each in own for e in each])
            free = values.get(f"levels.{level}.natives.{stream}.weight", np.ones(1))
            found.append(mixed + free @ np.stack(own[stream]))
        states = found
    return states


@pytest.mark.parametrize("shared", [0, 1, 2])
@pytest.mark.parametrize("experts", [1, 2])
@pytest.mark.parametrize(("levels", "tasks"), [(1, 3), (2, 1), (2, 3), (3, 2)])
def test_outputs_are_those_of_the_equations(levels: int, tasks: int, experts: int, shared: int) -> None:
    body = random(Adatt(shape(tasks), experts=experts, shared_experts=shared, layers=(4,), levels=levels))
    counts = [experts] * tasks + ([shared] if shared else [])
    found = body(rows())
    assert [z.shape for z in found] == [(4, 4)] * tasks
    for row, v in enumerate(rows().flatten(start_dim=1).double().numpy()):
        for task, expected in enumerate(plain(body, v, counts, tasks)):
            np.testing.assert_allclose(found[task][row].detach(), expected, rtol=1e-3, atol=1e-4)


def test_one_task_with_one_expert_reads_it_twice() -> None:
    body = random(Adatt(shape(1), experts=1, layers=(4,), levels=1))
    (found,) = body(rows())
    torch.testing.assert_close(found, 2 * body.levels[0].experts.experts(rows().flatten(start_dim=1))[:, 0])


def test_with_even_gates_by_hand() -> None:
    body = random(Adatt(shape(2), experts=2, layers=(4,), levels=1))
    for gate, native in zip(body.levels[0].gates, body.levels[0].natives, strict=True):
        gate.weight.data.zero_()
        native.weight.data = torch.tensor([3.0, -1.0])
    a, b, c, d = body.levels[0].experts.experts(rows().flatten(start_dim=1)).unbind(dim=1)
    first, second = body(rows())
    torch.testing.assert_close(first, (a + b + c + d) / 4 + 3 * a - b)
    torch.testing.assert_close(second, (a + b + c + d) / 4 + 3 * c - d)


def test_a_task_moves_the_experts_of_all() -> None:
    body = random(Adatt(shape(), experts=1, levels=1))
    body(rows())[1].sum().backward()
    assert [bool(g.any()) for g in body.levels[0].experts.experts.layers[0].weight.grad] == [True] * 3


def test_free_weights_start_within_the_root_of_their_number_and_a_single_expert_has_none() -> None:
    native = Native(400)
    native.initialize("native", lambda name: rng.generator(0, name))
    assert 0.045 < native.weight.abs().max() <= 0.05 and native.weight.min() < 0
    assert list(Native(1).parameters()) == []


def test_gates_name_their_reader_and_the_shared_stream_ends_below_the_last_level() -> None:
    body = Adatt(shape(2), experts=2, shared_experts=1, levels=2)
    found = {n: (m.reader, m.experts) for n, m in body.named_modules() if isinstance(m, Gate)}
    assert found == {
        "levels.0.gates.0": (0, 5),
        "levels.0.gates.1": (1, 5),
        "levels.0.gates.2": (None, 5),
        "levels.1.gates.0": (0, 5),
        "levels.1.gates.1": (1, 5),
    }
    assert [len(level.natives) for level in body.levels] == [3, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 0}, "experts = 0 must be at least 1"),
        ({"shared_experts": -1}, "shared_experts = -1 must be at least 0"),
        ({"levels": 0}, "levels = 0 must be at least 1"),
        ({"layers": ()}, r"layers = \[\]"),
        ({"gate_dropout": 1.5}, "gate_dropout = 1.5"),
    ],
)
def test_a_wrong_option_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"body 'adatt': {message}") as caught:
        Adatt(shape(), **options)
    assert "\n" not in str(caught.value)
