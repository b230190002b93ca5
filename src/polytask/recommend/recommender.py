"""Answers questions for recommendations: scores, mixes, filters, ranks."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import polars as pl
import torch

from polytask.data.encode import Catalogue
from polytask.errors import ConfigError, DataError, did_you_mean
from polytask.recommend import rows
from polytask.recommend.cold import FoldIn
from polytask.recommend.diversity import cosine, mmr
from polytask.recommend.index import Index
from polytask.recommend.lists import top
from polytask.recommend.mix import Mix
from polytask.recommend.query import Query, Top
from polytask.recommend.scorer import Person, Scorer
from polytask.recommend.seen import Seen
from polytask.schema import Schema

_CACHE = 1 << 28  # bytes of predictions kept for users who come back
_NEAREST = 500  # items of a large catalogue that the whole model judges
_LONGER = 10  # times k: the list that diversity and caps choose from
_SHORTEST = 200
_LABELS = {"ranking": "rank score", "regression": "value", "binary": "probability"}


@dataclass(frozen=True, eq=False)
class Recommender:
    """The lists of a bundle: ``scorer`` predicts, ``seen`` is left out, ``mix`` fuses the tasks by default.

    ``items`` is the raw table of items, whose columns caps may name. ``near`` finds the items to judge in a large
    catalogue, by the first task with vectors. A user's predictions for the whole catalogue are
    kept while memory for them lasts; they are a function of the bundle alone, so every answer is as if it were the
    first.
    """

    scorer: Scorer
    seen: Seen
    mix: Mix
    items: pl.DataFrame | None = None
    near: Index | None = None
    cache: int = _CACHE

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rows", Rows(self.cache))

    @property
    def schema(self) -> Schema:
        """Fields and tasks."""
        return self.scorer.encoder.schema

    def top(self, query: Query) -> Top:
        """The answer to one question; an unknown field, task or column in it is a :class:`ConfigError`."""
        user, mix = self.user_index(query.user), query.mix or self.mix
        items, values = self._pool(user, query)
        fused = mix(mix.inputs(values, self.scorer.tasks, self.schema))
        varied = bool(query.diversity or query.caps)
        wanted = max(_SHORTEST, _LONGER * query.k) if varied else query.k
        if items is None:
            candidates = None if query.candidates is None else self.item_indices(query.candidates)
            found = top(fused, wanted, excluded=self._left_out(user, query), candidates=candidates)
            items = np.arange(len(fused))
        else:
            found = top(np.append(-np.inf, fused), wanted) - 1
        if varied:
            found = found[self._varied(items[found], fused[found], query)]
        return Top(items[found], fused[found], values[:, found], user == 0)

    def _pool(self, user: int, query: Query) -> tuple[np.ndarray | None, np.ndarray]:
        """Items [n] to choose from (None: the whole catalogue) and the predictions [T, n] for them.

        Of a large catalogue only those that are asked for, or the best by vectors, are judged by the whole model.
        """
        if self.near is None:
            return None, self._values(user, query)
        person, excluded = self.person(user, query.history), self._left_out(user, query)
        if query.candidates is not None:
            items = np.setdiff1d(self.item_indices(query.candidates), excluded)
        else:
            vector = self.scorer.user_vectors(self.scorer.dot[0], person)
            best, _ = self.near.search(vector, max(_NEAREST, _LONGER * query.k), excluded=[excluded])
            items = np.sort(best[0][best[0] > 0].numpy())
        return items, self.scorer.pairs(person, torch.from_numpy(items), self.context(query.context)).T.numpy()

    def _left_out(self, user: int, query: Query) -> np.ndarray:
        """Items [n] that are not to be listed."""
        named = self.item_indices((*query.exclude, *query.history))
        return np.append(self.seen.items(user), named) if query.exclude_seen and user else named

    def explain(self, query: Query, item: int) -> dict[str, Any]:
        """Each task's prediction for one item, its part of the fused score, and the item's rank among all.

        The rank is None where the catalogue is too large to be judged as a whole.
        """
        user, mix, tasks = self.user_index(query.user), query.mix or self.mix, self.scorer.tasks
        person, context = self.person(user, query.history), self.context(query.context)
        raw, values = (
            self.scorer.pairs(person, torch.tensor([item]), context, raw=r)[0].numpy() for r in (True, False)
        )
        own = mix.inputs(values, tasks, self.schema)
        score = float(mix(own))
        predicted = zip(tasks, raw.tolist(), values.tolist(), strict=True)
        return {
            "score": score,
            "mix": mix.text,
            "rank": None if self.near else 1 + self._better(user, query, item),
            "parts": [{"text": text, "part": part} for text, part in mix.parts(own)],
            "tasks": [
                {"task": t, "kind": (k := self.schema.task(t).kind), "label": _LABELS[k], "raw": r, "value": v}
                for t, r, v in predicted
            ],
        }

    def _better(self, user: int, query: Query, item: int) -> int:
        """How many items that may be listed have a higher score than ``item``."""
        mix, excluded = query.mix or self.mix, self._left_out(user, query)
        fused = mix(mix.inputs(self._values(user, query), self.scorer.tasks, self.schema))
        others = np.delete(fused, np.append(excluded[excluded != item], 0))
        return int((others > fused[item]).sum())

    def similar(self, item: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` items [k] whose vectors have the largest cosine with that of ``item``, and the cosines [k]."""
        vectors = self._directions
        scores = (vectors @ vectors[item]).astype(np.float64)
        found = top(scores, k, excluded=np.array([item]), candidates=None)
        return found, scores[found]

    def user_index(self, user: str | None) -> int:
        """The index of a user; 0 for one who is not known."""
        return 0 if user is None else self._users.get(user, 0)

    def item_index(self, item: str) -> int:
        """The index of an item, 0 for one that is not known."""
        return self._items.get(item, 0)

    def item_indices(self, items: Sequence[str]) -> np.ndarray:
        """Indices [<= n] int64 of those of the ``items`` that are known."""
        known = [self._items[i] for i in items if i in self._items]
        return np.array(known, dtype=np.int64)

    def warm(self, users: Sequence[int]) -> None:
        """Predict for ``users`` ahead of their questions, as many as the memory holds."""
        for user in users:
            if self._kept.full:
                return
            self._values(user, Query())

    def cached(self, query: Query) -> bool:
        """Whether the predictions for a question are at hand, so that its answer takes no time to speak of."""
        return not query.context and not query.history and self.user_index(query.user) in self._kept

    def person(self, user: int, history: Sequence[str] = ()) -> Person:
        """A user as the model reads them, who just saw the known items of ``history``."""
        items = self.item_indices(history)
        return self.cold.person(user, items) if len(items) else self.scorer.users(torch.tensor([user]))

    @cached_property
    def cold(self) -> FoldIn:
        """What the model makes of items just seen."""
        return FoldIn(self.scorer, self.seen)

    def context(self, given: Mapping[str, str | float | None]) -> Catalogue | None:
        """Context fields as the model reads them; the others are unknown."""
        if not given:
            return None
        known = [f.name for f in self.schema.inputs if f.side == "context" and f.kind != "history"]
        for name in given:
            if name not in known:
                raise ConfigError("context: " + did_you_mean("field", name, known))
        try:
            return rows.context(self.scorer.encoder, pl.DataFrame({name: [value] for name, value in given.items()}))
        except DataError as error:
            raise DataError(f"context: {error}") from None

    @cached_property
    def _directions(self) -> np.ndarray:
        """Vectors [I + 1, W] float32 of all items, of length 1."""
        vectors: np.ndarray = self.scorer.item_embeddings().numpy()
        found: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return found

    @cached_property
    def _users(self) -> dict[str, int]:
        return _numbered(self.scorer.encoder.vocabularies.get(str(self.schema.user)))

    @cached_property
    def _items(self) -> dict[str, int]:
        return _numbered(self.scorer.encoder.vocabularies.get(str(self.schema.item)))

    @property
    def _kept(self) -> "Rows":
        rows: Rows = self._rows  # type: ignore[attr-defined]
        return rows

    def _values(self, user: int, query: Query) -> np.ndarray:
        """Predictions [T, I + 1] for one question."""
        plain = not query.context and not query.history
        if plain and (found := self._kept.get(user)) is not None:
            return found
        person = self.person(user, query.history)
        values = self.scorer.grid(person, self.context(query.context))[:, 0]
        if plain:
            self._kept.put(user, values)
        return values

    def _varied(self, found: np.ndarray, scores: np.ndarray, query: Query) -> np.ndarray:
        """Positions in a shortlist ``found`` [n], varied and capped."""
        caps = []
        for column, cap in query.caps.items():
            values = self._column(column)
            caps.append(([values[i] for i in found], cap))
        return mmr(scores, cosine(self._directions[found]), query.k, query.diversity, caps)

    def _column(self, name: str) -> list[tuple[str, ...]]:
        """The values of a column of the items' table by index [I + 1]; a bag has several, a missing one none."""
        if name not in self._columns:
            item, table = str(self.schema.item), self.items
            if table is None or name not in table.columns:
                raise ConfigError("caps: " + did_you_mean("column", name, [] if table is None else table.columns))
            ids = pl.DataFrame({item: self.scorer.encoder.vocabularies[item]})
            values = ids.join(table, on=item, how="left", maintain_order="left")[name].cast(pl.String)
            separator = next(
                (f.separator for f in self.schema.fields if f.name == name and f.kind == "categories"), None
            )
            texts = [None, *values.to_list()]
            self._columns[name] = [() if not t else tuple(t.split(separator)) if separator else (t,) for t in texts]
        return self._columns[name]

    @cached_property
    def _columns(self) -> dict[str, list[tuple[str, ...]]]:
        return {}


class Rows:
    """Predictions by user, the least recently used forgotten first once they take ``size`` bytes; safe in threads."""

    def __init__(self, size: int) -> None:
        self.size, self.used = size, 0
        self._found: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = Lock()

    def __contains__(self, user: int) -> bool:
        return user in self._found

    @property
    def full(self) -> bool:
        """Whether the next one would push out another."""
        largest = next(iter(self._found.values())).nbytes if self._found else 0
        return self.used + largest > self.size

    def get(self, user: int) -> np.ndarray | None:
        """The predictions of ``user``, if they are kept."""
        with self._lock:
            if (found := self._found.get(user)) is not None:
                self._found.move_to_end(user)
            return found

    def put(self, user: int, values: np.ndarray) -> None:
        """Keep predictions, unless they alone are larger than all memory for them."""
        values.setflags(write=False)
        with self._lock:
            if values.nbytes > self.size or user in self._found:
                return
            self._found[user] = values
            self.used += values.nbytes
            while self.used > self.size:
                self.used -= self._found.popitem(last=False)[1].nbytes


def _numbered(values: pl.Series | None) -> dict[str, int]:
    return {} if values is None else {v: n for n, v in enumerate(values.to_list(), start=1)}
