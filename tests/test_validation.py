"""The diagnosis on worlds whose truth is planted: one of every kind here, twenty in `polytask validate-diagnosis`."""

import json
from pathlib import Path

import pytest

from polytask.data.worlds import WORLDS
from polytask.validation import Trial, Validation, judge, report, validate

WORLD = 100  # a number that neither the rules nor the committed figures have seen


@pytest.mark.parametrize("kind", WORLDS)
def test_the_planted_truth_is_told(kind: str, tmp_path: Path) -> None:
    trial = judge(kind, WORLD, tmp_path)
    assert trial.right, trial
    assert bool(trial.harmed) == (trial.planted != "none")
    assert not list(tmp_path.iterdir())


def trial(kind: str, planted: str, named: str) -> Trial:
    return Trial(kind, 0, planted, named, ("second",) if named != "none" else (), {"second": 0.0}, "noise")


def test_the_shares_and_the_confusion_are_counted() -> None:
    trials = [
        trial("tables", "embedding interference", "embedding interference"),
        trial("tables", "embedding interference", "capacity"),
        trial("starved", "capacity", "none"),
        trial("aligned", "none", "none"),
        trial("unrelated", "none", "capacity"),
    ]
    found = Validation.of(trials)
    assert (found.found, found.claimed, found.named) == ((2, 3), (1, 2), (1, 3))
    assert found.confusion["tables"] == {"embedding interference": 1, "capacity": 1}
    assert "| tables | 1 | 1 | 0 |" in found.markdown()
    assert found.lines()[0] == "harm found where it is planted: 2 of 3 worlds (66.7%)"


def test_finished_worlds_are_not_judged_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[int] = []

    def once(kind: str, seed: int, folder: Path) -> Trial:
        judged.append(seed)
        return trial(kind, "none", "none")

    monkeypatch.setattr("polytask.validation.judge", once)
    validate(tmp_path, [1, 2], ["aligned"])
    trials = validate(tmp_path, [1, 2, 3], ["aligned"])
    assert judged == [1, 2, 3] and len(trials) == 3
    report(trials, tmp_path)
    assert json.loads((tmp_path / "validation.json").read_text("utf-8"))["claimed"] == [0, 3]
