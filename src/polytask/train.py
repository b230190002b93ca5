"""The one loop: trains R runs of one architecture as one stack; a single run is R = 1."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from polytask import rng
from polytask.balancing import Balancing
from polytask.calibration import CALIBRATIONS
from polytask.checkpoint import Checkpoint
from polytask.data.batch import Feed, Part
from polytask.data.views import ViewFeed
from polytask.errors import ConfigError, DataError, TrainingError, did_you_mean
from polytask.evaluate import calibrate, check_calibration, evaluate, predictions, weight_use
from polytask.gates import gate_use
from polytask.gradients import Programs
from polytask.kernels.memory import keep_freed
from polytask.loss import check_task
from polytask.metrics import check_metrics
from polytask.nn.history import HistoryModel
from polytask.nn.models import Model
from polytask.probe import Probe, Probing
from polytask.record import Recorder, environment, peak_memory
from polytask.replicas import Stack
from polytask.run import Run, TrainConfig
from polytask.scale import choose_precision, optimizers_of, threads, told
from polytask.schedule import SCHEDULES
from polytask.schema import Schema
from polytask.selection import Selection

Weights = Mapping[str, float]
_REPORT_STEPS = 50


def fit(
    model: Model,
    train: Part,
    valid: Part | None = None,
    test: Part | None = None,
    *,
    weights: Weights | None = None,
    config: TrainConfig | None = None,
    folder: str | Path | None = None,
) -> Run:
    """Train ``model`` on ``train`` and return the run; the model then holds the weights of the kept epoch.

    Parameters start anew from ``config.seed``. ``weights`` multiply the losses (the schema's by default).
    ``valid`` chooses the epoch to keep and when to stop; ``test`` is scored and recorded, and chooses
    nothing. With ``folder`` the run is written there, and the same call goes on where a killed one stopped.
    """
    recorder = Recorder() if folder is None else Recorder.of(folder)
    return fit_many([model], train, valid, test, weights=weights, config=config, recorder=recorder)[0]


def fit_many(
    models: Sequence[Model],
    train: Part | Sequence[Part],
    valid: Part | Sequence[Part] | None = None,
    test: Part | Sequence[Part] | None = None,
    *,
    weights: Weights | Sequence[Weights] | None = None,
    config: TrainConfig | Sequence[TrainConfig] | None = None,
    recorder: Recorder | None = None,
) -> list[Run]:
    """Train R models of one architecture in one stacked program; each ends where it would have ended alone.

    Parts, ``weights`` and ``config`` are one for all or one per model. The configurations may differ in seed
    and learning rate, the models in table heights, the parts in everything but their number of rows.
    """
    count = len(models)
    configs = _each(config or TrainConfig(), count)
    chosen = [_weights(m, w) for m, w in zip(models, _each(weights, count), strict=True)]
    parts = {name: _each(part, count) for name, part in (("train", train), ("valid", valid), ("test", test)) if part}
    _check_stackable(models, parts["train"], configs)
    _check_labels(parts["train"], chosen)
    _check_calibrations(models[0].schema, parts.get("valid", ()), chosen)
    keep_freed()
    with recorder or Recorder() as opened, threads(models, configs[0].batch):
        return Training(models, parts, chosen, configs, opened).run()


class Training:
    """One stacked training from its start, or from its last checkpoint, to its runs."""

    def __init__(
        self,
        models: Sequence[Model],
        parts: Mapping[str, Sequence[Part]],
        weights: Sequence[dict[str, float]],
        configs: Sequence[TrainConfig],
        recorder: Recorder,
    ) -> None:
        self.models, self.parts, self.weights, self.configs, self.recorder = models, parts, weights, configs, recorder
        self.config = configs[0]
        for model, config in zip(models, configs, strict=True):
            model.initialize(lambda name, seed=config.seed: rng.generator(seed, f"init/{name}"))  # type: ignore[misc]
            model.train()
        self.feed = _feed(models[0], parts["train"], configs)
        optimizers = optimizers_of(models, self.config)
        reduced = choose_precision(models, self.config)
        self.stack = Stack(
            models,
            [c.lr for c in configs],
            optimizers=optimizers,
            decay=self.config.weight_decay,
            clip=self.config.clip,
            accumulate=self.config.accumulate,
            programs=partial(Programs, precision=self.config.precision, compile=self.config.compile),
        )
        self.chosen = told(optimizers, models, self.config, self.stack.programs.compile) + reduced
        own = torch.tensor([[w[t] for t in m.schema.task_names] for m, w in zip(models, weights, strict=True)])
        self.balancing = Balancing(self.config.balance, own, [c.seed for c in configs])
        probing = Probing(self.config.probe_steps or None) if self.config.probes else Probing(0)
        self.probe = Probe(self.stack, parts["train"], configs, self.balancing.own, probing)
        self.readings: list[list[dict[str, Any]]] = [[] for _ in models]  # of the current epoch
        trained = [tuple(t for t, v in w.items() if v > 0) for w in weights]
        patience = self.config.patience if "valid" in parts else 0
        self.selections = [Selection(m.schema, t, patience) for m, t in zip(models, trained, strict=True)]
        self.histories: list[list[dict[str, Any]]] = [[] for _ in models]
        # without validation data the last epoch is kept, and a second copy of the tables is not needed
        kept = self.stack.parameters if "valid" in parts else {}
        self.best = {name: value.clone() for name, value in kept.items()}
        self.sums = torch.zeros(2, *own.shape, dtype=torch.float64)  # of losses and of weights, over an epoch's steps
        self.seconds = self.step_seconds = 0.0
        self.epoch, self.done = 1, 0

    def run(self) -> list[Run]:
        """Train to the end and return the runs."""
        self._resume()
        self.started = time.monotonic() - self.seconds
        while self.epoch <= self.config.epochs and not all(s.stopped for s in self.selections):
            self._steps()
            self._close_epoch()
        self._checkpoint()
        self.recorder.progress(total := len(self.feed) * self.config.epochs, total)
        return self._finish()

    def _steps(self) -> None:
        """The steps of the current epoch that are not done yet."""
        total, shape = len(self.feed) * self.config.epochs, SCHEDULES[self.config.schedule]
        for batch in self.feed.epoch(self.epoch, self.done):
            step, started = (self.epoch - 1) * len(self.feed) + self.done, time.monotonic()
            try:
                losses = self.stack.step(batch, self.balancing, shape(step / total), (self.epoch, self.done), step)
            except TrainingError as error:
                raise TrainingError(f"epoch {self.epoch}, step {step + 1}: {error}; lower lr or set clip") from None
            self.step_seconds += time.monotonic() - started
            self.sums[0].add_(losses)
            self.sums[1].add_(self.balancing.weights)
            self.done += 1
            if self.probe.due(step + 1):
                self._probe(step + 1, shape(step / total))
            if self.recorder.due(step + 1, self.config.checkpoint_steps):
                self._checkpoint()
            if step % _REPORT_STEPS == 0:
                self.recorder.progress(step, total)

    def _probe(self, step: int, factor: float) -> None:
        for readings, found in zip(
            self.readings, self.probe.measure(step, self.balancing.weights, factor), strict=True
        ):
            if found is not None:
                readings.append(found)

    def _close_epoch(self) -> None:
        """Evaluate, record and judge the epoch that ended."""
        self.stack.programs.rest()
        if self.epoch % self.config.evaluate_every == 0 or self.epoch == self.config.epochs:
            for number, selection in enumerate(self.selections):
                if not selection.stopped:
                    self._record(number, selection)
        self.sums.zero_()
        self.epoch, self.done = self.epoch + 1, 0
        self.recorder.progress((self.epoch - 1) * len(self.feed), self.config.epochs * len(self.feed))

    def _record(self, number: int, selection: Selection) -> None:
        model = self.models[number]
        names, means = model.schema.task_names, (self.sums[:, number] / len(self.feed)).tolist()
        losses, weights = dict(zip(names, means[0], strict=True)), self.weights[number]
        train = {t: losses[t] for t in selection.tasks} | {
            "joint": sum(weights[t] * losses[t] for t in selection.tasks)
        }
        record: dict[str, Any] = {"epoch": self.epoch, "train": train}
        if not self.balancing.constant:
            record["weights"] = {t: w for t, w in zip(names, means[1], strict=True) if t in selection.tasks}
        if self.readings[number]:
            record["probe"] = self.readings[number]
            self.readings[number] = []
        for name in [n for n in self.parts if n != "train"]:  # in order: a set's differs from process to process
            record[name] = evaluate(model, self.parts[name][number], tasks=selection.tasks).to_dict()
        probe = self.parts.get("valid", self.parts["train"])[number]
        if gates := [g.to_dict() for g in gate_use(model, probe) if g.task is None or g.task in selection.tasks]:
            record["gates"] = gates
        uses = weight_use(model, self.parts["valid"][number], selection.tasks) if "valid" in self.parts else {}
        if uses:
            record["propensity"] = {t: use._asdict() for t, use in uses.items()}
        self.histories[number].append(record)
        self.recorder.epoch(number, record)
        if "valid" in record and selection.update(self.epoch, record["valid"]):
            for name, best in self.best.items():
                best[number].copy_(self.stack.parameters[name][number])

    def _checkpoint(self) -> None:
        rest = {
            "epoch": self.epoch,
            "done": self.done,
            "sums": self.sums.tolist(),
            "history": self.histories,
            "seconds": time.monotonic() - self.started,
            "step_seconds": self.step_seconds,
            "readings": self.readings,
        }
        tensors = self.stack.state() | self.balancing.tensors() | {f"best/{n}": v for n, v in self.best.items()}
        step = (self.epoch - 1) * len(self.feed) + self.done
        self.recorder.save(Checkpoint(step, tensors, rest, self._identity()))

    def _resume(self) -> None:
        found = self.recorder.resume(self._identity())
        if found is None:
            return
        self.stack.load(found.tensors)
        self.balancing.load(found.tensors)
        for name, value in self.best.items():
            value.copy_(found.tensors[f"best/{name}"])
        self.epoch, self.done = found.rest["epoch"], found.rest["done"]
        self.seconds, self.step_seconds = found.rest["seconds"], found.rest["step_seconds"]
        self.sums = torch.tensor(found.rest["sums"], dtype=torch.float64)
        self.histories, self.readings = found.rest["history"], found.rest["readings"]
        for selection, history in zip(self.selections, self.histories, strict=True):
            for record in history if "valid" in self.parts else ():
                selection.update(record["epoch"], record["valid"])

    def _identity(self) -> dict[str, Any]:
        runs = [
            {"train": asdict(c), "weights": w, "model": m.design._asdict(), "schema": m.schema.to_dict()}
            for c, w, m in zip(self.configs, self.weights, self.models, strict=True)
        ]
        data = {name: [p.fingerprint for p in parts] for name, parts in self.parts.items()}
        identity = {
            "configuration": {str(n): r for n, r in enumerate(runs)},
            "data": data,
            "environment": environment(),
        }
        plain: dict[str, Any] = json.loads(json.dumps(identity))  # as a saved one reads: tuples are lists
        return plain

    def _finish(self) -> list[Run]:
        self.stack.release()
        return [self._run(number) for number in range(len(self.models))]

    def _run(self, number: int) -> Run:
        model, selection, history = self.models[number], self.selections[number], self.histories[number]
        with torch.no_grad():
            for name, best in self.best.items():
                kept, parameter = best[number], model.get_parameter(name)
                parameter.copy_(kept[: parameter.shape[0]] if parameter.dim() else kept)
        run = Run(
            name=self.recorder.names[number] if self.recorder.names else _described(model, self.weights[number]),
            schema=model.schema,
            weights=self.weights[number],
            config=self.configs[number],
            design=model.design._asdict(),
            history=history,
            kept=selection.joint or history[-1]["epoch"],
            own=dict(selection.own),
            seconds=(time.monotonic() - self.started) / len(self.models),
            parameters=sum(p.numel() for p in model.read_by(selection.tasks)),
            environment=environment(),
            step_seconds=self.step_seconds / len(self.models) / max(1, (self.epoch - 1) * len(self.feed)),
            memory=peak_memory(),
            sweep=self.recorder.sweeps[number] if self.recorder.sweeps else "",
            chosen=self.chosen,
            model=model,
            sources={name: parts[number] for name, parts in self.parts.items()},
        )
        self._calibrate(number, run)
        told = None
        if self.recorder.folders and "test" in self.parts:
            told = predictions(model, self.parts["test"][number], tasks=run.tasks)
        self.recorder.finish(number, run, told)
        return run

    def _calibrate(self, number: int, run: Run) -> None:
        """Fit on validation data what maps probabilities to frequencies, and score the test part with it."""
        if run.model is None or "valid" not in self.parts:
            return
        kinds = {t.name: t.calibrate for t in run.schema.tasks if t.calibrate and t.name in run.tasks}
        for kind in dict.fromkeys(kinds.values()):
            own = [t for t in kinds if kinds[t] == kind]
            found = calibrate(run.model, self.parts["valid"][number], kind, tasks=own)
            run.calibration |= {t: c.to_dict() for t, c in found.items()}
            if "test" in self.parts:
                scores = evaluate(run.model, self.parts["test"][number], tasks=own, calibration=found)
                run.calibrated |= scores.to_dict()


def _feed(model: Model, parts: Sequence[Part], configs: Sequence[TrainConfig]) -> Feed | ViewFeed:
    """Batches as the model takes them: by row, or whole users and items."""
    config, seeds = configs[0], [c.seed for c in configs]
    if isinstance(model, HistoryModel):
        return ViewFeed(parts, seeds, config.batch, model.rating)
    return Feed(
        parts,
        seeds,
        config.batch,
        config.negatives,
        unknown=config.unknown,
        noise=model.noise,
        catalogue=model.every_item,
    )


def _described(model: Model, weights: Weights) -> str:
    """A name for a run that was given none: how it shares and its weights, or the task it trains alone."""
    trained = [t for t, w in weights.items() if w > 0]
    if len(trained) == 1:
        return f"{trained[0]} alone"
    return f"{model.design.share} {'/'.join(f'{w:g}' for w in weights.values())}"


def _each(value: Any, count: int) -> list[Any]:
    """One value per replica: the given sequence, or the given value for all."""
    if isinstance(value, Sequence):
        if len(value) != count:
            raise ConfigError(f"{len(value)} values given for {count} models; give one, or one per model")
        return list(value)
    return [value] * count


def _weights(model: Model, given: Weights | None) -> dict[str, float]:
    names = model.schema.task_names
    for task in model.schema.tasks:
        check_task(task)
        check_metrics(task, model.schema)
        if task.calibrate and task.calibrate not in CALIBRATIONS:
            raise ConfigError(f"task '{task.name}': " + did_you_mean("calibrate", task.calibrate, CALIBRATIONS))
    for name in given or {}:
        if name not in names:
            raise ConfigError("weights: " + did_you_mean("task", name, names))
    weights = {t.name: float((given or {}).get(t.name, t.weight)) for t in model.schema.tasks}
    if not all(0 <= w < math.inf for w in weights.values()) or not any(weights.values()):
        raise ConfigError(f"weights {weights}: none may be below 0 or infinite, and at least one must be above")
    return weights


def _check_labels(parts: Sequence[Part], weights: Sequence[Mapping[str, float]]) -> None:
    for part, own in zip(parts, weights, strict=True):
        for task, unlabeled in zip(part.schema.tasks, part.sample.labels.isnan().all(dim=0).tolist(), strict=True):
            if unlabeled and own[task.name]:
                column = task.column or "label"
                raise DataError(
                    f"task '{task.name}': no training row has a {column} to learn; fill it or drop the task"
                )


def _check_calibrations(schema: Schema, parts: Sequence[Part], weights: Sequence[Mapping[str, float]]) -> None:
    for task in schema.tasks:
        if task.calibrate and not parts:
            raise ConfigError(f"task '{task.name}': calibrate is fitted on validation data; give some, or leave it out")
    for part, own in zip(parts, weights, strict=False):
        for task in part.schema.tasks:
            if task.calibrate and own[task.name]:
                check_calibration(part, task)


def _check_stackable(models: Sequence[Model], parts: Sequence[Part], configs: Sequence[TrainConfig]) -> None:
    first = models[0]
    same = all(m.design == first.design and m.schema.tasks == first.schema.tasks for m in models)
    if first.every_item:  # a whole catalogue is scored at once, so it must be the same
        same = same and all(m.inputs == first.inputs for m in models)
    if not same or len({c.stackable() for c in configs}) > 1 or len({len(p) for p in parts}) > 1:
        raise ConfigError(
            "these runs cannot be one stack: they must have the same architecture, tasks, number of training rows "
            "and configuration up to seed and learning rate; train them one after the other"
        )
