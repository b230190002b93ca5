"""A user's earlier items: for every row those before it, for every user those known so far.

A row's history comes from the parts known when it happens (train for train and valid; train and valid for test),
strictly before the row's own time: rows of the same second are its contemporaries, not its past. Without times a
history is a set: every known item of the user but the row's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polytask.data.encode import Catalogue
from polytask.schema import Input


@dataclass(frozen=True, eq=False)
class Log:
    """Known interactions of users, sorted by user and then by time: ``user``, ``item`` and ``time`` [K] (or none)."""

    user: Tensor
    item: Tensor
    time: Tensor | None

    @classmethod
    def of(cls, user: Tensor, item: Tensor, time: Tensor | None) -> "Log":
        """Sort interactions [K]; those of an unknown user or item are left out."""
        known = ((user > 0) & (item > 0)).nonzero().squeeze(dim=1)
        keys = [user[known].numpy()] if time is None else [time[known].numpy(), user[known].numpy()]
        order = known[torch.from_numpy(np.lexsort(keys))]
        return cls(user[order], item[order], None if time is None else time[order])

    def span(self, user: Tensor) -> tuple[Tensor, Tensor]:
        """First and one past the last place [N] of each ``user`` [N]."""
        user = user.contiguous()  # one user repeated is a view that the search warns about
        return torch.searchsorted(self.user, user), torch.searchsorted(self.user, user, right=True)

    def before(self, user: Tensor, time: Tensor) -> Tensor:
        """One past the place [N] of the last interaction of ``user`` [N] strictly before ``time`` [N]."""
        assert self.time is not None
        # all moments in one order: by user, then time, a question ahead of what happened at that moment
        users, times = torch.cat([user, self.user]).numpy(), torch.cat([time, self.time]).numpy()
        happened = np.arange(len(users)) >= len(user)
        order = np.lexsort((happened, times, users))
        passed = np.cumsum(happened[order])
        places = np.empty(len(users), dtype=np.int64)
        places[order] = passed
        return torch.from_numpy(places[: len(user)])


@dataclass(frozen=True, eq=False)
class Histories:
    """The histories of one part's rows and users, in the slots of the history ``inputs``, oldest first.

    ``start`` and ``end`` [N] bound each row's items in ``log``; ``item`` [N] is the row's own. ``rows_of`` [I] maps
    an item to its embedding row.
    """

    inputs: tuple[Input, ...]
    log: Log
    start: Tensor
    end: Tensor
    item: Tensor
    rows_of: Tensor

    @classmethod
    def of(cls, inputs: Sequence[Input], log: Log, rows: Log, rows_of: Tensor) -> "Histories":
        """Histories of the part whose unsorted users, items and times are ``rows``, from the known ``log``."""
        start, end = log.span(rows.user)
        if log.time is not None and rows.time is not None:
            end = log.before(rows.user, rows.time).maximum(start)
        return cls(tuple(inputs), log, start, end, rows.item, rows_of)

    def of_rows(self, rows: Tensor) -> Catalogue:
        """Slots [M, S] of the rows [M]."""
        return self._slots(self.start[rows], self.end[rows], self.item[rows])

    def of_users(self, user: Tensor) -> Catalogue:
        """Slots [M, S] of all that is known of each user [M]."""
        return self._slots(*self.log.span(user), torch.zeros_like(user))

    def _slots(self, start: Tensor, end: Tensor, own: Tensor) -> Catalogue:
        found = Catalogue.empty(len(start))
        for one in self.inputs:
            places = end[:, None] - one.slots + torch.arange(one.slots)
            there = places >= start[:, None]
            items = self.log.item[places.clamp(min=0)] if len(self.log.item) else torch.zeros_like(places)
            if self.log.time is None:
                there = there & (items != own[:, None])
            share = 1.0 if one.pool == "attention" else 1.0 / there.sum(dim=1, keepdim=True).clamp(min=1)
            found = found.beside(Catalogue(torch.where(there, self.rows_of[items], 0), there * share))
        return found
