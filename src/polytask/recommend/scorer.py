"""What a model predicts: for rows, and for a user's whole catalogue, from encoded sides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polytask.calibration import Calibration
from polytask.data.batch import Batch
from polytask.data.encode import Catalogue, Encoder
from polytask.data.history import Histories, Log
from polytask.loss import Context
from polytask.nn.layers import rows_at_once
from polytask.nn.model import MultiTask
from polytask.nn.models import Model


@dataclass(frozen=True, eq=False)
class Person:
    """Users as the model reads them: their encoded slots ``side`` [U, S_user], histories included.

    ``rows`` take the place of the embedding rows of their ids, by parameter name [U, dim]: of users the model was not
    trained on, which are folded in from what they had. ``had`` [U, I + 1] marks those items for a model that reads
    whole histories.
    """

    side: Catalogue
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    had: Tensor | None = None

    def __len__(self) -> int:
        return len(self.side)

    def repeated(self, place: Tensor) -> "Person":
        """The users at the places [N]."""
        rows = {name: value[place] for name, value in self.rows.items()}
        return Person(_taken(self.side, place), rows, None if self.had is None else self.had[place])


class Scorer:
    """The predictions of ``model`` for the trained ``tasks``, binary ones through their ``calibration``.

    ``log`` is what every user had, for history fields; ``by`` [I + 1, T] a typical second column of every item for the
    tasks that read one (NaN elsewhere). Values are probabilities, values in the unit of the label, or the logit of a
    ranking.
    """

    def __init__(
        self,
        model: Model,
        encoder: Encoder,
        tasks: Sequence[str],
        *,
        calibration: Mapping[str, Calibration] | None = None,
        log: Log | None = None,
        by: Tensor | None = None,
    ) -> None:
        self.model, self.encoder, self.tasks = model, encoder, tuple(tasks)
        self._rows = rows_at_once(model)  # asked for here, since answers of some rows are quick
        self.calibration, self.log, self.by = dict(calibration or {}), log, by
        self.places = [model.schema.task_names.index(t) for t in self.tasks]

    @property
    def dot(self) -> tuple[str, ...]:
        """The tasks whose values are inner products of a user's and an item's vector."""
        if not isinstance(self.model, MultiTask):
            return self.tasks
        return tuple(t for t in self.tasks if self.model.schema.task(t).head == "dot")

    @property
    def all_dot(self) -> bool:
        """Whether every task is scored by vectors alone."""
        tasks = [self.model.schema.task(t) for t in self.tasks]
        return len(self.dot) == len(tasks) and not any(t.given or t.by for t in tasks)

    @property
    def width(self) -> int:
        """Number of items, the unknown one included."""
        return 0 if self.encoder.items is None else len(self.encoder.items)

    def users(
        self, index: Tensor, side: Catalogue | None = None, own: Tensor | None = None, log: Log | None = None
    ) -> Person:
        """The users ``index`` [N] (0: unknown) with all that is known of them.

        ``side`` [N, S] are their encoded fields, and ``log`` what they had, where these are given in place of the
        known ones. ``own`` [N] are items to be left out of histories that are sets.
        """
        log = self.log if log is None else log
        encoder = self.encoder
        found = _taken(encoder.users, index) if side is None and encoder.users is not None else side
        found = Catalogue.empty(len(index)) if found is None else found
        inputs = [i for i in encoder.inputs if i.kind == "history"]
        if inputs and log is not None and encoder.items is not None:
            start, end = log.span(index)
            own = torch.zeros_like(index) if own is None else own
            past = Histories(tuple(inputs), log, start, end, own, encoder.items.ids[:, 0])
            found = found.beside(past.of_rows(torch.arange(len(index))))
        return Person(found)

    @torch.no_grad()
    def values(
        self, user: Person, item: Catalogue, context: Catalogue, by: Tensor | None = None, *, raw: bool = False
    ) -> Tensor:
        """Predictions [N, T] for N users, items and contexts, row by row; ``raw`` leaves out the calibration."""
        side = user.side.beside(item).beside(context)
        found = []
        for rows in torch.split(torch.arange(len(side)), self._rows):
            batch = Batch.bare(side.ids[rows], side.numbers[rows], None if by is None else by[rows])
            found.append(self._predicted(batch, {n: v[rows] for n, v in user.rows.items()}))
        values = torch.cat(found)[:, self.places] if found else torch.zeros(0, len(self.tasks))
        return values if raw else self._calibrated(values)

    def pairs(self, user: Person, items: Tensor, context: Catalogue | None = None, *, raw: bool = False) -> Tensor:
        """Predictions [N, T] of one user, or of N, for the items [N]."""
        place = torch.arange(len(items)) if len(user) == len(items) else torch.zeros_like(items)
        if user.had is not None:
            found = [self.user_vectors(t, user)[place] * self.item_vectors(t)[items] for t in self.tasks]
            values = torch.stack([products.sum(dim=1) for products in found], dim=1)
            return values if raw else self._calibrated(values)
        shown = self._context(context, len(items))
        by = None if self.by is None else self.by[items]
        return self.values(user.repeated(place), self._items(items), shown, by, raw=raw)

    @torch.no_grad()
    def grid(self, user: Person, context: Catalogue | None = None) -> np.ndarray:
        """Predictions [T, U, I + 1] float32 of every item for every user; item 0 is the unknown one."""
        if self.all_dot:
            return self._products(user)
        items = torch.arange(self.width)
        each = [self.pairs(user.repeated(n), items, context).T for n in torch.arange(len(user))[:, None]]
        return torch.stack(each, dim=1).numpy()

    def user_vectors(self, task: str, user: Person) -> Tensor:
        """Vectors [U, W] of users for a task of ``dot``; products with :meth:`item_vectors` order the items."""
        ids, numbers = user.side.ids, user.side.numbers
        if not isinstance(self.model, MultiTask):
            return self.model.user_vectors(task, ids, numbers, user.had)
        row = user.rows.get(f"tables.{self.model.trunk(self.model.schema.task_names.index(task))}.weight")
        if row is None:
            return self.model.user_vectors(task, ids, numbers)
        others = numbers.index_fill(1, torch.tensor([0]), 0.0)  # the user's id is the first slot
        return self.model.user_vectors(task, ids, others) + F.pad(row, (0, 1))

    def item_vectors(self, task: str) -> Tensor:
        """Vectors [I + 1, W] of all items for a task of ``dot``."""
        return self._item_vectors[task]

    @cached_property
    def _item_vectors(self) -> dict[str, Tensor]:
        items = self.encoder.items
        assert items is not None
        with torch.no_grad():
            return {t: self.model.item_vectors(t, items.ids, items.numbers).contiguous() for t in self.dot}

    @torch.no_grad()
    def item_embeddings(self) -> Tensor:
        """What the model knows of every item by itself [I + 1, W]: near ones are alike to it."""
        if isinstance(self.model, MultiTask):
            assert self.encoder.items is not None
            return self.model.item_embeddings(self.encoder.items.ids, self.encoder.items.numbers)
        return self.item_vectors(self.dot[0])

    def _products(self, user: Person) -> np.ndarray:
        found = []
        for task in self.tasks:
            logits = self.user_vectors(task, user) @ self.item_vectors(task).T
            if isinstance(self.model, MultiTask):
                number = self.model.schema.task_names.index(task)
                level = self.model.user_levels(task, user.side.ids, user.rows.get(f"heads.{number}.bias.weight"))
                logits = level[:, None] + logits
                loss: Any = self.model.losses[number]
                logits = loss.predict(logits.flatten(), Context()).view(logits.shape)
            found.append(self._calibrate(task, logits))
        return torch.stack(found).numpy()

    def _predicted(self, batch: Batch, rows: Mapping[str, Tensor]) -> Tensor:
        if not rows or not isinstance(self.model, MultiTask):
            return self.model.values(batch)
        looked = {n: self.model.get_parameter(n)[index] for n, index in self.model.lookups(batch).items()}
        for name, value in rows.items():  # the user's id is the first slot of every table
            looked[name] = torch.cat([value[:, None], looked[name][:, 1:]], dim=1)
        return self.model.values(batch, looked)

    def _calibrated(self, values: Tensor) -> Tensor:
        return torch.stack([self._calibrate(t, values[:, n]) for n, t in enumerate(self.tasks)], dim=1)

    def _calibrate(self, task: str, values: Tensor) -> Tensor:
        return self.calibration[task].apply(values) if task in self.calibration else values

    def _items(self, items: Tensor) -> Catalogue:
        return Catalogue.empty(len(items)) if self.encoder.items is None else _taken(self.encoder.items, items)

    def _context(self, context: Catalogue | None, rows: int) -> Catalogue:
        found = self.encoder.unknown("context") if context is None else context
        return _taken(found, torch.zeros(rows, dtype=torch.int64)) if len(found) == 1 else found


def _taken(side: Catalogue, rows: Tensor) -> Catalogue:
    return Catalogue(side.ids[rows], side.numbers[rows])
