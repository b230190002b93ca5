"""What every test shares: one thread, reproducible random examples, and real data where there is some."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # sums depend on the number of threads; the workers of pytest-xdist share the cores

settings.register_profile("polytask", deadline=None, derandomize=True)
settings.load_profile("polytask")


@pytest.fixture(scope="session")
def movielens() -> Path:
    """The folder that POLYTASK_DATA names; the test is skipped where it is unset, and fails where it is wrong."""
    if not (named := os.environ.get("POLYTASK_DATA")):
        pytest.skip("needs MovieLens 100K: set POLYTASK_DATA to the folder that holds ml-100k/")
    folder = Path(named)
    if not (folder / "ml-100k").is_dir():
        pytest.fail(f"POLYTASK_DATA={folder} holds no folder ml-100k")
    return folder
