"""A bundle made ready to answer: what every request reads and none changes."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from polytask.bundle import Bundle
from polytask.bundle.card import card
from polytask.bundle.contents import FORMAT
from polytask.recommend.mix import Mix
from polytask.recommend.query import MOST, Query
from polytask.schema import Side
from polytask.serve.reply import dump
from polytask.serve.settings import Limits

_MIXES = 256  # parsed mixes kept
_CHUNK = 16  # users predicted between two looks at the clock


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A loaded ``bundle`` and its ``version``; ``items`` [I + 1] are raw ids by index, the unknown one's empty."""

    bundle: Bundle
    version: str
    items: Sequence[str]
    _mixes: dict[str, Mix] = field(default_factory=dict)

    @classmethod
    def of(cls, bundle: Bundle) -> "Snapshot":
        """The snapshot of a loaded bundle."""
        known = bundle.contents.encoder.vocabularies.get(str(bundle.schema.item))
        return cls(bundle, bundle.version, ["", *([] if known is None else known.to_list())])

    @classmethod
    def load(cls, path: Path, limits: Limits) -> "Snapshot":
        """Read the bundle that ``path`` points to now, verified, and warm it up."""
        found = cls.of(Bundle.load(path.resolve()))
        found.warm(limits.warm)
        return found

    def warm(self, seconds: float) -> None:
        """Answer somebody unknown and somebody new, then predict for known users, for ``seconds`` at most."""
        if not self.listing:
            return
        lists, until = self.bundle.recommender, time.monotonic() + seconds
        lists.top(Query())
        lists.top(Query(history=tuple(self.items[1:2])))  # learns how to fold in
        users = len(self.bundle.contents.encoder.users or [None])
        for start in range(1, users, _CHUNK):
            if time.monotonic() > until:
                return
            lists.warm(range(start, min(start + _CHUNK, users)))

    @property
    def listing(self) -> bool:
        """Whether there are users and items, so that lists can be made."""
        return self.bundle.schema.user is not None and self.bundle.schema.item is not None

    @cached_property
    def model(self) -> bytes:
        """The answer to what this model is."""
        return dump({"model_version": self.version, "format": FORMAT} | about(self.bundle.contents.facts))

    def mix(self, source: str | Mapping[str, float] | None) -> Mix | None:
        """The mix that a request names, None for the bundle's own."""
        if source is None:
            return None
        if not isinstance(source, str):
            return Mix.parse(source, self.bundle.tasks)
        if (found := self._mixes.get(source)) is None:
            found = Mix.parse(source, self.bundle.tasks)
            if len(self._mixes) >= _MIXES:
                self._mixes.clear()
            self._mixes[source] = found
        return found

    def display(self, side: Side, ids: Sequence[str]) -> list[dict[str, str | None]]:
        """What is known of users or items besides their ids, as texts by column; empty for an unknown id."""
        table, rows = self._tables.get(side), self._rows.get(side, {})
        if table is None:
            return [{} for _ in ids]
        places = [rows.get(one) for one in ids]
        found = iter(table[[p for p in places if p is not None]].to_dicts())
        return [{} if p is None else next(found) for p in places]

    @cached_property
    def _tables(self) -> dict[str, pl.DataFrame]:
        return {s: t.drop(self._id(s)).cast(pl.String) for s, t in self.bundle.contents.tables.items()}

    @cached_property
    def _rows(self) -> dict[str, dict[str, int]]:
        tables = self.bundle.contents.tables
        return {s: {str(one): n for n, one in enumerate(t[self._id(s)])} for s, t in tables.items()}

    def _id(self, side: str) -> str:
        return str(self.bundle.schema.user if side == "user" else self.bundle.schema.item)


def about(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a bundle says of itself, as it is told over HTTP."""
    shown = ("name", "created", "user", "item", "mix", "counts", "verdicts", "display", "context")
    kept = ("name", "kind", "range", "calibrated", "metrics")
    return {
        **{name: facts[name] for name in shown},
        "tasks": [{name: task[name] for name in kept} for task in facts["tasks"]],
        "mix_points": facts.get("mix_points", []),
        "mix_metrics": facts.get("mix_metrics", {}),
        "card": card(facts),
        "limits": {"k": MOST, "items": MOST, "rows": MOST},
    }
