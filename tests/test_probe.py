"""Probes against gradients and losses computed the plain way, model by model and parameter by parameter."""

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
from polytask.nn.model import MultiTask
from polytask.probe import SHARE, Probe, Probing, interval
from polytask.replicas import Stack
from polytask.run import TrainConfig
from polytask.schema import Task

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
    seldom = np.where(random.random(len(rating)) < 0.3, 10.0 * (3 - rating) + random.normal(size=len(rating)), np.nan)
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
        probing: Probing = Probing(every=1),
        stack: dict[str, Any] | None = None,
        **model: Any,
    ) -> None:
        self.parts, seeds = parts, list(range(len(parts)))
        self.models = [MultiTask.build(p, **{"dim": 4, "tower": (5,)} | model) for p in parts]
        for seed, built in zip(seeds, self.models, strict=True):
            built.initialize(lambda name, seed=seed: rng.generator(seed, f"init/{name}"))  # type: ignore[misc]
            built.train()
        count = len(parts[0].schema.tasks)
        self.own = torch.tensor([*own] or [[1.0] * count] * len(parts))
        self.stack = Stack(self.models, rates, programs=partial(Programs, trace=False), **(stack or {}))
        self.configs = [TrainConfig(batch=135, seed=s) for s in seeds]
        self.probe = Probe(self.stack, parts, self.configs, self.own, probing)
        self.balancing = Balancing(Balance(), self.own, seeds)
        self.train(steps)

    def train(self, steps: int, probe: bool = False) -> None:
        feed = Feed(self.parts, [c.seed for c in self.configs], 135, "uniform")
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
    rows = {n: named[n][index] for n, index in model.lookups(batch).items()}
    found: Any = torch.func.functional_call(_Objective(model), {f"model.{n}": p for n, p in named.items()}, (rows, batch))
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


def flat(gradient: dict[str, Tensor], group: str) -> Tensor:
    """The part of a gradient in a group: a module, or the expert of one."""
    module, _, expert = group.rstrip("]").partition("[")
    own = [g for n, g in gradient.items() if n.rpartition(".")[0] == module]
    return torch.cat([(g[int(expert)] if expert else g).flatten() for g in own]).double()


def expected(case: Case, group: Sequence[str], replica: int = 0) -> Tensor:
    """The products [2T, 2T] on some groups taken together."""
    halves = case.halves(replica)
    shares = labeled(halves)
    rows = []
    for half, share in zip(halves, shares, strict=True):
        each = gradients(case.models[replica], half)
        rows += [torch.cat([flat(g, name) for name in group]) * s for g, s in zip(each, share, strict=True)]
    return torch.stack(rows) @ torch.stack(rows).T


def same(found: Affinity, products: Tensor, weights: Tensor) -> None:
    wanted = Affinity.of(products, weights, torch.ones(len(weights)))
    assert found.norms == pytest.approx(wanted.norms, rel=2e-4)
    assert found.cosine == pytest.approx(wanted.cosine, abs=2e-4)
    for one, other in zip(found.cross, wanted.cross, strict=True):
        assert one == pytest.approx(other, abs=2e-4)


BOTTOM = ["tables.0", "trunks.0.body.network.0", "trunks.0.body.network.2"]
LEVEL = "trunks.0.body.levels.{}.experts.experts.layers.0[{}]"
PLE = [LEVEL.format(0, e) for e in range(8)] + [LEVEL.format(1, e) for e in (6, 7)]


@pytest.mark.parametrize(
    ("tasks", "model", "groups"),
    [
        (TOWERS, {"body": "shared_bottom"}, BOTTOM),
        (BOTH, {"body": "factorize"}, ["tables.0"]),
        # in the last level a task's own experts are its alone
        (TOWERS, {"body": "ple"}, ["tables.0", "trunks.0.body.levels.0.shared_gate", *PLE]),
    ],
)
def test_products_are_those_of_plain_gradients(tasks: tuple[Task, ...], model: dict[str, Any], groups: list[str]) -> None:
    case = Case([part(tasks)], own=[[1.0, 0.5, 2.0][: len(tasks)]], **model)
    found = case.read()
    assert sorted(found.groups) == sorted(groups)
    for name in groups:
        same(found.groups[name], expected(case, [name]), case.own[0])
    same(found.total, expected(case, groups), case.own[0])
    whole = [(losses(case.models[0], h) * s).detach() for h, s in zip(case.halves(), labeled(case.halves()), strict=True)]
    assert found.losses == pytest.approx(sum(whole).tolist(), rel=1e-5)  # type: ignore[union-attr]


def moved(case: Case, steps: dict[str, Tensor], batch: Batch, replica: int = 0) -> Tensor:
    """Losses [T] after ``steps``."""
    named = dict(case.models[replica].named_parameters())
    return losses(case.models[replica], batch, {n: p - steps[n] if n in steps else p for n, p in named.items()}).detach()


def shared(case: Case, gradient: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: g for n, g in gradient.items() if n.startswith(("tables", "trunks"))}


@pytest.mark.parametrize("same_batch", [False, True])
def test_lookahead_with_sgd_is_the_loss_after_a_plain_step_on_what_is_shared(same_batch: bool) -> None:
    sgd = {"optimizer": "sgd"}
    own, rate = [1.0, 0.5, 2.0], 0.05
    case = Case([part(TOWERS)], [rate], [own], body="shared_bottom", stack=sgd, probing=Probing(1, same_batch))
    found = case.read(factor=0.4)
    first, second = case.halves()
    scored = first if same_batch else second
    before = losses(case.models[0], scored).detach()
    for task, gradient in enumerate(gradients(case.models[0], first)):
        steps = {n: 0.4 * rate * own[task] * g for n, g in shared(case, gradient).items()}
        assert found.lookahead[task] == pytest.approx((1 - moved(case, steps, scored) / before).tolist(), abs=2e-6)


def test_lookahead_is_the_product_of_gradients_to_first_order() -> None:
    rate = 0.01
    case = Case([part(TOWERS)], [rate], body="shared_bottom", stack={"optimizer": "sgd"}, probing=Probing(1, True))
    found = torch.tensor(case.read().lookahead)
    half = case.halves()[0]
    flatly = [torch.cat([g.flatten() for g in shared(case, gradient).values()]) for gradient in gradients(case.models[0], half)]
    products = torch.stack(flatly) @ torch.stack(flatly).T
    first_order = rate * products / losses(case.models[0], half).detach()  # Z ~ eta G_ij / L_j
    assert found.tolist() == pytest.approx(first_order.tolist(), rel=0.2, abs=2e-5)
    assert (found.abs() > 1e-4).any()
