from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polytask.data.batch import Part
from polytask.data.split import split
from polytask.data.synthetic import synthetic
from polytask.errors import StateError
from polytask.evaluate import evaluate, predictions
from polytask.metrics import metric
from polytask.nn.model import MultiTask
from polytask.predictions import Predictions
from polytask.schema import Task

DATA = synthetic(users=30, items=40, rows=700, seed=4)
WATCH = Task("watch", "ranking", head="dot", metrics=("mrr", "ndcg@5", "hit@3"))
STARS = Task("stars", "regression", label="rating", range=(1, 5), by="timestamp", metrics=("mse", "field_rce@4"))
LIKE = Task("like", "binary", positive="rating >= 2", metrics=("auc", "gauc", "ece@5"))
LOVE = Task("love", "binary", positive="rating >= 4", given="like", metrics=("entire_auc", "auc", "entire_logloss"))


def trained() -> tuple[MultiTask, Part]:
    """A model of random parameters, and a test part with missing labels and row weights."""
    data = replace(DATA, schema=replace(DATA.schema, tasks=(WATCH, STARS, LIKE, LOVE)))
    parts = split(data, valid=0.1, test=0.15)
    model, draw = MultiTask.build(parts.train, dim=4, tower=(5,)), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw))
    assert parts.test is not None
    labels = parts.test.labels.clone()
    labels[:4, 1:] = torch.nan
    weights = 1 + torch.rand(labels.shape, generator=draw)
    by = torch.rand(labels.shape, generator=draw)
    return model, replace(parts.test, labels=labels, row_weights=weights, by=by)


def scores(told: Predictions) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    for task in told.schema.tasks:
        found[task.name] = {n: told.score(task.name, n).value for n in task.metrics if task.kind != "ranking"}
        if task.name in told.ranks:
            found[task.name] = {n: metric(n)(*told.ranks[task.name]).value for n in task.metrics}
    return found


def test_every_metric_of_a_part_can_be_computed_again_from_the_file(tmp_path: Path) -> None:
    model, test = trained()
    expected = evaluate(model, test).to_dict()
    told = predictions(model, test)
    told.save(tmp_path / "test.safetensors")
    read = Predictions.load(tmp_path / "test.safetensors", model.schema)
    for found in (told, read):
        assert {t: pytest.approx(m) for t, m in expected.items()} == scores(found)
    assert read.user.equal(test.user) and set(read.by) == {"stars"}


def test_the_file_is_small(tmp_path: Path) -> None:
    model, test = trained()
    whole, bare = replace(test, row_weights=None), predictions(model, replace(test, row_weights=None), tasks=["like"])
    predictions(model, whole).save(tmp_path / "whole")
    bare.save(tmp_path / "bare")
    header = 1500
    held = len(test.heldout["watch"].items)
    stars, binary = 4 + 4 + 4, 4 + 1  # value, label and by; value and a label of one byte
    assert (tmp_path / "whole").stat().st_size < len(test) * (4 + stars + 2 * binary) + held * 8 + header
    assert (tmp_path / "bare").stat().st_size < len(test) * (4 + binary) + header
    assert list(bare.values) == ["like"] and not bare.ranks


def test_a_task_brings_those_it_is_conditional_on() -> None:
    model, test = trained()
    told = predictions(model, test, tasks=["love"])
    assert list(told.values) == ["like", "love"]
    assert told.score("love", "entire_auc").value == pytest.approx(evaluate(model, test)["love"]["entire_auc"].value)


def test_rows_may_count_several_times() -> None:
    model, test = trained()
    told = predictions(model, test)
    times = torch.arange(len(test)) % 3
    rows = torch.repeat_interleave(torch.arange(len(test)), times)
    columns = ("values", "labels", "weights", "by")
    more = {c: {t: v[rows] for t, v in getattr(told, c).items()} for c in columns}
    repeated = replace(told, user=told.user[rows], **more)
    for task, name in (("like", "auc"), ("like", "gauc"), ("love", "entire_logloss"), ("stars", "mse")):
        assert told.score(task, name, times).value == pytest.approx(repeated.score(task, name).value)


def test_a_missing_or_damaged_file_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    for name in ("absent", "damaged"):
        with pytest.raises(StateError, match="is missing or damaged: it holds a run's test predictions; train again"):
            Predictions.load(tmp_path / name, trained()[0].schema)
