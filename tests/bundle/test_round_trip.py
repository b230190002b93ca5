"""A bundle that was written and read gives the very numbers of the model it was made from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from shipped import BUY, CLICK, DOT, FIELDS, PAST, STARS, WATCH, cut, finished, rows_of, scores, shipped

from polytask.bundle import Bundle
from polytask.calibration import Isotonic, Platt
from polytask.data.batch import Batch
from polytask.data.split import split
from polytask.data.table import read_dataset
from polytask.errors import ConfigError, StateError
from polytask.evaluate import predict
from polytask.loss import LOSSES
from polytask.nn.bodies import BODIES
from polytask.recommend.query import Query
from polytask.schema import Field, Schema, Task

TOWERS = (WATCH, STARS, CLICK, BUY)
OPTIONS: dict[str, dict[str, Any]] = {
    "adatt": {"shared_experts": 2, "layers": (5, 4)},
    "home": {"groups": [["watch", "stars"]], "layers": (4,)},
    "mmoe": {"levels": 2, "layers": (5,)},
    "ple": {"experts": 1, "layers": (5, 4)},
    "stem": {"experts": 2, "layers": (5,)},
}
BOTH = [name for name, body in BODIES.items() if getattr(body, "both", False)]


def test_some_bodies_read_tables_of_both_kinds() -> None:
    assert BOTH == ["stem"]


@pytest.mark.parametrize(
    ("body", "share"),
    [(b, s) for b in BODIES for s in (["both"] if b in BOTH else ["shared", "separate"])],
)
def test_scores_of_every_body_are_bit_equal(tmp_path: Path, body: str, share: str) -> None:
    heads = TOWERS if share == "both" else (replace(WATCH, head="dot", bias=share == "shared"), *TOWERS[1:])
    sequential = getattr(BODIES[body], "sequential", False)  # its history is exact where it is a set
    parts = cut(heads, *FIELDS, PAST, time=False, test=0.0) if sequential else cut(heads, *FIELDS)
    run = finished(parts, body=body, share=share, options=tuple(sorted(OPTIONS.get(body, {}).items())))
    found = shipped(run, tmp_path / "bundle")
    for part in run.sources.values():
        assert run.model is not None
        assert torch.equal(scores(found, rows_of(part)), predict(run.model, part))


def of_loss(name: str) -> tuple[Task, ...]:
    """Tasks of which the last has the loss."""
    entry = LOSSES[name]
    kind = entry.tasks[0]
    if kind == "ranking":
        return STARS, Task("it", kind, head="dot" if entry.kind in ("in_batch", "catalogue") else "tower", loss=name)
    if entry.given:
        return CLICK, Task("it", kind, label="bought", given="click", loss=name)
    label = "clicked" if kind == "binary" else "seconds"
    return WATCH, Task("it", kind, label=label, loss=name, by="length" if entry.by else None)


@pytest.mark.parametrize("name", LOSSES)
def test_scores_of_every_loss_are_bit_equal(tmp_path: Path, name: str) -> None:
    parts = cut(of_loss(name), Field("device"))
    run = finished(parts)
    found = shipped(run, tmp_path / "bundle")
    assert parts.test is not None and run.model is not None
    assert torch.equal(scores(found, rows_of(parts.test)), predict(run.model, parts.test))


def test_a_dot_head_that_predicts_ratings_is_bit_equal_and_lists_agree_with_it(tmp_path: Path) -> None:
    parts = cut((DOT, replace(STARS, head="dot")), *FIELDS[2:5])
    run = finished(parts, body="factorize")
    found = shipped(run, tmp_path / "bundle")
    assert parts.test is not None and run.model is not None
    assert torch.equal(scores(found, rows_of(parts.test)), predict(run.model, parts.test))
    lists = found.recommend("u3", 20)
    again = found.score(lists.select("user", "item"))
    for task in found.tasks:
        assert lists[task].to_numpy() == pytest.approx(again[task].to_numpy(), abs=1e-5)


@pytest.mark.parametrize("kind", [Platt(1.5, -0.3), Isotonic((0.2, 0.4, 0.6), (0.1, 0.5, 0.5))])
def test_calibrated_probabilities_are_bit_equal_and_lists_hold_them(tmp_path: Path, kind: Platt | Isotonic) -> None:
    parts = cut((WATCH, CLICK))
    run = finished(parts, calibration={"click": kind})
    found = shipped(run, tmp_path / "bundle")
    assert parts.test is not None and run.model is not None
    plain = predict(run.model, parts.test)
    assert torch.equal(scores(found, rows_of(parts.test))[:, 1], kind.apply(plain[:, 1]))
    lists = found.recommend("u3", 20)
    again = found.score(lists.select("user", "item"))
    assert lists["click"].to_numpy() == pytest.approx(again["click"].to_numpy(), abs=1e-6)


@pytest.mark.parametrize("share", ["shared", "separate"])
def test_blocks_and_bias_towers_are_bit_equal(tmp_path: Path, share: str) -> None:
    parts = cut((WATCH, replace(CLICK, bias_fields=("place",))), *FIELDS, Field("place"))
    blocks = (("cross", (("layers", 2),)), ("mlp", (("layers", (7,)),)))
    run = finished(parts, share=share, blocks=blocks, dropout=0.2)
    found = shipped(run, tmp_path / "bundle")
    assert parts.test is not None and run.model is not None
    assert torch.equal(scores(found, rows_of(parts.test)), predict(run.model, parts.test))
    assert [f["name"] for f in found.contents.facts["context"]] == ["device", "hour", "tags"]


@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_histories_that_are_sets_are_bit_equal_on_the_rows_they_were_made_of(tmp_path: Path, pool: Any) -> None:
    parts = cut((WATCH, STARS), replace(PAST, pool=pool), time=False, test=0.0)
    run = finished(parts)
    found = shipped(run, tmp_path / "bundle")
    assert run.model is not None
    assert torch.equal(scores(found, rows_of(parts.train)), predict(run.model, parts.train))


def test_histories_with_times_are_all_that_is_known_as_no_row_to_come_lies_before_them(tmp_path: Path) -> None:
    parts = cut((replace(WATCH, head="dot"), STARS), PAST, test=0.0)
    run = finished(parts)
    found, frame = shipped(run, tmp_path / "bundle"), rows_of(parts.train)
    assert run.model is not None
    with torch.no_grad():
        now = run.model.eval().values(Batch.bare(*parts.train.fields(parts.train.user, parts.train.item, None)))
    assert torch.equal(scores(found, frame), now)
    then = predict(run.model, parts.train)
    assert not torch.equal(now, then)


HISTORY = {"members": 2, "blend": 0.3, "linear": 20.0}


@pytest.mark.parametrize("tasks", [(DOT, STARS), (DOT,), (STARS,)])
def test_a_model_of_whole_histories_is_bit_equal(tmp_path: Path, tasks: tuple[Task, ...]) -> None:
    parts = cut(tasks, *FIELDS[:5])
    run = finished(parts, body="history", options=tuple(sorted(HISTORY.items())))
    found = shipped(run, tmp_path / "bundle")
    assert parts.test is not None and run.model is not None
    assert torch.equal(scores(found, rows_of(parts.test)), predict(run.model, parts.test))
    assert found.recommend("u1", 5).height == 5


@pytest.mark.parametrize("head", ["dot", "tower"])
def test_a_thousand_pairs_the_first_the_last_and_the_unknown_are_bit_equal(tmp_path: Path, head: Any) -> None:
    parts = cut((replace(WATCH, head=head), STARS), *FIELDS)
    run = finished(parts)
    found, encoder = shipped(run, tmp_path / "bundle"), parts.train.encoder
    draw = torch.Generator().manual_seed(0)
    user, item = (
        torch.cat([torch.randint(0, n, (1000,), generator=draw), torch.tensor([0, 1, n - 1])])
        for n in (len(encoder.vocabularies["user"]) + 1, len(encoder.vocabularies["item"]) + 1)
    )
    assert run.model is not None
    with torch.no_grad():
        told = run.model.eval().values(Batch.bare(*parts.train.fields(user, item, None)))
    names = {"user": user.tolist(), "item": item.tolist()}
    frame = pl.DataFrame({n: [encoder.raw(n, k) or "nobody" for k in at] for n, at in names.items()})
    assert torch.equal(scores(found, frame), told)


def test_an_unknown_user_is_cold_and_nobody_who_is_known(tmp_path: Path) -> None:
    found = shipped(finished(cut((DOT, STARS), *FIELDS)), tmp_path / "bundle")
    unknown = found.recommender.top(Query("nobody", k=25))
    assert unknown.cold and not found.recommender.top(Query("u1")).cold
    assert found.recommend("nobody", 25).drop("user").equals(found.recommend(None, 25).drop("user"))
    for user in found.contents.encoder.vocabularies["user"]:
        known = found.recommender.top(Query(user, k=25, exclude_seen=False))
        assert sorted(known.values[0]) != sorted(unknown.values[0])


def test_only_trained_tasks_are_answered(tmp_path: Path) -> None:
    parts = cut((WATCH, STARS, CLICK))
    run = finished(parts, weights={"watch": 1.0, "stars": 0.0, "click": 1.0})
    found = shipped(run, tmp_path / "bundle")
    assert parts.test is not None and run.model is not None
    assert found.tasks == ("watch", "click")
    assert torch.equal(scores(found, rows_of(parts.test)), predict(run.model, parts.test)[:, [0, 2]])


def test_rows_without_users_or_items_are_scored_and_nothing_is_listed(tmp_path: Path) -> None:
    frame = pl.DataFrame({"x": [0.5, None, 2.0, 1.5] * 10, "kind": ["a", "b", "c", None] * 10, "y": range(40)})
    schema = Schema((Task("y", "regression", label="y"),), (Field("x", "number"), Field("kind")))
    parts = split(read_dataset(frame, schema), "random", valid=0, test=0.3)
    run = finished(parts)
    found = shipped(run, tmp_path / "bundle")
    assert parts.test is not None and run.model is not None
    assert torch.equal(scores(found, rows_of(parts.test)), predict(run.model, parts.test))
    for ask in (lambda: found.recommend("1"), lambda: found.similar("1"), lambda: found.history("1")):
        with pytest.raises(ConfigError, match="knows no users and items"):
            ask()
    with pytest.raises(ConfigError, match="side 'item' is unknown"):
        found.search("item")


def test_of_no_rows_there_are_no_scores(tmp_path: Path) -> None:
    found = shipped(finished(cut((WATCH, STARS), *FIELDS)), tmp_path / "bundle")
    assert found.score(pl.DataFrame({"user": [], "item": []}, schema={"user": pl.String, "item": pl.String})).shape == (
        0,
        4,
    )


def test_ids_may_be_whole_numbers_and_unknown_ones_are_judged_by_their_features(tmp_path: Path) -> None:
    found = shipped(finished(cut((WATCH, STARS), *FIELDS)), tmp_path / "bundle")
    known = pl.DataFrame({"user": ["u1"], "item": ["i1"]})
    new = known.with_columns(item=pl.lit("new"))
    plain, told = scores(found, new), scores(found, new.with_columns(genre=pl.lit("x|y"), price=pl.lit(3)))
    assert not torch.equal(plain, told) and not torch.equal(plain, scores(found, known))
    # what is told of a known item changes nothing: its own row of the table counts
    assert torch.equal(scores(found, known), scores(found, known.with_columns(genre=pl.lit("z"))))
    assert torch.equal(scores(found, new), scores(found, new.with_columns(item=pl.lit(7))))


def test_a_missing_second_column_is_that_of_the_item(tmp_path: Path) -> None:
    parts = cut((Task("watched", "regression", label="seconds", loss="d2q", by="length"),))
    found = shipped(finished(parts), tmp_path / "bundle")
    frame = rows_of(parts.train)
    typical = dict(frame.group_by("item").agg(pl.col("length").median()).iter_rows())
    row = frame.filter(pl.col("item") == "i3")[:1].select("user", "item")
    told = row.with_columns(length=pl.lit(typical["i3"]))
    assert torch.equal(scores(found, row), scores(found, told))
    assert torch.equal(scores(found, row.with_columns(length=pl.lit(None, pl.Float64))), scores(found, told))


def test_lists_are_the_same_when_read_again_and_version_and_files_follow_the_content(tmp_path: Path) -> None:
    run = finished(cut((DOT, STARS), *FIELDS, valid=0.2))
    first, second = (shipped(run, tmp_path / n) for n in ("a", "b"))
    users = [f"u{k}" for k in range(15)]
    assert first.recommend(users=users, k=7).equals(second.recommend(users=users, k=7))
    assert first.version == Bundle.load(tmp_path / "a").version
    other = shipped(replace(run, name="other"), tmp_path / "b")
    assert other.version != first.version and other.name == "other"


def test_a_folder_with_brackets_and_stars_in_its_name_is_a_folder(tmp_path: Path) -> None:
    run = finished(cut((DOT, STARS), *FIELDS))
    assert shipped(run, tmp_path / "a=1" / "[b]*? {c}").recommend("u1", 3).height == 3


def test_only_a_bundle_or_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    run, folder = finished(cut((DOT,))), tmp_path / "precious"
    folder.mkdir()
    Bundle.save(folder, run)
    Bundle.save(folder, run)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    for path in (other, other / "thesis.txt"):
        with pytest.raises(StateError, match="would be lost; name a new folder"):
            Bundle.save(path, run)
    assert (other / "thesis.txt").read_text() == "years of work"


def test_a_task_may_bear_the_name_of_a_column_of_the_lists(tmp_path: Path) -> None:
    parts = cut((replace(DOT, name="score"), replace(STARS, name="rank"), replace(CLICK, name="user")))
    found = shipped(finished(parts), tmp_path / "bundle")
    lists = found.recommend("u1", 3)
    assert lists.columns == ["user", "item", "score", "rank", "task/score", "task/rank", "task/user"]
    assert found.score(lists.select("user", "item")).columns == ["user", "item", "score", "rank", "task/user"]


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    run = finished(cut((DOT, STARS), valid=0.2))
    assert run.model is not None
    run.model.train()
    Bundle.save(tmp_path / "bundle", run)
    assert run.model.training
    with pytest.raises(ConfigError, match="has no model in memory"):
        Bundle.save(tmp_path / "bundle", replace(run, model=None))
