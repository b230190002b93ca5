from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from polytask.loss import Context, Observed, bce, focal, huber, loss, mse, task_loss

NOTHING = torch.empty(0)


@pytest.mark.parametrize(
    ("formula", "logit", "label", "value"),
    [
        (mse, 1.5, 4.0, 6.25),
        (huber, 1.5, 4.0, 2.0),
        (huber, 3.5, 4.0, 0.125),
        (bce, 0.0, 1.0, 0.693147),
        (bce, 2.0, 0.0, 2.126928),
        (bce, -100.0, 1.0, 100.0),
        (focal, 0.0, 1.0, 0.25 * 0.25 * 0.693147),
        (focal, 2.0, 0.0, 0.75 * 0.880797**2 * 2.126928),
    ],
)
def test_golden_values(formula: Callable[[Tensor, Tensor], Tensor], logit: float, label: float, value: float) -> None:
    assert formula(torch.tensor([logit]), torch.tensor([label])).item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("formula", [mse, huber, bce, focal])
@pytest.mark.parametrize(("logit", "label"), [((4,), (4, 1)), ((4, 1), (4,)), ((4,), (1,))])
def test_two_shapes_are_an_error(
    formula: Callable[[Tensor, Tensor], Tensor], logit: tuple[int, ...], label: tuple[int, ...]
) -> None:
    spec = loss(formula.__name__).make(Observed(torch.ones(3), NOTHING, NOTHING))
    for call in (formula, lambda a, b: task_loss(spec, a, b)):
        with pytest.raises(ValueError) as caught:
            call(torch.ones(logit), torch.ones(label))
        assert f"not {[*logit]} and {[*label]}" in str(caught.value)


@pytest.mark.parametrize("name", ["mse", "huber", "bce", "focal"])
def test_predictions(name: str) -> None:
    logit = torch.tensor([-1.0, 0.0, 3.0])
    spec = loss(name).make(Observed(torch.ones(3), NOTHING, NOTHING))
    expected = logit.sigmoid() if name in ("bce", "focal") else logit
    assert torch.equal(spec.predict(logit, Context()), expected)


@pytest.mark.parametrize(("name", "start"), [("mse", 0.25), ("huber", 0.25), ("bce", -1.098612), ("focal", -1.098612)])
def test_the_start_is_the_mean_label_or_its_log_odds(name: str, start: float) -> None:
    label = torch.tensor([1.0, 0.0, torch.nan, 0.0, 0.0])
    assert loss(name).make(Observed(label, NOTHING, NOTHING)).start() == [pytest.approx(start, abs=1e-6)]


def test_a_task_with_a_condition_learns_where_it_held() -> None:
    label, held = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 0.0, torch.nan, torch.nan])
    spec = loss("bce").make(Observed(label, NOTHING, NOTHING, held))
    assert spec.start() == [0.0]
    logits = torch.tensor([0.5, -1.0, 2.0, 3.0, 4.0], requires_grad=True)
    value = task_loss(spec, logits, label, Context(given=torch.zeros(5), given_label=held))
    torch.testing.assert_close(value, bce(logits[:2], label[:2]).mean())
    value.backward()
    assert logits.grad is not None and not logits.grad[2:].any()
