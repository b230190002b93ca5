"""A model from its design and its tensors, without the data it was trained on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from polytask.data.encode import Catalogue, Encoder
from polytask.errors import ConfigError, StateError
from polytask.loss import Observed
from polytask.nn.design import Design
from polytask.nn.models import Model, make_model
from polytask.schema import Input, Schema

_FEW = 1 << 12  # a count of experts, levels or heads that needs no proof


@dataclass(frozen=True)
class Blank:
    """A training part of one row about which nothing is known, to build a model from before its tensors are put in."""

    encoder: Encoder

    @property
    def schema(self) -> Schema:
        """Fields and tasks."""
        return self.encoder.schema

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The fields as the model sees them."""
        return self.encoder.inputs

    @property
    def user(self) -> Tensor:
        """The unknown user [1]."""
        return torch.zeros(1, dtype=torch.int64)

    @property
    def item(self) -> Tensor:
        """The unknown item [1]."""
        return torch.zeros(1, dtype=torch.int64)

    @property
    def labels(self) -> Tensor:
        """No label [1, T]."""
        return torch.full((1, len(self.schema.tasks)), torch.nan)

    @property
    def sides(self) -> dict[str, Catalogue | None]:
        """The encoded fields of all users and all items."""
        return {"user": self.encoder.users, "item": self.encoder.items}

    def observed(self, task: int) -> Observed:
        """Two made-up rows that any loss can be fitted on; what it fits is replaced by the bundle's."""
        items = 0 if self.encoder.items is None else len(self.encoder.items)
        two = torch.tensor([0.0, 1.0])
        return Observed(two, two + 1, torch.zeros(items, dtype=torch.int64), two.flip(dims=[0]))


def restore(encoder: Encoder, design: Design, tensors: Mapping[str, Tensor]) -> Model:
    """The model of ``design`` with the parameters and fitted constants ``tensors``, ready to serve.

    A parameter of another shape, a missing or unknown one, and a design that asks for far more than the tensors
    hold are a :class:`StateError`.
    """
    _check_size(design, tensors)
    try:
        model = make_model(Blank(encoder), design)
    except ConfigError as error:
        raise StateError(f"the bundle's design cannot be built: {error}") from None
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    expected = model.state_dict().keys()
    if differing := sorted(expected ^ tensors.keys()):
        raise StateError(f"the bundle's tensors do not fit its design: '{differing[0]}' is missing or unknown")
    with torch.no_grad():
        for name in expected:
            value = tensors[name]
            if name in parameters:
                if parameters[name].shape != value.shape:
                    shapes = f"{[*value.shape]}, the design needs {[*parameters[name].shape]}"
                    raise StateError(f"the bundle's tensors do not fit its design: '{name}' is {shapes}")
                parameters[name].copy_(value)
            elif name in buffers:  # its size is that of the training data
                _put(model, name, value.to(buffers[name].dtype))
    return model.eval().requires_grad_(False)


def _put(model: nn.Module, name: str, value: Tensor) -> None:
    path, _, own = name.rpartition(".")
    setattr(model.get_submodule(path), own, value)


def _check_size(design: Design, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a design whose layers would be far larger than the tensors beside it, before memory is asked for."""
    held = sum(t.numel() for t in tensors.values())
    for widths in _widths([design.dim, design.tower, design.options, design.blocks]):
        pairs = pairwise(widths)
        if max(widths, default=0) > max(held, _FEW) or any(prod(p) > max(held, _FEW**2) for p in pairs):
            raise StateError(f"the bundle's design asks for layers {list(widths)}, its tensors hold {held:,} numbers")


def _widths(value: Any) -> Iterator[Sequence[int]]:
    """Every number, and every run of numbers, in nested options."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield (value,)
    elif isinstance(value, list | tuple):
        if value and all(isinstance(v, int) for v in value):
            yield value
        else:
            for one in value:
                yield from _widths(one)
