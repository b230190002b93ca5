from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polytask.errors import ConfigError
from polytask.nn.bodies.aitm import Aitm, Attention
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


def test_outputs_are_those_of_the_equations() -> None:
    body = random(Aitm(shape(), layers=(5, 4)))
    values = {n: p.detach().double().numpy() for n, p in body.named_parameters()}
    h1, h2, h3 = (values[f"attention.h{n}.weight"] for n in (1, 2, 3))
    found = body(rows())
    for row, x in enumerate(rows().double().numpy()):
        z = np.zeros(4)
        for task in range(3):
            q = x.flatten()
            for layer in range(2):
                weight, bias = (values[f"bottoms.layers.{layer}.{part}"][task] for part in ("weight", "bias"))
                q = np.maximum(q @ weight + bias, 0)
            if task == 0:
                z = q
            else:
                weight, bias = (values[f"transfers.{task - 1}.{part}"] for part in ("weight", "bias"))
                pair = [np.maximum(weight @ z + bias, 0), q]
                scores = np.exp([(h2 @ u) @ (h3 @ u) / 2 for u in pair])  # √4 = 2
                z = sum(score * (h1 @ u) for score, u in zip(scores / scores.sum(), pair, strict=True))
            np.testing.assert_allclose(found[task][row].detach(), z, rtol=1e-3, atol=1e-4)


def test_attention_by_hand() -> None:
    attention = Attention(4)
    attention.h1.weight.data = 2 * torch.eye(4)
    attention.h2.weight.data = attention.h3.weight.data = torch.eye(4)
    u = torch.tensor([[[2.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]]])  # scores 4 / 2 and 2 / 2
    share = 1 / (1 + np.exp(-1.0))
    expected = torch.tensor([[4 * share, 2 * (1 - share), 2 * (1 - share), 0.0]], dtype=torch.float)
    torch.testing.assert_close(attention(u), expected)


def test_what_is_told_flows_along_the_order_of_the_tasks_alone() -> None:
    body = random(Aitm(shape(), layers=(5,)))
    for task in range(3):
        body.zero_grad(set_to_none=True)
        body(rows())[task].square().sum().backward()
        reached = [bool(g.any()) for g in body.bottoms.layers[0].weight.grad]
        assert reached == [t <= task for t in range(3)]


def test_the_first_task_is_its_own_network() -> None:
    many, one = random(Aitm(shape(), layers=(5, 4))), Aitm(shape(1), layers=(5, 4))
    one.bottoms.load_state_dict({n: p[:1] for n, p in many.bottoms.state_dict().items()})
    assert torch.equal(one(rows())[0], many(rows())[0])
    assert sum(p.numel() for p in one.parameters()) == (6 + 1) * 5 + (5 + 1) * 4


@pytest.mark.parametrize("layers", [(), (4, 0)])
def test_a_wrong_option_is_one_line(layers: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"body 'aitm': layers = .* must be one or more widths"):
        Aitm(shape(), layers=layers)
