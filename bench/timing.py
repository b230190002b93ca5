"""Clocks for inside a contender's process, and the memory it holds."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median


def repeated(call: Callable[[], object], seconds: float = 1.0, least: int = 3) -> float:
    """Median seconds of ``call`` over about ``seconds``, ``least`` times at least, after one to warm up."""
    call()
    found: list[float] = []
    while len(found) < least or sum(found) < seconds:
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return median(found)


class Clock:
    """When a number of steps was first told to be done."""

    def __init__(self) -> None:
        self.times: dict[int, float] = {}

    def __call__(self, done: int, total: int = 0) -> None:
        self.times.setdefault(done, time.perf_counter())

    def tick(self, *_: object) -> None:
        """One more step is done."""
        self(len(self.times))

    def steps_per_second(self, warm: int = 1) -> float:
        """Over all steps told but the last telling, which may hold an evaluation; the first ``warm`` are left out."""
        told = sorted(self.times.items())[warm:-1]
        return (told[-1][0] - told[0][0]) / (told[-1][1] - told[0][1])

    def epoch_seconds(self, steps: int, epochs: int) -> float:
        """Median seconds of an epoch of ``steps``; the first, and the last with its evaluation, are left out."""
        return intervals([self.times[steps * epoch] for epoch in range(1, epochs)])


def intervals(times: Sequence[float]) -> float:
    """The median time between two of ``times``."""
    return median(after - before for before, after in pairwise(times))


class Memory:
    """The most bytes held since, and before."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # sets the mark of the peak back, on Linux
        self.before = _status("VmRSS")

    def over(self, size: int) -> dict[str, float]:
        """Peak as multiples of ``size`` bytes: what was added since the start, and all of the process."""
        peak = _status("VmHWM")
        return {"added_memory": (peak - self.before) / size, "whole_memory": peak / size}


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """A function that gives the seconds since."""
    started = time.perf_counter()
    yield lambda: time.perf_counter() - started
