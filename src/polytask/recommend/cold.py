"""Fold-in: users the model was not trained on, and known ones with more items, from what they just saw."""

import re
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polytask.data.history import Log
from polytask.nn.model import MultiTask
from polytask.recommend.scorer import Person, Scorer
from polytask.recommend.seen import Seen

_PENALTY = 10.0  # users' worth of evidence that the items of a user say nothing; chosen by bench/cold.py
_FEW = 10.0  # items at which the prediction counts half beside history fields; chosen there too
_MOST = 1 << 16  # users the map is fitted on
_BLOCK = 1 << 10  # users at a time


@dataclass(frozen=True, eq=False)
class FoldIn:
    """What the model makes of items just seen, in whatever way it reads users.

    Embedding rows of the user's id are predicted from the items: r_u = W [n^-1/2 sum_{j in H} q_j ; 1], where q_j are
    the items' embeddings in every table and W, fitted on the known users by ridge regression, serves all tables and
    first-order terms at once (maps from what is known of a user to factors: Gantner et al., ICDM 2010; the pooling:
    Koren, KDD 2008). A known user moves by as much as the prediction does. History fields take the items as the
    newest, and beside them n items move the row by n / (n + ``few``) of the way from the unknown user's: known users
    teach what to add to full slots. A model of whole histories reads the items as items without a rating.
    """

    scorer: Scorer
    seen: Seen
    penalty: float = _PENALTY
    few: float = _FEW

    def person(self, user: int, items: np.ndarray) -> Person:
        """The user (0: unknown) who just saw ``items`` [n] > 0, the newest last."""
        known = self.seen.items(user)
        newest = np.array([*dict.fromkeys(items[::-1].tolist())][::-1], dtype=np.int64)
        had = torch.from_numpy(np.append(known[~np.isin(known, newest)], newest))
        index = torch.tensor([user])
        log = Log(index.repeat(len(had)), had, torch.arange(len(had)).double() if self.seen.timed else None)
        person = self.scorer.users(index, log=log)
        if not isinstance(self.scorer.model, MultiTask):
            return replace(person, had=torch.zeros(1, self.scorer.width).index_fill(1, had, 1.0))
        if not len(had):
            return person
        one = torch.zeros(1, dtype=torch.int64)
        rows = self.predicted(torch.unique(had), one)
        if len(known):
            before = self.predicted(torch.from_numpy(np.unique(known)), one)
            rows = {name: own[person.side.ids[:, 0]] + rows[name] - before[name] for name, own in self._tables.items()}
        return replace(person, rows=rows)

    def predicted(self, items: Tensor, starts: Tensor) -> dict[str, Tensor]:
        """Rows [U, dim], by parameter name, of users who had the items [n], each from one of ``starts`` [U] on.

        A user's items are distinct.
        """
        found = (self._pooled(items, starts) @ self._map).float()
        if any(one.kind == "history" for one in self.scorer.encoder.inputs):
            unknown = torch.cat([own[:1] for own in self._tables.values()], dim=1)
            counts = _counts(items, starts)
            found = torch.lerp(unknown, found, (counts / (counts + self.few)).float())
        widths = [own.shape[1] for own in self._tables.values()]
        return dict(zip(self._tables, torch.split(found, widths, dim=1), strict=True))

    def _pooled(self, items: Tensor, starts: Tensor) -> Tensor:
        """[n^-1/2 sum_{j in H} q_j ; 1] of each user [U, D + 1]; in float64."""
        total = F.embedding_bag(items, self._items, starts, mode="sum")
        return F.pad(total.double() * _counts(items, starts).clamp(min=1).rsqrt(), (0, 1), value=1.0)

    @cached_property
    def _items(self) -> Tensor:
        return self.scorer.item_embeddings()

    @cached_property
    def _tables(self) -> dict[str, Tensor]:
        """All that the model keeps by user id: tables and first-order terms."""
        named = self.scorer.model.named_parameters()
        return {n: p.detach() for n, p in named if re.fullmatch(r"tables\.\d+\.weight|heads\.\d+\.bias\.weight", n)}

    @cached_property
    def _map(self) -> Tensor:
        """W [D + 1, sum of dims], whose penalty counts in users of the mean square of a pooled item."""
        users = np.unique(self.seen.user)
        users = users[np.linspace(0, len(users) - 1, min(_MOST, len(users))).astype(np.int64)]
        width = self._items.shape[1] + 1
        gram = torch.zeros(width, width, dtype=torch.float64)
        product = torch.zeros(width, sum(t.shape[1] for t in self._tables.values()), dtype=torch.float64)
        for block in np.array_split(users, len(users) // _BLOCK + 1):
            pooled, rows = self._evidence(block)
            gram += pooled.T @ pooled
            product += pooled.T @ rows
        penalty = self.penalty * gram.diagonal()[:-1].mean() / max(len(users), 1)
        gram.diagonal()[:-1] += penalty.clamp(min=1e-12)
        gram[-1, -1].clamp_(min=1.0)
        found: Tensor = torch.linalg.solve(gram, product)
        return found

    def _evidence(self, users: np.ndarray) -> tuple[Tensor, Tensor]:
        """Pooled items [U, D + 1] of known users, and their rows in all tables side by side."""
        had = [np.unique(self.seen.items(user)) for user in users.tolist()]
        starts = np.cumsum([0, *map(len, had)])[:-1]
        catalogue = self.scorer.encoder.users
        assert catalogue is not None
        ids = catalogue.ids[torch.from_numpy(users), 0]
        rows = torch.cat([own[ids] for own in self._tables.values()], dim=1).double()
        items = torch.from_numpy(np.concatenate([*had, np.zeros(0, dtype=np.int64)]))
        return self._pooled(items, torch.from_numpy(starts)), rows


def _counts(items: Tensor, starts: Tensor) -> Tensor:
    """Number of items of each user [U, 1] float64."""
    return torch.cat([starts, torch.tensor([len(items)])]).diff()[:, None].double()
