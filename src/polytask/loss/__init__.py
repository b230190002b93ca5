"""Losses by name, and the mean of one over the rows that have the task's label.

The formulas are pure functions; a loss is a small module around one, fitted on the training rows where it must be.
"""

from inspect import signature

from polytask.errors import ConfigError, did_you_mean
from polytask.loss.base import (
    Context,
    Loss,
    LossKind,
    Observed,
    TaskLoss,
    Weighing,
    WeightUse,
    masked_mean,
    task_loss,
)
from polytask.loss.conditional import CONDITIONAL, effective_sample_size, inverse_propensity
from polytask.loss.pairwise import PAIRWISE, bpr, hinge, pairwise_sigmoid
from polytask.loss.pointwise import POINTWISE, bce, focal, huber, mse
from polytask.loss.softmax import SOFTMAX
from polytask.loss.watch_time import WATCH_TIME
from polytask.schema import Task

LOSSES: dict[str, Loss] = {**POINTWISE, **CONDITIONAL, **WATCH_TIME, **PAIRWISE, **SOFTMAX}
"""Every loss by name."""


def loss(name: str) -> Loss:
    """Look up a loss; an unknown name is a :class:`ConfigError`."""
    if name not in LOSSES:
        raise ConfigError(did_you_mean("loss", name, LOSSES))
    return LOSSES[name]


def make_loss(task: Task, observed: Observed) -> TaskLoss:
    """The loss of ``task``, fitted on its training rows; a loss or option that does not fit is a ConfigError."""
    check_task(task)
    try:
        return loss(task.loss).make(observed, **task.options)
    except ConfigError as error:
        raise ConfigError(f"task '{task.name}': loss '{task.loss}': {error}") from None


def check_task(task: Task) -> None:
    """Raise :class:`ConfigError` if the task's loss is unknown, not for its kind of task, or lacks what it needs."""
    found = loss(task.loss)
    where = f"task '{task.name}': loss '{task.loss}'"
    if task.kind not in found.tasks:
        fitting = ", ".join(sorted(name for name, known in LOSSES.items() if task.kind in known.tasks))
        kinds = " and ".join(found.tasks)
        raise ConfigError(f"{where} is for {kinds} tasks; {task.kind} takes: {fitting}")
    if found.given and task.given is None:
        raise ConfigError(f'{where} is for conditional tasks; name the condition with given = "task"')
    if found.by and task.by is None:
        raise ConfigError(f'{where} needs a second column; name it with by = "column"')
    if found.kind in ("in_batch", "catalogue") and task.head != "dot":
        raise ConfigError(f'{where} scores many items at once; it needs head = "dot"')
    parameters = signature(found.make).parameters.values()
    known = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    for name, value in task.options.items():
        if name not in known:
            raise ConfigError(f"{where}: " + did_you_mean("option", name, known or ["(none)"]))
        if not _like(value, known[name]):
            raise ConfigError(f"{where}: {name} = {value!r} is not of the kind of {known[name]!r}")


def _like(value: object, default: object) -> bool:
    """Whether ``value`` may stand for ``default``: of its type, a whole number for any, a list for a tuple."""
    wider = {float: (int, float), tuple: (list, tuple)}.get(type(default), type(default))
    return isinstance(value, wider) and isinstance(value, bool) == isinstance(default, bool)


__all__ = [
    "LOSSES",
    "Context",
    "Loss",
    "LossKind",
    "Observed",
    "TaskLoss",
    "Weighing",
    "WeightUse",
    "bce",
    "bpr",
    "check_task",
    "effective_sample_size",
    "focal",
    "hinge",
    "huber",
    "inverse_propensity",
    "loss",
    "make_loss",
    "masked_mean",
    "mse",
    "pairwise_sigmoid",
    "task_loss",
]
