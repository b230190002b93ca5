"""Settings x seeds, and the single-task baselines beside them, trained in stacks on all cores; resumable."""

import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Literal, get_args

import torch

from polytask.balance import Balance
from polytask.data.split import split
from polytask.data.table import Dataset
from polytask.errors import ConfigError, PolytaskError, TrainingError, did_you_mean
from polytask.files import folder_name, lock, write_json, write_text
from polytask.nn.design import Design
from polytask.nn.models import make_model
from polytask.record import Recorder
from polytask.run import WIDER, Run, TrainConfig
from polytask.sweep import grid
from polytask.train import fit_many

Progress = Callable[[str, int, int], None]
Capacity = Literal["network", "parameters"]


@dataclass(frozen=True)
class Setting:
    """One way to train: a model design, loss weights by task, and a training configuration (its seed aside).

    Settings of one ``sweep`` differ in their weights alone; validation data choose one of them.
    """

    name: str
    design: Design
    weights: dict[str, float]
    train: TrainConfig
    sweep: str = ""

    def widened(self) -> "Setting | None":
        """This setting on a wider trunk (:meth:`polytask.nn.design.Design.widened`); None where nothing is shared."""
        if self.design.share == "separate" or len([w for w in self.weights.values() if w > 0]) < 2:
            return None
        return replace(self, name=f"{self.name}{WIDER}", design=self.design.widened(), sweep="")

    def swept(self) -> "list[Setting]":
        """This setting with each of the static weights of :func:`polytask.sweep.grid`."""
        train = replace(self.train, balance=Balance())
        return [
            Setting(
                f"{self.name} {'/'.join(f'{w:g}' for w in weights.values())}", self.design, weights, train, self.name
            )
            for weights in grid(list(self.weights))
        ]


@dataclass(frozen=True)
class Experiment:
    """What to compare: ``settings`` x ``seeds``, each seed with its own split and start, equal for all settings.

    With ``baselines`` every task is also trained alone: with the same network (``capacity = "network"``), or with
    one of narrower embeddings, so that all tasks' single models together have no more parameters than the joint
    one (``"parameters"``). With ``wider`` every setting that shares is also trained on a wider trunk, which tells a
    lack of capacity from a conflict. ``split`` names the kind, ``valid`` and ``test`` the shares.
    """

    settings: tuple[Setting, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    baselines: bool = True
    split: str = "random"
    valid: float = 0.05
    test: float = 0.05
    capacity: Capacity = "network"
    wider: bool = False

    def __post_init__(self) -> None:
        if self.capacity not in get_args(Capacity):
            raise ConfigError(did_you_mean("compare.capacity", self.capacity, get_args(Capacity)))
        names = [s.name for s in self.settings]
        if not names or not self.seeds:
            raise ConfigError("compare: at least one setting and one seed are needed")
        if min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"compare: seeds {list(self.seeds)} must be different and at least 0")
        _require_distinct(names)


@dataclass(frozen=True)
class Stack:
    """Runs of one architecture that are trained together: (setting, seed) each."""

    runs: tuple[tuple[Setting, int], ...]

    @property
    def key(self) -> str:
        """A name that changes when its runs do."""
        return hashlib.sha256(repr(self.runs).encode()).hexdigest()[:12]

    @property
    def cost(self) -> int:
        """A rough measure of its work, to balance stacks over cores."""
        return sum(len(s.weights) if s.design.share == "separate" else 1 for s, _ in self.runs)

    def by_setting(self) -> "list[Stack]":
        """A stack for every setting; none where it holds a single one."""
        groups: dict[str, list[tuple[Setting, int]]] = {}
        for setting, seed in self.runs:
            groups.setdefault(setting.name, []).append((setting, seed))
        return [Stack(tuple(runs)) for runs in groups.values()] if len(groups) > 1 else []


class UnfinishedError(TrainingError):
    """Some settings of a comparison could not be trained; ``runs`` are the finished runs of the others."""

    def __init__(self, text: str, runs: Sequence[Run] = ()) -> None:
        super().__init__(text)
        self.runs = list(runs)


def compare(
    data: Dataset,
    experiment: Experiment,
    folder: str | Path,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    force: bool = False,
    config: str = "",
) -> list[Run]:
    """Train every run of ``experiment`` below ``folder`` and return them, without their models.

    Runs of one architecture are stacked; the stacks are spread over ``workers`` processes of one thread each
    (the number of cores by default; 1 trains in this process). ``progress`` is told (stack, steps done,
    steps in all). ``config`` is TOML to keep beside the runs. After a kill the same call goes on where it stopped.
    A setting whose training fails does not stop the others: :class:`UnfinishedError` is raised when those are done.
    """
    folder, tell = Path(folder), progress or (lambda name, done, total: None)
    count = workers or os.cpu_count() or 1
    runs = _runs(experiment, data)
    whole = _stacks(runs)
    with lock(folder):
        stacks = _balanced(whole, _planned(folder, count))
        jobs = [Job(data, experiment, stack, folder, force) for stack in stacks]
        if config:
            write_text(folder / "config.toml", config)
        failed = _here(jobs, tell) if count == 1 else _in_processes(jobs, count, tell)
    lost = [run for stack, _ in failed for run in stack.runs]
    found = [Run.load(_run_folder(folder, *run)) for run in runs if run not in lost]
    if failed:
        told = "; ".join(f"'{stack.runs[0][0].name}': {error}" for stack, error in failed)
        raise UnfinishedError(f"{told} ({len(found)} of {len(runs)} runs are finished below {folder})", found)
    return found


@dataclass(frozen=True)
class Job:
    """One stack to train, with all a process of its own needs."""

    data: Dataset
    experiment: Experiment
    stack: Stack
    folder: Path
    force: bool

    def train(self, progress: Callable[[int, int], None]) -> None:
        """Train the stack; each run leaves its folder."""
        e, runs = self.experiment, self.stack.runs
        splits = {s: split(self.data, e.split, valid=e.valid, test=e.test, seed=s) for s in {seed for _, seed in runs}}
        parts = [splits[seed] for _, seed in runs]
        models = [make_model(part.train, setting.design) for (setting, _), part in zip(runs, parts, strict=True)]
        recorder = Recorder(
            [_run_folder(self.folder, s, seed) for s, seed in runs],
            self.folder / "stacks" / self.stack.key,
            names=[s.name for s, _ in runs],
            sweeps=[s.sweep for s, _ in runs],
            progress=progress,
            force=self.force,
        )
        fit_many(
            models,
            [p.train for p in parts],
            [p.valid for p in parts if p.valid] or None,
            [p.test for p in parts if p.test] or None,
            weights=[s.weights for s, _ in runs],
            config=[replace(s.train, seed=seed) for s, seed in runs],
            recorder=recorder,
        )

    def by_setting(self) -> "list[Job]":
        """What to train in its place when it fails: one of its settings may be at fault, and not the others."""
        return [replace(self, stack=stack) for stack in self.stack.by_setting()]


def _runs(experiment: Experiment, data: Dataset) -> list[tuple[Setting, int]]:
    wide = [w for s in experiment.settings if experiment.wider and (w := s.widened())]
    whole = replace(experiment, settings=(*experiment.settings, *wide))
    settings = [*whole.settings, *(_baselines(whole, data) if experiment.baselines else ())]
    _require_distinct([s.name for s in settings])
    return [(setting, seed) for setting in settings for seed in experiment.seeds]


def _require_distinct(names: Sequence[str]) -> None:
    folders = [folder_name(n) for n in names]
    if repeated := [n for n, f in zip(names, folders, strict=True) if folders.count(f) > 1]:
        raise ConfigError(f"compare: setting '{repeated[0]}' is named twice, or its folder would be; rename it")


def _baselines(experiment: Experiment, data: Dataset) -> list[Setting]:
    """For every network among the settings, each task trained alone: the other losses have weight 0."""
    names = data.schema.task_names
    networks = dict.fromkeys((s.design.joined(), replace(s.train, balance=Balance())) for s in experiment.settings)
    found = []
    for number, (design, train) in enumerate(networks):
        suffix = f" ({design.body}, net {number + 1})" if len(networks) > 1 else ""
        if experiment.capacity == "parameters":
            design = _narrowed(design, experiment, data)
            suffix += f" (equal parameters, dim {design.dim})"
        for task in names:
            weights = {t: float(t == task) for t in names}
            found.append(Setting(f"{task} alone{suffix}", design, weights, train))
    return found


def _narrowed(design: Design, experiment: Experiment, data: Dataset) -> Design:
    """The widest embeddings with which one model per task has together at most the joint model's parameters."""
    e = experiment
    part = split(data, e.split, valid=e.valid, test=e.test, seed=e.seeds[0]).train
    joint = sum(p.numel() for p in make_model(part, design).parameters())
    for dim in range(design.dim, 0, -1):
        model = make_model(part, design._replace(dim=dim))
        if sum(p.numel() for t in model.schema.task_names for p in model.read_by([t])) <= joint:
            return design._replace(dim=dim)
    raise ConfigError(
        f"compare: body '{design.body}' is so wide that even embeddings of width 1 give single-task models more "
        'parameters than the joint one; narrow it, or set capacity = "network"'
    )


def _stacks(runs: Sequence[tuple[Setting, int]]) -> list[Stack]:
    groups: dict[object, list[tuple[Setting, int]]] = {}
    for setting, seed in runs:
        groups.setdefault((setting.design, setting.train.stackable()), []).append((setting, seed))
    return [Stack(tuple(runs)) for runs in groups.values()]


def _balanced(stacks: Sequence[Stack], workers: int) -> list[Stack]:
    """Halve the costliest stack until every worker has one, the costliest first."""
    found = sorted(stacks, key=lambda s: -s.cost)
    while len(found) < workers and len(found[0].runs) > 1:
        runs = found.pop(0).runs
        found += [Stack(runs[: len(runs) // 2]), Stack(runs[len(runs) // 2 :])]
        found.sort(key=lambda s: -s.cost)
    return found


def _planned(folder: Path, workers: int) -> int:
    """The number of workers the stacks were first made for: another number now must not make other stacks."""
    path = folder / "plan.json"
    if not path.exists():
        write_json(path, {"workers": workers})
    return int(json.loads(path.read_text("utf-8"))["workers"])


def _run_folder(folder: Path, setting: Setting, seed: int) -> Path:
    return folder / "runs" / f"{folder_name(setting.name)}-seed{seed}"


Failed = list[tuple[Stack, TrainingError]]


def _here(jobs: Sequence[Job], tell: Progress) -> Failed:
    waiting, failed = list(jobs), Failed()
    while waiting:
        job = waiting.pop(0)
        try:
            job.train(lambda done, total, key=job.stack.key: tell(key, done, total))  # type: ignore[misc]
        except TrainingError as error:
            _give_up(job, error, waiting, failed)
    return failed


def _give_up(job: Job, error: TrainingError, waiting: list[Job], failed: Failed) -> None:
    waiting += (smaller := job.by_setting())
    if not smaller:
        failed.append((job.stack, error))


def _in_processes(jobs: Sequence[Job], workers: int, tell: Progress) -> Failed:
    """Train the jobs in processes of one thread each, at most ``workers`` at a time."""
    context = multiprocessing.get_context("spawn")
    waiting, running, failed = list(jobs), dict[Connection, Job](), Failed()
    processes = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job, (mine, theirs) = waiting.pop(0), context.Pipe(duplex=False)
                processes.append(context.Process(target=_work, args=(job, theirs), daemon=True))
                processes[-1].start()
                theirs.close()
                running[mine] = job
            for job, error in _listen(running, tell):
                _give_up(job, error, waiting, failed)
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return failed


def _listen(running: dict[Connection, Job], tell: Progress) -> list[tuple[Job, TrainingError]]:
    failed: list[tuple[Job, TrainingError]] = []
    ready: Iterable[object] = wait(list(running))
    for connection in ready:
        assert isinstance(connection, Connection)
        key = running[connection].stack.key
        try:
            message = connection.recv()
        except EOFError:
            raise PolytaskError(f"the process training stack {key} died; run the same command to go on") from None
        if isinstance(message, TrainingError):
            failed.append((running.pop(connection), message))
        elif isinstance(message, PolytaskError):
            raise message
        elif message is None:
            del running[connection]
        else:
            tell(key, *message)
    return failed


def _work(job: Job, connection: Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        job.train(lambda done, total: connection.send((done, total)))
        connection.send(None)
    except PolytaskError as error:
        connection.send(error)


def _end_with_parent() -> None:
    """Leave no orphan: when the parent is killed this process ends too, and its locks are free at once."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
