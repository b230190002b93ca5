"""A mix: a small checked expression over what the tasks predict, which fuses them into the one score that orders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, log
from typing import Any, Self

import numpy as np

from polytask.errors import ConfigError, did_you_mean, visible
from polytask.recommend.expression import Node, check_length, names, parse, quoted, value, written
from polytask.schema import Schema


@dataclass(frozen=True)
class Mix:
    """An expression over task outputs, read by :meth:`parse`; equal and hashed by its canonical ``text``.

    ``tasks`` are those it names, in the order of the schema; a name stands for what :meth:`inputs` gives. The
    product of powers ``click ** 0.3 * like ** 0.7`` is the fusion of PLE (Tang et al., 2020, eq. 1).
    """

    text: str
    tasks: tuple[str, ...] = field(compare=False)
    root: Node = field(compare=False, repr=False)

    @classmethod
    def parse(cls, source: str | Mapping[str, float], tasks: Sequence[str]) -> Self:
        """Read an expression over ``tasks``, or the weighted sum of a mapping from tasks to weights.

        What is not understood, an unknown name, more than 500 characters or 32 levels, and an expression that names
        no task are a :class:`ConfigError` that tells the column, counted from 1.
        """
        root = parse(source if isinstance(source, str) else _weighted_sum(source, tasks), tasks)
        text, named = written(root), names(root)
        check_length(text)
        if not named:
            known = ", ".join(map(visible, tasks))
            raise ConfigError(f"mix: '{text}' names no task, so it orders nothing; name one of: {known}")
        return cls(text, tuple(t for t in tasks if t in named), root)

    @classmethod
    def single(cls, task: str) -> Self:
        """The mix that orders by one task alone."""
        return cls.parse(quoted(task), [task])

    @staticmethod
    def inputs(values: Any, tasks: Sequence[str], schema: Schema) -> dict[str, np.ndarray]:
        """What the names of ``tasks`` [T] stand for, float64, given what the model predicts, ``values`` [T, ...].

        Of a ranking log(1 + exp(logit)): above 0, near exp(logit) for low scores and near the score itself for high
        ones, so that it grows everywhere and two scores never become one. Of the others what they predict: a
        probability, or a value in the unit of the label.
        """
        each = {t: np.asarray(v, dtype=np.float64) for t, v in zip(tasks, values, strict=True)}
        return {t: _softplus(v) if schema.task(t).kind == "ranking" else v for t, v in each.items()}

    def __call__(self, values: Mapping[str, Any]) -> np.ndarray:
        """Fused scores [...] float64 of arrays [...] by task; what is no finite number scores -inf, the lowest."""
        return _scores(self.root, values)

    def parts(self, values: Mapping[str, Any]) -> list[tuple[str, float]]:
        """What a score is made of, given one number per task: texts with their numbers.

        The summands of a sum, which add up to the score; the logarithms of the factors of a product, which add up to
        the logarithm of the score; else, and where a factor is not above 0, the score itself.
        """
        if self.root.kind in ("*", "/"):
            factors = [(p, float(_scores(p, values))) for p in _terms(self.root, "*", "/")]
            if all(0 < number < inf for _, number in factors):
                return [(written(p), log(number)) for p, number in factors]
        summands = _terms(self.root, "+", "-") if self.root.kind in ("+", "-") else [self.root]
        return [(written(p), float(_scores(p, values))) for p in summands]


def _scores(node: Node, values: Mapping[str, Any]) -> np.ndarray:
    with np.errstate(all="ignore"):
        found = value(node, values)
    return np.where(np.isfinite(found), found, -inf)


def _terms(node: Node, same: str, inverse: str) -> list[Node]:
    """What a chain of ``same`` and ``inverse`` operators joins; what it takes away is turned around."""
    if node.kind not in (same, inverse):
        return [node]
    left, right = (_terms(p, same, inverse) for p in node.parts)
    return left + (right if node.kind == same else [_turned(p, same) for p in right])


def _turned(node: Node, same: str) -> Node:
    return Node("sign", (node,)) if same == "+" else Node("/", (Node("number", number=1.0), node))


def _weighted_sum(weights: Mapping[str, float], tasks: Sequence[str]) -> str:
    """The source of ``weight * task + ...``; tasks of weight 0 are left out."""
    if not isinstance(weights, Mapping):
        raise ConfigError("mix: give an expression, or a mapping from tasks to weights")
    text = ""
    for name, weight in weights.items():
        if name not in tasks:
            raise ConfigError("mix: " + did_you_mean("task", str(name), map(visible, tasks)))
        number = _finite(name, weight)
        sign = (" - " if number < 0 else " + ") if text else "-" * (number < 0)
        factor = "" if abs(number) == 1 else f"{abs(number)!r} * "
        text += f"{sign}{factor}{quoted(name)}" if number else ""
    if not text:
        raise ConfigError("mix: no task has a weight other than 0, so it orders nothing; give one a weight")
    return text


def _finite(name: str, weight: Any) -> float:
    if isinstance(weight, int | float | np.integer | np.floating) and not isinstance(weight, bool):
        try:
            if isfinite(number := float(weight)):
                return number
        except OverflowError:  # a whole number beyond all floats
            pass
    raise ConfigError(f"mix: the weight of '{visible(name)}' must be a finite number")


def _softplus(logit: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.maximum(logit, 0) + np.log1p(np.exp(-np.abs(logit)))
    return found
