"""Work that takes time: one thread beside the event loop, and a bounded queue before it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from polytask.serve.reply import RequestError
from polytask.serve.settings import Limits

T = TypeVar("T")


class Work:
    """Runs calls one after the other; ``waiting`` counts those that have not ended.

    One thread, for a prediction keeps a core busy by itself: more threads would make all of them late.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits, self.waiting = limits, 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="work")

    async def run(self, call: Callable[[], T]) -> T:
        """The result of ``call``.

        Refused with 429 when the queue is full, and with 504 when time is up. A call that nobody waits for any more
        is not begun.
        """
        if self.waiting >= self.limits.queue:
            raise RequestError(
                429, "queue_full", "too many requests are waiting; try again soon", ((b"retry-after", b"1"),)
            )
        loop = asyncio.get_running_loop()
        self.waiting += 1
        future = self._thread.submit(call)
        future.add_done_callback(lambda f: self._end(loop, f))
        try:
            async with asyncio.timeout(self.limits.work):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise RequestError(
                504, "work_timeout", f"no answer within {self.limits.work:g} seconds; ask for less"
            ) from None

    def close(self) -> None:
        """Begin nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _end(self, loop: asyncio.AbstractEventLoop, future: "Future[T]") -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._one_less)

    def _one_less(self) -> None:
        self.waiting -= 1
