"""JSON read strictly: what two readers could understand differently is refused."""

import json
from typing import Any

import orjson

from polytask.serve.reply import RequestError

_WHOLE = 1 << 63  # a whole number beyond it is read as a float, and not the same one


def read_json(body: bytes, depth: int) -> dict[str, Any]:
    """The object that ``body`` is.

    Refused with status 400: what is no JSON object in UTF-8, NaN and infinities, numbers beyond a float, whole
    numbers beyond 64 bits, lone surrogates, a key given twice, and nesting below ``depth``.
    """
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise _malformed("the body is not valid JSON") from None
    if not isinstance(found, dict):
        raise _malformed("the body must be a JSON object")
    keys, large = _survey(found, depth)
    # Every key is followed by a colon, so with as many colons as keys none was given twice.
    if large or body.count(b":") != keys:
        _check_pairs(body)
    return found


def _survey(found: Any, depth: int) -> tuple[int, bool]:
    """How many keys there are, and whether a number is so large that it may have been a whole one."""
    keys, large, level = 0, False, [found]
    for _ in range(depth):
        below: list[Any] = []
        for value in level:
            if type(value) is dict:
                keys += len(value)
                below += value.values()
            elif type(value) is list:
                below += value
            elif type(value) in (int, float):
                large = large or not -_WHOLE < value < _WHOLE
        if not below:
            return keys, large
        level = below
    raise _malformed(f"the body is nested more than {depth} levels deep")


def _check_pairs(body: bytes) -> None:
    json.loads(body, object_pairs_hook=_once, parse_int=_whole)


def _once(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise _malformed(f"the key '{twice}' is given twice")


def _whole(digits: str) -> None:
    if len(digits.lstrip("-")) > 19 or not -_WHOLE <= int(digits) < _WHOLE:
        raise _malformed("a whole number is beyond 64 bits")


def _malformed(message: str) -> RequestError:
    return RequestError(400, "malformed_json", message)
