"""The counts of the real data sets, where POLYTASK_DATA names a folder that holds them."""

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from polytask.data.datasets import load
from polytask.data.datasets.archive import Archive
from polytask.data.labels import label_of
from polytask.data.split import split
from polytask.data.table import Dataset

NAMED = os.environ.get("POLYTASK_DATA")
REAL = Path(NAMED or "")
pytestmark = pytest.mark.skipif(not NAMED, reason="POLYTASK_DATA is not set")


def real(name: str, folder: str) -> Dataset:
    assert REAL.is_dir(), f"POLYTASK_DATA={NAMED} is no folder"
    if not (REAL / folder).is_dir():
        pytest.skip(f"POLYTASK_DATA holds no {folder}")
    return load(name, download=False)


def percent(data: Dataset) -> dict[str, float]:
    """Share of positives of every binary task, in percent."""
    labels = (label_of(data.interactions, task) for task in data.schema.tasks)
    return {label.task: round(100 * label.base, 2) for label in labels if label.base is not None}


def test_real_adult() -> None:
    data = real("adult", "adult")
    assert data.official is not None
    assert (data.rejects.count, int((~data.official).sum()), int(data.official.sum())) == (0, 32_561, 16_281)
    train = data.interactions.filter(~data.official)
    assert [round(100 * float(train[c].to_numpy().mean()), 1) for c in ("income", "never_married")] == [24.1, 32.8]
    cut = split(data, "official", valid=0.1, seed=3)
    assert cut.valid is not None and cut.test is not None
    assert [len(p) for p in (cut.train, cut.valid, cut.test)] == [29_305, 3_256, 16_281]
    assert np.array_equal(cut.test.labels[:, 0].numpy(), data.interactions["income"].to_numpy()[32_561:])


def test_real_census() -> None:
    data = real("census", "census-income-kdd")
    test = data.interactions if data.official is None else data.interactions.filter(data.official)
    assert test.height == 99_762 and data.rejects.count == 0
    assert percent(data)["income"] == pytest.approx(6.2, abs=0.05)
    assert percent(data)["never_married"] == pytest.approx(43.2, abs=0.1)
    assert ("not comparable" in data.name) == (data.official is None)
    assert len(data.schema.inputs) == 38


def test_real_kuairand() -> None:
    data = real("kuairand", "kuairand")
    rows = data.interactions
    assert (data.rejects.read, data.rejects.count, rows.height) == (41_828, 116, 41_712)
    assert (rows["user_id"].n_unique(), rows["video_id"].n_unique()) == (664, 9_359)
    assert data.users is not None and data.users.height == 27_285
    assert data.items is None  # the videos table covers 2.7 % of the rows
    assert rows["user_id"].is_in(data.users["user_id"].implode()).all()
    published = {"click": 65.7, "long_view": 46.2, "like": 80.7, "follow": 0.7, "comment": 3.0, "forward": 0.8}
    for task, share in (published | {"profile": 5.3}).items():
        assert percent(data)[task] == pytest.approx(share, abs=0.15), task  # the copies count in what is published
    finished = (rows["watch_time"] >= rows["duration"].fill_null(0)).mean()
    assert finished == pytest.approx(0.494, abs=0.002)
    text = Archive(REAL / "kuairand").read("kuairand27k_explicit_kcore15.tsv").decode()
    lines = list(dict.fromkeys(text.splitlines()[1:]))
    assert rows["duration"].null_count() == sum(line.split("\t")[11] == "0" for line in lines) == 7_731
    assert rows["time"].to_list() == pytest.approx([int(line.split("\t")[4]) / 1000 for line in lines], abs=1e-3)
    midnight, day = 1_649_347_200, 86_400  # of 8 April 2022 in Beijing; the log's own dates are rounded to the hour
    assert rows["time"].is_between(midnight - 1800, midnight + 14 * day, closed="left").all()


def test_real_taobao() -> None:
    data = real("taobao", "taobao-userbehavior")
    assert (data.rejects.read, data.rejects.count, data.interactions.height) == (84_475, 35, 59_874)
    assert percent(data) == {"favorite": 0.38, "cart": 1.15, "buy": 1.46}
    assert data.interactions.select("user_id", "item_id").is_unique().all()
    assert data.items is not None and (data.items.height, data.items["category"].n_unique()) == (55_344, 2_913)
    late = [r for r in data.rejects.rows if "outside 25 Nov" not in str(r)]
    assert late == []


def test_real_samples() -> None:
    express, ccp = real("aliexpress", "tiny-samples"), real("ali-ccp", "tiny-samples")
    assert "sample" in express.name and "sample" in ccp.name
    assert express.official is not None and ccp.official is not None
    assert (express.interactions.height, int(express.official.sum())) == (120, 20)
    assert (ccp.interactions.height, int(ccp.official.sum())) == (200, 50)
    bought = {"aliexpress": (express, "conversion"), "ali-ccp": (ccp, "purchase")}
    for data, label in bought.values():
        assert data.interactions.filter((pl.col("click") == 0) & (pl.col(label) == 1)).height == 0
