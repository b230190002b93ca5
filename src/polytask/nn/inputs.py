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
    def weights(self) -> Tensor:
        """Weights [..., B, T] of the rows; nothing where no task has some."""

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


class Cells(Protocol):
    """A batch of whole users and items (see :class:`polytask.data.views.Views`)."""

    @property
    def users(self) -> Tensor:
        """Indices [U] of the users."""

    @property
    def items(self) -> Tensor:
        """Indices [J] of the items."""

    @property
    def seen(self) -> Tensor:
        """1 where a user has a row [U, I]."""

    @property
    def ratings(self) -> Tensor:
        """Labels [U, I], NaN where there is none."""

    @property
    def seen_by(self) -> Tensor:
        """1 where an item has a row [J, V]."""

    @property
    def ratings_by(self) -> Tensor:
        """Labels [J, V], NaN where there is none."""

    @property
    def rank_noise(self) -> Tensor:
        """Uniform numbers [U, I]: what of a history is hidden from the ranking."""

    @property
    def rate_noise(self) -> Tensor:
        """Uniform numbers [U, I]: what of a history is hidden from the ratings by user."""

    @property
    def rate_noise_by(self) -> Tensor:
        """Uniform numbers [J, V]: what is hidden from the ratings by item."""


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
