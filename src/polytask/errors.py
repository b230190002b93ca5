"""Errors a user can act on: one line that says what happened, where, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class PolytaskError(Exception):
    """Base of every error that is the caller's to mend; its text is one line."""


class ConfigError(PolytaskError):
    """A setting, option or name that does not exist or does not fit."""


class DataError(PolytaskError):
    """A file, column or value that cannot be read as the schema says."""


class StateError(PolytaskError):
    """A run folder or checkpoint that is damaged, locked, or belongs to another configuration."""


class TrainingError(PolytaskError):
    """Training cannot go on: a loss, gradient or score is not finite."""


def visible(text: str) -> str:
    """``text`` on one line: line ends, terminal codes and lone surrogates are shown, not obeyed.

    >>> visible("a\\x1b[31m\\n")
    'a\\\\x1b[31m\\\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def did_you_mean(kind: str, given: str, known: Iterable[str]) -> str:
    """Say that ``given`` is unknown, name the nearest known name, and list what is known.

    >>> did_you_mean("body", "mmeo", ["mmoe", "ple"])
    "body 'mmeo' is unknown. Did you mean 'mmoe'? Known: mmoe, ple"
    """
    names = sorted(known)
    near = get_close_matches(given, names, n=1, cutoff=0.6)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"{kind} '{visible(given)}' is unknown.{hint} Known: {', '.join(names)}"
