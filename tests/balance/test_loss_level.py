from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from polytask.balance import BALANCERS, Balancer, Signal, State
from polytask.balance.dwa import Dwa
from polytask.balance.famo import Famo
from polytask.balance.fixed import Schedule, Unitary
from polytask.balance.rlw import Rlw
from polytask.balance.scales import Gls, LossScale, Stch
from polytask.balance.uncertainty import ImtlL, Uncertainty
from polytask.errors import ConfigError

CLOSE: Any = {"rtol": 1e-5, "atol": 1e-6}
GOLDEN = (2.0, 0.5)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def signal(losses: Tensor, epoch: int = 1, noise: Tensor | None = None, present: Tensor | None = None) -> Signal:
    count = len(losses)
    drawn = torch.zeros(count, count, dtype=torch.float64) if noise is None else noise
    there = torch.ones(count, dtype=torch.bool) if present is None else present
    return Signal(losses, there, torch.tensor(float(epoch), dtype=torch.float64), drawn)


def weights(balancer: Balancer, *losses: float, epoch: int = 1) -> Tensor:
    return balancer.weights(signal(double(*losses), epoch), balancer.start(len(losses)))[0]


def over(balancer: Balancer, steps: list[tuple[int, Tensor]]) -> Iterator[tuple[Tensor, State]]:
    """Weights and state after each of the (epoch, losses) ``steps``."""
    state = balancer.start(len(steps[0][1]))
    for epoch, losses in steps:
        found, state = balancer.weights(signal(losses, epoch), state)
        yield found, state


def random_losses(count: int, tasks: int = 3) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return list(torch.randn(count, tasks, generator=draw, dtype=torch.float64).exp())


def slope(value: Callable[[Tensor], Tensor], losses: Tensor) -> Tensor:
    """Gradient of a scalarization by the losses: the weights it stands for."""
    asked = losses.clone().requires_grad_()
    (found,) = torch.autograd.grad(value(asked), asked)
    return found


def test_the_golden_numbers_of_famo() -> None:
    famo = Famo()
    before, after = signal(double(*GOLDEN)), double(1.8, 0.475)
    found, state = famo.weights(before, famo.start(2))
    torch.testing.assert_close(found, double(0.2, 0.8), **CLOSE)
    gradient = famo.after(before, after, state)["first"] / 0.1  # the first moment starts with a tenth of it
    torch.testing.assert_close(gradient, double(0.013517, -0.013517), rtol=1e-4, atol=1e-7)


def test_the_golden_numbers_of_dwa() -> None:
    steps = [(1, double(1, 1)), (2, double(0.8, 1)), (2, double(1, 1)), (3, double(5, 1)), (3, double(1, 5))]
    found = [w for w, _ in over(Dwa(), steps)]
    assert all(torch.equal(w, double(1, 1)) for w in found[:3])
    for w in found[3:]:
        torch.testing.assert_close(w, double(0.975005, 1.024995), **CLOSE)


def test_the_golden_numbers_of_gls_uncertainty_and_smooth_tchebycheff() -> None:
    losses = double(*GOLDEN)
    torch.testing.assert_close(weights(Gls(), *GOLDEN), double(0.25, 1.0), **CLOSE)
    assert (weights(Gls(), *GOLDEN) * losses).sum() == pytest.approx(1.0)  # GLS itself, as Σ T L / T
    assert (weights(Uncertainty(), *GOLDEN) * losses).sum() == pytest.approx(1.25)

    def value(asked: Tensor) -> Tensor:
        return 0.1 * (asked / 2 / 0.1).logsumexp(dim=0)

    assert float(value(losses)) == pytest.approx(1.000055, rel=1e-6)
    torch.testing.assert_close(weights(Stch(mu=0.1, warmup=0), *GOLDEN), slope(value, losses))


def test_random_weights_are_those_of_the_paper_times_the_number_of_tasks() -> None:
    draw = torch.Generator().manual_seed(0)
    drawn = torch.randn(2000, 3, 3, generator=draw, dtype=torch.float64)
    found = torch.stack([Rlw().weights(signal(double(1, 9, 0.1), noise=n), {})[0] for n in drawn])
    expected = 3 * drawn.diagonal(dim1=1, dim2=2).softmax(dim=1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.mean(dim=0), double(1, 1, 1), rtol=0.05, atol=0)


def test_it_gives_the_gradients_of_torchjd_where_nothing_is_remembered() -> None:
    torchjd = pytest.importorskip("torchjd.scalarization")
    for losses in random_losses(20):
        torch.testing.assert_close(weights(Gls(), *losses.tolist()), slope(torchjd.GeometricMean(), losses))
        for mu in (0.01, 0.1, 1.0):
            found = weights(Stch(mu=mu, warmup=0), *losses.tolist())
            torch.testing.assert_close(found, slope(torchjd.STCH(mu=mu), losses))


@pytest.mark.parametrize(("name", "ours"), [("UW", Uncertainty(lr=0.02)), ("IMTLL", ImtlL(lr=0.02))])
def test_what_is_learned_moves_as_in_torchjd_with_adam(name: str, ours: Balancer) -> None:
    torchjd = pytest.importorskip("torchjd.scalarization")
    theirs = getattr(torchjd, name)(3).double()
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.02, betas=(0.9, 0.9))
    steps = [(1, losses) for losses in random_losses(200)]
    for (_, losses), (found, _) in zip(steps, over(ours, steps), strict=True):
        torch.testing.assert_close(found, slope(theirs, losses))
        optimizer.zero_grad()
        theirs(losses).backward()
        optimizer.step()


def test_famo_moves_as_in_torchjd() -> None:
    torchjd = pytest.importorskip("torchjd.scalarization")
    theirs, famo = torchjd.FAMO(3, min_losses=double(0, 0, 0)).double(), Famo()
    state = famo.start(3)
    losses = random_losses(100)
    for before, after in pairwise(losses):
        found, state = famo.weights(signal(before), state)
        torch.testing.assert_close(found, slope(theirs, before), rtol=1e-6, atol=1e-9)
        theirs.update(after)
        state = famo.after(signal(before), after, state)


def test_dwa_moves_as_in_torchjd() -> None:
    torchjd = pytest.importorskip("torchjd.scalarization")
    theirs = torchjd.DWA(temperature=0.5)
    steps = [(1 + number // 5, losses) for number, losses in enumerate(random_losses(30))]
    for number, (found, _) in enumerate(over(Dwa(temperature=0.5), steps)):
        if number and number % 5 == 0:
            theirs.step()
        torch.testing.assert_close(found, slope(theirs, steps[number][1]))


@pytest.mark.parametrize(
    ("balancer", "expected"),
    [
        (Uncertainty(lr=0.05), lambda losses: 0.5 / losses),  # e^s = L
        (Uncertainty(lr=0.05, form="whole"), lambda losses: 0.5 / losses),  # e^s = 2 L
        (ImtlL(lr=0.05), lambda losses: 1 / losses),  # e^s = 1 / L
    ],
)
def test_the_fixed_point_of_what_is_learned(balancer: Balancer, expected: Callable[[Tensor], Tensor]) -> None:
    losses = double(1000, 0.3, 0.001)
    *_, (found, _) = over(balancer, [(1, losses)] * 1000)
    torch.testing.assert_close(found, expected(losses), rtol=0.02, atol=0)  # Adam's last steps are of size lr


def test_a_form_for_each_task() -> None:
    found = weights(Uncertainty(form=["whole", "half"]), 3, 4)
    torch.testing.assert_close(found, double(1, 0.5))


def test_a_loss_that_vanishes_takes_its_weight_to_the_bound_and_no_farther() -> None:
    *_, (found, _) = over(ImtlL(lr=1.0, bound=3.0), [(1, double(1e-30, 1))] * 20)
    torch.testing.assert_close(found, double(3, 0).exp())


def test_loss_scale_is_a_moving_average_without_the_bias_of_its_start() -> None:
    losses = random_losses(30)
    mean, keep = double(0, 0, 0), 0.9
    for number, (found, _) in enumerate(over(LossScale(beta=keep), [(1, one) for one in losses]), start=1):
        mean = keep * mean + (1 - keep) * losses[number - 1]
        torch.testing.assert_close(found, (1 - keep**number) / mean)


def test_loss_scale_by_the_first_epoch_stands_from_then_on() -> None:
    steps = [(1, double(2, 1)), (1, double(4, 3)), (2, double(90, 1)), (3, double(1, 90))]
    found = [w for w, _ in over(LossScale(by="first_epoch"), steps)]
    torch.testing.assert_close(torch.stack(found), torch.stack([double(1 / 2, 1), *[double(1 / 3, 1 / 2)] * 3]))


def test_loss_scale_without_memory_minimizes_the_sum_of_logarithms() -> None:
    for losses, (found, _) in zip(
        random_losses(5), over(LossScale(beta=0.0), [(1, o) for o in random_losses(5)]), strict=True
    ):
        torch.testing.assert_close(found, slope(lambda asked: asked.log().sum(), losses))


def test_smooth_tchebycheff_warms_up_and_then_weighs_against_its_nadir() -> None:
    steps = [(1, double(9, 9)), (2, double(2, 1)), (2, double(4, 3)), (3, double(1.5, 2)), (4, double(6, 1))]
    found = [w for w, _ in over(Stch(mu=0.5, warmup=2), steps)]
    for (_, losses), w in zip(steps[:3], found, strict=False):
        torch.testing.assert_close(w, 1 / losses)

    def value(asked: Tensor) -> Tensor:
        return 2 * 0.5 * ((asked / double(3, 2)).log() / 0.5).logsumexp(dim=0)

    for (_, losses), w in zip(steps[3:], found[3:], strict=True):
        torch.testing.assert_close(w, slope(value, losses))


def test_smooth_tchebycheff_nears_the_largest_loss_alone() -> None:
    torch.testing.assert_close(weights(Stch(mu=0.001, warmup=0), 2, 1.9), double(0.5, 0))


def test_a_schedule_starts_with_the_tasks_own_weights() -> None:
    schedule = Schedule(gamma=[0.5, 1.1])
    assert torch.equal(weights(schedule, 1, 1, epoch=1), double(1, 1))
    torch.testing.assert_close(weights(schedule, 1, 1, epoch=3), double(0.25, 1.21))
    torch.testing.assert_close(weights(Schedule(gamma=0.9), 1, 1, 1, epoch=2), double(0.9, 0.9, 0.9))


def test_the_unitary_sum_says_that_it_takes_no_weights() -> None:
    assert Unitary.unitary and torch.equal(weights(Unitary(), 3, 0.1), double(1, 1))


def test_dwa_gives_weight_to_the_task_that_falls_more_slowly_and_counts_only_its_own_epochs() -> None:
    there = [(1, [1, 1]), (2, [1, 1]), (3, [1, 0]), (4, [1, 1])]
    dwa = Dwa()
    state = dwa.start(2)
    for epoch, present in there:
        losses = double(1.0 / epoch, 1.0)
        found, state = dwa.weights(signal(losses, epoch, present=torch.tensor(present, dtype=torch.bool)), state)
    rates = double((1 / 3) / (1 / 2), 1.0 / 1.0)  # the second task's last epochs are 2 and 1
    torch.testing.assert_close(found, 2 * (rates / 2).softmax(dim=0))
    assert found[1] > found[0]


def test_famo_gives_weight_to_the_task_whose_loss_fell_least() -> None:
    famo, before = Famo(lr=0.1), signal(double(1, 1, 1))
    state = famo.start(3)
    for _ in range(10):
        state = famo.after(before, double(0.5, 0.9, 0.99), state)
    found = famo.weights(before, state)[0]
    assert found[0] < found[1] < found[2] and float(found.sum()) == pytest.approx(1)


def test_famo_measures_from_the_least_loss() -> None:
    found = weights(Famo(min_loss=[-1.0, 0.0]), -0.5, 0.5)
    torch.testing.assert_close(found, double(0.5, 0.5))
    assert weights(Famo(), -0.5, 0.5).isnan().tolist() == [True, False]


@pytest.mark.parametrize("name", ["loss_scale", "gls", "stch", "uncertainty", "imtl_l", "famo"])
def test_the_own_weights_of_tasks_cancel(name: str) -> None:
    """What the documentation says of these methods, in the long run of those that learn."""
    balancer = BALANCERS[name](**({"lr": 0.05} if name in ("uncertainty", "imtl_l") else {}))
    shares = []
    for own in (double(1, 1), double(0.99, 0.01)):
        *_, (found, _) = over(balancer, [(1, own * double(2, 0.5))] * 1000)
        weighted = found * own
        shares.append(weighted / weighted.sum())
    torch.testing.assert_close(shares[0], shares[1], rtol=0.02, atol=0)


@pytest.mark.parametrize("name", ["fixed", "unitary", "schedule", "gls", "rlw", "dwa", "famo"])
def test_one_task_alone_is_trained_plainly(name: str) -> None:
    balancer = BALANCERS[name]()
    for found, _ in over(balancer, [(1 + n // 3, one) for n, one in enumerate(random_losses(12, 1))]):
        torch.testing.assert_close(found, double(1))


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("schedule", {"gamma": 0.0}, "gamma = 0 must be from 0.001 to 1000"),
        ("schedule", {"gamma": [1.0, "a"]}, "gamma = 'a' must be a number"),
        ("loss_scale", {"beta": 1.0}, "beta = 1 must be from 0 to 0.999999"),
        ("loss_scale", {"by": "averge"}, r"by 'averge' is unknown. Did you mean 'average'\?"),
        ("stch", {"mu": 0.0}, "mu = 0 must be at least 0.001"),
        ("stch", {"mu": True}, "mu = True must be a number"),
        ("stch", {"warmup": 2.5}, "warmup = 2.5 must be a whole number"),
        ("stch", {"warmup": -1}, "warmup = -1 must be at least 0"),
        ("uncertainty", {"form": ["half", "hole"]}, r"form 'hole' is unknown. Did you mean 'whole'\?"),
        ("uncertainty", {"lr": -1.0}, "lr = -1 must be from 0 to 1"),
        ("imtl_l", {"bound": 100}, "bound = 100 must be from 0 to 80"),
        ("dwa", {"temperature": float("nan")}, "temperature = nan must be at least 0.001"),
        ("famo", {"lr": "fast"}, "lr = 'fast' must be a number"),
        ("famo", {"weight_decay": -0.1}, "weight_decay = -0.1 must be from 0 to 1"),
    ],
)
def test_a_wrong_option_is_one_line_with_name_value_and_bound(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        BALANCERS[name](**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("balancer", "told"),
    [
        (Schedule(gamma=[1.0, 0.9]), r"gamma = \[1.0, 0.9\] must be one value, or one for each of the 3 tasks"),
        (Uncertainty(form=["half", "whole"]), "form = .* each of the 3 tasks"),
        (Famo(min_loss=[0.0, 0.0]), "min_loss = .* each of the 3 tasks"),
    ],
)
def test_options_for_another_number_of_tasks(balancer: Balancer, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        balancer.start(3)
