import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polytask.errors import TrainingError
from polytask.kernels.ranks import largest
from polytask.recommend.lists import Pairs, top, top_vectors

levels = st.sampled_from([-np.inf, -3.5, -0.0, 0.0, 1.0, 2.0, np.inf])  # few, so that most are equal to another
some_scores = st.lists(levels, min_size=1, max_size=40).map(np.array)
some_items = st.lists(st.integers(0, 1000), max_size=40)


def naive(scores: np.ndarray, k: int, allowed: set[int]) -> list[int]:
    """The k best by sorting everything."""
    left = [i for i in range(1, len(scores)) if i in allowed and scores[i] > -np.inf]
    return sorted(left, key=lambda i: (-scores[i], i))[:k]


@given(scores=some_scores, k=st.integers(1, 45), excluded=some_items, candidates=st.none() | some_items)
@settings(max_examples=300)
def test_the_best_are_those_of_a_sort(
    scores: np.ndarray, k: int, excluded: list[int], candidates: list[int] | None
) -> None:
    left_out = np.array(excluded, dtype=np.int64) % len(scores)
    only = None if candidates is None else np.array(candidates, dtype=np.int64) % len(scores)
    before = scores.copy()
    found = top(scores, k, excluded=left_out, candidates=only)
    allowed = set(range(len(scores))) if only is None else set(only.tolist())
    assert found.dtype == np.int64
    assert found.tolist() == naive(scores, k, allowed - set(left_out.tolist()))
    assert np.array_equal(scores, before)


@given(scores=some_scores, k=st.integers(1, 40), more=st.integers(0, 40))
def test_a_shorter_list_is_the_beginning_of_a_longer_one(scores: np.ndarray, k: int, more: int) -> None:
    assert top(scores, k).tolist() == top(scores, k + more)[:k].tolist()


@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_score_that_is_no_number_is_never_recommended(k: int) -> None:
    scores = np.array([9.0, np.nan, 1.0, -np.inf, 2.0, np.nan])
    assert top(scores, k).tolist() == [4, 2][:k]
    assert top(scores, k, candidates=np.array([1, 2, 3])).tolist() == [2]


def test_items_of_equal_score_come_by_index_in_a_large_catalogue() -> None:
    assert top(np.zeros(5000), 7, excluded=np.array([2, 4])).tolist() == [1, 3, 5, 6, 7, 8, 9]


@given(seed=st.integers(0, 999), width=st.integers(1, 900), k=st.integers(1, 4), share=st.sampled_from([2, 5, 1000]))
@settings(max_examples=100)
def test_the_largest_of_wide_rows_are_those_of_a_stable_sort(seed: int, width: int, k: int, share: int) -> None:
    scores = torch.from_numpy(np.random.default_rng(seed).integers(share, size=(3, width))).float()
    scores[scores == 1] = -torch.inf
    values, places = scores.sort(dim=1, descending=True, stable=True)
    found = largest(scores, k)
    assert torch.equal(found[0], values[:, :k]) and torch.equal(found[1], places[:, :k])


def test_the_largest_of_a_wide_row_are_found_wherever_they_are() -> None:
    scores = torch.zeros(2, 1000)
    scores[0, [5, 900, 901]] = torch.tensor([8.0, 9.0, 8.0])  # a tie across places whose neighbors rank the other way
    scores[1, [3, 999]] = torch.tensor([1.0, 2.0])  # the last, in what no block of neighbors holds
    assert largest(scores, 2)[1].tolist() == [[900, 5], [999, 3]]


def whole(seed: int, *shape: int) -> Tensor:
    """Small whole numbers, of which products are exact and often equal."""
    return torch.from_numpy(np.random.default_rng(seed).integers(-2, 3, shape)).float()


def pairs(excluded: list[list[int]]) -> Pairs:
    rows = [row for row, own in enumerate(excluded) for _ in own]
    return torch.tensor(rows, dtype=torch.int64), torch.tensor([i for own in excluded for i in own], dtype=torch.int64)


@given(
    seed=st.integers(0, 999),
    count=st.integers(0, 60),
    k=st.integers(1, 30),
    excluded=st.lists(some_items, min_size=1, max_size=4),
    candidates=st.none() | some_items,
    budget=st.sampled_from([1, 1 << 14]),
)
@settings(max_examples=150)
def test_the_best_products_are_those_of_a_sort(
    seed: int, count: int, k: int, excluded: list[list[int]], candidates: list[int] | None, budget: int
) -> None:
    users, items = whole(seed, len(excluded), 3), whole(seed + 1, count + 1, 3)
    excluded = [[i % (count + 1) for i in own] for own in excluded]
    only = None if candidates is None else torch.tensor([i % (count + 1) for i in candidates], dtype=torch.int64)
    found, scores = top_vectors(users, items, k, excluded=pairs(excluded), candidates=only, budget=budget)
    table = (users @ items.T).double().numpy()
    allowed = set(range(count + 1)) if only is None else set(only.tolist())
    for row, own in enumerate(excluded):
        expected = naive(table[row], k, allowed - set(own))
        rest = k - len(expected)
        assert found[row].tolist() == expected + [-1] * rest
        assert scores[row].tolist() == [*table[row][expected], *[-np.inf] * rest]


def test_a_user_gets_the_same_list_alone_and_among_others() -> None:
    generator = torch.Generator().manual_seed(0)
    users, items = torch.randn(40, 33, generator=generator), torch.randn(3000, 33, generator=generator)
    items[1500:] = items[:1500]  # every product occurs twice
    together = top_vectors(users, items, 25)
    alone = [top_vectors(users[n : n + 1], items, 25) for n in range(40)]
    assert torch.equal(together[0], torch.cat([a[0] for a in alone]))
    assert torch.equal(together[1], torch.cat([a[1] for a in alone]))


def test_rounding_decides_nothing_between_equal_products() -> None:
    rng = np.random.default_rng(0)
    vector = rng.normal(size=64)
    table = np.stack([rng.permutation(vector) for _ in range(14)] + [vector - 1] * 300)  # 14 sums alike but in order
    users, items = torch.ones(3, 64), torch.from_numpy(table).float()
    assert len((users[:1] @ items[1:14].T).unique()) > 1
    assert top_vectors(users, items, 4)[0].tolist() == [[1, 2, 3, 4]] * 3


def test_a_product_that_is_not_finite_is_refused() -> None:
    items = torch.ones(5, 2)
    items[3, 1] = torch.nan
    with pytest.raises(TrainingError, match="scores of 2 of 2 rows are not finite"):
        top_vectors(torch.ones(2, 2), items, 2)
    assert top_vectors(torch.ones(2, 2), items, 2, candidates=torch.tensor([1, 2, 4]))[0].tolist() == [[1, 2]] * 2
