"""What may stand between the embeddings and the body: a block changes what all tasks read.

A block is a module made from a :class:`Shape` and its own options; its ``forward`` takes embeddings [B, F, dim] to
embeddings [B, F', dim'], and its attribute ``shape`` says of which fields and width. A row's output depends on that
row alone. A block that adds a term to the joint loss leaves it in ``penalty`` [] in training.
"""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from polytask.nn.blocks.cross import Cross
from polytask.nn.blocks.mlp import Mlp
from polytask.nn.blocks.pfe import Prototypes
from polytask.nn.blocks.poso import Poso
from polytask.nn.bodies.shape import Shape


class Block(Protocol):
    """A module from embeddings [B, F, dim] to the embeddings [B, F', dim'] that ``shape`` describes."""

    shape: Shape

    def __call__(self, x: Tensor) -> Tensor:
        """Embeddings [B, F', dim'] of embeddings [B, F, dim]."""


BLOCKS: dict[str, Callable[..., Any]] = {
    "cross": Cross,
    "mlp": Mlp,
    "pfe": Prototypes,
    "poso": Poso,
}

__all__ = ["BLOCKS", "Block", "Cross", "Mlp", "Poso", "Prototypes"]
