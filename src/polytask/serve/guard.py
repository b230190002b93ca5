"""Who may ask, and in what form: a request is refused unless it passes every check."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from polytask.serve.reply import RequestError
from polytask.serve.settings import Limits

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Heads = Mapping[bytes, bytes]

_READ = frozenset(
    b"host origin authorization content-type content-length content-encoding transfer-encoding if-none-match".split()
)


class ClientGoneError(Exception):
    """The client went away before it had sent its request."""


class Guard:
    """Checks the head of a request and reads its body, for the names ``hosts``, and a ``token`` if there is one."""

    def __init__(self, limits: Limits, hosts: Collection[str], token: str | None = None) -> None:
        self.limits = limits
        self._hosts = frozenset(name.lower().strip("[]") for name in hosts)
        self._bearer = None if token is None else b"Bearer " + token.encode()
        self._known: set[bytes] = set()  # Host headers found right, as they were written

    def admit(self, scope: Scope) -> Heads:
        """The headers that matter; refused are too many of them (431), one given twice (400), a strange host (403)."""
        found: dict[bytes, bytes] = {}
        size = len(scope["path"]) + len(scope["query_string"])
        for name, value in scope["headers"]:
            size += len(name) + len(value) + 4
            if name in _READ:
                if name in found:
                    raise RequestError(400, "repeated_header", f"the header {name.decode()} is given twice")
                found[name] = value
        if size > self.limits.head:
            raise RequestError(431, "headers_too_large", f"the headers are larger than {self.limits.head} bytes")
        host = found.get(b"host", b"")
        if host not in self._known:
            if _name(b"//" + host) not in self._hosts:
                raise RequestError(403, "host_not_allowed", "this server does not answer to that host name")
            if len(self._known) < 64:
                self._known.add(host)
        if b"origin" in found and _name(found[b"origin"]) not in self._hosts:
            raise RequestError(403, "origin_not_allowed", "this server does not answer pages of other sites")
        return found

    def authenticate(self, heads: Heads) -> None:
        """Refuse with 401 whoever does not bear the token."""
        if self._bearer is None:
            return
        if not hmac.compare_digest(heads.get(b"authorization", b""), self._bearer):
            challenge = ((b"www-authenticate", b"Bearer"),)
            raise RequestError(401, "unauthorized", "a token is needed: Authorization: Bearer TOKEN", challenge)

    def check_body(self, heads: Heads) -> None:
        """Refuse by its head a body that is no plain JSON (415) or too large (413)."""
        kind, encoding = heads.get(b"content-type", b""), heads.get(b"content-encoding", b"identity")
        if not (kind == b"application/json" or _is_json(kind)) or encoding.lower() != b"identity":
            raise RequestError(
                415, "unsupported_media_type", "the body must be JSON, as content-type application/json says"
            )
        length = heads.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > self.limits.body:
            raise self._too_large()

    async def read(self, receive: Receive) -> bytes:
        """The body; refused while it is read if it is too large (413) or late (408)."""
        try:
            async with asyncio.timeout(self.limits.read):
                message = await _part(receive)
                body: bytes = message.get("body", b"")
                if not message.get("more_body", False) and len(body) <= self.limits.body:
                    return body
                parts, size = [body], len(body)
                while message.get("more_body", False) and size <= self.limits.body:
                    message = await _part(receive)
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
        except TimeoutError:
            raise RequestError(
                408, "read_timeout", f"the request took longer than {self.limits.read:g} seconds"
            ) from None
        if size > self.limits.body:
            raise self._too_large()
        return b"".join(parts)

    def _too_large(self) -> RequestError:
        return RequestError(413, "body_too_large", f"the body is larger than {self.limits.body} bytes")


def has_body(heads: Heads) -> bool:
    """Whether a request announces a body."""
    return b"transfer-encoding" in heads or heads.get(b"content-length", b"0") != b"0"


async def _part(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGoneError
    return message


def _name(url: bytes) -> str | None:
    """The host of an origin or of ``//host:port``, in lower case; None if it is none."""
    try:
        parts = urlsplit(url.decode("ascii"))
        plain = parts.path == parts.query == parts.fragment == "" and "@" not in parts.netloc
        return parts.hostname if plain and (parts.port is None or parts.port > 0) else None
    except ValueError:
        return None


def _is_json(kind: bytes) -> bool:
    name, *options = (part.strip().lower() for part in kind.split(b";"))
    return name == b"application/json" and all(o in (b"", b"charset=utf-8", b'charset="utf-8"') for o in options)
