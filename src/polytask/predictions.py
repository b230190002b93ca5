"""What a model said of the rows of a part beside what was true: all that metrics, and how sure they are, come from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from polytask.errors import StateError
from polytask.files import write_with
from polytask.metrics import Metric, Score, metric
from polytask.schema import Schema

TEST_FILE = "test.safetensors"
"""In a run's folder: what its kept weights say of the test part."""

_MISSING = -1  # for a label of 0, 1 or none, which is kept in a byte


@dataclass(frozen=True, eq=False)
class Predictions:
    """By task the ``values`` [N] a model predicts for every row of a part, and the ``labels`` [N] (NaN: missing).

    ``user`` [N] is 0 where unknown. ``weights`` and ``by`` [N] are the further columns of the tasks that have some;
    ``ranks`` holds for ranking tasks the rank of every held-out item [M] and the user it is held out for [M].
    """

    schema: Schema
    user: Tensor
    values: Mapping[str, Tensor]
    labels: Mapping[str, Tensor]
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    by: Mapping[str, Tensor] = field(default_factory=dict)
    ranks: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def score(self, task: str, name: str, times: Tensor | None = None) -> Score:
        """The metric ``name`` of a regression or binary task, as if every row were there ``times`` [N] over."""
        chosen, weight = metric(name), self.weights.get(task)
        if times is not None:
            weight = times.double() if weight is None else weight * times
        group = torch.where(self.user > 0, self.user, -1) if self.schema.user else None  # an unknown user is nobody
        by, range_ = self.by.get(task), self.schema.task(task).range
        return chosen(*self.compared(task, chosen), weight=weight, group=group, by=by, range=range_)

    def compared(self, task: str, chosen: Metric) -> tuple[Tensor, Tensor]:
        """Prediction [N] float64 and label [N] that the metric ``chosen`` compares: on all rows where it is entire."""
        if chosen.entire:
            return self.entire(task)
        return self.values[task].double(), self.label(task)

    def label(self, task: str) -> Tensor:
        """Label [N] of ``task``, missing where its condition did not hold or is not known to."""
        label, given = self.labels[task], self.schema.task(task).given
        return label if given is None else torch.where(self.labels[given] == 1, label, torch.nan)

    def entire(self, task: str) -> tuple[Tensor, Tensor]:
        """Probability [N] that ``task`` and all it is conditional on hold, and whether they did (NaN: unknown)."""
        prediction, label = torch.ones(len(self.user)).double(), torch.ones(len(self.user))
        for link in reversed(self.schema.chain(task)):
            prediction = prediction * self.values[link].double()
            label = torch.where(label == 1, self.labels[link], label)
        return prediction, label

    def save(self, path: Path) -> None:
        """Write all but the schema to ``path``, whole or not at all."""
        tensors = {"user": self.user.int()}
        tensors |= {f"value/{t}": v for t, v in self.values.items()}
        tensors |= {f"label/{t}": _packed(v) for t, v in self.labels.items()}
        tensors |= {f"weight/{t}": v for t, v in self.weights.items()} | {f"by/{t}": v for t, v in self.by.items()}
        for task, (ranks, users) in self.ranks.items():  # ranks are whole or halves: exact in float32
            tensors |= {f"rank/{task}": ranks.float(), f"rank_user/{task}": users.int()}
        write_with(path, lambda temporary: save_file({n: t.contiguous() for n, t in tensors.items()}, temporary))

    @classmethod
    def load(cls, path: Path, schema: Schema) -> Self:
        """Read what :meth:`save` wrote; a :class:`StateError` where there is no such file or it is damaged."""
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError):
            raise StateError(f"{path} is missing or damaged: it holds a run's test predictions; train again") from None
        read = {kind: _of_kind(tensors, kind) for kind in ("value", "label", "weight", "by", "rank", "rank_user")}
        labels = {t: _unpacked(v) for t, v in read["label"].items()}
        ranks = {t: (v.double(), read["rank_user"][t].long()) for t, v in read["rank"].items()}
        return cls(schema, tensors["user"].long(), read["value"], labels, read["weight"], read["by"], ranks)


def _of_kind(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name.partition("/")[2]: t for name, t in tensors.items() if name.partition("/")[0] == kind}


def _packed(label: Tensor) -> Tensor:
    """A label [N] in bytes, if it is 0, 1 or missing everywhere."""
    byte = bool((label.isnan() | (label == 0) | (label == 1)).all())
    return label.nan_to_num(_MISSING).to(torch.int8) if byte else label


def _unpacked(label: Tensor) -> Tensor:
    return label if label.is_floating_point() else torch.where(label == _MISSING, torch.nan, label.float())
