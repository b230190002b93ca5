"""What each task's loss reads beside its logits and label: conditions, second columns, items."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from polytask.loss import Context, TaskLoss
from polytask.loss.base import joint_label
from polytask.nn.inputs import Inputs
from polytask.schema import Schema


def contexts(schema: Schema, losses: Sequence[TaskLoss], logits: Sequence[Tensor], batch: Inputs) -> list[Context]:
    """One context per task, given the logits of all."""
    names = schema.task_names
    found: dict[str, Context] = {}
    for name in sorted(names, key=lambda n: len(schema.chain(n))):  # conditions first
        number = names.index(name)
        task = schema.tasks[number]
        context = Context(by=batch.by[:, number] if batch.by.shape[-1] else None)
        if task.kind == "ranking" and batch.items.shape[-1]:
            context = context._replace(items=batch.items[:, : 1 + task.negatives])  # drawn for the neediest task
        if task.given is not None:
            parent = names.index(task.given)
            label = batch.labels[:, parent] if len(batch.labels) else None
            context = _conditional(context, losses[parent], logits[parent], found[task.given], label)
        found[name] = context
    return [found[n] for n in names]


def _conditional(context: Context, loss: Any, logits: Tensor, parent: Context, label: Tensor | None) -> Context:
    """The context with the log-probability of its condition, along the whole chain, and whether it held."""
    log = loss.log_probability(logits, parent)
    if parent.given is not None:
        log = log + parent.given
    held = None if label is None else joint_label(label, parent.given_label)
    return context._replace(given=log, given_label=held)
