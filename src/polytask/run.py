"""What a training is asked for (TrainConfig) and what it leaves behind (Run)."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any, Self

from polytask.balance import Balance, make_balancer
from polytask.data.batch import Part
from polytask.data.negatives import NEGATIVES
from polytask.errors import ConfigError, StateError, did_you_mean
from polytask.files import read_lines, write_json
from polytask.gradients import PRECISIONS
from polytask.metrics import metric
from polytask.nn.models import Model
from polytask.optimizers import OPTIMIZERS, TABLES
from polytask.schedule import SCHEDULES
from polytask.schema import Schema

WIDER = ", wider"
"""What follows a setting's name where its trunk was widened."""
METRICS_FILE = "metrics.jsonl"
RUN_FILE = "run.json"


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    ``epochs`` at most, in batches of ``batch`` rows, at learning rate ``lr`` shaped by ``schedule``.
    ``weight_decay`` is decoupled from the gradient and leaves rows outside the batch alone; ``clip`` bounds
    the gradient's norm (0: off). ``patience``: stop after that many evaluations in which nothing improved
    (0: never); it needs validation data. ``evaluate_every``: epochs between evaluations. ``negatives``
    names the sampler. ``unknown``: the share of category values that are replaced by "unknown" in training, so that
    its embedding means something. ``checkpoint_steps``: steps between checkpoints (0: every ten seconds).
    ``accumulate``: micro-batches a batch is taken in, for memory's sake. ``precision``: of the forward and backward
    pass, "auto" for bfloat16 in large layers where it is faster; parameters and optimizer stay in float32.
    ``compile``: forward pass, gradient and update of a small model in one native program, where the machine has a C++
    compiler. ``tables``: how embeddings are trained; "auto" is row-wise Adagrad, at rate ``tables_lr``, for large
    tables and the ``optimizer`` for others. ``probes``: whether to measure now and then how the tasks' gradients
    relate; ``probe_steps``: steps between two (0: as 5 % of the time allows). ``balance`` says how the losses of the
    tasks become one.
    """

    epochs: int = 50
    batch: int = 1024
    lr: float = 1e-3
    optimizer: str = "adam"
    schedule: str = "constant"
    weight_decay: float = 0.0
    clip: float = 0.0
    patience: int = 5
    evaluate_every: int = 1
    negatives: str = "uniform"
    unknown: float = 0.01
    seed: int = 0
    checkpoint_steps: int = 0
    accumulate: int = 1
    precision: str = "float32"
    compile: bool = False
    tables: str = "auto"
    tables_lr: float = 0.1
    probes: bool = True
    probe_steps: int = 0
    balance: Balance = field(default_factory=Balance)

    def __post_init__(self) -> None:
        choices: dict[str, Collection[str]] = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES}
        choices |= {"negatives": NEGATIVES, "precision": PRECISIONS, "tables": TABLES}
        for name, known in choices.items():
            if (given := getattr(self, name)) not in known:
                raise ConfigError(did_you_mean(name, given, known))
        bounds = {"epochs": 1, "batch": 1, "evaluate_every": 1, "accumulate": 1, "seed": 0, "patience": 0}
        bounds |= {"probe_steps": 0}
        for name, least in bounds.items():
            if getattr(self, name) < least:
                raise ConfigError(f"train.{name} = {getattr(self, name)} must be at least {least}")
        if not 0 <= self.unknown < 1:
            raise ConfigError(f"train.unknown = {self.unknown} must be in [0, 1)")
        others = (self.weight_decay, self.clip, self.checkpoint_steps)
        if not 0 < self.tables_lr < inf:
            raise ConfigError(f"train.tables_lr = {self.tables_lr} must be above 0 and finite")
        if not 0 < self.lr < inf or not all(0 <= value < inf for value in others):
            raise ConfigError(
                "train: lr must be above 0; weight_decay, clip and checkpoint_steps not below 0; all finite"
            )
        make_balancer(self.balance)

    def stackable(self) -> "TrainConfig":
        """This configuration without what may differ between the replicas of one stack."""
        return replace(self, seed=0, lr=1.0)


@dataclass
class Run:
    """One finished training.

    ``history``: per evaluated epoch ``{"epoch", "train": losses, "valid": metrics, "test": metrics}``.
    ``kept``: the epoch whose weights ``model`` holds: the joint best on validation data, or the last without
    any. ``own``: each task's own best epoch on validation data. ``seconds``: of training and evaluation,
    this run's share of its stack. ``weights``: the loss weight of each task; 0 is untrained. ``calibration``: by
    task, the map fitted on validation data; ``calibrated``: the metrics of those tasks on test with it.
    ``step_seconds``: the time of one training step, this run's share; ``memory``: the most bytes its process held.
    ``sweep`` names the sweep over static weights that the run is part of, if any. ``chosen``: what was chosen for it by
    its size, a line each. ``sources`` are the parts it was
    trained and scored on, by name, while they are in memory.
    """

    name: str
    schema: Schema
    weights: dict[str, float]
    config: TrainConfig
    design: dict[str, Any]
    history: list[dict[str, Any]]
    kept: int
    own: dict[str, int]
    seconds: float
    parameters: int
    environment: dict[str, Any] = field(default_factory=dict)
    step_seconds: float = 0.0
    memory: int = 0
    sweep: str = ""
    chosen: list[str] = field(default_factory=list)
    calibration: dict[str, Any] = field(default_factory=dict)
    calibrated: dict[str, Any] = field(default_factory=dict)
    model: Model | None = None
    sources: Mapping[str, Part] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that were trained."""
        return tuple(t for t in self.schema.task_names if self.weights[t] > 0)

    @property
    def alone(self) -> str | None:
        """The task of a single-task run; None for a joint one."""
        return self.tasks[0] if len(self.tasks) == 1 else None

    @property
    def shares(self) -> bool:
        """Whether several trained tasks read the same parameters."""
        return self.alone is None and self.design["share"] != "separate"

    def parts(self) -> tuple[str, ...]:
        """The parts that were scored, of ``valid`` and ``test``."""
        return tuple(p for p in ("valid", "test") if self.history and p in self.history[0])

    def curve(self, part: str, task: str, name: str) -> dict[int, float]:
        """A metric by epoch; epochs at which it is absent are left out. For ``part = "train"`` the loss."""
        values = {h["epoch"]: _value(h[part], task, name) for h in self.history if part in h}
        return {e: v for e, v in values.items() if v is not None}

    def best_epoch(self, part: str, task: str) -> int:
        """The epoch at which ``task`` has its best first metric on ``part``, the earliest of equals."""
        name = self.schema.task(task).metrics[0]
        sign = 1 if metric(name).better == "higher" else -1
        curve = self.curve(part, task, name)
        if not curve:
            raise ConfigError(f"run '{self.name}': no {name} of task '{task}' on {part}")
        return max(curve, key=lambda epoch: (sign * curve[epoch], -epoch))

    def save(self, folder: Path) -> None:
        """Write everything but the model and the history (already there line by line) to ``folder``."""
        value = asdict(replace(self, model=None, sources={}, history=[], folder=None))
        kept = {k: v for k, v in value.items() if k not in ("model", "sources", "history", "folder")}
        write_json(folder / RUN_FILE, kept | {"schema": self.schema.to_dict()})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a finished run, without its model, for reports and comparisons."""
        folder = Path(folder)
        try:
            value = json.loads((folder / RUN_FILE).read_text("utf-8"))
        except (OSError, ValueError):
            raise StateError(f"{folder} holds no finished run ({RUN_FILE} is missing); name a run's folder") from None
        value["schema"] = Schema.from_dict(value["schema"])
        value["config"] = TrainConfig(**value["config"] | {"balance": Balance(**value["config"].get("balance", {}))})
        return cls(**value, history=read_lines(folder / METRICS_FILE), folder=folder)


def run_folders(path: Path) -> list[Path]:
    """``path`` itself if it is a run's folder, else every run below it."""
    found = sorted(f.parent for f in path.rglob(RUN_FILE))
    if not found:
        raise StateError(f"{path} holds no finished run ({RUN_FILE} is missing); name a run's folder")
    return found


def _value(scores: Mapping[str, Any], task: str, name: str) -> float | None:
    found = scores.get(task)
    return found.get(name) if isinstance(found, Mapping) else found
