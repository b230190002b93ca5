"""The products of the tasks' gradients against those of autograd on whole tables, and what an update makes of them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from polytask import rng
from polytask.balance import BALANCERS, Balance, Signal, State
from polytask.balancing import Balancing
from polytask.data.batch import Batch, Feed, Part
from polytask.data.split import split
from polytask.data.synthetic import synthetic
from polytask.gradients import Programs
from polytask.nn.design import Design
from polytask.nn.model import MultiTask
from polytask.optimizers import Optimizers
from polytask.replicas import Stack, micro_shares
from polytask.schema import Task

PLAIN = partial(Programs, trace=False)
DATA = synthetic(users=40, items=60, rows=900, seed=6)
STARS = Task("stars", "regression", label="rating")
LIKED = Task("liked", "binary", label="rating", positive="rating >= 4")
WATCH = Task("watch", "ranking", head="dot")
DESIGNS = {
    "shared_bottom": Design("shared_bottom", 4, tower=(5,), options=(("layers", (6, 5)),)),
    "mmoe": Design("mmoe", 4, tower=(5,), options=(("experts", 3), ("layers", (6,)))),
    "ple": Design(
        "ple", 4, tower=(5,), options=(("experts", 1), ("layers", (6,)), ("levels", 1), ("shared_experts", 1))
    ),
    "stem": Design("stem", 4, "both", tower=(5,), options=(("layers", (6,)),)),
    "factorize": Design("factorize", 4, tower=(5,)),
}
Named = dict[str, Tensor]


def part(seed: int, tasks: Sequence[Task]) -> Part:
    schema = replace(DATA.schema, tasks=tuple(tasks))
    return split(replace(DATA, schema=schema), valid=0, test=0.1, seed=seed).train


class Made:
    """Two replicas of a design on one batch, in which some labels are missing."""

    def __init__(self, design: Design, tasks: Sequence[Task] = (STARS, LIKED), seeds: Sequence[int] = (0, 1)) -> None:
        self.parts, self.count = [part(s, tasks) for s in seeds], len(tasks)
        self.models = [MultiTask(p, design) for p in self.parts]
        for model, seed in zip(self.models, seeds, strict=True):
            model.initialize(lambda name, seed=seed: rng.generator(seed, f"init/{name}"))  # type: ignore[misc]
            for parameter in model.parameters():
                parameter.data.add_(0.05)  # zeros would hide a gradient
        batch = next(Feed(self.parts, seeds, 90, "uniform").epoch(1))
        labels = batch.labels.clone()
        labels[:, ::3, 0] = torch.nan
        labels[:, 1::4, 1] = torch.nan
        self.batch = batch._replace(labels=labels)

    def stack(self, **options: Any) -> Stack:
        return Stack(
            self.models, [0.1] * len(self.models), optimizers=Optimizers("sgd"), **{"programs": PLAIN} | options
        )

    def gradients(self, replica: int) -> list[Named]:
        """The gradient of each task's loss on every parameter, by autograd on whole tables; None is 0."""
        model = self.models[replica]
        one = Batch(*(t[replica] if t.dim() > 1 else t for t in self.batch))
        rows = {n: model.get_parameter(n)[i] for n, i in model.lookups(one).items()}
        losses, _ = model.objective(rows, one)
        parameters = dict(model.named_parameters())
        found = []
        for loss in losses:
            each = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
            found.append(
                {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), each, strict=True)}
            )
        return found


def values(model: MultiTask) -> Named:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def asked(made: Made, cuts: int = 1) -> Any:
    stack = made.stack(accumulate=cuts)
    parts = made.batch.cut(cuts) if cuts > 1 else [made.batch]
    shares = micro_shares(parts, len(made.models), made.count)
    _, gradients = stack.task_gradients([stack.look_up(p) for p in parts], shares, range(made.count))
    stack.release()
    return gradients


def expected(made: Made, name: str, experts: Tensor | None = None) -> Tensor:
    """Products [R, T, T] on one parameter, or on the ``experts`` that are shared."""
    found = []
    for replica in range(len(made.models)):
        rows = [g[name] if experts is None else g[name][experts] for g in made.gradients(replica)]
        flat = torch.stack([r.flatten() for r in rows]).double()
        found.append(flat @ flat.T)
    return torch.stack(found)


@pytest.mark.parametrize("cuts", [1, 3])
@pytest.mark.parametrize("body", DESIGNS)
def test_products_are_those_of_autograd_on_whole_tables(body: str, cuts: int) -> None:
    made = Made(DESIGNS[body])
    gradients = asked(made, cuts)
    names = gradients.shared
    found = gradients.gramians(names)
    for place, name in enumerate(names):
        together = gradients._together(name)
        experts = together if together.dim() and not together.all() else None
        torch.testing.assert_close(found[:, place], expected(made, name, experts), rtol=1e-4, atol=1e-9)
    assert torch.equal(found, found.mT)


def test_what_one_task_alone_reads_is_not_shared() -> None:
    made = Made(DESIGNS["ple"])
    gradients = asked(made)
    shared = set(gradients.shared)
    assert shared and not any("heads" in n or "gates" in n for n in shared)
    experts = [n for n in shared if "experts" in n and n.endswith("weight")]
    (together,) = (gradients._together(n) for n in experts)
    assert together.sum() == 1 and len(together) == 3  # the shared expert, and one expert of each task
    assert gradients.jacobian(gradients.shared, 0).shape[0] == 2


def test_a_dot_head_shares_the_table_and_keeps_its_first_order_terms() -> None:
    gradients = asked(Made(DESIGNS["factorize"], (WATCH, STARS)))
    assert gradients.shared == ["tables.0.weight"]


class Chosen:
    """A balancer with weights given beforehand, and a record of what it was shown."""

    needs = "gramian"
    scale_heads = False

    def __init__(self, *, weights: Sequence[float] = (0.3, -1.5)) -> None:
        self.given = torch.tensor(weights, dtype=torch.float64)

    def start(self, tasks: int) -> State:
        return {"steps": torch.zeros(1, dtype=torch.float64)}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        assert signal.tasks is not None
        return self.given[signal.tasks], {"steps": state["steps"] + 1}


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BALANCERS, "chosen", Chosen)


def balancing(made: Made, own: Sequence[float] = (1.0, 1.0), **options: Any) -> Balancing:
    return Balancing(Balance("chosen", **options), torch.tensor([list(own)] * len(made.models)), (0, 1))


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("body", ["mmoe", "ple"])
@pytest.mark.parametrize(("at", "scale_heads"), [("parameters", None), ("parameters", True), ("tables", None)])
@pytest.mark.parametrize("programs", [PLAIN, Programs])
def test_shared_parameters_move_by_the_weights_and_heads_by_their_own(
    body: str, at: Any, scale_heads: bool | None, programs: Any
) -> None:
    own, given = (2.0, 0.5), (0.3, -1.5)
    made = Made(DESIGNS[body])
    start, grads = [values(m) for m in made.models], [made.gradients(r) for r in range(2)]
    known = asked(made)
    made.stack(programs=programs).step(made.batch, balancing(made, own, at=at, scale_heads=scale_heads))
    for model, before, each in zip(made.models, start, grads, strict=True):
        for name, value in values(model).items():
            together = known._together(name)
            if at == "tables":
                together = together.any()  # a stack of experts is weighted as one there
            shared = together.view(-1, *[1] * (value.dim() - 1)) if together.dim() else together
            weighted = sum(w * o * g[name] for w, o, g in zip(given, own, each, strict=True))
            plain = weighted if scale_heads else sum(o * g[name] for o, g in zip(own, each, strict=True))
            torch.testing.assert_close(
                value, before[name] - 0.1 * torch.where(shared, weighted, plain), rtol=1e-4, atol=1e-6
            )


@pytest.mark.usefixtures("chosen")
def test_between_askings_the_weights_stand() -> None:
    made = Made(DESIGNS["mmoe"])
    stack, asking = made.stack(), balancing(made, every=3)
    start = values(made.models[0])
    for step in range(4):
        grads = made.gradients(0)
        stack.step(made.batch, asking, 1.0, (1, step), step)
        name = "tables.0.weight"
        moved = values(made.models[0])[name] - start[name]
        torch.testing.assert_close(moved, -0.1 * (0.3 * grads[0][name] - 1.5 * grads[1][name]), rtol=1e-4, atol=1e-6)
        start = values(made.models[0])
    assert asking.state["steps"].tolist() == [[2.0], [2.0]]  # steps 0 and 3


@pytest.mark.usefixtures("chosen")
def test_a_task_without_a_label_in_the_batch_is_left_out() -> None:
    made = Made(DESIGNS["shared_bottom"])
    labels = made.batch.labels.clone()
    labels[0, :, 1] = torch.nan
    made.batch = made.batch._replace(labels=labels)
    start, grads = values(made.models[0]), made.gradients(0)
    asking = balancing(made)
    made.stack().step(made.batch, asking)
    name = "tables.0.weight"
    torch.testing.assert_close(values(made.models[0])[name], start[name] - 0.1 * grads[0][name], rtol=1e-4, atol=1e-6)
    assert asking.weights[0].tolist() == [1.0, 0.0]  # of one task left the gradient is plain
    assert asking.state["steps"].tolist() == [[0.0], [1.0]]


@pytest.mark.usefixtures("chosen")
def test_one_task_is_trained_plainly() -> None:
    found = []
    for balance in (Balance(), Balance("chosen"), Balance("chosen", at="tables")):
        made = Made(DESIGNS["shared_bottom"])
        made.stack().step(made.batch, Balancing(balance, torch.tensor([[0.0, 2.0]] * 2), (0, 1)))
        found.append(values(made.models[0]))
    for other in found[1:]:
        assert all(torch.equal(found[0][n], other[n]) for n in other)


def test_micro_batches_make_the_step_of_the_whole_batch() -> None:
    for balance in (Balance(), Balance("pcgrad"), Balance("uncertainty")):
        found = []
        for cuts in (1, 4):
            made = Made(DESIGNS["mmoe"])
            made.stack(accumulate=cuts).step(made.batch, Balancing(balance, torch.ones(2, 2), (0, 1)))
            found.append(values(made.models[1]))
        for name, value in found[0].items():
            torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-6)


def test_in_bfloat16_the_products_stay_close() -> None:
    made = Made(DESIGNS["mmoe"])
    exact = asked(made)
    stack = made.stack(programs=partial(Programs, trace=False, precision="bfloat16"))
    _, rough = stack.task_gradients([stack.look_up(made.batch)], torch.ones(1, 2, 2), (0, 1))
    one, other = (g.gramians(g.shared).sum(dim=1) for g in (exact, rough))
    norms = one.diagonal(dim1=1, dim2=2).sqrt()
    assert float(((other - one) / (norms[:, :, None] * norms[:, None, :])).abs().max()) < 0.05
    assert all(p.dtype == torch.float32 for p in made.models[0].parameters()) and not torch.equal(one, other)


def test_the_cheap_products_are_those_at_the_output_of_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(Balancing, "ask", lambda self, losses, gramians, *rest: shown.append(gramians))
    made = Made(DESIGNS["mmoe"])
    stack, asking = made.stack(), Balancing(Balance("pcgrad", at="tables", share=1.0), torch.ones(2, 2), (0, 1))
    stack._sample(stack.look_up(made.batch), asking, (1, 0))
    for replica, found in enumerate(shown[0]):
        model = made.models[replica]
        one = Batch(*(t[replica] if t.dim() > 1 else t for t in made.batch))
        ((name, index),) = model.lookups(one).items()
        rows = model.get_parameter(name).detach()[index].requires_grad_()
        losses, _ = model.objective({name: rows}, one)
        each = [torch.autograd.grad(loss, rows, retain_graph=True)[0].flatten() for loss in losses]
        flat = torch.stack(each).double()
        torch.testing.assert_close(found[0], flat @ flat.T, rtol=1e-4, atol=1e-9)


def test_who_reads_what_does_not_hang_on_units_that_are_inactive() -> None:
    made = Made(DESIGNS["mmoe"])
    usual = asked(made).shared
    for model in made.models:
        for name, parameter in model.named_parameters():
            if "experts" in name and name.endswith("bias"):
                parameter.data.fill_(-100.0)
    assert asked(made).shared == usual
