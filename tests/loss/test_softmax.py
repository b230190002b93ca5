import math

import pytest
import torch
from torch import Tensor

from polytask.loss import Context, Observed, loss, task_loss

ITEMS = 12
POPULARITY = torch.tensor([0, 50, 1, 7, 20, 3, 3, 90, 11, 1, 0, 40])


def seen() -> Observed:
    return Observed(torch.ones(2, dtype=torch.float64), torch.empty(0), POPULARITY)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def items(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(1, ITEMS, shape, generator=torch.Generator().manual_seed(seed))


def cross_entropy(own: float, others: list[float]) -> float:
    """-log of the share of e^own among all."""
    return -math.log(math.exp(own) / (math.exp(own) + sum(math.exp(s) for s in others)))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("corrected", [False, True])
def test_sampled_softmax(temperature: float, corrected: bool) -> None:
    logits, context = drawn(20, 6), Context(items=items(20, 6))
    assert context.items is not None and (context.items[:, 1:] == context.items[:, :1]).any()
    spec = loss("softmax").make(seen(), temperature=temperature, corrected=corrected)
    weights = [max(float(c), 1.0) ** 0.75 for c in POPULARITY]
    total = 0.0
    for row, (own, *negatives) in zip(logits.tolist(), context.items.tolist(), strict=True):
        others = []
        for score, item in zip(row[1:], negatives, strict=True):
            share = weights[item] / sum(weights[1:])
            if item != own:
                others.append(score / temperature - (math.log(5 * share) if corrected else 0.0))
        total += cross_entropy(row[0] / temperature, others) / 20
    assert task_loss(spec, logits, torch.ones(20), context).item() == pytest.approx(total, rel=1e-9)


def test_the_corrected_sample_stands_for_the_catalogue() -> None:
    scores, own, many = drawn(ITEMS), 5, 200_000
    weights = POPULARITY.double().clamp(min=1) ** 0.75
    weights[0] = 0
    negatives = torch.multinomial(weights, many, replacement=True, generator=torch.Generator().manual_seed(0))
    rows = torch.cat([torch.tensor([own]), negatives])[None]
    found = {
        corrected: task_loss(
            loss("softmax").make(seen(), corrected=corrected), scores[rows], torch.ones(1), Context(items=rows)
        ).item()
        for corrected in (True, False)
    }
    others = [float(s) for i, s in enumerate(scores) if i not in (0, own)]
    full = cross_entropy(float(scores[own]), others)
    assert found[True] == pytest.approx(full, abs=0.02)
    assert abs(found[False] - full) > 1


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_in_batch_softmax(corrected: bool, temperature: float) -> None:
    index = items(9, 1)
    index[4] = 0
    index[7] = index[2]
    logits, label = drawn(9, 9), torch.ones(9)
    label[1] = torch.nan
    spec = loss("in_batch_softmax").make(seen(), corrected=corrected, temperature=temperature)
    own = index[:, 0].tolist()

    def score(i: int, j: int) -> float:
        return float(logits[i, j]) / temperature - corrected * math.log(max(int(POPULARITY[own[j]]), 1))

    counted = [i for i in range(9) if i not in (1, 4)]  # without target; unknown item
    total = 0.0
    for i in counted:
        others = [score(i, j) for j in range(9) if own[j] not in (own[i], 0)]
        total += cross_entropy(score(i, i), others) / len(counted)
    assert task_loss(spec, logits, label, Context(items=index)).item() == pytest.approx(total, rel=1e-9)


def test_in_batch_negatives_of_a_row_without_target_stay_negatives() -> None:
    logits, label, context = drawn(4, 4).requires_grad_(), torch.ones(4), Context(items=torch.arange(1, 5)[:, None])
    label[3] = torch.nan
    task_loss(loss("in_batch_softmax").make(seen()), logits, label, context).backward()
    assert logits.grad is not None
    assert not logits.grad[3].any() and (logits.grad[:3, 3] > 0).all()


def test_the_correction_makes_items_count_evenly_however_often_they_come_up() -> None:
    scores, own = drawn(ITEMS), 5
    popularity = POPULARITY.double()
    many = 2000
    index = torch.multinomial(popularity, many, replacement=True, generator=torch.Generator().manual_seed(0))
    index[0] = own
    logits = torch.zeros(many, many, dtype=torch.float64)
    logits[0] = scores[index]
    label = torch.full((many,), torch.nan)
    label[0] = 1.0
    found = task_loss(loss("in_batch_softmax").make(seen()), logits, label, Context(items=index[:, None])).item()
    # the row's own item stands once in its sum; the others as their batch does, many times 1 / share
    share = popularity / popularity.sum()
    others = [float(s) + math.log(many) for i, s in enumerate(scores) if i != own and share[i] > 0]
    assert found == pytest.approx(cross_entropy(float(scores[own]) - math.log(share[own]), others), abs=0.05)


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_full_softmax(temperature: float) -> None:
    index, logits = items(8, 1), drawn(8, ITEMS)
    index[3] = 0
    spec = loss("full_softmax").make(seen(), temperature=temperature)
    total = 0.0
    for row, own in zip(logits.tolist(), index[:, 0].tolist(), strict=True):
        if own:
            others = [s / temperature for i, s in enumerate(row) if i not in (0, own)]
            total += cross_entropy(row[own] / temperature, others) / 7
    logits.requires_grad_()
    value = task_loss(spec, logits, torch.ones(8), Context(items=index))
    assert value.item() == pytest.approx(total, rel=1e-9)
    value.backward()
    assert logits.grad is not None and not logits.grad[3].any() and not logits.grad[:, 0].any()


def test_rows_of_padding_behind_the_catalogue_are_no_items() -> None:
    index, logits = items(8, 1), drawn(8, ITEMS)
    spec = loss("full_softmax").make(seen())
    expected = task_loss(spec, logits, torch.ones(8), Context(items=index))
    mask = spec.get_buffer("rows.listed")  # type: ignore[attr-defined]
    padded = torch.cat([mask, torch.zeros(5, dtype=torch.bool)])
    wide = torch.cat([logits, torch.full((8, 5), 50.0)], dim=1)
    arguments = (wide, torch.ones(8, dtype=torch.float64), Context(items=index))
    found = torch.func.functional_call(spec, {"rows.listed": padded}, arguments).mean()  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected)


def test_a_batch_of_one_or_of_one_item_has_no_negatives() -> None:
    spec = loss("in_batch_softmax").make(seen())
    for rows in (1, 3):
        logits = drawn(rows, rows).requires_grad_()
        context = Context(items=torch.full((rows, 1), 4))
        value = task_loss(spec, logits, torch.ones(rows), context)
        value.backward()
        assert value.item() == pytest.approx(0, abs=1e-12)
        assert logits.grad is not None and logits.grad.abs().max() < 1e-12


@pytest.mark.parametrize(
    ("name", "shape", "told"),
    [
        ("softmax", (4, 3), r"logits and items must both be \[B, 1 \+ n\], not \[4, 3\] and \[4, 2\]"),
        ("in_batch_softmax", (4, 5), r"must be \[B, B\] and \[B\], not \[4, 5\] and \[4\]"),
        ("full_softmax", (4, 5), r"must be \[B, I\] and \[I\], not \[4, 5\] and \[12\]"),
    ],
)
def test_other_shapes_are_an_error(name: str, shape: tuple[int, ...], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        task_loss(loss(name).make(seen()), torch.ones(shape), torch.ones(4), Context(items=items(4, 2)))
    with pytest.raises(ValueError, match=r"needs context\.items"):
        task_loss(loss(name).make(seen()), torch.ones(shape), torch.ones(4))
