"""The bundle: what a trained model ships as, and what answers for raw ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np
import polars as pl

from polytask.bundle.contents import Contents, check_golden, read, write
from polytask.bundle.facts import Trained
from polytask.bundle.making import contents_of, golden_rows, index_of
from polytask.bundle.search import Finder
from polytask.errors import ConfigError, DataError, did_you_mean, visible
from polytask.files import require_replaceable
from polytask.intact import refusing
from polytask.recommend import rows
from polytask.recommend.index import FACTS, Index
from polytask.recommend.mix import Mix
from polytask.recommend.query import MOST, Options, Query
from polytask.recommend.recommender import Recommender
from polytask.recommend.scorer import Scorer
from polytask.schema import Schema


@dataclass(frozen=True, eq=False)
class Bundle:
    """A model that answers for raw ids, from the folder it was loaded from.

    ``version`` is the same for the same files and no other. Frames come in with the columns of the training data, and
    go out with the ids under their own names.
    """

    folder: Path
    version: str
    contents: Contents

    @classmethod
    def save(
        cls,
        path: str | Path,
        run: Trained,
        *,
        mix: str | Mapping[str, float] | None = None,
        report: str | Path | Mapping[str, Any] | None = None,
        toml: str = "",
    ) -> Path:
        """Write the bundle of a finished ``run`` to ``path``, and return it; an earlier one there is replaced.

        ``mix`` fuses the tasks into the score that orders items (:class:`polytask.recommend.mix.Mix`); by default the
        ranking task alone; without one the mix that :func:`polytask.recommend.weights.search` chooses on validation
        data, or without such the first task. ``report`` is the report.json of the comparison the run is from, whose
        verdicts go along. A run without its model or data in memory is a :class:`ConfigError`.
        """
        if run.model is None or "train" not in run.sources:
            raise ConfigError(f"run '{run.name}' has no model in memory; bundle it with 'polytask bundle RUN'")
        require_replaceable(Path(path))
        training = run.model.training
        run.model.eval()
        try:
            contents = contents_of(run, mix, report, toml)
            whole = cls(Path(path), "", contents)
            golden = golden_rows(run.sources["train"], contents.tasks, whole.score)
            near = index_of(whole.scorer)
        finally:
            run.model.train(training)
        write(Path(path), replace(contents, golden=golden, near=near))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read and verify the bundle at ``path``: hashes, shapes, finiteness, and its golden rows.

        Anything amiss is a :class:`StateError` that says what, and nothing is loaded.
        """
        contents, version = read(Path(path))
        bundle = cls(Path(path), version, contents)
        with refusing(Path(path)):
            check_golden(Path(path), contents, bundle.score)
            _ = bundle.recommender  # reads the mix and the index, too
        return bundle

    @property
    def name(self) -> str:
        """The name of the run it was made from."""
        return str(self.contents.facts["name"])

    @property
    def schema(self) -> Schema:
        """Fields and tasks."""
        return self.contents.encoder.schema

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks it predicts."""
        return self.contents.tasks

    @property
    def mix(self) -> Mix:
        """The mix that orders items where none is given."""
        return self.recommender.mix

    @cached_property
    def scorer(self) -> Scorer:
        """Predictions by index."""
        c = self.contents
        by = c.by if any(t.by for t in self.schema.tasks) else None
        return Scorer(c.model, c.encoder, c.tasks, calibration=c.calibration, log=c.seen.log(), by=by)

    @cached_property
    def recommender(self) -> Recommender:
        """Lists by index."""
        c = self.contents
        near = None
        if (self.folder / FACTS).is_file():
            near = Index.load(self.folder, self.scorer.item_vectors(self.scorer.dot[0]))
        return Recommender(self.scorer, c.seen, Mix.parse(c.facts["mix"], c.tasks), c.tables.get("item"), near)

    def score(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Predict for raw rows: their ids, and a Float32 column per task (``task/NAME`` if an id has that name).

        Columns as in the training data; those that are missing are unknown. Unknown users and items are judged by
        their features, where the rows have such columns.
        """
        encoder = self.contents.encoder
        user, item = rows.indices(encoder, frame, "user"), rows.indices(encoder, frame, "item")
        person = self.scorer.users(user, rows.catalogue(encoder, frame, "user", user), own=item)
        by = rows.further(encoder, frame, self.contents.by[item] if len(self.contents.by) else None)
        values = self.scorer.values(
            person, rows.catalogue(encoder, frame, "item", item), rows.context(encoder, frame), by
        )
        ids = [frame[n] for n in (self.schema.user, self.schema.item) if n and n in frame.columns]
        return pl.DataFrame([*ids, *self._values(values.numpy().T, ())])

    def recommend(
        self,
        user: str | None = None,
        k: int = 10,
        *,
        users: Sequence[str] | None = None,
        mix: str | Mapping[str, float] | None = None,
        **options: Unpack[Options],
    ) -> pl.DataFrame:
        """The ``k`` best items of a ``user``, of several ``users``, or of nobody in particular; best first.

        Columns: user, item, ``score`` (of the mix), ``rank`` from 1, and what each task predicts. The options
        ``exclude_seen``, ``candidates``, ``exclude``, ``context``, ``history``, ``diversity`` and ``caps`` are those of
        :class:`polytask.recommend.query.Query`.
        """
        self._require_items()
        wanted = None if mix is None else Mix.parse(mix, self.tasks)
        query = Query.of(None if user is None else str(user), k, wanted, options)
        asked = [query.user] if users is None else [str(u) for u in users]
        return pl.concat([self._list(replace(query, user=u)) for u in asked]) if asked else self._list(query).clear()

    def similar(self, item: str, k: int = 10) -> pl.DataFrame:
        """The ``k`` items nearest to ``item`` by the cosine of their vectors, with their ``score`` and ``rank``."""
        self._require_items()
        at = self.item(item)
        found, scores = self.recommender.similar(at, Query(k=k).k)
        return pl.DataFrame([self._ids("item", found), pl.Series("score", scores), _ranks(len(found))])

    def explain(
        self,
        user: str | None,
        item: str,
        *,
        mix: str | Mapping[str, float] | None = None,
        context: Mapping[str, str | float | None] | None = None,
    ) -> dict[str, Any]:
        """Why ``item`` stands where it does for ``user``: each task's prediction, and its part of the fused score."""
        self._require_items()
        chosen = None if mix is None else Mix.parse(mix, self.tasks)
        query = Query(user=None if user is None else str(user), mix=chosen, context=context or {})
        return self.recommender.explain(query, self.item(item))

    def search(self, side: str, text: str = "", limit: int = 20) -> pl.DataFrame:
        """Users or items whose id or table holds ``text``, small or capital, as rows of the table.

        The id itself comes first, then ids that start so, items by popularity; without text the first of them all. A
        ``side`` that is not user or item, and a ``limit`` that is not from 1 to 100, are a :class:`ConfigError`.
        """
        if side not in self._finders:
            raise ConfigError(did_you_mean("side", side, self._finders))
        return self._finders[side].find(text, limit)

    def history(self, user: str, limit: int = 50) -> pl.DataFrame:
        """What a ``user`` had, newest first where times are known, as a column of items."""
        self._require_items()
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MOST:
            raise ConfigError(f"limit = {limit} must be a whole number from 1 to {MOST}")
        if not (at := self.recommender.user_index(str(user))):
            raise DataError(f"user '{_short(user)}' is unknown; users are those of the data the model was trained on")
        return pl.DataFrame([self._ids("item", self.contents.seen.items(at)[::-1][:limit])])

    def item(self, item: str) -> int:
        """The index of a known item; an unknown one is a :class:`DataError`."""
        if not (found := self.recommender.item_index(str(item))):
            raise DataError(f"item '{_short(item)}' is unknown; items are those of the data the model was trained on")
        return found

    @cached_property
    def _finders(self) -> dict[str, Finder]:
        """What searches each side there is."""
        c, named = self.contents, {"user": self.schema.user, "item": self.schema.item}
        popularity = {"item": c.popularity[1:].numpy()}
        return {
            side: Finder.of(c.encoder.vocabularies[name], c.tables.get(side), popularity.get(side))
            for side, name in named.items()
            if name is not None
        }

    def _list(self, query: Query) -> pl.DataFrame:
        found = self.recommender.top(query)
        user = pl.Series(str(self.schema.user), [query.user] * len(found.items), dtype=pl.String)
        columns = [user, self._ids("item", found.items), pl.Series("score", found.scores), _ranks(len(found.items))]
        return pl.DataFrame([*columns, *self._values(found.values, ("score", "rank"))])

    def _values(self, values: np.ndarray, others: Sequence[str]) -> list[pl.Series]:
        """A column per task of predictions [T, N]; that of a task called as another column is ``task/NAME``."""
        taken = (self.schema.user, self.schema.item, *others)
        return [pl.Series(f"task/{t}" if t in taken else t, values[n]) for n, t in enumerate(self.tasks)]

    def _ids(self, side: str, index: np.ndarray) -> pl.Series:
        name = str(self.schema.user if side == "user" else self.schema.item)
        return self.contents.encoder.vocabularies[name].gather(index - 1).rename(name)

    def _require_items(self) -> None:
        if self.schema.item is None or self.schema.user is None:
            raise ConfigError("this model knows no users and items, so it has nothing to list; use score(rows)")


def _short(name: str) -> str:
    return visible(str(name)[:80])


def _ranks(count: int) -> pl.Series:
    return pl.Series("rank", np.arange(1, count + 1))
