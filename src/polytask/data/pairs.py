"""Which pairs of user and item occur: what ranking leaves out and negatives avoid."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

_BITMAP = 1 << 27


@dataclass(frozen=True, eq=False)
class Pairs:
    """Sorted, unique pairs of user and item indices: ``user`` [K] and ``item`` [K] int64, never 0."""

    user: Tensor
    item: Tensor

    @classmethod
    def none(cls) -> Self:
        """No pair at all."""
        return cls(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))

    def plus(self, user: Tensor, item: Tensor) -> Self:
        """These pairs and those of ``user`` [N] with ``item`` [N]; pairs with an unknown side are left out."""
        users, items = torch.cat([self.user, user]).numpy(), torch.cat([self.item, item]).numpy()
        known = (users > 0) & (items > 0)
        width = int(items.max(initial=0)) + 1
        keys = users[known] * width + items[known]
        keys.sort()  # numbers sort many times faster than pairs
        keys = keys[np.diff(keys, prepend=-1) > 0]
        return type(self)(*(torch.from_numpy(side) for side in np.divmod(keys, width)))

    def spans(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """Where the pairs of ``users`` [U] begin [U] and end [U] among these."""
        return torch.searchsorted(self.user, users), torch.searchsorted(self.user, users, right=True)

    def contains(self, users: int, items: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """A test of (user [N], item [N]) -> [N] bool: a bitmap where users x items is small, else a binary search."""
        keys = self.user.numpy() * items + self.item.numpy()
        if users * items <= _BITMAP:
            bitmap = np.zeros(users * items, dtype=bool)
            bitmap[keys] = True
            return lambda user, item: bitmap[user * items + item]
        if not len(keys):
            return lambda user, item: np.zeros(len(user), dtype=bool)
        last = len(keys) - 1
        return lambda user, item: (
            keys[np.minimum(np.searchsorted(keys, user * items + item), last)] == user * items + item
        )
