import math

import mpmath
import pytest
import torch
from torch import Tensor

from polytask.loss import Context, Observed, Weighing, effective_sample_size, inverse_propensity, loss, task_loss
from polytask.loss.conditional import entire_space, log1mexp

CONDITIONAL = ["entire_space", "escm_ips", "escm_dr", "ordered"]
NAN = math.nan


def seen(label: Tensor | None = None, held: Tensor | None = None) -> Observed:
    label = torch.tensor([1.0, 0.0, 0.0, 1.0]) if label is None else label
    return Observed(label, torch.empty(0), torch.empty(0), held)


def batch() -> tuple[Tensor, Tensor, Context]:
    """Logits [40], labels and conditions of which some are missing."""
    draw = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(40, generator=draw, dtype=torch.float64)
    label, held = ((torch.rand(40, generator=draw) < share).double() for share in (0.4, 0.5))
    label[::7], held[::9] = NAN, NAN
    given = torch.nn.functional.logsigmoid(torch.randn(40, generator=draw, dtype=torch.float64) - 2)
    return logits, label, Context(given=given, given_label=held)


def joint(label: float, held: float) -> float:
    """The label of condition and task: 0 where the condition did not hold."""
    return 0.0 if held == 0 else label


def cross_entropy(p: float, label: float) -> float:
    return -label * math.log(p) - (1 - label) * math.log(1 - p)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def rows(*columns: Tensor) -> list[tuple[float, ...]]:
    return list(zip(*(c.tolist() for c in columns), strict=True))


def test_entire_space_is_the_cross_entropy_of_the_product() -> None:
    logits, label, context = batch()
    values = []
    for logit, y, log_p, held in rows(logits, label, context.given, context.given_label):
        if not math.isnan(both := joint(y, held)):
            values.append(cross_entropy(math.exp(log_p) * sigmoid(logit), both))
    assert 25 < len(values) < 40
    found = task_loss(loss("entire_space").make(seen()), logits, label, context)
    assert found.item() == pytest.approx(sum(values) / len(values), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("a", [-80.0, -3.0, 0.0, 3.0, 80.0])
@pytest.mark.parametrize("b", [-80.0, -3.0, 0.0, 3.0, 80.0])
def test_the_product_is_exact_however_far_its_factors(a: float, b: float, dtype: torch.dtype) -> None:
    with mpmath.workdps(120):
        p, q = (1 / (1 + mpmath.exp(-mpmath.mpf(x))) for x in (a, b))
        expected = {1.0: -mpmath.log(p * q), 0.0: -mpmath.log(1 - p * q)}
        slopes = {1.0: (p - 1, q - 1), 0.0: (p * q * (1 - p) / (1 - p * q), p * q * (1 - q) / (1 - p * q))}
        for y in (0.0, 1.0):
            first, second = (torch.tensor([x], dtype=dtype, requires_grad=True) for x in (a, b))
            found = entire_space(second, torch.nn.functional.logsigmoid(first), torch.tensor([y], dtype=dtype))
            found.sum().backward()
            assert found.item() == pytest.approx(float(expected[y]), rel=1e-5)
            for logit, slope in zip((first, second), slopes[y], strict=True):
                assert logit.grad is not None
                assert logit.grad.item() == pytest.approx(float(slope), rel=1e-5, abs=1e-37)


@pytest.mark.parametrize("x", [0.0, -1e-300, -1e-30, -1e-8, -0.5, -math.log(2), -0.7, -40.0, -1e4])
def test_log1mexp(x: float) -> None:
    value = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    found = log1mexp(value)
    found.backward()
    assert found.isfinite() and value.grad is not None and value.grad.isfinite()
    if x:
        with mpmath.workdps(400):
            assert found.item() == pytest.approx(
                float(mpmath.log(1 - mpmath.exp(mpmath.mpf(x)))), rel=1e-12, abs=1e-300
            )


@pytest.mark.parametrize("name", ["escm_ips", "escm_dr"])
@pytest.mark.parametrize("options", [{}, {"clip": 0.3, "conditional": 0.5, "joint": 2.0}])
def test_escm_weighs_the_rows_whose_condition_held(name: str, options: dict[str, float]) -> None:
    logits, label, context = batch()
    guess = torch.linspace(-2, 2, 40, dtype=torch.float64)
    clip, local, whole = options.get("clip", 0.05), options.get("conditional", 1.0), options.get("joint", 1.0)
    values = []
    for logit, raw, y, log_p, held in rows(logits, guess, label, context.given, context.given_label):
        both = joint(y, held)
        if math.isnan(both) or math.isnan(held):
            continue
        weight = held / min(max(math.exp(log_p), clip), 1.0)
        error = cross_entropy(sigmoid(logit), y) if held else 0.0
        imputed = math.log1p(math.exp(raw))
        debiased = weight * error
        if name == "escm_dr":
            debiased = imputed + weight * (error - imputed) + weight * (error - imputed) ** 2
        values.append(local * debiased + whole * cross_entropy(math.exp(log_p) * sigmoid(logit), both))
    spec = loss(name).make(seen(), **options)
    given = torch.stack([logits, guess], dim=1) if name == "escm_dr" else logits
    assert task_loss(spec, given, label, context).item() == pytest.approx(sum(values) / len(values), rel=1e-12)


@pytest.mark.parametrize("name", ["escm_ips", "escm_dr"])
def test_no_gradient_goes_through_the_propensity(name: str) -> None:
    logits, label, context = batch()
    spec = loss(name).make(seen(), joint=0.0)
    assert context.given is not None
    given = context.given.clone().requires_grad_()
    logits = torch.stack([logits] * spec.outputs, dim=1) if spec.outputs > 1 else logits
    task_loss(spec, logits.requires_grad_(), label, context._replace(given=given)).backward()
    assert given.grad is None or not given.grad.any()
    assert logits.grad is not None and logits.grad.any()


def test_the_square_of_the_imputed_error_teaches_the_imputation_alone() -> None:
    logits, label, context = batch()
    slopes = {}
    for name in ("escm_ips", "escm_dr"):
        leaf = torch.stack([logits, logits], dim=1).requires_grad_()
        task_loss(loss(name).make(seen()), leaf if name == "escm_dr" else leaf[:, 0], label, context).backward()
        assert leaf.grad is not None
        slopes[name] = leaf.grad
    torch.testing.assert_close(slopes["escm_dr"][:, 0], slopes["escm_ips"][:, 0])
    assert slopes["escm_dr"][:, 1].any()


def test_inverse_propensities_recover_the_mean_over_all_rows() -> None:
    draw = torch.Generator().manual_seed(0)
    p = 0.1 + 0.8 * torch.rand(200_000, generator=draw, dtype=torch.float64)
    held = (torch.rand(200_000, generator=draw, dtype=torch.float64) < p).double()
    weight = inverse_propensity(p.log(), held)
    assert (weight * p).mean().item() == pytest.approx(p.mean().item(), rel=0.01)
    assert p[held == 1].mean() > p.mean() + 0.05


def test_inverse_propensities_are_clipped_and_unknown_conditions_weigh_nothing() -> None:
    given = torch.tensor([0.5, 0.001, 0.5, 0.5], dtype=torch.float64).log()
    weight = inverse_propensity(given, torch.tensor([1.0, 1.0, 0.0, NAN]), clip=0.1)
    torch.testing.assert_close(weight, torch.tensor([2.0, 10.0, 0.0, 0.0], dtype=torch.float64))


def test_effective_sample_size() -> None:
    assert effective_sample_size(torch.ones(7)) == 7
    assert effective_sample_size(torch.tensor([3.0, 0.0, 0.0])) == 1
    assert effective_sample_size(torch.tensor([1.0, 2.0])).item() == pytest.approx(9 / 5)
    assert effective_sample_size(torch.zeros(3)) == 0


@pytest.mark.parametrize("name", ["escm_ips", "escm_dr"])
def test_a_loss_says_how_far_its_weights_carry(name: str) -> None:
    spec = loss(name).make(seen(), clip=0.1)
    assert isinstance(spec, Weighing)
    given = torch.tensor([0.5, 0.25, 0.05, 0.01, 0.5, 0.5], dtype=torch.float64).log()
    context = Context(given=given, given_label=torch.tensor([1.0, 1, 1, 1, 0, NAN]))  # weights 2, 4, 10, 10
    assert spec.weight_use(context) == pytest.approx((26**2 / (4 + 16 + 100 + 100), 4, 0.5))
    none = Context(given=given, given_label=torch.zeros(6))
    assert spec.weight_use(none) == (0.0, 0, 0.0)


def test_a_loss_without_weights_says_nothing_of_them() -> None:
    assert not any(isinstance(loss(name).make(seen()), Weighing) for name in ("entire_space", "ordered", "bce"))


@pytest.mark.parametrize("alpha", [0.6, 2.0])
def test_ordered_penalizes_a_probability_above_its_condition(alpha: float) -> None:
    logits, label, context = batch()
    values = []
    for logit, y, log_p, held in rows(logits, label, context.given, context.given_label):
        if not math.isnan(both := joint(y, held)):
            p = sigmoid(logit)
            values.append(cross_entropy(p, both) + alpha * max(p - math.exp(log_p), 0.0))
    found = task_loss(loss("ordered").make(seen(), alpha=alpha), logits, label, context)
    assert found.item() == pytest.approx(sum(values) / len(values), rel=1e-12)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_every_conditional_loss_predicts_the_task_given_its_condition(name: str) -> None:
    given = torch.tensor([0.5, 0.5, 0.9], dtype=torch.float64).log()
    spec = loss(name).make(seen())
    logits = torch.tensor([0.2, 0.8, 0.3], dtype=torch.float64).logit()
    columns = torch.stack([logits, logits], dim=1) if spec.outputs == 2 else logits
    expected = [0.4, 1.0, 1 / 3] if name == "ordered" else [0.2, 0.8, 0.3]
    context = Context(given=given)
    torch.testing.assert_close(spec.predict(columns, context), torch.tensor(expected, dtype=torch.float64))
    log = spec.log_probability(columns, context)  # type: ignore[attr-defined]
    torch.testing.assert_close(log.exp(), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("name", "rate"), [(n, 0.5) for n in CONDITIONAL[:3]] + [("ordered", 0.2)])
def test_the_start_is_the_rate_the_logit_stands_for(name: str, rate: float) -> None:
    label, held = torch.tensor([1.0, 0.0, 1.0, NAN, 0.0, NAN]), torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    start = loss(name).make(seen(label, held)).start()
    assert start is not None and start[0] == pytest.approx(math.log(rate / (1 - rate)))
    if name == "escm_dr":
        assert math.log1p(math.exp(start[1])) == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", CONDITIONAL)
def test_a_context_without_condition_is_an_error(name: str) -> None:
    spec = loss(name).make(seen())
    logits = torch.zeros(3, 2) if spec.outputs == 2 else torch.zeros(3)
    with pytest.raises(ValueError, match=r"needs context\.given"):
        task_loss(spec, logits, torch.ones(3))
