"""Updates by row and in one compiled program, against the plain step."""

from functools import partial
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from polytask import rng
from polytask.compiling import can_compile, compile_graph
from polytask.data.batch import Batch, Feed, Part
from polytask.data.split import split
from polytask.data.synthetic import synthetic
from polytask.errors import ConfigError, TrainingError
from polytask.gradients import Programs
from polytask.nn.model import MultiTask
from polytask.optimizers import Optimizers, by_row
from polytask.replicas import Stack
from polytask.run import TrainConfig
from polytask.scale import optimizers_of
from polytask.train import fit

CUT = split(synthetic(users=40, items=60, rows=900, seed=6), valid=0.1, test=0.1, seed=0)
TABLE, BIAS = "tables.0.weight", "heads.0.bias.weight"
PLAIN = partial(Programs, trace=False)
COMPILED = partial(Programs, compile=True)
needs_compiler = pytest.mark.skipif(not can_compile(), reason="no C++ compiler")


def started(part: Part, seed: int = 0) -> MultiTask:
    model = MultiTask.build(part, dim=4, tower=(5,))
    model.initialize(lambda name: rng.generator(seed, f"init/{name}"))
    return model


def both(kind: str, rate: float = 0.1) -> Optimizers:
    return Optimizers("sgd", ((TABLE, kind), (BIAS, kind)), rate)


def batches(part: Part, seeds: list[int], count: int) -> list[Batch]:
    return list(islice(Feed([part] * len(seeds), seeds, 135, "uniform").epoch(1), count))


def row_gradients(model: MultiTask, batch: Batch, weights: Tensor) -> dict[str, Tensor]:
    """Gradients on whole tables of a model by itself, by autograd."""
    one = Batch(*(t[0] for t in batch))
    for parameter in model.parameters():
        parameter.grad = None
    rows = {n: model.get_parameter(n)[i] for n, i in model.lookups(one).items()}
    losses, _ = model.objective(rows, one)
    (losses * weights[0]).sum().backward()
    found = {}
    for name in (TABLE, BIAS):
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        found[name] = gradient.clone()
    return found


def test_row_optimizers_in_a_stack_touch_looked_up_rows_by_their_formula() -> None:
    model, oracle = started(CUT.train), started(CUT.train)
    (batch,) = batches(CUT.train, [0], 1)
    weights = torch.tensor([[1.0, 0.5]])
    Stack([model], [0.3], optimizers=both("rowwise_adagrad"), programs=PLAIN).step(batch, weights)
    for name, gradient in row_gradients(oracle, batch, weights).items():
        spread = gradient.square().mean(dim=1, keepdim=True).sqrt()
        expected = oracle.get_parameter(name) - torch.where(spread > 0, 0.1 * gradient / (spread + 1e-8), 0.0)
        torch.testing.assert_close(model.get_parameter(name), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["rowwise_adagrad", "lazy_adam"])
@pytest.mark.parametrize("bounds", [{}, {"clip": 0.05, "decay": 0.1}, {"accumulate": 3}])
def test_stacked_models_end_as_they_end_alone_when_tables_are_trained_by_row(
    kind: str, bounds: dict[str, float]
) -> None:
    rates, weights = [0.02, 0.05], torch.tensor([[1.0, 0.5], [0.2, 1.0]])
    together = [started(CUT.train, s) for s in (0, 1)]
    stack = Stack(together, rates, optimizers=both(kind), programs=PLAIN, **bounds)  # type: ignore[arg-type]
    for batch in batches(CUT.train, [0, 1], 4):
        stack.step(batch, weights, factor=0.5)
    for number in range(2):
        alone = started(CUT.train, number)
        own = Stack([alone], [rates[number]], optimizers=both(kind), programs=PLAIN, **bounds)  # type: ignore[arg-type]
        for batch in batches(CUT.train, [number], 4):
            own.step(batch, weights[number : number + 1], factor=0.5)
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(together[number].get_parameter(name), parameter, rtol=1e-4, atol=1e-5)


def test_a_gradient_that_is_not_finite_leaves_tables_trained_by_row_alone() -> None:
    model = started(CUT.train)
    stack = Stack([model], [0.1], optimizers=both("rowwise_adagrad"), programs=PLAIN)
    (batch,) = batches(CUT.train, [0], 1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(TrainingError, match="rating"):
        stack.step(batch._replace(labels=batch.labels * torch.inf), torch.ones(1, 2))
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert float(stack.updates.by_row[TABLE].state["sum"].abs().sum()) == 0


@pytest.mark.parametrize("kind", ["rowwise_adagrad", "lazy_adam"])
def test_state_of_row_optimizers_is_kept_and_taken_back(kind: str) -> None:
    part, ones = CUT.train, torch.ones(1, 2)
    (first, second, third) = batches(part, [0], 3)
    whole, cut = started(part), started(part)
    stack = Stack([whole], [0.1], optimizers=both(kind), programs=PLAIN)
    for batch in (first, second, third):
        stack.step(batch, ones)
    begun = Stack([cut], [0.1], optimizers=both(kind), programs=PLAIN)
    for batch in (first, second):
        begun.step(batch, ones)
    again = Stack([started(part, 9)], [0.1], optimizers=both(kind), programs=PLAIN)
    again.load({n: t.clone() for n, t in begun.state().items()})
    again.step(third, ones)
    for name, parameter in whole.named_parameters():
        assert torch.equal(again.models[0].get_parameter(name), parameter)


def test_auto_takes_rows_for_large_tables_of_which_little_is_read() -> None:
    assert by_row("auto", 1 << 18, 1000) == "rowwise_adagrad"
    assert by_row("auto", (1 << 18) - 1, 1000) is None
    assert by_row("auto", 1 << 20, 1 << 18) is None  # most of it is touched in every step
    assert by_row("dense", 1 << 30, 1) is None
    assert by_row("lazy_adam", 10, 1000) == "lazy_adam"


def test_what_was_chosen_is_recorded_and_small_tables_stay_dense() -> None:
    assert optimizers_of([started(CUT.train)], TrainConfig()).by_row == ()
    config = TrainConfig(epochs=1, batch=200, tables="rowwise_adagrad", tables_lr=0.05)
    run = fit(started(CUT.train), CUT.train, CUT.valid, config=config)
    assert run.chosen == [
        f"{TABLE} (102 rows) is trained by rowwise adagrad",
        f"{BIAS} (102 rows) is trained by rowwise adagrad",
    ]


@pytest.mark.parametrize(("wrong", "said"), [({"tables": "dens"}, "dense"), ({"tables_lr": 0.0}, "tables_lr")])
def test_a_choice_that_is_none_is_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TrainConfig(**wrong)  # type: ignore[arg-type]


@needs_compiler
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_a_compiled_step_is_the_plain_step(optimizer: str, clip: float) -> None:
    rates, weights = [0.01, 0.03], torch.tensor([[1.0, 0.5], [0.2, 1.0]])
    found = []
    for programs in (PLAIN, COMPILED):
        models = [started(CUT.train, s) for s in (0, 1)]
        stack = Stack(models, rates, optimizers=Optimizers(optimizer), clip=clip, programs=programs)
        losses = [stack.step(b, weights, factor=1 / (n + 1)) for n, b in enumerate(batches(CUT.train, [0, 1], 4))]
        found.append((torch.stack(losses), stack))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)
    for name, parameter in found[0][1].parameters.items():
        if name != BIAS:  # the gradient of the users' biases is 0 but for rounding, of which Adam makes a step
            torch.testing.assert_close(found[1][1].parameters[name], parameter, rtol=1e-3, atol=1e-4)
    plain, state = (stack.state() for _, stack in found)
    assert state.keys() == plain.keys()
    assert all(torch.equal(state[n], plain[n]) for n in state if n.endswith("/step"))


def test_steps_of_compiled_programs_are_counted_for_whoever_asks() -> None:
    stack = Stack([started(CUT.train)], [0.1], programs=PLAIN)
    updates = stack.updates
    first, fresh = updates.inputs(1.0)[0], [t.clone() for t in updates.inputs(1.0)]
    for _ in range(3):
        updates.count()
    assert not torch.equal(updates.inputs(1.0)[0], first)  # of Adam's fourth step
    assert {float(v) for n, v in stack.state().items() if n.endswith("/step")} == {3.0}
    updates.count()
    assert [float(k["step"]) for k in updates.state_of(TABLE)] == [4.0]
    (batch,) = batches(CUT.train, [0], 1)
    updates.count()
    stack.step(batch, torch.ones(1, 2))
    assert [float(k["step"]) for k in updates.state_of(TABLE)] == [6.0]
    stack.load({n: torch.zeros_like(t) for n, t in stack.state().items()})
    assert all(torch.equal(a, b) for a, b in zip(updates.inputs(1.0), fresh, strict=True))


@needs_compiler
def test_a_compiled_step_that_is_not_finite_changes_nothing() -> None:
    model = started(CUT.train)
    stack = Stack([model], [0.1], programs=COMPILED)
    first, second = batches(CUT.train, [0], 2)
    stack.step(first, torch.ones(1, 2))
    before = {n: t.clone() for n, t in stack.state().items()}
    with pytest.raises(TrainingError, match="rating"):
        stack.step(second._replace(labels=second.labels * torch.inf), torch.ones(1, 2))
    assert all(torch.equal(t, before[n]) for n, t in stack.state().items())


@needs_compiler
def test_a_program_that_cannot_be_called_from_native_code_is_called_from_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, compile_program = [], torch._inductor.compile

    def compiled(*given: Any, options: dict[str, Any] | None = None) -> Any:
        asked.append(options)
        if options:
            raise RuntimeError("no form")
        return compile_program(*given)

    monkeypatch.setattr(torch._inductor, "compile", compiled)
    run = compile_graph(make_fx(lambda x: [x * 2])(torch.ones(3)), [torch.ones(3)])
    assert torch.equal(run(torch.full((3,), 4.0))[0], torch.full((3,), 8.0))
    assert asked == [{"cpp_wrapper": True}, None]


def test_without_a_compiler_training_goes_on_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polytask.gradients.can_compile", lambda: False)
    config = TrainConfig(epochs=1, batch=200, compile=True)
    run = fit(started(CUT.train), CUT.train, CUT.valid, config=config)
    assert any("no C++ compiler" in line for line in run.chosen)
