"""The model: tables, trunks and heads, with sharing as a property of the model and not a class of its own."""

import re
from collections.abc import Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from polytask import rng
from polytask.errors import ConfigError
from polytask.loss import Context, LossKind, TaskLoss, loss, make_loss, task_loss
from polytask.nn.bodies import Shape
from polytask.nn.contexts import contexts
from polytask.nn.design import Design, Share
from polytask.nn.embedding import Tables
from polytask.nn.heads import BiasTower, DotHead, TowerHead
from polytask.nn.inputs import Encoded, Inputs
from polytask.nn.layers import Draw, Initialized, Uniform, initialize_linear
from polytask.nn.pooling import slots_of
from polytask.nn.trunk import Trunk
from polytask.schema import Side, Task

T = TypeVar("T")

_CROSS: tuple[LossKind, ...] = ("in_batch", "catalogue")
EVERY = "@every"  # marks the rows of all items among the looked-up rows of a table


class MultiTask(nn.Module):
    """Embedding tables, a trunk (one for all tasks, or one per task), and per task a head and a loss.

    With ``share = "separate"`` each task has its own tables and trunk, so nothing is shared and the model is
    T single-task models side by side; with ``"both"`` each task has tables of its own beside shared ones, last.
    """

    def __init__(self, part: Encoded, design: Design) -> None:
        super().__init__()
        self.schema, self.inputs, self.design = part.schema, part.inputs, design.checked()
        names, tasks = self.schema.task_names, self.schema.tasks
        separate = design.share == "separate"
        groups = [(n,) for n in names] if separate else [names]
        self.shape = Shape(self.inputs, design.dim, len(groups[0]))
        self.user_slots, self.item_slots = self._slots("user"), self._slots("item")
        self.tables = nn.ModuleList(
            Tables(self.inputs, design.dim) for _ in range(len(tasks) + 1 if design.both else len(groups))
        )
        self.trunks = nn.ModuleList(Trunk(design, self.inputs, g, self.schema.bias_fields) for g in groups)
        made: list[Any] = [make_loss(t, part.observed(n)) for n, t in enumerate(tasks)]
        self.losses = nn.ModuleList(made)
        self.kinds = [loss(t.loss).kind for t in tasks]
        self.heads = nn.ModuleList(self._head(t, made[n]) for n, t in enumerate(tasks))
        towers = {str(n): self._bias_tower(t, made[n]) for n, t in enumerate(tasks) if t.bias_fields}
        self.bias_towers = nn.ModuleDict(towers)
        self.noise, self._uniforms = self._uniform_places()
        self._penalized = [m for m in self.modules() if hasattr(m, "penalty")]
        self.penalty: Tensor | None = None
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
        options: dict[str, Any] | None = None,
        blocks: Sequence[dict[str, Any]] = (),
    ) -> Self:
        """A model for the fields and tasks of ``part`` (the training part of a split).

        ``body`` with its ``options`` decides how tasks share, above embeddings of width ``dim`` and the input
        ``blocks`` (each ``{"kind": name, **options}``). ``tower`` are the hidden widths of tower heads. Parameters
        hold the values of seed 0 until :func:`polytask.fit` starts them. What does not fit is a
        :class:`ConfigError`. A model by a whole :class:`Design` is ``MultiTask(part, design)``.
        """
        frozen = Design.frozen(options or {}), Design.frozen_blocks(blocks)
        return cls(part, Design(body, dim, share, tuple(tower), options=frozen[0], blocks=frozen[1]))

    def _slots(self, side: Side) -> slice:
        fields = self.shape.side(side)
        return slots_of(self.inputs, fields.start, self.shape.count(side))

    def _head(self, task: Task, own: TaskLoss) -> nn.Module:
        start = own.start() if self.design.start_at_mean else None
        if task.head == "tower":
            width = self._trunk(0).width
            return TowerHead(width, self.design.tower, start, outputs=own.outputs, dropout=self.design.dropout)
        where = f"task '{task.name}': head = \"dot\""
        if own.outputs > 1:
            raise ConfigError(f"{where} gives one number, loss '{task.loss}' needs {own.outputs}; use a tower head")
        if self.design.both:
            raise ConfigError(f'{where} reads one table; with share = "both" use a tower head')
        if any(i.pool == "attention" and i.kind == "history" for i in self.inputs):
            raise ConfigError(f"{where} has one vector per user, which cannot attend to an item; pool by mean")
        base = start[0] if start else None if task.kind == "ranking" else 0.0
        return DotHead(self.shape, bias=task.bias, start=base)

    def _bias_tower(self, task: Task, own: TaskLoss) -> BiasTower:
        if task.kind == "ranking" or own.outputs > 1:
            raise ConfigError(
                f"task '{task.name}': bias_fields need one logit a row; loss '{task.loss}' has several, leave them out"
            )
        places = [i.name for i in self.inputs]
        return BiasTower([places.index(f) for f in task.bias_fields], self.design.dim)

    def _uniform_places(self) -> tuple[int, list[tuple[Uniform, int]]]:
        """How many uniform numbers a row needs, and where each module's begin; separate trunks take the same."""
        starts: dict[str, int] = {}
        found, total = [], 0
        for name, module in self.named_modules():
            if isinstance(module, Uniform):
                if (key := _first_copy(name)) not in starts:
                    starts[key], total = total, total + module.width
                found.append((module, starts[key]))
        return total, found

    def initialize(self, draw: Draw) -> None:
        """Start every parameter; ``draw`` gives the generator that belongs to a parameter's name.

        Separate trunks all start as the shared one does, so that each is exactly its task's single-task model.
        """
        for own, module in self.named_modules():
            name = own if self.design.both else _first_copy(own)
            if isinstance(module, nn.Linear):
                initialize_linear(module, name, draw)
            elif own and isinstance(module, Initialized):
                module.initialize(name, draw)
        for head in self.heads:
            if isinstance(head, TowerHead | DotHead):
                head.finish()

    def trunk(self, task: int) -> int:
        """Which trunk (and, unless ``share = "both"``, which tables) the ``task``-th task reads."""
        return task if self.design.share == "separate" else 0

    def shared(self) -> list[nn.Parameter]:
        """Parameters that several tasks read; none when the tasks are separate."""
        if self.design.share == "separate" and len(self.tables) > 1:
            return []
        return [*self.tables[-1].parameters(), *self.trunks.parameters()]

    def own(self, task: str) -> list[nn.Parameter]:
        """Parameters that only ``task`` reads."""
        number = self.schema.task_names.index(self.schema.task(task).name)
        parts = [self.heads[number], *([self.bias_towers[str(number)]] if str(number) in self.bias_towers else [])]
        if len(self.tables) > 1:
            parts.insert(0, self.tables[number])
        if len(self.trunks) > 1:
            parts.insert(1, self.trunks[number])
        return [p for m in parts for p in m.parameters()]

    def read_by(self, tasks: Sequence[str]) -> list[nn.Parameter]:
        """Parameters that at least one of ``tasks`` reads."""
        return [*self.shared(), *(p for t in tasks for p in self.own(t))]

    @property
    def every_item(self) -> bool:
        """Whether a task scores the whole catalogue in training."""
        return "catalogue" in self.kinds

    def lookups(self, batch: Inputs) -> dict[str, Tensor]:
        """For each table, by parameter name, the row numbers [..., B, S'] that ``batch`` reads.

        The S' places are the row's S slots and then, where a ranking task reads the table, the item slots of
        its n negatives: the user's are not looked up again. Under the name with "@every" stand the rows
        [..., I, S_item] of all items, where a task scores them.
        """
        found: dict[str, Tensor] = {}
        for number in range(len(self.tables)):
            name, tables = f"tables.{number}.weight", self._tables(number)
            rows = tables.rows(batch.ids)
            if self._ranks(number):
                items = tables.rows(batch.negative_ids, self.item_slots)
                rows = torch.cat([rows, items.flatten(start_dim=-2)], dim=-1)
            found[name] = rows
            if self.every_item and batch.catalogue_ids.shape[-1]:
                found[name + EVERY] = tables.rows(batch.catalogue_ids, self.item_slots)
        for number, head in enumerate(self.heads):
            if isinstance(head, DotHead) and head.bias is not None:
                name = f"heads.{number}.bias.weight"
                first = [batch.ids[..., s.start, None] for s in (self.user_slots, self.item_slots)]
                ranks = self._ranks(self.trunk(number)) and batch.negative_ids.shape[-1]
                items = batch.negative_ids[..., :, 0] if ranks else batch.ids[..., :0]
                rows = torch.cat([first[0], *(i + head.bias.offsets[1] for i in (first[1], items))], dim=-1)
                found[name] = rows
                if self.kinds[number] == "catalogue" and batch.catalogue_ids.shape[-1]:
                    found[name + EVERY] = batch.catalogue_ids[..., :1] + head.bias.offsets[1]
        return found

    def forward(self, batch: Inputs, rows: dict[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """Logits of each task: [B], or [B, outputs] where its loss needs several.

        For a ranking task with n > 0 negatives [B, 1 + n], the row's own first; in training [B, B] or [B, I] for
        a loss over the batch's or all items. ``rows`` are the looked-up table rows [B, S', dim] of
        :meth:`lookups`, for a caller that takes gradients with respect to them; without it they are looked up
        here. What bodies and blocks add to the joint loss is left in ``penalty``.
        """
        if rows is None:
            rows = {n: self.get_parameter(n.removesuffix(EVERY))[index] for n, index in self.lookups(batch).items()}
        noise = batch.noise if self.training and batch.noise.shape[-1] else None
        self._put_noise(noise)
        embedded = [self._embedded(n, rows[f"tables.{n}.weight"], batch) for n in range(len(self.tables))]
        hidden = [self._hidden(n, [x for x, _ in embedded], batch) for n in range(len(self.trunks))]
        self.penalty = self._penalties()
        found = tuple(self._logits(n, embedded, hidden, rows, batch) for n in range(len(self.heads)))
        self._put_noise(None)
        return found

    def objective(self, rows: dict[str, Tensor], batch: Inputs) -> tuple[Tensor, Tensor]:
        """Losses [T], each a mean over the rows of ``batch`` that have the task's label, and the penalty [].

        ``rows`` are the looked-up table rows of :meth:`lookups`.
        """
        logits = self(batch, rows)
        found = []
        for number, (own, context) in enumerate(zip(logits, self.contexts(logits, batch), strict=True)):
            weight = batch.weights[:, number] if batch.weights.shape[-1] else None
            found.append(task_loss(self._loss(number), own, batch.labels[:, number], context, weight))
        penalty, self.penalty = self.penalty, None
        return torch.stack(found), found[0].new_zeros(()) if penalty is None else penalty

    def values(self, batch: Inputs, rows: dict[str, Tensor] | None = None) -> Tensor:
        """What each task predicts [B, T], in the unit of its label: a probability, a value, a ranking's logit.

        ``rows`` are as in :meth:`forward`.
        """
        logits = self(batch, rows)
        contexts = self.contexts(logits, batch)
        found = [self._loss(n).predict(z, c) for n, (z, c) in enumerate(zip(logits, contexts, strict=True))]
        return torch.stack(found, dim=1)

    def contexts(self, logits: Sequence[Tensor], batch: Inputs) -> list[Context]:
        """What each task's loss reads beside its logits and label."""
        losses = [self._loss(n) for n in range(len(self.heads))]
        return contexts(self.schema, losses, logits, batch)

    def _embedded(self, number: int, rows: Tensor, batch: Inputs) -> tuple[Tensor, Tensor]:
        """Embeddings [B, S, dim] of the batch's rows and [B, n, S_item, dim] of their negatives."""
        slots = batch.ids.shape[-1]
        x, negatives = torch.split(rows, [slots, rows.shape[1] - slots], dim=1)
        width = max(self.item_slots.stop - self.item_slots.start, 1)
        negatives = negatives.reshape(rows.shape[0], negatives.shape[1] // width, width, rows.shape[2])
        if self.schema.bias_fields or any(i.kind != "category" for i in self.inputs):
            x = x * batch.numbers[..., None]
            negatives = negatives * batch.negative_numbers[..., None] if self._ranks(number) else negatives
        return x, negatives

    def _hidden(self, trunk: int, tables: Sequence[Tensor], batch: Inputs) -> list[Tensor]:
        """Representations of the tasks of a trunk; none where all of them have dot heads."""
        if not any(t.head == "tower" and self.trunk(n) == trunk for n, t in enumerate(self.schema.tasks)):
            return []
        found: list[Tensor] = self._trunk(trunk)(self._read(trunk, tables), batch.numbers)
        return found

    def _read(self, trunk: int, tables: Sequence[T]) -> Sequence[T]:
        """Of one thing per table, those of the tables a trunk reads."""
        return tables if self.design.both else [tables[trunk]]

    def _logits(
        self,
        task: int,
        embedded: list[tuple[Tensor, Tensor]],
        hidden: list[list[Tensor]],
        rows: dict[str, Tensor],
        batch: Inputs,
    ) -> Tensor:
        trunk, head = self.trunk(task), self.heads[task]
        x, negatives = embedded[trunk]
        positive: Tensor
        if isinstance(head, DotHead):
            fields = self._trunk(trunk).pooled([x], batch.numbers)
            if self.training and self.kinds[task] in _CROSS:
                return self._crossed(task, head, fields, rows, batch)
            positive, negative = head(fields, negatives, rows.get(f"heads.{task}.bias.weight"))
        else:
            place = 0 if len(self.trunks) > 1 else task
            positive = head(hidden[trunk][place])
            negative = self._tower_negatives(task, place, embedded, batch)
        if self.training and str(task) in self.bias_towers:
            own, _ = embedded[task if self.design.both else trunk]
            positive = positive + self.bias_towers[str(task)](self._trunk(trunk).pooling(own, batch.numbers))
        if self.schema.tasks[task].kind != "ranking" or not negative.shape[1]:
            return positive
        if len({t.negatives for t in self.schema.tasks if t.kind == "ranking"}) > 1:  # drawn for the neediest
            negative = negative[:, : self.schema.tasks[task].negatives]
        return torch.cat([positive[:, None], negative], dim=1)

    def _crossed(self, task: int, head: DotHead, fields: Tensor, rows: dict[str, Tensor], batch: Inputs) -> Tensor:
        """Logits of every row's user with the items of all rows [B, B], or with every item [B, I]."""
        bias = rows.get(f"heads.{task}.bias.weight")
        if self.kinds[task] == "in_batch":
            items = fields[:, head.item].sum(dim=1)
            return head.cross(fields, items, bias, None if bias is None else bias[:, 1, 0])
        every = rows[f"tables.{self.trunk(task)}.weight{EVERY}"] * batch.catalogue_numbers[..., None]
        of_every = None if bias is None else rows[f"heads.{task}.bias.weight{EVERY}"].flatten()
        return head.cross(fields, every.sum(dim=1), bias, of_every)

    def _tower_negatives(self, task: int, place: int, embedded: list[tuple[Tensor, Tensor]], batch: Inputs) -> Tensor:
        """Logits [B, n] of each row with its item slots replaced by those of its negatives."""
        trunk, items = self.trunk(task), self.item_slots
        count = batch.negative_ids.shape[-2] if self.schema.tasks[task].kind == "ranking" else 0
        rows = batch.ids.shape[0]
        if not count:
            return embedded[0][0].new_zeros(rows, 0)

        def swapped(own: Tensor, new: Tensor) -> Tensor:
            repeated = own[:, None].expand(-1, count, *([-1] * (own.dim() - 1)))
            return torch.cat([repeated[:, :, : items.start], new, repeated[:, :, items.stop :]], dim=2).flatten(
                end_dim=1
            )

        tables = [swapped(x, negatives) for x, negatives in self._read(trunk, embedded)]
        if noise := [m.values for m, _ in self._uniforms if m.values is not None]:
            self._put_noise(batch.noise.repeat_interleave(count, dim=0))
        hidden = self._trunk(trunk)(tables, swapped(batch.numbers, batch.negative_numbers))
        logits: Tensor = self.heads[task](hidden[place])
        if noise:
            self._put_noise(batch.noise)
        self._penalties()  # that of the observed rows counts
        return logits.view(rows, count)

    def _put_noise(self, noise: Tensor | None) -> None:
        for module, start in self._uniforms:
            module.values = None if noise is None else noise[:, start : start + module.width]

    def _penalties(self) -> Tensor | None:
        """The sum of what modules left to be added to the joint loss, taken from them."""
        found: Tensor | None = None
        for module in self._penalized:
            own: Any = module.penalty
            module.penalty = None  # type: ignore[assignment]
            found = own if found is None else found if own is None else found + own
        return found

    def user_vectors(self, task: str, ids: Tensor, numbers: Tensor) -> Tensor:
        """Vectors [U, dim + 1] of a dot head whose product with :meth:`item_vectors` orders items for each user.

        ``ids`` and ``numbers`` [U, S_user] are the user's slots, histories included.
        """
        _, tables = self._dot(task)
        vectors = _summed(tables, ids, numbers, self.user_slots)
        return torch.cat([vectors, torch.ones_like(vectors[:, :1])], dim=1)

    def item_vectors(self, task: str, ids: Tensor, numbers: Tensor) -> Tensor:
        """Vectors [I, dim + 1] of a dot head: the item's embedding and its first-order term."""
        head, tables = self._dot(task)
        vectors = _summed(tables, ids, numbers, self.item_slots)
        own = vectors[:, :1] * 0 if head.bias is None else head.bias.weight[ids[:, 0] + head.bias.offsets[1]]
        return torch.cat([vectors, own], dim=1)

    def item_embeddings(self, ids: Tensor, numbers: Tensor) -> Tensor:
        """The summed embeddings [I, dim] of items in every table, side by side."""
        found = [_summed(self._tables(n), ids, numbers, self.item_slots) for n in range(len(self.tables))]
        return torch.cat(found, dim=1)

    def user_levels(self, task: str, ids: Tensor, own: Tensor | None = None) -> Tensor:
        """What a dot head adds to all items of a user [U]: the user's first-order term or ``own``, and a constant."""
        head, _ = self._dot(task)
        terms = own if own is not None else None if head.bias is None else head.bias.weight[ids[:, 0]]
        level = torch.zeros(len(ids)) if terms is None else terms[:, 0]
        return level if head.base is None else level + head.base

    def _dot(self, task: str) -> tuple[DotHead, Tables]:
        number = self.schema.task_names.index(self.schema.task(task).name)
        head = self.heads[number]
        if not isinstance(head, DotHead):
            raise ConfigError(f"task '{task}' has a tower head, which has no vectors; use head = \"dot\"")
        return head, self._tables(self.trunk(number))

    def _ranks(self, table: int) -> bool:
        tasks = enumerate(self.schema.tasks)
        return any(t.kind == "ranking" and (self.design.both or self.trunk(n) == table) for n, t in tasks)

    def _tables(self, number: int) -> Tables:
        tables = self.tables[number]
        assert isinstance(tables, Tables)
        return tables

    def _trunk(self, number: int) -> Trunk:
        trunk = self.trunks[number]
        assert isinstance(trunk, Trunk)
        return trunk

    def _loss(self, number: int) -> TaskLoss:
        own: Any = self.losses[number]
        return own  # type: ignore[no-any-return]


def _summed(tables: Tables, ids: Tensor, numbers: Tensor, slots: slice) -> Tensor:
    """Sum [V, dim] of the embeddings of one side's slots, times their numbers."""
    return (tables.weight[tables.rows(ids, slots)] * numbers[..., None]).sum(dim=1)


def _first_copy(name: str) -> str:
    """A module's name in the first trunk: what starts a separate trunk is what starts the shared one."""
    return re.sub(r"^(tables|trunks)\.\d+", r"\1.0", name)
