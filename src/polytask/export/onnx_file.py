"""One ONNX file that serving engines read: weights, catalogues and calibration inside."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from polytask.errors import ConfigError
from polytask.export.check import Run
from polytask.export.program import one_line
from polytask.export.served import Served

_LARGEST = 2_000_000_000  # bytes: the format's limit for one file is 2 GiB


def save_onnx(module: Served, program: ExportedProgram, path: Path, about: dict[str, str]) -> None:
    """Write ``program``, which is ``module`` traced, to ``path``, with ``about`` among the file's properties.

    Without the packages of polytask[export], and for a model beyond 2 GB, a :class:`ConfigError`.
    """
    require()
    size = sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])
    if size > _LARGEST:
        raise ConfigError(f"export: the model takes {size / 1e9:.1f} GB, an ONNX file holds 2; use --format pt2")
    with one_line(module, "the ONNX exporter"), _quiet():
        # written out, since ONNX has no such operator
        plain = program.run_decompositions({torch.ops.aten.searchsorted.Tensor: _searchsorted})
        made: Any = torch.onnx.export(
            plain,
            dynamo=True,
            input_names=[one.name for one in module.inputs],
            output_names=list(module.tasks),
            dynamic_shapes=[{} if n else {0: "batch"} for n in range(len(module.inputs))],  # names the axis of all
            external_data=False,
            verbose=False,
        )
        made.model.metadata_props.update(about)
        made.save(path, external_data=False)


def run_onnx(path: Path) -> Run:
    """What answers from the file at ``path``, by ONNX Runtime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    read = {one.name for one in session.get_inputs()}

    def run(given: dict[str, np.ndarray]) -> list[np.ndarray]:
        return list(session.run(None, {n: v for n, v in given.items() if n in read}))

    return run


def require() -> None:
    """Raise a :class:`ConfigError` unless ONNX files can be written and run."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f'export: {error.name} is missing; pip install "polytask[export]"') from None


def _searchsorted(
    ascending: Tensor,
    values: Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """How many of the numbers [K] lie below each value: bisection in log2 K steps, each a lookup."""
    count = ascending.shape[0]
    found = torch.zeros_like(values, dtype=torch.int64)
    for step in (1 << bit for bit in reversed(range(count.bit_length()))):
        probe = found + step
        looked = ascending[(probe - 1).clamp(max=count - 1)]
        below = looked <= values if right or side == "right" else looked < values
        found = torch.where((probe <= count) & below, probe, found)
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs that torchvision, which is not needed, is not there."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
