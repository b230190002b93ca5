"""Exported files, run by onnxruntime and PyTorch alone: what they are given, what they say, what is refused."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import polars as pl
import pytest
import torch
from made_up_bundles import CONTEXT, DOT, GENRES, LIKE, PAST, SECONDS, SHARE, STARS, WATCH, dataset, made_up

from polytask.bundle import Bundle
from polytask.data.table import Dataset
from polytask.errors import ConfigError, StateError
from polytask.export import export
from polytask.export.check import check
from polytask.export.inputs import ITEM, USER
from polytask.export.program import trace
from polytask.export.served import Served
from polytask.files import verify_folder
from polytask.nn.design import Design
from polytask.schema import Field, Task

ISOTONIC = {"kind": "isotonic", "predictions": [0.2, 0.4, 0.45, 0.7], "values": [0.1, 0.1, 0.5, 0.9]}
PLATT = {"kind": "platt", "slope": 1.5, "shift": -0.5}


def session(folder: Path) -> Any:
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    """A bundle with every kind of field, calibrated, and its export."""
    folder = tmp_path_factory.mktemp("mixed")
    bundle = made_up(
        folder / "bundle", fields=(GENRES, PAST, *CONTEXT), calibration={"like": ISOTONIC}, mix="watch * like * stars"
    )
    export(bundle, folder / "out", ("onnx", "pt2"))
    return bundle, folder / "out"


def test_the_folder_says_what_it_holds(mixed: tuple[Bundle, Path]) -> None:
    bundle, folder = mixed
    assert set(verify_folder(folder)["files"]) == {"export.json", "model.onnx", "model.pt2", "vocabulary.parquet"}
    facts, run = json.loads((folder / "export.json").read_text("utf-8")), session(folder)
    assert (facts["version"], facts["mix"]) == (bundle.version, bundle.mix.text)
    shown = [(i.name, i.type, i.shape) for i in [*run.get_inputs(), *run.get_outputs()]]
    types = {"int64": "tensor(int64)", "float64": "tensor(double)", "float32": "tensor(float)"}
    assert shown == [(one["name"], types[one["dtype"]], one["shape"]) for one in facts["inputs"] + facts["outputs"]]
    assert [one["name"] for one in facts["inputs"]] == [USER, ITEM, *(f.name for f in CONTEXT)]
    for name in ("onnx", "pt2"):
        found = facts[name]["checked"]
        assert found["difference"] <= 1e-5 and found["rows"] == 1048
        assert found["users"] == found["identical"] == 13 and found["items"] == 28
    assert run.get_modelmeta().custom_metadata_map == {"polytask.bundle": bundle.version}


def test_rows_by_the_vocabulary_alone_give_the_bundle_s_predictions(mixed: tuple[Bundle, Path]) -> None:
    bundle, folder = mixed
    table = pl.read_parquet(folder / "vocabulary.parquet")
    index = {(i, v): n for i, v, n in table.rows()}
    rows = pl.DataFrame(
        {
            "user": ["u3", "nobody", "u1"],
            "item": ["i2", "i4", "nothing"],
            "device": ["d1", None, "d9"],
            "tags": ["t2|t5", None, "t1"],
            "price": [7.5, None, -3.0],
            "delay": [-900.0, 12.0, None],
            "hour": [23.0, None, 4.0],
            "place": ["x1", "x2", None],
        }
    )
    given = {
        USER: np.array([index["user_index", "u3"], 0, index["user_index", "u1"]]),
        ITEM: np.array([index["item_index", "i2"], index["item_index", "i4"], 10**6]),
        "device": np.array([index["device", "d1"], 0, 0]),
        "page": np.zeros(3, dtype=np.int64),
        "tags": np.array([[index["tags", "t2"], index["tags", "t5"], 0], [0, 0, 0], [index["tags", "t1"], 0, 0]]),
        "place": np.array([index["place", "x1"], index["place", "x2"], -1]),
    }
    given |= {n: rows[n].fill_null(float("nan")).to_numpy(writable=True) for n in ("price", "delay", "hour")}
    order = [one.name for one in session(folder).get_inputs()]
    program = torch.export.load(folder / "model.pt2").module()
    for found in (
        session(folder).run(list(bundle.tasks), given),
        [v.numpy() for v in program(*(torch.from_numpy(given[n]) for n in order))],
    ):
        expected = bundle.score(rows)
        for task, values in zip(bundle.tasks, found, strict=True):
            assert np.allclose(values, expected[task], rtol=1e-5, atol=1e-6)


def test_onnxruntime_recommends_what_the_bundle_recommends_to_every_user(mixed: tuple[Bundle, Path]) -> None:
    bundle, folder = mixed
    run = session(folder)
    table = pl.read_parquet(folder / "vocabulary.parquet")
    users, items = (table.filter(pl.col("input") == name) for name in (USER, ITEM))
    count = len(items)
    given = {USER: np.zeros(count, dtype=np.int64), ITEM: items["index"].to_numpy()}
    for one in run.get_inputs()[2:]:
        shape = (count, 3) if one.name == "tags" else (count,)
        given[one.name] = np.full(shape, np.nan) if "double" in one.type else np.zeros(shape, dtype=np.int64)
    for user, index in users.select("value", "index").rows():
        watch, stars, like = (v.astype(float) for v in run.run(None, given | {USER: np.full(count, index)}))
        score = np.logaddexp(0, watch) * like * stars
        had = bundle.history(user)["item"]
        best = items.with_columns(score=score).filter(~pl.col("value").is_in(had.implode())).sort(-pl.col("score"))
        assert best["value"][:10].to_list() == bundle.recommend(user)["item"].to_list()


ARCHITECTURES: Mapping[str, tuple[tuple[Task, ...], tuple[Field, ...], Design, dict[str, Any]]] = {
    "history": ((DOT, STARS), (GENRES,), Design("history", 4, options=Design.frozen({"blend": 0.3})), {}),
    "separate": (
        (replace(WATCH, head="dot"), LIKE, SHARE, SECONDS),
        (PAST,),
        Design("shared_bottom", 4, "separate", (4,)),
        {"share": PLATT},
    ),
    "both": ((STARS, LIKE), (GENRES,), Design("stem", 4, "both", (4,)), {}),
    "sequential": ((LIKE,), (replace(PAST, length=2, pool="attention"),), Design("mose", 4), {"like": PLATT}),
}


@pytest.mark.parametrize(
    ("name", "kind"), [("history", "onnx"), ("separate", "onnx"), ("both", "pt2"), ("sequential", "pt2")]
)
def test_other_architectures_are_exported_too(tmp_path: Path, name: str, kind: str) -> None:
    tasks, fields, design, calibration = ARCHITECTURES[name]
    bundle = made_up(tmp_path / "bundle", tasks, fields, design=design, calibration=calibration)
    facts = export(bundle, tmp_path / "out", (kind,))
    assert facts[kind]["checked"]["difference"] <= 1e-5
    assert facts[kind]["checked"]["identical"] == 13
    assert [o["name"] for o in facts["outputs"]] == [t.name for t in tasks]


@pytest.mark.parametrize(
    ("data", "users"),
    [
        (dataset((WATCH, STARS), (PAST,), timed=False), 13),
        (dataset((SECONDS,), (Field("duration", "number", side="item"),)), 13),
        (dataset((STARS, replace(LIKE, bias_fields=("place",)), SECONDS), CONTEXT, ids=False), 0),
    ],
    ids=["histories that are sets", "a second column that is a field", "rows without ids"],
)
def test_the_module_says_what_the_bundle_says(tmp_path: Path, data: Dataset, users: int) -> None:
    bundle = made_up(tmp_path / "bundle", data=data)
    found = check("module", bundle, eager(bundle))
    assert (found.difference, found.users, found.identical) == (pytest.approx(0, abs=1e-6), users, users)


def eager(bundle: Bundle) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    module = Served(bundle).eval()
    return lambda given: [v.numpy() for v in module(*(torch.from_numpy(v) for v in given.values()))]


def nudged(given: dict[str, np.ndarray], found: list[np.ndarray]) -> list[np.ndarray]:
    return [found[0] + 3e-5 * (given[USER] == 4), *found[1:]]


def not_a_number(given: dict[str, np.ndarray], found: list[np.ndarray]) -> list[np.ndarray]:
    return [np.where(given[USER] == 4, np.nan, found[0]), *found[1:]]


def one_for_all(given: dict[str, np.ndarray], found: list[np.ndarray]) -> list[np.ndarray]:
    return [found[0][:1], *found[1:]]


def of_the_first(given: dict[str, np.ndarray], found: list[np.ndarray]) -> list[np.ndarray]:
    return [np.full_like(v, v[0]) if len(v) == 7 else v for v in found]


def other_lists(given: dict[str, np.ndarray], found: list[np.ndarray]) -> list[np.ndarray]:
    return [v[::-1] if len(v) == 28 else v for v in found]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (nudged, "more than 1e-05 apart"),
        (not_a_number, "says nan where"),
        (one_for_all, "predictions of 'watch' for"),
        (of_the_first, "more than 1e-05 apart"),
        (other_lists, "recommends other items"),
    ],
)
def test_what_differs_from_the_model_is_refused(
    tmp_path: Path, change: Callable[[dict[str, np.ndarray], list[np.ndarray]], list[np.ndarray]], says: str
) -> None:
    bundle = made_up(tmp_path / "bundle")
    run = eager(bundle)
    assert check("a file", bundle, run).identical == 13
    with pytest.raises(StateError, match=says):
        check("a file", bundle, lambda given: change(given, run(given)))


def test_items_that_tie_may_change_places_and_are_counted(tmp_path: Path) -> None:
    level = {"kind": "isotonic", "predictions": [0.5], "values": [0.5]}
    bundle = made_up(tmp_path / "bundle", calibration={"like": level}, mix="like")
    run, draw = eager(bundle), np.random.default_rng(0)

    def rounded(given: dict[str, np.ndarray]) -> list[np.ndarray]:
        *others, like = run(given)
        return [*others, like + draw.choice(np.float32([0, 2e-7]), len(like))]

    found = check("a file", bundle, rounded)
    assert found.identical < found.users == 13 and 0 < found.difference < 1e-6


def test_a_perturbed_model_leaves_nothing_and_an_earlier_export_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = made_up(tmp_path / "bundle")

    def traced(module: Served) -> Any:
        with torch.no_grad():
            next(module.parameters())[5] += 1e-3
        return trace(module)

    export(bundle, tmp_path / "earlier", ("vectors",))
    before = (tmp_path / "earlier" / "export.json").read_bytes()
    # the module shares its parameters with the bundle, whose model must stay as it is
    monkeypatch.setattr("polytask.export.folder.Served", lambda b: Served(Bundle.load(tmp_path / "bundle")))
    monkeypatch.setattr("polytask.export.folder.trace", traced)
    for name in ("new", "earlier"):
        with pytest.raises(StateError, match=r"model\.pt2 says"):
            export(bundle, tmp_path / name, ("pt2",))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "earlier"]
    assert (tmp_path / "earlier" / "export.json").read_bytes() == before


class Odd:
    """A calibration that looks at values, which no traced program can."""

    def apply(self, prediction: torch.Tensor) -> torch.Tensor:
        return prediction if float(prediction.detach().sum()) > 0 else prediction / 2


def test_a_model_that_cannot_be_traced_is_refused_in_one_line(tmp_path: Path) -> None:
    bundle = made_up(tmp_path / "bundle")
    odd: Any = Odd()
    with pytest.raises(ConfigError, match=r"torch\.export cannot write this model down: .+") as refused:
        export(replace(bundle, contents=replace(bundle.contents, calibration={"like": odd})), tmp_path / "out", ["pt2"])
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    bundle = made_up(tmp_path / "bundle")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf'{package} is missing; pip install "polytask\[export\]"'):
        export(bundle, tmp_path / "out", ("onnx",))
    assert not (tmp_path / "out").exists()


def test_wrong_requests_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    bundle = made_up(tmp_path / "bundle")
    with pytest.raises(ConfigError, match="Did you mean 'onnx'"):
        export(bundle, tmp_path / "out", ("onxx",))
    with pytest.raises(ConfigError, match="at least one format"):
        export(bundle, tmp_path / "out", ())
    kept = tmp_path / "mine" / "thesis.txt"
    kept.parent.mkdir()
    kept.write_text("years of work", "utf-8")
    with pytest.raises(StateError, match=r"'thesis\.txt', which would be lost"):
        export(bundle, kept.parent, ("vectors",))
    assert kept.read_text("utf-8") == "years of work"
    twice = made_up(tmp_path / "twice", (replace(STARS, name="price"),), (CONTEXT[3],))
    with pytest.raises(ConfigError, match="'price' would name two things"):
        export(twice, tmp_path / "out", ("pt2",))
    assert not (tmp_path / "out").exists()
