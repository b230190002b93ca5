"""Whatever is wrong with the input: a code other than 0, one line that says what to do, nothing half-written."""

import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from polytask import cli

Call = Callable[..., str]

CONFIG = """
name = "small"

[data]
interactions = "log.csv"
user = "uid"
item = "sku"
time = "ts"

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
batch = 32
checkpoint_steps = 3
"""


def table(rows: int = 80, stars: Callable[[int], object] = lambda k: 1 + k % 5) -> str:
    """A log as CSV: 10 users, 16 items, no pair twice in the first 80 rows."""
    lines = [f"u{k % 10},i{(k % 10 + k // 10) % 16},{stars(k)},{1_000_000_000 + k}" for k in range(rows)]
    return "\n".join(["uid,sku,stars,ts", *lines, ""])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a good configuration and log, which is also the current one; no data set within reach."""
    (tmp_path / "some.toml").write_text(CONFIG, "utf-8")
    (tmp_path / "log.csv").write_text(table(), "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POLYTASK_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: its exit code, and what it wrote to the two streams."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["polytask", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        assert isinstance(code, int)
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def refused(run: Callable[..., tuple[int, str, str]]) -> Call:
    """Run a command that must be refused; its one line."""

    def call(*arguments: str) -> str:
        code, out, err = run(*arguments)
        assert (code, out) == (1, ""), (code, out, err)
        assert err.startswith("polytask: ") and err.endswith("\n") and err.count("\n") == 1, err
        assert "Traceback" not in err and "\x1b" not in err, err
        return err.removeprefix("polytask: ").strip()

    return call


def files(path: Path) -> list[str]:
    """What lies below ``path``, locks aside."""
    return sorted(str(f.relative_to(path)) for f in path.rglob("*") if f.is_file() and f.name != ".lock")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('label = "stars"', 'label = "starz"', "no column 'starz' in log.csv. Did you mean 'stars'? Columns: uid, sku"),
        ('user = "uid"', 'user = "uid"\nseparator = ";"', "the separator looks like ','; set separator = \",\""),
        ('user = "uid"', 'user = "uid"\nseparator = ";;"', "is not one ASCII character; convert the file"),
        ("epochs = 2", "epoch = 2", "key 'epoch' is unknown. Did you mean 'epochs'?"),
        ("epochs = 2", "epochs = 0", "train.epochs = 0 must be at least 1"),
        ("epochs = 2", 'epochs = "two"', "epochs = 'two'"),
        ("epochs = 2", "lr = nan", "lr must be above 0"),
        ("epochs = 2", "lr = 0", "lr must be above 0"),
        ("epochs = 2", "lr = inf", "lr must be above 0"),
        ("epochs = 2", "lr = 1e30", "lower lr or set clip"),
        ("epochs = 2", "weight_decay = nan", "weight_decay, clip and checkpoint_steps not below 0; all finite"),
        ("epochs = 2", 'optimizer = "adm"', "optimizer 'adm' is unknown. Did you mean 'adam'? Known: adam"),
        ("epochs = 2", 'schedule = "cosin"', "schedule 'cosin' is unknown. Did you mean 'cosine'?"),
        ("epochs = 2", 'negatives = "uniformly"', "negatives 'uniformly' is unknown. Did you mean 'uniform'?"),
        ("dim = 2", 'body = "factorise"', "body 'factorise' is unknown. Did you mean 'factorize'? Known: "),
        ("dim = 2", "dim = 0", "dim = 0 must be at least 1"),
        ("dim = 2", "options = { expert = 2 }", "option of body 'factorize' 'expert' is unknown"),
        ("dim = 2", 'share = "half"', "share = 'half'"),
        ("tower = [4]", "tower = [0]", "tower = [0]: every width must be at least 1"),
        ("tower = [4]", "tower = [4, -4]", "tower = [4, -4]: every width must be at least 1"),
        ("dim = 2", "dim = 10000000000", "not enough memory; lower model.dim"),
        ("epochs = 2", "seed = -1", "train.seed = -1 must be at least 0"),
        ("epochs = 2", "seed = 1.5", "train.seed = 1.5"),
        ('kind = "ranking"', 'kind = "ranking"\nnegatives = 0', "negatives >= 1"),
        ("range = [1, 5]", "range = [5, 1]", "range = [5.0, 1.0] is empty; write [lowest, highest]"),
        ("range = [1, 5]", "range = [nan, 5]", "is empty; write [lowest, highest]"),
        ("range = [1, 5]", 'loss = "mze"', "loss 'mze' is unknown. Did you mean 'mse'?"),
        ("range = [1, 5]", 'loss = "bpr"', "task 'stars': loss 'bpr' is for ranking tasks; regression takes: "),
        ("range = [1, 5]", 'metrics = ["rmze"]', "metric 'rmze' is unknown. Did you mean 'rmse'?"),
        ("range = [1, 5]", 'metrics = ["auc"]', "metric 'auc'"),
        ("range = [1, 5]", "range = [1, 4]", "log.csv line 6: stars 5 is outside 1..4 (task 'stars'); fix the row or"),
        ("range = [1, 5]", "weight = -1", "task 'stars': weight must be"),
        ("range = [1, 5]", "weight = nan", "task 'stars': weight must be"),
        ("range = [1, 5]", 'kind2 = "x"', "key 'kind2' is unknown. Did you mean 'kind'?"),
        ('kind = "regression"\nlabel = "stars"', 'kind = "regression"', "a regression task needs label = "),
        ('kind = "regression"', 'kind = "regresion"', "should be 'ranking', 'regression' or"),
        ('kind = "regression"\nlabel = "stars"', 'kind = "binary"\npositive = "stars => 4"', "as in 'rating >= 4'"),
        ('name = "stars"', 'name = "watch"', "task 'watch' is named twice"),
        ('time = "ts"', 'split = { kind = "randum" }', "split 'randum' is unknown. Did you mean 'random'?"),
        ('time = "ts"', 'split = { kind = "temporal" }', "has no time column; name it in the schema or use 'random'"),
        ('time = "ts"', "split = { valid = 0.5, test = 0.5 }", "must be >= 0 and leave rows for train"),
        ('time = "ts"', "split = { seed = -1 }", "split: seed = -1 must be at least 0"),
        ('time = "ts"', "split = { valid = nan }", "must be >= 0 and leave rows for train"),
        ('time = "ts"', 'time = "sku"', "column 'sku' cannot be id and time at once; copy the column"),
        ('user = "uid"', "", "needs the user and item columns"),
        ("log.csv", "lag.csv", "no file lag.csv; check the path"),
        ("log.csv", "movielens-10k", "data set 'movielens-10k' is unknown. Did you mean 'movielens-100k'?"),
        ("[model]", "[model", "not valid TOML"),
        ("[model]", "[modl]", "key 'modl' is unknown. Did you mean 'model'?"),
        ('kind = "ranking"', 'kind = "ranking"\nweight = 0', "at least one must be above"),
    ],
)
def test_a_configuration_that_cannot_be(folder: Path, refused: Call, old: str, new: str, says: str) -> None:
    edit(folder / "some.toml", old, new)
    if "weight = 0" in new:
        edit(folder / "some.toml", "range = [1, 5]", "weight = 0.0")
    before = files(folder)
    assert says in refused("train", "some.toml", "--folder", "run")
    assert [f for f in files(folder) if f not in before and not kept_of_a_failed_run(f)] == []
    if "lr = 1e30" not in new:
        assert not (folder / "run").exists()


def kept_of_a_failed_run(name: str) -> bool:
    """What a training that failed on its way may leave: no run.json, no model, no part of a file."""
    whole = ("run/config.toml", "run/environment.json", "run/metrics.jsonl", "run/events.out", "run/checkpoints/step-")
    return name.startswith(whole) and ".tmp" not in name


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "log.csv is empty; give a file with a header line and rows"),
        ("uid,sku,stars,ts\n", "log.csv is empty: it has no rows after the header"),
        (table().replace(",", ";"), "the separator looks like ';'; set separator = \";\""),
        (table(stars=lambda k: "good" if k in (7, 8) else 3), "log.csv line 9: stars good is not a finite number; fix"),
        (table(stars=lambda k: 1e400 if k == 7 else 3), "log.csv line 9: stars inf is not a finite number; fix"),
        (table(stars=lambda k: 7 if k in (7, 8) else 3), "log.csv line 9: stars 7 is outside 1..5 (task 'stars')"),
        (table(stars=lambda k: ""), "task 'stars': "),
        (table(200), "no negative exists"),
        (table(1), "no negative exists"),
        (table().replace("u3,", ",", 2), "uid is empty; fill the id or remove the row"),
        (table().replace("u3,", "u3,,", 2), "log.csv line 5: 5 fields where 4 are expected; mend the row"),
        (table().replace("sku", "uid"), "column 'uid' is named twice; names are unique"),
        (table().replace("uid,", "", 1), "log.csv"),
        (
            table().replace("stars", "st\x1b[31mars\nx", 1),
            "Columns: uid, sku, 'st\\x1b[31mars'",
        ),
        ('"' + table(), "mend the quotes of this row"),
        (table().encode("utf-16"), "is not UTF-8; convert the file to UTF-8"),
        (b"\0" * 1000, "log.csv"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 60 and "\n" not in value else "",
)
def test_a_log_that_cannot_be_read(folder: Path, refused: Call, content: str | bytes, says: str) -> None:
    (folder / "log.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    assert says in refused("train", "some.toml", "--folder", "run")
    assert files(folder) == ["log.csv", "some.toml"] or all(
        kept_of_a_failed_run(f) for f in files(folder) if f not in ("log.csv", "some.toml")
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["train", "cs333"],
            "experiment 'cs333' is unknown. Did you mean 'cs330'? Known: adult, census, cs330, ",
        ),
        (["train", "absent.toml"], "cannot read absent.toml: No such file or directory"),
        (["train", "log.csv"], "log.csv: not valid TOML"),
        (["train", "."], "experiment '.' is unknown"),
        (["train", "some.toml", "--set", "train.epoch=3"], "key 'epoch' is unknown. Did you mean 'epochs'?"),
        (["train", "some.toml", "--set", "trian.epochs=3"], "key 'trian' is unknown. Did you mean 'train'?"),
        (["train", "some.toml", "--set", "train.epochs"], "write it as key=value, as in train.epochs=5"),
        (["train", "some.toml", "--set", "=3"], "write it as key=value"),
        (["train", "some.toml", "--set", "name.x=3"], "'name' is a value, not a table"),
        (["train", "some.toml", "--set", "train=3"], "train = 3"),
        (["train", "some.toml", "--set", "train.epochs.x=3"], "'train.epochs' is a value, not a table"),
        (["train", "some.toml", "--set", "model.dim.x=3"], "'model.dim' is a value, not a table"),
        (["train", "some.toml", "--set", "task.star.weight=3"], "task 'star' is unknown. Did you mean 'stars'?"),
        (["train", "some.toml", "--set", "task.weight=3"], "write task.NAME.KEY"),
        (["train", "some.toml", "--set", "task.stars.weigth=3"], "key 'weigth' is unknown. Did you mean 'weight'?"),
        (["train", "some.toml", "--set", "task=3"], "task = 3"),
        (["train", "some.toml", "--set", "train.=3"], "key '' is unknown"),
        (["train", "some.toml", "--set", "train.x\x1b[31m\n=3"], "is unknown"),
        (["train", "some.toml", "--folder", "log.csv/run"], "cannot create folder log.csv/run: not a directory"),
        (["train", "some.toml", "--folder", "log.csv"], "cannot create folder log.csv"),
        (["compare", "some.toml", "--handout"], "no variant 'handout' here"),
        (["compare", "some.toml", "--set", "compare.seeds=[]"], "at least one setting and one seed are needed"),
        (["compare", "some.toml", "--set", "compare.seeds=[0, 0]"], "must be different and at least 0"),
        (["compare", "some.toml", "--set", "compare.seeds=[-1]"], "must be different and at least 0"),
        (["compare", "some.toml", "--set", "compare.margin=nan"], "compare.margin = nan: input should be a finite"),
        (["data", "movielens-10k"], "data set 'movielens-10k' is unknown. Did you mean 'movielens-100k'?"),
        (["check", "absent.csv"], "absent.csv"),
        (["check", "log.csv"], "no column 'user_id' in log.csv"),
        (["check", "log.csv", "--user", "uid", "--item", "sku", "--label", "starz"], "Did you mean 'stars'?"),
        (["check", "log.csv", "--user", "uid", "--item", "uid"], "uid"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_that_cannot_be(folder: Path, refused: Call, arguments: list[str], says: str) -> None:
    assert says in refused(*arguments)
    assert files(folder) == ["log.csv", "some.toml"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["trian"],
        ["train"],
        ["train", "some.toml", "extra"],
        ["train", "some.toml", "--epochs", "3"],
        ["compare", "some.toml", "--workers", "0"],
        ["compare", "some.toml", "--workers", "two"],
        ["report"],
        ["report", "runs", "--margin", "-1"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_code_2(folder: Path, run: Callable[..., tuple[int, str, str]], arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "") and "Usage: " in err and "Traceback" not in err
    assert files(folder) == ["log.csv", "some.toml"]


def test_a_cut_archive(folder: Path, refused: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = folder / "data" / "ml-100k.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as whole:
        whole.writestr("ml-100k/u.data", "1\t1\t5\t874724710\n" * 100)
    archive.write_bytes(archive.read_bytes()[:-30])
    monkeypatch.setenv("POLYTASK_DATA", str(archive.parent))
    for arguments in (["data", "movielens-100k"], ["check", "cs330"], ["train", "cs330", "--folder", "run"]):
        assert "ml-100k.zip is not a complete zip file" in refused(*arguments)
    assert not (folder / "run").exists()


def test_report_needs_runs(folder: Path, refused: Call) -> None:
    (folder / "runs").mkdir()
    for path in ("runs", "absent"):
        assert f"{path} holds no finished run (run.json is missing); name a run's folder" in refused("report", path)
    assert not (folder / "report").exists()


def test_a_run_folder_in_use(folder: Path, refused: Call) -> None:
    hold = "import sys; from pathlib import Path; from polytask.files import lock\n"
    hold += "with lock(Path('run')): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        line = refused("train", "some.toml", "--folder", "run")
        assert f"run is in use by process {holder.pid} on " in line and "choose another folder" in line
        assert files(folder / "run") == []
        holder.communicate()
    assert holder.returncode == 0


def test_a_run_folder_of_another_configuration(
    folder: Path, refused: Call, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ("train", "some.toml", "--folder", "run")
    assert run(*train)[0] == 0
    before = {f: (folder / "run" / f).read_bytes() for f in files(folder / "run")}
    line = refused(*train, "--set", "train.lr=0.5")
    assert "0.001" in line and "0.5" in line and "use another --folder, or --force" in line
    edit(folder / "log.csv", "u3,", "u4,")
    assert "was made with data t" in refused(*train)
    (folder / "log.csv").write_text(table(), "utf-8")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert "was made with environment threads = 1, now 7" in refused(*train)
    assert {f: (folder / "run" / f).read_bytes() for f in files(folder / "run")} == before
