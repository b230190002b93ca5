"""What probes cost by default: trainings with and without them, in turn, in one process of one thread.

    python bench/probes.py [--rounds 7]

The exercise on MovieLens 100K with one run and with three stacked, and a shared bottom with four tasks on generated
rows. A round trains for as many steps as lie between two probes, once with the probe and once without.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace

import torch

import polytask as pt
from polytask import rng
from polytask.balancing import Balancing
from polytask.config import read
from polytask.data.batch import Batch, Feed, Part
from polytask.nn.model import MultiTask
from polytask.probe import Probe
from polytask.replicas import Stack


def exercise() -> tuple[Part, pt.Design]:
    config, _ = read("cs330")
    part = pt.split(config.load_data(), "random", valid=0.05, test=0.05, seed=0).train
    return part, config.design()


def four() -> tuple[Part, pt.Design]:
    data = pt.synthetic()
    tasks = tuple(
        pt.Task(f"at least {stars}", "binary", label="rating", positive=f"rating >= {stars}") for stars in (2, 3, 4, 5)
    )
    part = pt.split(replace(data, schema=replace(data.schema, tasks=tasks)), valid=0.05, test=0.05, seed=0).train
    return part, pt.Design("shared_bottom", 16, tower=(32,), options=(("layers", (128, 64)),))


def stream(feed: Feed) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from feed.epoch(epoch := epoch + 1)


def measure(name: str, part: Part, design: pt.Design, runs: int, rounds: int) -> None:
    seeds = list(range(runs))
    models = [MultiTask(part, design) for _ in seeds]
    for seed, model in zip(seeds, models, strict=True):
        model.initialize(lambda n, seed=seed: rng.generator(seed, f"init/{n}"))  # type: ignore[misc]
        model.train()
    own = torch.ones(runs, len(part.schema.tasks))
    stack, balancing = Stack(models, [1e-3] * runs), Balancing(pt.Balance(), own, seeds)
    probe = Probe(stack, [part] * runs, [pt.TrainConfig(seed=s) for s in seeds], own)
    batches = stream(Feed([part] * runs, seeds, 1024, "uniform"))
    for _ in range(10):
        stack.step(next(batches), balancing)
    probe.measure(1, own)
    found = []
    for number in range(rounds):
        seconds = {}
        for on in (True, False) if number % 2 else (False, True):
            started = time.process_time()
            for _ in range(probe.every):
                stack.step(next(batches), balancing)
            if on:
                probe.measure(probe.every, own)
            seconds[on] = time.process_time() - started
        found.append(seconds[True] / seconds[False] - 1)
    median, spread = f"{statistics.median(found):+.1%}", f"{min(found):+.1%} to {max(found):+.1%}"
    print(f"| {name} | {runs} | {probe.every} | {median} | {spread} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| training | stacked runs | steps between probes | more CPU time, median | range |")
    print("|---|---:|---:|---:|---|")
    for runs in (1, 3):
        measure("the exercise, 2 tasks", *exercise(), runs, options.rounds)
        measure("shared bottom, 4 tasks", *four(), runs, options.rounds)
