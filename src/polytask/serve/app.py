"""The ASGI application: from a request's head through its checks to one answer, from one snapshot."""

import asyncio
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from itertools import count
from secrets import token_hex
from typing import Any

from pydantic import ValidationError

from polytask.errors import ConfigError, DataError
from polytask.serve.answers import Job
from polytask.serve.explorer import pages, unchanged
from polytask.serve.guard import ClientGoneError, Guard, Heads, Receive, Scope, Send, has_body
from polytask.serve.holder import Holder
from polytask.serve.log import log_fault
from polytask.serve.metrics import TYPE, Metrics
from polytask.serve.reply import Reply, RequestError, dump, invalid
from polytask.serve.routes import HEALTH, QUESTIONS, Question, document
from polytask.serve.settings import Limits
from polytask.serve.snapshot import Snapshot
from polytask.serve.strict import read_json
from polytask.serve.work import Work

_LINGER = 1.0  # seconds in which the rest of a refused body is thrown away, so that the refusal arrives
_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
_PAGE_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-cache"))
_CLOSE = (b"connection", b"close")
_OK = Reply(dump({"status": "ok"}))


class App:
    """Answers HTTP requests about the bundle of ``holder``.

    Its pages and health are open to all; for all else a token is needed where there is one, for unknown paths too.
    """

    def __init__(self, holder: Holder, guard: Guard, work: Work, metrics: Metrics, report: bytes | None = None) -> None:
        self.holder, self.guard, self.work, self.metrics = holder, guard, work, metrics
        self._questions = {q.path: q for q in QUESTIONS}
        self._pages = pages(report)
        description = Reply(dump(document()))
        self._plain: dict[str, Callable[[], Reply]] = {
            HEALTH[0]: lambda: _OK,
            HEALTH[1]: self._ready,
            "/metrics": lambda: Reply(metrics.text(), type=TYPE),
            "/openapi.json": lambda: description,
        }
        self._start, self._count = token_hex(4), count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await _refuse_other(scope, receive, send)
            return
        started, request = time.perf_counter(), f"{self._start}-{next(self._count):x}"
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        body = None
        try:
            heads = self.guard.admit(scope)
            question = self._find(path, scope, heads)
            body = await self._body(question, heads, receive)
            reply = self._shown(path, heads) if question is None else await self._answer(question, body, receive)
        except ClientGoneError:
            return
        except RequestError as refusal:
            reply = refusal.reply(request)
        except asyncio.CancelledError:
            if not self.holder.draining:
                raise
            reply = _stopping().reply(request)
        except Exception as error:  # the client is told nothing of it
            log_fault(request, error)
            reply = RequestError(500, "internal", "the server failed; its log says more").reply(request)
        unread = body is None and has_body(dict(scope["headers"]))
        headers = [*(_PAGE_HEADERS if path in self._pages else _HEADERS), *reply.headers]
        headers.append((b"x-request-id", request.encode()))
        if unread or self.holder.draining:
            headers.append(_CLOSE)
        await _send(send, reply, headers, scope["method"] == "HEAD", unread)
        self.metrics.answered(self._label(path), reply.status, time.perf_counter() - started)
        if unread:
            await _linger(receive)
            await send({"type": "http.response.body", "body": b""})

    def _find(self, path: str, scope: Scope, heads: Heads) -> Question | None:
        """The question a request asks, None for a plain answer."""
        if path not in self._pages and path not in HEALTH:
            self.guard.authenticate(heads)
        question = self._questions.get(path)
        if question is None and path not in self._pages and path not in self._plain:
            raise RequestError(404, "not_found", "there is nothing under that path")
        allowed = ("POST",) if question is not None and question.asks else ("GET", "HEAD")
        if scope["method"] not in allowed:
            raise RequestError(
                405, "method_not_allowed", f"use {allowed[0]}", ((b"allow", ", ".join(allowed).encode()),)
            )
        if scope["query_string"]:
            raise RequestError(400, "unexpected_query", "nothing is asked in the URL; use the body")
        return question

    async def _body(self, question: Question | None, heads: Heads, receive: Receive) -> bytes:
        if question is not None and question.asks:
            self.guard.check_body(heads)
            return await self.guard.read(receive)
        if has_body(heads):
            raise RequestError(400, "unexpected_body", "a GET request has no body")
        return b""

    def _shown(self, path: str, heads: Heads) -> Reply:
        if (page := self._pages.get(path)) is None:
            return self._plain[path]()
        return Reply(b"", 304, page.type, page.headers) if unchanged(page, heads.get(b"if-none-match")) else page

    async def _answer(self, question: Question, body: bytes, receive: Receive) -> Reply:
        if (snapshot := self.holder.current) is None:
            raise _not_ready()
        try:
            asked = None
            if question.asks:
                asked = question.asks.model_validate(read_json(body, self.guard.limits.depth))
            job = question.prepare(snapshot, asked)
            if job.light and len(snapshot.items) <= self.guard.limits.inline:
                return Reply(job.call())
            return Reply(await self._worked(job, receive))
        except ValidationError as error:
            raise invalid(_fault(error)) from None
        except (ConfigError, DataError) as error:
            raise invalid(str(error)) from None

    async def _worked(self, job: Job, receive: Receive) -> bytes:
        """The result of a job, given up when the client goes away."""
        work, gone = asyncio.ensure_future(self.work.run(job.call)), asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ClientGoneError
            return work.result()
        finally:
            work.cancel()
            gone.cancel()

    def _ready(self) -> Reply:
        if not self.holder.ready:
            raise _stopping() if self.holder.draining else _not_ready()
        return _OK

    def _label(self, path: str) -> str:
        if path in self._pages:
            return "/" if path == "/" else "/assets"
        return path if path in self._questions or path in self._plain else "other"


def make_app(
    load: Callable[[], Snapshot],
    limits: Limits,
    hosts: Collection[str],
    token: str | None = None,
    *,
    worker: int = 1,
    report: bytes | None = None,
) -> App:
    """The application for a bundle that ``load`` reads; its ``holder`` is still empty.

    ``report`` is the page of a comparison, to be opened from the explorer.
    """
    work = Work(limits)
    metrics = Metrics(worker, lambda: work.waiting)
    return App(Holder(load, metrics), Guard(limits, hosts, token), work, metrics, report)


async def _send(send: Send, reply: Reply, headers: list[tuple[bytes, bytes]], head: bool, more: bool) -> None:
    if reply.status != 304:
        headers += [(b"content-type", reply.type), (b"content-length", str(len(reply.body)).encode())]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else reply.body, "more_body": more})


async def _linger(receive: Receive) -> None:
    """Throw away what still comes: a connection closed with unread data takes the answer along."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        await asyncio.sleep(0)


async def _refuse_other(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
    elif scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": message["type"] + ".complete"})
        await send({"type": "lifespan.shutdown.complete"})


def _fault(error: ValidationError) -> str:
    """Where the first fault is, and what it is; not the value, which may be long."""
    found: Any = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part)[:80] for part in found["loc"])
    return f"{where}: {found['msg'][:1].lower()}{found['msg'][1:]}"


def _not_ready() -> RequestError:
    return RequestError(503, "not_ready", "no bundle is loaded yet", ((b"retry-after", b"1"),))


def _stopping() -> RequestError:
    return RequestError(503, "stopping", "this server is about to stop", ((b"retry-after", b"1"),))
