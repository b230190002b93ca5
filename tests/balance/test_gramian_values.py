"""Known values of the balancers that read gradients, and what other programs make of the same ones."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares, minimize, nnls
from torch import Tensor
from torchjd.aggregation import ConFIG, GradVacWeighting, IMTLGWeighting, MGDAWeighting, PCGradWeighting

from polytask.balance import BALANCERS, Signal, State
from polytask.balance.cones import nonnegative
from polytask.balance.magnitudes import rate_slope
from polytask.balance.projection import project

INF = float("inf")
TWO = torch.tensor([[4.0, 0, 0], [-1, 1, 1]], dtype=torch.float64)
THREE = torch.tensor([[2.0, 0, 1, 0], [-1, 2, 0, 1], [0.5, -1, 3, 0]], dtype=torch.float64)


def shown(rows: Tensor, losses: Sequence[float] = (), tasks: Sequence[int] = (), noise: Tensor | None = None) -> Signal:
    """What a balancer sees of gradients [n, D] on one shared parameter."""
    count = len(rows)
    return Signal(
        torch.tensor(losses or [1.0] * count, dtype=torch.float64),
        torch.ones(count, dtype=torch.bool),
        torch.tensor(1.0, dtype=torch.float64),
        torch.zeros(count, count, dtype=torch.float64) if noise is None else noise,
        torch.tensor(tasks or range(count)),
        (rows @ rows.T)[None],
        rows,
    )


def weights(kind: str, rows: Tensor, losses: Sequence[float] = (), **options: Any) -> Tensor:
    balancer = BALANCERS[kind](**options)
    return balancer.weights(shown(rows, losses), balancer.start(len(rows)))[0]


def drawn(seed: int, tasks: int, width: int = 20) -> Tensor:
    return torch.randn(tasks, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def steps(kind: str, signals: Sequence[Signal], tasks: int, **options: Any) -> tuple[list[Tensor], State]:
    """Weights of every step, and what is remembered at the end."""
    balancer = BALANCERS[kind](**options)
    state, found = balancer.start(tasks), []
    for signal in signals:
        weights, state = balancer.weights(signal, state)
        found.append(weights)
    return found, state


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("mgda", {}, (0.259259, 0.740741)),
        ("imtl_g", {}, (0.302169, 0.697831)),
        ("nash_mtl", {"max_norm": INF}, (0.384547, 0.888074)),
        ("fairgrad", {}, (0.384547, 0.888074)),
        ("aligned_mtl", {}, (0.555393 / 2, 1.125843 / 2)),  # of the mean
        ("upgrad", {}, (0.625, 1.166667)),  # of the mean
    ],
)
def test_golden_weights_of_two_tasks(kind: str, options: dict[str, Any], expected: tuple[float, ...]) -> None:
    assert weights(kind, TWO, **options).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("mgda", {}, (0.296296, 0.740741, 0.740741)),
        ("imtl_g", {}, (0.510847, 0.697831, 0.697831)),
        ("nash_mtl", {"max_norm": INF}, (0.650115, 0.888074, 0.888074)),
        ("aligned_mtl", {}, (1.095728 / 2, 1.125843 / 2, 1.125843 / 2)),
        ("cagrad", {"c": 0.4}, (1.117029, 0.882971, 0.882971)),
        ("cagrad", {"c": 0.5}, (1.021286, 0.978714, 0.978714)),
        ("cagrad", {"c": 0.0}, (1.5, 0.5, 0.5)),
        ("upgrad", {}, (1.333333, 1.166667, 1.166667)),
        ("pcgrad", {}, (2.666667, 2.333333, 2.333333)),  # of the sum
        ("metabalance", {"r": 0.0}, (3, 1, 1)),
        ("metabalance", {"r": 0.7}, (2.083419, 1.916581, 1.916581)),
        ("metabalance", {"r": 1.0}, (1.690599, 2.309401, 2.309401)),
    ],
)
def test_golden_directions_of_two_tasks(kind: str, options: dict[str, Any], expected: tuple[float, ...]) -> None:
    found = (weights(kind, TWO, **options) @ TWO).flatten()
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "weight", "direction"),
    [
        ("mgda", {}, (0.430876, 0.463134, 0.105991), (0.451613, 0.820276, 0.748848, 0.463134)),
        ("imtl_g", {}, (0.334414, 0.469784, 0.195802), (0.296944, 0.743767, 0.921819, 0.469784)),
        ("nash_mtl", {"max_norm": INF}, (0.442105, 0.565316, 0.295504), (0.466646, 0.835127, 1.328617, 0.565316)),
        ("upgrad", {}, (0.432624, 0.583333, 0.375887), (0.469858, 0.790780, 1.560284, 0.583333)),
        ("cagrad", {"c": 0.4}, None, (0.301353, 0.839142, 1.360462, 0.586238)),
        ("cagrad", {"c": 0.5}, None, (0.398453, 0.990186, 1.446773, 0.661760)),
        ("pcgrad", {"order": "fixed"}, None, (1.593902, 2.412195, 4.663415, 1.75)),
    ],
)
def test_golden_values_of_three_tasks(
    kind: str, options: dict[str, Any], weight: tuple[float, ...] | None, direction: tuple[float, ...]
) -> None:
    found = weights(kind, THREE, **options)
    if weight is not None:
        # an expected weight has six decimals, which is less than 1e-5 of a small one
        assert found.tolist() == pytest.approx(weight, rel=1e-5, abs=6e-7)
    assert (found @ THREE).tolist() == pytest.approx(direction, rel=1e-5)


def test_golden_aligned_values_of_three_tasks_are_for_the_sum() -> None:
    found = 3 * weights("aligned_mtl", THREE)
    assert found.tolist() == pytest.approx((0.791319, 0.892490, 0.458018), rel=1e-5)
    assert (found @ THREE).tolist() == pytest.approx((0.919157, 1.326963, 2.165373, 0.892490), rel=1e-5)


def test_golden_db_mtl() -> None:
    found = weights("db_mtl", TWO, (2, 0.5)) @ TWO
    assert found.tolist() == pytest.approx((1.464102, 2, 2), rel=1e-5)


def test_golden_gradnorm_slope_and_the_step_it_leads_to() -> None:
    norms = torch.tensor([4.0, 3**0.5], dtype=torch.float64)
    left = torch.tensor([2.0, 0.5], dtype=torch.float64)
    slope = rate_slope(norms, norms, left, 1.5)
    assert slope.tolist() == pytest.approx((-4, 1.732051), rel=1e-5)
    # the targets are 5.800428 and .725053: a norm beyond its target is to fall
    beyond = norms * torch.tensor([1.46, 0.1], dtype=torch.float64)
    assert rate_slope(beyond, norms, left, 1.5).tolist() == pytest.approx((-4, -1.732051), rel=1e-5)
    found, state = steps("gradnorm", [shown(TWO, (1, 1)), shown(TWO, (2, 0.5)), shown(TWO, (2, 0.5))], 2)
    now = torch.ones(2, dtype=torch.float64)
    for weight, ratio in zip(found, ([1.0, 1.0], [2.0, 0.5], [2.0, 0.5]), strict=True):
        assert weight.tolist() == pytest.approx(now.tolist(), rel=1e-12)
        slope = rate_slope(now * norms, norms, torch.tensor(ratio, dtype=torch.float64), 1.5)
        now = now - 0.025 * slope / (now * norms).mean()
        now = 2 * now / now.sum()
    assert found[1][0] < 1 < found[2][0] / found[1][0]
    assert state["first"].tolist() == [1, 1] and state["weights"].tolist() == pytest.approx(now.tolist())


def test_gradnorm_reads_the_last_shared_parameter_alone() -> None:
    signal = shown(TWO)
    assert signal.gramians is not None
    deeper = signal._replace(gramians=torch.cat([100 * signal.gramians.flip(1, 2), signal.gramians]))
    assert torch.equal(steps("gradnorm", [signal] * 2, 2)[0][1], steps("gradnorm", [deeper] * 2, 2)[0][1])


def test_two_tasks_have_closed_forms() -> None:
    for seed in range(50):
        rows = drawn(seed, 2, 3) * torch.tensor([[1.0], [3.0]])
        (g11, g12), (_, g22) = (rows @ rows.T).tolist()
        first = min(max((g22 - g12) / (g11 + g22 - 2 * g12), 0), 1)
        assert weights("mgda", rows).tolist() == pytest.approx((first, 1 - first), abs=1e-7)
        both = (0.5 + max(-g12, 0) / g11 / 2, 0.5 + max(-g12, 0) / g22 / 2)
        assert weights("upgrad", rows).tolist() == pytest.approx(both, rel=1e-7)
        one = [0.5 + max(-(g11 + g12) / 2, 0) / g11, 0.5 + max(-(g22 + g12) / 2, 0) / g22]
        assert weights("dualproj", rows).tolist() == pytest.approx(one, rel=1e-7)


@pytest.mark.parametrize("tasks", [2, 3, 5, 9])
def test_torchjd_agrees_where_it_needs_nothing_else(tasks: int) -> None:
    for seed in range(10):
        rows = drawn(seed, tasks)
        gramian = rows @ rows.T
        expected = IMTLGWeighting()(gramian)
        assert torch.allclose(weights("imtl_g", rows), expected, rtol=1e-6, atol=1e-8)
        assert torch.allclose(weights("conflict_free", rows) @ rows, ConFIG()(rows), rtol=1e-6, atol=1e-8)
        shortest = (weights("mgda", rows) @ rows).norm()
        by_steps = (MGDAWeighting(epsilon=1e-5, max_iters=2000)(gramian) @ rows).norm()
        assert shortest <= by_steps * (1 + 1e-9)
        assert float(shortest) == pytest.approx(float(by_steps), rel=1e-2)


@pytest.mark.parametrize("tasks", [2, 3, 5, 9])
def test_torchjd_agrees_on_surgery_in_the_order_of_the_tasks(tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randperm", torch.arange)
    theirs: Callable[[Tensor], Tensor] = GradVacWeighting(beta=0.3)
    balancer = BALANCERS["gradvac"](beta=0.3, order="fixed")
    state = balancer.start(tasks)
    for seed in range(10):
        rows = drawn(seed, tasks)
        gramian = rows @ rows.T
        assert torch.allclose(weights("pcgrad", rows, order="fixed"), PCGradWeighting()(gramian), rtol=1e-9)
        found, state = balancer.weights(shown(rows), state)
        assert torch.allclose(found, theirs(gramian), rtol=1e-6)


def test_a_random_order_follows_the_noise() -> None:
    noise = torch.tensor([[0.0, 2, 1], [5, 0, 3], [1, 2, 0]], dtype=torch.float64)
    rows = drawn(4, 3, 2)
    signal = shown(rows, noise=noise)
    orders = ((0, 2, 1), (1, 2, 0), (2, 0, 1))  # each row of the noise from low to high
    changed = rows.clone()
    for i, order in enumerate(orders):
        for j in order:
            inner = changed[i] @ rows[j]
            if i != j and inner < 0:
                changed[i] -= inner / (rows[j] @ rows[j]) * rows[j]
    balancer = BALANCERS["pcgrad"]()
    found = balancer.weights(signal, {})[0] @ rows
    assert found.tolist() == pytest.approx(changed.sum(dim=0).tolist(), rel=1e-9)
    assert not torch.allclose(found, weights("pcgrad", rows, order="fixed") @ rows)


@pytest.mark.parametrize("tasks", [2, 4, 8, 16])
def test_projections_are_those_of_nonnegative_least_squares(tasks: int) -> None:
    for seed in range(5):
        rows = drawn(seed, tasks, 2 * tasks) - 0.5
        gradients = rows.numpy()
        given = np.vstack([np.eye(tasks), np.ones(tasks)])
        found = project(rows @ rows.T, torch.from_numpy(given))
        for one, weight in zip(given, found.numpy(), strict=True):
            added, _ = nnls(gradients.T, -one @ gradients)
            assert weight == pytest.approx(one + added, abs=1e-6)


@pytest.mark.parametrize("tasks", [3, 6, 12])
def test_the_small_program_is_solved_from_any_start(tasks: int) -> None:
    rows = drawn(tasks, tasks, 2 * tasks)
    rows = rows / rows.norm(dim=1, keepdim=True)
    linear = drawn(99, 30, tasks)
    found = nonnegative(rows @ rows.T, linear)
    slack = found @ rows @ rows.T + linear
    assert (found >= 0).all() and (slack > -1e-9).all()
    assert float((found * slack).abs().max()) < 1e-9
    assert ((found > 0).sum(dim=1) > 0).any()


@pytest.mark.parametrize("tasks", [2, 3, 5])
@pytest.mark.parametrize("c", [0.2, 0.4, 0.8])
def test_cagrad_is_the_least_of_its_objective(tasks: int, c: float) -> None:
    for seed in range(5):
        rows = drawn(seed, tasks, 6) * (1 + torch.arange(tasks)[:, None])
        gramian = (rows @ rows.T).numpy()
        mean = np.full(tasks, 1 / tasks)
        radius = c * np.sqrt(mean @ gramian @ mean)

        def objective(w: Any, gramian: Any = gramian, mean: Any = mean, radius: Any = radius) -> float:
            return float(w @ gramian @ mean + radius * np.sqrt(w @ gramian @ w))

        simplex = {"type": "eq", "fun": lambda w: w.sum() - 1}
        best = minimize(objective, mean, bounds=[(0, 1)] * tasks, constraints=simplex, tol=1e-14)
        found = weights("cagrad", rows, c=c)
        gain = float((rows @ (found @ rows)).min())  # of the task served least, at most the objective's least value
        assert gain == pytest.approx(best.fun, rel=1e-5, abs=1e-6)
        assert float((found @ rows - rows.mean(dim=0)).norm()) == pytest.approx(radius, rel=1e-5)


@pytest.mark.parametrize("a", [0.5, 1.0, 2.0, 5.0])
def test_fairgrad_is_what_least_squares_finds(a: float) -> None:
    for seed in range(5):
        rows = drawn(seed, 4, 12)
        gramian = (rows @ rows.T).numpy()

        def short(x: Any, gramian: Any = gramian) -> Any:
            return gramian @ x - x ** (-1 / a)

        best = least_squares(short, np.full(4, 0.25), bounds=(1e-9, np.inf), xtol=1e-15, ftol=1e-15, gtol=1e-15)
        assert weights("fairgrad", rows, a=a).tolist() == pytest.approx(best.x.tolist(), rel=1e-6)


def test_nash_shortens_its_step_to_the_norm_allowed() -> None:
    free = weights("nash_mtl", THREE, max_norm=INF)
    assert float((free @ THREE).norm()) == pytest.approx(3**0.5, rel=1e-6)
    found = weights("nash_mtl", THREE, max_norm=0.5)
    assert float((found @ THREE).norm()) == pytest.approx(0.5, rel=1e-6)
    assert (found / free).tolist() == pytest.approx([0.5 / 3**0.5] * 3, rel=1e-6)
    assert torch.equal(weights("nash_mtl", THREE, max_norm=2.0), free)


def test_mgda_measures_gradients_by_norm_and_loss() -> None:
    losses = (2.0, 0.5, 4.0)
    norms, by_loss = THREE.norm(dim=1), torch.tensor(losses, dtype=torch.float64)
    for name, measure in {"l2": norms, "loss": by_loss, "loss+": norms * by_loss}.items():
        expected = weights("mgda", THREE / measure[:, None]) / measure
        found = weights("mgda", THREE, losses, normalize=name)
        assert found.tolist() == pytest.approx((expected / expected.sum()).tolist(), rel=1e-9)
        assert (THREE @ (found @ THREE) > 0).all()


def test_gradcraft_evens_out_norms_then_frees_each_gradient_of_its_conflicts() -> None:
    longest = THREE.norm(dim=1).max()
    for tau, epsilon in ((1.0, 0.0), (0.4, 0.05)):
        even = THREE * (tau * longest / THREE.norm(dim=1) + 1 - tau)[:, None]
        changed = even.clone()
        for i, row in enumerate(even):
            others = even[(even @ row < 0).nonzero().flatten()]
            missing = epsilon * row.norm() * others.norm(dim=1) - others @ row
            changed[i] += torch.linalg.solve(others @ others.T, missing) @ others
        found = weights("gradcraft", THREE, tau=tau, epsilon=epsilon) @ THREE
        assert found.tolist() == pytest.approx(changed.mean(dim=0).tolist(), rel=1e-6)


def test_norms_are_averaged_over_the_steps_a_task_was_present_in() -> None:
    big, one = torch.diag(torch.tensor([3.0, 1.0, 8.0]).double()), torch.eye(3, dtype=torch.float64)
    signals = [shown(big), shown(one[:2], tasks=(0, 1)), shown(one)]
    found, state = steps("metabalance", signals, 3, r=1.0, beta=0.5, target=2)
    assert found[0].tolist() == [pytest.approx([8 / 3, 8, 1])]
    first = (0.25 * 3 + 0.5) / 0.75  # of 3 and 1, the later one twice as much
    assert found[1].tolist() == [pytest.approx([8 / first, 8])]  # the absent target stands as remembered
    last = (0.25 * 8 + 0.5) / 0.75
    assert found[2][0, 2] == 1 and found[2][0, 1] == pytest.approx(last)
    assert state["steps"].tolist() == [3, 3, 2] and state["norms"].shape == (1, 3)


def test_metabalance_weighs_each_parameter_by_itself_and_a_target_not_seen_yet_is_the_mean() -> None:
    rows = torch.tensor([[3.0, 1, 0], [1, 1, 2]], dtype=torch.float64)
    gramians = torch.stack([rows[:, i : i + 1] @ rows[:, i : i + 1].T for i in range(3)])
    signal = shown(rows, tasks=(1, 2))._replace(gramians=gramians)
    (found,), _ = steps("metabalance", [signal], 3, r=1.0)
    assert found[:2].tolist() == [pytest.approx([2 / 3, 2]), pytest.approx([1, 1])]
    assert found[2].tolist() == [1, pytest.approx(0.5)]  # the first does not reach this parameter


def test_moco_weighs_by_the_averages_of_gradients() -> None:
    losses = (2.0, 0.5)
    found, state = steps("moco", [shown(TWO, losses)] * 2, 2, beta=0.5, gamma=0.1, rho=0.01)
    scale = torch.tensor(losses, dtype=torch.float64) / TWO.norm(dim=1)
    unit, shares, averages = scale[:, None] * TWO, torch.full((2,), 0.5, dtype=torch.float64), 0 * TWO
    for step, weight in enumerate(found, start=1):
        averages = averages - 0.5 / step**0.5 * (averages - unit)
        regular = averages @ averages.T + 0.01 * torch.eye(2)
        shares = (shares - 0.1 / step**0.5 * regular @ shares).softmax(dim=0)
        assert weight.tolist() == pytest.approx((shares * scale).tolist(), rel=1e-9)
    assert torch.allclose(state["averages"], averages) and state["steps"] == 2


def test_excess_mtl_raises_the_task_that_stays_farther_from_its_least() -> None:
    calm = TWO.clone()
    calm[0] /= 2
    found, state = steps("excess_mtl", [shown(TWO), shown(calm)], 2, eta=0.5)
    assert found[0].tolist() == pytest.approx([1, 1])
    # first excesses 4 and 3; then 2·2 / sqrt(16 + 4), and 3 / sqrt(2)
    raised = np.exp([0.5 * (4 / 20**0.5) / 4, 0.5 * 2**-0.5])
    assert found[1].tolist() == pytest.approx((2 * raised / raised.sum()).tolist(), rel=1e-9)
    assert state["first"].tolist() == [4, 3]
