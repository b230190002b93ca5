from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polytask import rng
from polytask.errors import ConfigError
from polytask.nn.bodies.cross_stitch import CrossStitch, Mixing, diagonal
from polytask.nn.bodies.shape import Shape
from polytask.schema import Input


def shape(tasks: int = 3) -> Shape:
    return Shape(tuple(Input(f"f{n}", "category", "context", 5) for n in range(2)), 3, tasks)


def random(body: torch.nn.Module, seed: int = 1) -> Any:
    draw = torch.Generator().manual_seed(seed)
    for parameter in body.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw))
    return body


def rows(count: int = 4) -> Tensor:
    return torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("streams", "expected"),
    [(1, [[1.0]]), (2, [[0.9, 0.1], [0.1, 0.9]]), (3, [[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]])],
)
def test_a_task_starts_with_nine_tenths_of_its_own(streams: int, expected: list[list[float]]) -> None:
    body = random(CrossStitch(shape(streams), layers=(4, 4)))
    for mixing in body.mixing:
        mixing.initialize("mixing", lambda name: rng.generator(0, name))
        torch.testing.assert_close(mixing(), torch.tensor(expected))


def test_outputs_are_those_of_the_equation() -> None:
    body = random(CrossStitch(shape(), layers=(5, 4), kept=0.7, rate=2.0))
    values = {n: p.detach().double().numpy() for n, p in body.named_parameters()}
    found = body(rows())
    for row, x in enumerate(rows().double().numpy()):
        state = [x.flatten()] * 3
        for layer in range(2):
            weight, bias = (values[f"layers.{layer}.{part}"] for part in ("weight", "bias"))
            own = [np.maximum(state[t] @ weight[t] + bias[t], 0) for t in range(3)]
            a = [
                [(0.7 if t == s else 0.15) + 2 * values[f"mixing.{layer}.offset"][t, s] for s in range(3)]
                for t in range(3)
            ]
            state = [sum(a[t][s] * own[s] for s in range(3)) for t in range(3)]
        for task in range(3):
            np.testing.assert_allclose(found[task][row].detach(), state[task], rtol=1e-4, atol=1e-4)


def test_with_all_kept_tasks_share_nothing() -> None:
    body = random(CrossStitch(shape(), layers=(5, 4), kept=1.0))
    for mixing in body.mixing:
        mixing.offset.data.zero_()
    body(rows())[1].square().sum().backward()
    for layer in body.layers:
        assert [bool(g.any()) for g in layer.weight.grad] == [False, True, False]
    single = CrossStitch(shape(1), layers=(5, 4))
    for ours, theirs in zip(single.layers, body.layers, strict=True):
        ours.load_state_dict({n: p[1:2] for n, p in theirs.state_dict().items()})
    torch.testing.assert_close(single(rows())[0], body(rows())[1])


def test_it_learns_a_hundred_times_as_fast_under_adam() -> None:
    slow, fast = Mixing(diagonal(2, 0.9)), Mixing(diagonal(2, 0.9), rate=100.0)
    for mixing in (slow, fast):
        optimizer = torch.optim.Adam(mixing.parameters(), lr=1e-4, eps=0.0)
        (mixing() * torch.tensor([[1.0, -2.0], [3.0, 4.0]])).sum().backward()
        optimizer.step()
    moved = torch.tensor([[-1.0, 1.0], [-1.0, -1.0]])
    torch.testing.assert_close(slow() - slow.start, 1e-4 * moved, rtol=1e-2, atol=0)
    torch.testing.assert_close(fast() - fast.start, 1e-2 * moved, rtol=1e-3, atol=0)


@pytest.mark.parametrize("options", [{"layers": ()}, {"layers": (4, 0)}, {"kept": 1.1}, {"kept": -0.1}, {"rate": 0.0}])
def test_a_wrong_option_is_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"body 'cross_stitch': (layers|kept) = .* must be") as caught:
        CrossStitch(shape(), **options)
    assert "\n" not in str(caught.value)
