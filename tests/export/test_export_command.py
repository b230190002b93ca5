"""``polytask export``: what it writes and what it says."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from made_up_bundles import DOT, STARS, made_up

from polytask import cli
from polytask.export import summary

Call = Callable[..., tuple[object, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Run a command in this process: its exit code, and what it prints."""

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["polytask", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capfd.readouterr()

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


def test_the_command_writes_the_formats_it_is_told_and_says_how_near_they_are(tmp_path: Path, call: Call) -> None:
    made_up(tmp_path / "bundle", (DOT, STARS))
    code, out, err = call("export", str(tmp_path / "bundle"), "--to", str(tmp_path / "out"), "--format", "pt2, vectors")
    assert (code, err) == (0, "")
    program, *tables = out.replace("\n", " ").split(str(tmp_path / "out") + "/")[1:]
    assert program.startswith("model.pt2: at most 0.0e+00 from the model on 1048 rows, 13 of 13 top-10 lists the same")
    assert [t.strip() for t in tables] == ["item_vectors.parquet: watch", "user_vectors.parquet: watch"]
    code, out, err = call(
        "export", str(tmp_path / "bundle"), "--to", str(tmp_path / "out"), "--format", "vectors", "--json"
    )
    told = json.loads(out)
    assert (code, err, told.pop("to")) == (0, "", str(tmp_path / "out"))
    assert told == json.loads((tmp_path / "out" / "export.json").read_text("utf-8"))
    assert not (tmp_path / "out" / "model.pt2").exists()


def test_a_mistake_is_one_line(tmp_path: Path, call: Call) -> None:
    made_up(tmp_path / "bundle", (DOT, STARS))
    for formats, says in (("onxx", "Did you mean 'onnx'"), (",", "at least one format")):
        code, out, err = call("export", str(tmp_path / "bundle"), "--to", str(tmp_path / "out"), "--format", formats)
        assert (code, out, err.count("\n")) == (1, "", 1) and says in err
    assert not (tmp_path / "out").exists()


def test_the_summary_tells_ties_and_what_there_is_no_list_of() -> None:
    found = {"rows": 9, "difference": 2e-6, "users": 0, "items": 0, "identical": 0}
    tied = found | {"users": 4, "items": 7, "identical": 3}
    facts = {"onnx": {"file": "m.onnx", "checked": found}, "pt2": {"file": "m.pt2", "checked": tied}}
    assert summary("to", facts | {"vectors": {"files": ["i.parquet"], "tasks": []}}) == [
        "to/m.onnx: at most 2.0e-06 from the model on 9 rows",
        "to/m.pt2: at most 2.0e-06 from the model on 9 rows, 3 of 4 top-10 lists the same, the others but for ties",
        "to/i.parquet: items alone: no task has a dot head",
    ]
