import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import log_loss, mean_absolute_error, mean_squared_error, ndcg_score, roc_auc_score
from torch import Tensor

from polytask.errors import ConfigError, PolytaskError, TrainingError
from polytask.kernels import ranks
from polytask.metrics import METRICS, Score, average_ranks, metric

# the exercise's example: held-out {A,B} in B,C,D,A,G; {B} in A,B,C,G,D; {A,B,C} in A,D,B,C,G
RANKS = torch.tensor([4.0, 1, 2, 1, 3, 4])
USERS = torch.tensor([0, 0, 1, 2, 2, 2])
BINARY = torch.tensor([1.0, 0, 1, 0, 1, 0])
PROBABILITY = torch.tensor([0.8, 0.8, 0.6, 0.4, 0.4, 0.2])


def reference_ranks(scores: Tensor, targets: Tensor, rows: Tensor, excluded: Tensor | None) -> list[float]:
    out = []
    for item, row in zip(targets.tolist(), rows.tolist(), strict=True):
        gone = set() if excluded is None else set(excluded[excluded[:, 0] == row, 1].tolist())
        kept = [j for j in range(scores.shape[1]) if j not in gone]
        out.append(rankdata(-scores[row, kept].double().numpy(), method="average")[kept.index(item)])
    return out


def catalogue(seed: int, users: int = 13, items: int = 29, held_out: int = 60) -> tuple[Tensor, ...]:
    """Scores with ties, targets and rows in no order, and excluded pairs with repeats."""
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randint(-4, 5, (users, items), generator=draw).float() / 4
    flat = torch.randperm(users * items, generator=draw)
    mine, gone = flat[:held_out], flat[held_out : held_out + 90]
    gone = torch.cat((gone, gone[:7]))
    pairs = torch.stack((gone // items, gone % items), dim=1)
    return scores, mine % items, mine // items, pairs


@pytest.fixture(params=["kernel", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "plain":
        monkeypatch.setattr(ranks, "_sweep_scores", ranks.plain_rank_scores)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mrr", (0.5 * (1 / 4 + 1) + 1 / 2 + (1 + 1 / 3 + 1 / 4) / 3) / 3),
        ("mrr", 0.550926),
        ("mrr_first", 0.833333),
        ("hit@1", 2 / 3),
        ("recall@3", (1 / 2 + 1 + 2 / 3) / 3),
    ],
)
def test_the_worked_example(name: str, value: float) -> None:
    score = metric(name)(RANKS, USERS)
    assert float(score) == pytest.approx(value, abs=1e-6)
    assert (score.used, score.skipped, score.better, score.sign) == (3, 0, "higher", 1)


@pytest.mark.parametrize(("name", "value"), [("ndcg@3", 0.296082), ("recall@3", 1 / 3), ("hit@3", 1), ("hit@1", 0)])
def test_the_list_01011(name: str, value: float) -> None:
    assert float(metric(name)(torch.tensor([2.0, 4, 5]), torch.zeros(3).long())) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(("name", "value"), [("auc", 2 / 3), ("logloss", 0.665611)])
def test_golden_binary(name: str, value: float) -> None:
    assert float(metric(name)(PROBABILITY, BINARY)) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(("users", "value"), [([0, 1, 2], 0.25), ([3, 4], 0.5)])
def test_golden_auc_of_a_group(users: list[int], value: float) -> None:
    assert float(metric("auc")(PROBABILITY[users], BINARY[users])) == pytest.approx(value)


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("mse", mean_squared_error),
        ("rmse", lambda y, p: mean_squared_error(y, p) ** 0.5),
        ("mae", mean_absolute_error),
        ("auc", roc_auc_score),
        ("logloss", log_loss),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_values_agree_with_scikit_learn(name: str, oracle: Callable[..., float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, 700)
    prediction = rng.integers(1, 20, 700) / 20  # ties within and across the classes
    score = metric(name)(torch.tensor(prediction), torch.tensor(label))
    assert float(score) == pytest.approx(oracle(label, prediction), rel=1e-12)
    assert (score.used, score.skipped) == (700, 0)


def test_logloss_is_clipped() -> None:
    score = metric("logloss")(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]))
    assert float(score) == pytest.approx(-(np.log(1e-7) + np.log1p(-1e-7)) / 2)


@pytest.mark.parametrize("name", ["mse", "rmse", "mae", "auc", "logloss"])
def test_rows_without_a_label_do_not_count(name: str) -> None:
    more = torch.cat((PROBABILITY, torch.rand(4))), torch.cat((BINARY, torch.full((4,), torch.nan)))
    with_missing, without = metric(name)(*more), metric(name)(PROBABILITY, BINARY)
    assert float(with_missing) == float(without)
    assert (with_missing.used, with_missing.skipped) == (6, 4)


@pytest.mark.parametrize("name", ["mse", "rmse", "mae", "auc", "logloss"])
def test_without_any_label_there_is_no_value(name: str) -> None:
    score = metric(name)(torch.rand(3), torch.full((3,), torch.nan))
    assert score == Score(None, METRICS[name].better, 0, 3, "no row has a label")
    with pytest.raises(PolytaskError, match="no row has a label"):
        float(score)


def test_auc_of_one_class_has_no_value() -> None:
    score = metric("auc")(torch.rand(3), torch.ones(3))
    assert (score.value, score.used, score.why) == (None, 3, "every label is of the same class")


@pytest.mark.parametrize("name", ["mrr", "mrr_first", "ndcg@10", "recall@10", "hit@10"])
def test_without_users_there_is_no_value(name: str) -> None:
    score = metric(name)(torch.empty(0), torch.empty(0, dtype=torch.int64))
    assert (score.value, score.used, score.why) == (None, 0, "no user has a held-out item")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_raises(bad: float) -> None:
    for name in METRICS:
        found = metric(name + "@10" if METRICS[name].cutoff else name)
        if found.needs == "lists":  # of items, which are whole numbers
            continue
        with pytest.raises(TrainingError, match="1 of 6"):
            found(torch.cat((PROBABILITY[:5] + 1, torch.tensor([bad]))), BINARY)


@pytest.mark.parametrize("name", METRICS)
def test_two_shapes_raise(name: str) -> None:
    found = metric(name + "@10" if METRICS[name].cutoff else name)
    for first, second in (((4,), (4, 1)), ((4,), (1,)), ((4, 1), (4, 1))):
        with pytest.raises(ValueError, match=r"must be .*, not \[4"):
            found(torch.ones(first), torch.ones(second))


@pytest.mark.parametrize(
    ("name", "first", "second", "what"),
    [
        ("auc", [0.1, 0.2], [0.5, 1.0], "labels must be 0 or 1"),
        ("logloss", [0.1, 0.2], [2.0, 1.0], "labels must be 0 or 1"),
        ("logloss", [-0.1, 0.2], [0.0, 1.0], "not logits"),
        ("mrr", [0.5, 2.0], [0, 0], "ranks start at 1"),
    ],
)
def test_values_out_of_range_raise(name: str, first: list[float], second: list[float], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        metric(name)(torch.tensor(first), torch.tensor(second))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("ndgc@10", "metric 'ndgc' is unknown. Did you mean 'ndcg'?"),
        ("ndcg", "ndcg needs a cut-off"),
        ("ndcg@", "ndcg needs a cut-off"),
        ("ndcg@0", "ndcg needs a cut-off of 1 or more"),
        ("recall@2.5", "recall needs a cut-off"),
        ("hit@-1", "hit needs a cut-off"),
        ("mse@10", "mse takes no cut-off"),
        ("mrr@", "mrr takes no cut-off"),
    ],
)
def test_a_wrong_name_is_a_config_error(name: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        metric(name)
    assert what in str(caught.value)


def test_names_and_directions() -> None:
    for name, found in METRICS.items():
        assert found.name == name
        bound = metric(name + "@7" if found.cutoff else name)
        assert (bound.k, bound.better, bound.function) == (7 * found.cutoff, found.better, found.function)
        assert not bound.entire
    assert metric("ndcg@7").name == "ndcg@7"
    assert metric("mse")(BINARY, BINARY).sign == -1
    with pytest.raises(ConfigError, match="write ndcg@10"):
        METRICS["ndcg"](RANKS, USERS)


@pytest.mark.parametrize("seed", range(3))
def test_ranks_agree_with_ir_measures_and_scikit_learn(seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ir_measures import RR, Qrel, R, ScoredDoc, calc_aggregate, nDCG

    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.arange(40.0), (25, 1)), axis=1)
    relevant = rng.random((25, 40)) < rng.uniform(0.03, 0.6, (25, 1))
    relevant[:, 0] = True
    rows, items = (torch.from_numpy(a) for a in np.nonzero(relevant))
    ranks = average_ranks(torch.from_numpy(scores), items, rows)
    qrels = [Qrel(str(u), str(i), 1) for u, i in zip(rows.tolist(), items.tolist(), strict=True)]
    run = [ScoredDoc(str(u), str(i), scores[u, i]) for u in range(25) for i in range(40)]
    expected = calc_aggregate([nDCG @ 10, RR, R @ 10], qrels, run)
    for name, measure in (("ndcg@10", nDCG @ 10), ("mrr_first", RR), ("recall@10", R @ 10)):
        assert float(metric(name)(ranks, rows)) == pytest.approx(expected[measure], rel=1e-12)
    assert float(metric("ndcg@10")(ranks, rows)) == pytest.approx(ndcg_score(relevant, scores, k=10), rel=1e-12)


@pytest.mark.parametrize("name", ["mrr", "mrr_first", "ndcg@3", "recall@3", "hit@3"])
def test_order_and_names_of_users_do_not_matter(name: str) -> None:
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    renamed = torch.tensor([900, 7, 31])[USERS]
    assert float(metric(name)(RANKS[order], renamed[order])) == pytest.approx(
        float(metric(name)(RANKS, USERS)), rel=1e-15
    )


@pytest.mark.parametrize("k", [1, 2, 3])
def test_ties_never_score_above_a_perfect_list(k: int) -> None:
    ranks, users = torch.full((3,), 2.0), torch.zeros(3).long()  # three held-out items tied at the top
    assert float(metric(f"ndcg@{k}")(ranks, users)) <= 1
    assert float(metric(f"recall@{k}")(ranks, users)) <= k / 3


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("seed", range(4))
def test_average_ranks_agree_with_scipy(seed: int) -> None:
    scores, targets, rows, excluded = catalogue(seed)
    for gone in (None, excluded, excluded[:0]):
        found = average_ranks(scores, targets, rows, gone)
        assert found.dtype == torch.float64
        assert found.tolist() == reference_ranks(scores, targets, rows, gone)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("budget", [1, 300, 4000, 1 << 40])
def test_ranks_do_not_depend_on_the_block(budget: int) -> None:
    scores, targets, rows, excluded = catalogue(0)
    found = average_ranks(scores.half(), targets, rows, excluded, budget)
    assert torch.equal(found, average_ranks(scores, targets, rows, excluded))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_ranks_of_other_dtypes(dtype: torch.dtype) -> None:
    scores, targets, rows, excluded = catalogue(1)
    found = average_ranks(scores.to(dtype), targets, rows, excluded)
    assert torch.equal(found, average_ranks(scores, targets, rows, excluded))


@pytest.mark.usefixtures("way")
def test_near_ties_are_told_apart() -> None:
    tiny, huge = torch.finfo(torch.float32).smallest_normal, torch.finfo(torch.float32).max
    scores = torch.tensor([[0.0, -0.0, 1e-45, tiny, -huge, huge, 1.0, 1.0 + 2**-23]])
    found = average_ranks(scores, torch.arange(8), torch.zeros(8).long())
    assert found.tolist() == [6.5, 6.5, 5, 4, 8, 1, 3, 2]


@pytest.mark.usefixtures("way")
def test_scores_are_left_alone_and_need_no_layout() -> None:
    scores, targets, rows, excluded = catalogue(2)
    other = scores.t().contiguous().t().requires_grad_()
    found = average_ranks(other, targets, rows, excluded)
    assert torch.equal(found, average_ranks(scores, targets, rows, excluded))
    assert torch.equal(other, scores) and not found.requires_grad


@pytest.mark.usefixtures("way")
def test_a_constant_scorer_ranks_as_chance() -> None:
    items = torch.arange(101).repeat(2)
    ranks = average_ranks(torch.zeros(2, 101), items, torch.arange(2).repeat_interleave(101))
    assert ranks.tolist() == [51.0] * 202
    assert float(metric("mrr")(ranks[:1], items[:1])) == pytest.approx(1 / 51)
    assert float(metric("auc")(torch.zeros(6), BINARY)) == 0.5


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_raises_unless_excluded(bad: float) -> None:
    scores, targets, rows, excluded = catalogue(3)
    expected = average_ranks(scores, targets, rows, excluded)
    scores[excluded[:, 0], excluded[:, 1]] = bad
    assert torch.equal(average_ranks(scores, targets, rows, excluded), expected)
    for row, item in ((0, int(targets[rows == 0][0])), (12, int(targets[rows == 12][0]))):
        scores[row, item] = bad
    with pytest.raises(TrainingError, match="2 of 13 rows"):
        average_ranks(scores, targets, rows, excluded, budget=300)


def test_large_finite_scores_are_finite() -> None:
    scores = torch.full((1, 3), 3e38)
    assert average_ranks(scores, torch.tensor([0]), torch.tensor([0])).tolist() == [2.0]


@pytest.mark.usefixtures("way")
def test_users_without_held_out_items_change_nothing() -> None:
    scores, targets, rows, excluded = catalogue(0)
    more = torch.cat((scores, torch.rand(100, scores.shape[1])))
    alone, among = (average_ranks(s, targets, rows, excluded) for s in (scores, more))
    assert torch.equal(alone, among)
    none = torch.empty(0, dtype=torch.int64)
    assert average_ranks(scores, none, none, excluded).shape == (0,)
    assert average_ranks(scores[:0], none, none).shape == (0,)


def test_wrong_indices_and_shapes_raise() -> None:
    scores, one, zero = torch.zeros(2, 3), torch.tensor([1]), torch.tensor([0])
    pair = torch.tensor([[0, 1]])
    with pytest.raises(ValueError, match="1 of 1 targets are also excluded"):
        average_ranks(scores, one, zero, pair)
    for targets, rows, gone in (
        (one + 2, zero, pair),
        (one, zero + 2, pair),
        (one, zero - 1, pair),
        (zero, zero, pair + 2),
    ):
        with pytest.raises(ValueError, match=r"outside scores \[2, 3\]"):
            average_ranks(scores, targets, rows, gone)
    with pytest.raises(ValueError, match=r"\[2, 3\], \[1\] and \[2\]"):
        average_ranks(scores, one, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"excluded must be \[E, 2\], not \[2\]"):
        average_ranks(scores, one, zero, pair[0])


def test_sums_are_double() -> None:
    many = torch.full((1 << 18,), 0.1, dtype=torch.float32)
    exact = float(np.float64(np.float32(0.1)))
    assert float(metric("mae")(many, torch.zeros(len(many)))) == pytest.approx(exact, rel=1e-14)
    one_user = torch.zeros(len(many), dtype=torch.int64)
    assert float(metric("mrr")(1 / many, one_user)) == pytest.approx(1 / float((1 / many[:1]).double()), rel=1e-14)


@given(st.integers(0, 10**6), st.integers(2, 60))
@settings(deadline=None, max_examples=40)
def test_rows_belong_together(seed: int, n: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    prediction, label = torch.rand(n, generator=draw), (torch.arange(n) % 2).double()
    order = torch.randperm(n, generator=draw)
    for name in ("mse", "rmse", "mae", "auc", "logloss"):
        whole = float(metric(name)(prediction, label))
        assert float(metric(name)(prediction[order], label[order])) == pytest.approx(whole, rel=1e-12)
    turned = float(metric("mse")(prediction.roll(1), label))
    assert turned != float(metric("mse")(prediction, label))


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 20), st.integers(1, 50), st.booleans())
@settings(deadline=None, max_examples=60)
def test_both_ways_give_the_same_ranks(seed: int, users: int, items: int, n: int, plain: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 6, (users, items), generator=draw).float()
    rows, targets = (torch.randint(0, top, (n,), generator=draw) for top in (users, items))
    with pytest.MonkeyPatch.context() as patch:
        if plain:
            patch.setattr(ranks, "_sweep_scores", ranks.plain_rank_scores)
        assert average_ranks(scores, targets, rows).tolist() == reference_ranks(scores, targets, rows, None)
