"""Balancers in training: alone and in a stack, killed and resumed, and what is refused."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from polytask.balance import BALANCERS, Balance
from polytask.data.split import Split, split
from polytask.data.synthetic import synthetic
from polytask.errors import ConfigError, TrainingError
from polytask.gradients import Programs
from polytask.nn.model import MultiTask
from polytask.record import Recorder
from polytask.run import Run, TrainConfig
from polytask.schema import Task
from polytask.train import fit, fit_many

STARS = Task("stars", "regression", label="rating")
LIKED = Task("liked", "binary", label="rating", positive="rating >= 4")
DATA = synthetic(users=40, items=60, rows=900, seed=6)
CUT = split(replace(DATA, schema=replace(DATA.schema, tasks=(STARS, LIKED))), valid=0.1, test=0.1)
CONFIG = TrainConfig(epochs=3, batch=150, lr=0.02, patience=0)
STACKED = ("uncertainty", "rlw", "famo", "pcgrad", "metabalance")
REMEMBERING = ("uncertainty", "dwa", "famo", "gradnorm", "gradvac", "metabalance", "moco", "excess_mtl", "gradcraft")
Named = dict[str, Tensor]


@pytest.fixture(autouse=True)
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polytask.train.Programs", partial(Programs, trace=False))


def model(cut: Split = CUT) -> MultiTask:
    return MultiTask.build(cut.train, body="shared_bottom", dim=4, tower=(5,), options={"layers": [6]})


def balanced(kind: str, **options: Any) -> TrainConfig:
    return replace(CONFIG, balance=Balance(kind, **options))


def values(run: Run) -> Named:
    assert run.model is not None
    return {n: p.detach().clone() for n, p in run.model.named_parameters()}


def equal(first: Named, second: Named) -> bool:
    return all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize("kind", BALANCERS)
def test_every_balancer_trains_two_tasks_better_than_chance(kind: str) -> None:
    run = fit(model(), CUT.train, CUT.valid, CUT.test, config=replace(balanced(kind), epochs=8))
    first, last = run.history[0]["train"], run.history[-1]["train"]
    assert last["stars"] < first["stars"] and last["liked"] < first["liked"]
    if kind in ("fixed", "unitary"):
        assert "weights" not in run.history[0]
    else:
        assert set(run.history[0]["weights"]) == {"stars", "liked"}


@pytest.mark.parametrize("kind", STACKED)
def test_a_balanced_replica_ends_where_it_ends_alone(kind: str) -> None:
    configs = [replace(balanced(kind), seed=s, lr=rate) for s, rate in ((0, 0.02), (1, 0.01), (2, 0.02))]
    weights = [{"stars": 1.0, "liked": 1.0}, {"stars": 0.2, "liked": 0.7}, {"stars": 0.0, "liked": 1.0}]
    stacked = fit_many([model() for _ in configs], CUT.train, config=configs, weights=weights)
    for run, config, own in zip(stacked, configs, weights, strict=True):
        (alone,) = fit_many([model()], CUT.train, config=[config], weights=[own])
        for name, value in values(alone).items():
            torch.testing.assert_close(values(run)[name], value, rtol=2e-3, atol=2e-4)


def killed(folder: Path, config: TrainConfig, after: int) -> None:
    """A training that ends after some steps, its last checkpoint a step before."""

    def stop(done: int, total: int) -> None:
        if done >= after:
            raise KeyboardInterrupt

    recorder = Recorder([folder], folder / "checkpoints", names=["run"], progress=stop)
    with pytest.raises(KeyboardInterrupt):
        fit_many([model()], CUT.train, CUT.valid, config=replace(config, checkpoint_steps=1), recorder=recorder)


@pytest.mark.parametrize("kind", REMEMBERING)
def test_a_killed_run_goes_on_with_what_the_balancer_remembers(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polytask.train._REPORT_STEPS", 1)
    config = replace(balanced(kind), checkpoint_steps=1)
    whole = fit(model(), CUT.train, CUT.valid, config=config, folder=tmp_path / "whole")
    killed(tmp_path / "killed", config, 8)
    again = fit(model(), CUT.train, CUT.valid, config=config, folder=tmp_path / "killed")
    assert equal(values(whole), values(again)) and whole.history == again.history


def test_weights_that_stand_between_askings_survive_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polytask.train._REPORT_STEPS", 1)
    config = replace(balanced("mgda", every=4), checkpoint_steps=1)
    whole = fit(model(), CUT.train, CUT.valid, config=config, folder=tmp_path / "whole")
    killed(tmp_path / "killed", config, 7)
    again = fit(model(), CUT.train, CUT.valid, config=config, folder=tmp_path / "killed")
    assert equal(values(whole), values(again))


def test_unitary_weighs_alike_whatever_the_tasks_own_weights() -> None:
    runs = [
        fit(model(), CUT.train, weights=own, config=balanced(kind))
        for kind, own in (
            ("unitary", {"stars": 0.01, "liked": 5.0}),
            ("fixed", {"stars": 1.0, "liked": 1.0}),
            ("fixed", {"stars": 0.01, "liked": 5.0}),
        )
    ]
    assert equal(values(runs[0]), values(runs[1])) and not equal(values(runs[0]), values(runs[2]))


@pytest.mark.parametrize("kind", ["uncertainty", "pcgrad", "rlw"])
def test_a_task_alone_is_trained_as_with_fixed_weights(kind: str) -> None:
    own = {"stars": 0.0, "liked": 0.5}
    runs = [fit(model(), CUT.train, weights=own, config=balanced(k)) for k in (kind, "fixed")]
    assert equal(values(runs[0]), values(runs[1]))


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    runs = [fit(model(), CUT.train, config=replace(balanced("rlw"), seed=s)) for s in (0, 0, 1)]
    assert runs[0].history == runs[1].history != runs[2].history
    assert runs[0].history[0]["weights"] != runs[0].history[1]["weights"]


def test_a_loss_a_method_cannot_weigh_stops_with_its_name() -> None:
    tasks = (replace(STARS, loss="log_normal", metrics=("mae",)), LIKED)
    cut = split(replace(DATA, schema=replace(DATA.schema, tasks=tasks)), valid=0.1, test=0.1)
    config = replace(balanced("gls"), epochs=40, lr=0.05)
    with pytest.raises(TrainingError, match=r"epoch \d+, step \d+: loss of task 'stars' is -.*balance 'gls' needs"):
        fit(model(cut), cut.train, config=config)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kind": "pcgrd"}, "balance 'pcgrd' is unknown. Did you mean 'pcgrad'?"),
        ({"kind": "dwa", "options": {"tmp": 1}}, "option of balance 'dwa' 'tmp' is unknown"),
        ({"kind": "dwa", "options": {"temperature": 0.0}}, "balance 'dwa': temperature = 0"),
        ({"kind": "dwa", "every": 2}, "balance 'dwa' reads losses, not gradients: leave out every, share and at"),
        ({"kind": "moco", "at": "tables"}, "balance 'moco' reads the trunk's gradients"),
        ({"kind": "metabalance", "every": 2}, "balance 'metabalance' weighs each parameter"),
        ({"kind": "pcgrad", "at": "heads"}, "balance.at 'heads' is unknown"),
        ({"kind": "pcgrad", "every": 0}, "balance: every = 0 must be at least 1"),
        ({"kind": "pcgrad", "share": 1.5}, "share = 1.5 in"),
    ],
)
def test_a_choice_that_does_not_fit_is_one_line(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        TrainConfig(balance=Balance(**options))
    assert text in str(error.value) and "\n" not in str(error.value)
