"""Cost per run and epoch of ``polytask compare cs330 --handout``, evaluation included, against the plain exercise.

    make bench            (MovieLens 100K if it is there, else synthetic data of its shape)

Both sides run in turn; each figure is a median. Prints a table and writes ``docs/benchmarks.json``.
"""

import os
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from exercise import seconds_per_epoch

import polytask as pt
from polytask.compare import Experiment, compare
from polytask.config import read
from polytask.data.datasets.download import Offline
from polytask.data.table import Dataset
from polytask.files import write_json

ROUNDS = 3
EPOCHS = 6
ORIGINAL = 1.6  # seconds per epoch of the exercise's own code, measured earlier on two cores


def dataset() -> Dataset:
    config, _ = read("cs330")
    try:
        data = config.load_data()
    except Offline:
        data = pt.synthetic()
    return replace(data, schema=config.schema_for(data))


def stacked(data: Dataset, experiment: Experiment, workers: int) -> float:
    """Seconds per run and epoch: from the end of the slower stack's first epoch to the end of its last."""
    ends: dict[str, list[float]] = {}

    def progress(stack: str, done: int, total: int) -> None:
        if done and done % (total // EPOCHS) == 0 and len(ends.setdefault(stack, [])) < EPOCHS:
            ends[stack].append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        runs = compare(data, experiment, folder, workers=workers, progress=progress)
    return max(times[-1] - times[0] for times in ends.values()) / (EPOCHS - 1) / len(runs)


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
            seconds[name].append(stacked(data, experiment, workers))
    report(data.name, workers, seconds)


def report(name: str, workers: int, seconds: dict[str, list[float]]) -> None:
    base = min(statistics.median(values) for case, values in seconds.items() if case.startswith("plain"))
    machine = f"torch {torch.__version__}, {platform.machine()}, load {os.getloadavg()[0]:.1f}"
    print(f"{name}, {workers} processes of one thread, {machine}")
    rows = []
    for case, values in seconds.items():
        middle = statistics.median(values)
        spread = f"{min(values):.3f}..{max(values):.3f}"
        rows.append(
            {"case": case, "seconds": middle, "spread": spread, "ratio": base / middle, "original": ORIGINAL / middle}
        )
        ratios = f"{base / middle:.1f} x plain, {ORIGINAL / middle:.1f} x {ORIGINAL} s"
        print(f"{case:<52} {middle:.3f} s per run and epoch ({spread}), {ratios}")
    write_json(
        Path(__file__).parents[1] / "docs" / "benchmarks.json", {"data": name, "torch": torch.__version__, "rows": rows}
    )


if __name__ == "__main__":
    main()
