import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polytask.errors import TrainingError
from polytask.metrics import average_ranks, metric, top_items

ONE = torch.zeros(3).long()  # three held-out items of one user


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("map@5", 0.533333),
        ("precision@5", 3 / 5),
        ("precision@1", 0),
        ("map@1", 0),
        ("map@2", 1 / 4),
        ("precision@9", 3 / 9),
    ],
)
def test_the_list_01011(name: str, value: float) -> None:
    assert float(metric(name)(torch.tensor([2.0, 4, 5]), ONE)) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_precision_agrees_with_ir_measures(seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ir_measures import AP, P, Qrel, ScoredDoc, calc_aggregate

    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.arange(40.0), (25, 1)), axis=1)
    relevant = rng.random((25, 40)) < rng.uniform(0.03, 0.6, (25, 1))
    relevant[:, 0] = True
    rows, items = (torch.from_numpy(a) for a in np.nonzero(relevant))
    ranks = average_ranks(torch.from_numpy(scores), items, rows)
    qrels = [Qrel(str(u), str(i), 1) for u, i in zip(rows.tolist(), items.tolist(), strict=True)]
    run = [ScoredDoc(str(u), str(i), scores[u, i]) for u in range(25) for i in range(40)]
    expected = calc_aggregate([AP, P @ 10], qrels, run)
    assert float(metric("map@40")(ranks, rows)) == pytest.approx(expected[AP], rel=1e-12)
    assert float(metric("precision@10")(ranks, rows)) == pytest.approx(expected[P @ 10], rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_ties_never_score_above_a_perfect_list(k: int) -> None:
    ranks = torch.full((3,), 2.0)  # three held-out items tied at the top
    assert float(metric(f"map@{k}")(ranks, ONE)) <= 1
    assert float(metric(f"precision@{k}")(ranks, ONE)) <= 1
    assert float(metric("map@3")(ranks, ONE)) == 1


def test_order_of_users_does_not_matter() -> None:
    ranks, users = torch.tensor([4.0, 1, 2, 1, 3, 4]), torch.tensor([0, 0, 1, 2, 2, 2])
    order = torch.tensor([5, 0, 3, 2, 1, 4])
    expected = ((1 + 2 / 4) / 2 + 1 / 2 + (1 + 2 / 3 + 3 / 4) / 3) / 3
    assert float(metric("map@4")(ranks, users)) == pytest.approx(expected)
    assert float(metric("map@4")(ranks[order], 9 - users[order])) == pytest.approx(expected)


# three users, lists of two, a catalogue of five items; earlier interactions 8, 4, 2, 1, 1 and 0 of 16
LISTS = torch.tensor([[0, 1, 5], [0, 2, 1], [1, 5, -1]])
POPULARITY = torch.tensor([8, 4, 2, 1, 1, 0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("coverage@1", 2 / 6),
        ("coverage@2", 4 / 6),
        ("gini@1", (3 * 1 + 5 * 2) / (6 * 3)),
        ("gini@2", (-1 * 1 + 1 * 1 + 3 * 2 + 5 * 2) / (6 * 6)),
        ("novelty@1", (1 + 1 + 2) / 3),
        ("novelty@2", (1 + 2 + 1 + 3 + 2 + 4) / 6),
        ("novelty@3", (1 + 2 + 4 + 1 + 3 + 2 + 2 + 4) / 8),
    ],
)
def test_golden_lists(name: str, value: float) -> None:
    score = metric(name)(LISTS, POPULARITY)
    assert score.value == pytest.approx(value, rel=1e-12)
    assert (score.used, score.skipped) == (3, 0)


def test_gini_is_zero_for_even_and_near_one_for_one_item() -> None:
    everyone = torch.arange(100)[:, None]
    assert float(metric("gini@1")(everyone, torch.ones(100))) == pytest.approx(0, abs=1e-12)
    assert float(metric("gini@1")(torch.zeros(100, 1).long(), torch.ones(100))) == pytest.approx(0.99)
    assert metric("gini@1").better == "lower"


def test_without_lists_or_popularity_there_is_no_value() -> None:
    empty = metric("coverage@2")(LISTS[:0], POPULARITY)
    assert (empty.value, empty.why) == (None, "no user has a held-out item")
    unknown = metric("novelty@2")(LISTS, torch.zeros(6).long())
    assert (unknown.value, unknown.why) == (None, "no earlier part says how popular items are")
    exhausted = metric("gini@2")(torch.full((2, 2), -1), POPULARITY)
    assert exhausted.value is None


def test_novelty_is_in_double() -> None:
    popularity = torch.arange(1, 1001)
    everyone = torch.arange(1000)[:, None]
    p = np.arange(1, 1001) / 500500
    assert float(metric("novelty@1")(everyone, popularity)) == pytest.approx(-np.log2(p).mean(), rel=1e-13)


def test_lists_that_do_not_fit_raise() -> None:
    with pytest.raises(ValueError, match=r"\[U, 4 or more\] and \[I\], not \[3, 3\] and \[6\]"):
        metric("coverage@4")(LISTS, POPULARITY)
    with pytest.raises(ValueError, match="items point outside popularity"):
        metric("coverage@1")(LISTS, POPULARITY[:3])


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 12), st.integers(1, 15), st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_top_items_are_those_of_a_sort(seed: int, users: int, items: int, k: int, levels: int) -> None:
    draw = np.random.default_rng(seed)
    scores = draw.integers(0, levels, (users, items)).astype(np.float32)
    gone = draw.random((users, items)) < 0.3
    found = top_items(torch.from_numpy(scores), k, torch.from_numpy(np.argwhere(gone)))
    assert found.shape == (users, k)
    for user in range(users):
        left = sorted((i for i in range(items) if not gone[user, i]), key=lambda i: (-scores[user, i], i))
        assert found[user].tolist() == (left + [-1] * k)[:k]


def test_top_items_without_users_or_with_a_bad_score() -> None:
    assert top_items(torch.zeros(0, 4), 2).shape == (0, 2)
    scores = torch.tensor([[1.0, math.nan, 3.0]])
    assert top_items(scores, 2, torch.tensor([[0, 1]])).tolist() == [[2, 0]]
    with pytest.raises(TrainingError, match="1 of 1 rows"):
        top_items(scores, 2)
    with pytest.raises(ValueError, match="excluded point outside"):
        top_items(scores, 2, torch.tensor([[0, 3]]))
    assert torch.equal(scores.isnan(), torch.tensor([[False, True, False]]))  # left alone
