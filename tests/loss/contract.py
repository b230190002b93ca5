"""What every loss must do, whatever its formula, on data drawn for its kind of task."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from polytask.loss import Context, Loss, Observed, TaskLoss, task_loss

ITEMS = 9
NEGATIVES = 4
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


class Example(NamedTuple):
    logits: Tensor
    label: Tensor
    context: Context

    def rows(self, index: Tensor, kind: str) -> "Example":
        """These rows, in this order; the items of an in-batch loss go with their rows."""
        context = Context(*(None if part is None else part[index] for part in self.context))
        logits = self.logits[index][:, index] if kind == "in_batch" else self.logits[index]
        return Example(logits, self.label[index], context)


def labels(entry: Loss, rows: int, draw: torch.Generator) -> Tensor:
    """Seconds, a third of them 0, or 0 and 1, or 1 alone; without gaps."""
    uniform = torch.rand(rows, generator=draw, dtype=torch.float64)
    if entry.tasks == ("ranking",):
        return torch.ones_like(uniform)
    if entry.tasks == ("binary",):
        return (uniform < 0.4).double()
    return torch.where(uniform < 0.3, 0.0, -40 * torch.log1p(-uniform))


def observed(entry: Loss, seed: int = 0, rows: int = 400) -> Observed:
    """Training rows in which some labels, durations and conditions are missing."""
    draw = torch.Generator().manual_seed(seed)
    label = labels(entry, rows, draw).masked_fill(torch.rand(rows, generator=draw) < 0.1, torch.nan)
    by = 60 * torch.rand(rows, generator=draw, dtype=torch.float64).masked_fill(torch.arange(rows) % 7 == 0, torch.nan)
    popularity = torch.randint(1, 30, (ITEMS,), generator=draw).index_fill(0, torch.tensor(0), 0)
    held = (torch.rand(rows, generator=draw) < 0.5).double()
    return Observed(label, by, popularity, held if entry.given else None)


def example(entry: Loss, outputs: int, rows: int, seed: int = 0) -> Example:
    """A batch: a duration is missing in places, and so is whether the condition held."""
    draw = torch.Generator().manual_seed(1000 + seed)
    wide = {"pairwise": (rows, 1 + NEGATIVES), "in_batch": (rows, rows), "catalogue": (rows, ITEMS)}
    shape = wide.get(entry.kind, (rows,) if outputs == 1 else (rows, outputs))
    logits = 2 * torch.randn(shape, generator=draw, dtype=torch.float64)
    label = labels(entry, rows, draw)
    given = nn.functional.logsigmoid(torch.randn(rows, generator=draw, dtype=torch.float64))
    held = (torch.rand(rows, generator=draw) < 0.6).double()
    context = Context(
        by=(80 * torch.rand(rows, generator=draw, dtype=torch.float64)).masked_fill(
            torch.arange(rows) % 5 == 3, torch.nan
        )
        if entry.by
        else None,
        given=given if entry.given else None,
        given_label=held if entry.given else None,
        items=torch.randint(1, ITEMS, (rows, 1 + NEGATIVES), generator=draw) if "ranking" in entry.tasks else None,
    )
    return Example(logits, label, context)


def value_and_slope(spec: TaskLoss, one: Example) -> tuple[Tensor, Tensor]:
    """The batch's loss and its gradient by the logits."""
    slope, value = grad_and_value(lambda logits: task_loss(spec, logits, one.label, one.context))(one.logits)
    return value, slope


def check_values(entry: Loss) -> None:
    """Shapes and finiteness, of probabilities and of seconds as well, however far the logits."""
    spec = entry.make(observed(entry))
    for scale in (1.0, 40.0):
        one = example(entry, spec.outputs, 50)
        logits = one.logits * scale
        target = spec.target(one.label, one.context)
        loss = spec(logits, torch.nan_to_num(target), one.context)
        assert target.shape == loss.shape == (50,) and loss.isfinite().all()
        value, slope = value_and_slope(spec, one._replace(logits=logits))
        assert value.shape == () and slope.isfinite().all() and slope.any()
        if entry.kind == "pointwise":
            predicted = spec.predict(logits, one.context)
            assert predicted.shape == (50,) and not predicted.isnan().any()
            if entry.tasks == ("binary",):
                assert (predicted >= 0).all() and (predicted <= 1).all()
                log = spec.log_probability(logits, one.context)  # type: ignore[attr-defined]
                torch.testing.assert_close(log.exp(), predicted)


def check_rows(entry: Loss, rows: int, seed: int) -> None:
    """Order does not matter, and each row counts as it would alone (in-batch losses apart)."""
    spec = entry.make(observed(entry))
    one = example(entry, spec.outputs, rows, seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    value, slope = value_and_slope(spec, one)
    turned = value_and_slope(spec, one.rows(order, entry.kind))
    torch.testing.assert_close(turned[0], value, **CLOSE)
    expected = slope[order][:, order] if entry.kind == "in_batch" else slope[order]
    torch.testing.assert_close(turned[1], expected, **CLOSE)
    if entry.kind != "in_batch":
        known = ~spec.target(one.label, one.context).isnan()
        alone = [task_loss(spec, *one.rows(torch.tensor([i]), entry.kind)) for i in range(rows)]
        torch.testing.assert_close(value, torch.stack(alone).sum() / known.sum().clamp(min=1), **CLOSE)


def check_missing(entry: Loss, wild: float) -> None:
    """A row without label moves neither value nor gradient of the others, whatever its logits."""
    spec = entry.make(observed(entry))
    one = example(entry, spec.outputs, 12)
    if one.context.given_label is not None:
        one.context.given_label[3:6] = torch.nan
    label = one.label.clone()
    label[3:6] = torch.nan
    logits = one.logits.clone()
    logits[3:6] += wild
    value, slope = value_and_slope(spec, Example(logits, label, one.context))
    assert value.isfinite() and slope.isfinite().all() and not slope[3:6].any()
    if entry.kind != "in_batch":
        kept = torch.tensor([0, 1, 2, *range(6, 12)])
        alone = value_and_slope(spec, Example(logits, label, one.context).rows(kept, entry.kind))
        torch.testing.assert_close(value, alone[0], **CLOSE)
        torch.testing.assert_close(slope[kept], alone[1], **CLOSE)


def check_all_missing(entry: Loss) -> None:
    """A batch, and a training part, without any label: 0 without gradient."""
    without = observed(entry)
    without = without._replace(label=without.label * torch.nan, by=without.by * torch.nan)
    for seen in (observed(entry), without):
        spec = entry.make(seen)
        one = example(entry, spec.outputs, 6)
        if one.context.given_label is not None:
            one.context.given_label.fill_(torch.nan)
        value, slope = value_and_slope(spec, one._replace(label=one.label * torch.nan))
        assert value == 0 and not slope.any()
        start = spec.start()
        assert start is None or torch.tensor(start).isfinite().all()


def check_stacked(entry: Loss) -> None:
    """Replicas fitted on different rows, under one vmap and in one trace, give what each gives alone."""
    specs = [entry.make(observed(entry, seed)) for seed in range(3)]
    ones = [example(entry, specs[0].outputs, 8, seed) for seed in range(3)]
    ones[1].label[2] = torch.nan
    ones[2].label.fill_(torch.nan)
    buffers = [_buffers(s) for s in specs]
    stacked = {n: torch.stack([b[n] for b in buffers]) for n in buffers[0]}
    logits, label = (torch.stack([o[part] for o in ones]) for part in (0, 1))
    parts = [torch.stack(p) for p in zip(*(_present(o.context) for o in ones), strict=True)]
    program = _program(specs[0], ones[0].context)

    def both(*arguments: Any) -> tuple[Tensor, Tensor]:
        return vmap(program)(*arguments)

    traced = make_fx(both)(stacked, logits + 1, label.nan_to_num(1.0), parts)
    for values, slopes in (both(stacked, logits, label, parts), traced(stacked, logits, label, parts)):
        for r, (spec, example_) in enumerate(zip(specs, ones, strict=True)):
            value, slope = value_and_slope(spec, example_)
            torch.testing.assert_close(values[r], value, **CLOSE)
            torch.testing.assert_close(slopes[r], slope, **CLOSE)


def check_traced(entry: Loss) -> None:
    """A program traced by symbols on one batch serves another."""
    spec = entry.make(observed(entry))
    first, other = (example(entry, spec.outputs, 6, seed) for seed in (0, 1))
    other.label[3] = torch.nan
    program = _program(spec, first.context)
    arguments = [(_buffers(spec), o.logits, o.label, _present(o.context)) for o in (first, other)]
    traced = make_fx(lambda *given: program(*given), tracing_mode="symbolic")(*arguments[0])
    for found, expected in zip(traced(*arguments[1]), value_and_slope(spec, other), strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)


def _present(context: Context) -> list[Tensor]:
    return [part for part in context if part is not None]


def _buffers(spec: TaskLoss) -> dict[str, Tensor]:
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
            return functional_call(Mean(), {f"spec.{n}": b for n, b in buffers.items()}, (logits, *rest))

        slope, found = grad_and_value(value)(*arguments)
        return found, slope

    return program


def check_weights(entry: Loss) -> None:
    """A row of weight 3 counts as three rows do, one of weight 0 as none."""
    spec = entry.make(observed(entry))
    one = example(entry, spec.outputs, 6)
    weight = torch.tensor([1.0, 3.0, 0.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    repeated = one.rows(torch.arange(6).repeat_interleave(weight.long()), entry.kind)
    expected = task_loss(spec, *repeated)
    torch.testing.assert_close(task_loss(spec, *one, weight), expected, **CLOSE)
    for given in (weight, 0 * weight):
        value = task_loss(spec, *one, given)
        slope = grad(lambda w: task_loss(spec, *one, w))(given)
        assert value.isfinite() and slope.isfinite().all() and (given.any() or value == 0)
