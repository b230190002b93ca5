from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from torch import Tensor

from polytask.errors import TrainingError
from polytask.kernels import ranks
from polytask.kernels.ranks import Excluded, Targets, plain_rank_scores, rank_scores, rank_vectors
from polytask.kernels.sweep import ROWS, WIDTH
from polytask.metrics import average_ranks, rankings_of_vectors, ranks_of_vectors, top_items, top_of_vectors

DTYPES = st.sampled_from([torch.float32, torch.float64])


def products(users: Tensor, items: Tensor) -> Tensor:
    """Scores [U, I]: terms added up one after the other, each product and each sum rounded."""
    found = torch.zeros(len(users), len(items), dtype=users.dtype)
    for k in range(users.shape[1]):
        found = found + users[:, k, None] * items[:, k]
    return found


def naive_ranks(scores: Tensor, targets: Tensor, rows: Tensor, kept: Tensor) -> list[float]:
    found = []
    for item, row in zip(targets.tolist(), rows.tolist(), strict=True):
        ranked = rankdata(-scores[row, kept[row]].double().numpy(), method="average")
        found.append(ranked[int(kept[row, :item].sum())])
    return found


def naive_lists(scores: Tensor, kept: Tensor, k: int) -> list[list[int]]:
    lists = []
    for row, own in zip(scores.tolist(), kept.tolist(), strict=True):
        best = sorted((i for i in range(len(own)) if own[i]), key=lambda i: (-row[i], i))
        lists.append((best + [-1] * k)[:k])
    return lists


class Case:
    """Vectors of which some are equal, pairs left out in no order and some twice, and targets among the others."""

    def __init__(self, seed: int, size: tuple[int, int, int], dtype: torch.dtype, share: float = 0.3) -> None:
        draw = np.random.default_rng(seed)
        users, items, width = size
        self.users = torch.from_numpy(draw.normal(size=(users, width))).to(dtype)
        self.items = torch.from_numpy(draw.normal(size=(items, width))).to(dtype)[draw.integers(0, items, items)]
        self.kept = torch.from_numpy(draw.random((users, items)) >= share)
        gone = (~self.kept).nonzero()
        order = draw.permutation(np.r_[: len(gone), : len(gone) // 3])
        self.excluded = gone[torch.from_numpy(order)]
        candidates = self.kept.nonzero()
        chosen = candidates[torch.from_numpy(draw.permutation(len(candidates))[: 3 * users])]
        self.rows, self.targets = chosen[:, 0], chosen[:, 1]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(1, 2 * ROWS + 1), st.integers(1, 40), st.integers(1, 9)),
    dtype=DTYPES,
    share=st.sampled_from([0.0, 0.3, 1.0]),
    k=st.integers(1, 50),
)
@settings(deadline=None, max_examples=80)
def test_rankings_of_vectors_are_those_of_a_sort(
    seed: int, size: tuple[int, int, int], dtype: torch.dtype, share: float, k: int
) -> None:
    case = Case(seed, size, dtype, share)
    scores = products(case.users, case.items)
    found = rankings_of_vectors(case.users, case.items, Targets(case.rows, case.targets), case.excluded, k)
    assert found.ranks.tolist() == naive_ranks(scores, case.targets, case.rows, case.kept)
    assert found.lists.tolist() == naive_lists(scores, case.kept, k)


@pytest.mark.parametrize("items", [WIDTH - 1, WIDTH, WIDTH + 1, 5 * WIDTH + 3])
@pytest.mark.parametrize("worth", [1, 1 << 40])
@pytest.mark.usefixtures("threads")
def test_neither_tiles_nor_threads_show(items: int, worth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_WORTH", worth)
    case = Case(items, (ROWS + 5, items, 6), torch.float32)
    scores = products(case.users, case.items)
    expected = naive_ranks(scores, case.targets, case.rows, case.kept)
    assert ranks_of_vectors(case.users, case.items, case.targets, case.rows, case.excluded).tolist() == expected
    assert average_ranks(scores, case.targets, case.rows, case.excluded).tolist() == expected
    for k in (1, 7, 300):
        lists = naive_lists(scores, case.kept, k)
        assert top_of_vectors(case.users, case.items, k, case.excluded).tolist() == lists
        assert top_items(scores, k, case.excluded).tolist() == lists


@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(0, 20), st.integers(1, 30)),
    levels=st.integers(1, 9),
    dtype=DTYPES,
    k=st.integers(0, 40),
    first=st.integers(0, 2),
)
@settings(deadline=None, max_examples=120)
def test_kernel_and_plain_form_agree(
    seed: int, size: tuple[int, int], levels: int, dtype: torch.dtype, k: int, first: int
) -> None:
    draw = np.random.default_rng(seed)
    scores = torch.from_numpy(draw.integers(0, levels, size)).to(dtype)
    gone = torch.from_numpy(np.argwhere(draw.random(size) < 0.3))
    excluded = Excluded.of(gone, *size)._replace(first=first)
    candidates = excluded.mask(size[1]).nonzero()
    chosen = candidates[torch.from_numpy(draw.permutation(len(candidates))[:50])]
    targets = Targets(chosen[:, 0].contiguous(), chosen[:, 1].contiguous())
    found, expected = rank_scores(scores, targets, excluded, k), plain_rank_scores(scores, targets, excluded, k)
    assert torch.equal(found.ranks, expected.ranks) and torch.equal(found.lists, expected.lists)
    assert (found.bad, expected.bad) == (0, 0)


@pytest.mark.parametrize("width", [3, 700])
def test_vectors_of_any_width_rank_as_their_products_do(width: int) -> None:
    case = Case(width, (9, 50, 1), torch.float32)
    draw = torch.Generator().manual_seed(0)
    users, items = (torch.randint(-2, 3, (n, width), generator=draw).float() for n in (9, 50))  # products are exact
    scores, targets = users @ items.T, Targets(case.rows, case.targets)
    found = rankings_of_vectors(users, items, targets, case.excluded, 5)
    assert found.ranks.tolist() == naive_ranks(scores, case.targets, case.rows, case.kept)
    assert found.lists.tolist() == naive_lists(scores, case.kept, 5)
    small = rank_vectors(users, items, targets, Excluded.of(case.excluded, 9, 50), 5, budget=1)
    assert torch.equal(small.ranks, found.ranks) and torch.equal(small.lists, found.lists)


def test_spans_of_one_list_leave_out_as_pairs_do() -> None:
    case = Case(1, (4, 30, 5), torch.float32, share=0)
    items, starts = torch.tensor([3, 7, 9, 2, 20]), torch.tensor([0, 3, 0, 5])
    excluded = Excluded(items, starts, torch.tensor([3, 5, 3, 5]), first=2)
    pairs = (~excluded.mask(30)).nonzero()
    gone = [[0, 1, 3, 7, 9], [0, 1, 2, 20], [0, 1, 3, 7, 9], [0, 1]]
    assert pairs.tolist() == [[row, item] for row, own in enumerate(gone) for item in own]
    found, expected = (top_of_vectors(case.users, case.items, 30, e) for e in (excluded, pairs))
    assert torch.equal(found, expected)
    wide = torch.rand(4, 3 * WIDTH)  # an excluded item before the first must not be looked for in any tile
    before = Excluded.of(torch.tensor([[0, 0], [1, 0], [1, 5]]), 4, 3 * WIDTH)._replace(first=1)
    found, expected = (
        rank_scores(wide, Targets.none(), before, 800),
        plain_rank_scores(wide, Targets.none(), before, 800),
    )
    assert torch.equal(found.lists, expected.lists)
    assert excluded.count(Targets(torch.tensor([0, 3, 1, 1]), torch.tensor([9, 9, 20, 1]))) == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("side", ["users", "items"])
def test_a_score_that_is_not_finite_raises_unless_excluded(bad: float, side: str) -> None:
    users, items, zero = torch.ones(5, 3), torch.ones(600, 3), torch.zeros(0, dtype=torch.int64)
    (users if side == "users" else items)[2, 1] = bad
    other = items if side == "users" else users
    other[:, 1] = 1e30  # of finite vectors, but too large a product
    rows = 1 if side == "users" else 5
    with pytest.raises(TrainingError, match=f"{rows} of 5 rows are not finite"):
        ranks_of_vectors(users, items, zero, zero)
    pairs = [[2, i] for i in range(600)] if side == "users" else [[u, 2] for u in range(5)]
    found = top_of_vectors(users, items, 3, torch.tensor(pairs))
    best = [0, 1, 2] if side == "users" else [0, 1, 3]
    assert found.tolist() == [[-1] * 3 if side == "users" and u == 2 else best for u in range(5)]


def test_no_users_no_items_and_no_targets() -> None:
    none, vectors = torch.zeros(0, dtype=torch.int64), torch.ones(3, 2)
    assert ranks_of_vectors(vectors, vectors, none, none).shape == (0,)
    assert top_of_vectors(vectors[:0], vectors, 4).shape == (0, 4)
    assert top_of_vectors(vectors, vectors[:0], 2).tolist() == [[-1, -1]] * 3
    assert top_items(torch.zeros(3, 0), 2).tolist() == [[-1, -1]] * 3


def test_vectors_are_left_alone_and_need_no_layout() -> None:
    case = Case(5, (7, 300, 4), torch.float32)
    users = case.users.t().contiguous().t().requires_grad_()
    items = torch.cat([case.items, case.items], dim=1)[:, :4]
    found = ranks_of_vectors(users, items, case.targets, case.rows, case.excluded)
    assert torch.equal(found, ranks_of_vectors(case.users, case.items, case.targets, case.rows, case.excluded))
    assert torch.equal(users, case.users) and not found.requires_grad


def test_wrong_indices_and_shapes_raise() -> None:
    users, items, one, zero = torch.zeros(2, 4), torch.zeros(3, 4), torch.tensor([1]), torch.tensor([0])
    with pytest.raises(ValueError, match=r"\[U, d\] and \[I, d\], not \[2, 4\] and \[3, 3\]"):
        ranks_of_vectors(users, items[:, :3], one, zero)
    with pytest.raises(ValueError, match=r"targets point outside scores \[2, 3\]"):
        ranks_of_vectors(users, items, one + 2, zero)
    with pytest.raises(ValueError, match=r"excluded point outside scores \[2, 3\]"):
        ranks_of_vectors(users, items, one, zero, torch.tensor([[2, 0]]))
    with pytest.raises(ValueError, match="1 of 1 targets are also excluded"):
        ranks_of_vectors(users, items, one, zero, torch.tensor([[0, 2], [0, 1]]))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), max_size=40))
def test_excluded_pairs_may_come_in_any_order_and_again(pairs: list[tuple[int, int]]) -> None:
    found = Excluded.of(torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2), 4, 7)
    for row in range(4):
        own = found.items[int(found.starts[row]) : int(found.ends[row])].tolist()
        assert own == sorted({item for u, item in pairs if u == row})
