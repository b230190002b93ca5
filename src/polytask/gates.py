"""How a model's gates are used: which experts each task takes, how evenly, and which none takes."""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from polytask.data.batch import Batch, Part
from polytask.nn.layers import rows_at_once
from polytask.nn.model import MultiTask
from polytask.nn.models import Model

ROWS = 2048
DEAD = 0.01
"""An expert with less than this mean share is dead to the gate."""


class Gated(Protocol):
    """A module that returns shares [B, experts]; ``reader`` is the number of the task that reads the mixture."""

    experts: int
    reader: int | None


@dataclass(frozen=True)
class GateUse:
    """The use of one gate over some rows: ``mean`` share of every expert and its spread ``std`` over the rows.

    Shares of a row add up to 1.

    ``task`` reads the mixture (None: a shared stream). ``entropy`` is the mean over the rows of a row's own
    entropy, as a share of ln(experts): 1 takes all experts alike, 0 takes one. ``balance`` is the entropy of the
    mean shares: 0 takes the same expert on every row. ``dead`` experts have a mean share below :data:`DEAD`.
    """

    gate: str
    task: str | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    entropy: float
    balance: float
    dead: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a file gives them back."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}


@torch.no_grad()
def gate_use(model: Model, part: Part, rows: int = ROWS) -> list[GateUse]:
    """The use of every gate of ``model`` with two experts or more, on the first ``rows`` rows of ``part``.

    Of a part that is streamed it is its sample. The gate of a task with a dot head is left out: no head reads what it
    mixes, so it never learns.
    """
    if not isinstance(model, MultiTask) or not (gates := dict(_gates(model))):
        return []
    seen: dict[str, list[Tensor]] = {}
    part = part.sample
    training = model.training
    model.eval()
    with ExitStack() as hooks:
        for name, module in gates.items():

            def keep(_: Any, __: Any, shares: Tensor, name: str = name) -> None:
                seen.setdefault(name, []).append(shares.detach())

            hooks.enter_context(module.register_forward_hook(keep))
        hooks.callback(model.train, training)
        for index in torch.split(torch.arange(min(rows, len(part))), rows_at_once(model)):
            model(Batch.bare(*part.fields(part.user[index], part.item[index], index)))
    readers = {name: _reader(model, name, gates[name]) for name in gates if name in seen}
    return [_use(name, task, torch.cat(seen[name])) for name, task in readers.items() if _read(model, task)]


def _read(model: MultiTask, task: str | None) -> bool:
    """Whether a head reads what a gate of ``task`` mixes."""
    return task is None or model.schema.task(task).head == "tower"


def _gates(model: MultiTask) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if hasattr(module, "reader") and getattr(module, "experts", 0) > 1:
            yield name, module


def _reader(model: MultiTask, name: str, gate: Gated) -> str | None:
    """The task that reads a gate: in a trunk of its own, that trunk's."""
    if gate.reader is None:
        return None
    trunk = int(name.split(".")[1]) if len(model.trunks) > 1 else 0
    return model.schema.task_names[trunk + gate.reader]


def _use(name: str, task: str | None, shares: Tensor) -> GateUse:
    shares = shares.double()
    shares = shares / shares.sum(dim=-1, keepdim=True).clamp(min=1e-12)  # routing weights need not add up to 1
    mean = shares.mean(dim=0)
    spread = shares.std(dim=0, correction=0)
    return GateUse(
        gate=name,
        task=task,
        mean=cast(tuple[float, ...], tuple(mean.tolist())),
        std=cast(tuple[float, ...], tuple(spread.tolist())),
        entropy=float(_entropy(shares).mean(dim=0)),
        balance=float(_entropy(mean)),
        dead=int((mean < DEAD).sum()),
    )


def _entropy(shares: Tensor) -> Tensor:
    """Entropy [...] of shares [..., E] as a share of ln E, the largest there is."""
    terms: Tensor = torch.special.xlogy(shares, shares)
    return -terms.sum(dim=-1) / math.log(shares.shape[-1])
