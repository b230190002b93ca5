"""Metrics, each with its direction, its tie rule and its denominator, and the ranking they are read from.

Three families. ``values`` metrics compare predictions [N] with labels [N]; a NaN label is a missing one. ``ranks``
metrics read the rank of every held-out item among its user's candidates (:func:`average_ranks`) and average over
the users who have held-out items. ``lists`` metrics read the first k candidates of those users (:func:`top_items`).
Ties take the average rank, so a scorer that says the same of every item scores as chance does. Everything is added
up in float64.
"""

import re
from dataclasses import replace

from polytask.errors import ConfigError, did_you_mean
from polytask.metrics.base import HINTS, Better, Grouped, Lists, Metric, Ranks, Rows, Score
from polytask.metrics.errors import ERRORS
from polytask.metrics.lists import LISTS
from polytask.metrics.probabilities import CLIP, PROBABILITIES
from polytask.metrics.ranking import (
    average_ranks,
    rankings_of_scores,
    rankings_of_vectors,
    ranks_of_vectors,
    top_items,
    top_of_vectors,
)
from polytask.metrics.ranks import RANKS
from polytask.schema import Schema, Task

METRICS: dict[str, Metric] = {**ERRORS, **PROBABILITIES, **RANKS, **LISTS}
"""Every metric by name."""

ENTIRE = "entire_"
"""Before the name of a binary metric: over all rows of a conditional task, not only those where the condition held."""


def metric(name: str) -> Metric:
    """Look up ``mse``, ``ndcg@10`` or ``entire_auc``; a name or cut-off that does not fit is a :class:`ConfigError`."""
    base, at, cut = name.partition("@")
    entire = base.startswith(ENTIRE)
    known = {ENTIRE + n: m for n, m in METRICS.items() if m.binary} if entire else METRICS
    if base not in known:
        raise ConfigError(did_you_mean("metric", base, known))
    found = replace(known[base], name=name, entire=entire)
    if at and not found.cutoff:
        raise ConfigError(f"metric '{name}': {base} takes no cut-off; write {base}")
    if not found.cutoff or (found.k and not at):
        return found
    if not re.fullmatch("[1-9][0-9]*", cut):
        raise ConfigError(f"metric '{name}': {base} needs a cut-off of 1 or more; write {base}@10")
    return replace(found, k=int(cut))


def check_metrics(task: Task, schema: Schema | None = None) -> None:
    """Raise :class:`ConfigError` if a metric of ``task`` is unknown, not for its kind of task, or lacks what it reads.

    With ``schema`` also if it reads users and there is no user column.
    """
    for name in task.metrics:
        found, where = metric(name), f"task '{task.name}': metric '{name}'"
        if not _fits(found, task):
            fitting = ", ".join(sorted(f"{n}@10" if m.cutoff else n for n, m in METRICS.items() if _fits(m, task)))
            raise ConfigError(f"{where} is not for {task.kind} tasks; they take: {fitting}")
        if found.entire and task.given is None:
            raise ConfigError(f'{where} is for conditional tasks; name the condition with given = "task"')
        present = {"group": schema is None or schema.user, "by": task.by, "range": task.range}
        for what in found.reads:
            if not present[what]:
                raise ConfigError(f"{where} reads {HINTS[what]}")
    if metric(task.metrics[0]).better == "near 1":
        raise ConfigError(
            f"task '{task.name}': metric '{task.metrics[0]}' chooses no epoch, since near 1 is right; "
            f"name another metric before it"
        )


def _fits(found: Metric, task: Task) -> bool:
    return (found.needs != "values") == (task.kind == "ranking") and (task.kind == "binary" or not found.binary)


__all__ = [
    "CLIP",
    "ENTIRE",
    "METRICS",
    "Better",
    "Grouped",
    "Lists",
    "Metric",
    "Ranks",
    "Rows",
    "Score",
    "average_ranks",
    "check_metrics",
    "metric",
    "rankings_of_scores",
    "rankings_of_vectors",
    "ranks_of_vectors",
    "top_items",
    "top_of_vectors",
]
