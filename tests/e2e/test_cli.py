"""The command line from outside: its verbs, what they print and what they leave."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from polytask import cli
from polytask.checkpoint import newest
from polytask.config import parse
from polytask.console import printable
from polytask.data.datasets import DATASETS
from polytask.run import Run

Call = Callable[..., str]
VERBS = ["data", "check", "train", "compare", "tune", "report", "demo"]
RED = "\x1b[31m"

CONFIG = """
name = "small"
[data]
interactions = "tables/log.csv"
users = "tables/users.csv"
user = "uid"
item = "sku"
time = "ts"
split = { valid = 0.1, test = 0.1 }
[[feature]]
name = "city"
side = "user"
[[task]]
name = "watch"
kind = "ranking"
head = "dot"
[[task]]
name = "stars"
kind = "regression"
label = "stars"
range = [1, 5]
[model]
dim = 2
tower = [4]
[train]
epochs = 2
batch = 64
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project: a configuration, and its tables in a folder beside it."""
    (tmp_path / "tables").mkdir()
    (tmp_path / "some.toml").write_text(CONFIG, "utf-8")
    rows = [f"u{k % 10},i{(k % 10 + k // 10) % 16},{1 + k % 5},{10**9 + k}" for k in range(100)]
    (tmp_path / "tables" / "log.csv").write_text("\n".join(["uid,sku,stars,ts", *rows, ""]), "utf-8")
    people = [f"u{k},{'Oslo' if k % 2 else 'Bergen'}" for k in range(10)]
    (tmp_path / "tables" / "users.csv").write_text("\n".join(["uid,city", *people, ""]), "utf-8")
    return tmp_path


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Run a command in this process that must end well; what it prints."""

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["polytask", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert (ended.value.code, err) == (0, "")
        return out

    threads = torch.get_num_threads()
    yield call
    torch.set_num_threads(threads)


def strict(text: str) -> Any:
    """The value of a single line of JSON without NaN and infinity."""
    assert text.count("\n") == 1

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_help_needs_no_pytorch() -> None:
    look = "import sys; from polytask.cli import main; sys.argv = ['polytask', '--help']\n"
    look += (
        "try: main()\nexcept SystemExit as end: print([m for m in ('torch', 'polars') if m in sys.modules], end.code)"
    )
    shown = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert shown.stdout.endswith("[] 0\n") and shown.stderr == ""
    assert all(verb in shown.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(done: Call, verb: str) -> None:
    text = done(verb, "--help")
    assert "Usage: " in text and verb in text and "--help" in text


def test_data_lists_the_built_in_sets(done: Call) -> None:
    assert done("data").split() == sorted(DATASETS)


def test_check_of_a_table_and_of_a_configuration(done: Call, folder: Path) -> None:
    log, toml = str(folder / "tables" / "log.csv"), str(folder / "some.toml")
    columns = ("--user", "uid", "--item", "sku", "--time", "ts", "--label", "stars")
    for arguments in ((log, *columns), (toml,)):
        text = done("check", *arguments)
        assert "log.csv: 100 rows read = 100 accepted + 0 rejected\n10 users, 16 items" in text
        assert ": stars on 100 rows (100 %), mean 3, 1..5" in text
        found = strict(done("check", *arguments, "--json"))
        assert (found["rows"], found["users"], found["items"], found["labels"][1]["mean"]) == (100, 10, 16, 3.0)
    assert "city (users, category): 2 distinct" in done("check", toml)


def test_train_streams_what_the_configuration_says_is_to_be_streamed(done: Call, folder: Path) -> None:
    pl.read_csv(folder / "tables" / "log.csv").write_parquet(folder / "tables" / "log.parquet")
    toml, run = folder / "streamed.toml", folder / "runs" / "streamed"
    toml.write_text(CONFIG.replace('"tables/log.csv"', '"tables/log.parquet"\nstream = true'), "utf-8")
    text = done("train", str(toml), "--folder", str(run))
    assert "stars" in text and "mrr" in text and text.endswith(f"run: {run}\n")
    found = Run.load(run)
    assert [h["epoch"] for h in found.history] == [1, 2] and found.tasks == ("watch", "stars")
    assert found.parts() == ("valid", "test") and found.curve("train", "stars", "").keys() == {1, 2}


@pytest.mark.parametrize("verb", ["compare", "check"])
def test_what_reads_all_rows_says_that_it_does_not_stream(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: Path, verb: str
) -> None:
    toml = folder / "streamed.toml"
    toml.write_text(CONFIG.replace('"tables/log.csv"', '"tables/log.csv"\nstream = true'), "utf-8")
    monkeypatch.setattr(sys, "argv", ["polytask", verb, str(toml)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    _, err = capfd.readouterr()
    assert ended.value.code and err.count("\n") == 1 and "data.stream = true is for training alone" in err


def test_train_leaves_a_whole_run(done: Call, folder: Path) -> None:
    toml, run = str(folder / "some.toml"), folder / "runs" / "here"
    text = done("train", toml, "--folder", str(run))
    assert "stars" in text and "mrr" in text and text.endswith(f"run: {run}\n")
    names = {p.name for p in run.iterdir() if not p.name.startswith("events.out.tfevents.")}
    files = {"config.toml", "environment.json", "metrics.jsonl", "run.json", "test.safetensors"}
    assert names == {".lock", "checkpoints", "model", *files}
    environment = json.loads((run / "environment.json").read_text("utf-8"))
    assert environment["threads"] == 1 and set(environment["data"]) == {"train", "valid", "test"}
    found = Run.load(run)
    assert (found.name, found.kept in (1, 2), found.tasks) == ("small", True, ("watch", "stars"))
    again = strict(done("train", toml, "--folder", str(run), "--json"))
    assert again == next(h for h in found.history if h["epoch"] == found.kept)
    assert [h["epoch"] for h in Run.load(run).history] == [1, 2]
    assert newest(run / "checkpoints", {}) is not None


def test_the_kept_configuration_trains_the_same_run_elsewhere(
    done: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    first, second = folder / "a" / "first", folder / "second"
    done("train", "../some.toml", "--folder", str(first), "--set", "train.seed=5", "--set", "task.stars.weight=0.25")
    kept = first / "config.toml"
    assert parse(kept.read_text("utf-8")).data.interactions == "../../tables/log.csv"
    done("train", str(kept), "--folder", str(second))
    for name in ("metrics.jsonl", "model/model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert Run.load(second).weights == {"watch": 1.0, "stars": 0.25} and Run.load(second).config.seed == 5


def test_a_run_is_named_after_the_configuration_but_stays_below_runs(
    done: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for name, place in (("plain", "plain"), ("../../up", "..-..-up"), ("/tmp/x [b]", "-tmp-x--b-"), ("..", "-")):
        done("train", "some.toml", "--set", f"name={json.dumps(name)}", "--set", "train.epochs=1")
        assert (folder / "runs" / place / "run.json").is_file()
    assert len(list((folder / "runs").iterdir())) == 4


def test_a_setting_is_only_for_this_call(done: Call, folder: Path) -> None:
    toml = str(folder / "some.toml")
    for number, weight in enumerate((0.0, 2)):
        run = folder / f"run{number}"
        arguments = ("--set", f"task.watch.weight={weight}", "--set", "train.epochs=1")
        done("train", toml, "--folder", str(run), *arguments)
        assert Run.load(run).weights == {"watch": weight, "stars": 1.0}
    assert Run.load(folder / "run0").alone == "stars"


HOSTILE = [
    f"{RED}red",
    "[bold]b[/bold]",
    "[/]",
    "日本語",
    "e\u0301",
    "\xe9",
    "\u202egnp",
    "a'b\\",
    "x" * 3000,
    "<script>",
]


def hostile(folder: Path) -> Path:
    """A log whose ids, feature values, column and task names try to steer the terminal."""
    rows = [f"{HOSTILE[k % 10]},{HOSTILE[k // 10]}{k % 3},{1 + k % 5},{HOSTILE[k % 7]}" for k in range(100)]
    (folder / "log.csv").write_text("\n".join([f"user,item,st{RED}ars,[red]where", *rows, ""]), "utf-8")
    escaped = json.dumps(f"st{RED}ars")
    config = f"""
    name = {json.dumps(f"[blink]{RED}name")}
    [data]
    interactions = "log.csv"
    user = "user"
    item = "item"
    [[feature]]
    name = "[red]where"
    [[task]]
    name = {json.dumps(f"[bold]{RED}task")}
    kind = "regression"
    label = {escaped}
    [model]
    dim = 2
    tower = [2]
    [train]
    epochs = 1
    """
    (folder / "hostile.toml").write_text(config, "utf-8")
    return folder / "hostile.toml"


def test_hostile_names_and_values_are_shown_and_not_obeyed(done: Call, tmp_path: Path) -> None:
    toml, run = str(hostile(tmp_path)), str(tmp_path / f"run{RED}")
    shown = done("check", toml)
    assert "[red]where" in shown and "st\\x1b[31mars" in shown
    shown += done("train", toml, "--folder", run)
    assert "[bold]\\x1b[31mtask" in shown and "mse" in shown and f"run: {run}".replace("\x1b", "\\x1b") in shown
    assert not [c for c in shown if not c.isprintable() and c != "\n"]
    assert strict(done("check", toml, "--json"))["users"] == 10
    scores = strict(done("train", toml, "--folder", run, "--json"))
    assert set(scores["valid"]) == {f"[bold]{RED}task"}
    assert Run.load(run).name == f"[blink]{RED}name"


def test_a_cell_is_plain_text() -> None:
    assert printable(0.123456) == "0.1235"
    assert printable(f"{RED}a\nb[bold]\udcff") == "\\x1b[31ma\\nb\\[bold]\\udcff"


def test_a_setting_that_fails_leaves_the_report_of_the_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    settings = '[[setting]]\nname = "tame"\n[[setting]]\nname = "wild"\nset = { "train.lr" = 1e30 }\n'
    (folder / "two.toml").write_text(CONFIG + settings + "[compare]\nseeds = [0, 1]\n", "utf-8")
    monkeypatch.setattr(sys, "argv", ["polytask", "compare", "two.toml", "--workers", "1"])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    out, err = capfd.readouterr()
    assert "report of what is finished: " in out and "Traceback" not in err
    assert "'wild': epoch 1" in err and "runs are finished below" in err
    report = json.loads((folder / "runs" / "small-compare" / "report.json").read_text("utf-8"))
    assert {s["name"] for s in report["settings"]} >= {"tame"} and "wild" not in str(report["settings"])


def test_tune_chooses_compares_and_goes_on(done: Call, folder: Path) -> None:
    toml, where = str(folder / "some.toml"), folder / "tuned"
    few = ("--trials", "2", "--workers", "1", "--folder", str(where), "--set", "compare.seeds=[1]")
    space = ("--set", "tune.space.train.lr={ low = 1e-3, high = 1e-1, log = true }")
    text = done("tune", toml, *few, *space)
    assert "(knee" in text and "watch alone was" not in text and text.endswith(f"report: {where / 'report.html'}\n")
    found = strict(done("tune", toml, *few, *space, "--json"))
    assert found["tune"] == json.loads((where / "tune.json").read_text("utf-8"))
    assert [t["set"].keys() == {"train.lr"} for t in found["tune"]["trials"]] == [True, True]
    assert parse((where / "config.toml").read_text("utf-8")).tune.trials == 2
