"""torch-rechub: its models, ``DataGenerator`` and ``MTLTrainer``, as its multi-task tutorial has them."""

import time

import numpy as np
import quality
import torch
from case import Case, Found, SkippedError
from timing import Clock, Memory, intervals
from torch import nn
from torch.utils.data import DataLoader
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.models.multi_task import MMOE, PLE, SharedBottom
from torch_rechub.trainers import MTLTrainer
from torch_rechub.utils.data import DataGenerator, PredictDataset

Columns = dict[str, np.ndarray]


def _require(case: Case) -> None:
    if case.device != "cpu" and not torch.cuda.is_available():
        raise SkippedError(f"no {case.device} here")
    torch.manual_seed(case.seed)


def reference(case: Case) -> Found:
    """The shared bottom on the rows of A."""
    _require(case)
    train, test = (np.load(case.folder / f"{name}.npy") for name in ("train", "test"))
    sizes = [int(max(train[:, k].max(), test[:, k].max())) + 1 for k in (0, 1)]
    features = [SparseFeature(n, size, 32) for n, size in zip(("user", "item"), sizes, strict=True)]
    towers = [{"dims": []}, {"dims": []}]
    kinds = ["classification", "regression"]
    model = SharedBottom(features, kinds, {"dims": [64]}, towers)

    def columns(rows: np.ndarray) -> tuple[Columns, np.ndarray]:
        labels = np.stack([rows[:, 2] >= 4, rows[:, 2]], axis=1).astype(np.float32)
        return {"user": rows[:, 0], "item": rows[:, 1]}, labels

    trainer = MTLTrainer(model, kinds, optimizer_params={"lr": 1e-3}, n_epoch=1, device=case.device)
    loader = _loader(*columns(train), 256)
    times = []
    for _ in range(1 + case.options["epochs"]):
        trainer.train_one_epoch(loader)
        times.append(time.perf_counter())
    predicted = _predicted(trainer, columns(test)[0], 4096)
    return {"samples_per_second": len(train) / intervals(times), "mse": quality.mse(predicted[:, 1], test[:, 2])}


def industrial(case: Case) -> Found:
    """Workload B: one pass."""
    _require(case)
    batch = case.size["batch"]
    train, test = (_columns(case, name) for name in ("train", "test"))
    loader = _loader(*train, batch)
    kinds, memory, clock = ["classification"] * train[1].shape[1], Memory(), Clock()
    model = _model(case, kinds)
    trainer = MTLTrainer(model, kinds, n_epoch=1, device=case.device)
    trainer.optimizer.register_step_post_hook(clock.tick)
    trainer.train_one_epoch(loader)
    found = memory.over(sum(4 * p.numel() for p in model.embedding.parameters()))
    auc = quality.mean_auc(_predicted(trainer, test[0], batch), test[1])
    return {"samples_per_second": batch * clock.steps_per_second(), "auc": auc} | found


def _model(case: Case, kinds: list[str]) -> nn.Module:
    sizes = np.load(case.folder / "sizes.npy").tolist()
    features = [SparseFeature(f"f{n}", size, case.size["dim"]) for n, size in enumerate(sizes)]
    features += [DenseFeature(f"x{n}") for n in range(np.load(case.folder / "test_numbers.npy").shape[1])]
    towers, experts = [{"dims": [64]} for _ in kinds], {"dims": [256, 128]}
    body = case.options["body"]
    found: nn.Module
    if body == "mmoe":
        found = MMOE(features, kinds, 8, experts, towers)
    elif body == "ple":
        found = PLE(features, kinds, 1, 2, 2, experts, towers)
    else:
        found = SharedBottom(features, kinds, {"dims": [512, 256]}, towers)
    return found


def _columns(case: Case, name: str) -> tuple[Columns, np.ndarray]:
    ids, numbers, labels = (np.load(case.folder / f"{name}_{kind}.npy") for kind in ("ids", "numbers", "labels"))
    columns = {f"f{n}": np.ascontiguousarray(c).astype(np.int64) for n, c in enumerate(ids.T)}
    return columns | {f"x{n}": np.ascontiguousarray(c) for n, c in enumerate(numbers.T)}, labels


def _loader(columns: Columns, labels: np.ndarray, batch: int):  # type: ignore[no-untyped-def]
    first = {k: v[:1] for k, v in columns.items()}, labels[:1]
    return DataGenerator(columns, labels).generate_dataloader(*first, *first, batch_size=batch)[0]


def _predicted(trainer: MTLTrainer, columns: Columns, batch: int) -> np.ndarray:
    return np.asarray(trainer.predict(trainer.model, DataLoader(PredictDataset(columns), batch)))
