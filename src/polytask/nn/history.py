"""A model of whole histories: it ranks and rates from what each user saw and from who saw each item."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

import torch
from torch import Tensor, nn

from polytask import rng
from polytask.errors import ConfigError, did_you_mean
from polytask.nn.design import Design
from polytask.nn.inputs import Cells, Inputs
from polytask.nn.layers import Draw
from polytask.nn.ridge import Biases, linear_weights, ridge_biases
from polytask.nn.views import Member, Side, View
from polytask.schema import Input, Schema, Task

_PAIRS = 1 << 11  # pairs whose vectors are laid side by side at once; a blend's are as wide as the catalogue
_TURN = 0.6180339887  # members see the same noise turned by this part of a circle, so that each hides other cells


class Encoded(Protocol):
    """Encoded fields of every user or item, row 0 unknown."""

    @property
    def ids(self) -> Tensor:
        """Category indices [V, S]."""

    @property
    def numbers(self) -> Tensor:
        """Values [V, S]."""


class Known(Protocol):
    """What the model is built from: a part of a split, with its rows and the fields of users and items."""

    @property
    def schema(self) -> Schema:
        """Fields and tasks."""

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The fields with their number of embedding rows and slots."""

    @property
    def user(self) -> Tensor:
        """The user of every row [N]."""

    @property
    def item(self) -> Tensor:
        """The item of every row [N]."""

    @property
    def labels(self) -> Tensor:
        """Labels [N, T] of every row, NaN where missing."""

    @property
    def sides(self) -> Mapping[str, Encoded | None]:
        """The encoded fields of all users and all items."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of ``body = "history"``.

    ``drop_ranking`` and ``drop_rating``: shares of a history hidden in training. ``unseen``: weight of cells without
    a row in the ranking loss. ``l2``: weight of the squares of tables and feature weights. ``members``: models of
    different start whose predictions are averaged. ``blend``: share of a linear item-item model with penalty
    ``linear`` in the ranking (EASE; Steck, WWW 2019).
    """

    drop_ranking: float = 0.4
    drop_rating: float = 0.2
    unseen: float = 0.6
    l2: float = 1e-4
    members: int = 1
    linear: float = 200.0
    blend: float = 0.0

    def __post_init__(self) -> None:
        numbers = all(isinstance(getattr(self, n), int | float) for n in self.__slots__)
        if numbers and isinstance(self.members, int):
            shares = (self.drop_ranking, self.drop_rating, self.blend)
            weights = all(0 <= w < inf for w in (self.unseen, self.l2)) and 0 < self.linear < inf
            if all(0 <= s < 1 for s in shares) and weights and self.members >= 1:
                return
        raise ConfigError(
            "body 'history': drop_ranking, drop_rating and blend must be in [0, 1), unseen and l2 at least 0, members "
            "a whole number from 1, linear above 0, all of them finite"
        )


class HistoryModel(nn.Module):
    """Ranks the catalogue and predicts ratings for whole users at once, from features and histories.

    Ranking: s_ui = (features of u + |H|^-1/2 sum_{j in H} Y_j) . (q_i * g) + c_i, trained to tell the hidden part of a
    history from what was never seen, over all items: squared error (Pan et al., ICDM 2008) against a denoising
    target (Steck, NeurIPS 2020). Rating: the mean of two views of one form, from the user's items and from the
    item's users, above biases that start at their ridge values; in training what predicts a cell never reads it.
    The ranking learns nothing of a user but through them, so a new user needs no training; the unknown one has no
    history. It takes one ranking task with a dot head and one regression task, or one of them; their losses are its
    own. It is trained on batches of whole users and items.
    """

    every_item = True

    users: Tensor
    items: Tensor
    row_user: Tensor
    row_item: Tensor
    row_residual: Tensor
    start_mean: Tensor
    start_user: Tensor
    start_item: Tensor

    def __init__(self, part: Known, design: Design) -> None:
        super().__init__()
        self.schema, self.inputs, self.design = part.schema, part.inputs, design
        _check_design(design, self.inputs)
        known = list(Options.__dataclass_fields__)
        for name, _ in design.options:
            if name not in known:
                raise ConfigError(did_you_mean("option of body 'history'", name, known))
        self.options = Options(**dict(design.options))
        self.ranking, self.rating = _numbers(self.schema)
        users, items = (_multi_hot(part, side) for side in ("user", "item"))
        shape = len(users), len(items)
        rated = part.labels[:, self.rating] if self.rating is not None else torch.full(part.user.shape, torch.nan)
        biases = ridge_biases(part.user, part.item, rated, shape)
        residual = rated - biases.mean - biases.user[part.user] - biases.item[part.item]
        constants = {"users": users, "items": items, "row_user": part.user, "row_item": part.item}
        constants |= {"row_residual": residual, **{f"start_{n}": t for n, t in biases._asdict().items()}}
        for name, value in constants.items():
            self.register_buffer(name, value.clone())
        sizes = (shape[0], users.shape[1]), (shape[1], items.shape[1])
        self.members = nn.ModuleList(Member(*sizes, design.dim) for _ in range(self.options.members))
        self._known: tuple[Tensor, Tensor] | None = None
        self._linear: Tensor | None = None
        self.initialize(lambda name: rng.generator(0, f"init/{name}"))

    def initialize(self, draw: Draw) -> None:
        """Start every parameter; ``draw`` gives the generator that belongs to a parameter's name."""
        for name, module in self.named_modules():
            if isinstance(module, Member | View):
                module.initialize(name, draw)

    def shared(self) -> list[nn.Parameter]:
        """All parameters: the tasks share the items' table and the features, and so every view of them."""
        return list(self.parameters())

    def own(self, task: str) -> list[nn.Parameter]:
        """None: no parameter is counted as a task's own."""
        self.schema.task(task)
        return []

    def read_by(self, tasks: Sequence[str]) -> list[nn.Parameter]:
        """All parameters."""
        return [*self.shared(), *(p for t in tasks for p in self.own(t))]

    def lookups(self, batch: object) -> dict[str, Tensor]:
        """None: every table is read as a whole."""
        return {}

    def objective(self, rows: Mapping[str, Tensor], batch: Cells) -> tuple[Tensor, Tensor]:
        """Losses [T] of a batch of whole users and items, means over the members, and the penalty []."""
        users = self._side(batch.users, self.users, batch.seen, batch.ratings, self._base(batch.users, None))
        items = self._side(batch.items, self.items, batch.seen_by, batch.ratings_by, self._base(None, batch.items).T)
        found = [self._losses(n, users, items, batch) for n in range(len(self.members))]
        penalty = torch.stack([m.squares() for m in self._each()]).mean(dim=0) * self.options.l2
        return torch.stack(found).mean(dim=0), penalty

    def _losses(self, number: int, users: Side, items: Side, batch: Cells) -> Tensor:
        """Losses [T] of one member, which sees the batch's noise turned by its own angle."""
        turn = number * _TURN
        kept = [
            (torch.frac(noise + turn) >= share).to(noise.dtype)
            for noise, share in (
                (batch.rank_noise, self.options.drop_ranking),
                (batch.rate_noise, self.options.drop_rating),
                (batch.rate_noise_by, self.options.drop_rating),
            )
        ]
        found = [batch.seen.new_zeros(()) for _ in self.schema.tasks]
        if self.ranking is not None:
            found[self.ranking] = self._rank_loss(number, users, batch.seen * kept[0])
        if self.rating is not None:
            mine = users._replace(history=users.history * kept[1])
            theirs = items._replace(history=items.history * kept[2])
            found[self.rating] = self._rate_loss(number, mine, theirs, batch)
        return torch.stack(found)

    def _rank_loss(self, number: int, users: Side, kept: Tensor) -> Tensor:
        """[sum over hidden cells (1 - s)^2 + unseen sum over cells without a row s^2] / number of hidden cells: []."""
        member = self._each()[number]
        scores = member.rank_users(users._replace(history=kept)) @ member.rank_items(self.items).T
        hidden = users.history - kept
        never = (1 - users.history) * (torch.arange(scores.shape[1]) > 0)  # index 0 is nobody's item
        error = hidden * (1 - scores).square() + self.options.unseen * never * scores.square()
        return error.sum() / hidden.sum().clamp(min=1)

    def _rate_loss(self, number: int, users: Side, items: Side, batch: Cells) -> Tensor:
        """Mean squared errors over the rated cells of the two views, added: []."""
        m = self._each()[number]
        of_user, of_item = m.levels(self._biases(), self.users, self.items)
        half = 0.5 * self.users @ m.user_feature, 0.5 * self.items @ m.item_feature
        by_user = m.by_user(half[0][users.rows], m.targets(self.items) * m.gates[1], users)
        by_item = m.by_item(half[1][items.rows], (m.user + half[0]) * m.gates[2], items)
        return _mean_error(by_user + of_user[users.rows][:, None] + of_item, batch.ratings) + _mean_error(
            by_item + of_item[items.rows][:, None] + of_user, batch.ratings_by
        )

    def values(self, batch: Inputs) -> Tensor:
        """What each task predicts [B, T] for the users and items of the rows: a ranking's score, a rating."""
        user, item = (batch.ids[:, _first(self.inputs, side)] for side in ("user", "item"))
        found = [torch.zeros(len(user)) for _ in self.schema.tasks]
        for number, task in enumerate(self.schema.tasks):
            users, of_user = torch.unique(user, return_inverse=True)
            items, of_item = torch.unique(item, return_inverse=True)
            left, right = self._user_vectors(task, users), self._item_vectors(task, items)
            pairs = zip(of_user.split(_PAIRS), of_item.split(_PAIRS), strict=True)
            found[number] = torch.cat([(left[u] * right[i]).sum(dim=1) for u, i in pairs])
        return torch.stack(found, dim=1)

    def user_vectors(self, task: str, ids: Tensor, numbers: Tensor, had: Tensor | None = None) -> Tensor:
        """Vectors [U, W] of users by their slots ``ids`` [U, S]; products with :meth:`item_vectors` are scores.

        ``had`` [U, I] is 1 where a user has an item beside those of the training rows, without a rating.
        """
        return self._user_vectors(self.schema.task(task), ids[:, _first(self.inputs, "user")], had)

    def item_vectors(self, task: str, ids: Tensor, numbers: Tensor) -> Tensor:
        """Vectors [I, W] of items by their slots ``ids`` [I, S]."""
        return self._item_vectors(self.schema.task(task), ids[:, 0])

    def _user_vectors(self, task: Task, users: Tensor, had: Tensor | None = None) -> Tensor:
        seen, residual = (cells[users] for cells in self._cells())
        seen = seen if had is None else torch.maximum(seen, had)
        side, share = Side(users, self.users[users], seen, residual), 1 / len(self.members)
        if task.kind != "ranking":
            return torch.cat([m.rate_users(side, self._levels(m)[0][users]) * share for m in self._each()], dim=1)
        blend = self.options.blend
        found = [m.rank_users(side) * share * (1 - blend) for m in self._each()]
        return torch.cat([*found, *([blend * side.history] if blend else [])], dim=1)

    def _item_vectors(self, task: Task, items: Tensor) -> Tensor:
        if task.kind != "ranking":
            seen, residual = (t.T[items] for t in self._cells())
            side = Side(items, self.items[items], seen, residual)
            return torch.cat([m.rate_items(side, self._levels(m)[1][items]) for m in self._each()], dim=1)
        found = [m.rank_items(self.items)[items] for m in self._each()]
        return torch.cat([*found, *([self._linear_part()[:, items].T] if self.options.blend else [])], dim=1)

    def _linear_part(self) -> Tensor:
        if self._linear is None:
            self._linear = linear_weights(self._cells()[0], self.options.linear)
        return self._linear

    def _cells(self) -> tuple[Tensor, Tensor]:
        """The training rows as matrices [V, I]: 1 where there is one, and its residual."""
        if self._known is None:
            seen, residual = (torch.zeros(len(self.users), len(self.items)) for _ in range(2))
            known = (self.row_user > 0) & (self.row_item > 0)
            rated = known & ~self.row_residual.isnan()
            seen[self.row_user[known], self.row_item[known]] = 1.0
            residual[self.row_user[rated], self.row_item[rated]] = self.row_residual[rated]
            self._known = seen, residual
        return self._known

    def _side(self, index: Tensor, features: Tensor, seen: Tensor, ratings: Tensor, base: Tensor) -> Side:
        return Side(index, features[index], seen, torch.where(ratings == ratings, ratings - base, 0.0))

    def _base(self, users: Tensor | None, items: Tensor | None) -> Tensor:
        """Ridge predictions [U, I] of some or all users and items."""
        of_user = self.start_user if users is None else self.start_user[users]
        of_item = self.start_item if items is None else self.start_item[items]
        return self.start_mean + of_user[:, None] + of_item

    def _biases(self) -> Biases:
        return Biases(self.start_mean, self.start_user, self.start_item)

    def _levels(self, member: Member) -> tuple[Tensor, Tensor]:
        return member.levels(self._biases(), self.users, self.items)

    def _each(self) -> list[Member]:
        return [m for m in self.members if isinstance(m, Member)]


def _mean_error(value: Tensor, ratings: Tensor) -> Tensor:
    """Mean squared error [] of value [B, I] over the cells that have a rating."""
    rated = ratings == ratings
    error = torch.where(rated, (value - torch.where(rated, ratings, 0.0)).square(), 0.0)
    return error.sum() / rated.sum().clamp(min=1)


def _numbers(schema: Schema) -> tuple[int | None, int | None]:
    """The number of the ranking task and of the regression task, None where there is none."""
    for task in schema.tasks:
        default = Task(task.name, task.kind, label="label").loss
        if task.kind == "binary" or task.given or (task.kind == "ranking" and task.head != "dot"):
            raise ConfigError(
                f"task '{task.name}': body 'history' takes one ranking task with head = \"dot\" and one regression task"
            )
        narrowed = task.positive or (task.kind == "ranking" and task.label)
        if task.loss != default or task.row_weight or task.bias_fields or narrowed:
            raise ConfigError(
                f"task '{task.name}': body 'history' has losses of its own over all cells; leave out loss, positive, "
                "row_weight, bias_fields and the label of a ranking"
            )
    kinds = [t.kind for t in schema.tasks]
    if len(set(kinds)) < len(kinds):
        raise ConfigError("body 'history' takes at most one ranking and one regression task")
    return tuple(kinds.index(k) if k in kinds else None for k in ("ranking", "regression"))  # type: ignore[return-value]


def _check_design(design: Design, inputs: Sequence[Input]) -> None:
    """Refuse what this model would not read."""
    if design.share != "shared" or design.blocks or design.dropout:
        raise ConfigError("body 'history' has its own tables and dropout; leave out share, blocks and dropout")
    for one in inputs:
        if one.side == "context" or one.kind == "history":
            raise ConfigError(
                f"field '{one.name}': body 'history' reads users' and items' fields and whole histories; leave it out"
            )


def _first(inputs: Sequence[Input], side: str) -> int:
    """The slot of the user's or item's own id."""
    at = next(n for n, i in enumerate(inputs) if i.side == side)
    return sum(i.slots for i in inputs[:at])


def _multi_hot(part: Known, side: str) -> Tensor:
    """Features [V, G] of all users or items: 1 for each category and each value of a bag, numbers as they are."""
    catalogue = part.sides[side]
    if catalogue is None:
        raise ConfigError("body 'history' needs a user and an item column")
    if not torch.equal(catalogue.ids[:, 0], torch.arange(len(catalogue.ids))):
        raise ConfigError(f"body 'history' tells every {side} apart; leave out the buckets of the {side} column")
    parts, start = [torch.zeros(len(catalogue.ids), 0)], 0
    for number, one in enumerate(i for i in part.inputs if i.side == side and i.kind != "history"):
        slots = slice(start, start + one.slots)
        start = slots.stop
        ids, numbers = catalogue.ids[:, slots], catalogue.numbers[:, slots]
        if one.kind == "number":
            parts.append(numbers)
        elif number:  # the first is the id itself
            parts.append(torch.zeros(len(ids), one.size).scatter_(1, ids, 1.0)[:, 1:])
    return torch.cat(parts, dim=1)
