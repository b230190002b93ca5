import json
from dataclasses import replace
from typing import Any

import pytest

from polytask.errors import ConfigError
from polytask.schema import Condition, Field, Input, Schema, Task

WATCH = Task("watch", "ranking", head="dot")
STARS = Task("stars", "regression", label="rating", range=(1, 5))
LIKE = Task("like", "binary", positive="rating >= 4")
FULL = Schema(
    tasks=(WATCH, STARS, LIKE),
    fields=(Field("device"), Field("genre", side="item"), Field("age", "number", "user")),
    user="uid",
    item="sku",
    time="ts",
)


def message(make: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        make(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_follow_the_kind() -> None:
    assert [(t.loss, t.metrics[0]) for t in FULL.tasks] == [("bpr", "mrr"), ("mse", "mse"), ("bce", "auc")]
    assert Task("x", "ranking", loss="pairwise_sigmoid", metrics=["ndcg@5"]).metrics == ("ndcg@5",)  # type: ignore[arg-type]
    assert (STARS.range, STARS.column, LIKE.column, WATCH.column) == ((1.0, 5.0), "rating", "rating", None)


def test_inputs_stand_user_side_first_then_item_then_context() -> None:
    assert [(f.name, f.side) for f in FULL.inputs] == [
        ("uid", "user"), ("age", "user"), ("sku", "item"), ("genre", "item"), ("device", "context")
    ]  # fmt: skip
    assert Input("age", "number", "user", 1).size == 1
    assert Schema((LIKE,), (Field("device"),)).inputs == (Field("device"),)


def test_columns_are_those_of_the_interactions_each_once() -> None:
    assert FULL.columns == ("uid", "sku", "ts", "device", "rating")


@pytest.mark.parametrize("schema", [FULL, FULL.only("stars"), Schema((LIKE,), (Field("device"),))])
def test_a_schema_reads_back_from_plain_values(schema: Schema) -> None:
    assert Schema.from_dict(schema.to_dict()) == schema
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


def test_only_keeps_everything_but_the_other_tasks() -> None:
    alone = FULL.only("stars")
    assert alone.task_names == ("stars",) and alone.inputs == FULL.inputs
    assert FULL.only("like", "watch").tasks == (LIKE, WATCH)
    assert "Did you mean 'stars'" in message(FULL.only, "star")
    assert FULL.task("like") is LIKE


def test_only_drops_the_fields_of_other_tasks_bias_towers() -> None:
    click = Task("click", "binary", label="clicked", bias_fields=("position", "page"))
    buy = Task("buy", "binary", label="bought", given="click", bias_fields=("page",))
    fields = (Field("position"), Field("page"), Field("device"))
    schema = Schema((click, buy, STARS), fields)
    assert [f.name for f in schema.only("stars").fields] == ["device"]
    assert [f.name for f in schema.only("stars").inputs] == ["device"]  # else the body would read where it was shown
    assert schema.only("buy").fields == schema.only("click").fields == fields  # a conditional task keeps its condition
    alone = Schema((replace(buy, given=None), STARS), fields).only("stars")
    assert [f.name for f in alone.fields] == ["position", "device"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("rating >= 4", ("rating", ">=", 4.0)),
        ("  dwell>-1.5 ", ("dwell", ">", -1.5)),
        ("x==0", ("x", "==", 0.0)),
        ("x != 3", ("x", "!=", 3.0)),
        ("x<=2", ("x", "<=", 2.0)),
        ("x < 2", ("x", "<", 2.0)),
    ],
)
def test_a_condition_is_one_comparison(text: str, found: tuple[str, str, float]) -> None:
    assert Condition.parse(text) == Condition(*found)


@pytest.mark.parametrize(
    "text",
    ["", "rating", "rating >= four", "rating => 4", "4 <= rating", "a > 1 and b > 2", "x > 1; y", "x > 1e400", "x = 1"],
)
def test_anything_else_is_no_condition(text: str) -> None:
    assert "write column, operator, number" in message(Condition.parse, text)


def test_a_condition_is_checked_when_the_task_is_made() -> None:
    assert "positive = 'rating > four' is not understood" in message(Task, "like", "binary", positive="rating > four")


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (Field, {"name": "a", "kind": "categry"}, "field 'a': kind 'categry' is unknown. Did you mean 'category'"),
        (Field, {"name": "a", "side": "users"}, "field 'a': side 'users' is unknown. Did you mean 'user'"),
        (Task, {"name": "t", "kind": "rank"}, "task 't': kind 'rank' is unknown. Did you mean 'ranking'"),
        (Task, {"name": "t", "kind": "ranking", "head": "dots"}, "head 'dots' is unknown. Did you mean 'dot'"),
        (Task, {"name": "t", "kind": "binary"}, "a binary task needs label"),
        (Task, {"name": "t", "kind": "regression"}, "a regression task needs label"),
        (Task, {"name": "t", "kind": "ranking", "negatives": 0}, "negatives"),
        (Task, {"name": "t", "kind": "ranking", "weight": -1.0}, "weight"),
        (Task, {"name": "t", "kind": "ranking", "weight": float("nan")}, "weight"),
        (Schema, {"tasks": ()}, "no task"),
        (Schema, {"tasks": (LIKE, LIKE)}, "task 'like' is named twice"),
        (Schema, {"tasks": (LIKE,), "fields": (Field("a"), Field("a"))}, "field 'a' is named twice"),
        (Schema, {"tasks": (WATCH,), "user": "u"}, "a ranking task or dot head needs the user and item columns"),
        (Schema, {"tasks": (Task("s", "regression", label="r", head="dot"),), "item": "i"}, "dot head needs"),
        (Schema, {"tasks": (LIKE,), "fields": (Field("rating"),)}, "field 'rating' is also a label"),
        (Schema, {"tasks": (Task("s", "binary", label="u"),), "user": "u", "item": "i"}, "is also a label"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(make: Any, options: dict[str, Any], said: str) -> None:
    assert said in message(make, **options)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"tasks": [], "usr": "u"}, "schema: key 'usr' is unknown. Did you mean 'user'"),
        ({"tasks": [{"name": "a", "lable": "b"}]}, "task: key 'lable' is unknown. Did you mean 'label'"),
        ({"tasks": [{"kind": "binary", "label": "b"}]}, "task: "),
        ({"tasks": [], "fields": [{"nam": "x"}]}, "field: key 'nam' is unknown"),
        ({"fields": []}, "no task"),
    ],
)
def test_plain_values_are_checked_key_by_key(value: dict[str, Any], said: str) -> None:
    assert said in message(Schema.from_dict, value)


def test_reading_plain_values_leaves_them_as_they_are() -> None:
    value = FULL.to_dict()
    before = json.dumps(value)
    Schema.from_dict(value)
    assert json.dumps(value) == before
