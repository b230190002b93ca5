"""What is damaged by chance is refused: bit flips, cuts, zeroed and swapped blocks, appended bytes, in every file."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from forged import copied
from shipped import BUY, CLICK, DOT, FIELDS, STARS, cut, finished

from polytask.bundle import Bundle
from polytask.calibration import Platt
from polytask.errors import StateError

KINDS = ("flip", "cut", "zero", "swap", "append")
BLOCK = 4096


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = cut((DOT, STARS, CLICK, BUY), *FIELDS, valid=0.2)
    run = finished(parts, calibration={"click": Platt(1.5, -0.3)}, dim=24)
    return Bundle.save(tmp_path_factory.mktemp("bundles") / "whole", run, toml="name = 'small'\n")


def damaged(data: bytes, kind: str, draw: np.random.Generator) -> bytes:
    """``data`` after one mishap."""
    found, at = bytearray(data), int(draw.integers(len(data) or 1))
    if kind == "append" or not data:
        return data + draw.bytes(int(draw.integers(1, 9)))
    if kind == "cut":
        return data[:at]
    if kind == "flip":
        found[at] ^= 1 << int(draw.integers(8))
    elif kind == "zero":
        found[at : at + BLOCK] = bytes(len(found[at : at + BLOCK]))
    else:
        size = min(BLOCK, len(data) // 2)
        other = int(draw.integers(size, len(data) - size + 1))
        found[:size], found[other : other + size] = found[other : other + size], found[:size]
    return bytes(found)


def same(name: str, old: bytes, new: bytes) -> bool:
    """Whether the files say the same: equal bytes, or a manifest of equal content."""
    if old == new or name != "manifest.json":
        return old == new
    try:
        return bool(json.loads(old) == json.loads(new))
    except ValueError:
        return False


def test_every_mishap_is_refused_in_one_line_that_names_the_file(folder: Path, tmp_path: Path) -> None:
    whole, draw, refused = Bundle.load(folder), np.random.default_rng(0), 0
    copy = copied(folder, tmp_path / "copy")
    for number, path in enumerate(sorted(folder.iterdir()) * 3 * len(KINDS)):
        kind, data = KINDS[number % len(KINDS)], path.read_bytes()
        changed = damaged(data, kind, draw)
        (copy / path.name).write_bytes(changed)
        began = time.process_time()
        if same(path.name, data, changed):
            assert Bundle.load(copy).recommend("u1", 3).equals(whole.recommend("u1", 3))
        else:
            with pytest.raises(StateError) as caught:
                Bundle.load(copy)
            refused += 1
            assert "\n" not in str(caught.value) and str(copy) in str(caught.value), str(caught.value)
            if path.name != "manifest.json":
                assert path.name in str(caught.value)
        assert time.process_time() - began < 2
        (copy / path.name).write_bytes(data)
    assert refused >= 200
    assert Bundle.load(copy).version == whole.version


def test_a_shuffled_vocabulary_and_a_swapped_pair_of_files_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path / "copy")
    one, other = copy / "users.parquet", copy / "items.parquet"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second), other.write_bytes(first)
    with pytest.raises(StateError, match=r"items\.parquet"):
        Bundle.load(copy)


def test_the_message_tells_both_hashes(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path / "copy")
    data = bytearray((copy / "seen.parquet").read_bytes())
    data[10] ^= 1
    (copy / "seen.parquet").write_bytes(bytes(data))
    with pytest.raises(StateError, match=r"seen\.parquet is damaged: SHA-256 [0-9a-f]{12}, manifest says [0-9a-f]{12}"):
        Bundle.load(copy)


@pytest.mark.parametrize("gone", ["manifest.json", "model.safetensors", "config.toml", "items.parquet"])
def test_a_file_that_is_gone_is_missed(folder: Path, tmp_path: Path, gone: str) -> None:
    copy = copied(folder, tmp_path / "copy")
    (copy / gone).unlink()
    with pytest.raises(StateError, match=gone.replace(".", r"\.")):
        Bundle.load(copy)
