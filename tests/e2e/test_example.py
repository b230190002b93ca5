"""The exercise's own command line: its flags, and what it logs."""

import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

MAIN = Path(__file__).parents[2] / "examples" / "cs330" / "main.py"
FLAGS = {
    "test_fraction",
    "epochs",
    "factorization_weight",
    "regression_weight",
    "shared_embeddings",
    "no_shared_embeddings",
    "logdir",
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(MAIN), *arguments], capture_output=True, text=True, timeout=300)


def test_the_flags_are_the_exercises() -> None:
    shown = run("--help").stdout
    assert all(f"--{flag}" in shown for flag in FLAGS)


@pytest.mark.parametrize("share", [[], ["--no_shared_embeddings"]])
def test_it_logs_what_the_exercise_logs(movielens: Path, tmp_path: Path, share: list[str]) -> None:
    weights = ["--factorization_weight", "0.99", "--regression_weight", "0.01"]
    ended = run(*weights, *share, "--epochs", "1", "--logdir", str(tmp_path / "run"))
    assert ended.returncode == 0, ended.stderr
    assert "test MSE" in ended.stdout and "test MRR" in ended.stdout
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    wanted = {"train/rating", "train/watch", "train/joint", "test/rating/mse", "test/watch/mrr"}
    assert wanted <= set(events.Tags()["scalars"])


def test_a_mistake_is_one_line(movielens: Path, tmp_path: Path) -> None:
    ended = run("--factorization_weight", "-1", "--regression_weight", "0.5", "--logdir", str(tmp_path / "run"))
    assert ended.returncode == 1 and ended.stderr.startswith("main.py: ") and ended.stderr.count("\n") == 1
