"""A bundle in another process, and from a folder nobody may write to."""

import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
from shipped import DOT, FIELDS, STARS, WATCH, cut, finished, rows_of, scores, shipped

from polytask.evaluate import predict
from polytask.schema import Task

TRAINING = ("train", "report", "compare", "run", "record", "replicas", "steps", "gradients", "cli", "console", "config")
FOREIGN = ("tensorboard", "plotly", "rich", "typer", "jinja2", "pandas", "sklearn", "faiss", "fastapi")
READ = """
import sys
import polars as pl
import torch
torch.set_num_threads(1)
import polytask.recommend
from polytask.bundle import Bundle
bundle, rows = Bundle.load(sys.argv[1]), pl.read_parquet(sys.argv[2])
bundle.score(rows).write_parquet(sys.argv[3])
bundle.recommend(users=["u1", "u2", "nobody"], k=5).write_parquet(sys.argv[4])
bundle.search("item", "rose"), bundle.similar("i1", 2), bundle.history("u1"), bundle.explain("u1", "i2")
print(*(m for m in sys.modules if m.startswith("polytask.") or "." not in m))
"""


def read(bundle: Path, rows: pl.DataFrame, folder: Path, *before: str) -> tuple[pl.DataFrame, pl.DataFrame, list[str]]:
    """Scores and lists that a new interpreter gives, and the modules it imported; ``before`` starts it."""
    rows.write_parquet(folder / "rows.parquet")
    paths = [str(bundle), *(str(folder / f"{n}.parquet") for n in ("rows", "scores", "lists"))]
    command = [*before, sys.executable, "-W", "error", "-c", READ, *paths]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return pl.read_parquet(paths[2]), pl.read_parquet(paths[3]), done.stdout.split()


@pytest.mark.parametrize(("tasks", "body"), [((WATCH, STARS), "mmoe"), ((DOT, STARS), "history")])
def test_a_new_process_gives_the_same_numbers_and_imports_no_trainer(
    tmp_path: Path, tasks: tuple[Task, ...], body: str
) -> None:
    parts = cut(tasks, *FIELDS[: 8 if body == "mmoe" else 5])
    run = finished(parts, body=body)
    found = shipped(run, tmp_path / "bundle")
    assert parts.test is not None and run.model is not None
    told, lists, modules = read(tmp_path / "bundle", rows_of(parts.test), tmp_path)
    assert torch.equal(told.select(found.tasks).to_torch(), predict(run.model, parts.test))
    assert lists.equals(found.recommend(users=["u1", "u2", "nobody"], k=5))
    assert "polytask.bundle" in modules
    assert sorted({f"polytask.{m}" for m in TRAINING} & set(modules)) == []
    assert sorted(set(FOREIGN) & set(modules)) == []


def test_a_folder_without_the_right_to_write_is_enough_and_stays_as_it_is(tmp_path: Path) -> None:
    parts, folder = cut((DOT, STARS), *FIELDS), tmp_path / "bundle"
    found = shipped(finished(parts), folder)
    before = {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}
    for file in (*folder.iterdir(), folder):
        file.chmod(0o555 if file.is_dir() else 0o444)
    try:
        told, _, _ = read(folder, rows_of(parts.train), tmp_path)
        assert torch.equal(told.select(found.tasks).to_torch(), scores(found, rows_of(parts.train)))
        assert {f.name: f.stat().st_mtime_ns for f in folder.iterdir()} == before
    finally:
        folder.chmod(0o755)


def test_a_read_only_mount_is_enough(tmp_path: Path) -> None:
    parts, folder = cut((DOT, STARS), *FIELDS), tmp_path / "bundle"
    found = shipped(finished(parts), folder)
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && ! touch "$0/x" 2>/dev/null'
    inside = ["unshare", "-rm", "sh", "-c", mount + ' && exec "$@"', str(folder)]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*inside, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs Linux and the right to mount in a namespace of one's own")
    told, _, _ = read(folder, rows_of(parts.train), tmp_path, *inside)
    assert torch.equal(told.select(found.tasks).to_torch(), scores(found, rows_of(parts.train)))
