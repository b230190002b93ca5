"""Items near a user's vector among many: exact for a catalogue of usual size, an inverted-file index beyond.

Lists of an inverted file are chosen by distance, and a vector's length, which carries an item's popularity, distorts
inner products; so every item gets one more coordinate sqrt(M^2 - |x|^2), M being the largest length, after which all
are equally long and the nearest has the highest product (Bachrach et al., RecSys 2014). The file is that of Jégou et
al. (TPAMI 2011) as in Faiss (Douze et al., 2024), without compression: scores are exact, only the search is not.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polytask import files, rng
from polytask.errors import PolytaskError, StateError
from polytask.recommend.lists import Pairs, rescored, top_vectors

EXACT_BELOW = 200_000
"""Fewer items than this are searched one by one."""

RECALL = 0.97
"""The recall at 100 from which a search of more lists is not worth its time."""

FACTS, _LISTS = "index.json", "index.faiss"
"""In an index's folder: what it is, and where it has some, its lists."""
FILES = (FACTS, _LISTS)
"""Every file of an index."""
_FORMAT, _HEADER = 1, 1 << 10  # bytes of an index file that are neither vectors nor ids
_SLACK = 16  # more than k, so that rounding inside Faiss decides nothing at the end of a list
_POINTS = 39  # items per list below which k-means calls its centers unreliable
_SAMPLED = 64  # items per list that k-means reads
_PROBES = 4  # lists read at least
_USERS, _AT = 500, 100  # users whose best items are sought for the recall, and how many of these


@dataclass(frozen=True)
class IndexFacts:
    """What an index is and how good it was found to be.

    ``lists`` is the number of lists of the inverted file and ``probes`` how many of them a search reads, 0 and 0 for
    an exact index. ``recall`` is the share of the exact ``at`` best items found for ``users`` sampled users, and
    ``seconds`` the time it took to build; ``length`` is that of the longest of the ``items`` vectors, of ``width``.
    """

    items: int
    width: int
    length: float
    lists: int = 0
    probes: int = 0
    recall: float = 1.0
    at: int = _AT
    users: int = 0
    seconds: float = 0.0


class Index:
    """The items with the highest inner products with a user's vector; ``facts`` says how they are found.

    Made by :meth:`build` or :meth:`load`.
    """

    def __init__(self, vectors: Tensor, facts: IndexFacts, lists: Any = None) -> None:
        self.vectors, self.facts, self._lists = vectors, facts, lists

    @classmethod
    @torch.no_grad()
    def build(cls, vectors: Tensor, users: Tensor, *, exact_below: int = EXACT_BELOW, seed: int = 0) -> "Index":
        """An index over items with vectors [I + 1, W] float32, row 0 the unknown item, which is never found.

        From ``exact_below`` items on it is an inverted file that reads as few of its lists (4, 8, 16, ...) as find
        97 % of the 100 best items of users sampled from ``users`` [U, W] by ``seed``. Faiss uses the threads it is
        given (OMP_NUM_THREADS).
        """
        started = time.perf_counter()
        if not bool(torch.isfinite(vectors).all() and torch.isfinite(users).all()):
            raise PolytaskError("index: a vector of an item or a user is not finite; train the model again")
        facts = IndexFacts(len(vectors) - 1, vectors.shape[1], _length(vectors))
        if facts.items < max(exact_below, _POINTS):
            return cls(vectors, facts)
        chosen = rng.generator(seed, "index/users").permutation(len(users))[:_USERS]
        index = cls(vectors, facts, _train(vectors, facts.length, seed))
        index._tune(users[torch.from_numpy(chosen)])
        index.facts = replace(index.facts, seconds=time.perf_counter() - started)
        return index

    def _tune(self, users: Tensor) -> None:
        """Double the number of lists read until they hold enough of the users' exact best items."""
        exact, probes, recall = top_vectors(users, self.vectors, _AT)[0], _PROBES // 2, 0.0
        while recall < RECALL and probes < self._lists.nlist:
            probes *= 2
            self.facts = replace(self.facts, lists=self._lists.nlist, probes=probes, users=len(users))
            recall = _shared(self.search(users, _AT)[0], exact)
        self.facts = replace(self.facts, recall=recall)

    @torch.no_grad()
    def search(
        self,
        users: Tensor,
        k: int,
        *,
        excluded: Sequence[np.ndarray] | None = None,
        candidates: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The k best items for users [U, W]: items [U, k] int64 and their inner products [U, k] float32, best first.

        ``excluded`` [U] names the items [E] left out for each user; where no item is left stand -1 and -inf. Among
        ``candidates`` [C] the search is exact, as it is for a user for whom the lists read hold too few items.
        """
        left_out = [np.zeros(0, np.int64)] * len(users) if excluded is None else excluded
        if self._lists is None or candidates is not None:
            return top_vectors(users, self.vectors, k, excluded=_pairs(left_out), candidates=candidates)
        near = torch.full((len(users), min(k + _SLACK, self.facts.items)), -1)
        for row, query in enumerate(_queries(users, self.facts.length)):
            near[row] = self._near(query, near.shape[1], left_out[row])
        found, scores = rescored(users, self.vectors, near, k)
        for row in (found[:, -1] < 0).nonzero()[:, 0].tolist():
            one, pairs = slice(row, row + 1), _pairs(left_out[row : row + 1])
            found[one], scores[one] = top_vectors(users[one], self.vectors, k, excluded=pairs)
        return found, scores

    def _near(self, query: np.ndarray, width: int, excluded: np.ndarray) -> Tensor:
        """Items [width] of the lists nearest to a query [W + 1], -1 where they hold too few."""
        faiss = _faiss()
        options = faiss.SearchParametersIVF(nprobe=self.facts.probes)
        if len(excluded):
            options = faiss.SearchParametersIVF(
                nprobe=self.facts.probes, sel=faiss.IDSelectorNot(faiss.IDSelectorBatch(excluded.astype(np.int64)))
            )
        _, items = self._lists.search(query[None], width, params=options)
        return torch.from_numpy(items[0])

    def recall(self, users: Tensor, k: int = _AT) -> float:
        """Share of the exact k best items of users [U, W] that :meth:`search` finds."""
        return _shared(self.search(users, k)[0], top_vectors(users, self.vectors, k)[0])

    def save(self, folder: Path) -> None:
        """Write ``index.json`` and, for an inverted file, ``index.faiss``; the vectors belong to the model."""
        if self._lists is not None:
            files.write_with(folder / _LISTS, lambda path: _write(self._lists, path))
        files.write_json(folder / FACTS, {"format": _FORMAT, **asdict(self.facts)})

    @classmethod
    def load(cls, folder: Path, vectors: Tensor) -> "Index":
        """The index in ``folder``, whose files were verified, over the vectors [I + 1, W] it was built for.

        A :class:`StateError` names a file that is damaged, or was built for other vectors.
        """
        facts = _read_facts(folder / FACTS)
        own = (len(vectors) - 1, vectors.shape[1], _length(vectors))
        if own[:2] != (facts.items, facts.width) or not np.isclose(own[2], facts.length, rtol=1e-4, atol=0):
            raise StateError(f"{folder / FACTS} is the index of another model: build it again")
        return cls(vectors, facts, _read_lists(folder / _LISTS, facts) if facts.lists else None)


def _train(vectors: Tensor, length: float, seed: int) -> Any:
    """A Faiss index of lists around centers of the lengthened vectors, an item's id being its index."""
    faiss, count = _faiss(), len(vectors) - 1
    # 2 sqrt(I) lists found as much as 4 sqrt(I) in two thirds of the time, and were trained in a quarter of it
    number = min(round(2 * count**0.5), count // _POINTS)
    rest = (length**2 - vectors[1:].square().sum(dim=1, keepdim=True)).clamp(min=0).sqrt()
    table = torch.cat([vectors[1:], rest], dim=1).numpy()
    lists = faiss.IndexIVFFlat(faiss.IndexFlatL2(table.shape[1]), table.shape[1], number, faiss.METRIC_L2)
    lists.cp.max_points_per_centroid = _SAMPLED
    lists.cp.seed = int(rng.generator(seed, "index/lists").integers(1 << 31))
    lists.train(table)
    lists.add_with_ids(table, np.arange(1, count + 1))
    return lists


def _length(vectors: Tensor) -> float:
    """The largest length of item vectors [I + 1, W]."""
    return float(vectors[1:].norm(dim=1).max()) if len(vectors) > 1 else 0.0


def _queries(users: Tensor, length: float) -> np.ndarray:
    """Queries [U, W + 1] of users [U, W]: their directions, at the items' length, where the fewest lists suffice.

    A user's zeros give NaN, to which Faiss finds nothing near, so that their list is the exact one.
    """
    scale = length / users.norm(dim=1, keepdim=True)
    queries: np.ndarray = torch.nn.functional.pad(users * scale, (0, 1)).numpy()
    return queries


def _pairs(excluded: Sequence[np.ndarray]) -> Pairs:
    rows = np.repeat(np.arange(len(excluded)), [len(own) for own in excluded])
    return torch.from_numpy(rows), torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *excluded]))


def _shared(found: Tensor, exact: Tensor) -> float:
    """Share of the items of ``exact`` [U, k] that are in the same row of ``found`` [U, k]."""
    real = exact >= 0
    same = (exact[:, :, None] == found[:, None, :]).any(dim=2) & real
    return int(same.sum()) / int(real.sum())


def _write(lists: Any, path: Path) -> None:
    try:
        _faiss().write_index(lists, str(path))
    except RuntimeError as error:
        raise OSError(str(error).splitlines()[0]) from None


def _read_facts(path: Path) -> IndexFacts:
    try:
        raw = json.loads(path.read_text("utf-8"))
        version, facts = raw.pop("format"), IndexFacts(**raw)
        if not all(isinstance(v, int | float) and v >= 0 for v in raw.values()):
            raise ValueError
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        raise StateError(f"{path} is damaged: build the index again") from None
    if version != _FORMAT:
        raise StateError(f"{path} has format {version}, this version reads {_FORMAT}: build the index again")
    return facts


def _read_lists(path: Path, facts: IndexFacts) -> Any:
    """The Faiss index of a file whose size is that of the lists it should hold, and which holds them."""
    faiss, wide = _faiss(), 4 * (facts.width + 1) + 8
    try:
        size = path.stat().st_size - wide * (facts.items + facts.lists)
        lists = faiss.read_index(str(path)) if 0 <= size < _HEADER else None
    except (OSError, RuntimeError, MemoryError):
        lists = None
    expected = {"d": facts.width + 1, "ntotal": facts.items, "nlist": facts.lists, "metric_type": faiss.METRIC_L2}
    if not isinstance(lists, faiss.IndexIVFFlat) or any(getattr(lists, n) != v for n, v in expected.items()):
        raise StateError(f"{path} does not hold the index that {FACTS} describes: build it again")
    return lists


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise PolytaskError('a large index needs faiss: pip install "polytask[index]"') from None
    return faiss
