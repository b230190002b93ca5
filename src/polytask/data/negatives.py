"""Items a user did not choose, drawn to stand against each item they did.

``uniform`` and ``popularity`` never draw an item the user has in train; held-out positives may be drawn,
since leaving them out would leak them. ``mixed`` draws each with equal chance from either. ``in_batch`` takes the
items of other rows of the batch, which are popular in proportion to their rows; those the user has are drawn as
well. ``uniform_all`` draws over the whole catalogue, the user's own items included, as the published exercise does.
Hard negatives are a choice among drawn ones, made by the loss (its option ``hard``), which knows the scores.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from polytask.data.pairs import Pairs
from polytask.errors import ConfigError, DataError, did_you_mean

_ROUNDS = 20
_POWER = 0.75  # popularity is flattened by this power (Mikolov et al., 2013)


@dataclass(frozen=True)
class Kind:
    """A way to draw: the share in proportion to popularity, and whether the user's training items are avoided.

    ``batch``: from the rows of the batch instead of the catalogue.
    """

    popular: float
    unseen: bool
    batch: bool = False


NEGATIVES: dict[str, Kind] = {
    "uniform": Kind(popular=0.0, unseen=True),
    "popularity": Kind(popular=1.0, unseen=True),
    "mixed": Kind(popular=0.5, unseen=True),
    "in_batch": Kind(popular=0.0, unseen=False, batch=True),
    "uniform_all": Kind(popular=0.0, unseen=False),
}


class Sampler:
    """Draws negatives of one ``kind``, given the training ``pairs`` of ``users`` users and item ``popularity`` [I]."""

    def __init__(self, kind: str, pairs: Pairs, users: int, popularity: Tensor) -> None:
        if kind not in NEGATIVES:
            raise ConfigError(did_you_mean("negatives", kind, NEGATIVES))
        self.kind, self.pairs, self.items = NEGATIVES[kind], pairs, len(popularity)
        self.seen = pairs.contains(users, self.items) if self.kind.unseen else None
        ends = np.cumsum(popularity.double().numpy() ** _POWER)
        self.ends = (
            ends / ends[-1] if self.kind.popular else ends[:0]
        )  # the last end is 1 exactly, which no draw reaches

    def draw(self, users: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
        """Items [N, count] int64: ``count`` negatives for each of ``users`` [N]."""
        wanted = np.repeat(users, count)
        items = self._any(len(wanted), random)
        if self.seen is not None:
            self._redraw_seen(wanted, items, random)
        return items.reshape(len(users), count)

    def _any(self, count: int, random: np.random.Generator) -> np.ndarray:
        if not self.kind.popular:
            return random.integers(1, self.items, count)
        popular = np.searchsorted(self.ends, random.random(count), side="right")
        if self.kind.popular == 1.0:
            return popular
        return np.where(random.random(count) < self.kind.popular, popular, random.integers(1, self.items, count))

    def draw_in_batch(self, items: np.ndarray, count: int, size: int, random: np.random.Generator) -> np.ndarray:
        """Items [N, count] int64: for each row of ``items`` [N] those of ``count`` of the ``size`` rows that follow it.

        They are the batch's rows but at its end, where those of the next come in: a last batch of one row has
        negatives too. The first rows follow the last.
        """
        if len(items) < 2:
            raise DataError("negatives = 'in_batch' needs two training rows or more")
        step = random.integers(1, min(max(size, 2), len(items)), (len(items), count))
        return np.take(items, (np.arange(len(items))[:, None] + step) % len(items))

    def _redraw_seen(self, users: np.ndarray, items: np.ndarray, random: np.random.Generator) -> None:
        """Redraw collisions; the few left after some rounds are drawn from the unseen items directly."""
        assert self.seen is not None
        again = np.flatnonzero(self.seen(users, items))
        for _ in range(_ROUNDS):
            if not len(again):
                return
            items[again] = self._any(len(again), random)
            again = again[self.seen(users[again], items[again])]
        for row in again:
            items[row] = random.choice(self._unseen_items(int(users[row])))

    def _unseen_items(self, user: int) -> np.ndarray:
        own = self.pairs.item[self.pairs.user == user].numpy()
        if not len(rest := np.setdiff1d(np.arange(1, self.items), own)):
            raise DataError("a user has interacted with every item, so no negative exists: leave such users out")
        return rest
