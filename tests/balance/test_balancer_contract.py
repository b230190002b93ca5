from typing import Any

import pytest
import torch
from torch import Tensor

from polytask.balance import BALANCERS, Signal, State
from polytask.testing import check_balancer

STEP_BY_STEP = {"moco"}  # what it remembers moves by a step whose size is in the unit of the losses


@pytest.mark.parametrize("name", BALANCERS)
def test_every_balancer_keeps_its_promises(name: str) -> None:
    check_balancer(BALANCERS[name], scale_free=name not in STEP_BY_STEP)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("schedule", {"gamma": 0.7}),
        ("loss_scale", {"by": "first_epoch"}),
        ("loss_scale", {"beta": 0.0}),
        ("stch", {"warmup": 0, "mu": 0.01}),
        ("stch", {"warmup": 1, "mu": 0.1}),
        ("uncertainty", {"form": "whole", "lr": 0.3, "bound": 1.0}),
        ("imtl_l", {"lr": 1.0, "bound": 80.0}),
        ("dwa", {"temperature": 0.1}),
        ("famo", {"lr": 1.0, "weight_decay": 0.0, "min_loss": 0}),
    ],
)
def test_so_it_does_with_other_options(name: str, options: dict[str, Any]) -> None:
    check_balancer(BALANCERS[name], **options)


class Good:
    """A balancer of losses that remembers their mean so far; a broken one does one thing in another way."""

    needs = "losses"
    scale_heads = True
    positive = True

    def start(self, tasks: int) -> State:
        return {"sum": torch.zeros(tasks, dtype=torch.float64), "count": torch.zeros(tasks, dtype=torch.float64)}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        here = signal.present
        kept = {
            "sum": state["sum"] + torch.where(here, signal.losses, 0.0),
            "count": state["count"] + here,
        }
        size = kept["sum"] / kept["count"]
        return self.given(torch.where(size > 0, 1 / size, torch.nan), signal), kept

    def given(self, weights: Tensor, signal: Signal) -> Tensor:
        return torch.where(signal.present, weights, 0.0).to(signal.losses.dtype)


class NeedsNothing(Good):
    needs = "nothing"


class NotAChoice(Good):
    scale_heads = None


class StartsSingle(Good):
    def start(self, tasks: int) -> State:
        return {name: value.float() for name, value in super().start(tasks).items()}


class Doubles(Good):
    def given(self, weights: Tensor, signal: Signal) -> Tensor:
        return super().given(weights, signal).double()


class OneWeight(Good):
    def given(self, weights: Tensor, signal: Signal) -> Tensor:
        return super().given(weights, signal).sum(dim=0)


class Overflows(Good):
    def given(self, weights: Tensor, signal: Signal) -> Tensor:
        return super().given(weights.exp(), signal)


class WeighsTheAbsent(Good):
    def given(self, weights: Tensor, signal: Signal) -> Tensor:
        return torch.where(signal.present, weights, 1.0).to(signal.losses.dtype)


class InPlace(Good):
    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        found, kept = super().weights(signal, state)
        return found, {name: state[name].copy_(value) for name, value in kept.items()}


class InPlaceOfTheSignal(Good):
    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        found = super().weights(signal, state)
        signal.losses.mul_(2)
        return found


class Draws(Good):
    def given(self, weights: Tensor, signal: Signal) -> Tensor:
        return super().given(weights * (1 + torch.rand(())), signal)


class Renames(Good):
    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        found, kept = super().weights(signal, state)
        return found, {**kept, "epoch": signal.epoch}


class Grows(Good):
    def start(self, tasks: int) -> State:
        return super().start(tasks) | {"seen": torch.zeros(0, dtype=torch.float64)}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        found, kept = super().weights(signal, state)
        return found, kept | {"seen": torch.cat([state["seen"], signal.losses[:1].double()])}


class ReadsTheOrder(Good):
    def given(self, weights: Tensor, signal: Signal) -> Tensor:
        return super().given(weights * (1 + torch.arange(len(weights))), signal)


class CountsTheAbsent(Good):
    def given(self, weights: Tensor, signal: Signal) -> Tensor:
        return super().given(weights * len(weights), signal)


class ForgetsTheAbsent(Good):
    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        found, kept = super().weights(signal, state)
        return found, {name: 0.9 * value for name, value in kept.items()}


class SilentChance(Good):
    def given(self, weights: Tensor, signal: Signal) -> Tensor:
        return super().given(weights * signal.noise.diagonal().exp(), signal)


class NotConstant(Good):
    constant = True


class Backwards(Good):
    def given(self, weights: Tensor, signal: Signal) -> Tensor:
        return -super().given(weights, signal)


class LeavesTheOnly(Good):
    def given(self, weights: Tensor, signal: Signal) -> Tensor:
        return super().given(weights * (signal.present.sum() > 1), signal)


class NotPositive(Good):
    positive = False


class Forgives(Good):
    def given(self, weights: Tensor, signal: Signal) -> Tensor:
        return super().given(weights.nan_to_num(1.0), signal)


class BlamesAll(Good):
    def given(self, weights: Tensor, signal: Signal) -> Tensor:
        wrong = (weights.isnan() & signal.present).any()
        return super().given(torch.where(wrong, torch.nan, weights), signal)


class Branches(Good):
    def given(self, weights: Tensor, signal: Signal) -> Tensor:
        return super().given(weights if bool(signal.present.any()) else weights + 1, signal)


class FailsToLook(Good):
    def after(self, signal: Signal, losses: Tensor, state: State) -> State:
        raise ValueError("no\nidea")


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (NeedsNothing, "needs must be one of losses, gramian, jacobian, not 'nothing'"),
        (NotAChoice, "scale_heads must be True or False"),
        (StartsSingle, "start must give tensors of float64"),
        (Doubles, "of torch.float32 it makes torch.float64"),
        (OneWeight, r"weights must be of shape \[T\], not \[\]"),
        (Overflows, "a weight is not finite"),
        (WeighsTheAbsent, "a task that is absent has a weight"),
        (InPlace, "it changes the state or the signal it is given in place"),
        (InPlaceOfTheSignal, "it changes the state or the signal it is given in place"),
        (Draws, "the same state and signal give other weights"),
        (Renames, "what is remembered must keep its names"),
        (Grows, "what is remembered changes its shape"),
        (ReadsTheOrder, "tasks in another order get other weights"),
        (CountsTheAbsent, "a task that is absent changes the weights of others"),
        (ForgetsTheAbsent, "what is remembered of a task that is absent changes"),
        (SilentChance, "weights depend on the noise: it must say random = True"),
        (NotConstant, "it says constant, but a weight is not 1"),
        (Backwards, "weights of tasks that agree in everything do not sum above 0"),
        (LeavesTheOnly, "the only task has a weight that is not above 0"),
        (NotPositive, "a loss below 0 has no finite weight: it must say positive"),
        (Forgives, "it says positive, but a loss below 0 has a weight that is not NaN"),
        (BlamesAll, "a loss below 0 makes the weight of another task NaN"),
        (Branches, "it cannot be stacked and traced: it must not depend on values"),
        (FailsToLook, "after fails: ValueError: no"),
    ],
)
def test_a_broken_promise_is_named(broken: type[Good], sentence: str) -> None:
    with pytest.raises(AssertionError, match=f"balancer '{broken.__name__}': .*{sentence}") as caught:
        check_balancer(broken)
    assert "\n" not in str(caught.value)


class Inverse:
    """A balancer of gradients: the unit gradients' sum; a broken one does one thing in another way."""

    needs = "gramian"
    scale_heads = False

    def start(self, tasks: int) -> State:
        return {"steps": torch.zeros(tasks, dtype=torch.float64)}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        assert signal.tasks is not None
        steps = state["steps"].index_add(0, signal.tasks, torch.ones(len(signal.tasks), dtype=torch.float64))
        return self.given(signal), {"steps": steps}

    def given(self, signal: Signal) -> Tensor:
        return 1 / signal.gramian.diagonal().sqrt()


class ByParameter(Inverse):
    def given(self, signal: Signal) -> Tensor:
        assert signal.gramians is not None
        return 1 / signal.gramians.diagonal(dim1=1, dim2=2).sqrt()


class Dense(Inverse):
    needs = "jacobian"

    def given(self, signal: Signal) -> Tensor:
        assert signal.jacobian is not None
        return 1 / signal.jacobian.norm(dim=1)


class Solves(Inverse):
    def given(self, signal: Signal) -> Tensor:
        return torch.linalg.inv(signal.gramian).sum(dim=1)


class HasAUnit(Inverse):
    def given(self, signal: Signal) -> Tensor:
        return 1 / (1 + super().given(signal))


class TooMany(Inverse):
    def given(self, signal: Signal) -> Tensor:
        return super().given(signal).expand(2, -1)


class Numbers(Inverse):
    def given(self, signal: Signal) -> Tensor:
        return super().given(signal) * (1 + torch.arange(len(signal.losses)))


class Counts(Inverse):
    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        return self.given(signal), {"steps": state["steps"] + 1}


@pytest.mark.parametrize("good", [Good, Inverse, ByParameter, Dense])
def test_a_balancer_of_ones_own_that_keeps_them_passes(good: type[Any]) -> None:
    check_balancer(good)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (Solves, "(a weight is not finite for|weights fails: .*singular)"),
        (HasAUnit, "losses 0.001 times as large give another direction"),
        (TooMany, r"weights must be of shape \[n\] or \[P, n\], not \[2, "),
        (Numbers, "tasks in another order get other weights"),
        (Counts, "what is remembered of a task that is absent changes"),
    ],
)
def test_a_broken_promise_about_gradients_is_named(broken: type[Inverse], sentence: str) -> None:
    with pytest.raises(AssertionError, match=f"balancer '{broken.__name__}': .*{sentence}"):
        check_balancer(broken)


def test_a_direction_that_is_meant_to_depend_on_the_unit_may() -> None:
    check_balancer(HasAUnit, scale_free=False)
