import numpy as np
import pytest
import torch
from scipy import stats

from polytask.data import pairs as pairs_module
from polytask.data.negatives import NEGATIVES, Sampler
from polytask.data.pairs import Pairs
from polytask.data.split import split
from polytask.data.synthetic import synthetic
from polytask.errors import ConfigError, DataError

TRAIN = split(synthetic(users=40, items=60, rows=1200, seed=2), valid=0, test=0.1).train
ITEMS = 61  # with the unknown
DENSITY = len(TRAIN.pairs.user) / (40 * 60)


def sampler(kind: str) -> Sampler:
    return Sampler(kind, TRAIN.pairs, 41, TRAIN.popularity)


def of(owned: dict[int, list[int]], items: int) -> Pairs:
    """The pairs of users and their items, among ``items`` items."""
    flat = [(u, i) for u, own in owned.items() for i in own]
    assert max(i for _, i in flat) < items
    return Pairs.none().plus(torch.tensor([u for u, _ in flat]), torch.tensor([i for _, i in flat]))


def draws(made: Sampler, users: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    found = made.draw(users, count, np.random.default_rng(seed))
    assert found.shape == (len(users), count) and found.dtype == np.int64
    assert found.min() >= 1 and found.max() < made.items
    return found


def share_of_positives(kind: str) -> float:
    users = np.repeat(np.arange(1, 41), 1000)
    found = draws(sampler(kind), users, 5)
    owned = set(zip(TRAIN.pairs.user.tolist(), TRAIN.pairs.item.tolist(), strict=True))
    return float(np.mean([(u, i) in owned for u, row in zip(users.tolist(), found.tolist(), strict=True) for i in row]))


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_no_negative_is_a_train_positive(kind: str) -> None:
    assert share_of_positives(kind) == 0


def test_uniform_all_hits_train_positives_as_often_as_they_are_dense() -> None:
    error = np.sqrt(DENSITY * (1 - DENSITY) / 200_000)
    assert abs(share_of_positives("uniform_all") - DENSITY) < 5 * error


@pytest.mark.parametrize(("kind", "allowed"), [("uniform", range(6, 31)), ("uniform_all", range(1, 31))])
def test_uniform_is_uniform_over_what_it_may_draw(kind: str, allowed: range) -> None:
    made = Sampler(kind, of({1: [1, 2, 3, 4, 5]}, 31), 2, torch.ones(31))
    counts = np.bincount(draws(made, np.ones(20_000, dtype=np.int64), 2).ravel(), minlength=31)
    assert counts.sum() == counts[list(allowed)].sum() == 40_000
    assert stats.chisquare(counts[list(allowed)]).pvalue > 1e-4


def test_popularity_is_flattened_by_the_power_of_three_quarters() -> None:
    popularity = torch.tensor([0, 1, 16, 81, 0, 256, 625])
    made = Sampler("popularity", of({1: [5]}, 7), 2, popularity)
    counts = np.bincount(draws(made, np.ones(20_000, dtype=np.int64), 2).ravel(), minlength=7)
    expected = np.array([1, 8, 27, 125]) / 161  # item 4 was never chosen, item 5 is the user's own
    assert counts[[0, 4, 5]].sum() == 0
    assert stats.chisquare(counts[[1, 2, 3, 6]], 40_000 * expected).pvalue > 1e-4


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_a_user_who_has_everything_is_an_error(kind: str) -> None:
    made = Sampler(kind, of({1: [1, 2, 3], 2: [1]}, 4), 3, torch.tensor([0, 2, 1, 1]))
    draws(made, np.array([2, 2]), 3)
    with pytest.raises(DataError, match="interacted with every item"):
        draws(made, np.array([2, 1]), 3)


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_a_user_who_has_almost_everything_is_given_the_rest(kind: str) -> None:
    items = 2001
    own = [i for i in range(1, items) if i not in (7, 1999)]
    popularity = torch.ones(items, dtype=torch.int64)
    popularity[0] = 0
    made = Sampler(kind, of({1: own, 2: [1]}, items), 3, popularity)
    found = draws(made, np.array([1, 2, 1] * 200), 2)
    first = found[np.arange(600) % 3 != 1]
    assert set(first.ravel().tolist()) == {7, 1999}
    assert abs(np.mean(first == 7) - 0.5) < 0.1
    assert len(set(found[1::3].ravel().tolist())) > 300  # the other user is drawn as before


@pytest.mark.parametrize("kind", NEGATIVES)
def test_the_binary_search_draws_what_the_bitmap_draws(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    users = np.repeat(np.arange(1, 41), 50)
    by_bitmap = draws(sampler(kind), users, 3, seed=9)
    monkeypatch.setattr(pairs_module, "_BITMAP", 0)
    assert np.array_equal(draws(sampler(kind), users, 3, seed=9), by_bitmap)


@pytest.mark.parametrize("limit", [0, 1 << 27])
def test_contains_knows_every_pair_and_no_other(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs_module, "_BITMAP", limit)
    owned = {1: [1, 9], 3: [2], 4: [9]}
    contains = of(owned, 10).contains(5, 10)
    user, item = np.meshgrid(np.arange(5), np.arange(10), indexing="ij")
    found = contains(user.ravel(), item.ravel()).reshape(5, 10)
    assert np.argwhere(found).tolist() == [[u, i] for u, own in owned.items() for i in own]


@pytest.mark.parametrize("limit", [0, 1 << 27])
def test_no_pair_at_all_is_contained_nowhere(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs_module, "_BITMAP", limit)
    contains = Pairs.none().contains(3, 4)
    assert not contains(np.array([0, 1, 2]), np.array([0, 3, 1])).any()


def test_pairs_are_sorted_unique_and_never_of_the_unknown() -> None:
    found = (
        Pairs.none()
        .plus(torch.tensor([2, 1, 2, 0, 3]), torch.tensor([5, 4, 5, 1, 0]))
        .plus(torch.tensor([1]), torch.tensor([2]))
    )
    assert (found.user.tolist(), found.item.tolist()) == ([1, 1, 2], [2, 4, 5])
    starts, ends = found.spans(torch.tensor([2, 7, 1]))
    assert [found.item[a:b].tolist() for a, b in zip(starts, ends, strict=True)] == [[5], [], [2, 4]]


def test_an_unknown_sampler_is_told_the_near_name() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'uniform'"):
        sampler("unifrom")


def test_mixed_negatives_are_half_popular_half_even_and_never_the_users_own() -> None:
    assert share_of_positives("mixed") == 0
    pairs = of({1: [1]}, 101)
    popularity = torch.ones(101)
    popularity[0], popularity[1:11] = 0, 1000.0
    users = np.full(20_000, 2)
    found = Sampler("mixed", pairs, 3, popularity).draw(users, 1, np.random.default_rng(0))
    weights = popularity.numpy() ** 0.75
    expected = 0.5 * weights[1:11].sum() / weights.sum() + 0.5 * 0.1
    assert np.mean(found <= 10) == pytest.approx(expected, abs=0.015)


def test_in_batch_negatives_come_from_the_rows_that_follow() -> None:
    items = np.arange(100, 110)
    found = sampler("in_batch").draw_in_batch(items, 400, 4, np.random.default_rng(0))
    for row in range(10):
        assert set(found[row]) == {items[(row + step) % 10] for step in (1, 2, 3)}
    assert sampler("in_batch").draw_in_batch(items[:2], 3, 1, np.random.default_rng(0)).tolist() == [
        [101] * 3,
        [100] * 3,
    ]
    with pytest.raises(DataError, match="two training rows"):
        sampler("in_batch").draw_in_batch(items[:1], 1, 4, np.random.default_rng(0))
