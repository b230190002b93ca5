"""From the slots of a row to its fields: bags are averaged, histories averaged or attended to."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.schema import Input


class Attention(nn.Module):
    """softmax(q W k / sqrt(dim)) over the items of a history that are there: what of the past bears on this item.

    The idea is that of the deep interest network (Zhou et al., KDD 2018); the scaled product replaces its MLP.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim, bias=False)

    def forward(self, item: Tensor, history: Tensor, present: Tensor) -> Tensor:
        """Pooled history [B, dim] of item [B, dim] and history [B, L, dim], present [B, L]; zeros where it is empty."""
        logits = torch.einsum("bd,bld->bl", self.query(item), history) * history.shape[-1] ** -0.5
        shares = torch.softmax(logits.masked_fill(~present, -1e4), dim=-1)
        return torch.einsum("bl,bld->bd", torch.where(present, shares, 0.0), history)


class Pooling(nn.Module):
    """Embeddings [B, S, dim] of slots, times their numbers, to embeddings [B, F, dim] of fields.

    The numbers of a bag or history are shares that add up to 1, so its sum is a mean; where they are 1 each,
    attention on the row's item weighs them.
    """

    def __init__(self, inputs: Sequence[Input], dim: int) -> None:
        super().__init__()
        self.counts = [i.slots for i in inputs]
        self.plain = all(count == 1 for count in self.counts)
        attended = [n for n, i in enumerate(inputs) if i.pool == "attention" and i.kind == "history"]
        self.attention = nn.ModuleDict({str(n): Attention(dim) for n in attended})
        sides = [i.side for i in inputs]
        self.item = sides.index("item") if "item" in sides else 0

    def forward(self, x: Tensor, numbers: Tensor) -> Tensor:
        """Fields [B, F, dim] of slots x [B, S, dim] and their numbers [B, S]."""
        if self.plain:
            return x
        parts, shares = torch.split(x, self.counts, dim=1), torch.split(numbers, self.counts, dim=1)
        item = parts[self.item].sum(dim=1)
        found = [part.sum(dim=1) for part in parts]
        for name, attention in self.attention.items():
            found[int(name)] = attention(item, parts[int(name)], shares[int(name)] > 0)
        return torch.stack(found, dim=1)


def slots_of(inputs: Sequence[Input], first: int, count: int) -> slice:
    """Where ``count`` fields from number ``first`` on stand among the slots."""
    start = sum(i.slots for i in inputs[:first])
    return slice(start, start + sum(i.slots for i in inputs[first : first + count]))
