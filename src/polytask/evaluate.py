"""Scores of a model on a part: per task its metrics, each with its direction and what it was computed from."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from polytask.data.batch import Batch, Part
from polytask.errors import PolytaskError, TrainingError
from polytask.loss import LOSSES
from polytask.metrics import Score, average_ranks, metric
from polytask.nn.model import MultiTask
from polytask.schema import Task

BUDGET = 1 << 26  # bytes of scores held at once
_ROWS = 1 << 14  # rows predicted at once


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
def evaluate(model: MultiTask, part: Part, *, tasks: Sequence[str] | None = None, budget: int = BUDGET) -> Scores:
    """Score the ``tasks`` of ``model`` (all by default) on ``part`` by the metrics its schema names.

    Rankings are over the full catalogue, without the items the user had in earlier parts; other held-out
    items stay in the list; ties take the average rank. ``budget`` bounds the scores held at once, in bytes.
    A score that is not finite is a :class:`TrainingError`.
    """
    training = model.training
    model.eval()
    try:
        wanted = [model.schema.task(t) for t in (model.schema.task_names if tasks is None else tasks)]
        values = predict(model, part) if any(t.kind != "ranking" for t in wanted) else None
        return Scores({t.name: _task_scores(model, part, t, values, budget) for t in wanted})
    finally:
        model.train(training)


def _task_scores(model: MultiTask, part: Part, task: Task, values: Tensor | None, budget: int) -> dict[str, Score]:
    number = model.schema.task_names.index(task.name)
    label = part.labels[:, part.schema.task_names.index(task.name)]
    try:
        if task.kind != "ranking" and values is not None:
            return {name: metric(name)(values[:, number], label) for name in task.metrics}
        heldout = part.heldout[task.name]
        ranks = ranks_of(model, part, task.name, budget=budget)
        scores = {name: metric(name)(ranks, heldout.rows) for name in task.metrics}
        return {name: replace(s, skipped=s.skipped + heldout.skipped) for name, s in scores.items()}
    except TrainingError as error:
        raise TrainingError(f"task '{task.name}' on {part.name}: {error}") from None


@torch.no_grad()
def predict(model: MultiTask, part: Part) -> Tensor:
    """The value [N, T] each task predicts for every row: a probability, a regression's value, a ranking's logit."""
    blocks = []
    for rows in torch.split(torch.arange(len(part)), _ROWS):
        logits = model(_rows(part, part.user[rows], part.item[rows], rows))
        values = [LOSSES[t.loss].predict(z) for t, z in zip(model.schema.tasks, logits, strict=True)]
        blocks.append(torch.stack(values, dim=1))
    return torch.cat(blocks)


@torch.no_grad()
def ranks_of(model: MultiTask, part: Part, task: str, *, budget: int = BUDGET) -> Tensor:
    """Average rank [N] float64 of every held-out item of ``part.heldout[task]`` in its user's full catalogue."""
    heldout = part.heldout[task]
    ranks = torch.empty(len(heldout.items), dtype=torch.float64)
    for first, scores in _score_blocks(model, part, task, budget):
        inside = (heldout.rows >= first) & (heldout.rows < first + len(scores))
        users = heldout.users[first : first + len(scores)]
        rows, items = part.known.of_users(users)
        excluded = torch.stack(
            [torch.cat([torch.arange(len(users)), rows]), torch.cat([torch.zeros_like(users), items])], dim=1
        )
        ranks[inside] = average_ranks(scores, heldout.items[inside], heldout.rows[inside] - first, excluded)
    return ranks


def _score_blocks(model: MultiTask, part: Part, task: str, budget: int) -> Iterator[tuple[int, Tensor]]:
    """Scores [U_block, I] of the users with held-out items, in blocks, with the position of the first user."""
    heldout, encoder = part.heldout[task], part.encoder
    if encoder.users is None or encoder.items is None:
        raise PolytaskError(f"task '{task}': ranking needs a user and an item column")
    number = model.schema.task_names.index(task)
    dot = model.schema.tasks[number].head == "dot"
    items = model.item_vectors(task, encoder.items.ids, encoder.items.numbers).T if dot else None
    block = max(1, budget // (4 * len(encoder.items)))
    for first in range(0, len(heldout.users), block):
        users = heldout.users[first : first + block]
        if items is not None:
            yield first, model.user_vectors(task, encoder.users.ids[users], encoder.users.numbers[users]) @ items
        else:
            yield first, torch.stack([_catalogue_row(model, part, number, user) for user in users])


def _catalogue_row(model: MultiTask, part: Part, task: int, user: Tensor) -> Tensor:
    """Logits [I] of one user for every item by a tower head; context fields are unknown."""
    every = torch.arange(len(part.popularity))
    blocks = [model(_rows(part, user.expand(len(b)), b, None))[task] for b in torch.split(every, _ROWS)]
    return torch.cat(blocks)


def _rows(part: Part, user: Tensor, item: Tensor, rows: Tensor | None) -> Batch:
    """A batch without negatives; without ``rows`` its context fields are unknown."""
    ids, numbers = part.fields(user, item, rows)
    empty = numbers.new_zeros(len(user), 0, 1)
    return Batch(ids, numbers, part.labels[:0], empty.long(), empty)
