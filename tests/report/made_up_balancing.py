"""Made-up runs of balancing methods and a sweep over static weights, with probes, gates and calibration put in."""

from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any

from polytask.affinity import Affinity, Reading, pairs
from polytask.balance import Balance
from polytask.run import Run, TrainConfig
from polytask.schema import Schema, Task

SEEDS = (0, 1, 2, 3, 4)
EPOCHS = 4
SWEPT = {"0.25/0.75": -0.1, "0.5/0.5": 0.0, "0.75/0.25": 0.1}  # what a point moves from the second task to the first
METHODS = {"mgda": 0.02, "rlw": -0.02, "uncertainty": 0.0}  # what a method adds to every task's auc
ALONE = 0.7
NOTHING: Mapping[str, Any] = {}


def balancing(
    body: str = "mmoe", tasks: int = 2, seeds: tuple[int, ...] = SEEDS, methods: Mapping[str, float] = METHODS
) -> list[Run]:
    """One body with static weights swept, balancing methods, and single-task models; alone every task has auc .7."""
    plan = Schema(tuple(Task(f"t{n}", "binary", label=f"t{n}") for n in range(tasks)), user="u", item="i")
    even = dict.fromkeys(plan.task_names, 0.5)
    runs = []
    for seed in seeds:
        for name, moved in SWEPT.items():
            first, second, *_ = map(float, name.split("/"))
            weights = even | {"t0": first, "t1": second}
            effects = dict.fromkeys(plan.task_names, 0.0) | {"t0": moved, "t1": -1.5 * abs(moved) - moved}
            point = _run(f"{body} static {name}", plan, body, weights, effects, seed)
            runs.append(replace(point, sweep=f"{body} static"))
        for kind, gain in methods.items():
            effects = dict.fromkeys(plan.task_names, gain)
            runs.append(_run(f"{body} {kind}", plan, body, even, effects, seed, Balance(kind)))
        for task in plan.task_names:
            weights = {n: float(n == task) for n in plan.task_names}
            runs.append(_run(f"{task} alone ({body})", plan, body, weights, dict.fromkeys(weights, 0.0), seed))
    return runs


def _run(
    name: str,
    plan: Schema,
    body: str,
    weights: dict[str, float],
    effects: Mapping[str, float],
    seed: int,
    balance: Balance = Balance(),  # noqa: B008 - frozen
) -> Run:
    common, own = Random(f"split {seed}").gauss(0, 0.02), Random(f"{name} {seed}")
    tasks = tuple(t for t, w in weights.items() if w > 0)
    aucs = {t: ALONE + effects[t] + common + own.gauss(0, 0.002) for t in tasks}
    history = [_record(e, aucs, weights, balance, body) for e in range(1, EPOCHS + 1)]
    return Run(
        name=name,
        schema=plan,
        weights=weights,
        config=TrainConfig(epochs=EPOCHS, seed=seed, balance=balance),
        design={"body": body, "dim": 8, "share": "shared", "tower": (8,), "options": ()},
        history=history,
        kept=EPOCHS - 1,
        own=dict.fromkeys(tasks, EPOCHS),
        seconds=10.0,
        parameters=1000,
        step_seconds=0.002 if balance.kind != "mgda" else 0.003,
        memory=(200 if balance.kind != "mgda" else 220) * 2**20,
        calibration={"t0": {"kind": "platt"}} if "t0" in tasks else {},
        calibrated={"t0": {"auc": aucs["t0"] - 0.01, "logloss": 0.4}} if "t0" in tasks else {},
    )


def _record(
    epoch: int, aucs: Mapping[str, float], weights: Mapping[str, float], balance: Balance, body: str
) -> dict[str, Any]:
    """The last epoch is the best of every task, the one before is kept."""
    scores = {t: {"auc": a - 0.01 * (EPOCHS - epoch), "logloss": 0.5} for t, a in aucs.items()}
    losses = dict.fromkeys(aucs, 0.5)
    found: dict[str, Any] = {"epoch": epoch, "train": losses | {"joint": 0.5}, "valid": scores, "test": scores}
    if len(aucs) > 1:
        found["probe"] = [_reading(epoch, half, tuple(aucs)).to_dict() for half in (0, 1)]
        if balance.kind != "fixed":
            found["weights"] = {t: w * (3 if t == "t0" else 1) for t, w in weights.items()}
        if body == "mmoe":
            found["gates"] = [_gate(n, t, epoch) for n, t in enumerate(aucs)]
    return found


def _gate(number: int, task: str, epoch: int) -> dict[str, Any]:
    mean = [0.1 * epoch, 1 - 0.1 * epoch, 0.0]
    return {"gate": f"body.gates.{number}", "task": task, "mean": mean, "std": [0.1] * 3, "entropy": 0.6} | {
        "balance": 0.7,
        "dead": 1,
    }


def _reading(epoch: int, half: int, tasks: tuple[str, ...]) -> Reading:
    """Conflict of the first two tasks in the tables from epoch 3 on, agreement else; the trunk is all noise."""
    cosine = -0.4 if epoch > 2 else 0.4
    table, trunk = _affinity(len(tasks), cosine, 0.5), _affinity(len(tasks), 0.01, 0.001)
    ahead = tuple(
        tuple(0.02 if i == j else 0.001 * (1 - 3 * (i + j == 1)) for j in range(len(tasks))) for i in range(len(tasks))
    )
    groups = {"tables.0": table, "trunks.0.body": trunk}
    same = (1.0,) * len(tasks)
    return Reading(10 * epoch + half, tasks, same, same, -1.0, 0.5, ahead, table, groups)


def _affinity(tasks: int, cosine: float, reliability: float) -> Affinity:
    """The first pair with ``cosine``, the others orthogonal; the first task's gradient is the longest."""
    cross = [[reliability if i == j else 0.0 for j in range(tasks)] for i in range(tasks)]
    cross[0][1] = cross[1][0] = cosine * reliability
    plain = tuple(cosine if p == (0, 1) else 0.0 for p in pairs(tasks))
    norms = tuple(float(tasks - n) for n in range(tasks))
    return Affinity(norms, norms, plain, tuple(map(tuple, cross)))
