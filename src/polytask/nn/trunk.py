"""What stands between the tables and the heads: pooling of slots, input blocks, and the body."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polytask.errors import ConfigError
from polytask.nn.blocks import BLOCKS
from polytask.nn.bodies import BODIES, Shape
from polytask.nn.design import Design
from polytask.nn.pooling import Pooling, slots_of
from polytask.schema import Input


class Trunk(nn.Module):
    """Pooling, blocks and body of ``names`` tasks, by a ``design``; the fields ``hidden`` are not for the body."""

    def __init__(self, design: Design, inputs: Sequence[Input], names: Sequence[str], hidden: Sequence[str]) -> None:
        super().__init__()
        self.both = design.both
        self.pooling = Pooling(inputs, design.dim)
        read = tuple(i for i in inputs if i.name not in hidden)
        if not read:
            raise ConfigError("the body has no field to read; name a user and an item column, or list features")
        self.fields = len(read)
        shape = Shape(read, design.dim, len(names), tuple(names))
        self.blocks = nn.ModuleList()
        for name, options in design.blocks:
            block = BLOCKS[name](shape, **dict(options))
            self.blocks.append(block)
            shape = block.shape
        self.body: Any = BODIES[design.body](shape, **dict(design.options))
        if shape.dim != design.dim and getattr(self.body, "sequential", False):
            raise ConfigError(
                f"body '{design.body}' reads rows and history of one width; leave out blocks that change it"
            )
        self.history = self._history(design.body, inputs)

    def _history(self, body: str, inputs: Sequence[Input]) -> slice | None:
        """The slots of the first history, for a body that reads it as a sequence."""
        if not getattr(self.body, "sequential", False):
            return None
        kinds = [i.kind for i in inputs]
        if "history" not in kinds:
            raise ConfigError(f"body '{body}' reads a history; list a feature of kind = \"history\"")
        return slots_of(inputs, kinds.index("history"), 1)

    @property
    def width(self) -> int:
        """Width of a task's representation."""
        return int(self.body.width)

    def pooled(self, tables: Sequence[Tensor], numbers: Tensor) -> Tensor:
        """Fields [B, F, dim] of the slots [B, S, dim] of one table, or [T + 1, B, F, dim] of several."""
        if self.both:
            return torch.stack([self.pooling(x, numbers) for x in tables])
        fields: Tensor = self.pooling(tables[0], numbers)
        return fields

    def forward(self, tables: Sequence[Tensor], numbers: Tensor) -> list[Tensor]:
        """Representations, one [B, width] per task, of slots [B, S, dim] per table and their numbers [B, S]."""
        x = self.pooled(tables, numbers)[..., : self.fields, :]
        for block in self.blocks:
            x = block(x)
        if self.history is None:
            return list(self.body(x))
        shares = numbers[:, self.history]
        present = shares > 0
        history = tables[0][:, self.history] / torch.where(present, shares, 1.0)[..., None]  # a mean's shares are 1 / n
        return list(self.body(x, history, present))
