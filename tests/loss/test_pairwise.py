from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from polytask.loss import Context, Observed, bpr, hinge, loss, pairwise_sigmoid, task_loss

PAIRWISE = ["bpr", "pairwise_sigmoid", "hinge", "warp", "softmax"]
ITEMS = 1683


def seen(items: int = ITEMS) -> Observed:
    return Observed(torch.ones(3, dtype=torch.float64), torch.empty(0), torch.ones(items))


def drawn(rows: int, negatives: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, 1 + negatives, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize(
    ("d", "sigmoid", "slope", "softplus", "steeper"),
    [
        (-4.0, 0.98201, -0.01766, 4.01815, -0.98201),
        (-2.0, 0.88080, -0.10499, 2.12693, -0.88080),
        (0.0, 0.5, -0.25, 0.69315, -0.5),
        (2.0, 0.11920, -0.10499, 0.12693, -0.11920),
    ],
)
def test_golden_values(d: float, sigmoid: float, slope: float, softplus: float, steeper: float) -> None:
    flat = (max(1 - d, 0.0), -float(d < 1))
    for formula, value, gradient in ((pairwise_sigmoid, sigmoid, slope), (bpr, softplus, steeper), (hinge, *flat)):
        positive = torch.tensor([[d + 1]], dtype=torch.float64, requires_grad=True)
        found = formula(positive, torch.ones(1, 1, dtype=torch.float64))
        found.sum().backward()
        assert found.item() == pytest.approx(value, abs=5e-6)
        assert positive.grad is not None and positive.grad.item() == pytest.approx(gradient, abs=6e-6)


@pytest.mark.parametrize("formula", [bpr, pairwise_sigmoid])
def test_far_apart_pairs_stay_exact(formula: Callable[[Tensor, Tensor], Tensor]) -> None:
    d = torch.tensor([[15.0, 500.0, -500.0]])
    found = formula(torch.zeros(1, 1), -d)
    exact = torch.exp(-d[0, 0].double()).item()
    assert found[0, 0].item() == pytest.approx(exact, rel=1e-5)
    assert torch.isfinite(found).all() and found[0, 1] == 0


@pytest.mark.parametrize("name", ["bpr", "pairwise_sigmoid", "hinge"])
@pytest.mark.parametrize("hard", [0, 1, 2, 5, 9])
def test_hard_keeps_the_negatives_that_score_highest(name: str, hard: int) -> None:
    logits = drawn(6, 5)
    found = task_loss(loss(name).make(seen(), hard=hard), logits, torch.ones(6))
    formula = {"bpr": bpr, "pairwise_sigmoid": pairwise_sigmoid, "hinge": hinge}[name]
    total = 0.0
    for row in logits:
        kept = sorted(row[1:].tolist(), reverse=True)[: hard or 5]
        total += float(formula(row[None, :1], torch.tensor([kept], dtype=torch.float64)).mean()) / 6
    assert float(found) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("margin", [0.5, 1.0, 2.0])
def test_hinge_has_a_margin(margin: float) -> None:
    found = task_loss(loss("hinge").make(seen(), margin=margin), torch.tensor([[0.0, -0.75]]), torch.ones(1))
    assert found.item() == max(margin - 0.75, 0)


def warp_by_loop(row: list[float], items: int, margin: float) -> tuple[float, int | None]:
    """Loss of one row, and which of its negatives was the first violator."""
    for tries, score in enumerate(row[1:], start=1):
        slack = margin - (row[0] - score)
        if slack > 0:
            return slack * sum(1 / k for k in range(1, (items - 1) // tries + 1)), tries
    return 0.0, None


@pytest.mark.parametrize("margin", [1.0, 0.25])
def test_warp_draws_until_the_first_violator(margin: float) -> None:
    logits = torch.cat([drawn(30, 12) + torch.tensor([3.0, *[0.0] * 12]), drawn(10, 12)]).requires_grad_()
    found = task_loss(loss("warp").make(seen(), margin=margin), logits, torch.ones(40))
    rows = [warp_by_loop(row, ITEMS - 1, margin) for row in logits.tolist()]
    assert len({first for _, first in rows}) > 4
    assert found.item() == pytest.approx(sum(value for value, _ in rows) / 40, rel=1e-12)
    found.backward()
    assert logits.grad is not None
    for slopes, (_, first) in zip(logits.grad, rows, strict=True):
        assert slopes.nonzero().flatten().tolist() == ([] if first is None else [0, first])


@pytest.mark.parametrize(("tries", "weight"), [(1, 1 + 1 / 2 + 1 / 3 + 1 / 4), (2, 1.5), (3, 1.0), (4, 1.0), (5, 0.0)])
def test_warp_weighs_by_the_estimated_rank(tries: int, weight: float) -> None:
    scores = [0.0, *[-5.0] * (tries - 1), 0.0]
    found = task_loss(loss("warp").make(seen(items=6)), torch.tensor([scores], dtype=torch.float64), torch.ones(1))
    assert found.item() == pytest.approx(weight, abs=1e-12)


@pytest.mark.parametrize("formula", [bpr, pairwise_sigmoid, hinge])
@pytest.mark.parametrize(
    ("positive", "negative"), [((4, 1), (1, 3)), ((1, 1), (4, 3)), ((4,), (4, 3)), ((4, 2), (4, 2))]
)
def test_other_shapes_are_an_error(
    formula: Callable[[Tensor, Tensor], Tensor], positive: tuple[int, ...], negative: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError) as caught:
        formula(torch.ones(positive), torch.ones(negative))
    assert f"not {[*positive]} and {[*negative]}" in str(caught.value)


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize(("logits", "label"), [((4, 1), (4,)), ((4,), (4,)), ((4, 3), (3,)), ((4, 3), (4, 1))])
def test_a_batch_of_other_shapes_is_an_error(name: str, logits: tuple[int, ...], label: tuple[int, ...]) -> None:
    context = Context(items=torch.ones(4, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\[B, 1 \+ n\] and \[B\], not \[4"):
        task_loss(loss(name).make(seen()), torch.ones(logits), torch.ones(label), context)


@pytest.mark.parametrize("name", PAIRWISE)
def test_a_ranking_predicts_its_logit_and_has_no_start(name: str) -> None:
    spec = loss(name).make(seen())
    logits = torch.tensor([-1.0, 0.0, 3.0])
    assert torch.equal(spec.predict(logits, Context()), logits)
    assert spec.start() is None
