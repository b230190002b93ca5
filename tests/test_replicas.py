from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from polytask import rng
from polytask.data.batch import Batch, Feed, Part
from polytask.data.split import Split, split
from polytask.data.synthetic import synthetic
from polytask.data.table import Dataset, read_dataset
from polytask.errors import ConfigError, TrainingError
from polytask.evaluate import evaluate, predict
from polytask.gradients import Programs
from polytask.gramian import Found
from polytask.nn.design import Design
from polytask.nn.model import MultiTask
from polytask.optimizers import Optimizers
from polytask.replicas import Stack, Sums
from polytask.run import TrainConfig
from polytask.schema import Task
from polytask.train import fit_many

PLAIN = partial(Programs, trace=False)
DATA = synthetic(users=40, items=60, rows=900, seed=6)
WATCH = Task("watch", "ranking", head="dot")
RATING = Task("rating", "regression", label="rating")
State = dict[str, Tensor]


@cache
def cut(*tasks: Task, seed: int = 0) -> Split:
    data = replace(DATA, schema=replace(DATA.schema, tasks=tasks)) if tasks else DATA
    return split(data, valid=0, test=0.1, seed=seed)


def started(part: Part, seed: int = 0, **options: Any) -> MultiTask:
    model = MultiTask.build(part, **{"dim": 4, "tower": (5,)} | options)
    model.initialize(lambda name: rng.generator(seed, f"init/{name}"))
    return model


def batches(part: Part, seed: int = 0, size: int = 135) -> Iterator[Batch]:
    feed = Feed([part], [seed], size, "uniform")
    epoch = 0
    while True:
        epoch += 1
        yield from feed.epoch(epoch)


def trained(
    model: MultiTask, part: Part, steps: int, *, weights: Sequence[float] = (1.0, 1.0), lr: float = 0.01, **options: Any
) -> State:
    """The parameters after some steps of a stack of one, untraced unless ``options`` say so: tracing takes long."""
    stack = Stack([model], [lr], **{"programs": PLAIN} | options)
    for batch, _ in zip(batches(part), range(steps), strict=False):
        stack.step(batch, torch.tensor([list(weights)]))
    return values(model)


def values(model: MultiTask) -> State:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def distance(first: State, second: State) -> float:
    """The largest difference relative to the largest value, over the tensors both have."""
    common = first.keys() & second.keys()
    assert common
    return max(float((first[n] - second[n]).abs().max() / first[n].abs().max().clamp(min=1e-12)) for n in common)


def equal(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def configs(lr: Sequence[float] = (0.01, 0.01, 0.01), **options: Any) -> list[TrainConfig]:
    return [TrainConfig(batch=135, lr=rate, seed=s, patience=0, **options) for s, rate in enumerate(lr)]


def together(parts: Sequence[Split], config: Sequence[TrainConfig], weights: Any = None, **options: Any) -> list[Any]:
    models = [MultiTask.build(p.train, **{"dim": 4, "tower": (5,)} | options) for p in parts]
    train, test = [p.train for p in parts], [p.test for p in parts if p.test]
    return fit_many(models, train, None, test, weights=weights, config=config)


def test_a_replica_ends_where_it_ends_alone() -> None:
    parts = [cut(seed=0), cut(seed=1), cut(seed=0)]
    config = configs(lr=(0.01, 0.003, 0.01), epochs=34, evaluate_every=34)  # 6 steps an epoch
    weights = [{"watch": 1.0, "rating": 0.2}, {"watch": 0.5, "rating": 0.5}, {"watch": 0.0, "rating": 1.0}]
    stacked = together(parts, config, weights)
    for number, run in enumerate(stacked):
        (alone,) = together(parts[number : number + 1], config[number : number + 1], weights[number])
        assert distance(values(run.model), values(alone.model)) <= 1e-3
        for task, scores in alone.history[-1]["test"].items():
            assert run.history[-1]["test"][task] == pytest.approx(scores, rel=2e-3, abs=5e-4)
        assert run.history[-1]["train"] == pytest.approx(alone.history[-1]["train"], rel=1e-3)


def test_the_same_stack_twice_is_equal_bit_by_bit() -> None:
    parts, config = [cut(seed=0), cut(seed=1)], configs(lr=(0.01, 0.02), epochs=4)
    first, second = (together(parts, config) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert equal(values(a.model), values(b.model)) and a.history == b.history


@pytest.mark.parametrize("share", ["shared", "separate"])
def test_the_traced_step_is_the_plain_step(share: Any) -> None:
    part = cut().train
    found = [
        trained(started(part, share=share), part, 20, programs=partial(Programs, trace=trace))
        for trace in (True, False)
    ]
    assert distance(*found) <= 1e-6


def test_every_replica_has_its_own_learning_rate() -> None:
    part = cut().train
    models = [started(part) for _ in range(4)]
    stack = Stack(models, [0.1, 0.2, 0.2, 0.1], optimizers=Optimizers("sgd"))
    start = values(models[0])
    batch = next(Feed([part] * 4, [0] * 4, 135, "uniform").epoch(1))
    stack.step(batch, torch.ones(4, 2), factor=0.5)
    moved = [{n: p - start[n] for n, p in values(m).items()} for m in models]
    assert distance(moved[0], moved[3]) <= 1e-5 and distance(moved[1], moved[2]) <= 1e-5
    assert distance({n: 2 * m for n, m in moved[0].items()}, moved[1]) <= 1e-4
    alone = started(part)
    trained(alone, part, 1, lr=0.05, optimizers=Optimizers("sgd"))
    assert distance(values(alone), values(models[0])) <= 1e-5


def without_tables(seed: int) -> Split:
    """A split whose vocabularies hold the ids of its own training rows alone."""
    columns = ["user_id", "item_id", "rating", "timestamp"]
    wide = synthetic(users=40, items=200, rows=900, seed=6)
    return split(read_dataset(wide.interactions.select(columns), DATA.schema), valid=0, test=0.4, seed=seed)


def test_tables_of_different_height_are_padded() -> None:
    parts = [without_tables(seed) for seed in (0, 1, 2)]
    heights = [p.train.inputs[1].size for p in parts]
    assert len(set(heights)) > 1
    config = configs(epochs=6, evaluate_every=6, weight_decay=0.1)
    for run, part, own in zip(together(parts, config), parts, config, strict=True):
        (alone,) = together([part], [own])
        found = values(run.model)
        assert [len(found["tables.0.weight"])] == [sum(i.size for i in part.train.inputs)]
        assert distance(found, values(alone.model)) <= 1e-3
        assert run.history[-1]["test"]["rating"] == pytest.approx(alone.history[-1]["test"]["rating"], rel=1e-3)


def touched(model: MultiTask, batch: Batch) -> dict[str, Tensor]:
    """By table, which rows the batch reads."""
    found = {}
    for name, rows in model.lookups(Batch(*(t[0] for t in batch))).items():
        mask = torch.zeros(len(model.get_parameter(name)), dtype=torch.bool)
        found[name] = mask.index_fill(0, rows.flatten(), True)
    return found


def first_batch(part: Part, size: int = 16) -> Batch:
    return next(Feed([part], [0], size, "uniform").epoch(1))


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_sgd_leaves_rows_outside_the_batch_as_they_are(decay: float) -> None:
    part = cut().train
    model = started(part)
    stack, batch = Stack([model], [0.1], optimizers=Optimizers("sgd"), decay=decay, programs=PLAIN), first_batch(part)
    start, rows = values(model), touched(model, batch)
    stack.step(batch, torch.ones(1, 2))
    for name, mask in rows.items():
        assert not mask.all() and torch.equal(model.get_parameter(name)[~mask], start[name][~mask])
    moved = (model.get_parameter("tables.0.weight") != start["tables.0.weight"]).any(dim=1)
    assert torch.equal(moved, rows["tables.0.weight"])


def test_decay_shrinks_the_rows_of_the_batch_and_the_weights_of_layers() -> None:
    part = cut().train
    plain, decayed = started(part), started(part)
    for parameter in decayed.parameters():
        parameter.data.add_(0.1)  # zeros would hide a decay
    for one, other in zip(plain.parameters(), decayed.parameters(), strict=True):
        one.data.copy_(other.data)
    start, batch = values(decayed), first_batch(part)
    rows = touched(decayed, batch)
    for model, decay in ((plain, 0.0), (decayed, 0.5)):
        Stack([model], [0.1], decay=decay, programs=PLAIN).step(batch, torch.ones(1, 2), factor=0.5)
    without, found = values(plain), values(decayed)
    for name, value in found.items():
        shrunk = torch.zeros_like(value, dtype=torch.bool)
        if name in rows:
            shrunk[rows[name]] = True
        elif value.dim() > 1:
            shrunk[:] = True
        # decoupled: Adam's own step is the same, and 0.1 * 0.5 * 0.5 of the value goes
        expected = torch.where(shrunk, without[name] - 0.025 * start[name], without[name])
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_clip_bounds_each_replicas_update() -> None:
    part = cut().train
    norms = {}
    for clip in (0.0, 1e-3, 1e6):
        models = [started(part, seed=s) for s in (0, 1)]
        stack = Stack(models, [1.0, 1.0], optimizers=Optimizers("sgd"), clip=clip, programs=PLAIN)
        start = [values(m) for m in models]
        stack.step(next(Feed([part] * 2, [0, 1], 64, "uniform").epoch(1)), torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
        moves = [
            torch.cat([(p - s[n]).flatten() for n, p in values(m).items()]) for m, s in zip(models, start, strict=True)
        ]
        norms[clip] = [float(m.norm()) for m in moves]
    assert norms[1e-3] == pytest.approx([1e-3, 1e-3], rel=1e-2)
    assert norms[1e6] == pytest.approx(norms[0.0], rel=1e-5)
    assert min(norms[0.0]) > 0.1


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_a_dot_head_that_predicts_a_value_trains_like_any_other(optimizer: str, clip: float) -> None:
    part = cut(WATCH, replace(RATING, head="dot")).train
    model = started(part)
    stack, seen = Stack([model], [0.02], optimizers=Optimizers(optimizer), clip=clip, programs=PLAIN), []
    for batch, _ in zip(batches(part), range(60), strict=False):
        seen.append(stack.step(batch, torch.ones(1, 2))[0, 1].item())
    assert sum(seen[-7:]) < sum(seen[:7])


@pytest.mark.parametrize("share", ["shared", "separate"])
@pytest.mark.parametrize("tasks", [(WATCH, RATING), (RATING, WATCH)])
def test_a_task_of_weight_0_leaves_the_other_as_if_alone(tasks: tuple[Task, Task], share: Any) -> None:
    both, one = cut(*tasks).train, cut(tasks[0]).train
    joint = trained(started(both, share=share), both, 25, weights=(1.0, 0.0))
    alone = trained(started(one, share=share), one, 25, weights=(1.0,))
    assert alone.keys() < joint.keys()
    assert distance(alone, joint) <= 1e-6
    start = values(started(both, share=share))
    untrained = [n for n in joint if n.startswith(("heads.1", "tables.1"))]
    assert untrained and all(torch.equal(joint[n], start[n]) for n in untrained)


def test_adam_ignores_the_weights_of_tasks_that_share_nothing() -> None:
    part = cut().train
    pairs = [(0.5, 0.5), (0.99, 0.01)]
    separate = [trained(started(part, share="separate"), part, 50, weights=w, lr=1e-3) for w in pairs]
    apart = max(float((separate[0][n] - separate[1][n]).abs().max()) for n in separate[0])
    assert apart <= 5e-4  # not 0: epsilon weighs more beside a smaller gradient
    shared = [trained(started(part), part, 50, weights=w, lr=1e-3) for w in pairs]
    assert max(float((shared[0][n] - shared[1][n]).abs().max()) for n in shared[0]) > 1e-2


def test_a_factor_on_all_weights_is_a_factor_on_the_learning_rate_of_sgd() -> None:
    part = cut().train
    plain = trained(started(part), part, 30, weights=(0.5, 1.5), lr=0.05, optimizers=Optimizers("sgd"))
    scaled = trained(started(part), part, 30, weights=(4.0, 12.0), lr=0.05 / 8, optimizers=Optimizers("sgd"))
    assert distance(plain, scaled) <= 1e-4


def with_label(batch: Batch, value: float) -> Batch:
    labels = batch.labels.clone()
    labels[0, 0, 1] = value
    return batch._replace(labels=labels)


def broken(kind: str, model: MultiTask, batch: Batch) -> tuple[Batch, str]:
    """A batch (or, through ``model``, a parameter) with which the step must fail, and what it must say."""
    if kind == "label":
        return with_label(batch, 1e38), "loss of task 'rating' is inf in run 1"
    model.get_parameter("heads.0.bias.weight").data[1:] = float("inf")
    return batch, "loss of task 'watch' is nan in run 1"


@pytest.mark.parametrize("kind", ["label", "parameter"])
def test_a_loss_that_is_not_finite_stops_before_anything_moves(kind: str) -> None:
    part = cut().train
    models = [started(part, seed=s) for s in (0, 1)]
    stack = Stack(models, [0.01, 0.01], decay=0.1, clip=1.0)
    feed = Feed([part] * 2, [0, 1], 64, "uniform")
    first, second = list(feed.epoch(1))[:2]
    stack.step(first, torch.ones(2, 2))
    own, message = broken(kind, models[1], Batch(*(t[1:] for t in second)))
    bad = Batch(*(torch.cat([a[:1], b]) for a, b in zip(second, own, strict=True)))
    before = {n: t.clone() for n, t in stack.state().items()}
    with pytest.raises(TrainingError) as caught:
        stack.step(bad, torch.ones(2, 2))
    assert message in str(caught.value)
    assert equal(before, stack.state())


def test_a_gradient_that_is_not_finite_stops_before_anything_moves() -> None:
    part = cut().train
    model, usual = started(part), started(part)
    stack, oracle = Stack([model], [0.01], programs=PLAIN), Stack([usual], [0.01], programs=PLAIN)
    first, second, third = list(Feed([part], [0], 64, "uniform").epoch(1))[:3]
    for one in (stack, oracle):
        one.step(first, torch.ones(1, 2))
    before = {n: t.clone() for n, t in stack.state().items()}
    with pytest.raises(TrainingError, match="gradient of task 'rating' is not finite"):
        stack.step(second, torch.tensor([[1.0, 3e38]]))  # a finite loss, times a weight too large for a gradient
    assert equal(before, stack.state())
    for one in (stack, oracle):  # and a later step is what it would have been
        one.step(third, torch.ones(1, 2))
    assert equal(values(model), values(usual))


def test_a_missing_label_counts_in_neither_loss_nor_gradient() -> None:
    part = cut(RATING, WATCH).train
    whole = first_batch(part, size=64)
    missing = torch.arange(64) % 2 == 0
    labels = whole.labels.clone()
    labels[0, missing, 0] = float("nan")
    half = Batch(*(t[:, ~missing] if t.shape[1] else t for t in whole))
    found = []
    for batch in (whole._replace(labels=labels), half):
        model = started(part)
        stack = Stack([model], [0.1], optimizers=Optimizers("sgd"), programs=PLAIN)
        found.append((stack.step(batch, torch.tensor([[1.0, 0.0]]))[0, 0], values(model)))
    assert found[0][0].item() == pytest.approx(found[1][0].item(), rel=1e-6)
    assert distance(found[0][1], found[1][1]) <= 1e-6
    model = started(part)
    logits = model(Batch(*(t[0] for t in half)))[0]
    assert found[0][0].item() == pytest.approx((logits - half.labels[0, :, 0]).square().mean().item(), rel=1e-6)


def test_a_task_without_any_label_in_the_batch_does_nothing() -> None:
    part = cut().train
    batch = first_batch(part)
    labels = batch.labels.clone()
    labels[..., 1] = float("nan")
    model = started(part)
    start = values(model)
    losses = Stack([model], [0.1], optimizers=Optimizers("sgd"), programs=PLAIN).step(
        batch._replace(labels=labels), torch.ones(1, 2)
    )
    assert losses[0, 1] == 0 < losses[0, 0]
    assert all(torch.equal(p, start[n]) for n, p in values(model).items() if n.startswith("heads.1"))


@pytest.mark.parametrize("share", ["shared", "separate"])
@pytest.mark.parametrize(
    "tasks", [(WATCH, RATING), (replace(WATCH, head="tower", negatives=3), replace(RATING, loss="huber"))]
)
def test_a_step_is_what_autograd_of_the_weighted_losses_gives(tasks: tuple[Task, Task], share: Any) -> None:
    part = cut(*tasks).train
    model, oracle = started(part, share=share), started(part, share=share)
    batch = first_batch(part, size=64)
    losses = Stack([model], [0.1], optimizers=Optimizers("sgd")).step(batch, torch.tensor([[0.3, 0.7]]))
    one = Batch(*(t[0] for t in batch))
    watch, rating = oracle(one)
    ranking = torch.nn.functional.softplus(watch[:, 1:] - watch[:, :1]).mean()
    regression = torch.nn.functional.mse_loss if tasks[1].loss == "mse" else torch.nn.functional.huber_loss
    expected = torch.stack([ranking, regression(rating, one.labels[:, 1])])
    torch.testing.assert_close(losses[0], expected)
    (0.3 * expected[0] + 0.7 * expected[1]).backward()
    for name, parameter in oracle.named_parameters():
        assert parameter.grad is not None
        found = model.get_parameter(name)
        torch.testing.assert_close(found, parameter.detach() - 0.1 * parameter.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("trace", [False, True])
def test_stacked_adam_is_torch_adam_on_each_model(trace: bool) -> None:
    part = cut().train
    models, oracles = ([started(part, seed=s) for s in (0, 1)] for _ in range(2))
    stack = Stack(models, [0.01, 0.03], programs=partial(Programs, trace=trace))
    optimizers = [torch.optim.Adam(m.parameters(), lr=rate) for m, rate in zip(oracles, (0.01, 0.03), strict=True)]
    weights = torch.tensor([[1.0, 0.5], [0.2, 1.0]])
    for batch in list(Feed([part] * 2, [0, 1], 135, "uniform").epoch(1))[:4]:
        stack.step(batch, weights)
        for number, (oracle, optimizer) in enumerate(zip(oracles, optimizers, strict=True)):
            one = Batch(*(t[number] for t in batch))
            watch, rating = oracle(one)
            ranking = torch.nn.functional.softplus(watch[:, 1] - watch[:, 0]).mean()
            joint = weights[number, 0] * ranking + weights[number, 1] * (rating - one.labels[:, 1]).square().mean()
            optimizer.zero_grad()
            joint.backward()
            optimizer.step()
    for model, oracle in zip(models, oracles, strict=True):
        # where a gradient is 0 but for rounding (the users' biases), Adam makes a step of the rounding
        found = {n: v for n, v in values(model).items() if ".bias.weight" not in n}
        assert distance(values(oracle), found) <= 1e-4


def test_a_model_can_be_evaluated_between_steps() -> None:
    part, test = cut().train, cut().test
    assert test is not None
    model, undisturbed = started(part), started(part)
    stack = Stack([model], [0.01], programs=PLAIN)
    for batch, _ in zip(batches(part), range(5), strict=False):
        stack.step(batch, torch.ones(1, 2))
        evaluate(model, test)
    assert equal(values(model), trained(undisturbed, part, 5))


def test_released_models_stay_as_they_are_when_the_stack_goes_on() -> None:
    part = cut().train
    models, batch = [started(part), started(part)], first_batch(part)
    stack = Stack(models, [0.01, 0.01], programs=PLAIN)
    stack.release()
    before = [values(m) for m in models]
    stack.step(Batch(*(torch.cat([t, t]) for t in batch)), torch.ones(2, 2))
    assert all(equal(values(m), b) for m, b in zip(models, before, strict=True))


def test_state_and_load_go_on_as_if_nothing_had_happened() -> None:
    part = cut().train
    model, again = started(part), started(part, seed=9)
    stack, other = Stack([model], [0.01], programs=PLAIN), Stack([again], [0.01], programs=PLAIN)
    stream = batches(part)
    for _ in range(3):
        stack.step(next(stream), torch.ones(1, 2))
    other.load({n: t.clone() for n, t in stack.state().items()})
    last = next(stream)
    for one in (stack, other):
        one.step(last, torch.ones(1, 2))
    assert equal(stack.state(), other.state())


def test_models_of_another_width_cannot_be_stacked() -> None:
    part = cut().train
    with pytest.raises(ConfigError, match="cannot be stacked"):
        Stack([started(part), started(part, dim=8)], [0.01, 0.01])


@pytest.mark.parametrize(("kind", "loss"), [("regression", "mse"), ("binary", "bce")])
def test_a_model_that_can_only_be_constant_finds_the_mean(kind: Any, loss: str) -> None:
    """A sigmoid applied twice, or a scaled label, would miss the base rate."""
    data: Dataset = DATA
    task = RATING if kind == "regression" else Task("like", "binary", positive="rating >= 4")
    data = replace(data, schema=replace(data.schema, tasks=(task,)))
    part = split(data, valid=0, test=0.1).train
    model = MultiTask(part, Design(dim=4, tower=(5,), start_at_mean=False))
    for name in ("tables.0.weight", "heads.0.network.0.weight", "heads.0.network.2.weight"):
        model.get_parameter(name).data.zero_()
    stack = Stack([model], [0.05], programs=PLAIN)
    whole = first_batch(part, size=len(part))
    for _ in range(150):
        stack.step(whole, torch.ones(1, 1))
    found = predict(model, part)[:, 0]
    assert found.std() < 1e-3
    assert found.mean().item() == pytest.approx(part.observed(0).mean, abs=1e-3)


def test_sums_of_micro_batches_are_theirs_and_keep_their_memory() -> None:
    rows = "t", torch.tensor([4, 1, 4]), torch.ones(3, 2)
    sums, part = Sums(), Found(torch.ones(1, 2), {"w": torch.ones(1, 3)}, [rows])
    places = set()
    for _ in range(2):
        losses, dense, rows = sums.of([part] * 3)
        assert losses.tolist() == [[3.0, 3.0]] and dense["w"].tolist() == [[3.0] * 3]
        assert [(n, i.tolist(), v.tolist()) for n, i, v in rows] == [("t", [4, 1], [[2.0, 2.0], [1.0, 1.0]])] * 3
        places.add(dense["w"].data_ptr())
    assert len(places) == 1 and part.dense["w"].tolist() == [[1.0] * 3]
