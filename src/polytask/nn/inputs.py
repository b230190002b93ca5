"""What a model reads: a batch, and the part of a split it is built from."""

from typing import Protocol

from torch import Tensor

from polytask.loss import Observed
from polytask.schema import Input, Schema


class Inputs(Protocol):
    """What a batch must hold (see :class:`polytask.data.batch.Batch`)."""

    @property
    def ids(self) -> Tensor:
        """Category indices [..., B, S]."""

    @property
    def numbers(self) -> Tensor:
        """Values [..., B, S] of number fields, shares of bags, 1 for categories."""

    @property
    def labels(self) -> Tensor:
        """Labels [..., B, T]; no rows where nothing is known."""

    @property
    def negative_ids(self) -> Tensor:
        """Category indices [..., B, n, S_item] of the sampled items."""

    @property
    def negative_numbers(self) -> Tensor:
        """Values [..., B, n, S_item] of the sampled items."""

    @property
    def by(self) -> Tensor:
        """Second columns [..., B, T] of the tasks; nothing where no task has one."""

    @property
    def noise(self) -> Tensor:
        """Uniform numbers [..., B, K] for modules with chance; nothing outside training."""

    @property
    def catalogue_ids(self) -> Tensor:
        """Category indices [..., I, S_item] of every item, where a task scores them all."""

    @property
    def catalogue_numbers(self) -> Tensor:
        """Values [..., I, S_item] of every item."""

    @property
    def items(self) -> Tensor:
        """Catalogue index [..., B, 1 + n] of the row's item and its sampled ones; nothing outside training."""


class Encoded(Protocol):
    """What a model is built from: a part of a split, for its fields and its labels."""

    @property
    def schema(self) -> Schema:
        """Fields and tasks."""

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The fields with their number of embedding rows and slots."""

    def observed(self, task: int) -> Observed:
        """The label of the ``task``-th task and what else its loss is fitted on."""
