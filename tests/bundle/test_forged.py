"""What a stranger wrote on purpose is refused in one line, soon, and without memory, though every hash is right."""

import contextlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from forged import Change, content, copied, forge, json_file, manifest, table, tensors
from shipped import BUY, CLICK, DOT, FIELDS, PAST, STARS, WATCH, cut, finished

from polytask.bundle import Bundle
from polytask.calibration import Platt
from polytask.errors import StateError

BILLION = 10**9
MEMORY = 96 << 20  # bytes; what reading the bundle takes beside what Python holds anyway is far less


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = cut((WATCH, STARS, CLICK, BUY), *FIELDS, PAST)
    run = finished(parts, body="mmoe", calibration={"click": Platt(1.5, -0.3)})
    return Bundle.save(tmp_path_factory.mktemp("bundles") / "whole", run)


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = finished(cut((DOT, STARS), *FIELDS[:5]), body="history")
    return Bundle.save(tmp_path_factory.mktemp("bundles") / "histories", run)


def peak() -> int:
    """Bytes the process held at most since :func:`forget`."""
    text = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", text)[0]) << 10


def forget() -> int:
    """Forget the peak so far, where the system can; the bytes held now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def refused(folder: Path, match: str) -> None:
    """The bundle is refused in one line that matches, in less than two seconds and with little memory."""
    before, began = forget(), time.process_time()
    with pytest.raises(StateError, match=match) as caught:
        Bundle.load(folder)
    assert time.process_time() - began < 2
    assert peak() - before < MEMORY
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1000 and str(folder) in text, text


def design(**changes: Any) -> Change:
    return json_file("config.json", lambda c: c["design"].update(changes))


def options(**changes: Any) -> Change:
    return design(options=[[n, v] for n, v in changes.items()])


def task(number: int, **changes: Any) -> Change:
    return json_file("schema.json", lambda s: s["tasks"][number].update(changes))


def field(named: str, **changes: Any) -> Change:
    return json_file("schema.json", lambda s: next(f for f in s["fields"] if f["name"] == named).update(changes))


def facts(**changes: Any) -> Change:
    return json_file("facts.json", lambda f: f.update(changes))


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    return tensors("model.safetensors", change)


def put(at: int, value: float) -> Callable[[torch.Tensor], None]:
    return lambda t: t.view(-1).__setitem__(at, value)


def many_rows(folder: Path) -> None:
    """A table of a few kilobytes that says it holds 200 million rows."""
    pl.DataFrame({"user": pl.repeat(1, 200_000_000, dtype=pl.Int8, eager=True)}).with_columns(
        item=pl.col("user")
    ).write_parquet(folder / "seen.parquet", compression="zstd")


FORGERIES: dict[str, tuple[Change, str]] = {
    "a width of a billion": (design(dim=BILLION), "asks for"),
    "a width of forty thousand": (design(dim=40_000), "asks for"),
    "a tower of a billion": (design(tower=[BILLION]), "asks for"),
    "a tower of many layers": (design(tower=[2] * 100_000), "asks for"),
    "layers of a billion": (options(layers=[BILLION]), "asks for"),
    "many experts of many units": (options(experts=4000, layers=[4000]), "asks for"),
    "a billion experts": (options(experts=BILLION), "asks for"),
    "layers below zero": (options(layers=[-3]), "refused"),
    "a width in words": (design(dim="wide"), "refused"),
    "no width": (design(dim=None), "refused"),
    "an unknown body": (design(body="mmmoe"), "body 'mmmoe' is unknown"),
    "an unknown share": (design(share="mine"), "mine"),
    "an unknown option": (options(pickle=1), "pickle"),
    "an unknown key": (design(code="import os"), "code"),
    "a block of a billion": (design(blocks=[["mlp", [["layers", [BILLION]]]]]), "asks for"),
    "a history of a billion": (field("past", length=BILLION), "bags and histories"),
    "a bag of a billion": (field("tags", length=BILLION), "bags and histories"),
    "a billion buckets": (field("brand", buckets=BILLION), r"sides\.safetensors|asks for"),
    "a loss of a billion leaves": (task(1, loss="tree", options={"leaves": BILLION}), "asks for"),
    "another loss": (task(1, loss="tree"), "tensors do not fit"),
    "an unknown loss": (task(1, loss="mme"), "mme"),
    "an unknown kind": (task(1, kind="magic"), "magic"),
    "a field of another name": (field("city", name="town"), "town|city"),
    "a field of another kind": (field("city", kind="number"), "city"),
    "a field of another side": (field("device", side="item"), "items do not fit"),
    "one field less": (json_file("schema.json", lambda s: s["fields"].pop(0)), "city"),
    "another user column": (json_file("schema.json", lambda s: s.update(user="time")), "time|user"),
    "no tasks": (json_file("config.json", lambda c: c.update(tasks=[])), "tasks"),
    "a task twice": (json_file("config.json", lambda c: c.update(tasks=["watch", "watch"])), "tasks"),
    "an unknown task": (json_file("config.json", lambda c: c.update(tasks=["wotch"])), "wotch"),
    "an item beyond the table": (
        tensors("sides.safetensors", lambda t: put(0, 10**6)(t["item.ids"])),
        "items do not fit",
    ),
    "an item below zero": (tensors("sides.safetensors", lambda t: put(5, -1)(t["item.ids"])), "items do not fit"),
    "a user without a number": (
        tensors("sides.safetensors", lambda t: put(3, float("nan"))(t["user.numbers"])),
        "not finite",
    ),
    "a side less": (tensors("sides.safetensors", lambda t: [t.pop("user.ids"), t.pop("user.numbers")]), "users do not"),
    "half a side": (tensors("sides.safetensors", lambda t: t.pop("user.numbers")), "user.numbers"),
    "more items than ids": (
        tensors("sides.safetensors", lambda t: t.update({n: t[n].repeat(2, 1) for n in ("item.ids", "item.numbers")})),
        "items do not fit",
    ),
    "a seen item beyond the last": (table("seen.parquet", lambda t: t.with_columns(item=pl.lit(26))), r"seen\.parquet"),
    "a seen item below one": (table("seen.parquet", lambda t: t.with_columns(item=pl.lit(0))), r"seen\.parquet"),
    "seen users out of order": (table("seen.parquet", lambda t: t.reverse()), r"seen\.parquet"),
    "a seen user missing": (
        table("seen.parquet", lambda t: t.with_columns(user=pl.lit(None, pl.Int32))),
        r"seen\.parquet",
    ),
    "seen of other columns": (table("seen.parquet", lambda t: t.rename({"item": "thing"})), "item"),
    "seen in words": (table("seen.parquet", lambda t: t.cast(pl.String).with_columns(item=pl.lit("x"))), "refused"),
    "more rows than bytes": (many_rows, "which its size cannot be"),
    "no table": (content("seen.parquet", b"PAR1" + bytes(64) + b"PAR1"), "refused"),
    "an empty table": (content("vocabulary.parquet", b""), "refused"),
    "weights that are no number": (weights(lambda t: put(0, float("nan"))(t["tables.0.weight"])), "not finite"),
    "weights beyond all numbers": (weights(lambda t: put(7, float("inf"))(t["tables.0.weight"])), "not finite"),
    "a tensor less": (weights(lambda t: t.pop("tables.0.weight")), "tables.0.weight"),
    "a tensor more": (weights(lambda t: t.update(more=torch.zeros(1))), "more"),
    "a tensor of another shape": (
        weights(lambda t: t.update({"tables.0.weight": torch.zeros(1, 3)})),
        "tables.0.weight",
    ),
    "a tensor of another type": (
        weights(lambda t: t.update({"tables.0.weight": t["tables.0.weight"].double()})),
        "float64",
    ),
    "other weights": (weights(lambda t: t["tables.0.weight"].mul_(1.5)), "golden answers"),
    "swapped users": (
        table(
            "vocabulary.parquet",
            lambda t: pl.concat([t.filter(pl.col("field") != "user"), t.filter(pl.col("field") == "user").reverse()]),
        ),
        "golden answers",
    ),
    "weights of no tensors": (content("model.safetensors", b"\xff" * 8 + b"{}"), "refused"),
    "weights with a long header": (content("model.safetensors", (2**40).to_bytes(8, "little") + b"{}"), "refused"),
    "an id twice": (
        table(
            "vocabulary.parquet",
            lambda t: t.with_columns(value=pl.when(pl.col("value") == "u2").then(pl.lit("u1")).otherwise("value")),
        ),
        "twice",
    ),
    "an id missing": (
        table(
            "vocabulary.parquet",
            lambda t: t.with_columns(value=pl.when(pl.col("value") == "u2").then(None).otherwise("value")),
        ),
        "twice, or none",
    ),
    "a scale of zero": (json_file("encoder.json", lambda e: e["scales"].update(hour=[1.0, 0.0])), "above 0"),
    "edges out of order": (json_file("encoder.json", lambda e: e["edges"].update(age=[3.0, 2.0, 1.0])), "ascend"),
    "a scale less": (json_file("encoder.json", lambda e: e["scales"].pop("hour")), "hour"),
    "golden answers of another model": (
        table("golden.parquet", lambda t: t.with_columns(pl.col("value/stars") + 0.01)),
        "golden answers",
    ),
    "golden answers that are none": (
        table("golden.parquet", lambda t: t.with_columns(pl.lit(float("nan")).cast(pl.Float32).alias("value/stars"))),
        "golden answers",
    ),
    "golden answers less one task": (table("golden.parquet", lambda t: t.drop("value/click")), "click"),
    "a calibration of an unknown kind": (
        json_file("calibration.json", lambda c: c.update(click={"kind": "exec"})),
        "exec",
    ),
    "a calibration that falls": (
        json_file("calibration.json", lambda c: c.update(click={"kind": "platt", "slope": -1, "shift": 0})),
        "slope",
    ),
    "a calibration that is no number": (
        json_file("calibration.json", lambda c: c["click"].update(slope=float("nan"))),
        "NaN",
    ),
    "a calibration beyond all numbers": (
        content("calibration.json", b'{"click": {"kind": "platt", "slope": 1e999}}'),
        "1e999",
    ),
    "a calibration of words": (json_file("calibration.json", lambda c: c["click"].update(slope="1")), "refused"),
    "a calibration of a rating": (json_file("calibration.json", lambda c: c.update(stars=c["click"])), "stars"),
    "a calibration of nothing": (json_file("calibration.json", lambda c: c.update(clack=c["click"])), "clack"),
    "another calibration": (json_file("calibration.json", lambda c: c["click"].update(shift=2.0)), "golden answers"),
    "a mix of unknown tasks": (facts(mix="wotch * stars"), "wotch"),
    "a mix of code": (facts(mix="__import__('os').system('true')"), "refused"),
    "a mix of many levels": (facts(mix="(" * 10_000 + "watch" + ")" * 10_000), "refused"),
    "a mix that is none": (facts(mix=3), "mix"),
    "no name": (facts(name=None), "name"),
    "facts of other tasks": (facts(tasks=[]), "tasks"),
    "a list of facts": (content("facts.json", b"[1]"), "no JSON object"),
    "JSON of many levels": (content("facts.json", b'{"a":' + b"[" * 10**6 + b"]" * 10**6 + b"}"), r"facts\.json"),
    "a number of many digits": (content("config.json", b'{"design": ' + b"9" * 10**5 + b"}"), r"config\.json"),
    "JSON that is cut": (content("schema.json", b'{"tasks": ['), r"schema\.json"),
    "JSON that is no text": (content("schema.json", b"\xff\xfe{}"), r"schema\.json"),
    "a configuration that is no text": (content("config.toml", b"\xff\xfe"), "refused"),
    "popularity below zero": (tensors("catalogue.safetensors", lambda t: put(1, -1)(t["popularity"])), "vocabulary"),
    "popularity of fewer items": (
        tensors("catalogue.safetensors", lambda t: t.update(popularity=t["popularity"][:3].clone())),
        "vocabulary",
    ),
    "a second column beyond all numbers": (
        tensors("catalogue.safetensors", lambda t: put(1, float("inf"))(t["by"])),
        "vocabulary",
    ),
    "an item in two rows": (table("items.parquet", lambda t: pl.concat([t, t])), "twice"),
    "items without ids": (table("items.parquet", lambda t: t.drop("item")), "id in every row"),
    "a file less": (lambda f: (f / "golden.parquet").unlink(), r"golden\.parquet is not in the manifest"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_bundle_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    change, match = FORGERIES[name]
    refused(forge(copied(folder, tmp_path / "copy"), change), match)


HISTORIES: dict[str, tuple[Change, str]] = {
    "a row of an unknown user": (weights(lambda t: put(0, 10**6)(t["row_user"])), "there is none of"),
    "a row of an unknown item": (weights(lambda t: put(0, -1)(t["row_item"])), "there is none of"),
    "rows of different numbers": (weights(lambda t: t.update(row_user=t["row_user"][:5].clone())), "differ in length"),
    "levels of fewer users": (weights(lambda t: t.update(start_user=t["start_user"][:5].clone())), "start_user"),
    "a residual beyond all numbers": (weights(lambda t: put(0, float("inf"))(t["row_residual"])), "not finite"),
    "a billion members": (options(members=BILLION), "asks for"),
    "thousands of members": (options(members=4000), "asks for"),
    "a blend of one": (options(blend=1.0), "blend"),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_a_forged_bundle_of_a_model_of_histories_is_refused(histories: Path, tmp_path: Path, name: str) -> None:
    change, match = HISTORIES[name]
    refused(forge(copied(histories, tmp_path / "copy"), change), match)


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a later format": (
        lambda m: m.update(format=2),
        "is a bundle of format 2, this version reads 1; use a newer polytask",
    ),
    "no format": (lambda m: m.pop("format"), "format None"),
    "a format in words": (lambda m: m.update(format="1"), "format '1'"),
    "no files": (lambda m: m.update(files={}), "manifest"),
    "files in a list": (lambda m: m.update(files=[]), "manifest"),
    "a file outside": (lambda m: m["files"].update({"../../etc/passwd": {"size": 1, "sha256": "0"}}), "outside"),
    "a file at the root": (lambda m: m["files"].update({"/etc/passwd": {"size": 1, "sha256": "0"}}), "outside"),
    "a file with a zero": (lambda m: m["files"].update({"a\0b": {"size": 1, "sha256": "0"}}), "outside"),
    "a file of a long name": (lambda m: m["files"].update({"a" * 5000: {"size": 1, "sha256": "0"}}), "refused"),
    "a hash that is a number": (lambda m: m["files"]["facts.json"].update(sha256=7), "refused"),
    "a file less": (lambda m: m["files"].pop("items.parquet"), r"items\.parquet is not in the manifest"),
    "a needed file less": (lambda m: m["files"].pop("seen.parquet"), r"seen\.parquet is not in the manifest"),
    "no tensors": (lambda m: m.pop("tensors"), "tensors"),
    "other tensors": (lambda m: m["tensors"].popitem(), "not those of the manifest"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_forged_manifest_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    change, match = MANIFESTS[name]
    copy = copied(folder, tmp_path / "copy")
    manifest(change)(copy)
    refused(copy, match)


def test_a_manifest_of_many_levels_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path / "copy")
    (copy / "manifest.json").write_text("[" * 10**6)
    refused(copy, r"manifest\.json")


@pytest.mark.parametrize("outside", [True, False])
def test_a_link_in_the_place_of_a_file_is_refused(folder: Path, tmp_path: Path, outside: bool) -> None:
    copy = copied(folder, tmp_path / "copy")
    target = (tmp_path if outside else copy) / "elsewhere"
    (copy / "items.parquet").rename(target)
    (copy / "items.parquet").symlink_to(target)
    refused(copy, "outside|missing or has another size")


def test_a_link_to_itself_and_a_folder_in_the_place_of_a_file_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path / "copy")
    (copy / "items.parquet").unlink()
    (copy / "items.parquet").symlink_to("items.parquet")
    refused(copy, "refused|missing")
    (copy / "items.parquet").unlink()
    (copy / "items.parquet").mkdir()
    refused(copy, "missing")


def test_a_file_that_no_manifest_vouches_for_is_refused_where_it_would_be_read_and_else_ignored(
    folder: Path, tmp_path: Path
) -> None:
    copy = copied(folder, tmp_path / "copy")
    (copy / ".gitattributes").write_text("*.safetensors filter=lfs")
    (copy / "notes.txt").write_text("mine")
    assert Bundle.load(copy).recommend("u1", 3).equals(Bundle.load(folder).recommend("u1", 3))
    manifest(lambda m: m["files"].pop("users.parquet"))(copy)
    refused(copy, r"users\.parquet is not in the manifest")
    (copy / "users.parquet").unlink()
    assert "user" not in Bundle.load(copy).contents.tables
    (copy / "index.json").write_text("{}")
    refused(copy, r"index\.json is not in the manifest")


def test_a_link_to_the_folder_is_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(folder)
    assert Bundle.load(tmp_path / "current").version == Bundle.load(folder).version


def test_golden_answers_are_compared_by_the_size_of_the_answers(tmp_path: Path) -> None:
    parts = cut((DOT, STARS), *FIELDS)
    run = finished(parts)
    path = Bundle.save(tmp_path / "bundle", run)
    golden = pl.read_parquet(path / "golden.parquet")
    assert golden.height == 48 and golden["user"].null_count() == golden["item"].null_count() == 1
    largest = float(np.abs(golden["value/watch"].to_numpy()).max())
    for step, fine in ((1e-5, True), (1e-3, False)):
        copy = copied(path, tmp_path / "copy")
        moved = golden.with_columns((pl.col("value/watch") + step * largest).cast(pl.Float32))
        forge(copy, lambda f, moved=moved: moved.write_parquet(f / "golden.parquet"))  # type: ignore[misc]
        if fine:
            assert Bundle.load(copy).tasks == ("watch", "stars")
        else:
            refused(copy, "golden answers")


def test_no_bundle_at_all_is_told(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(
            StateError, match=r"is no bundle: it has no manifest\.json; make one with 'polytask bundle RUN'"
        ):
            Bundle.load(path)
