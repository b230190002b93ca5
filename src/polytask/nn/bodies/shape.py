"""What a body is told about the model it stands in."""

from dataclasses import dataclass
from typing import Protocol, get_args

import torch
from torch import Tensor

from polytask.schema import Input, Side


@dataclass(frozen=True)
class Shape:
    """Fields in the order the body receives them (user, item, context), embedding width and number of tasks."""

    inputs: tuple[Input, ...]
    dim: int
    tasks: int

    def side(self, side: Side) -> slice:
        """Where the fields of ``side`` stand among the F fields."""
        sides = [i.side for i in self.inputs]
        start = sides.index(side) if side in sides else len(sides)
        return slice(start, start + sides.count(side))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings [B, F, dim] cut into those of the user, the item and the context (one pass backward for all)."""
        user, item, context = torch.split(x, [sum(i.side == s for i in self.inputs) for s in get_args(Side)], dim=1)
        return user, item, context


def pooled(x: Tensor) -> Tensor:
    """Sum [..., dim] over the fields of x [..., F, dim]."""
    return x.squeeze(-2) if x.shape[-2] == 1 else x.sum(dim=-2)


class Body(Protocol):
    """A module from embeddings [B, F, dim] to representations [T, B, width]."""

    width: int

    def __call__(self, x: Tensor) -> Tensor:
        """Representations [T, B, width] of embeddings [B, F, dim]."""
