"""What balancing costs on an industrial shape: time per step and peak memory, relative to static weights.

    python bench/balancing.py [METHOD ...] [--steps 9] [--threads 1]

20 categorical fields of 150,000 hashed values (3 million embedding rows of width 16), 8 numbers, MMoE with 8 experts
[256, 128], 4 tasks with towers [64], batches of 4,096. The methods take turns, step by step, in one process; then each
has a process of its own for its peak memory: of a step, and over all, the tracing of the first step included.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch

import polytask as pt
from polytask.balancing import Balancing
from polytask.data.batch import Batch, Feed, Part
from polytask.nn.model import MultiTask
from polytask.record import peak_memory
from polytask.replicas import Stack

FIELDS, VALUES, NUMBERS, TASKS, BATCH = 20, 150_000, 8, 4, 4096
METHODS = {
    "fixed": pt.Balance("fixed"),
    "uncertainty": pt.Balance("uncertainty"),
    "famo": pt.Balance("famo"),
    "pcgrad": pt.Balance("pcgrad"),
    "upgrad": pt.Balance("upgrad"),
    "mgda": pt.Balance("mgda"),
    "nash_mtl": pt.Balance("nash_mtl"),
    "metabalance": pt.Balance("metabalance"),
    "pcgrad on a quarter of the rows": pt.Balance("pcgrad", share=0.25),
    "pcgrad at the tables": pt.Balance("pcgrad", at="tables"),
    "upgrad at the tables": pt.Balance("upgrad", at="tables"),
    "pcgrad at the tables, all rows": pt.Balance("pcgrad", at="tables", share=1.0),
}


def data(rows: int) -> Part:
    draw = np.random.default_rng(0)
    columns = {f"f{n}": draw.zipf(1.1, rows) % 1_000_000 for n in range(FIELDS)}
    columns |= {f"x{n}": draw.standard_normal(rows) for n in range(NUMBERS)}
    columns |= {f"y{n}": (draw.random(rows) < 0.2).astype(np.int64) for n in range(TASKS)}
    fields = [pt.Field(f"f{n}", "category", buckets=VALUES) for n in range(FIELDS)]
    fields += [pt.Field(f"x{n}", "number") for n in range(NUMBERS)]
    tasks = tuple(pt.Task(f"t{n}", "binary", label=f"y{n}") for n in range(TASKS))
    table = pt.read_dataset(pl.DataFrame(columns), pt.Schema(tasks, tuple(fields)))
    return pt.split(table, valid=0, test=0.01, seed=0).train


def stack_of(part: Part, balance: pt.Balance) -> tuple[Stack, Balancing]:
    model = MultiTask.build(part, body="mmoe", dim=16, tower=(64,), options={"experts": 8, "layers": [256, 128]})
    return Stack([model], [1e-3]), Balancing(balance, torch.ones(1, TASKS), [0])


def times(part: Part, batches: list[Batch], names: list[str], steps: int) -> dict[str, list[float]]:
    made = {name: stack_of(part, METHODS[name]) for name in names}
    found: dict[str, list[float]] = {name: [] for name in names}
    for step in range(steps + 2):
        for name, (stack, balancing) in made.items():
            started = time.perf_counter()
            stack.step(batches[step % len(batches)], balancing, 1.0, (1, step), step)
            found[name].append(time.perf_counter() - started)
    return {name: each[2:] for name, each in found.items()}  # the first steps trace


def memory(name: str) -> tuple[int, int]:
    """Peak bytes of a process that makes six steps: over all, and of the last four."""
    ended = subprocess.run(
        [sys.executable, __file__, "--peak", name], capture_output=True, text=True, check=True, timeout=600
    )
    first, last = ended.stdout.split()[-2:]
    return int(first), int(last)


def steps_peak(steps: Callable[[], None]) -> int:
    """Peak bytes while ``steps`` run, by Linux's own mark, which is set back before."""
    Path("/proc/self/clear_refs").write_text("5")
    steps()
    mark = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(mark.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    part = data(4 * BATCH + 1000)
    batches = list(Feed([part], [0], BATCH, "uniform").epoch(1))[:3]
    if options.peak:
        stack, balancing = stack_of(part, METHODS[options.peak])

        def run(first: int, last: int) -> None:
            for step in range(first, last):
                stack.step(batches[step % 3], balancing, 1.0, (1, step), step)

        run(0, 2)
        whole = peak_memory()
        print(whole, steps_peak(lambda: run(2, 6)))
        return
    first, *rest = options.methods if "fixed" in options.methods else ["fixed", *options.methods]
    print("| method | ms per step | x static | peak MiB of a step | x static | with tracing | x static |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    peaks = {name: memory(name) for name in (first, *rest)}
    for at in range(0, len(rest), 4):  # as many as memory holds; static weights take part in every round
        found = times(part, batches, [first, *rest[at : at + 4]], options.steps)
        for name in [first, *rest[at : at + 4]]:
            ratio = statistics.median(a / b for a, b in zip(found[name], found[first], strict=True))
            sizes = [f"{peaks[name][k] / 2**20:,.0f} | {peaks[name][k] / peaks[first][k]:.2f}" for k in (1, 0)]
            print(
                f"| {name} | {1000 * statistics.median(found[name]):.0f} | {ratio:.2f} | {' | '.join(sizes)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
