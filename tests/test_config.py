import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytask.balance import Balance
from polytask.compare import Setting
from polytask.config import Config, assignments, parse, read
from polytask.data.datasets import DATASETS
from polytask.errors import ConfigError
from polytask.nn.design import Design
from polytask.run import TrainConfig
from polytask.schema import Field, Task

TEXT = """
name = "both"
[data]
interactions = "log.csv"
items = "items.csv"
user = "uid"
item = "sku"
split = { kind = "per_user", valid = 0.1, test = 0.2 }
[[feature]]
name = "price"
kind = "number"
side = "item"
[[task]]
name = "click"
kind = "binary"
positive = "stars >= 4"
[[task]]
name = "stars"
kind = "regression"
label = "stars"
range = [1, 5]
weight = 0.5
metrics = ["mae"]
[model]
body = "shared_bottom"
dim = 8
tower = []
options = { layers = [16] }
[train]
epochs = 3
lr = 1e-2
[compare]
seeds = [4, 5]
baselines = false
[[setting]]
name = "one"
set = { "model.dim" = 4, "train.lr" = 0.5, "task.stars.weight" = 2 }
[[setting]]
name = "two [b]"
[variant.quick]
"train.epochs" = 1
"data.split.kind" = "random"
"task.click.weight" = 0.0
"""
CONFIG = parse(TEXT)
PLAIN = parse('[data]\ninteractions = "x"\n[[task]]\nname = "t"\nkind = "binary"\nlabel = "y"')
BUILT_IN = sorted(f.name for f in resources.files("polytask.experiments").iterdir() if f.name.endswith(".toml"))


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, "some.toml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_written_is_what_is_built() -> None:
    schema = CONFIG.schema_for()
    assert schema.tasks == (
        Task("click", "binary", positive="stars >= 4"),
        Task("stars", "regression", label="stars", range=(1, 5), weight=0.5, metrics=("mae",)),
    )
    assert schema.fields == (Field("price", "number", "item"),)
    assert (schema.user, schema.item, schema.time) == ("uid", "sku", None)
    assert CONFIG.design() == Design("shared_bottom", 8, "shared", (), True, (("layers", (16,)),))
    assert CONFIG.train_config() == TrainConfig(epochs=3, lr=0.01)


def test_defaults_are_those_of_the_objects() -> None:
    config = parse('[data]\ninteractions = "synthetic"')
    assert config.train_config() == TrainConfig() and config.design() == Design()
    found = config.load_data()
    assert found.schema.task_names == ("watch", "rating") and found.name == "synthetic"


def test_toml_reads_back_the_same() -> None:
    for config in (CONFIG, CONFIG.with_variant("quick"), CONFIG.with_overrides({"train.lr": 0.1}), PLAIN):
        again = parse(config.toml())
        assert again.model_dump() == config.model_dump()
        assert again.toml() == config.toml()
        assert again.schema_for() == config.schema_for()
        tasks = [t.name for t in config.task]
        assert again.experiment(tasks) == config.experiment(tasks)


@given(
    st.text(),
    st.floats(min_value=0, allow_infinity=False),
    st.dictionaries(st.text(), st.integers(-(2**63), 2**63 - 1)),
)
def test_any_name_and_value_survive_toml(name: str, weight: float, options: dict[str, int]) -> None:
    task = {"name": name, "kind": "regression", "label": name, "weight": weight}
    value = {"name": name, "data": {"interactions": name}, "task": [task], "model": {"options": options}}
    config = Config.of(value | {"setting": [{"name": name, "set": {"train.lr": weight}}]})
    assert parse(config.toml()).model_dump() == config.model_dump()


def test_overrides_reach_tables_and_named_lists() -> None:
    found = CONFIG.with_overrides(
        {"train.epochs": 7, "task.stars.weight": 0.25, "feature.price.kind": "category", "model.options.layers": [3]}
    )
    assert (found.train.epochs, found.task[1].weight, found.feature[0].kind) == (7, 0.25, "category")
    assert found.model.options == {"layers": [3]} and found.train.lr == 0.01
    assert CONFIG.train.epochs == 3 and CONFIG.task[1].weight == 0.5
    assert CONFIG.with_overrides({}).model_dump() == CONFIG.model_dump()
    assert parse('[data]\ninteractions = "x"').with_overrides({"train.epochs": 2}).train.epochs == 2


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("train.epoch", 3, "key 'epoch' is unknown. Did you mean 'epochs'?"),
        ("task.star.weight", 3, "task 'star' is unknown. Did you mean 'stars'? Known: click, stars"),
        ("task.stars", 3, "'task.stars' names no value; write task.NAME.KEY"),
        ("name.x", 3, "'name.x' does not exist: 'name' is a value, not a table"),
        ("train.lr", "high", "train.lr = 'high': input should be a valid number"),
        ("data.split.knd", "random", "key 'knd' is unknown. Did you mean 'kind'?"),
        ("nothing", 1, "key 'nothing' is unknown"),
        ("", 1, "key '' is unknown"),
    ],
)
def test_an_override_that_does_not_fit(key: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CONFIG.with_overrides({key: value})
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_variant_is_a_set_of_overrides() -> None:
    quick = CONFIG.with_variant("quick")
    assert (quick.train.epochs, quick.data.split.kind, quick.data.split.valid) == (1, "random", 0.1)
    assert [t.weight for t in quick.task] == [0.0, 0.5]
    with pytest.raises(ConfigError, match=r"variant 'quikc' is unknown. Did you mean 'quick'\?"):
        CONFIG.with_variant("quikc")
    with pytest.raises(ConfigError, match="no variant 'handout' here"):
        parse('[data]\ninteractions = "x"').with_variant("handout")


def test_assignments_are_toml_or_text() -> None:
    texts = ["train.epochs=5", "train.lr=1e-3", "model.body=factorize", 'name="a=b"', " model.dim = 4", "x=a=b", "y="]
    texts += ["model.tower=[8, 4]", "model.start_at_mean=false", "a={b = 1}"]
    assert assignments(texts) == {
        "train.epochs": 5,
        "train.lr": 1e-3,
        "model.body": "factorize",
        "name": "a=b",
        "model.dim": 4,
        "x": "a=b",
        "y": "",
        "model.tower": [8, 4],
        "model.start_at_mean": False,
        "a": {"b": 1},
    }
    assert assignments([]) == {}
    for text in ("train.epochs", "", "=3", " =3"):
        with pytest.raises(ConfigError, match=r"write it as key=value, as in train.epochs=5"):
            assignments([text])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "some.toml: data is missing"),
        ("[data]", "some.toml: data.interactions is missing"),
        ("[data", "some.toml: not valid TOML: "),
        ("a = 1\na = 2", "some.toml: not valid TOML: "),
        ('[data]\ninteractions = "x"\n[trian]', "key 'trian' is unknown. Did you mean 'train'?"),
        ('[data]\ninteractions = "x"\nusr = "u"', "key 'usr' is unknown. Did you mean 'user'?"),
        ('[data]\ninteractions = "x"\nsplit = { test = "a" }', "data.split.test = 'a': input should be a valid number"),
        ('[data]\ninteractions = "x"\nsplit = { tst = 1 }', "key 'tst' is unknown. Did you mean 'test'?"),
        (
            '[data]\ninteractions = 3\n[model]\ndim = "a"',
            "data.interactions = 3: input should be a valid string; model",
        ),
        ('[data]\ninteractions = "x"\n[[task]]\nname = "a"', "task.0.kind is missing"),
        ('[data]\ninteractions = "x"\n[[task]]\nnam = "a"', "key 'nam' is unknown. Did you mean 'name'?"),
        ('[data]\ninteractions = "x"\n[[setting]]\nset = 3', "setting.0.name is missing; setting.0.set = 3"),
        ('[data]\ninteractions = "x"\n[task]\nname = "a"', "task = {'name': 'a'}: input should be a valid list"),
    ],
)
def test_an_error_says_where(text: str, says: str) -> None:
    assert says in refused(text) and refused(text).startswith("some.toml: ")


def test_settings_become_an_experiment() -> None:
    found = CONFIG.experiment(["click", "stars"])
    assert (found.seeds, found.baselines, found.split, found.valid, found.test) == ((4, 5), False, "per_user", 0.1, 0.2)
    one, two = found.settings
    design = CONFIG.design()
    assert one == Setting("one", design._replace(dim=4), {"click": 1.0, "stars": 2.0}, TrainConfig(epochs=3, lr=0.5))
    assert two == Setting("two [b]", design, {"click": 1.0, "stars": 0.5}, TrainConfig(epochs=3, lr=0.01))
    alone = parse('name = "x"\n[data]\ninteractions = "synthetic"').experiment(["a"])
    assert alone.settings == (Setting("x", Design(), {"a": 1.0}, TrainConfig()),)


@pytest.mark.parametrize(
    "key", ["data.user", "data.split.kind", "task.stars.label", "task.stars.loss", "compare.seeds", "name", "train"]
)
def test_settings_differ_in_model_training_and_weights_alone(key: str) -> None:
    config = CONFIG.with_overrides({"setting": [{"name": "bad", "set": {key: 1}}]})
    only = "only model, train, balance and task weights"
    with pytest.raises(ConfigError, match=f"setting 'bad': '{key}' cannot differ; {only}"):
        config.experiment(["click", "stars"])


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_experiment_can_be_run(name: str) -> None:
    config, base = read(name.removesuffix(".toml"))
    assert base == Path() and config.data.interactions in DATASETS
    for each in (config, *(config.with_variant(v) for v in config.variant)):
        tasks = [t.name for t in each.task]
        found = each.experiment(tasks)
        assert [s.name for s in found.settings] == ([s.name for s in each.setting] or [each.name])
        assert all(set(s.weights) == set(tasks) for s in found.settings)


def test_read_finds_files_and_names_and_the_near_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TEXT, "utf-8")
    assert read(str(path)) == (CONFIG, tmp_path)
    path.with_suffix("").write_text(TEXT, "utf-8")
    assert read(str(path.with_suffix("")))[0] == CONFIG
    with pytest.raises(
        ConfigError, match=r"experiment 'cs33' is unknown. Did you mean 'cs330'\? .*path of a TOML file"
    ):
        read("cs33")
    with pytest.raises(ConfigError, match=r"cannot read .*other.toml: No such file"):
        read(str(tmp_path / "other.toml"))
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigError, match=r"cannot read .*mine.toml: it is not UTF-8 text"):
        read(str(path))


@pytest.mark.parametrize("folder", ["", "runs/a", "..", "deep/er/x"])
def test_moved_paths_lead_to_the_same_files(tmp_path: Path, folder: str) -> None:
    base = tmp_path / "project"
    (base / "deep").mkdir(parents=True)
    moved = CONFIG.moved(base, base / folder)
    for key in ("interactions", "items"):
        again = (base / folder / getattr(moved.data, key)).resolve()
        assert again == (base / getattr(CONFIG.data, key)).resolve()
    assert moved.data.users is None and moved.train == CONFIG.train


def test_names_and_absolute_paths_do_not_move(tmp_path: Path) -> None:
    value: dict[str, Any] = {"interactions": "synthetic", "items": str(tmp_path / "items.csv")}
    config = Config.of({"data": value})
    assert config.moved(tmp_path, tmp_path / "a").data == config.data


def test_paths_start_at_the_folder_of_the_configuration(tmp_path: Path) -> None:
    text = '[data]\ninteractions = "log.csv"\nuser = "u"\n[[task]]\nname = "t"\nkind = "regression"\nlabel = "y"'
    (tmp_path / "log.csv").write_text("u,y\na,1\nb,2\n", "utf-8")
    (tmp_path / "mine.toml").write_text(text, "utf-8")
    config, base = read(str(tmp_path / "mine.toml"))
    assert config.load_data(base).interactions["y"].to_list() == [1.0, 2.0]
    with pytest.raises(
        ConfigError, match=r"data set 'sinthetic' is unknown. Did you mean 'synthetic'\?.*a file's path"
    ):
        config.with_overrides({"data.interactions": "sinthetic"}).load_data(base)


def test_values_are_json() -> None:
    assert json.loads(json.dumps(CONFIG.model_dump(mode="json")))["task"][1]["range"] == [1.0, 5.0]


def crossed(*names: Sequence[str], overrides: Mapping[str, Any] = MappingProxyType({})) -> tuple[Setting, ...]:
    return CONFIG.with_overrides(dict(overrides)).crossed(*names).experiment(["click", "stars"]).settings


def test_every_setting_is_crossed_with_every_balance() -> None:
    found = crossed((), ["fixed", "pcgrad"])
    assert [s.name for s in found] == ["one fixed", "one pcgrad", "two [b] fixed", "two [b] pcgrad"]
    assert [s.train.balance.kind for s in found] == ["fixed", "pcgrad"] * 2
    assert [s.design.dim for s in found] == [4, 4, 8, 8]


def test_a_body_is_a_listed_setting_or_a_body_with_its_defaults() -> None:
    one, mmoe = crossed(["one", "mmoe"], [])
    assert (one.name, one.design.dim) == ("one", 4)
    assert (mmoe.design.body, mmoe.design.options) == ("mmoe", ())


def test_a_body_of_shared_and_own_tables_gets_them_and_the_own_body_keeps_its_options() -> None:
    stem, own = crossed(["stem", "shared_bottom"], [])
    assert stem.design.share == "both" and stem.design.checked()
    assert own.design == CONFIG.design()


def test_static_is_a_sweep_over_fixed_weights() -> None:
    found = crossed(["one"], ["static"])
    assert len(found) == 7 and {s.sweep for s in found} == {"one static"}
    assert found[0].weights == {"click": 0.01, "stars": 0.99} and found[0].name == "one static 0.01/0.99"
    assert {s.train.balance for s in found} == {Balance()}


def test_options_stay_with_their_kind_and_where_gradients_are_read_with_those_that_read_them() -> None:
    given = {"balance": {"kind": "pcgrad", "options": {"order": "fixed"}, "at": "tables", "every": 2}}
    pcgrad, mgda, dwa = (s.train.balance for s in crossed(["one"], ["pcgrad", "mgda", "dwa"], overrides=given))
    assert pcgrad == Balance("pcgrad", {"order": "fixed"}, "tables", 2)
    assert mgda == Balance("mgda", at="tables", every=2) and dwa == Balance("dwa")


def test_a_setting_that_shares_nothing_is_not_balanced() -> None:
    found = crossed((), ["pcgrad"], overrides={"model.share": "separate"})
    assert [(s.name, s.train.balance.kind) for s in found] == [("one", "fixed"), ("two [b]", "fixed")]


def test_an_unknown_balance_is_told_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match=r"balance 'pcgrd' is unknown\. Did you mean 'pcgrad'"):
        crossed((), ["pcgrd"])
