"""A shortlist made varied: items unlike those before them first, and bounds on how many share a value."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence

import numpy as np

Similarity = Callable[[int], np.ndarray]
"""From a position in a shortlist to the similarity [n] of every item of it with that one, at most 1."""

Cap = tuple[Sequence[Collection[str]], int]
"""The values of one column by position, and how many of the chosen may share one; no value, no bound."""


def cosine(vectors: np.ndarray) -> Similarity:
    """Cosine of vectors [n, W]; that of a vector of zeros is 0."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.where(lengths > 0, lengths, 1)
    return lambda position: units @ units[position]


def overlap(values: Sequence[Collection[str]]) -> Similarity:
    """Shared values over all values of both (Jaccard, 1912), for n items; that of items without values is 0."""
    columns = {value: number for number, value in enumerate(dict.fromkeys(v for own in values for v in own))}
    table = np.zeros((len(values), len(columns)), dtype=np.float32)
    for row, own in enumerate(values):
        table[row, [columns[v] for v in own]] = 1
    sizes = table.sum(axis=1)

    def similarity(position: int) -> np.ndarray:
        shared = table @ table[position]
        either: np.ndarray = shared / np.maximum(sizes + sizes[position] - shared, 1)
        return either

    return similarity


def mmr(
    relevance: np.ndarray, similarity: Similarity, k: int, diversity: float, caps: Sequence[Cap] = ()
) -> np.ndarray:
    """Maximal marginal relevance (Carbonell & Goldstein, SIGIR 1998): positions [<= k] int64 of a shortlist [n].

    Each next item has the highest (1 - d) relevance - d max similarity with those chosen, relevance (finite) brought to
    0..1 over the shortlist; the first is the most relevant. Diversity d = 0 is the order by relevance, d = 1 looks at
    nothing else than the similarity. Of equals the earlier position is chosen, and none that breaks a cap.
    """
    order = np.argsort(-relevance, kind="stable")
    if diversity == 0 or k < 1:
        return capped(order, caps, k)
    least, most = relevance.min(initial=np.inf), relevance.max(initial=-np.inf)
    gain = (1 - diversity) * (relevance - least) / (most - least if most > least else 1)
    room, chosen = _Room(len(relevance), caps), list(order[:1])
    nearest = np.full(len(relevance), -np.inf)
    while chosen:
        room.take(last := int(chosen[-1]))
        if len(chosen) == k or not room.open.any():
            break
        nearest = np.maximum(nearest, similarity(last))
        chosen.append(np.where(room.open, gain - diversity * nearest, -np.inf).argmax())
    return np.array(chosen, dtype=np.int64)


def capped(order: np.ndarray, caps: Sequence[Cap], k: int) -> np.ndarray:
    """The first k positions of ``order`` [n], distinct ones, without those that break a cap with the ones before."""
    if not caps:
        return order[: max(k, 0)].astype(np.int64)
    room = _Room(len(caps[0][0]), caps)
    chosen: list[int] = []
    for position in order.tolist():
        if len(chosen) >= k:
            break
        if room.open[position]:
            room.take(position)
            chosen.append(position)
    return np.array(chosen, dtype=np.int64)


class _Room:
    """Which of n items may still be chosen: ``open`` [n]."""

    def __init__(self, size: int, caps: Sequence[Cap]) -> None:
        self.open = np.ones(size, dtype=bool)
        self._caps, self._taken = caps, [Counter[str]() for _ in caps]
        self._holders: list[dict[str, list[int]]] = [defaultdict(list) for _ in caps]
        for holders, (values, _) in zip(self._holders, caps, strict=True):
            for position in range(size):
                for value in values[position]:
                    holders[value].append(position)

    def take(self, position: int) -> None:
        """Choose an item; those that share a value that is now at its cap are no longer open."""
        self.open[position] = False
        for (values, cap), taken, holders in zip(self._caps, self._taken, self._holders, strict=True):
            for value in set(values[position]):
                taken[value] += 1
                if taken[value] == cap:
                    self.open[holders[value]] = False
