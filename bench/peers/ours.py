"""polytask, through its public functions."""

import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from case import Case, Found, SkippedError
from timing import Clock, Memory, repeated
from workloads.reference import dataset

import polytask as pt
from polytask.compare import Experiment, Setting, compare
from polytask.data.batch import Part
from polytask.data.encode import Catalogue, Encoder
from polytask.data.table import Dataset
from polytask.errors import ConfigError
from polytask.metrics.ranking import ranks_of_vectors
from polytask.nn.model import MultiTask
from polytask.recommend.lists import top_vectors
from polytask.record import Recorder
from polytask.train import fit_many

REFERENCE = {"batch": 256, "lr": 1e-3, "negatives": "uniform_all", "unknown": 0.0, "patience": 0, "probes": False}
EVEN = {"watch": 0.5, "rating": 0.5}


def train_config(wanted: Mapping[str, Any]) -> pt.TrainConfig:
    """The configuration; a contender that needs a setting this polytask does not have is skipped."""
    known = {f.name for f in fields(pt.TrainConfig)}
    if missing := sorted(set(wanted) - known):
        raise SkippedError(f"this polytask has no train.{missing[0]}")
    try:
        return pt.TrainConfig(**wanted)
    except ConfigError as error:
        raise SkippedError(str(error)) from None


def _on_cpu(case: Case) -> None:
    if case.device != "cpu":
        raise SkippedError(f"not measured on {case.device}")


def _reference_model(part: Part) -> MultiTask:
    return MultiTask(part, pt.Design("factorize", 32, tower=(64,), start_at_mean=False))


def reference(case: Case) -> Found:
    """Workload A: samples/s of whole epochs, and what was learned."""
    _on_cpu(case)
    split, epochs = _exercise_split(case), case.size["epochs"]
    model, clock = _reference_model(split.train), Clock()
    config = train_config(REFERENCE | {"epochs": epochs, "evaluate_every": epochs, "seed": case.seed} | case.options)
    fit_many([model], split.train, weights=EVEN, config=config, recorder=Recorder(progress=clock))
    assert split.test
    scores, rows = pt.evaluate(model, split.test), len(split.train)
    return {
        "samples_per_second": rows / clock.epoch_seconds(math.ceil(rows / config.batch), epochs),
        "mse": float(scores["rating"]["mse"].value or 0),
        "mrr": float(scores["watch"]["mrr"].value or 0),
    }


def stack(case: Case) -> Found:
    """Samples/s of so many replicas of A in one stack."""
    _on_cpu(case)
    split, epochs, count = _exercise_split(case), case.size["epochs"], case.options["replicas"]
    models, clock = [_reference_model(split.train) for _ in range(count)], Clock()
    config = train_config(REFERENCE | {"epochs": epochs, "evaluate_every": epochs})
    configs = [replace(config, seed=seed) for seed in range(count)]
    fit_many(models, split.train, weights=EVEN, config=configs, recorder=Recorder(progress=clock))
    rate = len(split.train) / clock.epoch_seconds(math.ceil(len(split.train) / config.batch), epochs)
    return {"samples_per_second": count * rate, "per_replica": rate}


def _exercise_split(case: Case) -> pt.Split:
    return pt.split(dataset(**case.size.get("shape", {})), "exercise", valid=0.0, test=0.05, seed=0)


def comparison(case: Case) -> Found:
    """Seconds per run and epoch of a comparison with an evaluation after every epoch."""
    _on_cpu(case)
    epochs = case.size["epochs"]
    design = pt.Design("factorize", 32, tower=(64,), start_at_mean=False)
    setting = Setting("shared", design, EVEN, train_config(REFERENCE | {"epochs": epochs} | case.options))
    seeds = tuple(range(case.size["runs"]))
    experiment = Experiment((setting,), seeds, baselines=False, split="exercise", valid=0.0, test=0.05)
    data = dataset(**case.size.get("shape", {}))
    return {"seconds_per_run_epoch": seconds_per_run_epoch(data, experiment, epochs, case.threads)}


def seconds_per_run_epoch(data: Dataset, experiment: Experiment, epochs: int, workers: int) -> float:
    """From the end of the slower stack's first epoch to the end of its last, per run and epoch."""
    ends: dict[str, list[float]] = {}

    def progress(stack: str, done: int, total: int) -> None:
        if done and done % (total // epochs) == 0 and len(ends.setdefault(stack, [])) < epochs:
            ends[stack].append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        runs = compare(data, experiment, folder, workers=workers, progress=progress)
    return max(times[-1] - times[0] for times in ends.values()) / (epochs - 1) / len(runs)


def industrial(case: Case) -> Found:
    """Workload B: one pass; samples/s after the first step, mean AUC, memory."""
    _on_cpu(case)
    part, held_out = (industrial_part(case, name) for name in ("train", "test"))
    config = train_config({"epochs": 1, "batch": case.size["batch"], "seed": case.seed} | case.options.get("train", {}))
    _load_libraries()
    memory, clock = Memory(), Clock()
    model = industrial_model(part, case)
    fit_many([model], part, config=config, recorder=Recorder(progress=clock))
    found = memory.over(sum(4 * table.weight.numel() for table in model.tables))
    scores = pt.evaluate(model, held_out)
    aucs = [float(scores[task]["auc"].value or 0) for task in part.schema.task_names]
    return {"samples_per_second": config.batch * clock.steps_per_second(0), "auc": float(np.mean(aucs))} | found


def _load_libraries() -> None:
    """Train a small model by row, so that memory and the first step tell of the large one and not of libraries."""
    part = pt.split(pt.synthetic(users=50, items=50, rows=500, seed=0), valid=0.0, test=0.1, seed=0).train
    config = pt.TrainConfig(epochs=1, tables="rowwise_adagrad", probes=False)
    pt.fit(MultiTask.build(part, body="mmoe"), part, config=config)


def industrial_model(part: Part, case: Case) -> MultiTask:
    """The model of B, with the body and the options of the case."""
    body = case.options["body"]
    options: dict[str, Any] = {
        "mmoe": {"experts": case.options.get("experts", 8), "layers": [256, 128]},
        "ple": {"experts": 2, "shared_experts": 2, "layers": [256, 128], "levels": 1},
        "shared_bottom": {"layers": [512, 256]},
    }[body]
    return MultiTask.build(part, body=body, dim=case.size["dim"], tower=(64,), options=options)


def industrial_part(case: Case, name: str) -> Part:
    """Rows whose ids are rows of the tables already: nothing is hashed and no value is unknown."""
    ids, numbers, labels = (np.load(case.folder / f"{name}_{kind}.npy") for kind in ("ids", "numbers", "labels"))
    tasks = case.options.get("tasks", labels.shape[1])
    sizes = np.load(case.folder / "sizes.npy").tolist()
    columns = [pt.Field(f"f{n}", buckets=size) for n, size in enumerate(sizes)]
    columns += [pt.Field(f"x{n}", "number") for n in range(numbers.shape[1])]
    schema = pt.Schema(tuple(pt.Task(f"t{n}", "binary", label=f"y{n}") for n in range(tasks)), tuple(columns))
    every = torch.zeros(len(ids), len(columns), dtype=torch.int64)
    every[:, : ids.shape[1]] = torch.from_numpy(ids) + 1  # row 0 is the unknown value
    values = torch.ones(len(ids), len(columns))
    values[:, ids.shape[1] :] = torch.from_numpy(numbers)
    encoder = Encoder(schema, {}, {f"x{n}": (0.0, 1.0) for n in range(numbers.shape[1])})
    nobody = torch.zeros(len(ids), dtype=torch.int64)
    wanted = torch.from_numpy(labels[:, np.arange(tasks) % labels.shape[1]].copy())
    return Part(name, encoder, nobody, nobody, Catalogue(every, values), wanted)


def _vectors(case: Case) -> list[torch.Tensor]:
    return [torch.from_numpy(np.load(case.folder / f"{n}.npy")) for n in ("users", "items", "held_out", "seen")]


def ranks(case: Case) -> Found:
    """Exact ranks from vectors, in blocks, and the MRR."""
    _on_cpu(case)
    users, items, held_out, seen = _vectors(case)
    row, item = held_out.T.contiguous()

    def found() -> torch.Tensor:
        return ranks_of_vectors(users, items, item, row, seen)

    return {"seconds": repeated(found), "mrr": float((1 / found()).mean())}


def evaluated(case: Case) -> Found:
    """The whole call of ``pt.evaluate`` with the metric mrr on a part of A's shape."""
    _on_cpu(case)
    split = pt.split(dataset(), "exercise", valid=0.0, test=0.05, seed=0)
    assert split.test
    model, part = _reference_model(split.train), split.test
    tasks = tuple(replace(t, metrics=("mrr",)) if t.kind == "ranking" else t for t in part.schema.tasks)
    model.schema = replace(part.schema, tasks=tasks)
    return {"seconds": repeated(lambda: pt.evaluate(model, part, tasks=["watch"]))}


def top_ten(case: Case) -> Found:
    """Exact top 10 of every user."""
    _on_cpu(case)
    users, items, _, _ = _vectors(case)
    catalogue = torch.cat([torch.zeros(1, items.shape[1]), items])  # item 0 is the unknown one
    scores = top_vectors(users, catalogue, 10)[1]
    seconds = repeated(lambda: top_vectors(users, catalogue, 10))
    return {"queries_per_second": len(users) / seconds, "score": float(scores.mean())}
