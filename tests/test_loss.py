import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from polytask.errors import ConfigError
from polytask.loss import LOSSES, check_task, loss, masked_mean, task_loss
from polytask.schema import Task

POINTWISE = [name for name, spec in LOSSES.items() if spec.kind == "pointwise"]
PAIRWISE = [name for name, spec in LOSSES.items() if spec.kind == "pairwise"]


def batch(name: str, rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and labels (0 or 1) that fit the loss, float64."""
    draw = torch.Generator().manual_seed(seed)
    shape = (rows,) if name in POINTWISE else (rows, 4)
    label = torch.randint(0, 2, (rows,), generator=draw).double()
    return 2 * torch.randn(shape, generator=draw, dtype=torch.float64), label


@pytest.mark.parametrize(
    ("d", "sigmoid", "slope", "softplus", "steeper"),
    [
        (-4.0, 0.98201, -0.01766, 4.01815, -0.98201),
        (-2.0, 0.88080, -0.10499, 2.12693, -0.88080),
        (0.0, 0.5, -0.25, 0.69315, -0.5),
        (2.0, 0.11920, -0.10499, 0.12693, -0.11920),
    ],
)
def test_golden_pairwise(d: float, sigmoid: float, slope: float, softplus: float, steeper: float) -> None:
    for name, value, gradient in (("pairwise_sigmoid", sigmoid, slope), ("bpr", softplus, steeper)):
        positive = torch.tensor([[d + 1]], dtype=torch.float64, requires_grad=True)
        found = loss(name).function(positive, torch.ones(1, 1, dtype=torch.float64))
        found.sum().backward()
        assert found.item() == pytest.approx(value, abs=5e-6)
        assert positive.grad is not None and positive.grad.item() == pytest.approx(gradient, abs=6e-6)


@pytest.mark.parametrize(
    ("name", "logit", "label", "value"),
    [
        ("mse", 1.5, 4.0, 6.25),
        ("huber", 1.5, 4.0, 2.0),
        ("huber", 3.5, 4.0, 0.125),
        ("bce", 0.0, 1.0, 0.693147),
        ("bce", 2.0, 0.0, 2.126928),
        ("bce", -100.0, 1.0, 100.0),
    ],
)
def test_golden_pointwise(name: str, logit: float, label: float, value: float) -> None:
    assert loss(name).function(torch.tensor([logit]), torch.tensor([label])).item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("name", PAIRWISE)
def test_far_apart_pairs_stay_exact(name: str) -> None:
    spec = loss(name)
    d = torch.tensor([[15.0, 500.0, -500.0]])
    found = spec.function(torch.zeros(1, 1), -d)
    exact = torch.exp(-d[0, 0].double()).item()
    assert found[0, 0].item() == pytest.approx(exact, rel=1e-5)
    assert torch.isfinite(found).all() and found[0, 1] == 0


@pytest.mark.parametrize("name", LOSSES)
@given(rows=st.integers(1, 257), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=15)
def test_a_batch_is_the_mean_of_its_rows(name: str, rows: int, seed: int) -> None:
    spec = loss(name)
    logits, label = batch(name, rows, seed)
    whole = task_loss(spec, logits, label)
    alone = torch.stack([task_loss(spec, logits[i : i + 1], label[i : i + 1]) for i in range(rows)])
    torch.testing.assert_close(whole, alone.mean(dim=0), rtol=1e-12, atol=1e-12)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(task_loss(spec, logits[order], label[order]), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", POINTWISE)
def test_logits_belong_to_their_labels(name: str) -> None:
    logits, label = batch(name, 50)
    turned = task_loss(loss(name), logits.roll(1), label)
    assert abs(float(turned - task_loss(loss(name), logits, label))) > 1e-3


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("wild", [0.0, 1e30])
def test_rows_without_a_label_do_not_count(name: str, wild: float) -> None:
    spec = loss(name)
    logits, label = batch(name, 8)
    label[2:5] = torch.nan
    logits[2:5] += wild
    logits.requires_grad_()
    value = task_loss(spec, logits, label)
    value.backward()
    known = ~label.isnan()
    kept = logits.detach()[known].requires_grad_()
    alone = task_loss(spec, kept, label[known])
    alone.backward()
    torch.testing.assert_close(value, alone, rtol=1e-14, atol=0)
    assert logits.grad is not None and kept.grad is not None
    torch.testing.assert_close(logits.grad[known], kept.grad, rtol=1e-14, atol=0)
    assert not logits.grad[~known].any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_labels_is_zero(name: str) -> None:
    logits, label = batch(name, 5)
    logits.requires_grad_()
    value = task_loss(loss(name), logits, label * torch.nan)
    value.backward()
    assert value.item() == 0 and value.shape == ()
    assert logits.grad is not None and not logits.grad.any()


def test_masked_mean_counts_the_labelled_rows() -> None:
    per_row, label = torch.tensor([1.0, torch.nan, 3.0]), torch.tensor([0.0, torch.nan, 5.0])
    assert masked_mean(per_row, label).item() == 2.0
    assert masked_mean(per_row, label).dtype == torch.float32


@pytest.mark.parametrize("name", LOSSES)
def test_under_vmap_and_grad(name: str) -> None:
    spec = loss(name)
    pairs = [batch(name, 6, seed) for seed in range(3)]
    logits, label = (torch.stack(part) for part in zip(*pairs, strict=True))
    label[1, 2] = torch.nan
    label[2] = torch.nan

    def one(logits: Tensor, label: Tensor) -> Tensor:
        return task_loss(spec, logits, label)

    values = torch.func.vmap(one)(logits, label)
    slopes = torch.func.vmap(torch.func.grad(one))(logits, label)
    for r in range(3):
        torch.testing.assert_close(values[r], one(logits[r], label[r]))
        torch.testing.assert_close(slopes[r], torch.func.grad(one)(logits[r], label[r]))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("mode", ["real", "symbolic"])
def test_a_trace_serves_other_values(name: str, mode: str) -> None:
    spec = loss(name)
    logits, label = batch(name, 6)

    def value_and_slope(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        slope, value = torch.func.grad_and_value(lambda x: task_loss(spec, x, label))(logits)
        return value, slope

    traced = make_fx(value_and_slope, tracing_mode=mode)(logits, label)
    other, missing = batch(name, 6, seed=1)
    missing[3] = torch.nan
    for found, expected in zip(traced(other, missing), value_and_slope(other, missing), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize(("logit", "label"), [((4,), (4, 1)), ((4, 1), (4,)), ((4,), (1,))])
def test_pointwise_shapes(name: str, logit: tuple[int, ...], label: tuple[int, ...]) -> None:
    for call in (loss(name).function, lambda a, b: task_loss(loss(name), a, b)):
        with pytest.raises(ValueError) as caught:
            call(torch.ones(logit), torch.ones(label))
        assert f"not {[*logit]} and {[*label]}" in str(caught.value)


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize(
    ("positive", "negative"), [((4, 1), (1, 3)), ((1, 1), (4, 3)), ((4,), (4, 3)), ((4, 2), (4, 2))]
)
def test_pairwise_shapes(name: str, positive: tuple[int, ...], negative: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        loss(name).function(torch.ones(positive), torch.ones(negative))
    assert f"not {[*positive]} and {[*negative]}" in str(caught.value)


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize(("logits", "label"), [((4, 1), (4,)), ((4,), (4,)), ((4, 3), (3,)), ((4, 3), (4, 1))])
def test_pairwise_batches(name: str, logits: tuple[int, ...], label: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[B, 1 \+ n\] and \[B\], not \[4"):
        task_loss(loss(name), torch.ones(logits), torch.ones(label))


def test_masked_mean_shapes() -> None:
    with pytest.raises(ValueError, match=r"\[3\] and \[3, 1\]"):
        masked_mean(torch.ones(3), torch.ones(3, 1))


def test_predictions() -> None:
    logit = torch.tensor([-1.0, 0.0, 3.0])
    for name, spec in LOSSES.items():
        expected = logit.sigmoid() if name == "bce" else logit
        assert torch.equal(spec.predict(logit), expected)


def test_an_unknown_loss() -> None:
    with pytest.raises(ConfigError, match=r"loss 'hubert' is unknown. Did you mean 'huber'\?"):
        loss("hubert")
    with pytest.raises(ConfigError, match="loss 'mes' is unknown"):
        check_task(Task("stars", "regression", "rating", loss="mes"))


def test_a_loss_that_does_not_fit_its_task() -> None:
    with pytest.raises(ConfigError) as caught:
        check_task(Task("stars", "regression", "rating", loss="bpr"))
    assert str(caught.value) == "task 'stars': loss 'bpr' is for ranking tasks; regression takes: huber, mse"
    for name, spec in LOSSES.items():
        for kind in spec.tasks:
            check_task(Task("t", kind, "label", loss=name))


@pytest.mark.parametrize("kind", ["ranking", "regression", "binary"])
def test_the_default_loss_fits(kind: str) -> None:
    check_task(Task("t", kind, "label"))  # type: ignore[arg-type]
