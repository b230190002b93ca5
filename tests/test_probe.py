"""Probes against gradients and losses computed the plain way, model by model and parameter by parameter."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from polytask import rng
from polytask.affinity import Affinity, Reading
from polytask.balance import Balance
from polytask.balancing import Balancing
from polytask.data.batch import Batch, Feed, Part
from polytask.data.split import split
from polytask.data.synthetic import synthetic
from polytask.data.table import read_dataset
from polytask.gradients import Programs
from polytask.nn.embedding import Tables
from polytask.nn.model import EVERY, MultiTask
from polytask.optimizers import Optimizers
from polytask.probe import SHARE, Probe, Probing, early, interval, probe_rows, shortest
from polytask.replicas import Stack
from polytask.run import TrainConfig
from polytask.schema import Task

ALWAYS = Probing(every=1)
DATA = synthetic(users=40, items=60, rows=900, seed=6)
TOWERS = (
    Task("rating", "regression", label="rating"),
    Task("liked", "binary", label="liked"),
    Task("seldom", "regression", label="seldom"),
)
BOTH = (Task("watch", "ranking", head="dot"), Task("rating", "regression", label="rating"))


@cache
def part(tasks: tuple[Task, ...], rows: int = 900, seed: int = 0) -> Part:
    """A training part; ``liked`` follows the rating, ``seldom`` opposes it and is there in a third of the rows."""
    random, rating = np.random.default_rng(3), DATA.interactions["rating"].to_numpy()
    seldom = np.where(random.random(len(rating)) < 0.3, 2.0 * (3 - rating) + random.normal(size=len(rating)), np.nan)
    liked = (rating + random.normal(size=len(rating)) > 3).astype(float)
    frame = DATA.interactions.with_columns(liked=pl.Series(liked), seldom=pl.Series(seldom).fill_nan(None))
    data = read_dataset(frame.head(rows), replace(DATA.schema, tasks=tasks))
    return split(data, valid=0, test=0.1, seed=seed).train


class Case:
    """A stack of some models after some steps, and its probe."""

    def __init__(
        self,
        parts: Sequence[Part],
        rates: Sequence[float] = (0.01,),
        own: Sequence[Sequence[float]] = (),
        *,
        steps: int = 5,
        probing: Probing = ALWAYS,
        stack: dict[str, Any] | None = None,
        **model: Any,
    ) -> None:
        self.parts, seeds = parts, list(range(len(parts)))
        self.models = [MultiTask.build(p, **{"dim": 8, "tower": (16,)} | model) for p in parts]
        for seed, built in zip(seeds, self.models, strict=True):
            built.initialize(lambda name, seed=seed: rng.generator(seed, f"init/{name}"))  # type: ignore[misc]
            built.train()
            built.get_parameter("tables.0.weight").data.mul_(4)  # so that what is above them learns at once
        count = len(parts[0].schema.tasks)
        self.own = torch.tensor([*own] or [[1.0] * count] * len(parts))
        self.stack = Stack(self.models, rates, programs=partial(Programs, trace=False), **(stack or {}))
        self.configs = [TrainConfig(batch=135, seed=s) for s in seeds]
        self.probe = Probe(self.stack, parts, self.configs, self.own, probing)
        self.balancing = Balancing(Balance(), self.own, seeds)
        self.train(steps)

    def train(self, steps: int, probe: bool = False) -> None:
        seeds, every = [c.seed for c in self.configs], self.models[0].every_item
        feed = Feed(self.parts, seeds, 135, "uniform", catalogue=every)
        for step, batch in zip(range(steps), feed.epoch(1), strict=False):
            self.stack.step(batch, self.balancing)
            if probe:
                self.probe.measure(step, self.own)

    def read(self, replica: int = 0, factor: float = 1.0) -> Reading:
        found = self.probe.measure(1, self.own, factor)[replica]
        assert found is not None
        return Reading.from_dict(found)

    def halves(self, replica: int = 0) -> list[Batch]:
        """The probe's batch of one replica, in two."""
        return [Batch(*(t[replica] for t in half)) for half in self.probe._halves]


def losses(model: MultiTask, batch: Batch, parameters: dict[str, Tensor] | None = None) -> Tensor:
    """Losses [T], as a function of the whole tables."""
    named = parameters or dict(model.named_parameters())
    rows = {n: named[n.removesuffix(EVERY)][index] for n, index in model.lookups(batch).items()}
    found: Any = torch.func.functional_call(
        _Objective(model), {f"model.{n}": p for n, p in named.items()}, (rows, batch)
    )
    return found


class _Objective(torch.nn.Module):
    def __init__(self, model: MultiTask) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: dict[str, Tensor], batch: Batch) -> Tensor:
        return self.model.objective(rows, batch)[0]


def gradients(model: MultiTask, batch: Batch) -> list[dict[str, Tensor]]:
    """The gradient of each task by the name of the parameter."""
    named = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    found = losses(model, batch, named)
    each = [torch.autograd.grad(v, list(named.values()), retain_graph=True, materialize_grads=True) for v in found]
    return [dict(zip(named, g, strict=True)) for g in each]


def labeled(halves: Sequence[Batch]) -> Tensor:
    counts = torch.stack([(~h.labels.isnan()).sum(dim=0) for h in halves]).double()
    return counts / counts.sum(dim=0)


def flat(model: MultiTask, gradient: dict[str, Tensor], group: str) -> Tensor:
    """The part of a gradient in a group: a module, the expert of one, or the rows of a table's field."""
    module, _, part = group.rstrip("]").partition("[")
    own = [g for n, g in gradient.items() if n.rpartition(".")[0] == module]
    if part and not part.isdigit():
        table = model.get_submodule(module)
        assert isinstance(table, Tables)
        place = table.fields.index(part)
        start = int(table.ends[place - 1]) if place else 0
        own = [g[start : int(table.ends[place])] for g in own]
    elif part:
        own = [g[int(part)] for g in own]
    return torch.cat([g.flatten() for g in own]).double()


def fields(name: str) -> list[str]:
    """The groups of a table of the users' and the items' rows."""
    return [f"{name}[user_id]", f"{name}[item_id]"]


def expected(case: Case, group: Sequence[str], replica: int = 0) -> Tensor:
    """The products [2T, 2T] on some groups taken together."""
    halves = case.halves(replica)
    shares = labeled(halves)
    rows = []
    for half, share in zip(halves, shares, strict=True):
        each = gradients(case.models[replica], half)
        rows += [
            torch.cat([flat(case.models[replica], g, name) for name in group]) * s
            for g, s in zip(each, share, strict=True)
        ]
    return torch.stack(rows) @ torch.stack(rows).T


def same(found: Affinity, products: Tensor, weights: Tensor) -> None:
    wanted = Affinity.of(products, weights, torch.ones(len(weights)))
    assert found.norms == pytest.approx(wanted.norms, rel=2e-4)
    assert found.cosine == pytest.approx(wanted.cosine, abs=2e-4, nan_ok=True)
    for one, other in zip(found.cross, wanted.cross, strict=True):
        assert one == pytest.approx(other, abs=2e-4, nan_ok=True)


BOTTOM = [*fields("tables.0"), "trunks.0.body.network.0", "trunks.0.body.network.2"]
SMOOTH = (BOTH[0], replace(BOTH[1], head="dot"))  # without a kink in the loss
LEVEL = "trunks.0.body.levels.{}.experts.experts.layers.0[{}]"
PLE = [LEVEL.format(0, e) for e in range(8)] + [LEVEL.format(1, e) for e in (6, 7)]


@pytest.mark.parametrize(
    ("tasks", "model", "groups"),
    [
        (TOWERS, {"body": "shared_bottom"}, BOTTOM),
        (BOTH, {"body": "factorize"}, fields("tables.0")),
        # in the last level a task's own experts are its alone
        (TOWERS, {"body": "ple"}, [*fields("tables.0"), "trunks.0.body.levels.0.shared_gate", *PLE]),
    ],
)
def test_products_are_those_of_plain_gradients(
    tasks: tuple[Task, ...], model: dict[str, Any], groups: list[str]
) -> None:
    case = Case([part(tasks)], own=[[1.0, 0.5, 2.0][: len(tasks)]], **model)
    found = case.read()
    assert sorted(found.groups) == sorted(groups)
    for name in groups:
        same(found.groups[name], expected(case, [name]), case.own[0])
    same(found.total, expected(case, groups), case.own[0])
    whole = [
        (losses(case.models[0], h) * s).detach() for h, s in zip(case.halves(), labeled(case.halves()), strict=True)
    ]
    assert found.losses == pytest.approx(sum(whole).tolist(), rel=1e-5)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("tasks", "model"),
    [
        ((replace(BOTH[0], loss="full_softmax"), BOTH[1]), {"body": "factorize"}),
        ((replace(BOTH[0], loss="in_batch_softmax"), BOTH[1]), {"body": "factorize"}),
        (TOWERS, {"body": "stem", "share": "both"}),
        (TOWERS, {"body": "home"}),  # whose gates and normed experts are shared too
    ],
)
def test_products_of_losses_over_all_items_and_of_tables_beside_own_ones(tasks: tuple[Task, ...], model: Any) -> None:
    case = Case([part(tasks)], **model)
    found = case.read()
    assert found.groups and not any(name.startswith("heads") for name in found.groups)
    for name, group in found.groups.items():
        same(group, expected(case, [name]), case.own[0])
    if "share" in model:
        assert [name for name in found.groups if name.startswith("tables")] == fields("tables.3")


def moved(case: Case, steps: dict[str, Tensor], batch: Batch, replica: int = 0) -> Tensor:
    """Losses [T] after ``steps``."""
    named = dict(case.models[replica].named_parameters())
    return losses(
        case.models[replica], batch, {n: p - steps[n] if n in steps else p for n, p in named.items()}
    ).detach()


def shared(case: Case, gradient: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: g for n, g in gradient.items() if n.startswith(("tables", "trunks"))}


@pytest.mark.parametrize("same_batch", [False, True])
def test_lookahead_with_sgd_is_the_loss_after_a_plain_step_on_what_is_shared(same_batch: bool) -> None:
    sgd = {"optimizers": Optimizers("sgd")}
    own, rate = [1.0, 0.5, 2.0], 0.05
    case = Case(
        [part(TOWERS)], [rate], [own], body="shared_bottom", stack=sgd, probing=Probing(1, same_batch=same_batch)
    )
    found = case.read(factor=0.4)
    first, second = case.halves()
    scored = first if same_batch else second
    before = losses(case.models[0], scored).detach()
    for task, gradient in enumerate(gradients(case.models[0], first)):
        steps = {n: 0.4 * rate * own[task] * g for n, g in shared(case, gradient).items()}
        assert found.lookahead[task] == pytest.approx((1 - moved(case, steps, scored) / before).tolist(), abs=2e-6)


def test_lookahead_is_the_product_of_gradients_to_first_order() -> None:
    rate, sgd, probing = 0.05, {"optimizers": Optimizers("sgd")}, Probing(1, same_batch=True)
    case = Case([part(TOWERS)], [rate], body="shared_bottom", steps=0, stack=sgd, probing=probing)
    found, half = case.read().lookahead, case.halves()[0]
    each = [flat_of(shared(case, g)) for g in gradients(case.models[0], half)]
    before = losses(case.models[0], half).detach()
    for row, own in zip(found, each, strict=True):
        first_order = [rate * float(own @ g) / float(v) for g, v in zip(each, before, strict=True)]
        assert row == pytest.approx(first_order, rel=0.1, abs=3e-7)
    assert max(map(max, found)) > 5e-5


def flat_of(gradient: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradient.values()])


def scales(case: Case, factor: float = 1.0) -> dict[str, Tensor]:
    """What Adam's next step multiplies a gradient by, were the tasks' gradients unrelated; for one replica."""
    halves = case.halves()
    shares, found = labeled(halves), {}
    each = [gradients(case.models[0], h) for h in halves]
    for name, view in zip(case.stack.parameters, case.stack.updates.optimizer.param_groups[0]["params"], strict=True):
        state = case.stack.updates.optimizer.state[view]
        whole = [sum(e[t][name] * s[t] for e, s in zip(each, shares, strict=True)) for t in range(shares.shape[1])]
        squares = sum((w * g) ** 2 for w, g in zip(case.own[0].tolist(), whole, strict=True))
        second = (0.999 * state["exp_avg_sq"][0] + 0.001 * squares) / (1 - 0.999 ** (float(state["step"]) + 1))
        found[name] = factor * float(case.stack.rates[0]) / (second.sqrt() + 1e-8)
    return found


def test_updates_and_lookahead_with_adam_are_those_of_its_next_step() -> None:
    own = [1.0, 0.5, 2.0]
    case = Case([part(TOWERS)], [0.02], [own], body="shared_bottom")
    found, scale, halves = case.read(factor=0.5), scales(case, 0.5), case.halves()
    shares = labeled(halves)
    each = [gradients(case.models[0], h) for h in halves]
    for task, weight in enumerate(own):
        whole = {n: sum(e[task][n] * s[task] for e, s in zip(each, shares, strict=True)) for n in scale}
        step = {n: scale[n] * weight * g for n, g in whole.items()}
        lengths = [flat(case.models[0], step, name).norm() for name in BOTTOM]
        assert [found.groups[name].updates[task] for name in BOTTOM] == pytest.approx([*map(float, lengths)], rel=1e-3)
        steps = {n: scale[n] * weight * g for n, g in shared(case, each[0][task]).items()}
        after = moved(case, steps, halves[1]) / losses(case.models[0], halves[1]).detach()
        assert found.lookahead[task] == pytest.approx((1 - after).tolist(), rel=1e-3, abs=2e-6)


def test_rows_that_were_never_trained_get_no_endless_step() -> None:
    case = Case([part(TOWERS)], [0.02], body="shared_bottom", steps=1)  # of 6 batches
    groups = case.read().groups
    bound = 0.02 * 32 * (case.stack.parameters["tables.0.weight"].numel()) ** 0.5
    assert all(max(groups[name].updates) < bound for name in fields("tables.0"))


def test_slope_and_curvature_are_those_of_the_weighted_loss_along_the_step() -> None:
    own, rate, sgd = torch.tensor([1.0, 0.5]), 1.0, {"optimizers": Optimizers("sgd")}
    case = Case([part(SMOOTH)], [rate], [own.tolist()], body="factorize", steps=0, stack=sgd)
    found, half = case.read(), case.halves()[0]
    each = [shared(case, g) for g in gradients(case.models[0], half)]
    joint = {n: sum(w * g[n] for w, g in zip(own, each, strict=True)) for n in each[0]}
    slope = -rate * float(flat_of(joint).square().sum())
    assert found.slope == pytest.approx(slope, rel=1e-4)
    model = copy.deepcopy(case.models[0]).double()
    double = Batch(*(t.double() if t.is_floating_point() else t for t in half))
    named = {n: p.detach() for n, p in model.named_parameters()}

    def along(far: Tensor) -> Tensor:
        steps = {n: p - far * rate * joint[n].double() if n in joint else p for n, p in named.items()}
        return (losses(model, double, steps) * own).sum()

    second = torch.func.grad(torch.func.grad(along))(torch.zeros((), dtype=torch.float64))
    assert abs(float(second)) > 1e-4 and found.curvature == pytest.approx(float(second), rel=0.1)


def test_a_bound_on_the_gradient_bounds_the_step() -> None:
    free, bound = (
        Case(
            [part(TOWERS)], [0.1], body="shared_bottom", steps=0, stack={"optimizers": Optimizers("sgd"), "clip": clip}
        ).read()
        for clip in (0.0, 0.05)
    )
    ratio = [b / f for b, f in zip(bound.total.updates, free.total.updates, strict=True)]
    assert ratio == pytest.approx([ratio[0]] * 3, rel=1e-4) and 0 < ratio[0] < 0.5
    assert bound.total.norms == free.total.norms


def own_state(case: Case, replica: int) -> dict[str, Tensor]:
    """What one replica of a stack of different learning rates would be a stack of."""
    found, count = {}, len(case.stack.parameters)
    for name, value in case.stack.state().items():
        kind, _, rest = name.partition("/")
        if kind == "parameter":
            found[name] = value[replica : replica + 1]
        elif int(rest.partition("/")[0]) // count == replica:
            found[f"optimizer/{int(rest.partition('/')[0]) % count}/{rest.partition('/')[2]}"] = value
    return found


def test_a_replica_reads_what_it_reads_alone() -> None:
    parts, rates = [part(TOWERS), part(TOWERS, seed=1)], [0.01, 0.03]
    stacked = Case(parts, rates, [[1.0, 1.0, 1.0], [1.0, 0.5, 0.2]], body="mmoe")
    for number, rate in enumerate(rates):
        alone = Case([parts[number]], [rate], [stacked.own[number].tolist()], body="mmoe", steps=1)
        alone.stack.load(own_state(stacked, number))
        alone.configs[0] = stacked.configs[number]
        first, second = stacked.read(number), alone.read()
        assert first.losses == pytest.approx(second.losses, rel=1e-4)
        assert first.total.updates == pytest.approx(second.total.updates, rel=1e-3)
        for name, group in first.groups.items():
            assert group.norms == pytest.approx(second.groups[name].norms, rel=1e-3)
            assert group.cosine == pytest.approx(second.groups[name].cosine, abs=1e-3)
        for one, other in zip(first.lookahead, second.lookahead, strict=True):
            assert one == pytest.approx(other, rel=1e-2, abs=1e-5)


def test_a_probe_changes_nothing() -> None:
    plain, probed = (Case([part(BOTH), part(BOTH, seed=1)], [0.01, 0.02], steps=0) for _ in range(2))
    plain.train(6)
    probed.train(6, probe=True)
    first, second = plain.stack.state(), probed.stack.state()
    assert first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)
    assert all(bool((g == 0).all()) for g in probed.stack.updates.gradients.values())


def test_the_same_state_reads_the_same() -> None:
    case, again = Case([part(TOWERS)], body="mmoe"), Case([part(TOWERS)], body="mmoe")
    assert case.probe.measure(1, case.own) == case.probe.measure(1, case.own) == again.probe.measure(1, again.own)


def test_dropout_is_off_and_nothing_is_hidden() -> None:
    case = Case([part(TOWERS)], body="shared_bottom", steps=1)
    batch = case.probe._halves[0]
    assert batch.noise.shape[-1] == 0 and case.models[0].training
    assert (batch.ids > 0).all()


def test_replicas_of_one_task_are_not_probed_and_of_two_tasks_read_those_two() -> None:
    own = [[1.0, 1.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 2.0]]
    case = Case([part(TOWERS)] * 3, [0.01] * 3, own, body="shared_bottom")
    three, one, two = case.probe.measure(1, case.own)
    assert one is None and three is not None and two is not None
    assert two["tasks"] == ["rating", "seldom"] and len(two["total"]["cosine"]) == 1
    assert three["tasks"] == ["rating", "liked", "seldom"] and len(three["total"]["cosine"]) == 3


def test_what_shares_nothing_is_never_due() -> None:
    assert not Case([part(TOWERS)], body="shared_bottom", share="separate", steps=0).probe.due(1)
    assert not Case([part(TOWERS)], [0.01], [[1.0, 0.0, 0.0]], body="shared_bottom", steps=0).probe.due(1)
    assert not Case([part(TOWERS)], body="shared_bottom", steps=0, probing=Probing(0)).probe.due(1)


def test_due_counts_the_steps_of_the_training() -> None:
    case = Case([part(TOWERS)], body="shared_bottom", steps=0, probing=Probing(3))
    assert [step for step in range(10) if case.probe.due(step)] == [3, 6, 9]


def test_size_and_interval_by_hand() -> None:
    # two tasks: 1 + 4 + 1.5 passes, of which a step has 3, at 1.6; so 3.467 rows of a step for each row
    assert probe_rows(2, 90_250) == 4164  # 0.16 of an epoch: 4164 * 3.467 = 14435, and 90250 * 0.16 = 14440
    assert interval(2, 4164, 1024, 89) == 301  # (4000 + 14435) / (512 + 1024) / 0.04 = 300.05
    assert interval(2, 16384, 65536, 60) == 30  # two an epoch are enough
    assert probe_rows(2, 3_000_000) == 16384 and probe_rows(4, 5000) == 1024 and probe_rows(4, 811) == 810


@pytest.mark.parametrize("tasks", [2, 4, 12])
@pytest.mark.parametrize("batch", [32, 1024, 16384])
@pytest.mark.parametrize("available", [500, 90_000, 10_000_000])
def test_probes_never_take_more_than_their_share_of_the_passes(tasks: int, batch: int, available: int) -> None:
    rows = probe_rows(tasks, available)
    every = interval(tasks, rows, batch, -(-available // batch))
    passes = (1 + 2 * tasks + (tasks + 1) / 2) / 3
    assert passes * rows <= SHARE * every * (batch + 512)


def test_size_and_interval_can_be_chosen() -> None:
    probe = Case([part(TOWERS)], body="shared_bottom", steps=0, probing=Probing(7, 101)).probe
    assert probe.every == 7 and probe.rows == 100 and probe._halves[0].ids.shape[1] == 50
    assert Case([part(TOWERS)], body="shared_bottom", steps=0, probing=Probing()).probe.every > 100


def test_the_first_two_probes_come_early_where_the_training_is_long_enough() -> None:
    assert early(80, 79) == () and early(80, 80) == (10,) and early(80, 159) == (10,) and early(80, 2000) == (10, 40)
    assert shortest(TrainConfig(epochs=50, patience=8), 10) == 80
    assert shortest(TrainConfig(epochs=50, patience=8, evaluate_every=3), 10) == 240
    assert shortest(TrainConfig(epochs=5, patience=8), 10) == shortest(TrainConfig(epochs=5, patience=0), 10) == 50
    probe = Case([part(TOWERS)], body="shared_bottom", steps=0, probing=Probing()).probe
    probe.every, probe.early = 80, early(80, 200)
    assert [step for step in range(401) if probe.due(step)] == [10, 40, 240, 320, 400]


def test_early_probes_are_no_more_than_the_training_affords() -> None:
    probe = Case([part(TOWERS)], body="shared_bottom", steps=0, probing=Probing()).probe
    for steps in range(1, 60):
        probe.every, probe.early = 8, early(8, steps)
        assert sum(map(probe.due, range(1, steps + 1))) <= steps // 8
