"""DeepCTR-Torch: ``compile`` and ``fit`` of its multi-task models."""

import time

import numpy as np
import quality
import torch
from case import Case, Found, SkippedError
from deepctr_torch.callbacks import Callback
from deepctr_torch.inputs import DenseFeat, SparseFeat
from deepctr_torch.models import MMOE, PLE, SharedBottom
from timing import Clock, Memory, intervals

Columns = dict[str, np.ndarray]


class _Ends(Callback):
    """When each epoch ended."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self.times.append(time.perf_counter())


def _require(case: Case) -> None:
    if case.device != "cpu" and not torch.cuda.is_available():
        raise SkippedError(f"no {case.device} here")


def reference(case: Case) -> Found:
    """The shared bottom on the rows of A."""
    _require(case)
    train, test = (np.load(case.folder / f"{name}.npy") for name in ("train", "test"))
    sizes = [int(max(train[:, k].max(), test[:, k].max())) + 1 for k in (0, 1)]
    features = [SparseFeat(n, size, 32) for n, size in zip(("user", "item"), sizes, strict=True)]
    model = SharedBottom(
        features,
        bottom_dnn_hidden_units=(64,),
        tower_dnn_hidden_units=(),
        l2_reg_embedding=0,
        task_types=["binary", "regression"],
        task_names=["liked", "rating"],
        seed=case.seed,
        device=case.device,
    )
    model.compile("adam", loss=["binary_crossentropy", "mse"], metrics=[])

    def columns(rows: np.ndarray) -> tuple[Columns, np.ndarray]:
        labels = np.stack([rows[:, 2] >= 4, rows[:, 2]], axis=1).astype(np.float32)
        return {"user": rows[:, 0], "item": rows[:, 1]}, labels

    ends = _Ends()
    model.fit(*columns(train), batch_size=256, epochs=1 + case.options["epochs"], verbose=0, callbacks=[ends])
    predicted = model.predict(columns(test)[0], 4096)
    return {"samples_per_second": len(train) / intervals(ends.times), "mse": quality.mse(predicted[:, 1], test[:, 2])}


def industrial(case: Case) -> Found:
    """Workload B: one pass."""
    _require(case)
    batch = case.size["batch"]
    train, test = (_columns(case, name) for name in ("train", "test"))
    memory, clock = Memory(), Clock()
    model = _model(case, train[1].shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    optimizer.register_step_post_hook(clock.tick)
    model.compile(optimizer, loss=["binary_crossentropy"] * train[1].shape[1], metrics=[])
    model.fit(*train, batch_size=batch, epochs=1, verbose=0)
    found = memory.over(sum(4 * p.numel() for p in model.embedding_dict.parameters()))
    auc = quality.mean_auc(model.predict(test[0], batch), test[1])
    return {"samples_per_second": batch * clock.steps_per_second(), "auc": auc} | found


def _model(case: Case, tasks: int) -> MMOE | PLE | SharedBottom:
    sizes = np.load(case.folder / "sizes.npy").tolist()
    features = [SparseFeat(f"f{n}", size, case.size["dim"]) for n, size in enumerate(sizes)]
    features += [DenseFeat(f"x{n}", 1) for n in range(np.load(case.folder / "test_numbers.npy").shape[1])]
    common = {
        "tower_dnn_hidden_units": (64,),
        "l2_reg_embedding": 0,
        "task_types": ["binary"] * tasks,
        "task_names": [f"t{n}" for n in range(tasks)],
        "seed": case.seed,
        "device": case.device,
    }
    experts = {"expert_dnn_hidden_units": (256, 128), "gate_dnn_hidden_units": ()}
    body = case.options["body"]
    if body == "mmoe":
        return MMOE(features, num_experts=8, **experts, **common)
    if body == "ple":
        # 0.3.0 makes as many shared experts as a task has of its own, whatever it is asked for
        return PLE(features, shared_expert_num=2, specific_expert_num=2, num_levels=1, **experts, **common)
    return SharedBottom(features, bottom_dnn_hidden_units=(512, 256), **common)


def _columns(case: Case, name: str) -> tuple[Columns, np.ndarray]:
    ids, numbers, labels = (np.load(case.folder / f"{name}_{kind}.npy") for kind in ("ids", "numbers", "labels"))
    columns = {f"f{n}": np.ascontiguousarray(c) for n, c in enumerate(ids.T)}
    return columns | {f"x{n}": np.ascontiguousarray(c) for n, c in enumerate(numbers.T)}, labels
