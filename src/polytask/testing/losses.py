"""What a loss is held to, whatever its formula, on data drawn for its kind of task."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from polytask.loss import Context, Loss, Observed, TaskLoss, task_loss
from polytask.testing.claims import Claims

_ITEMS, _NEGATIVES = 9, 4
_CLOSE = (1e-9, 1e-11)
_WILD = 1e30
_BATCHES = ((1, 0), (2, 1), (7, 2), (33, 3))


class Example(NamedTuple):
    """A batch: logits, as the loss's kind has them, label [B] and context."""

    logits: Tensor
    label: Tensor
    context: Context

    def rows(self, index: Tensor, kind: str) -> "Example":
        """These rows, in this order; the items of an in-batch loss go with their rows."""
        context = Context(*(None if part is None else part[index] for part in self.context))
        logits = self.logits[index][:, index] if kind == "in_batch" else self.logits[index]
        return Example(logits, self.label[index], context)


def check_loss(loss: Loss, **options: Any) -> None:
    """Raise an :class:`AssertionError` that names the first promise of a :class:`polytask.loss.TaskLoss` it breaks.

    ``loss`` is made with ``options`` on made-up training rows. It promises: a loss per row, and finite gradients
    however far the logits; a row that counts by itself, in any order (in-batch losses apart) and as often as its
    weight says; rows without a label, or a condition that is not known, that do not count, and 0 where there is no
    other; probabilities from a binary task; buffers whose shapes do not depend on the data; float32 where it is
    given float32; the same when it is stacked with replicas and traced, on other values too.
    """
    case = _Case(loss, options)
    checks = (_values, _order, _missing, _nothing, _weights, _pairing, _buffers, _precision, _stacked, _traced)
    for check in checks:
        check(case)


def observed(entry: Loss, seed: int = 0, rows: int = 400) -> Observed:
    """Training rows [N] in which some labels, durations and conditions are missing."""
    draw = torch.Generator().manual_seed(seed)
    label = _labels(entry, rows, draw).masked_fill(torch.rand(rows, generator=draw) < 0.1, torch.nan)
    by = 60 * torch.rand(rows, generator=draw, dtype=torch.float64).masked_fill(torch.arange(rows) % 7 == 0, torch.nan)
    popularity = torch.randint(1, 30, (_ITEMS,), generator=draw).index_fill(0, torch.tensor(0), 0)
    held = (torch.rand(rows, generator=draw) < 0.5).double()
    return Observed(label, by, popularity, held if entry.given else None)


def example(entry: Loss, outputs: int, rows: int, seed: int = 0) -> Example:
    """A batch of ``rows`` in which some durations are missing."""
    draw = torch.Generator().manual_seed(1000 + seed)
    wide = {"pairwise": (rows, 1 + _NEGATIVES), "in_batch": (rows, rows), "catalogue": (rows, _ITEMS)}
    shape = wide.get(entry.kind, (rows,) if outputs == 1 else (rows, outputs))
    logits = 2 * torch.randn(shape, generator=draw, dtype=torch.float64)
    label = _labels(entry, rows, draw)
    given = nn.functional.logsigmoid(torch.randn(rows, generator=draw, dtype=torch.float64))
    held = (torch.rand(rows, generator=draw) < 0.6).double()
    by = 80 * torch.rand(rows, generator=draw, dtype=torch.float64)
    items = torch.randint(1, _ITEMS, (rows, 1 + _NEGATIVES), generator=draw)
    context = Context(
        by=by.masked_fill(torch.arange(rows) % 5 == 3, torch.nan) if entry.by else None,
        given=given if entry.given else None,
        given_label=held if entry.given else None,
        items=items if "ranking" in entry.tasks else None,
    )
    return Example(logits, label, context)


def _labels(entry: Loss, rows: int, draw: torch.Generator) -> Tensor:
    """Seconds, a third of them 0, or 0 and 1, or 1 alone; without gaps."""
    uniform = torch.rand(rows, generator=draw, dtype=torch.float64)
    if entry.tasks == ("ranking",):
        return torch.ones_like(uniform)
    if entry.tasks == ("binary",):
        return (uniform < 0.4).double()
    return torch.where(uniform < 0.3, 0.0, -40 * torch.log1p(-uniform))


class _Case:
    """A loss to be fitted on some rows, and how a broken promise is told."""

    def __init__(self, loss: Loss, options: dict[str, Any]) -> None:
        self.loss, self.kind = loss, loss.kind
        self.make: Callable[[Observed], TaskLoss] = partial(loss.make, **options)
        self.claims = Claims(f"loss '{getattr(loss.make, '__name__', loss.make)}'")
        self.claim, self.trying = self.claims.claim, self.claims.trying

    def spec(self, seed: int = 0) -> TaskLoss:
        """The loss fitted on the rows of ``seed``."""
        with self.trying("it cannot be made"):
            return self.make(observed(self.loss, seed))

    def batch(self, spec: TaskLoss, rows: int, seed: int = 0) -> Example:
        """A batch for ``spec``."""
        return example(self.loss, spec.outputs, rows, seed)

    def same(self, found: Tensor, expected: Tensor, sentence: str) -> None:
        """The claim that tensors are equal, up to the rounding of float64."""
        self.claims.equal([found], [expected], sentence, _CLOSE)


def value_and_slope(spec: TaskLoss, one: Example) -> tuple[Tensor, Tensor]:
    """The batch's loss [] and its gradient by the logits."""
    slope, value = grad_and_value(lambda logits: task_loss(spec, logits, one.label, one.context))(one.logits)
    return value, slope


def _values(case: _Case) -> None:
    spec = case.spec()
    for scale in (1.0, 40.0):
        one = case.batch(spec, 50)
        logits = one.logits * scale
        with case.trying("it fails on a batch"):
            target = spec.target(one.label, one.context)
            loss = spec(logits, torch.nan_to_num(target), one.context)
        case.claim(target.shape == loss.shape == (50,), "target and loss must be of shape [B], one number per row")
        _, slope = value_and_slope(spec, one._replace(logits=logits))
        case.claim(bool(loss.isfinite().all()), f"a row's loss is not finite for logits {scale:g} times as large")
        case.claim(bool(slope.isfinite().all()), f"a gradient is not finite for logits {scale:g} times as large")
        case.claim(bool(slope.any()), "no gradient reaches the logits")
        if case.kind == "pointwise":
            _predictions(case, spec, one._replace(logits=logits))


def _predictions(case: _Case, spec: TaskLoss, one: Example) -> None:
    with case.trying("predict fails"):
        predicted = spec.predict(one.logits, one.context)
    case.claim(predicted.shape == (50,) and not bool(predicted.isnan().any()), "predict must give one number per row")
    if case.loss.tasks == ("binary",):
        inside = bool(((predicted >= 0) & (predicted <= 1)).all())
        case.claim(inside, "predict must give probabilities for a binary task")
        with case.trying("a binary task's loss needs log_probability(logits, context)"):
            log: Tensor = spec.log_probability(one.logits, one.context)  # type: ignore[attr-defined]
        case.claims.equal([log.exp()], [predicted], "log_probability is not the logarithm of predict", (1e-6, 1e-6))


def _order(case: _Case) -> None:
    for rows, seed in _BATCHES:
        spec = case.spec()
        one = case.batch(spec, rows, seed)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        value, slope = value_and_slope(spec, one)
        turned = value_and_slope(spec, one.rows(order, case.kind))
        case.same(turned[0], value, "rows in another order give another loss")
        expected = slope[order][:, order] if case.kind == "in_batch" else slope[order]
        case.same(turned[1], expected, "rows in another order give other gradients")
        if case.kind != "in_batch":
            known = ~spec.target(one.label, one.context).isnan()
            alone = [task_loss(spec, *one.rows(torch.tensor([i]), case.kind)) for i in range(rows)]
            mean = torch.stack(alone).sum() / known.sum().clamp(min=1)
            case.same(value, mean, "a batch's loss is not the mean of its rows', each on its own")


def _missing(case: _Case) -> None:
    """A row without label moves neither value nor gradient of the others, whatever its logits."""
    for wild in (0.0, _WILD):
        spec = case.spec()
        one = case.batch(spec, 12)
        label, logits = one.label.clone(), one.logits.clone()
        label[3:6] = torch.nan
        logits[3:6] += wild
        if one.context.given_label is not None:
            one.context.given_label[3:6] = torch.nan
        given = Example(logits, label, one.context)
        value, slope = value_and_slope(spec, given)
        finite = bool(value.isfinite()) and bool(slope.isfinite().all())
        case.claim(finite, "a row without a label makes value or gradient NaN")
        case.claim(not bool(slope[3:6].any()), "a row without a label has a gradient")
        if case.kind != "in_batch":
            kept = torch.tensor([0, 1, 2, *range(6, 12)])
            alone = value_and_slope(spec, given.rows(kept, case.kind))
            case.same(value, alone[0], "rows without a label change the loss")
            case.same(slope[kept], alone[1], "rows without a label change the gradient of others")


def _nothing(case: _Case) -> None:
    """A batch, and a training part, without any label: 0 without gradient."""
    full = observed(case.loss)
    without = full._replace(label=full.label * torch.nan, by=full.by * torch.nan)
    for seen in (full, without):
        with case.trying("it cannot be made where no training row has a label"):
            spec = case.make(seen)
        one = case.batch(spec, 6)
        if one.context.given_label is not None:
            one.context.given_label.fill_(torch.nan)
        value, slope = value_and_slope(spec, one._replace(label=one.label * torch.nan))
        case.claim(bool(value == 0) and not bool(slope.any()), "a batch without labels must give 0 and no gradient")
        start = spec.start()
        finite = start is None or bool(torch.tensor(start).isfinite().all())
        case.claim(finite and (start is None or len(start) == spec.outputs), "start must be one number per output")


def _weights(case: _Case) -> None:
    """A row of weight 3 counts as three rows do, one of weight 0 as none."""
    spec = case.spec()
    one = case.batch(spec, 6)
    weight = torch.tensor([1.0, 3.0, 0.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    if case.kind != "in_batch":
        repeated = one.rows(torch.arange(6).repeat_interleave(weight.long()), case.kind)
        sentence = "a row of weight 3 does not count as three rows"
        case.same(task_loss(spec, *one, weight), task_loss(spec, *repeated), sentence)
    for given in (weight, 0 * weight):
        value, slope = task_loss(spec, *one, given), grad(lambda w: task_loss(spec, *one, w))(given)
        finite = bool(value.isfinite()) and bool(slope.isfinite().all())
        case.claim(finite and (bool(given.any()) or bool(value == 0)), "rows of weight 0 alone must give 0")


def _pairing(case: _Case) -> None:
    spec = case.spec()
    one = case.batch(spec, 50)
    turned = one._replace(logits=one.logits.roll(1, dims=1 if case.kind == "pairwise" else 0))
    apart = float((task_loss(spec, *turned) - task_loss(spec, *one)).abs())
    case.claim(apart > 1e-6, "logits of other rows, or of other items, give the same loss")


def _buffers(case: _Case) -> None:
    first, second = (_buffers_of(case.make(observed(case.loss, seed, rows))) for seed, rows in ((0, 400), (1, 23)))
    shapes = [{name: b.shape for name, b in buffers.items()} for buffers in (first, second)]
    case.claim(shapes[0] == shapes[1], "the shapes of its buffers depend on the data, so replicas cannot be stacked")


def _precision(case: _Case) -> None:
    seen = observed(case.loss)
    spec = case.make(seen._replace(label=seen.label.float(), by=seen.by.float()))
    one = case.batch(spec, 9)
    context = Context(*(p.float() if p is not None and p.is_floating_point() else p for p in one.context))
    value = task_loss(spec, one.logits.float(), one.label.float(), context)
    case.claim(value.dtype == torch.float32, f"of float32 it makes {value.dtype}")
    double = task_loss(case.spec(), *one)
    case.claims.equal([value.double()], [double], "float32 gives another loss than float64", (1e-3, 1e-6))


def _stacked(case: _Case) -> None:
    """Replicas fitted on different rows, under one vmap and in one trace, give what each gives alone."""
    specs = [case.spec(seed) for seed in range(3)]
    ones = [case.batch(specs[0], 8, seed) for seed in range(3)]
    ones[1].label[2] = torch.nan
    ones[2].label.fill_(torch.nan)
    buffers = [_buffers_of(s) for s in specs]
    stacked = {n: torch.stack([b[n] for b in buffers]) for n in buffers[0]}
    logits, label = torch.stack([o.logits for o in ones]), torch.stack([o.label for o in ones])
    parts = [torch.stack(p) for p in zip(*(_present(o.context) for o in ones), strict=True)]
    program = _program(specs[0], ones[0].context)

    def both(*arguments: Any) -> tuple[Tensor, Tensor]:
        return vmap(program)(*arguments)

    with case.trying("it cannot be stacked and traced: it must not depend on values, only on shapes"):
        traced = make_fx(both)(stacked, logits + 1, label.nan_to_num(1.0), parts)
        found = [both(stacked, logits, label, parts), traced(stacked, logits, label, parts)]
    for values, slopes in found:
        for r, (spec, one) in enumerate(zip(specs, ones, strict=True)):
            value, slope = value_and_slope(spec, one)
            case.same(values[r], value, "stacked with replicas it gives another loss than alone")
            case.same(slopes[r], slope, "stacked with replicas it has other gradients than alone")


def _traced(case: _Case) -> None:
    """A program traced by symbols on one batch serves another."""
    spec = case.spec()
    first, other = (case.batch(spec, 6, seed) for seed in (0, 1))
    other.label[3] = torch.nan
    program = _program(spec, first.context)
    arguments = [(_buffers_of(spec), o.logits, o.label, _present(o.context)) for o in (first, other)]
    with case.trying("it cannot be traced for any number of rows"):
        traced = make_fx(lambda *given: program(*given), tracing_mode="symbolic")(*arguments[0])
        found = traced(*arguments[1])
    for own, expected in zip(found, value_and_slope(spec, other), strict=True):
        case.same(own, expected, "traced on one batch it gives other numbers on another")


def _present(context: Context) -> list[Tensor]:
    return [part for part in context if part is not None]


def _buffers_of(spec: TaskLoss) -> dict[str, Tensor]:
    return dict(spec.named_buffers())  # type: ignore[attr-defined]


def _program(spec: TaskLoss, context: Context) -> Callable[..., tuple[Tensor, Tensor]]:
    """Value and gradient from buffers, logits, label and what ``context`` has of parts."""
    names = [name for name, part in context._asdict().items() if part is not None]

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spec = spec

        def forward(self, logits: Tensor, label: Tensor, parts: list[Tensor]) -> Tensor:
            return task_loss(self.spec, logits, label, Context(**dict(zip(names, parts, strict=True))))

    def program(buffers: dict[str, Tensor], *arguments: Any) -> tuple[Tensor, Tensor]:
        def value(logits: Tensor, *rest: Any) -> Tensor:
            found: Tensor = functional_call(Mean(), {f"spec.{n}": b for n, b in buffers.items()}, (logits, *rest))
            return found

        slope, found = grad_and_value(value)(*arguments)
        return found, slope

    return program
