"""The model: tables, bodies and heads, with sharing as a property of the model and not a class of its own."""

import math
import re
from collections.abc import Sequence
from inspect import signature
from typing import Any, Literal, NamedTuple, Protocol, Self, get_args

import torch
from torch import Tensor, nn

from polytask import rng
from polytask.errors import ConfigError, did_you_mean
from polytask.nn.bodies import BODIES, Body, Shape
from polytask.nn.embedding import Tables
from polytask.nn.heads import DotHead, TowerHead
from polytask.nn.layers import Draw, initialize_linear
from polytask.schema import Input, Schema, Task

Share = Literal["shared", "separate"]


class Inputs(Protocol):
    """What a batch must hold (see :class:`polytask.data.batch.Batch`)."""

    @property
    def ids(self) -> Tensor:
        """Category indices [..., B, F]."""

    @property
    def numbers(self) -> Tensor:
        """Values [..., B, F] of number fields, 1 for categories."""

    @property
    def negative_ids(self) -> Tensor:
        """Category indices [..., B, n, F_item] of the sampled items."""

    @property
    def negative_numbers(self) -> Tensor:
        """Values [..., B, n, F_item] of the sampled items."""


class Encoded(Protocol):
    """What a model is built from: a part of a split, for its fields and its label means."""

    @property
    def schema(self) -> Schema:
        """Fields and tasks."""

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The fields with their number of embedding rows."""

    def means(self) -> list[float]:
        """Mean label of each task."""


class Design(NamedTuple):
    """The choices that make two models one architecture, so that they can be trained as one stack."""

    body: str = "factorize"
    dim: int = 32
    share: Share = "shared"
    tower: tuple[int, ...] = (64,)
    start_at_mean: bool = True
    options: tuple[tuple[str, Any], ...] = ()

    @staticmethod
    def frozen(options: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
        """A body's options in the order and form that make equal designs equal and hashable."""
        return tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in sorted(options.items()))


class MultiTask(nn.Module):
    """Embeddings, one body (``shared``) or one per task (``separate``), and a head per task.

    With ``share = "separate"`` each task has its own tables and body, so nothing is shared and the model is
    T single-task models side by side. ``tower`` are the hidden widths of tower heads. With
    ``start_at_mean`` an output bias starts at the training mean (regression) or log-odds (binary).
    """

    def __init__(self, schema: Schema, inputs: tuple[Input, ...], design: Design, means: Sequence[float]) -> None:
        super().__init__()
        self.schema, self.inputs, self.design = schema, inputs, design
        copies = len(schema.tasks) if design.share == "separate" else 1
        self.shape = Shape(inputs, design.dim, len(schema.tasks) // copies)
        self.tables = nn.ModuleList(Tables(inputs, design.dim) for _ in range(copies))
        self.bodies = nn.ModuleList(_body(design, self.shape) for _ in range(copies))
        self.heads = nn.ModuleList(self._head(t, m) for t, m in zip(schema.tasks, means, strict=True))
        self.initialize(lambda name: rng.generator(0, f"init/{name}"))

    @classmethod
    def build(
        cls,
        part: Encoded,
        *,
        body: str = "factorize",
        dim: int = 32,
        share: Share = "shared",
        tower: Sequence[int] = (64,),
        start_at_mean: bool = True,
        options: dict[str, Any] | None = None,
    ) -> Self:
        """A model for the fields and tasks of ``part`` (the training part of a split).

        ``options`` go to the body. Parameters hold the values of seed 0 until :func:`polytask.fit` starts them.
        """
        design = Design(body, dim, share, tuple(tower), start_at_mean, Design.frozen(options or {}))
        return cls.of(part, design)

    @classmethod
    def of(cls, part: Encoded, design: Design) -> Self:
        """A model for the fields and tasks of ``part``, by a ``design`` that is already put together."""
        return cls(part.schema, part.inputs, _checked(design), part.means())

    def _head(self, task: Task, mean: float) -> nn.Module:
        start = _start(task, mean) if self.design.start_at_mean else None
        if task.head == "dot":
            needed = 0.0 if start is None and task.kind != "ranking" else start
            return DotHead(self.shape, bias=task.bias, start=needed)
        return TowerHead(self._body(0).width, self.design.tower, start)

    def initialize(self, draw: Draw) -> None:
        """Start every parameter; ``draw`` gives the generator that belongs to a parameter's name.

        Separate trunks all start as the shared one does, so that each is exactly its task's single-task model.
        """
        for own, module in self.named_modules():
            name = re.sub(r"^(tables|bodies)\.\d+", r"\1.0", own)
            if isinstance(module, nn.Linear):
                initialize_linear(module, name, draw)
            elif isinstance(module, Tables):
                module.initialize(name, draw)
        for head in self.heads:
            if isinstance(head, TowerHead | DotHead):
                head.finish()

    def trunk(self, task: int) -> int:
        """Which tables and body the ``task``-th task reads."""
        return task if self.design.share == "separate" else 0

    def shared(self) -> list[nn.Parameter]:
        """Parameters that several tasks read; none when the tasks are separate."""
        return [] if len(self.tables) > 1 else [*self.tables.parameters(), *self.bodies.parameters()]

    def own(self, task: str) -> list[nn.Parameter]:
        """Parameters that only ``task`` reads."""
        number = self.schema.task_names.index(self.schema.task(task).name)
        trunk = [self.tables[number], self.bodies[number]] if len(self.tables) > 1 else []
        return [p for m in (*trunk, self.heads[number]) for p in m.parameters()]

    def read_by(self, tasks: Sequence[str]) -> list[nn.Parameter]:
        """Parameters that at least one of ``tasks`` reads."""
        return [*self.shared(), *(p for t in tasks for p in self.own(t))]

    def lookups(self, batch: Inputs) -> dict[str, Tensor]:
        """For each table, by parameter name, the row numbers [..., B, S] that ``batch`` reads.

        The S slots are the row's F fields and then, where a ranking task reads the table, the item fields of
        its n negatives: the user's are not looked up again.
        """
        found: dict[str, Tensor] = {}
        for number in range(len(self.tables)):
            rows = self._tables(number).rows(batch.ids)
            if self._ranks(number):
                items = self._tables(number).rows(batch.negative_ids, self.shape.side("item"))
                rows = torch.cat([rows, items.flatten(start_dim=-2)], dim=-1)
            found[f"tables.{number}.weight"] = rows
        for number, head in enumerate(self.heads):
            if isinstance(head, DotHead) and head.bias is not None:
                first = [batch.ids[..., s.start, None] for s in (head.user, head.item)]
                ranks = self._ranks(self.trunk(number)) and batch.negative_ids.shape[-1]
                items = batch.negative_ids[..., :, 0] if ranks else batch.ids[..., :0]
                rows = torch.cat([first[0], *(i + head.bias.offsets[1] for i in (first[1], items))], dim=-1)
                found[f"heads.{number}.bias.weight"] = rows
        return found

    def forward(self, batch: Inputs, rows: dict[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """Logits of each task: [B], or for a ranking task with n > 0 negatives [B, 1 + n], the row's own first.

        ``rows`` are the looked-up table rows [B, S, dim] of :meth:`lookups`, for a caller that takes
        gradients with respect to them; without it they are looked up here.
        """
        if rows is None:
            rows = {name: self.get_parameter(name)[index] for name, index in self.lookups(batch).items()}
        embedded = [
            self._embedded(number, rows[f"tables.{number}.weight"], batch) for number in range(len(self.tables))
        ]
        bodies = [self._body(n)(x) if self._towers(n) else None for n, (x, _) in enumerate(embedded)]
        return tuple(self._logits(n, embedded, bodies, rows) for n in range(len(self.heads)))

    def _embedded(self, number: int, rows: Tensor, batch: Inputs) -> tuple[Tensor, Tensor]:
        """Embeddings [B, F, dim] of the batch's rows and [B, n, F_item, dim] of their negatives."""
        fields = len(self.inputs)
        x, negatives = torch.split(rows, [fields, rows.shape[1] - fields], dim=1)
        negatives = self._negatives(negatives)
        if any(i.kind == "number" for i in self.inputs):
            x = x * batch.numbers[..., None]
            negatives = negatives * batch.negative_numbers[..., None] if self._ranks(number) else negatives
        return x, negatives

    def _logits(
        self, task: int, embedded: list[tuple[Tensor, Tensor]], bodies: list[Any], rows: dict[str, Tensor]
    ) -> Tensor:
        trunk, head = self.trunk(task), self.heads[task]
        x, negatives = embedded[trunk]
        positive: Tensor
        negative: Tensor
        if isinstance(head, DotHead):
            positive, negative = head(x, negatives, rows.get(f"heads.{task}.bias.weight"))
        else:
            place = 0 if len(self.tables) > 1 else task
            positive = head(bodies[trunk][place])
            negative = self._tower_negatives(task, place, x, negatives)
        if self.schema.tasks[task].kind != "ranking" or not negative.shape[1]:
            return positive
        if len({t.negatives for t in self.schema.tasks if t.kind == "ranking"}) > 1:  # drawn for the neediest
            negative = negative[:, : self.schema.tasks[task].negatives]
        return torch.cat([positive[:, None], negative], dim=1)

    def _tower_negatives(self, task: int, place: int, x: Tensor, negatives: Tensor) -> Tensor:
        """Logits [B, n] of each row with its item fields replaced by those of its negatives."""
        count = negatives.shape[1]
        if self.schema.tasks[task].kind != "ranking" or not count:
            return x.new_zeros(len(x), 0)
        item = self.shape.side("item")
        repeated = x[:, None].expand(-1, count, -1, -1)
        swapped = torch.cat([repeated[:, :, : item.start], negatives, repeated[:, :, item.stop :]], dim=2)
        hidden = self._body(self.trunk(task))(swapped.flatten(end_dim=1))
        logits: Tensor = self.heads[task](hidden[place])
        return logits.view(len(x), count)

    def user_vectors(self, task: str, ids: Tensor, numbers: Tensor) -> Tensor:
        """Vectors [U, dim + 1] of a dot head whose product with :meth:`item_vectors` orders items for each user."""
        head, tables = self._dot(task)
        vectors = pooled_rows(tables, ids, numbers, head.user)
        return torch.cat([vectors, torch.ones_like(vectors[:, :1])], dim=1)

    def item_vectors(self, task: str, ids: Tensor, numbers: Tensor) -> Tensor:
        """Vectors [I, dim + 1] of a dot head: the item's embedding and its first-order term."""
        head, tables = self._dot(task)
        vectors = pooled_rows(tables, ids, numbers, head.item)
        own = vectors[:, :1] * 0 if head.bias is None else head.bias.weight[ids[:, 0] + head.bias.offsets[1]]
        return torch.cat([vectors, own], dim=1)

    def _dot(self, task: str) -> tuple[DotHead, Tables]:
        number = self.schema.task_names.index(self.schema.task(task).name)
        head = self.heads[number]
        if not isinstance(head, DotHead):
            raise ConfigError(f"task '{task}' has a tower head, which has no vectors; use head = \"dot\"")
        return head, self._tables(self.trunk(number))

    def _negatives(self, rows: Tensor) -> Tensor:
        """Rows [B, n * F_item, dim] as [B, n, F_item, dim]."""
        item = self.shape.side("item")
        width = max(int(item.stop - item.start), 1)
        return rows.reshape(len(rows), rows.shape[1] // width, width, rows.shape[2])

    def _ranks(self, number: int) -> bool:
        return any(t.kind == "ranking" and self.trunk(n) == number for n, t in enumerate(self.schema.tasks))

    def _towers(self, number: int) -> bool:
        return any(t.head == "tower" and self.trunk(n) == number for n, t in enumerate(self.schema.tasks))

    def _tables(self, number: int) -> Tables:
        tables = self.tables[number]
        assert isinstance(tables, Tables)
        return tables

    def _body(self, number: int) -> Body:
        body: Any = self.bodies[number]
        return body  # type: ignore[no-any-return]


def pooled_rows(tables: Tables, ids: Tensor, numbers: Tensor, fields: slice) -> Tensor:
    """Sum [V, dim] of the embeddings of one side's fields, given their ids and numbers [V, F_side]."""
    embedded: Tensor = tables(ids, numbers, fields)
    return embedded.sum(dim=1)


def _start(task: Task, mean: float) -> float | None:
    if task.kind == "ranking":
        return None
    inside = min(max(mean, 1e-4), 1 - 1e-4)
    return mean if task.kind == "regression" else math.log(inside / (1 - inside))


def _checked(design: Design) -> Design:
    if design.body not in BODIES:
        raise ConfigError(did_you_mean("body", design.body, BODIES))
    if design.share not in get_args(Share):
        raise ConfigError(did_you_mean("share", design.share, get_args(Share)))
    if design.dim < 1:
        raise ConfigError(f"dim = {design.dim} must be at least 1")
    if min(design.tower, default=1) < 1:
        raise ConfigError(f"tower = {list(design.tower)}: every width must be at least 1")
    known = [n for n, p in signature(BODIES[design.body]).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name, _ in design.options:
        if name not in known:
            raise ConfigError(did_you_mean(f"option of body '{design.body}'", name, known))
    return design


def _body(design: Design, shape: Shape) -> nn.Module:
    body: nn.Module = BODIES[design.body](shape, **dict(design.options))
    return body
