"""Gradients of a stack's losses, as tensor programs traced once per batch shape: of their weighted sum, or by task.

All are taken with respect to the dense parameters and to the table rows a batch looks up, so that no program
ever differentiates through a whole table.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import CodeGen
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from polytask.compiling import can_compile, compile_graph
from polytask.nn.layers import ExpertLinear
from polytask.nn.models import Model
from polytask.planning import Block, plan

Named = dict[str, Tensor]
Weigh = Callable[..., tuple[Tensor, Named]]
PRECISIONS: dict[str, torch.dtype | None] = {"auto": None, "float32": None, "bfloat16": torch.bfloat16}


class Point(NamedTuple):
    """Where a program is evaluated: stacked dense parameters and constants [R, ...], looked-up ``rows``, a batch.

    ``portion`` [R]: how much the penalty counts, less than 1 in each of several micro-batches.
    """

    dense: Named
    constants: Named
    rows: Named
    batch: Any
    portion: Tensor


class Gradient(NamedTuple):
    """Of dense parameters [R, ...] and of looked-up rows [R, B, S, D], by name."""

    dense: Named
    rows: Named

    def named(self) -> Named:
        """Both kinds; no name is in both."""
        return {**self.dense, **self.rows}


class Objective(nn.Module):
    """A model's objective as a module, so that it can be called with parameters given from outside."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Named, batch: Any) -> tuple[Tensor, Tensor]:
        """Losses [T] of a batch, given the table rows it looks up, and the penalty [] the model adds."""
        return self.model.objective(rows, batch)


class Programs:
    """The programs of one architecture; ``precision`` is that of the forward and backward pass.

    With ``trace = False`` they run in their plain form; with ``compile`` what was traced is compiled.
    """

    def __init__(self, model: Model, *, trace: bool = True, precision: str = "float32", compile: bool = False) -> None:
        self.objective, self.trace, self.dtype = Objective(model), trace, PRECISIONS[precision]
        self.compile = trace and compile and can_compile()
        self._traced: dict[Any, Callable[..., Any]] = {}
        self._block = Block()

    def losses(self, point: Point) -> Tensor:
        """Losses [R, T]."""
        found: Tensor = self._run("losses", lambda p: self._forward(p, p.dense, p.rows)[0], point)
        return found

    def weighted(
        self, point: Point, weights: Tensor, own: Tensor, names: frozenset[str] = frozenset()
    ) -> tuple[Tensor, Gradient]:
        """Losses [R, T] and the gradient of their sum by ``weights`` [R, T], penalty included.

        For the parameters and rows ``names`` the weights are ``own`` [R, T]. Not traced by itself: it is part of a
        larger program.
        """
        losses, _, pull = self._pull(point)
        found = Gradient(*pull((weights, point.portion)))
        if names:
            other = Gradient(*pull((own, point.portion)))
            found = Gradient(*(_merged(f, o, names) for f, o in zip(found, other, strict=True)))
        return losses, found

    def weighed(self, point: Point, weigh: Weigh, *inputs: Any) -> tuple[Tensor, Tensor, Named, Gradient]:
        """As :meth:`weighted`, the weights given by ``weigh(losses, *inputs)`` with what it remembers.

        Losses [R, T], weights [R, T], the state of ``weigh``, the gradient.
        """

        def program(point: Point, *inputs: Any) -> tuple[Tensor, Tensor, Named, Gradient]:
            losses, _, pull = self._pull(point)
            weights, state = weigh(losses.detach(), *inputs)
            return losses, weights, state, Gradient(*pull((weights, point.portion)))

        result: tuple[Tensor, Tensor, Named, Gradient] = self._run("weighed", program, point, *inputs)
        return result

    def by_task(
        self, point: Point, shares: Tensor, tasks: tuple[int, ...], penalty: bool, *, rows_only: bool = False
    ) -> tuple[Tensor, list[Gradient]]:
        """Losses [R, T] and the gradient of each of ``tasks``, times ``shares`` [R, T].

        With ``penalty`` its gradient follows. With ``rows_only`` they hold looked-up rows alone, and nothing else is
        computed.
        """

        def program(point: Point, shares: Tensor) -> tuple[Tensor, list[Gradient]]:
            losses, extra, pull = self._pull(point)
            numbers = torch.arange(losses.shape[1])
            found = [pull((torch.where(numbers == t, shares, 0.0), torch.zeros_like(extra))) for t in tasks]
            if penalty:
                found.append(pull((torch.zeros_like(shares), point.portion)))
            return losses, [Gradient({} if rows_only else dense, rows) for dense, rows in found]

        key = "by task", tasks, penalty, rows_only
        result: tuple[Tensor, list[Gradient]] = self._run(key, program, point, shares)
        return result

    def _pull(self, point: Point) -> tuple[Tensor, Tensor, Callable[..., Any]]:
        found: Any = vjp(lambda dense, rows: self._forward(point, dense, rows), point.dense, point.rows)
        (losses, penalty), pull = found
        return losses, penalty, pull

    def _forward(self, point: Point, dense: Named, rows: Named) -> tuple[Tensor, Tensor]:
        """Losses [R, T] and penalties [R]."""

        def one(dense: Named, constants: Named, rows: Named, batch: Any) -> tuple[Tensor, Tensor]:
            named = {f"model.{n}": p for n, p in {**dense, **constants}.items()}
            losses, penalty = functional_call(self.objective, named, (rows, batch))
            return losses.float(), penalty.float()

        device = next(iter({**dense, **rows}.values())).device.type
        with torch.autocast(device, dtype=self.dtype, enabled=self.dtype is not None):
            inputs = dense, point.constants, rows, point.batch
            if len(point.portion) == 1:  # nothing to map over: plain operators, which are faster than batched ones
                losses, penalty = one(*tree_map(lambda t: t.squeeze(0), inputs))
                return losses[None], penalty[None]
            found: tuple[Tensor, Tensor] = vmap(one)(*inputs)
        return found

    def _run(self, kind: Any, program: Callable[..., Any], *arguments: Any) -> Any:
        """``program`` of nested tensors, by :meth:`run`."""
        tensors, spec = tree_flatten(arguments)
        shapes = tuple(t.shape for t in tensors)
        return self.run((kind, shapes), lambda *given: program(*tree_unflatten(given, spec)), tensors)

    @torch.no_grad()
    def run(self, key: Hashable, program: Callable[..., Any], tensors: Sequence[Tensor], *, lent: bool = False) -> Any:
        """``program(*tensors)``, traced once for each ``key``, on which their shapes depend; it may change them.

        With ``lent`` the next program that runs may write over the results.
        """
        if key not in self._traced:
            self._traced[key] = self._made(program, tensors, lent) if self.trace else program
        self._block.wake()
        return self._traced[key](*tensors)

    def rest(self) -> None:
        """Hold no memory until the next program runs."""
        self._block.rest()

    def _made(self, program: Callable[..., Any], tensors: Sequence[Tensor], lent: bool) -> Callable[..., Any]:
        spec: list[TreeSpec] = []

        def flat(*given: Tensor) -> list[Tensor]:
            found, own = tree_flatten(program(*given))
            spec.append(own)
            return found

        graph = _pruned(make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*tensors))
        call: Callable[..., Any]
        if self.compile:
            call = compile_graph(graph, tensors)
        else:
            plan(graph, self._block, lent=lent)
            call = graph.forward
        return lambda *given: tree_unflatten(call(*given), spec[0])


class Readers(NamedTuple):
    """Which of the T tasks read a parameter or looked-up rows: ``of`` [T], or [T, E] where there are E experts.

    ``penalty``: whether the model adds a penalty.
    """

    of: Named
    penalty: bool

    def together(self, name: str) -> Tensor:
        """Whether two tasks or more read a parameter: [], or by expert [E]."""
        return self.of[name].sum(dim=0) > 1

    @property
    def alone(self) -> frozenset[str]:
        """What no two tasks read."""
        return frozenset(n for n in self.of if not self.together(n).any())


def readers(model: Model, point: Point) -> Readers:
    """Who reads what, from the program itself: not a number times anything stays not a number.

    A task's loss is given the gradient NaN and the others 0; what the NaN reaches is what the task reads, even
    where its gradient happens to be 0 now, as behind a weight that starts at 0. It is asked where every unit of the
    model is active, for an inactive one would let nothing pass.
    """
    programs, alive = Programs(model, trace=False), _alive(point)
    experts = {f"{n}.{p}" for n, m in model.named_modules() if isinstance(m, ExpertLinear) for p in ("weight", "bias")}
    count = len(model.schema.tasks)
    shares = torch.full((len(next(iter(point.batch))), count), torch.nan)
    _, found = programs.by_task(alive, shares, tuple(range(count)), False)
    of = {}
    for name in found[0].named():
        marks = [g.named()[name].isnan() for g in found]
        kept = 2 if name in experts else 0  # [R, E, ...]: by expert
        of[name] = torch.stack([m.flatten(kept).any(dim=-1).any(dim=0) if kept else m.any() for m in marks])
    return Readers(of, _has_penalty(model, programs, alive))


def _alive(point: Point) -> Point:
    """The same batch with small positive parameters, so that sums of them stay positive and small."""
    dense = {n: torch.full_like(p, 1.0 / max(p.shape[1:], default=1)) for n, p in point.dense.items()}
    rows = {n: torch.full_like(r, 0.1) for n, r in point.rows.items()}
    batch = point.batch
    if hasattr(batch, "numbers"):
        batch = batch._replace(numbers=batch.numbers.abs(), negative_numbers=batch.negative_numbers.abs())
    return point._replace(dense=dense, rows=rows, batch=batch)


def _has_penalty(model: Model, programs: Programs, point: Point) -> bool:
    _, penalty, pull = programs._pull(point)
    with torch.no_grad():
        found = Gradient(
            *pull((torch.zeros(len(penalty), len(model.schema.tasks)), torch.full_like(penalty, torch.nan)))
        )
    return any(bool(g.isnan().any()) for g in found.named().values())


def _merged(first: Named, second: Named, names: frozenset[str]) -> Named:
    return {n: second[n] if n in names else value for n, value in first.items()}


def _pruned(traced: GraphModule) -> GraphModule:
    """The program without what no result needs: a gradient asked for part of its parameters costs only that part.

    It takes and returns flat tensors, so it need not take nests of them apart in every call.
    """
    traced.graph.set_codegen(CodeGen())
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced
