from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import DOT, DOT_STARS, EACH, ITEMS, STARS, TOWER, bundle, rows, taste

from polytask.bundle import Bundle
from polytask.nn.history import HistoryModel
from polytask.recommend.cold import FoldIn
from polytask.recommend.query import Query
from polytask.schema import Field

PAST = Field("past", "history", length=5)
EVEN, ODD = [f"i{k:02}" for k in range(0, 10, 2)], [f"i{k:02}" for k in range(1, 11, 2)]


@pytest.fixture(scope="module")
def dot(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle(tmp_path_factory.mktemp("dot"), DOT, DOT_STARS, share="separate")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle(tmp_path_factory.mktemp("whole"), DOT, STARS, body="history", options=(("blend", 0.3),))


def grid(found: Bundle, user: int, *history: str) -> np.ndarray:
    return found.scorer.grid(found.recommender.person(user, history))[:, 0]


@pytest.mark.parametrize(
    ("task", "design"),
    [(DOT, {}), (DOT, {"share": "separate"}), (DOT, {"body": "shared_bottom"}), (TOWER, {}), (TOWER, {"body": "mmoe"})],
)
def test_somebody_new_is_taken_for_one_of_those_who_had_such_items(
    tmp_path: Path, task: object, design: dict[str, str]
) -> None:
    found = bundle(tmp_path, task, STARS, **design)  # type: ignore[arg-type]
    even, odd = (found.recommender.user_index(u) for u in ("u02", "u03"))
    for history, own, other in ((EVEN, even, odd), (ODD, odd, even)):
        new = grid(found, 0, *history)
        gaps = [np.abs(new - grid(found, user)).mean() for user in (own, other)]
        assert gaps[0] < gaps[1]


def test_with_vectors_the_best_items_are_those_of_the_taste(dot: Bundle) -> None:
    for history in (EVEN, ODD):
        best = dot.recommend(history=history, k=8)
        assert {taste(i) for i in best["item"]} == {taste(history[0])}


def test_rows_are_those_of_a_ridge_regression(dot: Bundle) -> None:
    fold = FoldIn(dot.scorer, dot.contents.seen, penalty=3.0)
    items, names = dot.scorer.item_embeddings().numpy().astype(float), list(fold._tables)
    sets = [dot.contents.seen.items(user) for user in range(1, 41)]
    pooled = np.array([items[s].sum(axis=0) / np.sqrt(len(s)) for s in sets])
    known = np.concatenate([t[1:41].numpy().astype(float) for t in fold._tables.values()], axis=1)
    width = pooled.shape[1]
    weak = np.sqrt(3.0 * np.square(pooled).mean())
    design = np.block([[pooled, np.ones((40, 1))], [weak * np.eye(width), np.zeros((width, 1))]])
    target = np.concatenate([known, np.zeros((width, known.shape[1]))])
    weights = np.linalg.lstsq(design, target, rcond=None)[0]
    two = torch.tensor([3, 7, 7, 1, 9])[[0, 1, 3, 4]]
    told = fold.predicted(two, torch.tensor([0, 1]))
    expected = np.stack([[*items[3], 1.0], [*items[[7, 1, 9]].sum(axis=0) / np.sqrt(3), 1.0]]) @ weights
    np.testing.assert_allclose(np.concatenate([told[n].numpy() for n in names], axis=1), expected, rtol=1e-4, atol=1e-5)


def test_all_tables_and_first_order_terms_are_folded_in(dot: Bundle) -> None:
    person = dot.recommender.person(0, EVEN)
    assert set(person.rows) == {f"tables.{n}.weight" for n in (0, 1)} | {f"heads.{n}.bias.weight" for n in (0, 1)}


def test_products_of_vectors_are_what_the_whole_model_says(dot: Bundle) -> None:
    for user in (0, 5):
        person = dot.recommender.person(user, ODD)
        pairs = dot.scorer.pairs(person, torch.arange(ITEMS + 1)).numpy().T
        np.testing.assert_allclose(dot.scorer.grid(person)[:, 0], pairs, rtol=1e-4, atol=1e-5)


@settings(max_examples=25)
@given(
    st.permutations(EVEN), st.lists(st.sampled_from([*EVEN, "nothing", ""]), max_size=4), st.sampled_from([None, "u01"])
)
def test_order_repeats_and_unknown_items_change_nothing(
    dot: Bundle, order: list[str], more: list[str], user: str | None
) -> None:
    plain, other = (dot.recommend(user, history=h, k=ITEMS) for h in (EVEN, [*more, *order]))
    assert plain.equals(other) or np.allclose(plain["score"], other["score"], atol=1e-6)


@pytest.mark.parametrize("history", [[], ["nothing", "known"]])
def test_without_a_known_item_the_user_is_unknown(dot: Bundle, history: list[str]) -> None:
    assert dot.recommend(history=history).equals(dot.recommend())
    assert dot.recommend("u01", history=history).equals(dot.recommend("u01"))


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_items_just_seen_are_not_recommended(dot: Bundle, whole: Bundle, exclude_seen: bool) -> None:
    for found in (dot, whole):
        for user in (None, "u03"):
            told = found.recommend(user, history=EVEN, k=ITEMS, exclude_seen=exclude_seen)
            had = EACH if user and exclude_seen else 0
            assert not set(told["item"]) & set(EVEN)
            assert len(told) == ITEMS - len(EVEN) - had


def test_a_known_user_moves_with_what_is_new_and_stays_with_what_is_not(dot: Bundle, whole: Bundle) -> None:
    for found in (dot, whole):
        user = found.recommender.user_index("u03")
        had = found.history("u03")["item"].to_list()
        np.testing.assert_allclose(grid(found, user, *had[:3]), grid(found, user), rtol=1e-4, atol=1e-5)
    own, moved = grid(dot, user)[0], grid(dot, user, *EVEN)[0]
    even = [dot.item(f"i{k:02}") for k in range(10, ITEMS, 2)]
    odd = [dot.item(f"i{k:02}") for k in range(11, ITEMS, 2)]
    assert (moved - own)[even].mean() > (moved - own)[odd].mean() + 0.1


@pytest.mark.parametrize("user", ["u03", None])
def test_history_fields_take_the_items_as_the_newest(tmp_path: Path, user: str | None) -> None:
    found = bundle(tmp_path, DOT, STARS, fields=[PAST])
    at, given_items = found.recommender.user_index(user), ["i02", "i05", "i02", "i01"]
    known = found.history("u03")["item"].to_list()[::-1] if user else []
    expected = [i for i in known if i not in given_items] + ["i05", "i02", "i01"]
    person = found.recommender.person(at, given_items)
    slots = [found.contents.encoder.raw("item", i) for i in person.side.ids[0, 1:].tolist() if i]
    assert slots == expected[-5:]
    np.testing.assert_allclose(person.side.numbers[0, 1:].sum(), 1.0, rtol=1e-6)


def test_beside_history_fields_few_items_move_the_row_less(tmp_path: Path) -> None:
    found = bundle(tmp_path, DOT, STARS, fields=[PAST])
    fold = FoldIn(found.scorer, found.contents.seen, few=6.0)
    whole = FoldIn(found.scorer, found.contents.seen, few=0.0)
    items, starts = torch.tensor([1, 4, 9, 2]), torch.tensor([0, 3])
    for name, row in fold.predicted(items, starts).items():
        unknown, full = found.contents.model.get_parameter(name)[:1], whole.predicted(items, starts)[name]
        share = torch.tensor([[3 / 9], [1 / 7]])
        torch.testing.assert_close(row, unknown + share * (full - unknown))


def test_a_model_of_histories_reads_them_as_the_items_of_a_user(whole: Bundle) -> None:
    model, items = whole.contents.model, torch.tensor([1, 4, 9])
    assert isinstance(model, HistoryModel)
    had = torch.zeros(1, ITEMS + 1).index_fill(1, items, 1.0)
    first = [torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1)]
    (member,) = model._each()
    vector = model.user_vectors("watch", *first, had=had)
    expected = 0.7 * member.by_user.seen[items].sum(dim=0) / 3**0.5
    torch.testing.assert_close(vector[0, : len(expected)], expected)
    assert torch.equal(vector[0, -ITEMS - 1 :], 0.3 * had[0])
    person = whole.recommender.person(0, [str(whole.contents.encoder.raw("item", i)) for i in items.tolist()])
    assert torch.equal(whole.scorer.user_vectors("watch", person), vector)


def test_a_model_of_histories_says_the_same_of_one_item_as_of_all(whole: Bundle) -> None:
    for user in (0, 4):
        person = whole.recommender.person(user, EVEN)
        pairs = whole.scorer.pairs(person, torch.arange(ITEMS + 1)).numpy().T
        np.testing.assert_allclose(whole.scorer.grid(person)[:, 0], pairs, rtol=1e-4, atol=1e-5)


def test_an_explanation_reads_the_history_too(dot: Bundle) -> None:
    query = Query(history=tuple(EVEN), k=ITEMS)
    top = dot.recommender.top(query)
    told = dot.recommender.explain(query, int(top.items[0]))
    assert told["score"] == pytest.approx(top.scores[0], rel=1e-5)
    assert [t["value"] for t in told["tasks"]] == pytest.approx(top.values[:, 0].tolist(), rel=1e-4)


def test_what_was_had_twice_counts_once(tmp_path: Path) -> None:
    frame = rows()
    once, twice = (bundle(tmp_path / str(n), DOT, frame=pl.concat([frame] * n)) for n in (1, 2))
    for user in (0, 4):
        np.testing.assert_allclose(grid(once, user, *EVEN), grid(twice, user, *EVEN), rtol=1e-4, atol=1e-5)


def test_only_users_with_a_past_teach_the_map(tmp_path: Path) -> None:
    frame = rows()
    found = bundle(tmp_path, DOT, frame=frame.filter(frame["user"] == "u01"))
    assert np.isfinite(grid(found, 0, "i01")).all()
