"""Every body keeps the promises of the protocol, whatever it computes; and a broken promise is seen."""

from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polytask import rng
from polytask.errors import ConfigError
from polytask.nn.bodies import BODIES, Shape
from polytask.nn.layers import Draw, Experts, Gate, Uniform, fill
from polytask.schema import Input
from polytask.testing import NAMES, check_body


@pytest.mark.parametrize("name", sorted(BODIES))
def test_every_body_keeps_its_promises(name: str) -> None:
    check_body(BODIES[name])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adatt", {"shared_experts": 2, "layers": (5, 4), "gate_dropout": 0.3}),
        ("home", {"groups": [NAMES[:1]], "layers": (4,)}),
        ("mmoe", {"levels": 2, "layers": (5,), "gate_dropout": 0.3}),
        ("ple", {"experts": 1, "layers": (5, 4), "gate_dropout": 0.3}),
        ("shared_bottom", {"dropout": 0.5}),
        ("stem", {"experts": 2, "levels": 2, "layers": (5,), "gate_layers": ()}),
    ],
)
def test_so_it_does_with_other_options(name: str, options: dict[str, Any]) -> None:
    check_body(BODIES[name], **options)


DROPPED = [n for n, body in BODIES.items() if "dropout" in signature(body).parameters]


@pytest.mark.parametrize("name", DROPPED)
def test_so_it_does_with_dropout(name: str) -> None:
    check_body(BODIES[name], layers=(4,), dropout=0.2)
    with pytest.raises(ConfigError, match=f"body '{name}': dropout = 1.0 must be at least 0 and below 1"):
        check_body(BODIES[name], dropout=1.0)


@pytest.mark.parametrize("name", DROPPED)
def test_dropout_draws_numbers_for_every_unit_and_none_without_it(name: str) -> None:
    one = Shape((Input("a", "number", "context", 1),), 2, 2, NAMES[:2])
    plain, dropped = (sum(_widths(BODIES[name](one, dropout=share))) for share in (0.0, 0.5))
    assert dropped > plain == sum(_widths(BODIES[name](one)))


def _widths(body: nn.Module) -> list[int]:
    return [m.width for m in body.modules() if isinstance(m, Uniform)]


def test_each_expert_drops_units_of_its_own_and_scales_the_rest() -> None:
    experts = Experts(2, [3, 4], dropout=0.25)
    for parameter in experts.parameters():
        parameter.data.fill_(1.0)
    (uniform,) = (m for m in experts.modules() if isinstance(m, Uniform))
    assert uniform.width == 2 * 4
    x = torch.ones(1, 3)
    assert torch.equal(experts(x), torch.full((1, 2, 4), 4.0))
    uniform.values = torch.tensor([[0.0, 0.9, 0.9, 0.9, 0.9, 0.24, 0.25, 0.9]])
    kept = torch.tensor([[[0.0, 1, 1, 1], [1, 0, 1, 1]]])
    torch.testing.assert_close(experts(x), kept * 4 / 0.75)


class Good(nn.Module):
    """A linear layer for all tasks; a broken body sees its input in another way."""

    def __init__(self, shape: Shape, *, width: int = 3) -> None:
        super().__init__()
        self.tasks, self.width = shape.tasks, width
        self.linear = nn.Linear(shape.width, width)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.see(x.flatten(start_dim=1))] * self.tasks

    def see(self, v: Tensor) -> Tensor:
        return torch.tanh(self.linear(v))


class OneOutput(Good):
    def forward(self, x: Tensor) -> list[Tensor]:
        return super().forward(x)[:1]


class OtherWidth(Good):
    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.width = 4


class NoWidth(Good):
    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        del self.width


class BareSqueeze(Good):
    def see(self, v: Tensor) -> Tensor:
        return super().see(v).squeeze()


class NotFinite(Good):
    def see(self, v: Tensor) -> Tensor:
        return super().see(v) / 0


class BareParameter(Good):
    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.scale = nn.Parameter(torch.ones(self.width))

    def see(self, v: Tensor) -> Tensor:
        return super().see(v) * self.scale


class DrawnWhenMade(Good):
    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.register_buffer("shift", torch.randn(self.width))

    def see(self, v: Tensor) -> Tensor:
        return super().see(v) + self.shift


class OwnSeed(Good):
    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.linear = nn.utils.skip_init(Unseeded, shape.width, self.width)


class Unseeded(nn.Module):
    def __init__(self, width_in: int, width_out: int, device: str | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width_out, width_in))

    def initialize(self, name: str, draw: Draw) -> None:
        fill(self.weight, rng.generator(5, name).standard_normal(self.weight.shape))

    def forward(self, v: Tensor) -> Tensor:
        return v @ self.weight.T


class StartsWrong(Good):
    def initialize(self, name: str, draw: Draw) -> None:
        fill(self.linear.weight, draw(name).standard_normal(7))


class ReadsTheBatch(Good):
    def see(self, v: Tensor) -> Tensor:
        z = super().see(v)
        return z - z.mean(dim=0)


class ReadsTheOrder(Good):
    def see(self, v: Tensor) -> Tensor:
        return super().see(v).cumsum(dim=0)


class TorchDropout(Good):
    def see(self, v: Tensor) -> Tensor:
        return nn.functional.dropout(super().see(v), training=self.training)


class Counts(Good):
    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.calls = 0

    def see(self, v: Tensor) -> Tensor:
        self.calls += 1
        return super().see(v) + self.calls


class BatchNorm(Good):
    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.norm = nn.BatchNorm1d(self.width, affine=False)

    def see(self, v: Tensor) -> Tensor:
        return self.norm(super().see(v))


class InPlace(Good):
    def see(self, v: Tensor) -> Tensor:
        with torch.no_grad():
            v.clamp_(max=0.5)
        return super().see(v)


class FillsUniform(Good):
    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.uniform = Uniform(self.width)

    def see(self, v: Tensor) -> Tensor:
        z = super().see(v)
        self.uniform.values = torch.full_like(z, 0.5)
        return z


class Penalty(Good):
    penalty: Tensor | None = None
    always, parts = False, 1

    def see(self, v: Tensor) -> Tensor:
        if self.training or self.always:
            self.penalty = self.linear.weight.square().sum().expand(self.parts).squeeze(dim=-1)
        return super().see(v)


class PenaltyOutsideTraining(Penalty):
    always = True


class PenaltyPerRow(Penalty):
    parts = 2


class GateOfOtherSize(Good):
    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.gate = Gate(shape.width, self.width)
        self.gate.experts += 1

    def see(self, v: Tensor) -> Tensor:
        return super().see(v) * self.gate(v)


class GateOfNoTask(Good):
    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.gate = Gate(shape.width, self.width, reader=shape.tasks)

    def see(self, v: Tensor) -> Tensor:
        return super().see(v) * self.gate(v)


class Unread(Good):
    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.unread = nn.Linear(2, 2)


class CutOff(Good):
    def see(self, v: Tensor) -> Tensor:
        return super().see(v.detach())


class Branches(Good):
    def see(self, v: Tensor) -> Tensor:
        z = super().see(v)
        return z if bool((z > 0).all()) else z + 0


class NotAParameter(Good):
    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.shift = torch.zeros(self.width)

    def initialize(self, name: str, draw: Draw) -> None:
        self.shift = torch.from_numpy(draw(f"{name}.shift").standard_normal(self.width)).float()

    def see(self, v: Tensor) -> Tensor:
        return super().see(v) + self.shift


class FixedRows(Good):
    def see(self, v: Tensor) -> Tensor:
        return super().see(v.reshape(5, -1) if len(v) == 5 else v)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (OneOutput, "with 3 task.*forward must give one tensor per task, not 1"),
        (OtherWidth, r"outputs of 5 row\(s\) must be of shape \(5, 4\), not \[\(5, 3\)"),
        (NoWidth, "its attribute width must be a positive int, not None"),
        (BareSqueeze, r"outputs of 1 row\(s\) must be of shape \(1, 3\), not \[\(3,\)"),
        (NotFinite, "an output is not finite"),
        (BareParameter, "parameter 'scale' is not started"),
        (DrawnWhenMade, "something is drawn when it is made"),
        (OwnSeed, "different seeds give the same start"),
        (StartsWrong, "it cannot be started: RuntimeError: "),
        (ReadsTheBatch, "outside training a row's output depends on the other rows"),
        (ReadsTheOrder, "rows in another order give other outputs"),
        (TorchDropout, "it draws from torch in training: use Uniform or Dropout"),
        (Counts, "the same rows twice give different outputs outside training"),
        (BatchNorm, "forward changes its input, a parameter or a buffer in training"),
        (InPlace, "forward changes its input, a parameter or a buffer outside training"),
        (FillsUniform, "it fills a Uniform outside training"),
        (PenaltyOutsideTraining, "its penalty must be None outside training"),
        (PenaltyPerRow, r"its penalty must be one finite number, not of shape \(2,\)"),
        (GateOfOtherSize, r"gate 'gate' must return shares \[B, experts\]"),
        (GateOfNoTask, "gate 'gate': reader must be None or a task's number, not 1"),
        (Unread, "with 3 task.*no gradient reaches parameter 'unread.weight'"),
        (CutOff, "no gradient reaches the embeddings"),
        (Branches, "it cannot be traced and stacked: forward must not depend on values"),
        (NotAParameter, "stacked with replicas it gives other outputs than alone"),
        (FixedRows, "torch.export fails with a dynamic number of rows"),
    ],
)
def test_a_broken_promise_is_named(body: type[nn.Module], sentence: str) -> None:
    with pytest.raises(AssertionError, match=f"body '{body.__name__}' .*{sentence}") as caught:
        check_body(body)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("body", [Good, Penalty])
def test_a_body_of_ones_own_that_keeps_them_passes(body: type[nn.Module]) -> None:
    check_body(body)


def test_options_reach_the_body_and_its_own_errors_are_left_as_they_are() -> None:
    check_body(Good, width=5)
    with pytest.raises(ConfigError, match="body 'mmoe': experts = 0 must be at least 1"):
        check_body(BODIES["mmoe"], experts=0)
