"""A user's own data, from files and frames to scores, and faults that such tools are known for."""

import csv
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import polytask as pt
from polytask import cli
from polytask.data.batch import Batch, Part

DRAW = np.random.default_rng(5)
ROWS, USERS, ITEMS = 600, 25, 20
TASKS = (pt.Task("click", "binary", label="clicked"), pt.Task("stars", "regression", label="stars", range=(1, 5)))

TOML = """
name = "mine"
[data]
interactions = "log.csv"
user = "uid"
item = "sku"
time = "ts"
features = ["device"]
split = { kind = "temporal", valid = 0.2, test = 0.2 }
[[task]]
name = "click"
kind = "binary"
label = "clicked"
[[task]]
name = "stars"
kind = "regression"
label = "stars"
range = [1, 5]
metrics = ["mse", "mae"]
[model]
body = "shared_bottom"
dim = 4
tower = [4]
[train]
epochs = 3
batch = 64
lr = 0.01
"""


def made_up() -> pl.DataFrame:
    """A log in which four of five rows have no stars."""
    user, item = DRAW.integers(USERS, size=ROWS), DRAW.integers(ITEMS, size=ROWS)
    liked = np.sin(user) + np.cos(item) + 0.3 * DRAW.standard_normal(ROWS)
    rated = DRAW.random(ROWS) < 0.2
    columns = {
        "uid": user,
        "sku": item,
        "ts": 1_700_000_000 + 60 * np.arange(ROWS),
        "device": DRAW.choice(["phone", "laptop", "tablet"], size=ROWS),
        "price": DRAW.uniform(1, 90, ROWS).round(2),
        "clicked": (liked > 0).astype(int),
        "stars": [int(s) if r else None for s, r in zip(np.clip(np.rint(3 + liked), 1, 5), rated, strict=True)],
    }
    return pl.DataFrame(columns)


LOG = made_up()


def cli_run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["polytask", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0


def no_nan(folder: Path) -> None:
    """Every JSON file of a run is without NaN and infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in a run file")

    files = [f for f in folder.rglob("*.json*") if f.is_file()]
    assert {f.name for f in files} >= {"run.json", "metrics.jsonl"}
    for file in files:
        for line in file.read_text("utf-8").splitlines() if file.suffix == ".jsonl" else [file.read_text("utf-8")]:
            json.loads(line, parse_constant=refuse)


def test_a_csv_with_a_sparse_task_is_trained_without_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    (tmp_path / "mine.toml").write_text(TOML, "utf-8")
    monkeypatch.chdir(tmp_path)
    cli_run(monkeypatch, "check", "mine.toml")
    cli_run(monkeypatch, "train", "mine.toml")
    (tmp_path / "mine.toml").write_text(TOML.replace('["device"]', '["device", "price"]'), "utf-8")
    cli_run(monkeypatch, "train", "mine.toml", "--folder", "runs/two")
    for name, fields in (("mine", ["device"]), ("two", ["device", "price"])):
        run = pt.Run.load(tmp_path / "runs" / name)
        config = (tmp_path / "runs" / name / "config.toml").read_text("utf-8")
        assert all(f'"{field}"' in config for field in fields)
        assert [h["epoch"] for h in run.history] == [1, 2, 3]
        assert all(v is not None for h in run.history for task in h["valid"].values() for v in task.values())
        no_nan(tmp_path / "runs" / name)


def test_the_doctor_needs_no_settings_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    late = LOG.with_columns(paid=pl.when(pl.col("clicked") == 1).then(pl.col("price")))
    late.write_csv(tmp_path / "log.csv")
    columns = ("--user", "uid", "--item", "sku", "--time", "ts", "--label", "clicked", "--label", "stars")
    cli_run(monkeypatch, "check", str(tmp_path / "log.csv"), *columns, "--json")
    found = json.loads(capsys.readouterr().out)
    assert [t["kind"] for t in found["labels"]] == ["ranking", "binary", "regression"]
    assert [(leak["field"], leak["task"]) for leak in found["leaks"]] == [("paid", "clicked")]
    assert found["together"]["tasks"] == ["clicked", "stars"]
    assert found["together"]["share"][0][1] == found["labels"][2]["coverage"] == LOG["stars"].count() / ROWS
    assert found["time_travel"] > 0.9 and 0 < found["popularity"]["gini"] < 0.3
    assert any("alone predicts task 'clicked'" in w for w in found["warnings"])


def parts_of(frame: Any, kind: str = "temporal", **schema: Any) -> pt.Split:
    plain: dict[str, Any] = {"tasks": TASKS, "user": "uid", "item": "sku", "time": "ts"}
    return pt.split(pt.read_dataset(frame, pt.Schema(**(plain | schema))), kind, valid=0.2, test=0.2)


def model_of(part: Part, **options: Any) -> pt.MultiTask:
    return pt.MultiTask.build(part, **({"body": "shared_bottom", "dim": 4, "tower": (4,)} | options))


def trained(parts: pt.Split, **config: Any) -> tuple[pt.MultiTask, pt.Run]:
    model = model_of(parts.train)
    run = pt.fit(model, parts.train, parts.valid, config=pt.TrainConfig(**({"epochs": 2, "batch": 64} | config)))
    return model, run


def finite(model: pt.MultiTask) -> bool:
    return all(bool(p.isfinite().all()) for p in model.parameters())


def test_metrics_of_the_sparse_task_are_over_its_labeled_rows_alone() -> None:
    parts = parts_of(LOG, fields=(pt.Field("device"), pt.Field("price", "number")))
    model, run = trained(parts)
    assert parts.test is not None
    labels = parts.test.labels[:, 1]
    have = ~labels.isnan()
    found = pt.evaluate(model, parts.test)["stars"]["mse"]
    assert 0 < int(have.sum()) < 0.4 * len(labels) and found.used == int(have.sum())
    error = (pt.predict(model, parts.test)[have, 1] - labels[have]).double().square().mean()
    assert found.value == pytest.approx(float(error), rel=1e-5)
    assert run.history[-1]["train"]["stars"] > 0 and finite(model)


@pytest.mark.parametrize("source", ["polars", "lazy", "pandas", "parquet folder", "tsv"])
def test_the_same_rows_from_any_source_give_the_same_model(source: str, tmp_path: Path) -> None:
    frame: Any = LOG
    if source == "lazy":
        frame = LOG.lazy()
    elif source == "pandas":
        if importlib.util.find_spec("pandas") is None:
            pytest.skip("pandas is not installed")
        import pandas as pd

        frame = pd.DataFrame({c: LOG[c].to_list() for c in LOG.columns})  # stars become floats with NaN
    elif source == "parquet folder":
        (tmp_path / "log").mkdir()
        for number in range(3):
            LOG[number * 200 : (number + 1) * 200].write_parquet(tmp_path / "log" / f"part-{number}.parquet")
        frame = tmp_path / "log"
    elif source == "tsv":
        LOG.write_csv(tmp_path / "log.tsv", separator="\t")
        frame = tmp_path / "log.tsv"
    fields = (pt.Field("device"), pt.Field("price", "number"))
    expected = trained(parts_of(LOG, fields=fields))[0].state_dict()
    found = trained(parts_of(frame, fields=fields))[0].state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_ids_above_two_to_the_24_stay_distinct() -> None:
    base = 2**24
    frame = LOG.with_columns(uid=pl.col("uid") + base, sku=pl.col("sku") + 2**53)
    tasks = tuple(replace(task, head="dot") for task in TASKS)  # whose scores no unit can cut to zero
    parts = parts_of(frame, "random", tasks=tasks)
    vocabulary = parts.train.encoder.vocabularies["uid"]
    assert vocabulary.n_unique() == len(vocabulary) == USERS and str(base + 1) in vocabulary.to_list()
    assert parts.train.user.unique().numel() == USERS and parts.train.item.unique().numel() == ITEMS
    model, _ = trained(parts, lr=0.05)
    rows = torch.arange(1, USERS + 1)
    ids, numbers = parts.train.fields(rows, torch.ones_like(rows), torch.zeros_like(rows))
    assert values(model, ids, numbers)[:, 0].unique().numel() == USERS
    small = LOG.with_columns(uid=pl.col("uid") + 100, sku=pl.col("sku") + 100)
    same = trained(parts_of(small, "random", tasks=tasks), lr=0.05)[0]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))


@torch.no_grad()
def values(model: pt.MultiTask, ids: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    return model.eval().values(Batch.bare(ids, numbers))


def storages(model: pt.MultiTask) -> set[int]:
    found = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()] if t.numel()}
    assert found
    return found


def test_two_models_never_share_a_tensor() -> None:
    parts = parts_of(LOG)
    models = [model_of(parts.train) for _ in range(3)]
    pt.fit_many(
        models[:2], parts.train, parts.valid, config=[pt.TrainConfig(epochs=1, batch=64, seed=s) for s in (0, 0)]
    )
    for number, model in enumerate(models):
        assert not storages(model) & set().union(*(storages(m) for m in models[:number]))
    before = [p.clone() for p in models[1].parameters()]
    pt.fit(models[0], parts.train, config=pt.TrainConfig(epochs=1, batch=64, lr=0.1))
    assert all(torch.equal(a, b) for a, b in zip(before, models[1].parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("missing", ["one task", "every task"])
def test_a_missing_label_never_makes_a_nan(batch: int, missing: str) -> None:
    rare = [s if k % 40 == 0 else None for k, s in enumerate(DRAW.integers(1, 6, size=200).tolist())]
    frame = LOG.head(200).with_columns(stars=pl.Series(rare))
    if missing == "every task":  # so nine of ten batches of one row have no label at all
        clicked = [c if k % 20 == 0 else None for k, c in enumerate(frame["clicked"].to_list())]
        frame = frame.with_columns(clicked=pl.Series(clicked))
    model, run = trained(parts_of(frame, "random"), batch=batch, epochs=1)
    assert finite(model)
    assert all(np.isfinite(v) for v in run.history[0]["train"].values())


def test_a_part_without_any_label_of_a_task_has_an_absent_metric() -> None:
    late = LOG.with_columns(stars=pl.when(pl.int_range(ROWS) < 300).then("stars"))
    parts = parts_of(late)
    model, run = trained(parts)
    assert parts.test is not None and run.history[0]["valid"]["stars"]["mse"] is None
    found = pt.evaluate(model, parts.test)
    assert found["stars"]["mse"].value is None and "absent" in str(found) and found["click"]["auc"].value is not None


def test_unknown_users_items_and_values_never_raise() -> None:
    known, later = LOG.head(400), LOG.tail(200)
    strange = later.with_columns(
        uid=pl.lit("newcomer"), sku=pl.lit("novelty"), device=pl.lit(None, pl.String), price=pl.lit(1e9)
    )
    text = [pl.col("uid").cast(pl.String), pl.col("sku").cast(pl.String)]
    frame = pl.concat([known.with_columns(text), strange])
    tasks = (*TASKS, pt.Task("find", "ranking", head="dot"), pt.Task("seek", "ranking"))
    fields = (pt.Field("device"), pt.Field("price", "number", scale="quantile", buckets=4), pt.Field("last", "history"))
    data = pt.read_dataset(frame, pt.Schema(tasks, fields, user="uid", item="sku", time="ts"))
    parts = pt.split(data, "temporal", valid=0, test=1 / 3)
    assert parts.test is not None and not parts.test.user.any() and not parts.test.item.any()
    model, _ = trained(parts, epochs=1)
    predictions = pt.predict(model, parts.test)
    assert predictions.shape == (200, 4) and predictions.isfinite().all()
    scores = pt.evaluate(model, parts.test)
    assert scores["click"]["logloss"].used == 200 and scores["find"]["mrr"].value is None


@pytest.mark.parametrize(("name", "better"), [("mse", "lower"), ("xauc", "higher")])
def test_early_stopping_goes_the_right_way(name: str, better: str) -> None:
    tasks = (pt.Task("stars", "regression", label="stars", metrics=(name,)),)
    parts = parts_of(LOG, tasks=tasks)
    _, run = trained(parts, epochs=60, lr=0.05, patience=3)
    curve = run.curve("valid", "stars", name)
    best = (min if better == "lower" else max)(curve, key=lambda epoch: (curve[epoch], 0))
    assert run.kept == best and len(curve) == best + 3 < 60
    assert max(curve.values()) > min(curve.values())


def test_a_batch_and_a_part_of_one_row_keep_their_shape() -> None:
    tasks = (*TASKS, pt.Task("find", "ranking", head="dot"))
    data = pt.read_dataset(LOG.head(31), pt.Schema(tasks, (pt.Field("device"),), user="uid", item="sku", time="ts"))
    parts = pt.split(data, "temporal", valid=0, test=1 / 31)
    assert parts.test is not None and len(parts.test) == 1
    model, _ = trained(parts, batch=1, epochs=1)
    assert pt.predict(model, parts.test).shape == (1, 3) and finite(model)
    scores = pt.evaluate(model, parts.test)
    assert scores["click"]["logloss"].used == 1 and scores["click"]["auc"].value is None
    odd = pt.split(data, "temporal", valid=0, test=2 / 31)
    trained(odd, batch=28, epochs=1)  # the last batch holds one row


def test_the_log_of_these_tests_is_as_sparse_as_they_say(tmp_path: Path) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    with (tmp_path / "log.csv").open(newline="", encoding="utf-8") as file:
        empty = [row["stars"] == "" for row in csv.DictReader(file)]
    assert 0.75 < sum(empty) / len(empty) < 0.85
