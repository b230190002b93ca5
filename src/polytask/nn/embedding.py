"""One merged table for all fields of a model: a row per category value, one per number field."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.nn.layers import Draw
from polytask.schema import Input

_AT_ONCE = 1 << 16  # rows started at a time


class Tables(nn.Module):
    """Embeddings of several fields in one matrix ``weight`` [rows, dim], each of the S slots at its field's offset.

    A field that reads another's rows has none of its own. Row 0 of every category field stands for "unknown" and
    starts at zero. The others start from N(0, ``scale``²), 1 / dim by default, as in the exercise the ``factorize``
    body comes from.
    """

    offsets: Tensor

    def __init__(self, inputs: Sequence[Input], dim: int, scale: float | None = None) -> None:
        super().__init__()
        owners = [i for i in inputs if not i.reads]
        ends = torch.tensor([i.size for i in owners]).cumsum(dim=0)
        starts = {i.name: int(end) - i.size for i, end in zip(owners, ends, strict=True)}
        self.fields = tuple(i.name for i in owners)
        self.ends = tuple(int(end) for end in ends)  # where each field's rows end
        self.scale = 1.0 / dim if scale is None else scale
        offsets = [starts[i.reads or i.name] for i in inputs for _ in range(i.slots)]
        self.register_buffer("offsets", torch.tensor(offsets), persistent=False)
        self.weight = nn.Parameter(torch.zeros(int(ends[-1]), dim))
        self._unknown = [starts[i.name] for i in owners if i.kind != "number"]

    def initialize(self, name: str, draw: Draw) -> None:
        """Fill the table; ``draw`` gives the generator of a parameter's name."""
        random = draw(f"{name}.weight")
        for rows in torch.split(self.weight.data, _AT_ONCE):  # never a second table in float64
            rows.copy_(torch.from_numpy(random.standard_normal(rows.shape) * self.scale))
        self.weight.data[self._unknown] = 0.0

    def rows(self, ids: Tensor, slots: slice = slice(None)) -> Tensor:
        """Row numbers [..., S] of the ids [..., S] of the slots in ``slots``."""
        return ids + self.offsets[slots]
