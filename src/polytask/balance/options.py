"""Checks of a balancer's options; each raises a ConfigError that names the option, its value and its bound."""

import math
from collections.abc import Sequence
from typing import Any

from polytask.errors import ConfigError, did_you_mean
from polytask.loss.base import check_option


def check_number(name: str, value: object, low: float, high: float = math.inf) -> None:
    """A :class:`ConfigError` unless ``value`` is a number between ``low`` and ``high``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} = {value!r} must be a number")
    check_option(name, value, low, high)


def check_whole(name: str, value: object, low: int) -> None:
    """A :class:`ConfigError` unless ``value`` is a whole number of at least ``low``."""
    check_number(name, value, low)
    if not isinstance(value, int):
        raise ConfigError(f"{name} = {value!r} must be a whole number")


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    """A :class:`ConfigError` unless ``value`` is one of the ``known`` names."""
    if value not in known:
        raise ConfigError(did_you_mean(name, str(value), known))


def each(value: Any) -> list[Any]:
    """The values of an option that is one for all tasks or one for each."""
    return list(value) if isinstance(value, list | tuple) else [value]


def check_count(name: str, values: list[Any], tasks: int) -> None:
    """A :class:`ConfigError` unless there is one value for all or one for each of the ``tasks``."""
    if len(values) not in (1, tasks):
        raise ConfigError(f"{name} = {values} must be one value, or one for each of the {tasks} tasks")
