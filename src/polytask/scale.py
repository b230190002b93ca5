"""What the size of a model decides, by rules of measurement: optimizers of its tables, and threads."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from polytask.nn.embedding import Tables
from polytask.nn.models import Model
from polytask.nn.precision import choose
from polytask.optimizers import Optimizers, by_row
from polytask.run import TrainConfig

_PER_THREAD = 1 << 29  # multiplications in a step below which a second thread costs more than it brings


def optimizers_of(models: Sequence[Model], config: TrainConfig) -> Optimizers:
    """The optimizers of a stack: those of large tables by what ``config`` says of ``tables``."""
    inputs, tasks = models[0].inputs, models[0].schema.tasks
    negatives = max((t.negatives for t in tasks if t.kind == "ranking"), default=0)
    slots = sum(i.slots * (1 + negatives * (i.side == "item")) for i in inputs)
    found = {}
    for name, module in models[0].named_modules():
        if isinstance(module, Tables):
            height = max(m.get_parameter(f"{name}.weight").shape[0] for m in models)
            found[f"{name}.weight"] = by_row(config.tables, height, config.batch * slots)
    chosen = tuple((name, kind) for name, kind in found.items() if kind is not None)
    return Optimizers(config.optimizer, chosen, config.tables_lr)


def told(optimizers: Optimizers, models: Sequence[Model], config: TrainConfig, compiles: bool) -> list[str]:
    """What was chosen, a line each; ``compiles``: whether programs are compiled."""
    lines = [
        f"{name} ({models[0].get_parameter(name).shape[0]:,} rows) is trained by {kind.replace('_', ' ')}"
        for name, kind in optimizers.by_row
    ]
    if config.compile and not compiles:
        lines.append("compile = true has no effect: there is no C++ compiler on this machine")
    return lines


def choose_precision(models: Sequence[Model], config: TrainConfig) -> list[str]:
    """With precision "auto", let the layers that gain by it compute in bfloat16; a line if any do."""
    # for no rows nothing gains: what an earlier training chose is taken back
    rows = config.batch // config.accumulate if config.precision == "auto" else 0
    return [line for line in dict.fromkeys(choose(model, rows) for model in models) if line]


@contextmanager
def threads(models: Sequence[Model], batch: int) -> Iterator[None]:
    """As many threads as a stack makes use of: one for a small model, for a large one those PyTorch was given.

    Its operators are too short to be shared; on a busy machine sharing them costs several times the time.
    """
    tables = {id(m.weight) for m in models[0].modules() if isinstance(m, Tables)}
    dense = sum(p.numel() for p in models[0].parameters() if id(p) not in tables)
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, dense * batch * len(models) // _PER_THREAD)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
