"""From a finished run to recommendations by the command line, and finished runs brought back into memory."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from polytask import cli
from polytask.bundle import Bundle
from polytask.data.table import read_dataset
from polytask.errors import ConfigError, DataError, StateError
from polytask.evaluate import evaluate, predict
from polytask.revive import revive
from polytask.schema import Schema

Call = Callable[..., str]

CONFIG = """
name = "small"
[data]
interactions = "tables/log.csv"
items = "tables/things.csv"
user = "uid"
item = "sku"
time = "ts"
split = { valid = 0.1, test = 0.1 }
[[feature]]
name = "genre"
kind = "categories"
side = "item"
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
body = "shared_bottom"
dim = 2
tower = [4]
[train]
epochs = 2
batch = 64
[compare]
seeds = [3, 4]
"""


def tables(folder: Path, shift: int = 0) -> None:
    rows = [f"u{k % 10},i{(k % 10 + k // 10) % 16},{1 + (k + shift) % 5},{10**9 + k}" for k in range(100)]
    things = [f"i{k},{'drama|war' if k % 3 else 'comedy'},The {k}th <Thing>" for k in range(16)]
    (folder / "tables").mkdir(exist_ok=True)
    (folder / "tables" / "log.csv").write_text("\n".join(["uid,sku,stars,ts", *rows, ""]), "utf-8")
    (folder / "tables" / "things.csv").write_text("\n".join(["sku,genre,title", *things, ""]), "utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project whose configuration was trained and compared by the command line."""
    folder, threads = tmp_path_factory.mktemp("project"), torch.get_num_threads()
    tables(folder)
    (folder / "some.toml").write_text(CONFIG, "utf-8")
    for verb, *more in (["train"], ["compare", "--workers", "1"]):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(
                sys, "argv", ["polytask", verb, str(folder / "some.toml"), "--folder", str(folder / verb), *more]
            )
            cli.main()
        assert ended.value.code == 0
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: its exit code, and what it prints and complains of."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["polytask", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        code = ended.value.code
        return (code if isinstance(code, int) else 1), out, err

    return run


@pytest.fixture
def done(call: Callable[..., tuple[int, str, str]]) -> Call:
    """Run a command that must end well; what it prints."""

    def run(*arguments: object) -> str:
        code, out, err = call(*arguments)
        assert (code, err) == (0, "")
        return out

    return run


def compared(project: Path) -> list[Path]:
    """The folders of the runs of the comparison."""
    return sorted(f.parent for f in (project / "compare").rglob("run.json"))


def test_a_trained_run_comes_back_with_the_scores_it_was_written_with(project: Path) -> None:
    run, text = revive(project / "train")
    assert run.model is not None and set(run.sources) == {"train", "valid", "test"} and 'name = "small"' in text
    last = next(h for h in run.history if h["epoch"] == run.kept)
    for part in ("valid", "test"):
        assert evaluate(run.model, run.sources[part]).to_dict() == last[part]


def test_every_run_of_a_comparison_comes_back_with_its_own_split(project: Path) -> None:
    folders = compared(project)
    assert len(folders) == 6  # two seeds of the joint model, and of either task alone
    for folder in folders:
        run, _ = revive(folder)
        assert run.model is not None
        last = next(h for h in run.history if h["epoch"] == run.kept)
        found = evaluate(run.model, run.sources["test"], tasks=run.tasks).to_dict()
        assert found == {t: last["test"][t] for t in run.tasks}


def test_data_may_be_given_and_changed_data_are_refused(project: Path, tmp_path: Path) -> None:
    tables(tmp_path)
    run, _ = revive(project / "train")
    schema = Schema(run.schema.tasks, run.schema.fields, user="uid", item="sku", time="ts")
    things = tmp_path / "tables" / "things.csv"
    data = read_dataset(tmp_path / "tables" / "log.csv", schema, items=things)
    again, _ = revive(project / "train", data)
    assert run.model is not None and again.model is not None
    assert torch.equal(predict(run.model, run.sources["test"]), predict(again.model, again.sources["test"]))
    tables(tmp_path, shift=1)
    with pytest.raises(StateError, match="the train rows read now are not those of the run; did data or split change"):
        revive(project / "train", read_dataset(tmp_path / "tables" / "log.csv", schema, items=things))


BREAKS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no model": (lambda f: (f / "model" / "model.safetensors").unlink(), "is missing"),
    "no model's manifest": (lambda f: (f / "model" / "manifest.json").unlink(), "manifest"),
    "another model": (lambda f: (f / "model" / "model.safetensors").write_bytes(b"x" * 900), "another size|damaged"),
    "no configuration": (lambda f: (f / "config.toml").unlink(), "Bundle.save"),
    "no configuration to read": (lambda f: (f / "config.toml").write_text("name ="), "not valid TOML"),
    "no environment": (lambda f: (f / "environment.json").unlink(), r"environment\.json is missing or damaged"),
    "half an environment": (lambda f: (f / "environment.json").write_text('{"data": 3'), "missing or damaged"),
    "no run": (lambda f: (f / "run.json").unlink(), "no finished run"),
    "no data": (lambda f: (f / "config.toml").write_text(CONFIG.replace("log.csv", "gone.csv")), "gone.csv"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_run_that_is_not_whole_is_refused_in_one_line(project: Path, tmp_path: Path, name: str) -> None:
    tables(tmp_path)
    folder = tmp_path / "project" / "run"
    folder.mkdir(parents=True)
    for file in (project / "train").rglob("*"):
        if file.is_file() and "checkpoints" not in file.parts:
            (folder / file.relative_to(project / "train")).parent.mkdir(exist_ok=True)
            (folder / file.relative_to(project / "train")).write_bytes(file.read_bytes())
    config = (folder / "config.toml").read_text("utf-8")
    (folder / "config.toml").write_text(config.replace("../tables", "../../tables"), "utf-8")
    assert revive(folder)[0].model is not None
    change, match = BREAKS[name]
    change(folder)
    with pytest.raises((StateError, ConfigError, DataError), match=match) as caught:
        revive(folder)
    assert "\n" not in str(caught.value)


def test_bundle_and_recommend_are_one_command_each(project: Path, done: Call, tmp_path: Path) -> None:
    shown = done("bundle", project / "train", "--to", tmp_path / "bundle")
    found = Bundle.load(tmp_path / "bundle")
    assert shown.split() == f"bundle: {tmp_path / 'bundle'} (version {found.version}, ordered by watch)".split()
    run, text = revive(project / "train")
    assert run.model is not None and (tmp_path / "bundle" / "config.toml").read_text("utf-8") == text
    part = run.sources["test"]
    assert part.source is not None
    scored = found.score(part.source.interactions[part.rows]).select(found.tasks).to_torch()
    assert torch.equal(scored, predict(run.model, part))
    told = json.loads(done("recommend", tmp_path / "bundle", "--user", "u3", "--user", "nobody", "-k", "4", "--json"))
    assert told == found.recommend(users=["u3", "nobody"], k=4).to_dicts()
    table = done("recommend", tmp_path / "bundle", "--user", "u3", "-k", "2")
    assert all(i in table for i in found.recommend("u3", 2)["sku"])


def test_a_run_of_a_comparison_brings_its_verdicts_along(project: Path, done: Call, tmp_path: Path) -> None:
    joint = next(f for f in compared(project) if len(revive(f)[0].tasks) == 2)
    told = json.loads(
        done("bundle", joint, "--to", tmp_path / "bundle", "--mix", "0.7 * watch + 0.3 * stars", "--json")
    )
    found = Bundle.load(tmp_path / "bundle")
    assert told == {"bundle": str(tmp_path / "bundle"), "version": found.version, "mix": found.mix.text}
    verdicts = found.contents.facts["verdicts"]
    assert {v["task"] for v in verdicts} == {"watch", "stars"}
    assert all(re.match(r"\w+ \d+\.\d{4} against \d+\.\d{4} alone: [+-]\d", v["text"]) for v in verdicts)
    assert "## What sharing did" in (tmp_path / "bundle" / "README.md").read_text("utf-8")
    assert "Not measured" not in (tmp_path / "bundle" / "README.md").read_text("utf-8")


def test_the_bundle_of_a_run_is_beside_its_model_and_may_be_made_again(project: Path, done: Call) -> None:
    for _ in range(2):
        done("bundle", project / "train")
    assert Bundle.load(project / "train" / "bundle").name == "small"
    assert revive(project / "train")[0].model is not None


def test_lists_of_all_users_are_written_to_a_file(project: Path, done: Call, tmp_path: Path) -> None:
    done("bundle", project / "train", "--to", tmp_path / "bundle")
    done("recommend", tmp_path / "bundle", "--to", tmp_path / "lists.csv", "-k", "3")
    found = pl.read_csv(tmp_path / "lists.csv", infer_schema=False)
    expected = Bundle.load(tmp_path / "bundle").recommend(users=[f"u{k}" for k in range(10)], k=3)
    assert sorted(found.select("uid", "sku").rows()) == sorted(expected.select("uid", "sku").rows())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bundle", "nowhere"], "holds no finished run"),
        (["bundle", "{train}", "--mix", "wotch"], "wotch"),
        (["bundle", "{train}", "--to", "{tables}"], "would be lost; name a new folder"),
        (["bundle", "{train}", "--report", "{tables}/log.csv"], "no report of a comparison"),
        (["recommend", "{train}"], "is no bundle: it has no manifest.json"),
        (["recommend", "{train}/model"], "format None"),
    ],
)
def test_a_mistake_is_one_line(
    project: Path, call: Callable[..., tuple[int, str, str]], arguments: list[str], message: str
) -> None:
    places = {"train": project / "train", "tables": project / "tables"}
    code, out, err = call(*(a.format(**places) for a in arguments))
    assert code != 0 and out == "" and message in " ".join(err.split()) and "Traceback" not in err
    assert (project / "tables" / "log.csv").is_file()


def test_lists_of_a_file_of_users_are_written_by_a_command_that_loads_no_trainer(
    project: Path, tmp_path: Path, done: Call
) -> None:
    done("bundle", project / "train", "--to", tmp_path / "bundle")
    (tmp_path / "who.csv").write_text("uid\nu3\nnobody\nu1\n", "utf-8")
    code = (
        "import sys; from polytask.cli import main\n"
        "try: main()\n"
        "finally: print(*(m for m in sys.modules if m.startswith('polytask.')), file=sys.stderr)"
    )
    options = ["--users", str(tmp_path / "who.csv"), "--to", str(tmp_path / "lists.parquet"), "-k", "3", "--json"]
    found = subprocess.run(
        [sys.executable, "-c", code, "recommend", str(tmp_path / "bundle"), *options],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(found.stdout) == {"to": str(tmp_path / "lists.parquet")}
    trainers = {f"polytask.{m}" for m in ("train", "replicas", "run", "compare", "report", "tune", "config")}
    assert not trainers & set(found.stderr.split())
    lists = pl.read_parquet(tmp_path / "lists.parquet")
    assert lists["uid"].to_list() == ["u3"] * 3 + ["nobody"] * 3 + ["u1"] * 3
    expected = Bundle.load(tmp_path / "bundle").recommend(users=["u3", "nobody", "u1"], k=3)
    assert lists["sku"].equals(expected["sku"]) and lists["rank"].to_list() == [1, 2, 3] * 3


@pytest.mark.parametrize("options", [["--users", "who.csv"], ["--to", "x.csv", "--user", "u1"]], ids=str)
def test_users_and_their_file_go_together(
    project: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]], options: list[str]
) -> None:
    assert call("bundle", project / "train", "--to", tmp_path / "bundle")[0] == 0
    code, _, err = call("recommend", tmp_path / "bundle", *options)
    assert code == 1 and "--users and --to go together" in err and "Traceback" not in err
