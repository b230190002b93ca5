"""One question for recommendations, checked; and its answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, NamedTuple, Self, TypedDict

import numpy as np

from polytask.errors import ConfigError, DataError, did_you_mean, visible
from polytask.recommend.mix import Mix

MOST = 1000
"""The most items that may be asked for, or named in one list."""


Context = Mapping[str, str | float | None]


class Options(TypedDict, total=False):
    """What a :class:`Query` may say beside user, number and mix."""

    exclude_seen: bool
    candidates: Sequence[str] | None
    exclude: Sequence[str]
    context: Context
    history: Sequence[str]
    diversity: float
    caps: Mapping[str, int]


@dataclass(frozen=True)
class Query:
    """The ``k`` best items by ``mix`` (None: the bundle's) for a ``user``, or for nobody in particular.

    What the user had is left out unless ``exclude_seen`` is off, as are the items ``exclude``; with ``candidates``
    only these are ranked. ``history`` are items just seen, for a user the model does not know, or beside what it
    knows. ``context`` holds context fields by name. ``diversity`` in 0..1 trades score for variety; ``caps`` bound by
    column of the items' table how many items may share a value.
    """

    user: str | None = None
    k: int = 10
    mix: Mix | None = None
    exclude_seen: bool = True
    candidates: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    context: Context = field(default_factory=dict)
    history: tuple[str, ...] = ()
    diversity: float = 0.0
    caps: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, user: str | None, k: int, mix: Mix | None, options: Options) -> Self:
        """A question from loose options; an unknown one is a :class:`ConfigError`."""
        for name in options:
            if name not in Options.__annotations__:
                raise ConfigError("recommend: " + did_you_mean("option", name, Options.__annotations__))
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        given |= {n: tuple(map(str, given[n])) for n in ("candidates", "exclude", "history") if n in given}
        return cls(user, k, mix, **given)

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or not 1 <= self.k <= MOST:
            raise ConfigError(f"k = {self.k} must be a whole number from 1 to {MOST}")
        if not isfinite(self.diversity) or not 0 <= self.diversity <= 1:
            raise ConfigError(f"diversity = {self.diversity} must be from 0 to 1")
        for name, items in (("candidates", self.candidates), ("exclude", self.exclude), ("history", self.history)):
            _check_ids(name, items or ())
        if self.user is not None:
            check_text("user", self.user)
        for field_name, value in self.context.items():
            check_text("context", field_name)
            if isinstance(value, str):
                check_text(f"context: {field_name}", value)
            elif value is not None and not isfinite(value):
                raise ConfigError(f"context: {field_name} = {value} must be finite")
        for column, cap in self.caps.items():
            if isinstance(cap, bool) or not isinstance(cap, int) or cap < 1:
                raise ConfigError(f"caps: '{column}' = {cap} must be a whole number from 1")


class Top(NamedTuple):
    """An answer: indices ``items`` [n] int64, best first, their ``scores`` [n] and what each task predicts [T, n].

    ``cold`` says that the user is not one the model was trained on.
    """

    items: np.ndarray
    scores: np.ndarray
    values: np.ndarray
    cold: bool


def _check_ids(name: str, items: Sequence[str]) -> None:
    if len(items) > MOST:
        raise ConfigError(f"{name}: {len(items)} items given; at most {MOST} fit in one question")
    if not all(isinstance(i, str) for i in items):
        raise ConfigError(f"{name}: ids are strings")
    for item in items:
        check_text(name, item)


def check_text(what: str, text: str) -> None:
    """Refuse half a character, which JSON and Python can hold and UTF-8 cannot, with a :class:`DataError`."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{what}: '{visible(text[:80])}' holds a lone surrogate, which is no character") from None
