"""Batches of whole users and whole items: all their cells at once, for models that score the catalogue."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from polytask import rng
from polytask.data.batch import Part, distinct_sources
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
        self.sources, self.source_of = distinct_sources(parts, seeds)
        self.users, self.items = (len(s or ()) for s in (parts[0].encoder.users, parts[0].encoder.items))
        self.count = max(1, round((self.users - 1) / size))
        self.task = task

    def __len__(self) -> int:
        """Steps per epoch."""
        return self.count

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
        users, items = torch.from_numpy(user), torch.from_numpy(item)
        mine, theirs = (len(user), self.items), (len(item), self.users)
        noise = (torch.from_numpy(random.random(s, dtype=np.float32)) for s in (mine, mine, theirs))
        label = None if self.task is None else part.labels[:, self.task]
        rows = _cells(part.user, part.item, label, users, (self.users, self.items))
        columns = _cells(part.item, part.user, label, items, (self.items, self.users))
        return Views(users, items, *rows, *columns, *noise)


def _cells(
    own: Tensor, other: Tensor, label: Tensor | None, chosen: Tensor, shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """``seen`` and ``ratings`` [B, W] of the ``chosen`` [B] of shape[0] users (or items) over shape[1] = W items.

    ``own``, ``other`` and ``label`` [N] are the rows. Index 0 has no cell; of several labels of a cell the last stands.
    """
    place = torch.full(shape[:1], -1).index_copy(0, chosen, torch.arange(len(chosen)))[own]
    seen, ratings = torch.zeros(len(chosen), shape[1]), torch.full((len(chosen), shape[1]), torch.nan)
    there = ((place >= 0) & (other > 0)).nonzero()[:, 0]
    seen[place[there], other[there]] = 1.0
    if label is not None:
        rated = there[~label[there].isnan()]
        ratings[place[rated], other[rated]] = label[rated]
    return seen, ratings
