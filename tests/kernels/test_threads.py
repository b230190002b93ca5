"""Parts of the work in threads: each row once, whichever threads there are."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from polytask.kernels import threads
from polytask.kernels.threads import in_parts


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["team", "pool"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pool":
        monkeypatch.setattr(threads, "_openmp", lambda process: None)
    return str(request.param)


def parts_of(rows: int, worth: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    in_parts(rows, lambda first, end: found.append((first, end)), worth)
    return sorted(found)


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("rows", [0, 1, 9, 10, 11, 1001])
def test_every_row_is_in_one_part(rows: int) -> None:
    parts = parts_of(rows, worth=5)
    assert [row for first, end in parts for row in range(first, end)] == list(range(rows))
    assert len(parts) == (2 if rows >= 10 else 1)


@pytest.mark.usefixtures("kind")
def test_what_fails_in_a_part_is_raised_after_all_parts() -> None:
    done: list[int] = []

    def run(first: int, end: int) -> None:
        if first:
            raise ValueError("the second part")
        done.append(end)

    with pytest.raises(ValueError, match="the second part"):
        in_parts(100, run, worth=1)
    assert done == [50]


@pytest.mark.usefixtures("kind")
def test_the_same_two_threads_work_at_once_every_time() -> None:
    meeting, seen = threading.Barrier(2, timeout=20), set[int]()

    def run(first: int, end: int) -> None:
        meeting.wait()
        seen.add(threading.get_native_id())

    for _ in range(3):
        in_parts(2, run, worth=1)
    assert len(seen) == 2 and threading.get_native_id() in seen


@pytest.mark.usefixtures("kind")
def test_several_callers_get_their_own_parts() -> None:
    def call(caller: int) -> int:
        found: list[int] = []
        for _ in range(200):
            in_parts(10, lambda first, end: found.append(caller * (end - first)), worth=1)
        return sum(found)

    with ThreadPoolExecutor(3) as callers:
        assert list(callers.map(call, [1, 2, 3])) == [2000, 4000, 6000]


FORKED = """
import os, torch
from polytask.kernels.threads import in_parts
torch.set_num_threads(2)
found = []
run = lambda first, end: found.append(end - first)
in_parts(100, run, 1)
child = os.fork()
if child == 0:
    in_parts(60, run, 1)
    os._exit(sum(found) - 160)
assert os.waitpid(child, 0)[1] == 0 and sum(found) == 100
"""


@pytest.mark.skipif(not hasattr(threads.os, "fork"), reason="no fork on this system")
def test_a_child_by_fork_has_threads_of_its_own() -> None:
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=60)
