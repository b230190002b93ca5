"""Parts of a split, and the batches a stack of replicas trains on."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from polytask import rng
from polytask.data.encode import Catalogue, Encoder
from polytask.data.negatives import Sampler
from polytask.data.pairs import Pairs
from polytask.schema import Input, Schema

_CHUNK = 32  # steps whose rows are gathered at once: large enough to amortize, small enough to stay in memory


@dataclass(frozen=True, eq=False)
class Part:
    """Encoded rows of one part: ``user`` [N], ``item`` [N], context fields [N, C], ``labels`` [N, T] (NaN = missing).

    ``known`` are the pairs of earlier parts, which ranking leaves out.
    """

    name: str
    encoder: Encoder
    user: Tensor
    item: Tensor
    context: Catalogue
    labels: Tensor
    known: Pairs

    def __len__(self) -> int:
        return len(self.user)

    @property
    def schema(self) -> Schema:
        """The schema of the data this part was cut from."""
        return self.encoder.schema

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The fields as the model sees them."""
        return self.encoder.inputs

    @cached_property
    def pairs(self) -> Pairs:
        """The pairs that occur in this part."""
        return Pairs.none().plus(self.user, self.item)

    @cached_property
    def popularity(self) -> Tensor:
        """Number of rows of every item [I], index 0 (unknown) counted as none."""
        catalogue = self.encoder.items
        counts = torch.bincount(self.item, minlength=len(catalogue) if catalogue else 0)
        return counts.index_fill(0, torch.tensor(0), 0)

    @cached_property
    def heldout(self) -> dict[str, "Heldout"]:
        """For each ranking task, what is to be ranked in this part."""
        return {t.name: self._heldout(n) for n, t in enumerate(self.schema.tasks) if t.kind == "ranking"}

    def _heldout(self, task: int) -> "Heldout":
        positives = Pairs.none().plus(*(side[~self.labels[:, task].isnan()] for side in (self.user, self.item)))
        items = len(self.popularity)
        fresh = ~torch.isin(positives.user * items + positives.item, self.known.user * items + self.known.item)
        users, rows = torch.unique(positives.user[fresh], return_inverse=True)
        skipped = int((~self.labels[:, task].isnan()).sum()) - int(fresh.sum())
        return Heldout(users, rows, positives.item[fresh], skipped)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the encoded rows and labels, equal only for equal data."""
        digest = hashlib.sha256(repr(self.inputs).encode())
        sides = [s for s in (self.encoder.users, self.encoder.items, self.context) if s is not None]
        for tensor in (self.user, self.item, self.labels, *(t for s in sides for t in (s.ids, s.numbers))):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def means(self) -> list[float]:
        """Mean of each task's labels over the rows that have one, 0 where none has."""
        return [0.0 if m != m else m for m in self.labels.double().nanmean(dim=0).tolist()]

    def fields(self, user: Tensor, item: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Ids and numbers [M, F] of users [M] and items [M], with the context of ``rows`` [M] (None: unknown)."""
        context = self.context if rows is not None else self.encoder.unknown("context")
        rows = torch.zeros_like(user) if rows is None else rows
        sides = [(self.encoder.users, user), (self.encoder.items, item), (context, rows)]
        present = [(side, index) for side, index in sides if side is not None and side.ids.shape[1]]
        ids = torch.cat([side.ids[index] for side, index in present], dim=-1)
        return ids, torch.cat([side.numbers[index] for side, index in present], dim=-1)


@dataclass(frozen=True, eq=False)
class Heldout:
    """Items to be ranked: ``users`` [U] who have some; per held-out item [N] its index and its user's place.

    ``skipped`` counts rows left out: repeats, unknown users or items, and items the user had before.
    """

    users: Tensor
    rows: Tensor
    items: Tensor
    skipped: int


class Batch(NamedTuple):
    """Model inputs: ``ids`` [..., B, F], ``numbers`` [..., B, F], ``labels`` [..., B, T].

    ``negative_ids`` and ``negative_numbers`` [..., B, n, F_item] hold the item fields of the sampled
    negatives of each row, n = 0 where no task ranks. A stack of replicas adds a leading dimension R.
    """

    ids: Tensor
    numbers: Tensor
    labels: Tensor
    negative_ids: Tensor
    negative_numbers: Tensor


class Feed:
    """Batches for R replicas, each with its own part and seed; the same (seed, epoch) gives the same batches.

    ``negatives`` names the sampler, ``size`` the rows per batch. The parts have equally many rows.
    """

    def __init__(self, parts: Sequence[Part], seeds: Sequence[int], size: int, negatives: str) -> None:
        runs = list(zip(parts, seeds, strict=True))
        unique = {(id(part), seed): (part, seed) for part, seed in runs}
        self.sources = list(unique.values())  # replicas that differ only in their settings read the same rows
        self.source_of = [list(unique).index((id(part), seed)) for part, seed in runs]
        self.size, self.rows = size, len(parts[0])
        self.count = max((t.negatives for t in parts[0].schema.tasks if t.kind == "ranking"), default=0)
        self.samplers = {id(p): _sampler(p, negatives) for p in parts if self.count}

    def __len__(self) -> int:
        """Steps per epoch; the last batch may be smaller."""
        return -(-self.rows // self.size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch``, from step ``start`` on."""
        draws = [self._draw(part, seed, epoch) for part, seed in self.sources]
        for first in range(start, len(self), _CHUNK):
            rows = slice(first * self.size, min((first + _CHUNK) * self.size, self.rows))
            gathered = [_gather(p, o[rows], i[rows]) for (p, _), (o, i) in zip(self.sources, draws, strict=True)]
            chunk = Batch(*(torch.stack([t[s] for s in self.source_of]) for t in zip(*gathered, strict=True)))
            for at in range(0, rows.stop - rows.start, self.size):
                yield Batch(*(t[:, at : at + self.size] for t in chunk))

    def _draw(self, part: Part, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Row order [N] and the negative items [N, n] of each row in that order."""
        order = torch.from_numpy(rng.generator(seed, "order", epoch).permutation(self.rows))
        items = np.zeros((self.rows, 0), dtype=np.int64)
        if self.count:
            random = rng.generator(seed, "negatives", epoch)
            items = self.samplers[id(part)].draw(part.user[order].numpy(), self.count, random)
        return order, torch.from_numpy(items)


def _sampler(part: Part, kind: str) -> Sampler:
    return Sampler(kind, part.pairs, len(part.encoder.users or ()), part.popularity)


def _gather(part: Part, rows: Tensor, negatives: Tensor) -> Batch:
    ids, numbers = part.fields(part.user[rows], part.item[rows], rows)
    items = part.encoder.items
    if items is None:
        empty = numbers.new_zeros(len(rows), 0, 0)
        return Batch(ids, numbers, part.labels[rows], empty.long(), empty)
    return Batch(ids, numbers, part.labels[rows], items.ids[negatives], items.numbers[negatives])
