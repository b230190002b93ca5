"""What features, losses and chance add to a stack of replicas: each is trained as it would be alone."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from polytask import rng
from polytask.data.batch import Batch, Feed, Part
from polytask.data.split import Split, split
from polytask.data.table import read_dataset
from polytask.evaluate import evaluate, predict
from polytask.gradients import Programs
from polytask.loss import LOSSES, task_loss
from polytask.nn.design import Design
from polytask.nn.layers import Dropout, Gate, Uniform
from polytask.nn.model import MultiTask
from polytask.optimizers import Optimizers
from polytask.replicas import Stack
from polytask.run import Run, TrainConfig
from polytask.schema import Field, Schema, Task
from polytask.train import fit, fit_many

PLAIN = partial(Programs, trace=False)
WATCH = Task("watch", "ranking")
STARS = Task("stars", "regression", label="rating")
FIELDS = (
    Field("genre", "categories", side="item", length=3),
    Field("price", "number", side="item"),
    Field("past", "history", length=4),
    Field("device"),
)
ITEMS = pl.DataFrame(
    {"item": [f"i{k}" for k in range(25)], "genre": ["x|y", "y", "x|y|z", None, "z"] * 5, "price": range(25)}
)
USERS = pl.DataFrame({"user": [f"u{k}" for k in range(15)]})
CONFIG = TrainConfig(epochs=3, batch=64, lr=0.02, patience=0, checkpoint_steps=2)
CHANCE = Design(body="mmoe", dim=4, tower=(6,), dropout=0.3, options=(("gate_dropout", 0.3), ("layers", (5,))))
RATE = 64.0  # so large that a gradient is not lost beside the parameter it is subtracted from
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps in their plain form: tracing takes longer than these trainings."""
    monkeypatch.setattr("polytask.train.Programs", partial(Programs, trace=False))


def frame(rows: int = 320, seed: int = 0) -> pl.DataFrame:
    draw = np.random.default_rng(seed)
    seconds = draw.lognormal(3, 1, rows)
    return pl.DataFrame(
        {
            "user": [f"u{k}" for k in draw.integers(0, 15, rows)],
            "item": [f"i{k}" for k in draw.zipf(1.5, rows) % 25],
            "time": draw.integers(0, 400, rows),
            "rating": draw.integers(1, 6, rows).astype(float),
            "clicked": draw.integers(0, 2, rows),
            "bought": draw.integers(0, 2, rows),
            "seconds": seconds * draw.random(rows),
            "duration": seconds,
            "device": draw.choice(list("abc"), rows),
        }
    )


def cut(tasks: Sequence[Task] = (WATCH, STARS), fields: Sequence[Field] = FIELDS, seed: int = 0) -> Split:
    schema = Schema(tuple(tasks), tuple(fields), user="user", item="item", time="time")
    return split(read_dataset(frame(), schema, items=ITEMS, users=USERS), valid=0, test=0.2, seed=seed)


def started(part: Part, design: Design = CHANCE, seed: int = 0) -> MultiTask:
    model = MultiTask(part, design)
    model.initialize(lambda name: rng.generator(seed, f"init/{name}"))
    return model


def feed(model: MultiTask, parts: Sequence[Part], seeds: Sequence[int], size: int = 64) -> Feed:
    return Feed(parts, seeds, size, "uniform", noise=model.noise, catalogue=model.every_item)


def values(model: MultiTask) -> State:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def close(first: Mapping[str, Tensor], second: Mapping[str, Tensor], most: float = 1e-3) -> None:
    """The tensors both have differ by no more than rounding, relative to the largest value of each."""
    common = first.keys() & second.keys()
    assert common
    for name in common:
        scale = float(first[name].abs().max()) + 1e-5
        torch.testing.assert_close(
            second[name], first[name], rtol=0, atol=most * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def equal(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


# Chance.


def test_a_model_without_chance_takes_no_noise_and_one_with_it_as_much_as_it_names() -> None:
    part = cut().train
    assert started(part, CHANCE._replace(dropout=0.0, options=())).noise == 0
    model = started(part)
    widths = [m.width for m in model.modules() if isinstance(m, Uniform)]
    assert model.noise == sum(widths) == 2 * 4 + 2 * 6  # two gates of four experts, two towers of six
    separate = started(part, CHANCE._replace(share="separate"))
    assert separate.noise == 4 + 2 * 6  # separate trunks take the same


def test_dropout_zeroes_a_share_and_keeps_the_mean() -> None:
    layer = Dropout(50, 0.3)
    x = torch.rand(4000, 50, generator=torch.Generator().manual_seed(0)) + 1
    assert layer(x) is x
    layer.uniform.values = torch.rand(4000, 50, generator=torch.Generator().manual_seed(1))
    found = layer(x)
    assert (found == 0).double().mean().item() == pytest.approx(0.3, abs=0.01)
    torch.testing.assert_close(found[found != 0], x[found != 0] / 0.7)
    assert (found.mean() / x.mean()).item() == pytest.approx(1, abs=0.02)


def test_a_gate_drops_experts_and_gives_their_share_to_the_rest() -> None:
    gate = Gate(3, 4, dropout=0.5)
    gate.initialize("gate", lambda name: rng.generator(0, name))
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    plain = gate(x)
    assert gate.uniform is not None
    gate.uniform.values = torch.rand(500, 4, generator=torch.Generator().manual_seed(1))
    dropped, found = gate.uniform.values < 0.5, gate(x)
    some = ~dropped.all(dim=1)
    assert not found[some][dropped[some]].any()
    torch.testing.assert_close(found.sum(dim=1), torch.ones(500))
    kept = torch.where(dropped, 0, plain)[some]
    torch.testing.assert_close(found[some], kept / kept.sum(dim=1, keepdim=True))
    torch.testing.assert_close(found[~some], plain[~some])  # when every expert is dropped, none is
    assert (~some).any()


def test_a_stack_with_chance_is_its_replicas_alone() -> None:
    parts = [cut(seed=s) for s in (0, 1, 0)]
    configs = [replace(CONFIG, seed=s) for s in (0, 1, 2)]
    models = [MultiTask(p.train, CHANCE) for p in parts]
    runs = fit_many(models, [p.train for p in parts], config=configs)
    for run, part, config in zip(runs, parts, configs, strict=True):
        alone = fit(model := MultiTask(part.train, CHANCE), part.train, config=config)
        assert run.model is not None
        close(values(model), values(run.model))
        assert run.history[-1]["train"] == pytest.approx(alone.history[-1]["train"], rel=1e-3)


def trained(config: TrainConfig = CONFIG, design: Design = CHANCE, **options: Any) -> tuple[Run, State]:
    parts = cut()
    run = fit(model := MultiTask(parts.train, design), parts.train, test=parts.test, config=config, **options)
    return run, values(model)


def test_the_same_seed_gives_the_same_bits_and_chance_makes_a_difference() -> None:
    (first, a), (second, b) = trained(), trained()
    assert equal(a, b) and first.history == second.history
    without = CHANCE._replace(dropout=0.0, options=CHANCE.options[1:])
    assert not equal(a, trained(design=without)[1])
    assert not equal(a, trained(replace(CONFIG, seed=1))[1])


def test_how_often_a_model_is_evaluated_changes_nothing() -> None:
    often, seldom = (trained(replace(CONFIG, evaluate_every=n)) for n in (1, 3))
    assert equal(often[1], seldom[1]) and len(often[0].history) == 3 > len(seldom[0].history)


def test_evaluation_knows_no_chance() -> None:
    parts = cut()
    model = started(parts.train)
    assert parts.test is not None
    first, again = (predict(model.train(training), parts.test) for training in (True, False))
    assert torch.equal(first, again)
    assert evaluate(model.train(), parts.test).to_dict() == evaluate(model.eval(), parts.test).to_dict()
    batch = Batch(*(t[0] for t in next(feed(model, [parts.train], [0]).epoch(1))))
    assert not torch.equal(model.train()(batch)[1], model.eval()(batch)[1])


class Killed(BaseException):
    """Ends a training where it stands."""


@pytest.mark.parametrize("steps", [3, 7])
def test_a_killed_training_with_chance_goes_on_to_the_same_bits(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(folder=tmp_path / "whole")
    plain, done = Stack.step, 0

    def step(*arguments: Any) -> Tensor:
        nonlocal done
        done += 1
        if done > steps:
            raise Killed
        return plain(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Stack, "step", step)
        trained(folder=tmp_path / "killed")
    resumed = trained(folder=tmp_path / "killed")
    assert done == steps + 1 and equal(whole[1], resumed[1]) and whole[0].history == resumed[0].history


@pytest.mark.parametrize("unknown", [0.0, 0.2])
def test_separate_trunks_with_chance_are_their_single_task_models(unknown: float) -> None:
    design, config = CHANCE._replace(share="separate"), replace(CONFIG, unknown=unknown)
    for tasks in ((WATCH, STARS), (STARS, WATCH)):
        both, one = cut(tasks).train, cut(tasks[:1]).train
        weights = {tasks[0].name: 1.0, tasks[1].name: 0.0}
        fit(joint := MultiTask(both, design), both, weights=weights, config=config)
        fit(alone := MultiTask(one, design), one, config=config)
        own = values(alone)
        assert own.keys() < values(joint).keys()
        close(own, values(joint), 1e-5)


# Gradients, by plain autograd and in a stack.

PENALIZED: list[Design] = [
    Design(body=name, dim=4, tower=(5,), options=options)
    for name, options in [
        ("snr", (("sparsity", 0.1),)),
        ("sparse_moe", (("balance", 1.0), ("layers", (5,)))),
        ("sluice", ()),
        ("dselect_k", ()),
    ]
]
PENALIZED += [Design(body="shared_bottom", dim=4, tower=(5,), blocks=(("pfe", (("prototypes", 3),)), ("cross", ())))]
PENALIZED += [PENALIZED[0]._replace(share="separate")]


def autograd(model: MultiTask, batch: Batch, weights: Sequence[float]) -> tuple[State, Tensor]:
    """Gradient of weights times losses plus penalty, and the penalty []."""
    model.zero_grad(set_to_none=True)
    logits = model.train()(batch)
    penalty, model.penalty = model.penalty, None
    losses = [
        task_loss(loss, z, batch.labels[:, n], context)  # type: ignore[arg-type]
        for n, (loss, z, context) in enumerate(zip(model.losses, logits, model.contexts(logits, batch), strict=True))
    ]
    added = torch.zeros(()) if penalty is None else penalty
    (sum(w * x for w, x in zip(weights, losses, strict=True)) + added).backward()
    grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return grads, added.detach()


def stacked(models: Sequence[MultiTask], batch: Batch, weights: Tensor, trace: bool) -> Iterator[State]:
    """The gradient of each replica, from one step of plain descent."""
    before = [values(m) for m in models]
    Stack(models, [RATE] * len(models), optimizers=Optimizers("sgd"), programs=partial(Programs, trace=trace)).step(
        batch, weights
    )
    for model, start in zip(models, before, strict=True):
        yield {n: (start[n] - p) / RATE for n, p in values(model).items()}


def random(model: MultiTask, seed: int) -> MultiTask:
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    return model


def compared(design: Design, tasks: Sequence[Task], trace: bool) -> list[Tensor]:
    """Check the gradients of a stack of two against autograd; the penalties."""
    part = cut(tasks).train
    models = [random(MultiTask(part, design), seed) for seed in (0, 1)]
    batch = next(feed(models[0], [part, part], [0, 1]).epoch(1))
    weights = torch.tensor([[1.0] * len(tasks), [0.3] * len(tasks)])
    expected = [autograd(m, Batch(*(t[r] for t in batch)), weights[r].tolist()) for r, m in enumerate(models)]
    for (grads, _), found in zip(expected, stacked(models, batch, weights, trace), strict=True):
        close(grads, found)
    return [penalty for _, penalty in expected]


@pytest.mark.parametrize("design", PENALIZED, ids=lambda d: f"{d.body}-{d.share}")
def test_a_penalty_is_added_to_the_weighted_losses(design: Design) -> None:
    assert all(penalty > 0 for penalty in compared(design, (WATCH, STARS), trace=False))


@pytest.mark.parametrize("trace", [True, False])
@pytest.mark.parametrize("share", ["shared", "separate"])
@pytest.mark.parametrize("loss", ["in_batch_softmax", "full_softmax"])
def test_losses_over_many_items_have_the_gradients_of_autograd(loss: str, share: Any, trace: bool) -> None:
    tasks = (STARS, Task("watch", "ranking", head="dot", loss=loss))
    compared(Design(body="shared_bottom", dim=4, tower=(5,), share=share), tasks, trace)


@pytest.mark.parametrize("design", [CHANCE, PENALIZED[0], PENALIZED[4]], ids=lambda d: d.body)
def test_the_traced_step_with_chance_and_penalties_has_the_gradients_of_autograd(design: Design) -> None:
    compared(design, (WATCH, STARS), trace=True)


@pytest.mark.parametrize("trace", [True, False])
@pytest.mark.parametrize("design", [CHANCE, *PENALIZED[:2], PENALIZED[4]], ids=lambda d: d.body)
def test_nothing_of_a_step_is_left_on_a_model(design: Design, trace: bool) -> None:
    part = cut().train
    model = started(part, design)
    stack = Stack([model, started(part, design, 1)], [0.1, 0.1], programs=partial(Programs, trace=trace))
    for batch, _ in zip(feed(model, [part, part], [0, 1]).epoch(1), range(2), strict=False):
        stack.step(batch, torch.ones(2, 2))
    for module in (model, *model.modules()):
        for name, value in vars(module).items():
            assert not isinstance(value, Tensor) or name == "_", f"{type(module).__name__}.{name}"
    twin = copy.deepcopy(model)
    assert save(twin.state_dict()) == save({n: t.clone() for n, t in model.state_dict().items()})
    rows = Batch.bare(*part.fields(part.user, part.item, torch.arange(len(part))))
    assert torch.equal(twin.eval().values(rows), model.eval().values(rows))
    twin.train()(next(iter(_single(twin, part))))[1].sum().backward()  # and the twin has a life of its own


def _single(model: MultiTask, part: Part) -> Iterator[Batch]:
    for batch in feed(model, [part], [0]).epoch(1):
        yield Batch(*(t[0] for t in batch))


# Constants that losses fit on their training rows.


def task_of(name: str) -> tuple[Task, ...]:
    """A task with the loss ``name`` and, if it is conditional, its condition."""
    loss = LOSSES[name]
    many = loss.kind in ("in_batch", "catalogue")
    kind = loss.tasks[0]
    label = {"ranking": None, "regression": "seconds" if loss.by else "rating", "binary": "bought"}[kind]
    own = Task(
        "own",
        kind,
        label=label,
        loss=name,
        head="dot" if many else "tower",
        negatives=3,
        given="click" if loss.given else None,
        by="duration" if loss.by else None,
        range=None if loss.by or kind != "regression" else (1.0, 5.0),
    )
    return (Task("click", "binary", label="clicked"), own) if loss.given else (own,)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_each_replica_has_the_constants_of_its_own_training_rows(name: str) -> None:
    tasks = task_of(name)
    design = Design(body="shared_bottom", dim=4, tower=(5,))
    parts = [cut(tasks, seed=s).train for s in (0, 1)]
    models = [started(p, design, seed) for seed, p in enumerate(parts)]
    batch = next(feed(models[0], parts, [0, 1]).epoch(1))
    weights = torch.ones(2, len(tasks))
    expected = [autograd(m, Batch(*(t[r] for t in batch)), [1.0] * len(tasks))[0] for r, m in enumerate(models)]
    for grads, found in zip(expected, stacked(models, batch, weights, trace=False), strict=True):
        close(grads, found)


def test_the_rows_of_a_task_may_weigh_differently() -> None:
    table = frame().with_columns(weight=pl.Series(np.random.default_rng(0).integers(0, 3, 320).astype(float)))
    task = Task("stars", "regression", label="rating", row_weight="weight")
    part = split(read_dataset(table, Schema((task,), user="user", item="item")), valid=0, test=0).train
    model = started(part, Design(dim=4, tower=(5,)))
    (batch,) = Feed([part], [0], 320, "uniform").epoch(1)
    error = (model(Batch(*(t[0] for t in batch)))[0] - batch.labels[0, :, 0]).square()
    weight = batch.weights[0, :, 0]
    losses = Stack([model], [0.1], programs=PLAIN).step(batch, torch.ones(1, 1))
    torch.testing.assert_close(losses[0, 0], (weight * error).sum() / weight.sum())
