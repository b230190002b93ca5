"""Starts servers, tells them when to load anew and when to stop, and sees that they do."""

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from polytask.errors import ConfigError, PolytaskError, StateError
from polytask.serve.settings import Limits, Options

if TYPE_CHECKING:
    import uvicorn

    from polytask.serve.app import App

_PACKAGES = ("fastapi", "uvicorn", "httptools", "orjson", "prometheus_client")
_KEEP_ALIVE = 5  # seconds an idle connection stays open
_RESTARTS = 5  # of workers within a minute; more, and something is wrong with all of them
_SWITCH = (
    0.001  # seconds until a thread must let another on; a bundle loads beside a busy event loop, in many short steps
)
_EXIT = 1.0  # seconds that the process itself takes to end
_REFUSED = 3  # exit status of a worker that could not load its bundle


def serve(options: Options) -> None:
    """Serve a bundle until told to stop; SIGTERM and SIGINT end it in order, SIGHUP loads the bundle anew.

    A bundle that cannot be loaded at the start is a :class:`StateError`, an address that cannot be listened on a
    :class:`ConfigError`.
    """
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise ConfigError(f'serving needs {", ".join(missing)}; install it with: pip install "polytask[serve]"')
    options.token()
    options.page()
    listening = _listen(options.host, options.port)
    from polytask.serve.log import log

    host, port = listening.getsockname()[:2]
    log("listening", {"host": host, "port": port, "workers": options.workers, "token": options.token_file is not None})
    if options.workers == 1:
        _work(options, listening, 1)
    else:
        _supervise(options, listening)


def _listen(host: str, port: int) -> socket.socket:
    found = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        if found is not None:
            found.close()
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"cannot listen on {host} port {port}: {reason}; choose another with --port") from None
    return found


def _work(options: Options, listening: socket.socket, number: int) -> None:
    """One worker, from its start to its end."""
    import torch

    from polytask.serve.app import make_app
    from polytask.serve.log import Lines
    from polytask.serve.snapshot import Snapshot

    torch.set_num_threads(1)  # a core per worker; and sums do not depend on how many there are
    sys.setswitchinterval(_SWITCH)
    logger = logging.getLogger("uvicorn")
    logger.handlers, logger.propagate = [Lines()], False
    logger.setLevel(logging.ERROR)
    load = partial(Snapshot.load, options.bundle, options.limits)
    app = make_app(load, options.limits, options.allowed, options.token(), worker=number, report=options.page())
    server = http_server(app, options.limits)
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(_run(app, server, options, listening))
    if app.work.waiting:  # a prediction that does not end would keep the process
        os._exit(1)


def http_server(app: "App", limits: Limits) -> "uvicorn.Server":
    """A server of ``app`` with bounds on its connections, as long as :func:`sweep` runs beside it."""
    import uvicorn

    from polytask.serve.connection import Connection

    config = uvicorn.Config(
        app,
        http=partial(Connection, limits=limits),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
    )
    config.timeout_graceful_shutdown = max(0.5, limits.drain - limits.notice - _EXIT)  # type: ignore[assignment]
    return uvicorn.Server(config)


async def _run(app: "App", server: "uvicorn.Server", options: Options, listening: socket.socket) -> None:
    from polytask.serve.log import log

    serving = asyncio.create_task(server.serve(sockets=[listening]))
    while not (server.started or serving.done()):
        await asyncio.sleep(0.01)
    loop, holder, told = asyncio.get_running_loop(), app.holder, set[int]()
    tasks: set[asyncio.Task[Any]] = {asyncio.create_task(sweep(server, options.limits))}
    if options.workers > 1:
        tasks.add(asyncio.create_task(_orphan(os.getppid())))

    def stop(number: int) -> None:
        server.force_exit = number in told
        told.add(number)
        if not holder.draining:
            holder.draining = True
            log("stopping")
            pause = options.limits.notice if server.server_state.connections else 0.0
            loop.call_later(pause, setattr, server, "should_exit", True)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    loop.add_signal_handler(signal.SIGHUP, lambda: tasks.add(asyncio.create_task(holder.reload())))
    if loaded := await holder.reload():
        log("ready")
        if options.watch:
            tasks.add(asyncio.create_task(holder.watch(options.bundle, options.limits.watch)))
    else:
        server.should_exit = True
    await serving
    app.work.close()
    for task in tasks:
        task.cancel()
    if not loaded:
        raise StateError(holder.reason)


async def sweep(server: "uvicorn.Server", limits: Limits) -> None:
    """Cut connections whose time is up."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(min(1.0, limits.read / 10))
        now = loop.time()
        for connection in list(server.server_state.connections):
            connection.expire(now)  # type: ignore[union-attr]


async def _orphan(parent: int) -> None:
    """Stop when the process that started this one is gone: nobody else could stop it."""
    while os.getppid() == parent:
        await asyncio.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _supervise(options: Options, listening: socket.socket) -> None:
    """Run workers on one socket; restart one that dies, pass signals on, and end when they have."""
    listening.listen(2048)
    wanted: list[int] = []
    for sent in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(sent, lambda got, _: wanted.append(got))
    workers = {n: _start(options, listening, n) for n in range(1, options.workers + 1)}
    died: list[float] = []
    while True:
        time.sleep(0.1)
        while wanted:
            got = wanted.pop(0)
            if got != signal.SIGHUP:
                return _stop(workers, options.limits)
            _tell(workers, signal.SIGHUP)
        for number, worker in workers.items():
            if worker.is_alive():
                continue
            died = [t for t in died if time.monotonic() - t < 60] + [time.monotonic()]
            if worker.exitcode == _REFUSED or len(died) > _RESTARTS:
                _stop(workers, options.limits)
                raise StateError("the workers cannot serve the bundle; the lines above say why")
            workers[number] = _start(options, listening, number)


def _start(options: Options, listening: socket.socket, number: int) -> BaseProcess:
    # A fresh interpreter: a fork would copy the locks of threads that it does not copy.
    process = multiprocessing.get_context("spawn").Process(target=_worker, args=(options, listening, number))
    process.start()
    return process


def _worker(options: Options, listening: socket.socket, number: int) -> None:
    try:
        _work(options, listening, number)
    except PolytaskError:  # the log has told it
        sys.exit(_REFUSED)


def _tell(workers: dict[int, BaseProcess], number: int) -> None:
    for worker in workers.values():
        if worker.pid is not None and worker.is_alive():
            with suppress(ProcessLookupError):
                os.kill(worker.pid, number)


def _stop(workers: dict[int, BaseProcess], limits: Limits) -> None:
    _tell(workers, signal.SIGTERM)
    until = time.monotonic() + limits.drain + 1
    for worker in workers.values():
        worker.join(max(0.0, until - time.monotonic()))
        if worker.is_alive():
            worker.kill()
            worker.join()
