"""The memory of a traced program, planned before it runs: its large results share one block of bytes.

When each result is made and read for the last time is known from the program. Asked for one by one, in every step,
they leave holes that nothing fits into: glibc takes more than an aligned block needs while it looks for one, so that
what it has freed is too small for the next of the same size.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from polytask.kernels.memory import ALIGNED, Places, Room
from polytask.nn import fused

LEAST = 1 << 18
"""Bytes of a result below which it is left to the C library."""
_ATEN = torch.ops.aten


def _copied(x: Tensor, *, out: Tensor, **_: Any) -> Tensor:
    return out.copy_(x)


INTO: dict[Any, Callable[..., Any]] = {
    _ATEN._to_copy.default: _copied,
    _ATEN.add.Tensor: torch.add,
    _ATEN.addmm.default: torch.addmm,
    _ATEN.bmm.default: torch.bmm,
    _ATEN.cat.default: torch.cat,
    _ATEN.clone.default: _copied,
    _ATEN.index_select.default: torch.index_select,
    _ATEN.mm.default: torch.mm,
    _ATEN.mul.Tensor: torch.mul,
    _ATEN.stack.default: torch.stack,
    **fused.INTO,
}
"""By operator, the function of the same arguments that writes its results to ``out``."""


class Block:
    """Bytes that several programs use, one after the other; as many as the largest needs."""

    def __init__(self) -> None:
        self._size, self._awake = 0, False
        self._views: list[tuple[Tensor, int, tuple[int, ...], tuple[int, ...]]] = []

    def grow(self, size: int) -> None:
        """Have room for ``size`` bytes at least."""
        self.rest()
        self._size = max(size, self._size)

    def view(self, like: Tensor, offset: int) -> Tensor:
        """A tensor that becomes one of the shape and precision of ``like``, ``offset`` bytes from the start."""
        self.rest()
        found = torch.empty(0, dtype=like.dtype)
        self._views.append((found, offset // found.itemsize, tuple(like.shape), like.stride()))
        return found

    def rest(self) -> None:
        """Give the bytes back; until :meth:`wake` the views are empty."""
        for found, *_ in self._views if self._awake else ():
            found.set_()  # type: ignore[call-overload]
        self._awake = False

    def wake(self) -> None:
        """Hold the bytes, and let the views show them."""
        if self._awake or not self._views:
            return
        held = torch.empty(self._size, dtype=torch.uint8).untyped_storage()
        for found, *place in self._views:
            found.set_(held, *place)
        self._awake = True


class Life(NamedTuple):
    """The places of the nodes that make a storage and that read it last, and its bytes."""

    first: int
    last: int
    size: int


class Plan:
    """Which results of ``graph`` go to the block, and where.

    Those that fit are large, on a CPU, contiguous, and neither given to the program nor, unless they are ``lent``,
    returned by it. An operator of several results has a place for some of them, and room for what it needs in passing.
    """

    def __init__(self, graph: GraphModule, *, lent: bool) -> None:
        self.lives: dict[int, Life] = {}
        self._kept: set[int] = set()
        for number, node in enumerate(graph.graph.nodes):
            self._live(number, node, lent)
        found = {n: [t if self._fits(t) else None for t in _tensors(n)] for n in graph.graph.nodes if n.target in INTO}
        self.results = {n: own for n, own in found.items() if any(t is not None for t in own)}
        self.rooms = {n: _room_of(n) for n in self.results if INTO[n.target] in fused.ROOMS}
        for number, node in enumerate(graph.graph.nodes):
            if node in self.rooms:
                self.lives[_storage(self.rooms[node])] = Life(number, number, self.rooms[node].nbytes)
        chosen = [*self.rooms.values(), *(t for own in self.results.values() for t in own if t is not None)]
        self.offsets, self.size = packed({_storage(t): self.lives[_storage(t)] for t in chosen})

    def _live(self, number: int, node: Node, lent: bool) -> None:
        for used in (node, *node.all_input_nodes):
            for tensor in _tensors(used):
                key = _storage(tensor)
                first = self.lives[key].first if key in self.lives else number
                self.lives[key] = Life(first, number, tensor.untyped_storage().nbytes())
        if node.op in ("placeholder", "get_attr"):
            self._kept.update(_storage(t) for t in _tensors(node))
        if node.op == "output" and not lent:
            self._kept.update(_storage(t) for source in node.all_input_nodes for t in _tensors(source))

    def _fits(self, tensor: Tensor) -> bool:
        whole = tensor.is_contiguous() and tensor.nbytes == self.lives[_storage(tensor)].size
        return tensor.is_cpu and whole and tensor.nbytes >= LEAST and _storage(tensor) not in self._kept

    def offset(self, tensor: Tensor) -> int:
        """Where a tensor of the plan starts, in bytes."""
        return self.offsets[_storage(tensor)]


def plan(graph: GraphModule, block: Block, *, lent: bool) -> None:
    """Let the large results of a program on a CPU be written to ``block``, which is to be awake when it runs.

    No two that are needed at the same time share a byte. What the program returns is its caller's for good, or, if it
    is ``lent``, until a program writes to the block again.
    """
    found = Plan(graph, lent=lent)
    block.grow(found.size)

    def view(tensor: Tensor) -> Tensor:
        return block.view(tensor, found.offset(tensor))

    for number, (node, results) in enumerate(found.results.items()):
        views = [None if t is None else view(t) for t in results]
        out: Any = views if isinstance(node.meta["val"], list | tuple) else views[0]
        if node in found.rooms:
            out = Places(views, Room(view(found.rooms[node])))
        graph.__dict__[name := f"places_{number}"] = out
        with graph.graph.inserting_before(node):
            node.kwargs = {**node.kwargs, "out": graph.graph.create_node("get_attr", name)}
        node.target = INTO[node.target]
    for node in graph.graph.nodes:
        node.meta.clear()  # which holds as many tensors as the program has nodes
    graph.recompile()


def packed(lives: Mapping[int, Life]) -> tuple[dict[int, int], int]:
    """An offset for each of ``lives``, and the bytes of all.

    The largest comes first, and each stands as low as those before it that live at some time of its own let it.
    """
    offsets: dict[int, int] = {}
    for key, life in sorted(lives.items(), key=lambda item: -item[1].size):
        offset = 0
        for start, end in sorted(_beside(life, offsets, lives)):
            if offset + life.size <= start:
                break
            offset = max(offset, end)
        offsets[key] = offset
    return offsets, max((offsets[k] + lives[k].size for k in offsets), default=0)


def _beside(life: Life, offsets: Mapping[int, int], lives: Mapping[int, Life]) -> Iterator[tuple[int, int]]:
    """The bytes, first and end, of what was placed and lives at some time of ``life``."""
    for key, offset in offsets.items():
        other = lives[key]
        if other.first <= life.last and life.first <= other.last:
            yield offset, -(-(offset + other.size) // ALIGNED) * ALIGNED


def _room_of(node: Node) -> Tensor:
    """As many bytes as an operator needs in passing."""
    results, room = _tensors(node), Room(measured=True)
    with results[0].fake_mode:  # type: ignore[attr-defined]
        given = map_arg(node.args, lambda n: n.meta["val"])
        INTO[node.target](*given, **node.kwargs, out=Places([None] * len(results), room))
        return torch.empty(room.used, dtype=torch.uint8)


def _tensors(node: Node) -> list[Tensor]:
    """The results of a node, as they were while it was traced."""
    found = node.meta.get("val")
    several: Sequence[Any] = found if isinstance(found, list | tuple) else [found]
    return [t for t in several if isinstance(t, Tensor)]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
