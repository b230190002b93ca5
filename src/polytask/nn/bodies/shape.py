"""What a body is told about the model it stands in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, get_args

import torch
from torch import Tensor

from polytask.schema import Input, Side


@dataclass(frozen=True)
class Shape:
    """Fields in the order the body receives them (user, item, context), embedding width and number of tasks.

    ``names`` are those of the tasks, for options that name them.
    """

    inputs: tuple[Input, ...]
    dim: int
    tasks: int
    names: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Numbers per row once all embeddings stand side by side: F · dim."""
        return len(self.inputs) * self.dim

    def side(self, side: Side) -> slice:
        """Where the fields of ``side`` stand among the F fields."""
        sides = [i.side for i in self.inputs]
        start = sides.index(side) if side in sides else len(sides)
        return slice(start, start + sides.count(side))

    def count(self, side: Side) -> int:
        """Number of fields of ``side``."""
        return sum(i.side == side for i in self.inputs)

    def split(self, x: Tensor) -> list[Tensor]:
        """Embeddings [B, F, dim] cut into those of the user, the item and, if there are any, the context."""
        counts = [self.count(side) for side in get_args(Side)]
        return list(torch.split(x, counts if counts[2] else counts[:2], dim=1))


def pooled(x: Tensor) -> Tensor:
    """Sum [..., dim] over the fields of x [..., F, dim]."""
    return x.squeeze(-2) if x.shape[-2] == 1 else x.sum(dim=-2)


class Body(Protocol):
    """A module from embeddings [B, F, dim] to one representation [B, width] per task.

    Class attributes a body may declare: ``both = True`` takes [T + 1, B, F, dim], the fields from each task's own
    tables and, last, from the shared ones (``share = "both"``). ``sequential = True`` takes the first history
    field as further arguments, unpooled: embeddings [B, L, dim], oldest first, and whether each is there [B, L].

    A body that adds a term to the joint loss leaves it in ``penalty`` [] in training. A module below it that
    mixes experts has the attributes ``experts`` (how many) and ``reader`` (which task reads, None for a shared
    stream) and returns shares [B, experts]: its use is logged.
    """

    width: int

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """Representations, T times [B, width], of embeddings [B, F, dim]."""
