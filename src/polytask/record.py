"""The run folder while a training writes it: metrics line by line, TensorBoard, checkpoints, the final model."""

import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter

from polytask import checkpoint
from polytask.checkpoint import Checkpoint
from polytask.files import append_line, lock, write_folder, write_json, write_lines, write_text
from polytask.predictions import TEST_FILE, Predictions
from polytask.run import METRICS_FILE, Run

_PAUSE = 10.0  # seconds between checkpoints unless the configuration counts steps
Progress = Callable[[int, int], None]


class Recorder(AbstractContextManager["Recorder"]):
    """Writes what R runs leave behind, and finds where to go on.

    ``folders`` [R] are the run folders, empty to write nothing. ``state`` is where checkpoints of the stack
    go. ``progress`` is told (steps done, steps in all). With ``force`` a checkpoint of another configuration
    is used all the same. ``config`` is TOML to keep beside the run. ``sweeps`` [R] name the sweep of each run, if any.
    """

    def __init__(
        self,
        folders: Sequence[Path] = (),
        state: Path | None = None,
        *,
        names: Sequence[str] = (),
        sweeps: Sequence[str] = (),
        progress: Progress | None = None,
        force: bool = False,
        config: str = "",
    ) -> None:
        self.folders, self.state, self.names, self.force = list(folders), state, list(names), force
        self.sweeps = list(sweeps)
        self.config = config
        self.progress = progress or (lambda done, total: None)
        self._open = ExitStack()
        self._writers: list[SummaryWriter] = []
        self._saved = time.monotonic()

    @classmethod
    def of(
        cls,
        folder: str | Path,
        *,
        name: str = "",
        progress: Progress | None = None,
        force: bool = False,
        config: str = "",
    ) -> Self:
        """The recorder of a single run in ``folder``, with its checkpoints below it."""
        path, names = Path(folder), [name or Path(folder).name]
        return cls([path], path / "checkpoints", names=names, progress=progress, force=force, config=config)

    def __enter__(self) -> Self:
        with ExitStack() as opened:  # all locks or none
            for folder in dict.fromkeys([*self.folders, *([self.state] if self.state else [])]):
                opened.enter_context(lock(folder))
            self._open = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers:
            writer.close()
        self._open.close()

    def resume(self, identity: dict[str, Any]) -> Checkpoint | None:
        """The state to go on from, if there is one, with the metrics files cut back to it."""
        found = checkpoint.newest(self.state, identity, force=self.force) if self.state else None
        for number, folder in enumerate(self.folders):
            history = found.rest["history"][number] if found else []
            write_lines(folder / METRICS_FILE, history)
            write_json(folder / "environment.json", identity["environment"] | {"data": identity["data"]})
            if self.config:
                write_text(folder / "config.toml", self.config)
            self._writers.append(SummaryWriter(str(folder), purge_step=history[-1]["epoch"] + 1 if history else 1))
        return found

    def epoch(self, run: int, record: dict[str, Any]) -> None:
        """Append one epoch of one run to its metrics file and to TensorBoard."""
        if self.folders:
            append_line(self.folders[run] / METRICS_FILE, record)
            for tag, value in _scalars(record):
                self._writers[run].add_scalar(tag, value, record["epoch"])

    def due(self, step: int, every: int) -> bool:
        """Whether a checkpoint is to be written after ``step``."""
        return bool(self.state) and (step % every == 0 if every else time.monotonic() - self._saved >= _PAUSE)

    def save(self, state: Checkpoint) -> None:
        """Write a checkpoint of the whole stack."""
        if self.state:
            checkpoint.save(self.state, state)
            self._saved = time.monotonic()

    def finish(self, number: int, run: Run, told: Predictions | None = None) -> None:
        """Write a finished run: its model, what it ``told`` on test, and last the file that marks it as finished."""
        if not self.folders or run.model is None:
            return
        tensors = {n: t.detach().contiguous() for n, t in run.model.state_dict().items()}
        write_folder(self.folders[number] / "model", lambda path: save_file(tensors, path / "model.safetensors"))
        run.folder = self.folders[number]
        if told is not None:
            told.save(run.folder / TEST_FILE)
        run.save(run.folder)


def environment() -> dict[str, Any]:
    """What bit-identity depends on: versions, machine type and thread count."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def peak_memory() -> int:
    """The most bytes this process has held in memory; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _scalars(record: dict[str, Any]) -> list[tuple[str, float]]:
    flat = [(f"train/{name}", value) for name, value in record["train"].items()]
    flat += [(f"weights/{name}", value) for name, value in record.get("weights", {}).items()]
    for part in ("valid", "test"):
        flat += [(f"{part}/{t}/{m}", v) for t, scores in record.get(part, {}).items() for m, v in scores.items()]
    flat += [(f"gates/{g['gate']}/{k}", g[k]) for g in record.get("gates", ()) for k in ("entropy", "balance", "dead")]
    flat += [(f"propensity/{t}/{k}", v) for t, use in record.get("propensity", {}).items() for k, v in use.items()]
    return [(tag, value) for tag, value in flat if value is not None]
