"""The whole way from indices to calibrated predictions as one module: what exporters write down."""

from typing import Any

import torch
from torch import Tensor, nn

from polytask.bundle import Bundle
from polytask.data.batch import Batch
from polytask.data.encode import Catalogue, Encoder
from polytask.data.history import Histories, Log
from polytask.export.inputs import ITEM, USER, inputs
from polytask.nn.model import MultiTask
from polytask.recommend.scorer import Scorer
from polytask.schema import Field, Input

Slots = tuple[Tensor, Tensor]
"""Ids [B, S] int64 and numbers [B, S] float32 of some fields."""


class Served(nn.Module):
    """What a bundle says of rows, given their :func:`polytask.export.inputs.inputs` in order.

    The fields of all known users and items, and what users had, are part of it, so that an index is all it needs to
    know of either; an index beyond them counts as unknown. Predictions are those of ``Bundle.score``.
    """

    typical: Tensor

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        contents, scorer = bundle.contents, bundle.scorer
        self.tasks, self.schema, self.calibration = bundle.tasks, bundle.schema, contents.calibration
        self.inputs = inputs(self.schema)
        self.register_buffer("typical", contents.by)
        known = {USER: contents.encoder.users, ITEM: contents.encoder.items}
        self.sizes = {name: len(side) for name, side in known.items() if side is not None}
        self.model = Slotted(scorer) if isinstance(scorer.model, MultiTask) else Products(scorer)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Predictions [B] of each task, from one tensor for each of ``inputs``."""
        given = dict(zip((one.name for one in self.inputs), values, strict=True))
        nobody = values[0].new_zeros(values[0].shape[0], dtype=torch.int64)
        sides = [bounded(given[n], self.sizes[n]) if n in given else nobody for n in (USER, ITEM)]
        predicted = self.model(*sides, given, self._by(sides[1], given))
        each = zip(self.tasks, predicted.unbind(dim=1), strict=True)
        return tuple(self.calibration[t].apply(v) if t in self.calibration else v for t, v in each)

    def _by(self, item: Tensor, given: dict[str, Tensor]) -> Tensor | None:
        """Second columns [B, T] of the tasks: the given ones, and where they are missing those typical of the item."""
        if not any(t.by for t in self.schema.tasks):
            return None
        columns = self.typical[item].unbind(dim=1)
        pairs = zip(self.schema.tasks, columns, strict=True)
        return torch.stack(
            [torch.where(given[t.by].isnan(), c, given[t.by].float()) if t.by else c for t, c in pairs], dim=1
        )


class Slotted(nn.Module):
    """A :class:`MultiTask` above the slots of users, items and context."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        encoder = scorer.encoder
        assert isinstance(scorer.model, MultiTask)
        self.model, self.places = scorer.model, scorer.places
        self.user = None if encoder.users is None else Side(encoder.users)
        self.item = None if encoder.items is None else Side(encoder.items)
        past = [i for i in encoder.inputs if i.kind == "history"]
        self.past = nn.ModuleList(Past(i, scorer.log, encoder) for i in past if scorer.log is not None)
        fields = [f for f in encoder.schema.inputs if f.side == "context"]
        self.names = [f.name for f in fields]
        self.context = nn.ModuleList(_reader(f, encoder) for f in fields)

    def forward(self, user: Tensor, item: Tensor, given: dict[str, Tensor], by: Tensor | None) -> Tensor:
        """Predictions [B, T] of users [B] and items [B] before calibration."""
        slots: list[Slots] = []
        if self.user is not None:
            slots += [self.user(user), *(past(user, item) for past in self.past)]
        if self.item is not None:
            slots.append(self.item(item))
        slots += [read(given.get(name, user)) for name, read in zip(self.names, self.context, strict=True)]
        ids, numbers = (torch.cat(parts, dim=1) for parts in zip(*slots, strict=True))
        return self.model.values(Batch.bare(ids, numbers, by))[:, self.places]


class Products(nn.Module):
    """A model of whole users and items, whose predictions are inner products of vectors known beforehand."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        users = scorer.encoder.users
        assert users is not None
        everyone = scorer.users(torch.arange(len(users)))
        self.count = len(scorer.tasks)
        for number, task in enumerate(scorer.tasks):
            self.register_buffer(f"user{number}", scorer.user_vectors(task, everyone).contiguous())
            self.register_buffer(f"item{number}", scorer.item_vectors(task))

    def forward(self, user: Tensor, item: Tensor, given: dict[str, Tensor], by: Tensor | None) -> Tensor:
        """Predictions [B, T] of users [B] and items [B]."""
        pairs = [(self.get_buffer(f"user{n}"), self.get_buffer(f"item{n}")) for n in range(self.count)]
        return torch.stack([(left[user] * right[item]).sum(dim=1) for left, right in pairs], dim=1)


class Side(nn.Module):
    """The encoded fields of all users or items."""

    ids: Tensor
    numbers: Tensor

    def __init__(self, side: Catalogue) -> None:
        super().__init__()
        self.register_buffer("ids", side.ids.int())  # half the size, of files as well
        self.register_buffer("numbers", side.numbers)

    def forward(self, index: Tensor) -> Slots:
        """The slots of users or items ``index`` [B]."""
        return self.ids[index].long(), self.numbers[index]


class Past(nn.Module):
    """One history field: the items of all users, a row's own left out where there are no times."""

    items: Tensor
    rows: Tensor

    def __init__(self, one: Input, log: Log, encoder: Encoder) -> None:
        super().__init__()
        assert encoder.users is not None and encoder.items is not None
        none = torch.zeros(0, dtype=torch.int64)
        every = Histories((one,), log, none, none, none, torch.arange(len(encoder.items)))
        self.register_buffer("items", every.of_users(torch.arange(len(encoder.users))).ids.int())
        self.register_buffer("rows", encoder.items.ids[:, 0].clone())
        self.timed, self.mean = log.time is not None, one.pool == "mean"

    def forward(self, user: Tensor, item: Tensor) -> Slots:
        """The slots of users [B] asked about items [B]."""
        items = self.items[user].long()
        there = items > 0
        if not self.timed:
            there = there & (items != item[:, None])
        share = _shares(there) if self.mean else there.float()
        return torch.where(there, self.rows[items], 0), share


class Category(nn.Module):
    """A value of a vocabulary, by index."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, value: Tensor) -> Slots:
        """The slot of indices [B]."""
        return bounded(value, self.size)[:, None], torch.ones_like(value, dtype=torch.float32)[:, None]


class Bag(Category):
    """Several values of a vocabulary, of which the mean counts."""

    def forward(self, value: Tensor) -> Slots:
        """The slots of indices [B, S], 0 where there are no more."""
        ids = bounded(value, self.size)
        return ids, _shares(ids > 0)


class Number(nn.Module):
    """A number, standardized, after log(1 + x) if it is so scaled; a missing one is the mean."""

    def __init__(self, mean: float, scale: float, log: bool) -> None:
        super().__init__()
        self.mean, self.scale, self.log = mean, scale, log

    def forward(self, value: Tensor) -> Slots:
        """The slot of numbers [B]."""
        scaled = value.abs().log1p() * value.sign() if self.log else value
        standard = torch.where(value.isnan(), 0.0, (scaled - self.mean) / self.scale)
        return torch.zeros_like(value, dtype=torch.int64)[:, None], standard.float()[:, None]


class Bucket(nn.Module):
    """A number by its quantile; a missing one is unknown."""

    edges: Tensor

    def __init__(self, edges: Tensor) -> None:
        super().__init__()
        self.register_buffer("edges", edges)

    def forward(self, value: Tensor) -> Slots:
        """The slot of numbers [B]."""
        place = (self.edges <= value[:, None]).sum(dim=1) + 1
        ids = torch.where(value.isnan(), 0, place)
        return ids[:, None], torch.ones_like(ids, dtype=torch.float32)[:, None]


class Hidden(nn.Module):
    """A field of the display, which is unknown to whoever recommends."""

    def __init__(self, one: Input) -> None:
        super().__init__()
        self.slots, self.number = one.slots, float(one.kind == "category")

    def forward(self, value: Tensor) -> Slots:
        """The slots of as many rows as ``value`` has."""
        ids = value.new_zeros(value.shape[0], self.slots, dtype=torch.int64)
        return ids, torch.full_like(ids, self.number, dtype=torch.float32)


def bounded(index: Tensor, size: int) -> Tensor:
    """Indices [...] in 0..size - 1, others as 0: the unknown."""
    return torch.where((index >= 0) & (index < size), index, 0)


def _reader(field: Field, encoder: Encoder) -> nn.Module:
    """What turns the input of a context field into its slots."""
    one: Any = next(i for i in encoder.inputs if i.name == field.name)
    if field.name in encoder.schema.bias_fields:
        return Hidden(one)
    if field.name in encoder.edges:
        return Bucket(torch.from_numpy(encoder.edges[field.name]))
    if field.kind == "number":
        return Number(*encoder.scales[field.name], log=field.scale == "log")
    return (Bag if field.kind == "categories" else Category)(one.size)


def _shares(there: Tensor) -> Tensor:
    """1 / n [B, S] in the n slots of every row that are filled."""
    return there / there.sum(dim=1, keepdim=True).clamp(min=1)
