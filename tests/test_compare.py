from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polytask import compare as module
from polytask.balance import Balance
from polytask.compare import Experiment, Setting, UnfinishedError, compare
from polytask.data.synthetic import synthetic
from polytask.data.table import Dataset
from polytask.errors import ConfigError, StateError, TrainingError
from polytask.files import lock
from polytask.nn.design import Design
from polytask.run import Run, TrainConfig

TRAIN = TrainConfig(epochs=2, batch=64, patience=0)
EVEN, UNEVEN = {"watch": 0.5, "rating": 0.5}, {"watch": 0.99, "rating": 0.01}
DESIGN = Design("factorize", 4, "shared", (8,))
SETTINGS = (
    Setting("even", DESIGN, EVEN, TRAIN),
    Setting("uneven", DESIGN, UNEVEN, TRAIN),
    Setting("separate", DESIGN._replace(share="separate"), EVEN, TRAIN),
)
EXPERIMENT = Experiment(SETTINGS, seeds=(0, 1), valid=0.1, test=0.1)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return synthetic(20, 30, 300)


@pytest.fixture(scope="module")
def folder(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compare")
    compare(data, EXPERIMENT, path, workers=1, config='name = "x"\n')
    return path


def stacks(data: Dataset, experiment: Experiment) -> list[module.Stack]:
    return module._stacks(module._runs(experiment, data))


def names(stack: module.Stack) -> list[tuple[str, int]]:
    return [(setting.name, seed) for setting, seed in stack.runs]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"settings": ()}, "at least one setting and one seed"),
        ({"capacity": "netwrk"}, "Did you mean 'network'"),
        ({"seeds": ()}, "at least one setting and one seed"),
        ({"seeds": (1, 1)}, "must be different and at least 0"),
        ({"seeds": (0, -1)}, "must be different and at least 0"),
        ({"settings": SETTINGS[:1] * 2}, "setting 'even' is named twice"),
        ({"settings": (replace(SETTINGS[0], name="a/b"), replace(SETTINGS[0], name="a b"))}, "or its folder would be"),
    ],
)
def test_an_experiment_that_cannot_be(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replace(EXPERIMENT, **changes)


@pytest.mark.parametrize("name", ["watch alone", "watch-alone", "rating/alone"])
def test_a_setting_cannot_take_the_place_of_a_baseline(data: Dataset, tmp_path: Path, name: str) -> None:
    experiment = replace(EXPERIMENT, settings=(replace(SETTINGS[0], name=name),))
    with pytest.raises(ConfigError, match="is named twice, or its folder would be; rename it"):
        compare(data, experiment, tmp_path / "new", workers=1)
    assert not (tmp_path / "new").exists()


def test_runs_of_one_architecture_are_one_stack(data: Dataset) -> None:
    shared, separate = stacks(data, EXPERIMENT)
    alone = [(f"{task} alone", seed) for task in ("watch", "rating") for seed in (0, 1)]
    assert names(shared) == [("even", 0), ("even", 1), ("uneven", 0), ("uneven", 1), *alone]
    assert names(separate) == [("separate", 0), ("separate", 1)]
    faster = replace(SETTINGS[1], train=replace(TRAIN, lr=0.1))
    assert len(stacks(data, replace(EXPERIMENT, settings=(SETTINGS[0], faster), baselines=False))) == 1
    wider = replace(SETTINGS[1], design=DESIGN._replace(dim=5))
    longer = replace(SETTINGS[2], train=replace(TRAIN, epochs=3))
    different = replace(EXPERIMENT, settings=(SETTINGS[0], wider, longer), baselines=False)
    assert [len(s.runs) for s in stacks(data, different)] == [2, 2, 2]


def test_baselines_are_every_task_alone_in_the_same_network(data: Dataset) -> None:
    found = module._baselines(EXPERIMENT, data)
    assert [(s.name, s.weights, s.design) for s in found] == [
        ("watch alone", {"watch": 1.0, "rating": 0.0}, DESIGN),
        ("rating alone", {"watch": 0.0, "rating": 1.0}, DESIGN),
    ]
    wider = replace(SETTINGS[1], design=DESIGN._replace(dim=5))
    several = module._baselines(replace(EXPERIMENT, settings=(SETTINGS[0], wider)), data)
    assert [s.name for s in several] == [
        f"{task} alone (factorize, net {number})" for number in (1, 2) for task in ("watch", "rating")
    ]
    assert [s.design.dim for s in several] == [4, 4, 5, 5]


def test_baselines_of_equal_parameters_are_as_wide_as_the_joint_model_allows(data: Dataset) -> None:
    wide = replace(SETTINGS[0], design=DESIGN._replace(dim=16))
    found = module._baselines(replace(EXPERIMENT, settings=(wide,), capacity="parameters"), data)
    dims = {s.design.dim for s in found}
    part = module.split(data, valid=0.1, test=0.1, seed=0).train

    def alone(dim: int) -> int:
        model = module.make_model(part, wide.design._replace(dim=dim))
        return sum(p.numel() for t in ("watch", "rating") for p in model.read_by([t]))

    joint = sum(p.numel() for p in module.make_model(part, wide.design).parameters())
    (dim,) = dims
    assert 1 <= dim < 16 and alone(dim) <= joint < alone(dim + 1)
    assert all(f"equal parameters, dim {dim}" in s.name for s in found)
    hopeless = replace(wide, design=DESIGN._replace(dim=1, tower=(512,)))
    with pytest.raises(ConfigError, match="embeddings of width 1"):
        module._baselines(replace(EXPERIMENT, settings=(hopeless,), capacity="parameters"), data)


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 40])
def test_stacks_are_halved_until_every_worker_has_one_or_the_costliest_is_a_single_run(
    data: Dataset, workers: int
) -> None:
    before = stacks(data, EXPERIMENT)
    found = module._balanced(before, workers)
    assert len(found) == {1: 2, 2: 2, 3: 3, 5: 5, 40: 6}[workers]
    assert sorted(run for s in found for run in names(s)) == sorted(run for s in before for run in names(s))
    costs = [s.cost for s in found]
    assert costs == sorted(costs, reverse=True)
    assert max(costs) <= {1: 8, 2: 8, 3: 4, 5: 4, 40: 2}[workers]


def test_a_separate_run_costs_one_network_per_task(data: Dataset) -> None:
    assert [s.cost for s in stacks(data, EXPERIMENT)] == [8, 4]


def test_the_key_of_a_stack_is_its_content(data: Dataset) -> None:
    keys = [s.key for s in stacks(data, EXPERIMENT)]
    assert keys == [s.key for s in stacks(data, EXPERIMENT)] and len(set(keys)) == 2
    assert all(len(k) == 12 and k.isalnum() for k in keys)
    for change in ({"lr": 0.5}, {"epochs": 3}, {"batch": 32}):
        changed = replace(SETTINGS[2], train=replace(TRAIN, **change))
        other = stacks(data, replace(EXPERIMENT, settings=(*SETTINGS[:2], changed), baselines=False))
        assert keys[1] not in [s.key for s in other]


def test_every_run_is_trained_once_and_left_in_its_folder(data: Dataset, folder: Path) -> None:
    runs = compare(data, EXPERIMENT, folder, workers=1)
    order = ["even", "uneven", "separate", "watch alone", "rating alone"]
    assert [(r.name, r.config.seed) for r in runs] == [(name, seed) for name in order for seed in (0, 1)]
    assert [r.alone for r in runs[::2]] == [None, None, None, "watch", "rating"]
    assert [r.shares for r in runs[::2]] == [True, True, False, False, False]
    assert all(len(r.history) == 2 and r.model is None and r.parts() == ("valid", "test") for r in runs)
    assert runs[8].tasks == ("rating",) and set(runs[8].history[0]["test"]) == {"rating"}
    assert sorted(p.name for p in folder.iterdir()) == [".lock", "config.toml", "plan.json", "runs", "stacks"]
    found = {p.name for p in (folder / "runs").iterdir()}
    assert found == {f"{name.replace(' ', '-')}-seed{seed}" for name in order for seed in (0, 1)}


def test_a_second_call_trains_nothing_and_finds_the_same(
    data: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files() -> dict[Path, bytes]:
        names = ("metrics.jsonl", "model.safetensors", "state.safetensors")
        return {p: p.read_bytes() for p in folder.rglob("*") if p.name in names}

    before = files()
    assert len(before) == 10 + 10 + 2

    def refuse(*_: object) -> None:
        raise AssertionError("a step was trained")

    monkeypatch.setattr("polytask.replicas.Stack.step", refuse)
    told: list[tuple[str, int, int]] = []
    compare(data, EXPERIMENT, folder, workers=1, progress=lambda *one: told.append(one))
    assert files() == before and all(done == total for _, done, total in told)


def test_more_seeds_leave_the_runs_of_the_others_alone(data: Dataset, tmp_path: Path) -> None:
    small = Experiment(SETTINGS[:1], seeds=(0,), baselines=False, valid=0.1, test=0.1)
    first = compare(data, small, tmp_path, workers=1)[0]
    both = compare(data, replace(small, seeds=(0, 1)), tmp_path, workers=1)
    assert [r.config.seed for r in both] == [0, 1]
    for ours, theirs in zip(first.history, both[0].history, strict=True):
        for task, scores in ours["test"].items():
            assert scores == pytest.approx(theirs["test"][task], rel=1e-3)


def test_other_data_in_the_same_folder_are_refused(data: Dataset, folder: Path) -> None:
    before = {p: p.read_bytes() for p in folder.rglob("*.jsonl")}
    with pytest.raises(StateError, match=r"was made with data .*use another --folder, or --force"):
        compare(synthetic(20, 30, 300, seed=1), EXPERIMENT, folder, workers=1)
    assert {p: p.read_bytes() for p in folder.rglob("*.jsonl")} == before


def test_a_folder_in_use_is_refused(data: Dataset, folder: Path) -> None:
    with lock(folder), pytest.raises(StateError, match="is in use by process"):
        compare(data, EXPERIMENT, folder, workers=1)


def test_progress_names_its_stack(data: Dataset, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    small = Experiment(SETTINGS[:1], seeds=(0,), baselines=False, valid=0.1, test=0.1)
    compare(data, small, tmp_path, workers=1, progress=lambda *one: told.append(one))
    assert {key for key, _, _ in told} == {s.key for s in stacks(data, small)}
    assert told[-1][1:] == (8, 8) and [d for _, d, _ in told] == sorted(d for _, d, _ in told)


HOSTILE = [
    "../../up",
    "/etc/passwd",
    "..",
    "[bold]x",
    "\x1b[31mred",
    "日本",
    "a\nb",
    "\0\0",
    "x" * 300,
    "~root",
    "-rf",
]


def test_hostile_names_stay_below_the_folder_and_apart(data: Dataset, tmp_path: Path) -> None:
    settings = tuple(replace(SETTINGS[0], name=name) for name in HOSTILE)
    experiment = Experiment(settings, seeds=(0,), baselines=False, valid=0.1, test=0.1)
    folder = tmp_path / "inside"
    paths = [module._run_folder(folder, s, 0) for s in settings]
    assert len(set(paths)) == len(HOSTILE)
    assert all(p.parent == folder / "runs" and p.resolve() == p and len(p.name.encode()) < 256 for p in paths)
    runs = compare(data, replace(experiment, settings=settings[:4]), folder, workers=1)
    assert [r.name for r in runs] == HOSTILE[:4]
    assert [Run.load(p).name for p in paths[:4]] == HOSTILE[:4]
    assert [p.name for p in tmp_path.iterdir()] == ["inside"]


def test_an_error_of_a_worker_process_reaches_the_caller_in_one_line(data: Dataset, tmp_path: Path) -> None:
    wild = replace(SETTINGS[0], train=replace(TRAIN, lr=1e30))
    experiment = Experiment((wild,), seeds=(0,), baselines=False, valid=0.1, test=0.1)
    with pytest.raises(TrainingError, match=r"epoch 1, step .*lower lr or set clip") as caught:
        compare(data, experiment, tmp_path, workers=2)
    assert "\n" not in str(caught.value)
    with lock(tmp_path):
        pass


@pytest.mark.parametrize("workers", [1, 2])
def test_a_setting_that_cannot_be_trained_does_not_stop_the_others(data: Dataset, tmp_path: Path, workers: int) -> None:
    wild = replace(SETTINGS[0], name="wild", train=replace(TRAIN, lr=1e30))
    experiment = Experiment((wild, SETTINGS[1]), seeds=(0,), baselines=False, valid=0.1, test=0.1)
    with pytest.raises(UnfinishedError, match=r"'wild': epoch 1, step .*\(1 of 2 runs are finished") as caught:
        compare(data, experiment, tmp_path, workers=workers)
    assert [run.name for run in caught.value.runs] == ["uneven"]
    assert Run.load(tmp_path / "runs" / "uneven-seed0").history == caught.value.runs[0].history


def test_a_wider_trunk_stands_beside_every_setting_that_shares(data: Dataset) -> None:
    one, other = SETTINGS[0], replace(SETTINGS[0], name="apart", design=SETTINGS[0].design._replace(share="separate"))
    wide = replace(EXPERIMENT, settings=(one, other), wider=True)
    found = {setting.name: setting for stack in stacks(data, wide) for setting, _ in stack.runs}
    assert f"{one.name}, wider" in found and "apart, wider" not in found
    assert found[f"{one.name}, wider"].design == one.design.widened() != one.design
    assert len({s.design for n, s in found.items() if " alone" in n}) == 2  # of either width


def test_static_weights_are_swept_without_a_balancer(data: Dataset) -> None:
    balanced = replace(SETTINGS[0], train=replace(SETTINGS[0].train, balance=Balance("pcgrad")))
    found = balanced.swept()
    assert len(found) == 7 and {s.sweep for s in found} == {balanced.name}
    assert all(s.train.balance == Balance() and s.design == balanced.design for s in found)


def test_baselines_are_trained_without_a_balancer(data: Dataset) -> None:
    kinds = [
        replace(SETTINGS[0], name=k, train=replace(SETTINGS[0].train, balance=Balance(k))) for k in ("mgda", "rlw")
    ]
    whole = replace(EXPERIMENT, settings=tuple(kinds))
    alone = {s.name: s for stack in stacks(data, whole) for s, _ in stack.runs if " alone" in s.name}
    assert len(alone) == len(data.schema.tasks) and all(s.train.balance == Balance() for s in alone.values())
