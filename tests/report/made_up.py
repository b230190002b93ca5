"""Made-up runs shaped like the exercise's, with effects that are known because they were put in."""

import math
from random import Random
from typing import Any

from polytask.run import Run, TrainConfig
from polytask.schema import Schema, Task

SEEDS = (0, 1, 2)
EPOCHS = 60
ENVIRONMENT = {"python": "3.11.2", "torch": "2.13.0", "machine": "x86_64", "capability": "AVX2", "threads": 1}

# mrr at the end; epoch of the lowest mse; how fast mse rises after it
COLLAPSED, ALONE, SKEWED = (0.059, 11, 0.009), (0.1345, 10, 0.009), (0.131, 25, 0.0009)


def schema(watch: str = "watch", rating: str = "rating") -> Schema:
    tasks = (Task(watch, "ranking", head="dot", loss="bpr"), Task(rating, "regression", label="stars"))
    return Schema(tasks, user="user", item="item")


def exercise(
    seeds: tuple[int, ...] = SEEDS,
    epochs: int = EPOCHS,
    names: tuple[str, ...] = ("shared .5/.5", "shared .99/.01", "separate .5/.5", "separate .99/.01"),
    tasks: tuple[str, str] = ("watch", "rating"),
    baselines: bool = True,
    valid: bool = False,
) -> list[Run]:
    """Four joint settings, and both tasks alone, with every seed."""
    watch, rating = tasks
    wanted: list[tuple[str, str, dict[str, float], tuple[float, int, float]]] = [
        (names[0], "shared", {watch: 0.5, rating: 0.5}, COLLAPSED),
        (names[1], "shared", {watch: 0.99, rating: 0.01}, SKEWED),
        (names[2], "separate", {watch: 0.5, rating: 0.5}, ALONE),
        (names[3], "separate", {watch: 0.99, rating: 0.01}, ALONE),
    ]
    if baselines:
        wanted += [(f"{t} alone", "shared", {n: float(n == t) for n in tasks}, ALONE) for t in tasks]
    plan = schema(watch, rating)
    return [run(name, plan, share, w, shape, seed, epochs, valid) for name, share, w, shape in wanted for seed in seeds]


def run(
    name: str,
    plan: Schema,
    share: str,
    weights: dict[str, float],
    shape: tuple[float, int, float],
    seed: int,
    epochs: int = EPOCHS,
    valid: bool = False,
) -> Run:
    """One run; the noise of a seed is the same in every setting, as it is with paired splits, but for a little."""
    common, own = Random(f"split {seed}"), (seed - 1) * (1 if shape is not ALONE else 0.05)
    little = Random(f"{name} {seed}").gauss(0, 1)  # rounding, in the exercise
    shift = common.gauss(0, 0.02) + 0.009 * own + 4e-4 * little, common.gauss(0, 0.004) + 0.001 * own + 1e-4 * little
    history = [_record(e, plan, weights, shape, shift) for e in range(1, epochs + 1)]
    if valid:
        history = [h | {"valid": h["test"]} for h in history]
    separate = share == "separate"
    return Run(
        name=name,
        schema=plan,
        weights=weights,
        config=TrainConfig(epochs=epochs, seed=seed),
        design={"body": "factorize", "dim": 32, "share": share, "tower": (64,), "options": ()},
        history=history,
        kept=epochs,
        own={},
        seconds=40.0 + seed + 20 * separate,
        parameters=176_000 if separate else 90_000,
        environment=ENVIRONMENT,
    )


def _record(
    epoch: int, plan: Schema, weights: dict[str, float], shape: tuple[float, int, float], shift: tuple[float, float]
) -> dict[str, Any]:
    watch, rating = plan.task_names
    level, turn, slope = shape
    mrr = (level + shift[1]) * (1 - math.exp(-epoch / 3)) - 1e-5 * max(0, epoch - 40)
    mse = 0.85 + shift[0] + (0.5 * math.exp(-epoch / 2) if epoch < turn else slope * (epoch - turn)) + 0.4 / epoch**2
    losses = {watch: 0.05 + 0.3 / epoch, rating: 0.1 + 1.2 / epoch**0.7}
    scores = {
        watch: {"mrr": mrr, "mrr_first": 2 * mrr, "ndcg@10": 1.9 * mrr, "recall@10": 2.1 * mrr, "hit@10": None},
        rating: {"mse": mse, "rmse": mse**0.5, "mae": 0.8 * mse**0.5},
    }
    trained = [t for t in plan.task_names if weights[t] > 0]
    joint = sum(weights[t] * losses[t] for t in trained)
    return {
        "epoch": epoch,
        "train": {t: losses[t] for t in trained} | {"joint": joint},
        "test": {t: scores[t] for t in trained},
    }
