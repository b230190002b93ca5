"""Bundles that earlier versions wrote are read, and say what they said; those of later formats are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from forged import copied, manifest
from golden_bundle import GOLDEN, answers

from polytask.bundle import Bundle
from polytask.bundle.contents import FORMAT
from polytask.errors import StateError

SAVED = sorted(path for path in GOLDEN.glob("bundle-*") if path.is_dir())


def test_every_format_has_a_saved_bundle() -> None:
    assert [path.name for path in SAVED] == [f"bundle-{n}" for n in range(1, FORMAT + 1)]


@pytest.mark.parametrize("path", SAVED, ids=lambda p: p.name)
def test_a_saved_bundle_says_what_it_said(path: Path) -> None:
    then, now = json.loads(path.with_suffix(".json").read_text("utf-8")), answers(Bundle.load(path))
    assert now.keys() == then.keys()
    for question, told in then.items():
        alike(now[question], told)


def alike(now: Any, then: Any) -> None:
    """The same ids, and numbers within the tolerance of golden rows."""
    if isinstance(then, dict):
        assert now.keys() == then.keys()
        for name, values in then.items():
            alike(now[name], values)
    elif isinstance(then[0], float):
        assert now == pytest.approx(then, rel=1e-4, abs=1e-4)
    else:
        assert now == then


def test_a_bundle_of_a_later_format_is_refused_by_its_number(tmp_path: Path) -> None:
    copy = copied(SAVED[-1], tmp_path / "later")
    manifest(lambda m: m.update(format=FORMAT + 1))(copy)
    with pytest.raises(
        StateError, match=rf"is a bundle of format {FORMAT + 1}, this version reads {FORMAT}; use a newer"
    ):
        Bundle.load(copy)


def test_saved_bundles_are_small_and_tell_nothing_of_where_they_were_made() -> None:
    for path in SAVED:
        files = list(path.iterdir())
        assert sum(f.stat().st_size for f in files) < 64 << 10
        assert not any(word in f.read_bytes() for f in files for word in (b"/work", b"/home", b"/tmp", b"/root"))
