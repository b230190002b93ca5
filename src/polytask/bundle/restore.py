"""A model from its design and its tensors, without the data it was trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from polytask.data.encode import Catalogue, Encoder
from polytask.errors import StateError
from polytask.loss import Observed
from polytask.nn.design import Design
from polytask.nn.models import Model, make_model
from polytask.schema import Input, Schema

_FEW = 1 << 12  # a count that needs no proof, and of numbers its square
_PER_ROW = {"row_user": "users", "row_item": "items", "row_residual": "users"}  # and the sides they point to
_AMPLE = 4, 8  # times the numbers and the tensors of a model: what building it may take
_MAKERS = {torch.zeros, torch.empty, torch.ones, torch.full, torch.randn, torch.rand, torch.arange, torch.eye}


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
    hold are a :class:`StateError`, one that cannot be a :class:`ConfigError`.
    """
    held = sum(t.numel() for t in tensors.values())
    _check_counts([*design, *(tuple(t.options.values()) for t in encoder.schema.tasks)], max(held, _FEW))
    with _Bounded(_AMPLE[0] * held + _FEW**2, _AMPLE[1] * len(tensors) + _FEW):
        model = make_model(Blank(encoder), design)
    expected = model.state_dict()
    if differing := sorted(expected.keys() ^ tensors.keys()):
        raise StateError(f"the tensors do not fit the design: '{differing[0]}' is missing or unknown")
    _check_rows(tensors)
    for name, own in expected.items():
        value = tensors[name]
        if value.dtype != own.dtype or value.dim() != own.dim() or not _fits(name, value, own):
            shapes = f"{[*value.shape]} {value.dtype}, the design needs {[*own.shape]} {own.dtype}"
            raise StateError(f"the tensors do not fit the design: '{name}' is {shapes}")
        if value.shape == own.shape:
            own.copy_(value)
        else:
            path, _, last = name.rpartition(".")
            setattr(model.get_submodule(path), last, value)
    return model.eval().requires_grad_(False)


def _fits(name: str, value: Tensor, own: Tensor) -> bool:
    """Whether the shape of a tensor is right, where it does not depend on how many rows there were in training."""
    if name in _PER_ROW:
        return True
    if name.startswith("losses."):
        return value.shape[:1] == own.shape[:1]
    return value.shape == own.shape


def _check_rows(tensors: Mapping[str, Tensor]) -> None:
    """The training rows a model of histories keeps must be of users and items there are."""
    rows = [(tensors[name], len(tensors[side])) for name, side in _PER_ROW.items() if name in tensors]
    if len({value.shape for value, _ in rows}) > 1:
        raise StateError(f"the tensors do not fit the design: {', '.join(_PER_ROW)} differ in length")
    for value, count in rows:
        if not value.is_floating_point() and bool(((value < 0) | (value >= count)).any()):
            raise StateError("the tensors do not fit the design: a training row is of a user or item there is none of")


class _Bounded(TorchFunctionMode):
    """Lets no more than ``tensors`` tensors of ``numbers`` numbers in all be made, and asks before memory is taken."""

    def __init__(self, numbers: int, tensors: int) -> None:
        super().__init__()
        self.numbers, self.tensors = numbers, tensors

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _MAKERS:
            self.numbers -= func(*args, **kwargs | {"device": "meta"}).numel()
            self.tensors -= 1
            if self.numbers < 0 or self.tensors < 0:
                raise StateError("the design asks for far more numbers than the tensors hold")
        return func(*args, **kwargs)


def _check_counts(value: Any, most: int) -> None:
    """Refuse a width, or a count of experts, levels or members, that is larger than all tensors together."""
    if isinstance(value, int) and value > most:
        raise StateError(f"the design asks for {value:,} of something, more than the numbers of all tensors")
    if isinstance(value, list | tuple):
        for one in value:
            _check_counts(one, most)
