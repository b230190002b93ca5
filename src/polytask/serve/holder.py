"""Holds the bundle that answers, and replaces it by another that has proved itself."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from polytask.errors import PolytaskError
from polytask.files import MANIFEST
from polytask.serve.log import log, log_fault
from polytask.serve.metrics import Metrics
from polytask.serve.snapshot import Snapshot

Fingerprint = tuple[str, int, int, int]


class Holder:
    """The ``current`` snapshot, swapped by one reference: a request keeps the one it began with.

    ``load`` reads, verifies and warms up a snapshot; it runs in a thread of its own, and while it does, and if it
    fails, the old one answers. ``reason`` says why the last one was refused.
    """

    def __init__(self, load: Callable[[], Snapshot], metrics: Metrics) -> None:
        self.current: Snapshot | None = None
        self.draining = False
        self.reason = ""
        self._load, self._metrics = load, metrics
        self._one = asyncio.Lock()

    @property
    def ready(self) -> bool:
        """Whether requests are answered and further ones welcome."""
        return self.current is not None and not self.draining

    async def reload(self) -> bool:
        """Load the bundle anew and swap it in; False, with a line in the log, if it was refused."""
        async with self._one:
            try:
                snapshot = await asyncio.to_thread(self._load)
            except PolytaskError as error:
                return self._refuse(str(error))
            except Exception as error:  # whatever a bundle does, the old one goes on
                log_fault("-", error)
                return self._refuse(f"loading failed with {type(error).__name__}")
            self.current = snapshot
            self._metrics.loaded(snapshot.version)
            log("loaded", {"version": snapshot.version})
            return True

    async def watch(self, path: Path, seconds: float) -> None:
        """Look at the bundle every ``seconds``, and reload when its folder or the link to it has changed."""
        tried = await asyncio.to_thread(fingerprint, path)
        while True:
            await asyncio.sleep(seconds)
            found = await asyncio.to_thread(fingerprint, path)
            if found is not None and found != tried:
                tried = found
                await self.reload()

    def _refuse(self, reason: str) -> bool:
        self.reason = reason
        self._metrics.refused()
        log("refused", {"reason": reason, "serving": self.current.version if self.current else None}, "error")
        return False


def fingerprint(path: Path) -> Fingerprint | None:
    """What tells one state of a bundle's folder from another; nothing while it is being replaced."""
    try:
        real = path.resolve(strict=True)
        found = (real / MANIFEST).stat()
    except OSError:
        return None
    return str(real), found.st_ino, found.st_mtime_ns, found.st_size
