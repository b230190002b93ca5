"""Features named in one word: their kind, their table, and what a configuration makes of them."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from polytask.config import Config, parse
from polytask.data.features import inferred, kind_of, plain_schema
from polytask.data.table import Dataset, read_dataset
from polytask.errors import ConfigError, DataError
from polytask.schema import Field

MANY = range(100)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (list(MANY), "number"),
        ([k % 20 for k in MANY], "category"),
        ([k % 21 for k in MANY], "number"),
        ([None, *MANY], "number"),
        ([k / 7 for k in MANY], "number"),
        ([0.5, 1.5], "number"),  # a float is never told apart by name
        ([str(k) for k in MANY], "number"),
        ([f" {k / 7} " if k else "" for k in MANY], "number"),
        ([f"{-k}e-3" for k in MANY], "number"),
        ([str(k % 5) for k in MANY], "category"),
        ([f"0{k}" for k in MANY], "category"),  # 007 is a code
        ([f"0.{k}" for k in MANY], "number"),
        ([*map(str, MANY), "unknown"], "category"),
        ([f"v{k}" for k in MANY], "category"),
        ([True, False], "category"),
        ([None, None], "category"),
    ],
)
def test_the_kind_is_read_off_the_values(values: list[Any], kind: str) -> None:
    assert kind_of(pl.Series("x", values, strict=False)) == kind


def test_a_name_is_found_in_the_first_table_that_has_it_and_a_wrong_one_names_the_near_one() -> None:
    log, users = pl.DataFrame({"device": ["a"], "both": ["b"]}), pl.DataFrame({"age": MANY, "both": MANY})
    found = inferred(["device", "age", "both"], log, users, None)
    assert found == (Field("device"), Field("age", "number"), Field("both"))
    with pytest.raises(DataError, match=r"features: column 'devcie' is unknown. Did you mean 'device'\? Known: age, "):
        inferred(["devcie"], log, users)


TABLES = {
    "log.csv": ["uid,sku,ts,device,price,stars"] + [f"{k % 9},{k % 7},{k},d{k % 3},{k / 4},{k % 5}" for k in range(60)],
    "users.csv": ["uid,age,zip"] + [f"{k},{20 + k},0{k}" for k in range(30)],
    "items.csv": ["sku,brand"] + [f"{k},b{k % 2}" for k in range(7)],
}
TEXT = """
[data]
interactions = "log.csv"
users = "users.csv"
items = "items.csv"
user = "uid"
item = "sku"
features = FEATURES
[[task]]
name = "stars"
kind = "regression"
label = "stars"
"""


def loaded(folder: Path, features: str, more: str = "") -> Dataset:
    for name, lines in TABLES.items():
        (folder / name).write_text("\n".join([*lines, ""]), "utf-8")
    return parse(TEXT.replace("FEATURES", features) + more).load_data(folder)


def test_one_word_adds_a_column_of_any_table(tmp_path: Path) -> None:
    fields = loaded(tmp_path, '["device", "age", "zip", "brand", "price"]').schema.fields
    assert fields == (
        Field("device"),
        Field("age", "number", "user"),
        Field("zip", side="user"),
        Field("brand", side="item"),
        Field("price", "number"),
    )
    assert loaded(tmp_path, "[]").schema.fields == ()


def test_an_entry_of_its_own_wins(tmp_path: Path) -> None:
    own = '[[feature]]\nname = "price"\nkind = "number"\nscale = "quantile"\nbuckets = 4'
    fields = loaded(tmp_path, '["price", "device"]', own).schema.fields
    assert fields == (Field("price", "number", scale="quantile", buckets=4), Field("device"))


def test_ids_and_repeated_names_add_nothing_and_a_task_may_name_such_a_feature(tmp_path: Path) -> None:
    text = TEXT.replace("FEATURES", '["uid", "sku", "device", "device"]') + 'bias_fields = ["device"]'
    loaded(tmp_path, "[]")
    assert parse(text).load_data(tmp_path).schema.fields == (Field("device"),)


@pytest.mark.parametrize(
    ("features", "says"),
    [
        ('["devcie"]', "features: column 'devcie' is unknown. Did you mean 'device'?"),
        ('["brnd"]', "Did you mean 'brand'?"),
        ('["stars"]', "field 'stars' is also a label"),
        ('"device"', "data.features = 'device': input should be a valid list"),
    ],
)
def test_a_feature_that_cannot_be_read_is_one_line(tmp_path: Path, features: str, says: str) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        loaded(tmp_path, features)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_the_shorthand_survives_toml_and_can_be_set() -> None:
    config = parse(TEXT.replace("FEATURES", '["device"]'))
    assert parse(config.toml()).data.features == ["device"]
    assert config.with_overrides({"data.features": ["age", "zip"]}).data.features == ["age", "zip"]


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"task": [{"name": "y", "kind": "regression", "label": "ratng"}]}, "no column 'ratng' in synthetic."),
        ({"feature": [{"name": "color"}]}, "no column 'color' in synthetic."),
        ({"task": [{"name": "y", "kind": "binary", "label": "rating"}]}, "a binary label is 0 or 1"),
    ],
)
def test_a_built_in_data_set_is_read_against_the_schema_too(section: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError) as caught:
        Config.of({"data": {"interactions": "synthetic"}} | section).load_data()
    assert says in str(caught.value)


def test_features_of_a_built_in_data_set(movielens: Path) -> None:
    data: dict[str, Any] = {"interactions": "movielens-100k", "features": ["age", "gender", "year", "occupation"]}
    own = {"name": "genres", "kind": "categories", "side": "item"}
    found = Config.of({"data": data, "feature": [own]}).load_data()
    kinds = {f.name: (f.kind, f.side) for f in found.schema.fields}
    assert kinds == {
        "genres": ("categories", "item"),
        "age": ("number", "user"),
        "gender": ("category", "user"),
        "year": ("number", "item"),
        "occupation": ("category", "user"),
    }
    assert found.users is not None and found.users["age"].dtype == pl.Float64


def test_a_table_without_a_schema_is_read_whole() -> None:
    frame = pl.DataFrame(
        {
            "u": MANY,
            "i": MANY,
            "t": MANY,
            "click": ["0", " 1 ", ""] * 33 + [None],
            "stars": [1, 2] * 50,
            "price": [k / 3 for k in MANY],
            "device": ["a", "b"] * 50,
            "bag": [[1]] * 100,
            "day": pl.Series([0] * 100).cast(pl.Date),
        }
    )
    found = plain_schema(frame, "u", "i", "t", ["click", "stars", "nothing"])
    assert [(t.name, t.kind) for t in found.tasks][1:] == [
        ("click", "binary"),
        ("stars", "regression"),
        ("nothing", "regression"),  # which reading the table refuses, with the near names
    ]
    assert found.fields == (Field("price", "number"), Field("device"))
    assert read_dataset(frame, plain_schema(frame, "u", "i", "t", ["click"])).interactions["click"].max() == 1.0
