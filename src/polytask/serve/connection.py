"""One HTTP connection with bounds that uvicorn does not set: on the head, on time, and on how many are open."""

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from polytask.serve.reply import RequestError
from polytask.serve.settings import Limits

_RAW = 8  # times head and body: what may arrive for one request, chunk marks and trailers included


class Connection(HttpToolsProtocol):
    """Reads requests whose head comes whole within time and size, and is cut off by :meth:`expire` if it does not.

    ``deadline`` is when the connection is cut; 0 while it idles between requests, which uvicorn's own timer bounds.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.limits = limits
        self.deadline = 0.0
        self._heading, self._arrived, self._asked = True, 0, False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, unless too many are open."""
        super().connection_made(transport)
        self.deadline = self.loop.time() + self.limits.read
        if len(self.connections) > self.limits.connections:
            self._refuse(503, "too_many_connections", "too many connections are open; try again soon")

    def data_received(self, data: bytes) -> None:
        """Read on, within bounds."""
        if self.transport.is_closing():
            return
        if self.deadline == 0.0:
            self.deadline = self.loop.time() + self.limits.read
        self._arrived += len(data)
        super().data_received(data)
        if self._heading:
            if self._arrived > self.limits.head:
                self._refuse(431, "headers_too_large", f"the headers are larger than {self.limits.head} bytes")
        elif self._arrived > _RAW * (self.limits.head + self.limits.body):
            self.transport.abort()

    def on_headers_complete(self) -> None:
        """The head is whole: what follows is bounded by reading, working and sending."""
        self._heading, self._asked = False, True
        self.deadline = self.loop.time() + 2 * self.limits.read + self.limits.work
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._heading, self._arrived = True, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is written; a client that does not take it is cut off."""
        super().on_response_complete()
        self.deadline = self.loop.time() + self.limits.read if self.transport.is_closing() or self.pipeline else 0.0

    def expire(self, now: float) -> None:
        """Cut the connection if its time is up at ``now``, with a word if its head is not whole."""
        if self.deadline == 0.0 or now < self.deadline:
            return
        if self._heading and self._arrived:
            self._refuse(408, "read_timeout", f"the request took longer than {self.limits.read:g} seconds")
        else:
            self.transport.abort()

    def shutdown(self) -> None:
        """Take no more than one further request; what was never used is closed, what idles is left to its timer."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        elif not self._asked and not self._arrived:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in the form of every other error."""
        self._refuse(400, "malformed_request", "this is not an HTTP request")

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer without the application, and close; an answer that is being worked on is not disturbed."""
        cycle = self.cycle
        reading = cycle is not None and cycle.more_body and not cycle.response_started and not self.pipeline
        if not self.transport.is_closing() and (reading or cycle is None or cycle.response_complete):
            body = RequestError(status, code, message).reply("-").body
            retry = b"retry-after: 1\r\n" if status == 503 else b""
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + retry + head + b"\r\n" + body)
            if reading:
                cycle.disconnected = True
        self.deadline = self.loop.time() + self.limits.read
        self.transport.close()
