"""The baselines of ``bench/anchors.py`` against their formulas, written out by brute force on small matrices."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.testing import assert_allclose

import polytask as pt

PATH = Path(__file__).parents[1] / "bench" / "anchors.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("anchors", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["anchors"] = module
    spec.loader.exec_module(module)
    return module


anchors = load()


def made_up(users: int = 12, items: int = 9, rows: int = 50, seed: int = 0):
    """Distinct pairs with ratings 1..5 in no order; the last user and the last item have none."""
    random = np.random.default_rng(seed)
    cells = random.permutation((users - 1) * (items - 1))[:rows]
    rating = random.integers(1, 6, rows).astype(np.float64)
    return anchors.Ratings(cells // (items - 1), cells % (items - 1), rating, users, items)


def test_the_seen_matrix_and_the_groups_hold_every_row_once() -> None:
    data = made_up()
    assert data.seen.sum() == len(data.user)
    assert all(data.seen[u, i] == 1 for u, i in zip(data.user, data.item, strict=True))
    for groups, key in ((data.by_user(), data.user), (data.by_item(), data.item)):
        assert sorted(np.concatenate(groups).tolist()) == list(range(len(key)))
        assert all((key[rows] == at).all() for at, rows in enumerate(groups))
    assert (len(data.by_user()), len(data.by_item())) == (data.users, data.items)


def test_popularity_counts_ratings() -> None:
    data = made_up()
    expected = [sum(1 for j in data.item if j == i) for i in range(data.items)]
    assert anchors.popularity(data).tolist() == [expected] * data.users


@pytest.mark.parametrize("neighbors", [1, 3, 50])
def test_item_knn_adds_the_cosines_of_the_nearest_items(neighbors: int) -> None:
    data = made_up()
    x = data.seen.astype(np.float64)
    scores = anchors.item_knn(data, neighbors)
    for i in range(data.items - 1):
        cosine = [x[:, i] @ x[:, j] / np.sqrt(x[:, i].sum() * max(x[:, j].sum(), 1)) for j in range(data.items)]
        cosine[i] = 0.0
        # which of two equally near items is kept is open, so only the users' sums over a clear cut are compared
        ordered = sorted(cosine, reverse=True)
        if neighbors < data.items and ordered[neighbors - 1] == pytest.approx(ordered[neighbors]):
            continue
        kept = [c if c >= ordered[min(neighbors, data.items) - 1] else 0.0 for c in cosine]
        assert_allclose(scores[:, i], x @ kept, rtol=1e-5, atol=1e-6)
    assert (scores[:, -1] == 0).all()


def test_ease_is_the_ridge_of_each_item_on_all_the_others() -> None:
    data, penalty = made_up(), 0.7
    x = data.seen.astype(np.float64)
    weights = np.zeros((data.items, data.items))
    for i in range(data.items):
        others = [j for j in range(data.items) if j != i]
        gram = x[:, others].T @ x[:, others] + penalty * np.eye(len(others))
        weights[others, i] = np.linalg.solve(gram, x[:, others].T @ x[:, i])
    assert_allclose(anchors.ease(data, penalty), x @ weights, rtol=1e-4, atol=1e-5)


def test_ials_ends_where_its_weighted_loss_has_no_slope() -> None:
    data, alpha, penalty, step = made_up(), 2.0, 0.5, 1e-5
    x = data.seen.astype(np.float64)

    def loss(scores: np.ndarray) -> float:
        """Least weighted loss of a rank-3 ``scores``: the penalty of its best factors is 2 x its nuclear norm."""
        nuclear = np.linalg.svd(scores, compute_uv=False)[:3].sum()
        return float(((1 + alpha * x) * (x - scores) ** 2).sum() + 2 * penalty * nuclear)

    scores = anchors.ials(data, dim=3, alpha=alpha, penalty=penalty, sweeps=400).astype(np.float64)
    assert np.linalg.matrix_rank(scores, tol=1e-4) <= 3
    u, s, v = np.linalg.svd(scores)
    factors = u[:, :3] * np.sqrt(s[:3]), v[:3].T * np.sqrt(s[:3])
    random = np.random.default_rng(1)
    for _ in range(10):
        change = [random.normal(size=f.shape) for f in factors]
        ahead, behind = ((factors[0] + h * change[0]) @ (factors[1] + h * change[1]).T for h in (step, -step))
        assert abs(loss(ahead) - loss(behind)) / (2 * step) < 1e-2 * np.linalg.norm(np.concatenate(change))


def test_biases_solve_their_normal_equations() -> None:
    data = made_up()
    predict = anchors.biases(data, user_penalty=5, item_penalty=3, rounds=300)
    one_hot = np.zeros((len(data.user), data.users + data.items))
    one_hot[np.arange(len(data.user)), data.user] = 1
    one_hot[np.arange(len(data.user)), data.users + data.item] = 1
    penalty = np.diag([5.0] * data.users + [3.0] * data.items)
    mean = data.rating.mean()
    solved = np.linalg.solve(one_hot.T @ one_hot + penalty, one_hot.T @ (data.rating - mean))
    user, item = (side.ravel() for side in np.indices((data.users, data.items)))
    assert_allclose(predict(user, item), mean + solved[user] + solved[data.users + item], atol=1e-8)
    assert predict(np.array([data.users - 1]), np.array([data.items - 1])) == pytest.approx(mean)


def test_factorization_is_at_rest_in_the_last_side_it_solved() -> None:
    data, penalty, step = made_up(), 1.5, 1e-5
    base = anchors.biases(data)
    every = [side.ravel() for side in np.indices((data.users, data.items))]
    part = (anchors.factorization(data, dim=2, penalty=penalty, sweeps=300)(*every) - base(*every)).reshape(
        data.users, data.items
    )
    left = data.rating - base(data.user, data.item)
    u, s, v = np.linalg.svd(part)
    assert s[2] < 1e-6 * max(s[0], 1)
    users, items = u[:, :2] * np.sqrt(s[:2]), v[:2].T * np.sqrt(s[:2])

    def loss(at: np.ndarray) -> float:
        error = left - (users[data.user] * at[data.item]).sum(axis=1)
        return float((error**2).sum() + penalty * ((users**2).sum() + (at**2).sum()))

    for change in np.random.default_rng(1).normal(size=(10, *items.shape)):
        slope = (loss(items + step * change) - loss(items - step * change)) / (2 * step)
        assert abs(slope) < 1e-2 * np.linalg.norm(change)
    assert loss(items) < loss(np.zeros_like(items)) - 0.1


def test_global_mean_is_the_mean_everywhere() -> None:
    data = made_up()
    assert anchors.global_mean(data)(np.array([0, 3]), np.array([1, 2])).tolist() == [data.rating.mean()] * 2


def test_training_items_are_left_out_and_other_held_out_items_stay() -> None:
    train = anchors.Ratings(np.array([0, 0, 1]), np.array([0, 1, 2]), np.ones(3), 2, 5)
    test = anchors.Ratings(np.array([0, 0]), np.array([3, 4]), np.ones(2), 2, 5)
    scores = np.array([[9.0, 8.0, 2.0, 3.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    mrr, ndcg = anchors.ranking_figures(scores, train.seen, test)  # ranks 1 and 3 among the items 2, 3 and 4
    assert mrr == pytest.approx((1 + 1 / 3) / 2)
    assert ndcg == pytest.approx((1 + 1 / 2) / (1 + 1 / np.log2(3)))


def test_the_error_is_given_as_it_is_and_clipped() -> None:
    test = anchors.Ratings(np.array([0, 0]), np.array([0, 1]), np.array([5.0, 2.0]), 1, 2)
    figures = anchors.rating_figures(lambda user, item: np.array([7.0, 2.5]), test)
    assert figures == pytest.approx(((4 + 0.25) / 2, 0.25 / 2))


def test_the_table_beats_popularity_and_the_mean_on_made_up_taste() -> None:
    data = pt.synthetic(users=80, items=60, rows=2400)
    split = pt.split(data, "exercise", valid=0.0, test=0.1)
    lines = anchors.table([split, split]).splitlines()
    figures = {line[:44].strip(): float(line[44:52]) for line in lines if line[:44].strip()}
    assert set(figures) == {*anchors.RANKERS, *anchors.RATERS}
    assert figures["user + item bias (5, 3)"] < figures["global mean"]
    mean = (split.test.labels[:, -1].double() - split.train.labels[:, -1].double().mean()).square().mean()
    assert figures["global mean"] == pytest.approx(float(mean), abs=1e-4)


def test_items_of_the_validation_part_are_left_out_too_and_the_splits_are_those_of_an_experiment(
    tmp_path: Path,
) -> None:
    table = pt.synthetic(users=30, items=20, rows=300).interactions
    table.write_csv(tmp_path / "rows.csv")
    (tmp_path / "own.toml").write_text(
        """
        [data]
        interactions = "rows.csv"
        user = "user_id"
        item = "item_id"
        split = { valid = 0.2, test = 0.1 }
        [[task]]
        name = "rating"
        kind = "regression"
        label = "rating"
        [compare]
        seeds = [4, 7]
        """
    )
    first, second = anchors.splits_of(str(tmp_path / "own.toml"))
    assert not first.test.user.equal(second.test.user)
    known, test = anchors.known_of(first.test), anchors.ratings_of(first.test)
    earlier = [(u - 1, i - 1) for p in (first.train, first.valid) for u, i in zip(p.user, p.item, strict=True) if u * i]
    assert known.sum() == len(set(earlier)) and all(known[u, i] for u, i in earlier)
    assert first.valid is not None and known[test.user, test.item].sum() == 0


def test_an_unknown_experiment_is_one_line() -> None:
    with pytest.raises(SystemExit, match=r"^anchors: experiment 'movielens-bset' is unknown\. Did you mean"):
        anchors.main(["movielens-bset"])


def test_a_part_without_items_is_refused() -> None:
    part = pt.split(pt.synthetic(users=20, items=20, rows=200), "exercise", valid=0.0).train
    with pytest.raises(ValueError, match="the anchors need a user and an item column"):
        anchors.ratings_of(replace(part, encoder=replace(part.encoder, items=None)))
