"""What goes out: an answer, or a refusal with a code that programs can read."""

from dataclasses import dataclass
from typing import Any

import orjson

from polytask.errors import visible

JSON = b"application/json"
_LONGEST = 300  # characters of a message

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """Status, body, type and further headers of an answer."""

    body: bytes
    status: int = 200
    type: bytes = JSON
    headers: Headers = ()


class RequestError(Exception):
    """A request that is not answered: the HTTP ``status``, a stable ``code``, and one line for people.

    The line tells nothing about the server's inside.
    """

    def __init__(self, status: int, code: str, message: str, headers: Headers = ()) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers
        line = visible(message)
        self.message = line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"

    def reply(self, request: str) -> Reply:
        """The answer that says so, with the id of the ``request``."""
        error = {"code": self.code, "message": self.message, "request_id": request}
        return Reply(dump({"error": error}), self.status, JSON, self.headers)


def invalid(message: str) -> RequestError:
    """The refusal of a request that says something impossible."""
    return RequestError(400, "invalid_request", message)


def unknown(what: str, given: str) -> RequestError:
    """The refusal of a request about an id that is not in the data."""
    return RequestError(404, f"unknown_{what}", f"{what} '{given}' is unknown; {what}s are those of the training data")


def dump(value: Any) -> bytes:
    """``value`` as strict JSON: what is no finite number is null."""
    return orjson.dumps(value)
