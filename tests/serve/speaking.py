"""A server in a thread, and a client that speaks to it by bytes."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import orjson

from polytask.serve.app import App, make_app
from polytask.serve.run import http_server, sweep
from polytask.serve.settings import Limits
from polytask.serve.snapshot import Snapshot

QUICK = Limits(read=0.6, work=1.0, drain=2.0, notice=0.1, warm=1.0, watch=0.05, body=1 << 16)
HOSTS = ("127.0.0.1", "localhost")


def loaded(path: Path, limits: Limits = QUICK, token: str | None = None, *, report: bytes | None = None) -> App:
    """An application whose bundle is loaded."""
    found = make_app(partial(Snapshot.load, path, limits), limits, HOSTS, token, report=report)
    assert asyncio.run(found.holder.reload())
    return found


class Client:
    """Speaks to a server by bytes, so that it can say what no library would."""

    def __init__(self, port: int) -> None:
        self.port = port

    def connect(self) -> socket.socket:
        """A new connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def send(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send bytes, and read one answer: status, headers, body."""
        with self.connect() as connection:
            connection.sendall(request)
            return read_answer(connection)

    def post(self, path: str, body: bytes, *headers: str) -> tuple[int, dict[str, str], bytes]:
        """Send a JSON body; ``headers`` take the place of the usual ones of their name."""
        own = {h.partition(":")[0].lower() for h in headers}
        usual = ["Host: localhost", "Content-Type: application/json", f"Content-Length: {len(body)}"]
        lines = [h for h in usual if h.partition(":")[0].lower() not in own]
        head = "\r\n".join([f"POST {path} HTTP/1.1", *lines, *headers, "", ""])
        return self.send(head.encode("latin-1") + body)

    def ask(self, path: str, **body: object) -> dict[str, object]:
        """The answer to a question that must be answered."""
        status, _, answer = self.post(path, orjson.dumps(body))
        assert status == 200, answer
        return orjson.loads(answer)


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One answer; its status is 0 where the connection ends without one."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(1 << 16)):
            return 0, {}, data
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines[1:])}
    while len(body) < int(headers.get("content-length", 0)):
        if not (more := connection.recv(1 << 16)):
            break
        body += more
    return int(lines[0].split()[1]), headers, body


@contextmanager
def running(app: App, limits: Limits = QUICK) -> Iterator[Client]:
    """A server of ``app`` in a thread of its own."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = http_server(app, limits)

    async def main() -> None:
        sweeping = asyncio.create_task(sweep(server, limits))
        await server.serve(sockets=[listening])
        sweeping.cancel()

    def run() -> None:
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(main())

    thread = threading.Thread(target=run)
    port = listening.getsockname()[1]
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield Client(port)
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


def wait_until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for something that must come true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
