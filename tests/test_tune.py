"""The search: what it may vary, that it is the same however often it is cut off, and that test data choose nothing."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polytask.balance import Balance
from polytask.compare import Experiment, Setting
from polytask.data.split import SPLITS
from polytask.data.synthetic import synthetic
from polytask.data.table import Dataset
from polytask.errors import ConfigError, StateError
from polytask.files import read_lines
from polytask.nn.design import Design
from polytask.replicas import Stack
from polytask.run import Run, TrainConfig
from polytask.tune import Search, TuneConfig, Tuning, tune
from polytask.tune.choice import choose, front
from polytask.tune.search import _studies
from polytask.tune.space import Choices, Range, Space, default_space, parse_space
from polytask.tune.study import Study, Trial

TRAIN = TrainConfig(epochs=2, batch=64, patience=1, checkpoint_steps=1)
DESIGN = Design("factorize", 2, "shared", (4,))
LR = {"low": 1e-4, "high": 1e-1, "log": True}
WEIGHT = {"low": 0.01, "high": 10.0, "log": True}
CONFIG = TuneConfig(trials=3, seed=1, together=2, space={"train.lr": LR, "task.rating.weight": WEIGHT})


def make(name: str, overrides: Mapping[str, Any]) -> Setting:
    """A setting as a configuration would make it."""
    weights, train, design = {"watch": 1.0, "rating": 1.0}, TRAIN, DESIGN
    for key, value in overrides.items():
        section, _, rest = key.partition(".")
        if section == "task":
            weights[rest.removesuffix(".weight")] = value
        elif section == "train":
            train = replace(train, **{rest: value})
        elif section == "balance":
            train = replace(train, balance=replace(train.balance, **{rest: value}))
        elif section == "model":
            design = design._replace(**{rest: Design.frozen(value) if rest == "options" else value})
        else:
            raise ConfigError(f"setting '{name}': '{key}' cannot differ")
    return Setting(name, design, weights, train)


EXPERIMENT = Experiment((make("as it is", {}),), seeds=(0, 1), split="temporal", valid=0.15, test=0.15)
SEARCH = Search(make, EXPERIMENT, CONFIG)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return synthetic(20, 30, 400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tune")


@pytest.fixture(scope="module")
def tuning(data: Dataset, folder: Path) -> Tuning:
    return tune(data, SEARCH, folder, workers=1)


def study(space: Space, trials: int = 30, together: int = 4, tasks: int = 2, seed: int = 0) -> Study:
    metrics = dict.fromkeys("abcdef"[:tasks], "mse")
    return Study("joint", make, space, metrics, trials, together, seed)


def played(one: Study, values: Callable[[Mapping[str, float]], list[float]], until: int) -> list[Trial]:
    """The trials of a search whose objectives are a formula."""
    trials: list[Trial] = []
    while len(trials) < until and (wanted := one.next(trials)):
        for number, drawn in wanted:
            trials.append(Trial(one.name, number, drawn, dict(zip(one.metrics, values(drawn), strict=True))))
    return trials


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({"train.lr": {"low": 1.0, "high": 0.1}}, "'train.lr': low = 1.0 must be below high = 0.1"),
        ({"train.lr": {"low": 0.0, "high": 0.1, "log": True}}, "low = 0.0 must be above 0 on a log scale"),
        ({"train.lr": {"low": 0.1, "high": float("inf")}}, "both finite"),
        ({"train.lr": {"low": 0.1, "hihg": 0.2}}, "Did you mean 'high'"),
        ({"train.lr": {"low": 0.1}}, "high = None must be numbers"),
        ({"train.lr": {"low": True, "high": 2}}, "low = True.* must be numbers"),
        ({"train.lr": {"low": 0.1, "high": 1, "log": 3}}, "log = 3 true or false"),
        ({"train.lr": 0.1}, "0.1 is no range and no list"),
        ({"train": {"lr": {}}}, "'train.lr': {} is no range and no list"),
        ({"model.body": []}, "the list of choices is empty"),
        ({"task.rating.weight": {"low": 0.0, "high": 1.0}}, "every weight must be above 0"),
        ({"task.rating.weight": [1.0, "much"]}, "every weight must be above 0"),
        ({"train.lr": {"low": -0.1, "high": 0.1}}, "lr must be above 0"),
        ({"train.optimizer": ["adam", "sgdd"]}, "Did you mean 'sgd'"),
        ({"balance.kind": ["fixed", "fixde"]}, "Did you mean 'fixed'"),
        ({"model.body": ["mmoe", "mmeo"]}, "Did you mean 'mmoe'"),
        ({"model.body": ["factorize", "mmoe"], "model.options": [{"experts": 2}]}, "option of body 'factorize'"),
        ({"data.split": ["random"]}, "'data.split' cannot differ"),
    ],
)
def test_a_space_that_cannot_be_is_one_line_before_anything_trains(
    data: Dataset, tmp_path: Path, space: dict[str, Any], says: str
) -> None:
    search = replace(SEARCH, config=replace(CONFIG, space=space))
    with pytest.raises(ConfigError, match=says) as caught:
        tune(data, search, tmp_path / "new", workers=1)
    assert "\n" not in str(caught.value) and not (tmp_path / "new").exists()


@pytest.mark.parametrize("changes", [{"trials": 0}, {"seed": -1}, {"together": 0}])
def test_a_search_of_nothing_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"tune.{next(iter(changes))} = .* must be at least"):
        TuneConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"valid": 0.0}, "valid data chooses the settings; set data.split.valid above 0"),
        ({"test": 0.0}, "test data is for the final comparison; set data.split.test above 0"),
        ({"capacity": "parameters"}, "set compare.capacity"),
        ({"settings": (replace(make("watch alone", {})),)}, "'watch alone' is named twice"),
        ({"settings": (replace(make("b", {"model.body": "mmeo"})),)}, "Did you mean 'mmoe'"),
    ],
)
def test_a_comparison_that_cannot_be_is_known_before_the_search(
    data: Dataset, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        tune(data, replace(SEARCH, experiment=replace(EXPERIMENT, **changes)), tmp_path / "new", workers=1)
    assert not (tmp_path / "new").exists()


def test_one_task_alone_needs_no_search(data: Dataset, tmp_path: Path) -> None:
    def only(name: str, overrides: Mapping[str, Any]) -> Setting:
        return replace(make(name, overrides), weights={"watch": 0.0, "rating": 1.0})

    with pytest.raises(ConfigError, match="only rating is trained"):
        tune(data, replace(SEARCH, make=only), tmp_path, workers=1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"metrics": ("pcoc", "mse")}, "is not for regression tasks"), ({"loss": "msee"}, "Did you mean 'mse'")],
)
def test_a_task_that_cannot_be_trained_is_known_before_the_search(
    data: Dataset, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    tasks = (*data.schema.tasks[:1], replace(data.schema.tasks[1], **changes))
    other = replace(data, schema=replace(data.schema, tasks=tasks))
    with pytest.raises(ConfigError, match=says):
        tune(other, SEARCH, tmp_path / "new", workers=1)
    assert not (tmp_path / "new").exists()


def test_keys_are_whole_or_nested_and_a_table_chosen_for_a_section_sets_its_keys() -> None:
    nested = {"train": {"lr": LR}, "model": {"dim": {"low": 2, "high": 8}}, "balance": [{"kind": "rlw"}]}
    assert parse_space(nested) == {
        "train.lr": Range(1e-4, 1e-1, log=True),
        "model.dim": Range(2, 8, whole=True),
        "balance": Choices(({"kind": "rlw"},)),
    }
    space = parse_space({"train.lr": LR, "model": [{"body": "ple"}, {"body": "mmoe", "options": {"experts": 2}}]})
    assert space.overrides({"train.lr": 0.5, "model": 1}) == {
        "train.lr": 0.5,
        "model.body": "mmoe",
        "model.options": {"experts": 2},
    }


def test_two_whole_ends_draw_whole_numbers_but_for_weights() -> None:
    space = parse_space({"model.dim": {"low": 1, "high": 9}, "task.a.weight": {"low": 1, "high": 2}})
    drawn = [t.drawn for t in played(study(space), lambda d: [d["model.dim"], 0.0], 16)]
    assert all(isinstance(d["model.dim"], int) and 1 <= d["model.dim"] <= 9 for d in drawn)
    assert len({d["task.a.weight"] for d in drawn}) == 16


def test_by_default_the_rate_and_all_weights_but_the_first_differ() -> None:
    found = default_space({"a": 1.0, "b": 0.5, "c": 0.0, "d": 2.0}, lr=0.01)
    assert found == {
        "task.b.weight": Range(0.005, 50.0, log=True),
        "task.d.weight": Range(0.02, 200.0, log=True),
        "train.lr": Range(0.001, 0.1, log=True),
    }


LOSSES = st.lists(
    st.lists(st.integers(0, 4), min_size=3, max_size=3).map(lambda v: [x / 2 for x in v]), min_size=1, max_size=12
)


@given(LOSSES)
def test_the_front_is_what_optuna_calls_best(found: list[list[float]]) -> None:
    oracle = optuna.create_study(directions=["maximize"] * 3)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    oracle.add_trials([optuna.trial.create_trial(values=v) for v in found])
    assert front(dict(enumerate(found))) == sorted(t.number for t in oracle.best_trials)


@given(LOSSES)
def test_few_points_of_the_front_are_chosen_and_no_trial_is_better_than_all(found: list[list[float]]) -> None:
    values, tasks = dict(enumerate(found)), ["a", "b", "c"]
    points = choose(values, tasks)
    assert len({p.number for p in points}) == len(points) <= 4
    assert {p.number for p in points} <= set(front(values))
    assert min(p.shortfall for p in points) == points[0].shortfall and points[0].reasons[0] == "knee"
    for number, task in enumerate(tasks):
        (best,) = [p for p in points if f"best {task}" in p.reasons]
        assert values[best.number][number] == max(v[number] for v in found)


def test_the_knee_and_the_bests_by_hand_and_of_many_tasks_those_the_knee_serves_worst() -> None:
    values = {0: (-1.0, 4.0), 1: (-1.2, 7.2), 2: (-3.0, 8.0), 3: (-1.3, 7.1)}
    assert [(p.name, round(p.shortfall, 3)) for p in choose(values, ["a", "b"])] == [
        ("trial 1 (knee)", 0.15),
        ("trial 0 (best a)", 0.25),
        ("trial 2 (best b)", 1.0),
    ]
    assert [p.name for p in choose({7: (1.0, 2.0)}, ["a", "b"])] == ["trial 7 (knee, best a, best b)"]
    tasks = 6
    many = {t: [9.0 if k == t else 1.0 for k in range(tasks)] for t in range(tasks)}
    many[9] = [8.9 - k / 10 for k in range(tasks)]
    assert [p.number for p in choose(many, "abcdef")] == [9, 5, 4, 3]


SPACE = parse_space({"x": {"low": 0.0, "high": 1.0}, "y": {"low": 0.0, "high": 1.0}, "z": ["a", "b"]})


def seesaw(drawn: Mapping[str, float]) -> list[float]:
    """Two objectives at odds over x; the nearer y is to 0.3 and with z = "b", the better for both."""
    waste = abs(drawn["y"] - 0.3) + (drawn["z"] == 0)
    return [1 + drawn["x"] + waste, 2 - drawn["x"] + waste]


@pytest.mark.parametrize("cut", [1, 3, 6, 10, 13, 22])
def test_proposals_are_the_same_wherever_the_search_was_cut(cut: int) -> None:
    whole = played(study(SPACE), seesaw, 30)
    assert [t.number for t in whole] == list(range(30))
    again = whole[:cut]
    while wanted := study(SPACE).next(again):
        again += [Trial("joint", n, d, dict(zip("ab", seesaw(d), strict=True))) for n, d in wanted]
    assert again == whole
    assert played(study(SPACE, trials=cut), seesaw, 30) == whole[:cut]
    assert played(study(SPACE, seed=1), seesaw, 4) != whole[:4]


def test_the_search_learns_from_its_trials() -> None:
    trials = played(study(SPACE, trials=60), seesaw, 60)
    early, late = ([min(seesaw(t.drawn)) + max(seesaw(t.drawn)) for t in trials[k : k + 12]] for k in (0, 48))
    assert sum(late) < sum(early) - 6


def test_a_failed_trial_is_passed_over() -> None:
    trials = [
        Trial("joint", n, d, None if n % 3 == 1 else {"a": 1.0, "b": float(n)}, why="it blew up")
        for n, d in study(SPACE, together=12).next([])
    ]
    assert set(study(SPACE).values(trials)) == {0, 2, 3, 5, 6, 8, 9, 11}
    assert len(study(SPACE, together=12).next(trials)) == 12
    with pytest.raises(ConfigError, match="every trial of 'joint' failed, the last so: it blew up"):
        study(SPACE, trials=2).values([replace(t, values=None) for t in trials])


def test_optuna_stays_silent_and_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    played(study(SPACE), seesaw, 16)
    played(study(SPACE, tasks=1), lambda d: seesaw(d)[:1], 16)
    assert optuna.logging.get_verbosity() == optuna.logging.INFO and capfd.readouterr() == ("", "")
    optuna.logging.set_verbosity(before)


def test_without_optuna_the_error_names_the_extra(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r'pip install "polytask\[tune\]"'):
        tune(data, SEARCH, tmp_path, workers=1)


def test_every_trial_is_trained_once_and_the_chosen_are_compared_over_fresh_seeds(tuning: Tuning, folder: Path) -> None:
    document = json.loads((folder / "tune.json").read_text("utf-8"))
    assert document == json.loads(json.dumps(tuning.to_dict()))
    assert [t["trial"] for t in document["trials"]] == [0, 1, 2]
    assert {k: [t["trial"] for t in v["trials"]] for k, v in document["alone"].items()} == {
        "watch": [0, 1],
        "rating": [0, 1],
    }
    assert document["seeds"] == [0, 2] and document["objectives"]["rating"] == {"metric": "mse", "better": "lower"}
    names = ["as it is", *(p["setting"] for p in document["chosen"]), "watch alone", "rating alone"]
    assert [(r.name, r.config.seed) for r in tuning.runs] == [(n, s) for n in names for s in (0, 2)]
    runs = {r.name: r for r in tuning.runs}
    for point in document["chosen"]:
        run = runs[point["setting"]]
        assert point == document["trials"][point["trial"]] | {k: point[k] for k in ("setting", "reasons", "shortfall")}
        assert (run.config.lr, run.weights["rating"]) == tuple(point["set"].values())
    for task, found in document["alone"].items():
        best = found["trials"][found["chosen"]]
        assert runs[f"{task} alone"].config.lr == best["set"]["train.lr"] and runs[f"{task} alone"].alone == task
        assert set(best["set"]) == {"train.lr"}
        sign = 1 if document["objectives"][task]["better"] == "lower" else -1
        assert sign * best["values"][task] == min(sign * t["values"][task] for t in found["trials"])
    assert len(document["notes"]) == 3  # by time, so the test rows are the same for every seed


def test_a_trial_is_worth_what_its_run_has_on_validation_data_at_the_epoch_it_keeps(
    tuning: Tuning, folder: Path
) -> None:
    for trial in tuning.trials:
        run = Run.load(folder / "search" / "runs" / f"{trial.study.replace(' ', '-')}-{trial.number}-seed1")
        at = next(h["valid"] for h in run.history if h["epoch"] == run.kept)
        assert trial.values == {t: at[t][{"watch": "mrr", "rating": "mse"}[t]] for t in run.tasks}
        assert trial.epoch == run.kept and run.parts() == ("valid",)


def test_no_trial_dominates_a_chosen_one(tuning: Tuning) -> None:
    values = [(-t.values["watch"], t.values["rating"]) for t in tuning.trials if t.study == "joint" and t.values]
    for point in tuning.points:
        own = values[point.number]
        assert not any(v != own and v[0] <= own[0] and v[1] <= own[1] for v in values)


def test_the_same_call_trains_nothing_twice(
    data: Dataset, tuning: Tuning, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a step was trained")

    monkeypatch.setattr("polytask.replicas.Stack.step", refuse)
    assert tune(data, SEARCH, folder, workers=1).to_dict() == tuning.to_dict()


class Killed(BaseException):
    """What a signal is to Python code."""


@pytest.mark.parametrize("step", [4, 15, 27])
def test_a_killed_search_goes_on_and_ends_as_if_it_had_not_been(
    data: Dataset, tuning: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    plain, steps = Stack.step, 0

    def killed(*given: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == step:
            raise Killed
        return plain(*given)

    monkeypatch.setattr("polytask.replicas.Stack.step", killed)
    with pytest.raises(Killed):
        tune(data, SEARCH, tmp_path, workers=1)
    found = tune(data, SEARCH, tmp_path, workers=1)
    assert found.to_dict() == tuning.to_dict()
    assert [r.history for r in found.runs] == [r.history for r in tuning.runs]
    monkeypatch.undo()


def test_more_trials_extend_a_search(data: Dataset, tuning: Tuning, tmp_path: Path) -> None:
    shorter = replace(SEARCH, config=replace(CONFIG, trials=1))
    first = tune(data, shorter, tmp_path, workers=1)
    assert [t.study for t in first.trials] == ["joint", "watch alone", "rating alone"]
    drawn = [
        [t.drawn for t in found.trials if t.study == "joint"]
        for found in (tune(data, SEARCH, tmp_path, workers=1), tuning)
    ]
    assert drawn[0] == drawn[1]
    assert tune(data, shorter, tmp_path, workers=1).to_dict() == first.to_dict()


def test_test_labels_change_nothing_in_the_search(data: Dataset, tuning: Tuning, tmp_path: Path) -> None:
    test = SPLITS["temporal"](data, 0.15, 0.15, 0)[2]
    rating = data.interactions["rating"].to_numpy().copy()
    rating[test] = 6 - rating[test]
    other = replace(data, interactions=data.interactions.with_columns(pl.Series("rating", rating)))
    assert other.fingerprint() != data.fingerprint()
    found = tune(other, SEARCH, tmp_path, workers=1)
    assert found.to_dict() == tuning.to_dict()
    scores = [[r.history[-1]["test"]["rating"]["mse"] for r in t.runs if "rating" in r.tasks] for t in (found, tuning)]
    assert all(a != b for a, b in zip(*scores, strict=True))


def test_another_search_in_the_same_folder_is_refused(data: Dataset, tuning: Tuning, folder: Path) -> None:
    wider = replace(SEARCH, config=replace(CONFIG, space={"train.lr": LR}))
    with pytest.raises(StateError, match="another value of 'tune'; use another --folder"):
        tune(data, wider, folder, workers=1)
    with pytest.raises(StateError, match="another value of 'data'"):
        tune(synthetic(20, 30, 400, seed=1), SEARCH, folder, workers=1)


def test_a_trial_that_blows_up_is_lost_alone(data: Dataset, tmp_path: Path) -> None:
    config = TuneConfig(trials=2, seed=2, together=2, space={"train.lr": [1e-2, 1e30]})
    search = replace(SEARCH, experiment=replace(EXPERIMENT, baselines=False, seeds=(0,)), config=config)
    found = tune(data, search, tmp_path, workers=1).to_dict()
    well, failed = found["trials"]
    assert well["set"]["train.lr"] == 1e-2 and set(well["values"]) == {"watch", "rating"}
    assert failed["set"]["train.lr"] == 1e30 and "lower lr or set clip" in failed["failed"]
    assert (found["front"], [p["trial"] for p in found["chosen"]]) == ([0], [0])


def test_single_tasks_have_nothing_to_search_where_only_weights_and_balance_differ(
    data: Dataset, tmp_path: Path
) -> None:
    space = {"task.rating.weight": WEIGHT, "balance": [{"kind": "fixed"}]}
    told: list[tuple[str, int, int]] = []
    search = replace(
        SEARCH,
        experiment=replace(EXPERIMENT, split="random", seeds=(0,)),
        config=TuneConfig(trials=2, space=space),
    )
    found = tune(data, search, tmp_path, workers=1, progress=lambda *one: told.append(one), config="name = 1\n")
    document = found.to_dict()
    assert [len(v["trials"]) for v in document["alone"].values()] == [1, 1]
    assert "The single model of watch was searched with its one setting." in document["notes"]
    assert "Each final seed draws its own test rows" in document["notes"][-1]
    assert document["seeds"] == [1] and all(r.config.balance == Balance() for r in found.runs)
    assert (tmp_path / "config.toml").read_text("utf-8") == "name = 1\n"
    search_told = [t for t in told if t[0] == "search"]
    assert search_told[-1] == ("search", 400, 400) and search_told[0][1] == 0
    assert len(read_lines(tmp_path / "search" / "trials.jsonl")) == 4


def test_without_baselines_no_single_task_is_searched(data: Dataset) -> None:
    search = replace(SEARCH, experiment=replace(EXPERIMENT, baselines=False))
    assert [(s.name, s.trials, s.together) for s in _studies(data, search)] == [("joint", 3, 2)]
    assert [(s.name, s.trials, s.together) for s in _studies(data, SEARCH)][1:] == [
        ("watch alone", 2, 1),
        ("rating alone", 2, 1),
    ]
