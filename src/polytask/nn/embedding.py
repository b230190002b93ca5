"""One merged table for all fields of a model: a row per category value, one per number field."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.nn.layers import Draw
from polytask.schema import Input


class Tables(nn.Module):
    """Embeddings of several fields in one matrix ``weight`` [rows, dim], each field at its offset.

    Row 0 of every category field stands for "unknown" and starts at zero. The others start from
    N(0, ``scale``²), 1 / dim by default, as in the exercise the ``factorize`` body comes from.
    """

    offsets: Tensor

    def __init__(self, inputs: Sequence[Input], dim: int, scale: float | None = None) -> None:
        super().__init__()
        ends = torch.tensor([i.size for i in inputs]).cumsum(dim=0)
        self.scale = 1.0 / dim if scale is None else scale
        self.register_buffer("offsets", torch.cat([ends.new_zeros(1), ends[:-1]]), persistent=False)
        self.weight = nn.Parameter(torch.zeros(int(ends[-1]), dim))
        self._unknown = [int(o) for o, i in zip(self.offsets, inputs, strict=True) if i.kind == "category"]

    def initialize(self, name: str, draw: Draw) -> None:
        """Fill the table; ``draw`` gives the generator of a parameter's name."""
        values = draw(f"{name}.weight").standard_normal(self.weight.shape) * self.scale
        values[self._unknown] = 0.0
        self.weight.data.copy_(torch.from_numpy(values))

    def rows(self, ids: Tensor, fields: slice = slice(None)) -> Tensor:
        """Row numbers [..., F] of the ids [..., F] of the fields in ``fields``."""
        return ids + self.offsets[fields]

    def forward(self, ids: Tensor, numbers: Tensor, fields: slice = slice(None)) -> Tensor:
        """Embeddings [..., F, dim] of ids and numbers [..., F]."""
        return self.weight[self.rows(ids, fields)] * numbers[..., None]
