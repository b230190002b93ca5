"""Expressions over named numbers: read from text with the place of every fault, written back, and computed."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from math import isfinite
from typing import Any, NamedTuple

import numpy as np

from polytask.errors import ConfigError, did_you_mean, visible

LONGEST = 500
"""Characters that an expression may have."""
DEEPEST = 32
"""Levels of parentheses, functions, signs and powers that may stand inside each other."""

_OPERATORS: dict[str, Callable[..., Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "**": np.power,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "log": np.log,
    "log1p": np.log1p,
    "exp": np.exp,
    "sqrt": np.sqrt,
    "abs": np.abs,
    "min": np.minimum,
    "max": np.maximum,
}
_SEVERAL = ("min", "max")  # of two arguments or more
_BINDS = {"+": 1, "-": 1, "*": 2, "/": 2, "sign": 3, "**": 4}
_ATOM = 5
_NAME = r"[^\W\d]\w*"
_TOKEN = re.compile(
    r"(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    rf"|(?P<name>{_NAME})|`(?P<quoted>(?:[^`]|``)*)`|(?P<sign>\*\*|[-+*/(),])|(?P<end>\Z)"
)


class Node(NamedTuple):
    """A part of an expression: ``kind`` is an operator, a function, ``sign`` (minus), ``number`` or ``name``."""

    kind: str
    parts: tuple["Node", ...] = ()
    number: float = 0.0
    name: str = ""


class _Token(NamedTuple):
    """``kind`` is ``number``, ``name``, ``quoted``, ``end``, or the sign itself; columns count from 1."""

    kind: str
    text: str
    column: int

    def __str__(self) -> str:
        return "the end" if self.kind == "end" else f"'{visible(self.text)}'"


def parse(text: str, known: Sequence[str]) -> Node:
    """Read an expression over the ``known`` names (of tasks).

    Anything else, more than ``LONGEST`` characters or ``DEEPEST`` levels are a :class:`ConfigError` with the column.
    """
    check_length(text)
    return _Parser(_tokens(text), known).whole()


def check_length(text: str) -> None:
    """Raise :class:`ConfigError` for a text of more than ``LONGEST`` characters."""
    if len(text) > LONGEST:
        raise ConfigError(f"mix: {len(text):,} characters are more than {LONGEST}; write it shorter")


def written(node: Node, least: int = 0) -> str:
    """The canonical text, with parentheses only where they change what is meant, or it binds less than ``least``."""
    if node.kind == "number":
        return repr(node.number).removesuffix(".0")
    if node.kind == "name":
        return quoted(node.name)
    if node.kind in _FUNCTIONS:
        return f"{node.kind}({', '.join(map(written, node.parts))})"
    binds = _BINDS[node.kind]
    if node.kind == "sign":
        text = "-" + written(node.parts[0], binds)
    elif node.kind == "**":
        text = f"{written(node.parts[0], _ATOM)} ** {written(node.parts[1], _BINDS['sign'])}"
    else:
        text = f"{written(node.parts[0], binds)} {node.kind} {written(node.parts[1], binds + 1)}"
    return text if binds >= least else f"({text})"


def quoted(name: str) -> str:
    """A name as an expression holds it: in backticks, which are doubled in it, unless it is a plain word."""
    return name if re.fullmatch(_NAME, name) else "`" + name.replace("`", "``") + "`"


def names(node: Node) -> set[str]:
    """The names that an expression holds."""
    return {node.name} if node.kind == "name" else set().union(*map(names, node.parts))


def value(node: Node, values: Mapping[str, Any]) -> Any:
    """The value in float64, with the arrays ``values`` [...] by name; by IEEE 754, so 1 / 0 is inf and 0 / 0 NaN."""
    if node.kind == "name":
        return np.asarray(values[node.name], dtype=np.float64)
    if node.kind == "number":
        return np.float64(node.number)
    parts = [value(p, values) for p in node.parts]
    if node.kind == "sign":
        return -parts[0]
    if node.kind in _OPERATORS:
        return _OPERATORS[node.kind](*parts)
    function = _FUNCTIONS[node.kind]
    return reduce(function, parts) if node.kind in _SEVERAL else function(parts[0])


class _Parser:
    """Precedence parsing (Pratt, 1973): an operand, then every operator that binds tight enough with its right side."""

    def __init__(self, tokens: Sequence[_Token], known: Sequence[str]) -> None:
        self.tokens, self.known, self.place = tokens, known, 0

    def whole(self) -> Node:
        """The expression up to the end."""
        found = self.expression(1, 0)
        self.take("end", "write an operator (+ - * / **) or end here")
        return found

    def expression(self, least: int, depth: int) -> Node:
        """An expression of operators that bind at least as tight as ``least``."""
        if depth > DEEPEST:
            raise _fault(self.token, f"more than {DEEPEST} levels stand inside each other; write it flatter")
        found = self.operand(depth)
        while (operator := self.token.kind) in _OPERATORS and _BINDS[operator] >= least:
            self.place += 1
            power = operator == "**"  # a ** b ** c is a ** (b ** c), the others group from the left
            right = self.expression(_BINDS[operator] + (not power), depth + power)
            found = Node(operator, (found, right))
        return found

    def operand(self, depth: int) -> Node:
        """A number, a name, a function of something, something signed or in parentheses."""
        token = self.token
        self.place += token.kind != "end"
        if token.kind == "number":
            if not isfinite(number := float(token.text)):
                raise _fault(token, f"{token} is too large a number")
            return Node("number", number=number)
        if token.kind == "name" and self.token.kind == "(":
            return self.call(token, depth)
        if token.kind in ("name", "quoted"):
            if token.text not in self.known:
                raise _fault(token, did_you_mean("task", token.text, map(visible, self.known)))
            return Node("name", name=token.text)
        if token.kind == "-":
            return Node("sign", (self.expression(_BINDS["**"], depth + 1),))
        if token.kind == "(":
            found = self.expression(1, depth + 1)
            self.take(")", "close the parenthesis with )")
            return found
        raise _fault(token, f"{token} is not expected here; write a number, a task, a function or (")

    def call(self, name: _Token, depth: int) -> Node:
        """The function ``name``, which was read, of its arguments."""
        if name.text not in _FUNCTIONS:
            raise _fault(name, did_you_mean("function", name.text, _FUNCTIONS))
        found: list[Node] = []
        while not found or self.token.kind == ",":
            self.place += 1
            found.append(self.expression(1, depth + 1))
        self.take(")", f"close {name.text}( with )")
        if (len(found) > 1) != (name.text in _SEVERAL):
            takes = "two arguments or more" if name.text in _SEVERAL else "one argument"
            raise _fault(name, f"{name.text} takes {takes}, not {len(found)}")
        return Node(name.text, tuple(found))

    def take(self, kind: str, rule: str) -> None:
        """Read a token that must be of ``kind``."""
        if self.token.kind != kind:
            raise _fault(self.token, f"{self.token} is not expected here; {rule}")
        self.place += kind != "end"

    @property
    def token(self) -> _Token:
        """The token that is read next."""
        return self.tokens[self.place]


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    place = 0
    while not found or found[-1].kind != "end":
        place = len(text) - len(text[place:].lstrip())
        if not (match := _TOKEN.match(text, place)):
            rule = "a quoted name ends with `" if text[place] == "`" else "no expression holds it"
            raise _fault(_Token("", "", place + 1), f"'{visible(text[place])}' is not understood; {rule}")
        kind = str(match.lastgroup)
        own = match[kind].replace("``", "`") if kind == "quoted" else match[kind]
        found.append(_Token(own if kind == "sign" else kind, own, place + 1))
        place = match.end()
    return found


def _fault(token: _Token, why: str) -> ConfigError:
    return ConfigError(f"mix, column {token.column}: {why}")
