"""What each balancer that reads gradients promises of its direction, for any gradients."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from polytask.balance import BALANCERS, Signal
from polytask.errors import ConfigError
from polytask.testing.balancers import check_balancer

OF_GRADIENTS = sorted(name for name, make in BALANCERS.items() if make().needs != "losses")
TOLERANCE = 1e-6


def shown(rows: Tensor, losses: Tensor | None = None, noise: Tensor | None = None) -> Signal:
    """What a balancer sees of gradients [n, D], half of them on each of two shared parameters."""
    count, half = len(rows), rows.shape[1] // 2
    parts = rows[:, :half], rows[:, half:]
    return Signal(
        torch.ones(count, dtype=torch.float64) if losses is None else losses,
        torch.ones(count, dtype=torch.bool),
        torch.tensor(1.0, dtype=torch.float64),
        torch.zeros(count, count, dtype=torch.float64) if noise is None else noise,
        torch.arange(count),
        torch.stack([p @ p.T for p in parts]),
        rows,
    )


def weights(kind: str, rows: Tensor, **options: Any) -> Tensor:
    balancer = BALANCERS[kind](**options)
    found: Tensor = balancer.weights(shown(rows), balancer.start(len(rows)))[0]
    return found


def gains(kind: str, rows: Tensor, **options: Any) -> Tensor:
    """How much each task gains by the direction [n], against gradients of the longest one's norm."""
    direction = weights(kind, rows, **options) @ rows
    return rows @ direction / rows.norm(dim=1) / rows.norm(dim=1).max()


@st.composite
def gradients(draw: st.DrawFn, decades: float = 4, dependent: bool = True) -> Tensor:
    """Gradients [n, D] of norms within 10^±decades; some repeated, opposed, or all in a space of few dimensions."""
    count = draw(st.integers(2, 8))
    width = draw(st.integers(1, 12)) if dependent else 3 * count
    maker = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    rows = torch.randn(count, width, generator=maker, dtype=torch.float64)
    rows = rows / rows.norm(dim=1, keepdim=True)
    if dependent and draw(st.booleans()):
        rows[-1] = draw(st.sampled_from([1.0, -1.0])) * rows[0]
    size = torch.rand(count, generator=maker, dtype=torch.float64) * 2 - 1
    return rows * 10 ** (decades * size[:, None])


@pytest.mark.parametrize("kind", OF_GRADIENTS)
def test_the_contract_is_kept(kind: str) -> None:
    check_balancer(BALANCERS[kind], scale_free=kind != "moco")  # MoCo sets gradients as long as losses against 1


@pytest.mark.parametrize(
    ("kind", "options"),
    [("gradvac", {"beta": 1.0}), ("gradcraft", {"tau": 0.3, "epsilon": 0.1, "beta": 0.9})]
    + [("fairgrad", {"a": a}) for a in (0.5, 10.0)]
    + [("mgda", {"normalize": n}) for n in ("l2", "loss", "loss+")]
    + [("metabalance", {"r": 1.0, "beta": 0.0}), ("cagrad", {"c": 0.99}), ("nash_mtl", {"max_norm": float("inf")})],
)
def test_the_contract_is_kept_with_other_options(kind: str, options: dict[str, Any]) -> None:
    check_balancer(BALANCERS[kind], scale_free=kind not in ("fairgrad", "gradcraft"), **options)


@settings(deadline=None, max_examples=150)
@given(gradients())
def test_no_task_loses(rows: Tensor) -> None:
    for kind in ("upgrad", "dualproj", "mgda"):
        assert gains(kind, rows).min() >= -TOLERANCE, kind
    for measure in ("l2", "loss", "loss+"):
        assert gains("mgda", rows, normalize=measure).min() >= -TOLERANCE, measure


@settings(deadline=None, max_examples=100)
@given(gradients(decades=1))
def test_mgda_has_no_shorter_vector_and_the_projections_no_nearer_one(rows: Tensor) -> None:
    share = weights("mgda", rows)
    assert share.sum() == pytest.approx(1) and (share >= 0).all()
    shortest = (share @ rows).norm()
    other = torch.rand(200, len(rows), generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 4
    assert shortest <= (other / other.sum(dim=1, keepdim=True) @ rows).norm(dim=1).min() + TOLERANCE
    mean, nearest = rows.mean(dim=0), weights("dualproj", rows) @ rows
    for harmless in (weights("upgrad", rows) @ rows, weights("mgda", rows) @ rows, 0 * mean):
        assert (nearest - mean).norm() <= (harmless - mean).norm() + TOLERANCE * rows.norm()


@settings(deadline=None, max_examples=100)
@given(gradients(dependent=False))
def test_equal_projections(rows: Tensor) -> None:
    norms = rows.norm(dim=1)
    for kind in ("imtl_g", "conflict_free"):
        direction = weights(kind, rows) @ rows
        projected = rows @ direction / norms / direction.norm()
        assert projected.min() > 0
        assert projected.tolist() == pytest.approx([float(projected.mean())] * len(rows), rel=1e-5)
    assert float((rows @ direction).sum() / direction.norm()) >= 0
    unit = direction / direction.norm()
    assert float(direction.norm()) == pytest.approx(float((rows @ unit).sum()), rel=1e-5)  # ConFIG's length


def test_imtl_g_turns_round_where_every_task_would_lose() -> None:
    rows = torch.tensor([[3.0, -2, -2], [2, 1, 3], [2, 0, 0]], dtype=torch.float64)
    cosines = (rows @ rows.T) / rows.norm(dim=1) / rows.norm(dim=1)[:, None]
    paper = torch.linalg.solve(cosines, torch.ones(3, dtype=torch.float64)) / rows.norm(dim=1)
    assert paper.sum() < 0
    found = weights("imtl_g", rows)
    assert (rows @ (found @ rows) > 0).all()
    assert found.tolist() == pytest.approx((paper / paper.sum().abs()).tolist(), rel=1e-6)


@settings(deadline=None, max_examples=100)
@given(gradients(dependent=False))
def test_nash_conditions(rows: Tensor) -> None:
    share = weights("nash_mtl", rows, max_norm=float("inf"))
    assert (share > 0).all()
    assert (share * (rows @ (share @ rows))).tolist() == pytest.approx([1] * len(rows), rel=1e-5)


@settings(deadline=None, max_examples=50)
@given(gradients(decades=1, dependent=False), st.sampled_from([0.5, 1.0, 2.0, 5.0]))
def test_fair_conditions(rows: Tensor, a: float) -> None:
    share = weights("fairgrad", rows, a=a)
    assert (share > 0).all()
    assert ((rows @ (share @ rows)) * share ** (1 / a)).tolist() == pytest.approx([1] * len(rows), rel=1e-4)


@settings(deadline=None, max_examples=50)
@given(gradients())
def test_bargaining_stays_finite_where_no_step_serves_all(rows: Tensor) -> None:
    stationary = torch.cat([rows, -rows.sum(dim=0, keepdim=True)])
    assume(stationary.norm(dim=1).min() > 0)
    for kind in ("nash_mtl", "fairgrad"):
        share = weights(kind, stationary) * stationary.norm(dim=1)
        assert (share > 0).all() and (share < 1e5 * len(share)).all(), kind


@settings(deadline=None, max_examples=100)
@given(gradients(decades=1, dependent=False), st.integers(0, 7))
def test_aligned_does_not_explode_with_one_gradient(rows: Tensor, which: int) -> None:
    exploded = rows.clone()
    exploded[which % len(rows)] *= 1e3
    shares = weights("aligned_mtl", exploded)
    shortest = torch.linalg.svdvals(exploded).min()
    assert shares.norm() <= len(rows) ** -0.5 * (1 + TOLERANCE)
    assert (shares @ exploded).norm() <= shortest * len(rows) ** -0.5 * (1 + TOLERANCE) <= rows.norm(dim=1).max()


@settings(deadline=None, max_examples=50)
@given(gradients(dependent=False))
def test_without_conflicts_surgery_changes_nothing(rows: Tensor) -> None:
    agreed = rows.abs()
    ones = [1.0] * len(rows)
    assert weights("pcgrad", agreed).tolist() == ones
    assert weights("gradvac", agreed).tolist() == ones
    assert weights("gradcraft", agreed, tau=0.0).tolist() == pytest.approx([1 / len(rows)] * len(rows))
    assert weights("upgrad", agreed).tolist() == pytest.approx([1 / len(rows)] * len(rows))
    assert weights("dualproj", agreed).tolist() == pytest.approx([1 / len(rows)] * len(rows))


@settings(deadline=None, max_examples=50)
@given(gradients(decades=1, dependent=False))
def test_gradvac_reaches_the_cosine_it_aims_at(rows: Tensor) -> None:
    two = rows[:2]
    balancer = BALANCERS["gradvac"](order="fixed")
    cosine = float(two[0] @ two[1] / two[0].norm() / two[1].norm())
    aim = 0.5 * (cosine + 1)
    state = {"targets": torch.tensor([[0, aim], [-1, 0]], dtype=torch.float64)}
    found, _ = balancer.weights(shown(two), state)
    turned = two[0] + (found[1] - 1) * two[1]
    assert found[0] == 1
    assert float(turned @ two[1] / turned.norm() / two[1].norm()) == pytest.approx(aim, abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(gradients(decades=1), st.floats(0.0, 0.95))
def test_cagrad_stays_near_the_mean_and_helps_the_task_it_serves_least(rows: Tensor, c: float) -> None:
    mean = rows.mean(dim=0)
    direction = weights("cagrad", rows, c=c) @ rows
    scale = rows.norm(dim=1).max()
    assert (direction - mean).norm() <= c * mean.norm() + 1e-4 * scale
    assert (rows @ direction).min() >= (rows @ mean).min() - 1e-4 * scale**2


@settings(deadline=None, max_examples=50)
@given(gradients())
def test_evened_norms(rows: Tensor) -> None:
    lengths = weights("db_mtl", rows) * rows.norm(dim=1)
    assert lengths.tolist() == pytest.approx([float(lengths.max())] * len(rows))
    signal = shown(rows)
    balancer = BALANCERS["metabalance"](r=1.0)
    by_parameter, _ = balancer.weights(signal, balancer.start(len(rows)))
    assert signal.gramians is not None
    norms = signal.gramians.diagonal(dim1=1, dim2=2).sqrt()
    reached = norms > 0
    assert by_parameter.shape == norms.shape
    assert torch.allclose((by_parameter * norms)[reached], norms[:, :1].expand_as(norms)[reached])


@pytest.mark.parametrize("kind", OF_GRADIENTS)
def test_heads_are_scaled_by_bargaining_alone(kind: str) -> None:
    assert BALANCERS[kind]().scale_heads == (kind in ("nash_mtl", "fairgrad", "gradnorm", "excess_mtl"))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("cagrad", {"c": 1.0}, "c = 1 must be from 0 to 0.99"),
        ("fairgrad", {"a": 0}, "a = 0 must be from 0.5 to 10"),
        ("fairgrad", {"a": "high"}, "a = 'high' must be a number"),
        ("nash_mtl", {"max_norm": 0.0}, "max_norm = 0 must be at least 1e-06"),
        ("nash_mtl", {"max_norm": float("nan")}, "max_norm = nan must be at least 1e-06"),
        ("mgda", {"normalize": "l1"}, "normalize 'l1' is unknown. Known: l2, loss, loss+, none"),
        ("pcgrad", {"order": "fix"}, "order 'fix' is unknown. Did you mean 'fixed'? Known: fixed, random"),
        ("gradvac", {"beta": 1.5}, "beta = 1.5 must be from 0 to 1"),
        ("gradvac", {"order": "any"}, "order 'any' is unknown. Known: fixed, random"),
        ("gradcraft", {"epsilon": -0.1}, "epsilon = -0.1 must be from 0 to 0.1"),
        ("gradcraft", {"tau": 2}, "tau = 2 must be from 0 to 1"),
        ("gradcraft", {"beta": 1.0}, "beta = 1 must be from 0 to 0.9999"),
        ("gradnorm", {"alpha": -1}, "alpha = -1 must be from 0 to 10"),
        ("gradnorm", {"lr": 0.0}, "lr = 0 must be from 1e-06 to 1"),
        ("metabalance", {"r": 1.1}, "r = 1.1 must be from 0 to 1"),
        ("metabalance", {"beta": 1}, "beta = 1 must be from 0 to 0.9999"),
        ("metabalance", {"target": 0.5}, "target = 0.5 must be a whole number"),
        ("moco", {"beta": 2}, "beta = 2 must be from 0 to 1"),
        ("moco", {"gamma": -1}, "gamma = -1 must be from 0 to 100"),
        ("moco", {"rho": -1}, "rho = -1 must be from 0 to 100"),
        ("excess_mtl", {"eta": -1}, "eta = -1 must be from 0 to 10"),
    ],
)
def test_an_option_outside_its_bounds_is_an_error(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        BALANCERS[kind](**options)
    assert str(error.value) == message


def test_a_target_beyond_the_tasks_is_an_error() -> None:
    with pytest.raises(ConfigError, match="target = 2 must be below 2, the number of tasks; the first is 0"):
        BALANCERS["metabalance"](target=2).start(2)
