import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polytask.recommend.diversity import capped, cosine, mmr, overlap

words = st.lists(st.lists(st.sampled_from("abcd"), max_size=3).map(tuple), min_size=1, max_size=12)


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def naive(relevance: np.ndarray, similar: np.ndarray, k: int, diversity: float) -> list[int]:
    """Maximal marginal relevance by its definition, one number at a time."""
    least, most = min(relevance), max(relevance)
    scaled = [(r - least) / (most - least) for r in relevance]
    chosen = [int(np.argmax(relevance))]
    while len(chosen) < min(k, len(relevance)):
        left = [n for n in range(len(relevance)) if n not in chosen]
        gains = [(1 - diversity) * scaled[n] - diversity * max(similar[n][c] for c in chosen) for n in left]
        chosen.append(left[int(np.argmax(gains))])
    return chosen


@given(seed=st.integers(0, 999), size=st.integers(2, 15), k=st.integers(1, 20), diversity=st.floats(0.01, 1))
@settings(max_examples=150)
def test_the_list_is_that_of_the_definition(seed: int, size: int, k: int, diversity: float) -> None:
    relevance, vectors = random(seed, size), random(seed + 1, size, 3)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similar = np.stack([units @ u for u in units], axis=1)
    assert mmr(relevance, cosine(vectors), k, diversity).tolist() == naive(relevance, similar, k, diversity)


def test_a_worked_example() -> None:
    relevance = np.array([0.9, 0.8, 0.5, 0.1])
    same = cosine(np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    assert mmr(relevance, same, 4, 0.0).tolist() == [0, 1, 2, 3]
    assert mmr(relevance, same, 4, 0.3).tolist() == [0, 2, 1, 3]  # 0.3125, 0.35 and 0.3, then 0.3125 and 0
    assert mmr(relevance, same, 4, 0.5).tolist() == [0, 3, 2, 1]  # -0.0625, 0.25 and 0.5, then -0.0625 and 0.25
    assert mmr(relevance, same, 3, 1.0).tolist() == [0, 3, 2]


@given(relevance=st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=20).map(np.array), k=st.integers(0, 25))
def test_without_diversity_the_order_is_the_plain_one(relevance: np.ndarray, k: int) -> None:
    expected = sorted(range(len(relevance)), key=lambda n: (-relevance[n], n))[:k]
    assert mmr(relevance, cosine(np.ones((len(relevance), 2))), k, 0.0).tolist() == expected


def test_equal_items_stay_in_order() -> None:
    assert mmr(np.ones(5), cosine(np.zeros((5, 2))), 3, 0.5).tolist() == [0, 1, 2]


def test_a_list_of_nothing_is_empty() -> None:
    assert mmr(np.zeros(0), cosine(np.zeros((0, 3))), 5, 0.5).tolist() == []
    assert mmr(np.ones(3), cosine(np.ones((3, 3))), 0, 0.5).tolist() == []


def test_more_diversity_makes_the_chosen_less_alike() -> None:
    relevance, vectors = random(0, 200), random(1, 200, 8)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    alike, worth = [], []
    for diversity in (0.0, 0.3, 0.7, 1.0):
        found = mmr(relevance, cosine(vectors), 10, diversity)
        alike.append((units[found] @ units[found].T).sum())
        worth.append(relevance[found].sum())
    assert alike == sorted(alike, reverse=True) and worth == sorted(worth, reverse=True)


def test_a_vector_of_zeros_is_like_no_other() -> None:
    assert cosine(np.array([[0.0, 0.0], [3.0, 4.0]]))(0).tolist() == [0, 0]


@given(values=words, position=st.integers(0, 11))
def test_overlap_is_that_of_sets(values: list[tuple[str, ...]], position: int) -> None:
    own = set(values[position := position % len(values)])
    expected = [len(own & set(v)) / max(1, len(own | set(v))) for v in values]
    assert overlap(values)(position).tolist() == pytest.approx(expected)


@given(values=words, cap=st.integers(1, 3), k=st.integers(0, 14))
@settings(max_examples=150)
def test_no_value_is_shared_by_more_than_the_cap(values: list[tuple[str, ...]], cap: int, k: int) -> None:
    order = np.random.default_rng(len(values)).permutation(len(values))
    found = capped(order, [(values, cap)], k).tolist()
    expected: list[int] = []
    for position in order.tolist():
        counts = [sum(value in values[c] for c in expected) for value in values[position]]
        if len(expected) < k and all(n < cap for n in counts):
            expected.append(position)
    assert found == expected


def test_every_column_has_its_own_cap() -> None:
    genres, years = [("Drama",)] * 3 + [("War",)] * 3, [("1994",), ("Drama",)] * 3
    assert capped(np.arange(6), [(genres, 2), (years, 3)], 9).tolist() == [0, 1, 3, 4]
    assert capped(np.arange(6), [(genres, 3), (years, 2)], 9).tolist() == [0, 1, 2, 3]
    assert capped(np.arange(6), [(genres, 2)], 9).tolist() == [0, 1, 3, 4]
    assert capped(np.arange(6), [(years, 1)], 9).tolist() == [0, 1]
    assert capped(np.arange(6), [], 2).tolist() == [0, 1]


@given(seed=st.integers(0, 99), values=words, cap=st.integers(1, 3), diversity=st.sampled_from([0.0, 0.4, 1.0]))
def test_caps_hold_in_a_varied_list(seed: int, values: list[tuple[str, ...]], cap: int, diversity: float) -> None:
    relevance = random(seed, len(values))
    similarity = overlap(values)
    found = mmr(relevance, similarity, 20, diversity, [(values, cap)]).tolist()
    counts = {v: sum(v in values[n] for n in found) for v in "abcd"}
    assert len(set(found)) == len(found) and max(counts.values()) <= cap
    full = {v for v, n in counts.items() if n == cap}
    assert all(full & set(values[n]) for n in range(len(values)) if n not in found)  # none could be added
    if diversity == 0:
        assert found == capped(np.argsort(-relevance), [(values, cap)], 20).tolist()


def test_caps_that_bind_nothing_change_nothing() -> None:
    relevance, vectors = random(3, 30), random(4, 30, 4)
    alone = [(str(n),) for n in range(30)]
    expected = mmr(relevance, cosine(vectors), 12, 0.5)
    assert mmr(relevance, cosine(vectors), 12, 0.5, [(alone, 1)]).tolist() == expected.tolist()
