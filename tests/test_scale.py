"""What the size of a model decides: precision of its layers, threads."""

import pytest
import torch

from polytask.data.batch import Batch
from polytask.data.split import split
from polytask.data.synthetic import synthetic
from polytask.nn.model import MultiTask
from polytask.run import TrainConfig
from polytask.scale import choose_precision, threads
from polytask.train import fit, fit_many

CUT = split(synthetic(users=40, items=60, rows=900, seed=6), valid=0.1, test=0.1, seed=0)
CONFIG = TrainConfig(epochs=1, batch=256, precision="auto")


def large() -> MultiTask:
    return MultiTask.build(CUT.train, body="mmoe", dim=64, tower=(8,), options={"experts": 2, "layers": [256]})


@pytest.fixture
def every_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that multiplies bfloat16 itself, and layers that are large from 2^20 multiplications on."""
    monkeypatch.setattr("polytask.nn.precision.multiplies", lambda device: True)
    monkeypatch.setattr("polytask.nn.precision.LEAST", 1 << 20)
    monkeypatch.setattr("polytask.nn.fused.LEAST", 1 << 20)


def test_large_layers_alone_are_reduced_and_it_is_said(every_processor: None) -> None:
    run = fit(large(), CUT.train, CUT.valid, config=CONFIG)
    assert run.chosen == ["bfloat16 in 2 experts 128-256"]


def test_a_reduced_model_predicts_in_full_precision(every_processor: None) -> None:
    model = large()
    fit(model, CUT.train, CUT.valid, config=CONFIG)
    again = large()
    again.load_state_dict(model.state_dict())
    ids, numbers = CUT.train.fields(CUT.train.user, CUT.train.item, torch.arange(len(CUT.train)))
    batch = Batch.bare(ids, numbers)
    assert torch.equal(model.eval().values(batch), again.eval().values(batch))


def test_reduced_and_full_precision_learn_alike(every_processor: None) -> None:
    losses = {}
    for precision in ("auto", "float32"):
        config = TrainConfig(epochs=4, batch=256, lr=3e-3, precision=precision)
        losses[precision] = fit(large(), CUT.train, config=config).history[-1]["train"]
    assert losses["auto"] == pytest.approx(losses["float32"], rel=0.01)
    assert losses["auto"] != losses["float32"]


def test_nothing_is_reduced_unless_it_is_asked_for(every_processor: None) -> None:
    assert choose_precision([large()], TrainConfig(batch=256)) == []


def test_models_of_a_stack_are_reduced_as_they_are_alone(every_processor: None) -> None:
    seeds = (3, 4)
    configs = [TrainConfig(epochs=2, batch=256, precision="auto", seed=seed, probes=False) for seed in seeds]
    stacked = fit_many([large() for _ in seeds], CUT.train, config=configs)
    for run, config in zip(stacked, configs, strict=True):
        alone = fit(large(), CUT.train, config=config)
        assert run.chosen == alone.chosen == ["bfloat16 in 2 experts 128-256"]
        assert run.history[-1]["train"] == pytest.approx(alone.history[-1]["train"], rel=1e-5)


def test_a_small_model_takes_one_thread_and_a_large_one_all_there_are() -> None:
    small = MultiTask.build(CUT.train, dim=4, tower=(5,))
    torch.set_num_threads(2)
    try:
        with threads([small], 256):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with threads([large()], 1 << 20):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
