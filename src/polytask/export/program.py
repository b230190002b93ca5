"""PyTorch's own form of a traced model: a .pt2 file, which needs PyTorch and nothing else to run."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from polytask.errors import ConfigError
from polytask.export.check import Run
from polytask.export.inputs import unknown
from polytask.export.served import Served

_MOST = 1 << 20  # rows in one call
_EXAMPLE = 3  # rows it is traced with: 0 and 1 are taken for constants


def trace(module: Served) -> ExportedProgram:
    """``module`` as a graph for any number of rows; one that cannot be traced is a :class:`ConfigError`."""
    rows = torch.export.Dim("batch", min=1, max=_MOST)
    example = tuple(torch.from_numpy(v) for v in unknown(module.inputs, _EXAMPLE).values())
    with one_line(module, "torch.export"):
        return torch.export.export(module, example, dynamic_shapes=(tuple({0: rows} for _ in example),), strict=False)


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write a traced model to ``path``."""
    with warnings.catch_warnings():
        # it copies its own tree of inputs in a way that PyTorch itself deprecates
        warnings.filterwarnings("ignore", ".*treespec.*", FutureWarning)
        torch.export.save(program, path)


def run_program(path: Path) -> Run:
    """What answers from the file at ``path``."""
    module = torch.export.load(path).module()

    def run(given: dict[str, np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            return [v.numpy() for v in module(*(torch.from_numpy(v) for v in given.values()))]

    return run


@contextmanager
def one_line(module: Served, exporter: str) -> Iterator[None]:
    """Tell what an exporter cannot do in one line, and its harmless warnings not at all."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*treespec.*", FutureWarning)
            yield
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"export: {exporter} cannot write this model down: {reason[0][:300]}") from error
