"""Models by the name of their body: one that stands in a :class:`MultiTask`, or one that is a whole model itself."""

from collections.abc import Callable
from typing import Any

from polytask.nn.design import Design
from polytask.nn.history import HistoryModel
from polytask.nn.model import MultiTask

Model = MultiTask | HistoryModel

WHOLE: dict[str, Callable[[Any, Design], Model]] = {"history": HistoryModel}
"""Models that bring their own tables, losses and batches; they take the place of a body in a design."""


def make_model(part: Any, design: Design) -> Model:
    """The model of ``design`` for the fields and tasks of ``part`` (the training part of a split)."""
    return WHOLE.get(design.body, MultiTask)(part, design)
