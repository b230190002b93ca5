"""What a body is held to, whatever it computes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from polytask import rng
from polytask.nn.bodies import Shape
from polytask.nn.layers import Initialized, Uniform, initialize_linear
from polytask.schema import Input
from polytask.testing.claims import Claims

NAMES = ("first", "second", "third")
"""What the tasks of a check are called, for options that name them; a check with one task has the first."""

_DIM, _LENGTH, _REPLICAS = 4, 3, 3
_FIELDS = (
    Input("user", "category", "user", 7),
    Input("age", "number", "user", 1),
    Input("item", "category", "item", 9),
    Input("device", "category", "context", 3),
)
_ONLY_IDS = (_FIELDS[0], _FIELDS[2])


def check_body(body_class: Callable[..., Any], **options: Any) -> None:
    """Raise an :class:`AssertionError` that names the first promise of a :class:`polytask.nn.bodies.Body` it breaks.

    ``body_class`` is made with ``options`` for one task (:data:`NAMES`) and for three, and for different fields. It
    promises: T outputs [B, width], also for one row; every parameter started by the generator it is given, and moved
    by the tasks or the penalty; a row's output outside training that depends on that row alone and on no chance; no
    chance in training but that of its :class:`Uniform` modules, and a forward that changes nothing; a penalty that
    is a scalar in training and None otherwise; gates that give shares [B, experts]; the same when it is traced,
    differentiated and stacked with replicas, and when it is exported.
    """
    for fields, tasks in ((_ONLY_IDS, 1), (_FIELDS, 3)):
        case = _Case(body_class, options, fields, tasks)
        for check in (_outputs, _start, _chance, _rows, _penalty, _gates, _gradients, _stack, _export):
            check(case)


class _Case:
    """A body to be made for some fields and tasks, what it reads, and how a broken promise is told."""

    def __init__(
        self, make: Callable[..., Any], options: dict[str, Any], fields: tuple[Input, ...], tasks: int
    ) -> None:
        self.make, self.options, self.tasks = make, options, tasks
        self.shape = Shape(fields, _DIM, tasks, NAMES[:tasks])
        self.both, self.sequential = (bool(getattr(make, name, False)) for name in ("both", "sequential"))
        self.claims = Claims(f"body '{getattr(make, '__name__', make)}' with {tasks} task(s)")
        self.claim, self.trying = self.claims.claim, self.claims.trying
        self.axes = (int(self.both), *([0, 0] if self.sequential else []))  # where rows stand in what a body reads

    def body(self, seed: int) -> nn.Module:
        """A body, in evaluation, whose parameters are all drawn at random: a start may hold zeros."""
        made = _started(self, seed)
        draw = torch.Generator().manual_seed(seed)
        for parameter in made.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draw) / 2
        return made

    def rows(self, count: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Embeddings and, for a sequential body, a history and which of it there is."""
        draw = torch.Generator().manual_seed(1000 + seed)
        own = (self.tasks + 1,) if self.both else ()
        x = torch.randn(*own, count, len(self.shape.inputs), _DIM, generator=draw)
        if not self.sequential:
            return (x,)
        present = torch.rand(count, _LENGTH, generator=draw) < 0.7
        return x, torch.randn(count, _LENGTH, _DIM, generator=draw), present

    def pick(self, given: Sequence[Tensor], index: Tensor) -> tuple[Tensor, ...]:
        """The rows ``index`` of what a body reads."""
        return tuple(part.index_select(axis, index) for part, axis in zip(given, self.axes, strict=True))

    def same(self, found: Sequence[Tensor], expected: Sequence[Tensor], sentence: str) -> None:
        """The claim that tensors are equal, up to rounding."""
        self.claims.equal(found, expected, sentence, (1e-3, 1e-4))


def _outputs(case: _Case) -> None:
    body = case.body(0)
    width: Any = getattr(body, "width", None)
    case.claim(isinstance(width, int) and width > 0, f"its attribute width must be a positive int, not {width!r}")
    for count in (5, 1):
        with case.trying(f"forward fails on {count} row(s)"):
            found = list(body(*case.rows(count)))
        case.claim(len(found) == case.tasks, f"forward must give one tensor per task, not {len(found)}")
        shapes = [tuple(z.shape) for z in found]
        expected = (count, width)
        case.claim(set(shapes) == {expected}, f"outputs of {count} row(s) must be of shape {expected}, not {shapes}")
        case.claim(all(bool(z.isfinite().all()) for z in found), "an output is not finite")


def _start(case: _Case) -> None:
    """Two bodies, filled with different numbers before they are started."""
    first, again, other = (_started(case, seed, before) for seed, before in ((0, 1.0), (0, 2.0), (1, 3.0)))
    values = dict(again.named_parameters())
    for name, value in first.named_parameters():
        case.claim(
            torch.equal(value, values[name]),
            f"parameter '{name}' is not started: the module that holds it needs initialize(name, draw)",
        )
    given = case.rows(5)
    outputs = [list(body(*given)) for body in (first, again, other)]
    equal = all(torch.equal(a, b) for a, b in zip(outputs[0], outputs[1], strict=True))
    case.claim(equal, "the same start gives different outputs: something is drawn when it is made")
    differ = any(not torch.equal(a, b) for a, b in zip(outputs[0], outputs[2], strict=True))
    case.claim(differ or not values, "different seeds give the same start: initialize must draw from its draw")


def _started(case: _Case, seed: int, before: float = 0.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(before))
        body: nn.Module = case.make(case.shape, **case.options)
    for parameter in body.parameters():
        parameter.data.fill_(before)
    with case.trying("it cannot be started"):
        for name, module in body.named_modules(prefix="body"):
            if isinstance(module, nn.Linear):
                initialize_linear(module, name, lambda part: rng.generator(seed, part))
            elif isinstance(module, Initialized):
                module.initialize(name, lambda part: rng.generator(seed, part))
    return body.eval()


@torch.no_grad()
def _rows(case: _Case) -> None:
    body, given = case.body(0), case.rows(6)
    whole = list(body(*given))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    turned = list(body(*case.pick(given, order)))
    case.same(turned, [z[order] for z in whole], "rows in another order give other outputs than theirs")
    for row in range(6):
        index = torch.tensor([row])
        alone = list(body(*case.pick(given, index)))
        case.same(alone, [z[index] for z in whole], "outside training a row's output depends on the other rows")


def _chance(case: _Case) -> None:
    for training in (False, True):
        when = "in training" if training else "outside training"
        body, given = case.body(0).train(training), case.rows(5)
        noise = _noise(body, 5) if training else None
        before, state = torch.get_rng_state(), [t.clone() for t in (*given, *body.state_dict().values())]
        with case.trying(f"forward fails {when}"):
            found = [_forward(body, given, noise)[0] for _ in range(2)]
        case.claim(torch.equal(before, torch.get_rng_state()), f"it draws from torch {when}: use Uniform or Dropout")
        same = all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        case.claim(same, f"the same rows twice give different outputs {when}")
        after = (*given, *body.state_dict().values())
        unchanged = all(torch.equal(a, b) for a, b in zip(state, after, strict=True))
        case.claim(unchanged, f"forward changes its input, a parameter or a buffer {when}")
    body = case.body(0)
    body(*case.rows(5))
    unused = all(m.values is None for m in body.modules() if isinstance(m, Uniform))
    case.claim(unused, "it fills a Uniform outside training: values are the model's to give")


def _penalty(case: _Case) -> None:
    for training in (True, False):
        body = case.body(0).train(training)
        _, penalty = _forward(body, case.rows(5), _noise(body, 5) if training else None)
        if not training:
            case.claim(penalty is None, "its penalty must be None outside training")
        elif penalty is not None:
            fits = penalty.shape == () and bool(penalty.isfinite())
            case.claim(fits, f"its penalty must be one finite number, not of shape {tuple(penalty.shape)}")


def _gates(case: _Case) -> None:
    body, seen = case.body(0), list[tuple[str, Any, Any]]()
    for name, module in body.named_modules():
        if hasattr(module, "reader"):
            module.register_forward_hook(lambda m, _, shares, name=name: seen.append((name, m, shares)))
    body(*case.rows(5))
    for name, gate, shares in seen:
        known = gate.reader is None or gate.reader in range(case.tasks)
        case.claim(known, f"gate '{name}': reader must be None or a task's number, not {gate.reader!r}")
        fits = isinstance(shares, Tensor) and shares.shape == (5, getattr(gate, "experts", None))
        case.claim(fits, f"gate '{name}' must return shares [B, experts] and have the attribute experts")


def _gradients(case: _Case) -> None:
    """Of three random bodies: in one alone a unit may be dead. One task may leave what mixes tasks without use."""
    reached: set[str] = set()
    names: list[str] = []
    for seed in range(3):
        body = case.body(seed).train()
        x, *rest = case.rows(32, seed)
        x.requires_grad_()
        outputs, penalty = _forward(body, (x, *rest), _noise(body, 32, seed))
        total = _total(outputs, penalty)
        case.claim(total.requires_grad, "no gradient reaches the embeddings")
        total.backward()  # type: ignore[no-untyped-call]
        case.claim(x.grad is not None and bool(x.grad.any()), "no gradient reaches the embeddings")
        names = [name for name, _ in body.named_parameters()]
        reached |= {name for name, p in body.named_parameters() if p.grad is not None and bool(p.grad.any())}
    for name in names:
        case.claim(name in reached or case.tasks == 1, f"no gradient reaches parameter '{name}'")


def _stack(case: _Case) -> None:
    """As the training loop does it: one program for all replicas, traced, with its gradient."""
    bodies = [case.body(seed).train() for seed in range(_REPLICAS)]
    given = [case.rows(5, seed) for seed in range(_REPLICAS)]
    noise = [_noise(bodies[0], 5, seed) for seed in range(_REPLICAS)]
    stacked, buffers = stack_module_state(bodies)
    parameters = {name: value.detach() for name, value in stacked.items()}
    inputs = [torch.stack(parts) for parts in zip(*given, strict=True)]

    def one(own: Any, buffers: Any, noise: Tensor, *given: Tensor) -> Any:
        def call(*given: Tensor) -> Any:
            return functional_call(bodies[0], (own, buffers), given)

        outputs, penalty = _forward(bodies[0], given, noise, call)
        return _total(outputs, penalty), outputs

    def program(parameters: Any, noise: Tensor, *inputs: Tensor) -> Any:
        def total(parameters: Any) -> Any:
            totals, outputs = vmap(one)(parameters, buffers, noise, *inputs)
            return totals.sum(), outputs

        return grad_and_value(total, has_aux=True)(parameters)

    with case.trying("it cannot be traced and stacked: forward must not depend on values, only on shapes"):
        arguments: Any = (parameters, torch.stack(noise), *inputs)
        traced = make_fx(program)(*arguments) if case.tasks > 1 else program  # once: it is slow
        gradients, (_, outputs) = traced(*arguments)
    for number, body in enumerate(bodies):
        alone, penalty = _forward(body, given[number], noise[number])
        case.same([z[number] for z in outputs], alone, "stacked with replicas it gives other outputs than alone")
        slopes = _slopes(_total(alone, penalty), dict(body.named_parameters()))
        found = [gradients[name][number] for name in slopes]
        case.same(found, list(slopes.values()), "stacked with replicas it has other gradients than alone")


@torch.no_grad()
def _export(case: _Case) -> None:
    body = case.body(0)
    batch = torch.export.Dim("rows")
    with case.trying("torch.export fails with a dynamic number of rows"):
        shapes = tuple({axis: batch} for axis in case.axes)
        exported = torch.export.export(body, case.rows(5), dynamic_shapes=shapes).module()
        for count in (1, 5, 64):
            given = case.rows(count)
            sentence = f"exported it gives other outputs for {count} row(s)"
            case.same(list(exported(*given)), list(body(*given)), sentence)


def _forward(
    body: nn.Module, given: Sequence[Tensor], noise: Tensor | None, call: Callable[..., Any] | None = None
) -> tuple[list[Tensor], Tensor | None]:
    """Outputs and penalty of one pass with the uniform numbers ``noise`` [B, widths of all Uniform modules]."""
    start = 0
    for module in (m for m in body.modules() if isinstance(m, Uniform)):
        module.values = None if noise is None else noise[:, start : start + module.width]
        start += module.width
    outputs = list((call or body)(*given))
    penalty: Tensor | None = None
    for module in (m for m in body.modules() if isinstance(m, Uniform)):
        module.values = None
    for part in body.modules():
        own: Any = getattr(part, "penalty", None)
        if own is not None:
            penalty = own if penalty is None else penalty + own
            part.penalty = None  # type: ignore[assignment]
    return outputs, penalty


def _noise(body: nn.Module, rows: int, seed: int = 0) -> Tensor:
    width = sum(m.width for m in body.modules() if isinstance(m, Uniform))
    return torch.rand(rows, width, generator=torch.Generator().manual_seed(2000 + seed))


def _total(outputs: Sequence[Tensor], penalty: Tensor | None) -> Tensor:
    total = torch.stack([z.square().sum() + z.sum() for z in outputs]).sum()
    return total if penalty is None else total + penalty


def _slopes(total: Tensor, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    if not parameters:
        return {}
    found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, found, strict=True))
