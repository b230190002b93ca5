"""Batches of whole users and whole items: all their cells at once, for models that score the catalogue."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from polytask import rng
from polytask.data.batch import Part
from polytask.errors import ConfigError


class Views(NamedTuple):
    """Some users and some items with all their cells; a stack of replicas adds a leading dimension R.

    ``users`` [U] and ``items`` [J] are their indices. ``seen`` [U, I] is 1 where there is a row, ``ratings`` [U, I]
    its label (NaN = none); ``seen_by`` and ``ratings_by`` [J, V] the same for the items over all users. The rest
    are uniform numbers, one per cell: for the history ranked from [U, I] and those rated from [U, I] and [J, V].
    """

    users: Tensor
    items: Tensor
    seen: Tensor
    ratings: Tensor
    seen_by: Tensor
    ratings_by: Tensor
    rank_noise: Tensor
    rate_noise: Tensor
    rate_noise_by: Tensor


class ViewFeed:
    """Batches of ``size`` users, and of as many parts of the items, for R replicas with parts and seeds of their own.

    Every epoch goes once through all users and once through all items, in an order that is a function of seed and
    epoch. ``task`` is the number of the rated task, None if there is none.
    """

    def __init__(self, parts: Sequence[Part], seeds: Sequence[int], size: int, task: int | None) -> None:
        if any(p.encoder.users is None or p.encoder.items is None for p in parts):
            raise ConfigError("whole users and items are scored: name the user and the item column")
        runs = list(zip(parts, seeds, strict=True))
        unique = {(id(part), seed): (part, seed) for part, seed in runs}
        self.sources = list(unique.values())
        self.source_of = [list(unique).index((id(part), seed)) for part, seed in runs]
        self.users, self.items = (len(s or ()) for s in (parts[0].encoder.users, parts[0].encoder.items))
        self.count = max(1, round((self.users - 1) / size))
        self.cells = {id(part): self._cells(part, task) for part in parts}

    def __len__(self) -> int:
        """Steps per epoch."""
        return self.count

    def _cells(self, part: Part, task: int | None) -> tuple[Tensor, Tensor]:
        """``seen`` and ``ratings`` [V, I] of a part; an unknown user or item has no cell, the last label stands."""
        seen, ratings = torch.zeros(self.users, self.items), torch.full((self.users, self.items), torch.nan)
        known = (part.user > 0) & (part.item > 0)
        seen[part.user[known], part.item[known]] = 1.0
        if task is not None:
            rated = known & ~part.labels[:, task].isnan()
            ratings[part.user[rated], part.item[rated]] = part.labels[rated, task]
        return seen, ratings

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Views]:
        """The batches of ``epoch``, from step ``start`` on."""
        orders = [self._orders(seed, epoch) for _, seed in self.sources]
        for step in range(start, self.count):
            found = [
                self._batch(part, users[step], items[step], rng.generator(seed, "views", epoch, step))
                for (part, seed), (users, items) in zip(self.sources, orders, strict=True)
            ]
            yield Views(*(torch.stack([found[s][n] for s in self.source_of]) for n in range(len(Views._fields))))

    def _orders(self, seed: int, epoch: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        random = rng.generator(seed, "order", epoch)
        users, items = (random.permutation(n - 1) + 1 for n in (self.users, self.items))
        return np.array_split(users, self.count), np.array_split(items, self.count)

    def _batch(self, part: Part, user: np.ndarray, item: np.ndarray, random: np.random.Generator) -> Views:
        seen, ratings = self.cells[id(part)]
        users, items = torch.from_numpy(user), torch.from_numpy(item)
        mine, theirs = (len(user), self.items), (len(item), self.users)
        noise = (torch.from_numpy(random.random(s, dtype=np.float32)) for s in (mine, mine, theirs))
        by = seen[:, items].T.contiguous(), ratings[:, items].T.contiguous()
        return Views(users, items, seen[users], ratings[users], *by, *noise)
