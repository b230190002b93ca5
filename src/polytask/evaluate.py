"""Scores of a model on a part: per task its metrics, each with its direction and what it was computed from."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from polytask.calibration import Calibration, check_classes, fit_calibration
from polytask.data.batch import Batch, Part
from polytask.errors import ConfigError, DataError, PolytaskError, TrainingError
from polytask.kernels.ranks import Excluded, Ranking, Targets, in_blocks
from polytask.loss import Context, Weighing, WeightUse
from polytask.metrics import Score, metric, rankings_of_scores, rankings_of_vectors
from polytask.nn.history import HistoryModel
from polytask.nn.layers import rows_at_once
from polytask.nn.model import MultiTask
from polytask.nn.models import Model
from polytask.predictions import Predictions
from polytask.schema import Schema, Task

BUDGET = 1 << 26  # bytes of scores held at once


class Scores(dict[str, dict[str, Score]]):
    """``scores[task][metric]`` is a :class:`polytask.metrics.Score`; printed as one line per metric."""

    def __str__(self) -> str:
        lines = [f"{t:<12} {m:<12} {_shown(s)}" for t, metrics in self.items() for m, s in metrics.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, dict[str, float | None]]:
        """Plain values, None for a metric that could not be computed."""
        return {t: {m: s.value for m, s in metrics.items()} for t, metrics in self.items()}


def _shown(score: Score) -> str:
    value = f"absent: {score.why}" if score.value is None else f"{score.value:.4f}"
    return f"{value} ({score.better} is better, over {score.used}, {score.skipped} skipped)"


@torch.no_grad()
def evaluate(
    model: Model,
    part: Part,
    *,
    tasks: Sequence[str] | None = None,
    budget: int = BUDGET,
    calibration: Mapping[str, Calibration] | None = None,
) -> Scores:
    """Score the ``tasks`` of ``model`` (all by default) on ``part`` by the metrics its schema names.

    Rankings are over the full catalogue, without the items the user had in earlier parts; other held-out
    items stay in the list; ties take the average rank. A conditional task is scored where its condition held, by
    ``entire_`` metrics on all rows. ``calibration`` maps the probabilities of binary tasks, by their names, before
    they are scored. ``budget`` bounds the scores held at once, in bytes. A score that is not finite is a
    :class:`TrainingError`.
    """
    wanted = [model.schema.task(t) for t in (model.schema.task_names if tasks is None else tasks)]
    told = None
    if any(t.kind != "ranking" for t in wanted):
        told = _told(model.schema, part, _calibrated(model, predict(model, part).double(), calibration or {}))
    return Scores({t.name: _task_scores(model, part, t, told, budget) for t in wanted})


@torch.no_grad()
def predictions(model: Model, part: Part, *, tasks: Sequence[str] | None = None, budget: int = BUDGET) -> Predictions:
    """What ``model`` says of ``part`` on the ``tasks`` (all by default) and those they are conditional on.

    Rankings are told by the ranks of their held-out items. All metrics of :func:`evaluate` but those of whole lists
    can be computed from it again.
    """
    schema = model.schema
    wanted = [t for t in schema.task_names if any(t in schema.chain(n) for n in tasks or schema.task_names)]
    scored, ranked = ([t for t in wanted if (schema.task(t).kind == "ranking") == kind] for kind in (False, True))
    held = {t: part.heldout[t] for t in ranked}
    ranks = {t: (ranks_of(model, part, t, budget=budget), h.users[h.rows]) for t, h in held.items()}
    told = _told(model.schema, part, predict(model, part) if scored else None)

    def chosen(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {t: columns[t] for t in scored if t in columns}

    columns = chosen(told.values), chosen(told.labels), chosen(told.weights), chosen(told.by)
    return Predictions(schema, part.user, *columns, ranks)


@torch.no_grad()
def calibrate(
    model: Model, part: Part, kind: str = "platt", *, tasks: Sequence[str] | None = None
) -> dict[str, Calibration]:
    """Fit a calibration of ``kind`` to each of the binary ``tasks`` (all by default) on ``part``, the validation part.

    A conditional task is fitted where its condition held. A task whose rows are of one class is a
    :class:`DataError`; leave it out of ``tasks``.
    """
    values = predict(model, part)
    binary = [t.name for t in model.schema.tasks if t.kind == "binary"]
    return {name: _fitted(model, part, name, kind, values) for name in (binary if tasks is None else tasks)}


def check_calibration(part: Part, task: Task) -> None:
    """Raise :class:`DataError` unless ``part`` has rows of both classes to fit the calibration of ``task`` on."""
    told = _told(part.schema, part)
    label, weight = told.label(task.name), told.weights.get(task.name)
    counts = ~label.isnan() if weight is None else ~label.isnan() & (weight > 0)
    try:
        check_classes(task.calibrate or "calibrate", label[counts])
    except DataError as error:
        raise DataError(f"task '{task.name}' on {part.name}: {error}") from None


@torch.no_grad()
def weight_use(model: Model, part: Part, tasks: Sequence[str]) -> dict[str, WeightUse]:
    """How far propensity weights carry on ``part``, for those of the ``tasks`` whose losses have some."""
    if not isinstance(model, MultiTask):
        return {}
    losses = dict(zip(model.schema.task_names, model.losses, strict=True))
    weighing = {t: loss for t, loss in losses.items() if t in tasks and isinstance(loss, Weighing)}
    values = predict(model, part).double() if weighing else torch.empty(0)
    found = {}
    for name, loss in weighing.items():
        told = _told(model.schema, part, values)
        propensity, held = told.entire(str(model.schema.task(name).given))
        counts = held.masked_fill((held == 1) & told.labels[name].isnan(), torch.nan)  # such rows do not enter the loss
        found[name] = loss.weight_use(Context(given=propensity.log(), given_label=counts))
    return found


def _fitted(model: Model, part: Part, name: str, kind: str, values: Tensor) -> Calibration:
    prediction, told = values[:, _binary(model, name)], _told(model.schema, part)
    try:
        return fit_calibration(kind, prediction, told.label(name), told.weights.get(name))
    except (DataError, TrainingError) as error:
        raise type(error)(f"task '{name}' on {part.name}: {error}") from None


def _calibrated(model: Model, values: Tensor, calibration: Mapping[str, Calibration]) -> Tensor:
    columns = list(values.unbind(dim=1))
    for name, found in calibration.items():
        number = _binary(model, name)
        columns[number] = found.apply(columns[number])
    return torch.stack(columns, dim=1)


def _binary(model: Model, name: str) -> int:
    """The number of the task ``name``, which must predict probabilities."""
    if (kind := model.schema.task(name).kind) != "binary":
        raise ConfigError(f"calibration: '{name}' is a {kind} task; only binary tasks predict probabilities")
    return model.schema.task_names.index(name)


def _told(schema: Schema, part: Part, values: Tensor | None = None) -> Predictions:
    """The rows of ``part`` by task of ``schema``, with ``values`` [N, T] if given."""
    names, given = schema.task_names, part.schema.task_names
    told = {} if values is None else dict(zip(names, values.unbind(dim=1), strict=True))
    labels, weights, by = (
        {} if c is None else {t: c[:, given.index(t)] for t in names} for c in (part.labels, part.row_weights, part.by)
    )
    return Predictions(schema, part.user, told, labels, weights, {t: v for t, v in by.items() if schema.task(t).by})


def _task_scores(model: Model, part: Part, task: Task, told: Predictions | None, budget: int) -> dict[str, Score]:
    try:
        if task.kind != "ranking" and told is not None:
            return {name: told.score(task.name, name) for name in task.metrics}
        return _ranking_scores(model, part, task, budget)
    except TrainingError as error:
        raise TrainingError(f"task '{task.name}' on {part.name}: {error}") from None


def _ranking_scores(model: Model, part: Part, task: Task, budget: int) -> dict[str, Score]:
    heldout, metrics = part.heldout[task.name], {name: metric(name) for name in task.metrics}
    longest = max((m.k for m in metrics.values() if m.needs == "lists"), default=0)
    ranks, lists, _ = _rankings(model, part, task.name, budget, longest)
    counts = torch.bincount(part.known.item, minlength=len(part.popularity))
    read = {"ranks": (ranks, heldout.rows), "lists": ((lists - 1).clamp(min=-1), counts[1:])}  # 0 is no item
    scores = {name: m(*read[m.needs]) for name, m in metrics.items()}
    return {name: replace(s, skipped=s.skipped + heldout.skipped) for name, s in scores.items()}


@torch.no_grad()
def predict(model: Model, part: Part) -> Tensor:
    """The value [N, T] each task predicts for every row: a probability, a regression's value, a ranking's logit."""
    blocks = []
    with _serving(model):
        for rows in torch.split(torch.arange(len(part)), rows_at_once(model)):
            by = None if part.by is None else part.by[rows]
            blocks.append(model.values(Batch.bare(*part.fields(part.user[rows], part.item[rows], rows), by)))
    return torch.cat(blocks)


@contextmanager
def _serving(model: Model) -> Iterator[None]:
    """The model as it serves: without chance and what only training adds; afterwards as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def ranks_of(model: Model, part: Part, task: str, *, budget: int = BUDGET) -> Tensor:
    """Average rank [N] float64 of every held-out item of ``part.heldout[task]`` in its user's full catalogue."""
    return _rankings(model, part, task, budget, 0).ranks


def _rankings(model: Model, part: Part, task: str, budget: int, k: int) -> Ranking:
    """Average ranks [N] of the held-out items, and the first k candidates [U, k] of their users (-1: none left)."""
    heldout, encoder = part.heldout[task], part.encoder
    if encoder.users is None or encoder.items is None:
        raise PolytaskError(f"task '{task}': ranking needs a user and an item column")
    number = model.schema.task_names.index(task)
    dot = model.schema.tasks[number].head == "dot"
    items = model.item_vectors(task, encoder.items.ids, encoder.items.numbers) if dot else None

    def ranking(first: int, end: int, targets: Targets, excluded: Excluded) -> Ranking:
        users = heldout.users[first:end]
        if items is not None:
            side = part.users(users)
            return rankings_of_vectors(model.user_vectors(task, side.ids, side.numbers), items, targets, excluded, k)
        each = [_catalogue_row(model, part, number, user) for user in users]
        scores = torch.stack(each) if each else torch.zeros(0, len(part.popularity))
        return rankings_of_scores(scores, targets, excluded, k)

    size = max(1, budget // (4 * (len(encoder.items) if items is None else items.shape[1])))
    targets = Targets(heldout.rows, heldout.items)
    return in_blocks(len(heldout.users), size, targets, left_out(part, heldout.users), ranking)


def left_out(part: Part, users: Tensor) -> Excluded:
    """What rankings of ``part`` leave out for ``users`` [U]: the unknown item and those they had in earlier parts."""
    return Excluded(part.known.item, *part.known.spans(users), first=1)


def _catalogue_row(model: Model, part: Part, task: int, user: Tensor) -> Tensor:
    """Logits [I] of one user for every item by a tower head; context fields are unknown."""
    with _serving(model):
        return torch.cat([model(batch)[task] for batch in _catalogue(model, part, user)])


@torch.no_grad()
def catalogue_values(model: Model, part: Part, users: Tensor, *, budget: int = BUDGET) -> Iterator[tuple[int, Tensor]]:
    """What every task predicts [T, U_block, I] for every item of ``users`` [U], in blocks of users.

    With each block comes the place of its first user. Values are those of :func:`predict`, with context fields and
    second columns unknown and histories that hold all that is known. ``budget`` bounds a block, in bytes.
    """
    items, tasks = part.encoder.items, model.schema.task_names
    if items is None or part.encoder.users is None:
        raise PolytaskError("values of a whole catalogue need a user and an item column")
    products = isinstance(model, HistoryModel)  # all its values are inner products
    of_items = [model.item_vectors(t, items.ids, items.numbers).T for t in tasks] if products else []
    size = max(1, budget // (4 * len(tasks) * len(items)))
    for first in range(0, len(users), size):
        block = users[first : first + size]
        if products:
            side = part.users(block)
            of_users = [model.user_vectors(t, side.ids, side.numbers) for t in tasks]
            yield first, torch.stack([u @ i for u, i in zip(of_users, of_items, strict=True)])
        else:
            yield first, torch.stack([_catalogue_values(model, part, user) for user in block], dim=1)


def _catalogue_values(model: Model, part: Part, user: Tensor) -> Tensor:
    """What every task predicts [T, I] for one user and every item."""
    with _serving(model):
        return torch.cat([model.values(batch) for batch in _catalogue(model, part, user)]).T


def _catalogue(model: Model, part: Part, user: Tensor) -> Iterator[Batch]:
    """One user with every item; context fields and second columns are unknown."""
    for items in torch.split(torch.arange(len(part.popularity)), rows_at_once(model)):
        by = None if part.by is None else torch.full((len(items), part.by.shape[1]), torch.nan)
        yield Batch.bare(*part.fields(user.expand(len(items)), items, None), by)
