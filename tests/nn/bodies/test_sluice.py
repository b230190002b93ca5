from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polytask import rng
from polytask.errors import ConfigError
from polytask.nn.bodies.cross_stitch import CrossStitch
from polytask.nn.bodies.shape import Shape
from polytask.nn.bodies.sluice import Sluice, overlap
from polytask.schema import Input


def shape(tasks: int = 2) -> Shape:
    return Shape(tuple(Input(f"f{n}", "category", "context", 5) for n in range(2)), 3, tasks)


def random(body: torch.nn.Module, seed: int = 1) -> Any:
    draw = torch.Generator().manual_seed(seed)
    for parameter in body.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw))
    return body


def rows(count: int = 4) -> Tensor:
    return torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(0))


def test_outputs_are_those_of_the_equations() -> None:
    body = random(Sluice(shape(), layers=(4, 4, 4)))
    values = {n: p.detach().double().numpy() for n, p in body.named_parameters()}
    found = body(rows())
    beta = np.array([[0.05, 0.05, 0.9]] * 2) + values["beta.offset"]
    for row, x in enumerate(rows().double().numpy()):
        state = [x.flatten()] * 2
        expected = [np.zeros(4)] * 2
        for layer in range(3):
            alpha = np.where(np.eye(4) > 0, 0.9, 0.1 / 3) + values[f"alpha.{layer}.offset"]
            weight, bias = (values[f"layers.{layer}.{part}"] for part in ("weight", "bias"))
            subspaces = [
                np.maximum(state[t] @ weight[t][:, half] + bias[t][half], 0)
                for t in range(2)
                for half in (slice(0, 2), slice(2, 4))
            ]
            mixed = [sum(alpha[u, v] * subspaces[v] for v in range(4)) for u in range(4)]
            state = [np.concatenate(mixed[2 * t : 2 * t + 2]) for t in range(2)]
            expected = [expected[t] + beta[t, layer] * state[t] for t in range(2)]
        for task in range(2):
            np.testing.assert_allclose(found[task][row].detach(), expected[task], rtol=1e-3, atol=1e-4)


def test_with_the_last_layer_alone_and_halves_kept_together_it_is_cross_stitch() -> None:
    sluice, cross = Sluice(shape(), layers=(4, 4)), random(CrossStitch(shape(), layers=(4, 4), rate=1.0))
    sluice.layers.load_state_dict(cross.layers.state_dict())
    for alpha, mixing in zip(sluice.alpha, cross.mixing, strict=True):
        alpha.offset.data = torch.kron(mixing().detach(), torch.eye(2)) - alpha.start  # type: ignore[union-attr, operator]
    sluice.beta.offset.data = torch.tensor([[0.0, 1.0]] * 2) - sluice.beta.start
    for ours, theirs in zip(sluice(rows()), cross(rows()), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_subspaces_start_apart_and_outputs_at_the_last_layer() -> None:
    body = random(Sluice(shape(), layers=(4, 4)))
    for mixing in (*body.alpha, body.beta):
        mixing.initialize("", lambda name: rng.generator(0, name))
    torch.testing.assert_close(body.alpha[1](), torch.where(torch.eye(4) > 0, 0.9, 0.1 / 3))
    torch.testing.assert_close(body.beta(), torch.tensor([[0.1, 0.9]] * 2))
    assert Sluice(shape(), layers=(4,)).beta().tolist() == [[1.0], [1.0]]


def test_overlap_by_hand() -> None:
    orthogonal = [[1.0, 0.0], [0.0, 1.0]]
    alike = [[1.0, 2.0], [3.0, 1.0]]  # 1 · 2 + 3 · 1 = 5
    assert overlap(torch.tensor([orthogonal])).item() == 0
    assert overlap(torch.tensor([orthogonal, alike])).item() == 25
    wide = torch.tensor([[[1.0, 2.0, 1.0, 0.0], [0.0, 1.0, 1.0, 3.0]]])  # products 1, 0, 3, 3
    assert overlap(wide).item() == 19


def test_the_penalty_is_the_weighted_overlap_of_all_layers_in_training_alone() -> None:
    body = random(Sluice(shape(), layers=(4, 4), orthogonality=0.5))
    body(rows())
    expected = 0.0
    for layer in body.layers:
        for weight in layer.weight.detach().double().numpy():
            expected += 0.5 * ((weight[:, :2].T @ weight[:, 2:]) ** 2).sum()
    assert body.penalty.item() == pytest.approx(expected, rel=1e-5)
    body.penalty = None
    body.eval()(rows())
    assert body.penalty is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (8, 4)}, "equal and even"),
        ({"layers": (5, 5)}, "equal and even"),
        ({"layers": ()}, "equal and even"),
        ({"layers": (0,)}, "equal and even"),
        ({"kept": 2.0}, r"in \[0, 1\]"),
        ({"orthogonality": -1.0}, "at least 0"),
    ],
)
def test_a_wrong_option_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"body 'sluice': .*{message}") as caught:
        Sluice(shape(), **options)
    assert "\n" not in str(caught.value)
