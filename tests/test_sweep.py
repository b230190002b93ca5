"""The weights of a sweep, and which of them validation data choose."""

import pytest

from polytask.run import Run, TrainConfig
from polytask.schema import Schema, Task
from polytask.sweep import best, grid

PLAN = Schema((Task("click", "binary", label="c", metrics=("auc",)), Task("stars", "regression", label="s")))


def run(name: str, auc: float, mse: float, seed: int = 0, test: float = 0.5) -> Run:
    def record(epoch: int, worse: float) -> dict[str, object]:
        scores = {"click": {"auc": auc - worse}, "stars": {"mse": mse + worse}}
        return {"epoch": epoch, "train": {}, "valid": scores, "test": {"click": {"auc": test}, "stars": {"mse": test}}}

    return Run(
        name=name,
        schema=PLAN,
        weights={"click": 1.0, "stars": 1.0},
        config=TrainConfig(seed=seed),
        design={"share": "shared"},
        history=[record(1, 0.0), record(2, 0.1)],
        kept=1,
        own={"click": 1, "stars": 1},
        seconds=1.0,
        parameters=1,
        sweep="joint",
    )


def test_two_tasks_are_swept_from_one_end_to_the_other() -> None:
    found = grid(["click", "stars"])
    assert [w["click"] for w in found] == [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99]
    assert all(w["click"] + w["stars"] == pytest.approx(1) for w in found)


def test_more_tasks_are_weighed_alike_and_each_in_turn_above_the_rest() -> None:
    found = grid(["a", "b", "c"])
    assert found == [
        {"a": 1.0, "b": 1.0, "c": 1.0},
        {"a": 4.0, "b": 1.0, "c": 1.0},
        {"a": 1.0, "b": 4.0, "c": 1.0},
        {"a": 1.0, "b": 1.0, "c": 4.0},
    ]


def test_the_least_shortfall_on_validation_data_is_chosen_and_test_data_are_not_asked() -> None:
    settings = {
        "one": [run("one", 0.80, 1.50, test=0.99)],
        "two": [run("two", 0.79, 1.05, test=0.01)],
        "three": [run("three", 0.60, 1.00, test=0.5)],
    }
    assert best(settings) == "two"


def test_the_choice_is_made_on_the_mean_over_seeds() -> None:
    lucky = [run("lucky", 0.90, 1.0, seed=0), run("lucky", 0.60, 1.0, seed=1)]
    steady = [run("steady", 0.80, 1.0, seed=0), run("steady", 0.80, 1.0, seed=1)]
    assert best({"lucky": lucky, "steady": steady}) == "steady"
