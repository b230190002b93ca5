"""Cost per run and epoch of ``polytask compare cs330 --handout``, evaluation included, against the plain exercise.

    python bench/cs330.py            (MovieLens 100K if it is there, else synthetic data of its shape)

Both sides run in turn; each figure is a median.
"""

import os
import platform
import statistics
from dataclasses import replace

import numpy as np
import torch
from exercise import seconds_per_epoch
from peers.ours import seconds_per_run_epoch
from workloads.reference import dataset

import polytask as pt
from polytask.config import read
from polytask.data.table import Dataset

ROUNDS = 3
EPOCHS = 6
ORIGINAL = 1.6  # seconds per epoch of the exercise's own code, measured earlier on two cores


def plain(data: Dataset) -> float:
    part = pt.split(data, "exercise", valid=0.0, test=0.05, seed=0)
    rows = [
        torch.stack([p.user - 1, p.item - 1, p.labels[:, -1].long()], dim=1).numpy()
        for p in (part.train, part.test)
        if p
    ]
    assert part.train.encoder.users and part.train.encoder.items
    users, items = len(part.train.encoder.users) - 1, len(part.train.encoder.items) - 1
    return seconds_per_epoch(np.ascontiguousarray(rows[0]), np.ascontiguousarray(rows[1]), users, items)


def main() -> None:
    data, workers = dataset(), os.cpu_count() or 1
    config = read("cs330")[0].with_variant("handout").with_overrides({"train.epochs": EPOCHS})
    full = config.experiment(data.schema.task_names)
    cases = {
        "compare cs330 --handout, 12 runs": replace(full, baselines=False),
        "the same with the single-task baselines, 18 runs": full,
    }
    yardsticks = {f"plain exercise, {threads} thread(s)": threads for threads in sorted({1, workers})}
    seconds: dict[str, list[float]] = {name: [] for name in (*yardsticks, *cases)}
    for _ in range(ROUNDS):
        for name, threads in yardsticks.items():
            torch.set_num_threads(threads)
            seconds[name].append(plain(data))
        for name, experiment in cases.items():
            seconds[name].append(seconds_per_run_epoch(data, experiment, EPOCHS, workers))
    report(data.name, workers, seconds)


def report(name: str, workers: int, seconds: dict[str, list[float]]) -> None:
    base = min(statistics.median(values) for case, values in seconds.items() if case.startswith("plain"))
    machine = f"torch {torch.__version__}, {platform.machine()}, load {os.getloadavg()[0]:.1f}"
    print(f"{name}, {workers} processes of one thread, {machine}")
    for case, values in seconds.items():
        middle = statistics.median(values)
        spread = f"{min(values):.3f}..{max(values):.3f}"
        ratios = f"{base / middle:.1f} x plain, {ORIGINAL / middle:.1f} x {ORIGINAL} s"
        print(f"{case:<52} {middle:.3f} s per run and epoch ({spread}), {ratios}")


if __name__ == "__main__":
    main()
