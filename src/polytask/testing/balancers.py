"""What a balancer is held to, whatever its rule, on losses and gradients drawn for it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from polytask.balance import Balancer, Looking, Signal, State
from polytask.balance.base import Needs
from polytask.testing.claims import Claims

_TASKS = 5
_EPOCHS, _STEPS = 6, 3
_PARTS = (4, 6, 1)  # numbers in each shared parameter, the first of them a table
_CLOSE = (1e-5, 1e-6)
_WILD = 1e30
_SCALES = (1e-3, 1e3)


class Step(NamedTuple):
    """What a balancer is shown before an update and, if it looks, after it: losses [T]."""

    signal: Signal
    after: Tensor


def check_balancer(make: Callable[..., Any], *, scale_free: bool = True, **options: Any) -> None:
    """Raise an :class:`AssertionError` that names the first promise of a :class:`polytask.balance.Balancer` it breaks.

    ``make`` is called with ``options``, of which none may differ between tasks. It promises: finite weights, one per
    task or, of gradients, also one per shared parameter, whatever the tasks' scales and however the gradients
    depend on each other; weights that follow the tasks into another order, and that only chance, if it says
    ``random``, or nothing, if it says ``constant``, lets vary; a state of fixed names, shapes and float64 that is never
    changed in place. Tasks that are absent have weight 0, count for nothing and keep what is remembered of them. One
    that needs losses is also stacked and traced; a loss below 0 makes its task's weight NaN if it says ``positive``,
    and no other's. Of one that needs gradients the direction does not depend on the unit of the losses, unless
    ``scale_free`` is False.
    """
    case = _Case(make, options)
    needs = getattr(case.balancer, "needs", None)
    case.claim(needs in get_args(Needs), f"needs must be one of {', '.join(get_args(Needs))}, not {needs!r}")
    whether = isinstance(getattr(case.balancer, "scale_heads", None), bool)
    case.claim(whether, "scale_heads must be True or False")
    checks: list[Callable[[_Case], None]] = [_start, _steps, _hard, _order, _absent, _chance, _agreeing]
    if needs == "losses":
        checks += [_outside, _alone, _negative, _stacked]
    elif scale_free:
        checks.append(_unit)
    for check in checks:
        check(case)


class _Case:
    """A balancer, what it is shown, and how a broken promise is told."""

    def __init__(self, make: Callable[..., Any], options: dict[str, Any]) -> None:
        self.claims = Claims(f"balancer '{getattr(make, '__name__', make)}'")
        self.claim, self.trying = self.claims.claim, self.claims.trying
        with self.trying("it cannot be made"):
            self.balancer: Balancer = make(**options)

    @property
    def of_losses(self) -> bool:
        """Whether it needs losses alone."""
        return self.balancer.needs == "losses"

    def steps(self, seed: int = 0, absent: Sequence[int] = ()) -> list[Step]:
        """Steps of several epochs in which tasks are missing now and then, those of ``absent`` always."""
        draw = torch.Generator().manual_seed(seed)
        moments = [(epoch, step) for epoch in range(1, _EPOCHS + 1) for step in range(_STEPS)]
        found = []
        for number, (epoch, _) in enumerate(moments):
            present = torch.rand(_TASKS, generator=draw) < 0.8
            present[number % _TASKS] = present[(number + 1) % _TASKS] = True
            present[list(absent)] = False
            rows = torch.randn(_TASKS, sum(_PARTS), generator=draw, dtype=torch.float64)
            found.append(self.step(epoch, present, rows, draw))
        return found

    def step(self, epoch: int, present: Tensor, rows: Tensor, draw: torch.Generator) -> Step:
        """One step of the tasks that are ``present`` [T], whose gradients are ``rows`` [T, D]."""
        before, after = (2 * torch.randn(2, len(present), generator=draw, dtype=torch.float64)).exp()
        noise = torch.randn(len(present), len(present), generator=draw, dtype=torch.float64)
        moment = torch.tensor(float(epoch), dtype=torch.float64)
        if self.of_losses:
            signal = Signal(torch.where(present, before, 0.0), present, moment, noise)
            return Step(signal, torch.where(present, after, 0.0))
        tasks = present.nonzero().flatten()
        parts = torch.split(rows[tasks], list(_PARTS), dim=1)
        signal = Signal(
            before[tasks], present[tasks], moment, noise[tasks][:, tasks], tasks, torch.stack([p @ p.T for p in parts])
        )
        if self.balancer.needs == "jacobian":
            signal = signal._replace(jacobian=torch.cat(parts[1:], dim=1))
        return Step(signal, after[tasks])

    def run(self, steps: Sequence[Step], tasks: int = _TASKS) -> tuple[list[Tensor], State]:
        """Weights in each step, and what is remembered at the end."""
        found, state = [], self.balancer.start(tasks)
        for step in steps:
            weights, state = self.take(step, state)
            found.append(weights)
        return found, state

    def take(self, step: Step, state: State) -> tuple[Tensor, State]:
        """Weights in one step, and what is remembered after it."""
        with self.trying("weights fails"):
            weights, state = self.balancer.weights(step.signal, state)
        with self.trying("after fails"):
            return weights, self.look(step, state)

    def look(self, step: Step, state: State) -> State:
        """What is remembered after the update."""
        looking = self.balancer
        return looking.after(step.signal, step.after, state) if isinstance(looking, Looking) else state

    def same(self, found: Sequence[Tensor], expected: Sequence[Tensor], sentence: str) -> None:
        """The claim that tensors are equal, up to rounding and the tolerance of a small solver."""
        self.claims.equal(found, expected, sentence, _CLOSE)

    def finite(self, weights: Tensor, signal: Signal, which: str = "") -> None:
        """The claim that ``weights`` are of a shape and type that fit the ``signal``, and finite."""
        count = len(signal.losses)
        shapes = [(count,)] if self.of_losses else [(count,), (len(_PARTS), count)]
        named = "[T]" if self.of_losses else "[n] or [P, n]"
        self.claim(tuple(weights.shape) in shapes, f"weights must be of shape {named}, not {list(weights.shape)}")
        self.claim(weights.dtype == signal.losses.dtype, f"of {signal.losses.dtype} it makes {weights.dtype}")
        self.claim(bool(weights.isfinite().all()), f"a weight is not finite{which}")


def _start(case: _Case) -> None:
    for tasks in (1, 2, _TASKS):
        with case.trying("start fails"):
            state = case.balancer.start(tasks)
        sound = all(t.dtype == torch.float64 and bool(t.isfinite().all()) for t in state.values())
        case.claim(sound, "start must give tensors of float64, all finite")


def _steps(case: _Case) -> None:
    """Weights and state in every step, the step repeated."""
    state = case.balancer.start(_TASKS)
    for number, step in enumerate(case.steps()):
        given, kept = ({name: value.clone() for name, value in state.items()} for _ in range(2))
        shown = [None if part is None else part.clone() for part in step.signal]
        weights, new = case.take(step, state)
        again, repeated = case.take(step, given)
        pairs = [*((state[n], v) for n, v in kept.items()), *zip(step.signal, shown, strict=True)]
        unmoved = all(a is None or torch.equal(a, b) for a, b in pairs if b is not None)
        case.claim(unmoved, "it changes the state or the signal it is given in place")
        alike = torch.equal(weights, again) and all(torch.equal(new[n], v) for n, v in repeated.items())
        case.claim(alike, "the same state and signal give other weights, or another state, the second time")
        case.finite(weights, step.signal)
        case.claim(not weights[..., ~step.signal.present].any(), "a task that is absent has a weight")
        alike = new.keys() == state.keys() and all(v.dtype == torch.float64 for v in new.values())
        case.claim(alike, "what is remembered must keep its names and be of float64")
        grows = number == 0 and not case.of_losses  # the number of parameters is only seen now
        shapes = all(v.shape == state[n].shape for n, v in new.items())
        case.claim(grows or shapes, "what is remembered changes its shape")
        state = new
    if case.of_losses:
        last = case.steps()[-1].signal
        single = last._replace(losses=last.losses.float())
        case.finite(case.balancer.weights(single, state)[0], single)


def _hard(case: _Case) -> None:
    """Scales over eight decades, and gradients that depend on each other."""
    for which, rows, scales in _hardships():
        draw = torch.Generator().manual_seed(0)
        everyone = torch.ones(_TASKS, dtype=torch.bool)
        state = case.balancer.start(_TASKS)
        for epoch in range(1, _EPOCHS + 1):
            step = case.step(epoch, everyone, rows * scales[:, None], draw)
            signal = step.signal._replace(losses=scales * step.signal.losses)
            weights, state = case.take(Step(signal, scales * step.after), state)
            case.finite(weights, signal, f" for {which}")


def _hardships() -> Iterator[tuple[str, Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    rows = torch.randn(_TASKS, sum(_PARTS), generator=draw, dtype=torch.float64)
    ones = torch.ones(_TASKS, dtype=torch.float64)
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    alike, decades = rows[:1].expand(_TASKS, -1), torch.logspace(-4, 4, _TASKS, dtype=torch.float64)
    twice, opposed = rows.clone(), rows.clone()
    twice[1], opposed[1] = rows[0], -rows[0]
    plane = rows[:, :2] @ rows[:2]
    yield from (("tasks whose scales differ by eight decades", r, decades) for r in (rows, opposed, plane))
    yield from (("losses of a very small or large unit", rows, ones * unit) for unit in (1e-6, 1e6))
    yield "two tasks with the same gradient", twice, ones
    yield "two tasks with opposite gradients", opposed, ones
    yield "tasks with one gradient", alike, ones
    yield "tasks with one gradient up to its sign", alike * sign[:, None], ones
    yield "tasks with gradients in one plane", plane, ones
    yield "tasks with almost one gradient", alike + 1e-9 * rows, ones


def _order(case: _Case) -> None:
    """Of losses the tasks are numbered anew, state and all; gradients carry their tasks' numbers."""
    steps = case.steps()
    weights, state = case.run(steps)
    order = torch.tensor([3, 0, 4, 1, 2])
    places = [order if case.of_losses else torch.argsort(order[: len(s.after)]) for s in steps]
    turned, remembered = case.run([_picked(s, place) for s, place in zip(steps, places, strict=True)])
    expected = [w[..., place] for w, place in zip(weights, places, strict=True)]
    case.same(turned, expected, "tasks in another order get other weights")
    kept = {n: _along(v, order) for n, v in state.items()} if case.of_losses else state
    found = [remembered[n] for n in kept]
    case.same(found, list(kept.values()), "tasks in another order are remembered otherwise")


def _absent(case: _Case) -> None:
    """What is remembered of tasks that are absent stays, and they count for nothing."""
    state = case.run(case.steps())[1]
    missing = torch.tensor([1, 3])
    for step in case.steps(1, absent=(1, 3)):
        new = case.take(step, state)[1]
        stays = [torch.equal(*(_along(v, missing, apart=True) for v in (new[n], state[n]))) for n in state]
        case.claim(all(stays), "what is remembered of a task that is absent changes")
        state = new


def _chance(case: _Case) -> None:
    steps = case.steps()
    weights = case.run(steps)[0]
    if not getattr(case.balancer, "random", False):
        quiet = [s._replace(signal=s.signal._replace(noise=0 * s.signal.noise)) for s in steps]
        case.same(case.run(quiet)[0], weights, "weights depend on the noise: it must say random = True")
    if getattr(case.balancer, "constant", False):
        ones = [s.signal.present.to(w.dtype) for s, w in zip(steps, weights, strict=True)]
        case.same(weights, ones, "it says constant, but a weight is not 1")


def _agreeing(case: _Case) -> None:
    """Tasks that agree in everything are not held still or sent backwards."""
    draw = torch.Generator().manual_seed(2)
    rows = torch.randn(1, sum(_PARTS), generator=draw, dtype=torch.float64).expand(_TASKS, -1)
    step = case.step(1, torch.ones(_TASKS, dtype=torch.bool), rows, draw)
    step = step._replace(signal=step.signal._replace(losses=torch.ones_like(step.signal.losses)))
    weights = case.run([step])[0][0]
    case.claim(bool((weights.sum(dim=-1) > 0).all()), "weights of tasks that agree in everything do not sum above 0")


def _outside(case: _Case) -> None:
    """A task that is never present, whatever its loss, changes nothing for the others."""
    steps = case.steps(2, absent=(2,))
    others = torch.tensor([0, 1, 3, 4])
    fewer = case.run([_picked(s, others) for s in steps], len(others))[0]
    for wild in (0.0, _WILD, -_WILD):
        strange = [_picked(s, torch.arange(_TASKS)) for s in steps]
        for step in strange:
            step.signal.losses[2] = step.after[2] = wild
        found = [w[others] for w in case.run(strange)[0]]
        case.same(found, fewer, "a task that is absent changes the weights of others")


def _alone(case: _Case) -> None:
    steps = [_picked(s, torch.tensor([0])) for s in case.steps() if s.signal.present[0]]
    found = torch.cat(case.run(steps, 1)[0])
    case.claim(bool((found > 0).all()), "the only task has a weight that is not above 0")


def _negative(case: _Case) -> None:
    """Two tasks are always present, one of them with losses below 0."""
    state = case.balancer.start(_TASKS)
    for step in case.steps(3):
        present = step.signal.present.clone()
        present[:2] = True
        losses = torch.where(present, step.after + 0.1, 0.0)
        losses[0] = -losses[0]
        weights, state = case.take(Step(step.signal._replace(losses=losses, present=present), losses), state)
    if getattr(case.balancer, "positive", False):
        case.claim(bool(weights[0].isnan()), "it says positive, but a loss below 0 has a weight that is not NaN")
        case.claim(bool(weights[1:].isfinite().all()), "a loss below 0 makes the weight of another task NaN")
    else:
        case.claim(bool(weights.isfinite().all()), "a loss below 0 has no finite weight: it must say positive = True")


def _stacked(case: _Case) -> None:
    """Replicas under one vmap and in one trace, on other values too, give what each gives alone."""
    runs = [case.steps(seed) for seed in range(3)]
    states = [case.balancer.start(_TASKS) for _ in runs]
    first = _joined([run[0] for run in runs])
    stacked = {n: torch.stack([s[n] for s in states]) for n in states[0]}

    def one(step: list[Tensor], state: State) -> tuple[Tensor, State]:
        shown = Step(Signal(*step[:4]), step[4])
        weights, state = case.balancer.weights(shown.signal, state)
        return weights, case.look(shown, state)

    def program(step: list[Tensor], state: State) -> tuple[Tensor, State]:
        return vmap(one)(step, state)

    with case.trying("it cannot be stacked and traced: it must not depend on values, only on shapes"):
        traced = make_fx(program)(first, stacked)
        for steps in zip(*runs, strict=True):
            found, stacked = traced(_joined(steps), stacked)
            plain = [case.take(step, state) for step, state in zip(steps, states, strict=True)]
            states = [state for _, state in plain]
            case.same(list(found), [w for w, _ in plain], "stacked with replicas it gives other weights than alone")
            expected = [torch.stack([s[n] for s in states]) for n in stacked]
            case.same(list(stacked.values()), expected, "stacked with replicas it remembers other things than alone")


def _unit(case: _Case) -> None:
    """Losses in another unit: all of them, and their gradients, times one factor."""
    steps = case.steps()
    expected = [w / w.norm() for w in case.run(steps)[0]]
    for c in _SCALES:
        found = [w / w.norm() for w in case.run([_scaled(s, c) for s in steps])[0]]
        case.same(found, expected, f"losses {c:g} times as large give another direction: say scale_free=False if meant")


def _scaled(step: Step, factor: float) -> Step:
    signal = step.signal
    assert signal.gramians is not None
    jacobian = None if signal.jacobian is None else factor * signal.jacobian
    scaled = signal._replace(losses=factor * signal.losses, gramians=factor**2 * signal.gramians, jacobian=jacobian)
    return Step(scaled, factor * step.after)


def _picked(step: Step, index: Tensor) -> Step:
    """The step of the tasks at these places, in this order."""
    losses, present, epoch, noise, tasks, gramians, jacobian = step.signal
    picked = Signal(losses[index], present[index], epoch, noise[index][:, index])
    if tasks is not None and gramians is not None:
        rows = None if jacobian is None else jacobian[index]
        picked = picked._replace(tasks=tasks[index], gramians=gramians[:, index][:, :, index], jacobian=rows)
    return Step(picked, step.after[index])


def _along(value: Tensor, tasks: Tensor, apart: bool = False) -> Tensor:
    """``value`` at these ``tasks`` along every dimension that counts tasks; ``apart``: along each by itself, flat."""
    dims = [d for d, size in enumerate(value.shape) if size == _TASKS]
    if apart:
        return torch.cat([value.new_zeros(0), *(value.index_select(d, tasks).flatten() for d in dims)])
    for d in dims:
        value = value.index_select(d, tasks)
    return value


def _joined(steps: Sequence[Step]) -> list[Tensor]:
    """Signals and losses after the update, stacked: losses, present, epoch, noise, after."""
    each = [(s.signal.losses, s.signal.present, s.signal.epoch, s.signal.noise, s.after) for s in steps]
    return [torch.stack(part) for part in zip(*each, strict=True)]
