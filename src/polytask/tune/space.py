"""What a search may vary: ranges and choices of dotted keys, checked before anything trains."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, TypeGuard

from polytask.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class TuneConfig:
    """What to search, and how long.

    ``trials`` joint trainings, and as many of single tasks in all, on the split and start of ``seed``; ``together`` of
    each are proposed at once and trained in stacks. ``space`` gives a dotted key its choices, as a list, or its range
    ``{low, high, log}``; empty, it is the learning rate and the task weights but for the first: only ratios matter.
    """

    trials: int = 30
    seed: int = 0
    together: int = 4
    space: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("seed", 0), ("together", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"tune.{name} = {getattr(self, name)} must be at least {least}")


@dataclass(frozen=True)
class Range:
    """Values from ``low`` to ``high``, evenly or on a ``log`` scale; ``whole`` numbers, or any."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"low = {self.low} must be below high = {self.high}, both finite")
        if self.log and self.low <= 0:
            raise ConfigError(f"low = {self.low} must be above 0 on a log scale")

    def value(self, drawn: float) -> Any:
        """The value of a draw."""
        return drawn

    @property
    def examples(self) -> tuple[Any, ...]:
        """Values that must be possible: the ends and one between."""
        between = self.low + (self.high - self.low) / math.pi
        return self.low, round(between) if self.whole else between, self.high


@dataclass(frozen=True)
class Choices:
    """One of several values."""

    examples: tuple[Any, ...]

    def value(self, drawn: float) -> Any:
        """The value of a draw, which is its number."""
        return self.examples[int(drawn)]


class Space(dict[str, Range | Choices]):
    """Dotted keys and what each may be."""

    def overrides(self, drawn: Mapping[str, float]) -> dict[str, Any]:
        """The values of a draw by dotted key; a table that was chosen for a section sets each of its keys."""
        found: dict[str, Any] = {}
        for key, number in drawn.items():
            found |= _spread(key, self[key].value(number))
        return found

    def without(self, *prefixes: str) -> "Space":
        """The keys that begin with none of ``prefixes``."""
        return Space({k: v for k, v in self.items() if not f"{k}.".startswith(prefixes)})

    def examples(self) -> Iterator[dict[str, Any]]:
        """Overrides that must be possible: each key's examples by themselves, and all choices that shape the model."""
        for key, place in self.items():
            yield from (_spread(key, value) for value in place.examples)
        model = {k: p.examples for k, p in self.items() if f"{k}.".startswith("model.") and isinstance(p, Choices)}
        for values in product(*model.values()):
            yield {k: v for key, value in zip(model, values, strict=True) for k, v in _spread(key, value).items()}


def parse_space(given: Mapping[str, Any]) -> Space:
    """The space written in ``[tune.space]``: keys whole in quotes, or nested tables."""
    return Space({key: _place(key, value) for key, value in _flat(given)})


def default_space(weights: Mapping[str, float], lr: float) -> Space:
    """A decade of learning rates on either side, and two of each weight but the first."""
    trained = [t for t, w in weights.items() if w > 0]
    found = {f"task.{t}.weight": Range(weights[t] / 100, weights[t] * 100, log=True) for t in trained[1:]}
    return Space(found | {"train.lr": Range(lr / 10, lr * 10, log=True)})


def _spread(key: str, value: Any) -> dict[str, Any]:
    whole_section = "." not in key and isinstance(value, dict)
    return {f"{key}.{k}": v for k, v in value.items()} if whole_section else {key: value}


def _flat(given: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in given.items():
        if isinstance(value, Mapping) and value and not {"low", "high"} & set(value):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _place(key: str, value: Any) -> Range | Choices:
    weight = key.startswith("task.") and key.endswith(".weight")
    try:
        found = _choices(value) if isinstance(value, list | tuple) else _range(value, weight)
    except ConfigError as error:
        raise ConfigError(f"tune.space: '{key}': {error}") from None
    if weight and not all(_number(v) and v > 0 for v in found.examples):
        raise ConfigError(f"tune.space: '{key}': every weight must be above 0, so that each trial trains every task")
    return found


def _choices(values: Any) -> Choices:
    if not values:
        raise ConfigError("the list of choices is empty")
    return Choices(tuple(values))


def _range(value: Any, weight: bool) -> Range:
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(f'{value!r} is no range and no list; write {{ low = 0.1, high = 1.0 }} or ["a", "b"]')
    for name in value:
        if name not in ("low", "high", "log"):
            raise ConfigError(did_you_mean("key", str(name), ("low", "high", "log")))
    low, high, log = value.get("low"), value.get("high"), value.get("log", False)
    if not (_number(low) and _number(high) and isinstance(log, bool)):
        raise ConfigError(f"low = {low}, high = {high} must be numbers, and log = {log} true or false")
    return Range(low, high, log=log, whole=not weight and isinstance(low, int) and isinstance(high, int))


def _number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
