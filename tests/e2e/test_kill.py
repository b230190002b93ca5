"""Kill -9 at any moment, run the same command again: the end is the same, to the bit.

``POLYTASK_KILLS`` sets the number of kills of the long test (3 by default): 50 takes some minutes.
"""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from polytask import cli
from polytask.compare import Experiment, Setting, compare
from polytask.data.synthetic import synthetic
from polytask.data.table import Dataset
from polytask.errors import StateError
from polytask.files import lock
from polytask.nn.design import Design
from polytask.run import TrainConfig

KILLS = int(os.environ.get("POLYTASK_KILLS", "3"))
EPOCHS = max(20, 2 * KILLS)
STEPS = 7 * EPOCHS  # 414 training rows in batches of 64
EVERY = 3
PATIENCE = 120.0  # seconds until a test gives up waiting

CONFIG = f"""
name = "small"
[data]
interactions = "log.csv"
user = "uid"
item = "sku"
[[task]]
name = "watch"
kind = "ranking"
head = "dot"
[[task]]
name = "stars"
kind = "regression"
label = "stars"
[model]
dim = 4
tower = [8]
[train]
epochs = {EPOCHS}
batch = 64
patience = 0
"""

# A server that has PyTorch loaded forks every process to be killed: real processes, without the seconds of a start.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["polytask.train", "polytask.compare", "polytask.console", "torch._dynamo"])
Process = multiprocessing.process.BaseProcess


@contextmanager
def one_thread() -> Iterator[None]:
    """As the command line trains; another thread count gives other sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration and its log."""
    path = tmp_path_factory.mktemp("kill")
    rows = [f"u{k % 23},i{(k * k + k // 23) % 37},{1 + (k * 7 + k // 5) % 5}" for k in range(460)]
    (path / "log.csv").write_text("\n".join(["uid,sku,stars", *rows, ""]), "utf-8")
    (path / "some.toml").write_text(CONFIG, "utf-8")
    return path


def arguments(folder: Path, name: str) -> list[str]:
    return ["train", str(folder / "some.toml"), "--folder", str(folder / name), f"--set=train.checkpoint_steps={EVERY}"]


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, bytes]:
    """What a training leaves that nobody interrupted."""
    with pytest.MonkeyPatch.context() as patch, one_thread(), pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["polytask", *arguments(folder, "whole")])
        cli.main()
    assert ended.value.code == 0
    return left(folder / "whole")


def left(run: Path) -> dict[str, bytes]:
    """Weights, optimizer state, metrics and model of a finished run; nothing half-written lies about."""
    assert (run / "run.json").is_file() and parts(run) == []
    last = max((run / "checkpoints").glob("step-*"))
    paths = [last / "state.safetensors", run / "model" / "model.safetensors", run / "metrics.jsonl"]
    assert steps(run) == STEPS
    return {str(p.relative_to(run)): p.read_bytes() for p in paths}


def parts(run: Path) -> list[Path]:
    """Temporary files and folders below ``run``."""
    return list(run.rglob(".*.tmp*"))


def steps(run: Path) -> int:
    """The step of the newest checkpoint, 0 before the first."""
    return max((int(p.name.removeprefix("step-")) for p in (run / "checkpoints").glob("step-*")), default=0)


def command(line: Sequence[str], slow: bool) -> None:
    """A process's work: the command line, with ``slow`` on a disk so slow that a save can be hit in its middle."""
    if slow:
        flush = os.fsync
        os.fsync = lambda handle: (time.sleep(0.1), flush(handle))[1]  # type: ignore[func-returns-value]
    sys.argv = ["polytask", *line]
    cli.main()


def comparison(folder: Path) -> None:
    """A process's work: the comparison, in two processes of its own."""
    compare(data(), experiment(), folder, workers=2)


def start(work: Callable[..., None], *arguments: object) -> Process:
    process = FORKS.Process(target=work, args=arguments)
    process.start()
    return process


def kill_when(process: Process, moment: Callable[[], object], pause: float = 0.0) -> None:
    """Kill -9 as soon as ``moment()`` is true; a process that ends before it fails the test."""
    end = time.monotonic() + PATIENCE
    while not moment():
        assert process.is_alive() and time.monotonic() < end, f"it ended before the kill, with {process.exitcode}"
        time.sleep(0.0005)
    time.sleep(pause)
    assert process.is_alive(), "it ended before the kill"
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def finish(process: Process) -> None:
    process.join(PATIENCE)
    assert process.exitcode == 0


def test_killed_at_random_moments(folder: Path, whole: dict[str, bytes]) -> None:
    run, draw = folder / "random", random.Random(20_261)
    line = arguments(folder, "random")
    for goal in sorted(draw.sample(range(EVERY, int(0.9 * STEPS), EVERY), KILLS)):
        before = steps(run)
        least = max(goal, before + 1)
        kill_when(start(command, line, False), lambda least=least: steps(run) >= least, draw.uniform(0.0, 0.02))
        assert 0 < before + EVERY <= steps(run) < STEPS and not (run / "run.json").exists()
    first = min((run / "checkpoints").glob("step-*")).stat().st_mtime_ns
    done = subprocess.run([sys.executable, "-m", "polytask", *line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert left(run) == whole
    assert steps(run) == STEPS and max((run / "checkpoints").glob("step-*")).stat().st_mtime_ns > first
    assert len(list(run.glob("events.out.tfevents.*"))) == KILLS + 1


def test_killed_inside_a_save(folder: Path, whole: dict[str, bytes]) -> None:
    run = folder / "inside"
    line = arguments(folder, "inside")
    goal = 3 * EVERY
    saves = (run / "checkpoints").glob
    kill_when(start(command, line, True), lambda: steps(run) >= goal and any(saves(".step-*.tmp")))
    assert [p.name for p in parts(run) if p.name.startswith(".step-")], "the kill missed the save"
    reached = steps(run)
    (run / f".metrics.jsonl.{os.getpid()}.tmp").write_bytes(b"what a killed process had begun")
    assert goal <= reached < STEPS
    finish(start(command, line, False))
    assert left(run) == whole


def data() -> Dataset:
    return synthetic(20, 30, 300)


def experiment() -> Experiment:
    """Two architectures, so two stacks however many processes there are."""
    train, weights = TrainConfig(epochs=12, batch=32, checkpoint_steps=4, patience=0), {"watch": 0.5, "rating": 0.5}
    designs = {share: Design("factorize", 4, share, (8,)) for share in ("shared", "separate")}
    settings = tuple(Setting(name, design, weights, train) for name, design in designs.items())
    return Experiment(settings, seeds=(0, 1), valid=0.1, test=0.1)


def children(pid: int) -> dict[int, str]:
    """The processes that ``pid`` started and their start times, which tell them from later ones of the same number."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text("utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] not in "ZX":
            found[int(stat.parent.name)] = fields[19]
    return found


def alive(known: dict[int, str]) -> list[int]:
    """Those of ``known`` that still run."""
    found = []
    for pid, started in known.items():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if fields[19] == started and fields[0] not in "ZX":
            found.append(pid)
    return found


def held(folders: Sequence[Path]) -> list[str]:
    """What is said of those ``folders`` that somebody has locked."""
    found = []
    for folder in folders:
        try:
            with lock(folder):
                pass
        except StateError as error:
            found.append(str(error))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_a_comparison_killed_in_two_processes(tmp_path: Path) -> None:
    with one_thread():
        wanted = [r.history for r in compare(data(), experiment(), tmp_path / "whole", workers=1)]
    folder = tmp_path / "killed"
    process = start(comparison, folder)
    workers: dict[int, str] = {}

    def both_work() -> bool:
        if len(list(folder.glob("stacks/*/step-*"))) < 2 or len(list(folder.glob("stacks/*/"))) < 2:
            return False
        workers.update(children(process.pid or 0))
        return True

    kill_when(process, both_work)
    assert len(workers) >= 2 and not list(folder.glob("runs/*/run.json"))
    locked, end = [folder, *folder.glob("stacks/*/"), *folder.glob("runs/*/")], time.monotonic() + 5
    while (alive(workers) or held(locked)) and time.monotonic() < end:
        time.sleep(0.02)
    assert (alive(workers), held(locked)) == ([], [])
    finish(start(comparison, folder))
    with one_thread():
        assert [r.history for r in compare(data(), experiment(), folder, workers=1)] == wanted
    for name in ("metrics.jsonl", "model/model.safetensors"):
        files = sorted((tmp_path / "whole").glob(f"runs/*/{name}"))
        assert len(files) == 8
        for file in files:
            assert (folder / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes()
    assert parts(folder) == []
