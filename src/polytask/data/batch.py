"""Parts of a split, and the batches a stack of replicas trains on."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from polytask import rng
from polytask.data.encode import Catalogue, Encoder
from polytask.data.history import Histories
from polytask.data.negatives import Sampler
from polytask.data.pairs import Pairs
from polytask.data.table import Dataset
from polytask.loss.base import Observed, joint_label
from polytask.schema import Input, Schema

BIAS_DROP = 0.1  # share of rows in which position-bias fields are hidden, so that serving without them is learned
_NONE = torch.zeros(0)
_CHUNK = 32  # steps whose rows are gathered at once: large enough to amortize, small enough to stay in memory


@dataclass(frozen=True, eq=False)
class Part:
    """Encoded rows of one part: ``user`` [N], ``item`` [N], context fields [N, C], ``labels`` [N, T] (NaN = missing).

    ``known`` are the pairs of earlier parts, which ranking leaves out. ``by`` and ``row_weights`` [N, T] are the
    tasks' further columns, None where no task has one. ``histories`` holds what its users did before. ``source`` is
    the data set it was cut from, and ``rows`` [N] its rows there.
    """

    name: str
    encoder: Encoder
    user: Tensor
    item: Tensor
    context: Catalogue
    labels: Tensor
    known: Pairs
    by: Tensor | None = None
    row_weights: Tensor | None = None
    histories: Histories | None = None
    source: Dataset | None = None
    rows: np.ndarray | None = None

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

    @property
    def sides(self) -> dict[str, Catalogue | None]:
        """The encoded fields of all users and all items, histories aside."""
        return {"user": self.encoder.users, "item": self.encoder.items}

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
        further = [t for t in (self.by, self.row_weights) if t is not None]
        if (past := self.histories) is not None:
            further += [past.start, past.end, past.log.item]
        for tensor in (self.user, self.item, self.labels, *further, *(t for s in sides for t in (s.ids, s.numbers))):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def observed(self, task: int) -> Observed:
        """The label of the ``task``-th task and what its loss may be fitted on beside it."""
        by = torch.full_like(self.labels[:, task], torch.nan) if self.by is None else self.by[:, task]
        held: Tensor | None = None
        for name in reversed(self.schema.chain(self.schema.task_names[task])[1:]):
            held = joint_label(self.labels[:, self.schema.task_names.index(name)], held)
        return Observed(self.labels[:, task], by, self.popularity, held)

    def fields(self, user: Tensor, item: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Ids and numbers [M, S] of users [M] and items [M], with the context and history of ``rows`` [M].

        Without rows the context is unknown and the history is all that is known of the user.
        """
        found = Catalogue.empty(len(user))
        if self.encoder.users is not None:
            found = found.beside(self.users(user, rows))
        if self.encoder.items is not None:
            found = found.beside(_taken(self.encoder.items, item))
        if rows is None:
            context, rows = self.encoder.unknown("context"), torch.zeros_like(user)
        else:
            context = self.context
        found = found.beside(_taken(context, rows))
        return found.ids, found.numbers

    def users(self, user: Tensor, rows: Tensor | None = None) -> Catalogue:
        """The fields of users [M], histories included: before ``rows`` [M], or all that is known."""
        assert self.encoder.users is not None
        own = _taken(self.encoder.users, user)
        if self.histories is None:
            return own
        return own.beside(self.histories.of_users(user) if rows is None else self.histories.of_rows(rows))


def _taken(side: Catalogue, rows: Tensor) -> Catalogue:
    return Catalogue(side.ids[rows], side.numbers[rows])


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
    """Model inputs: ``ids`` [..., B, S], ``numbers`` [..., B, S], ``labels`` [..., B, T].

    ``negative_ids`` and ``negative_numbers`` [..., B, n, S_item] hold the item fields of the sampled
    negatives of each row, n = 0 where no task ranks. ``by`` and ``weights`` [..., B, T] are further columns of the
    tasks, ``noise`` [..., B, K] the uniform numbers a model with chance asks for, ``catalogue_ids`` and
    ``catalogue_numbers`` [..., I, S_item] every item, where a task scores them all, ``items`` [..., B, 1 + n] the
    place in the catalogue of each row's item and its negatives, which ids in buckets or hidden do not tell; without
    use they hold nothing. A stack of replicas adds a leading dimension R.
    """

    ids: Tensor
    numbers: Tensor
    labels: Tensor
    negative_ids: Tensor
    negative_numbers: Tensor
    by: Tensor = _NONE
    weights: Tensor = _NONE
    noise: Tensor = _NONE
    catalogue_ids: Tensor = _NONE
    catalogue_numbers: Tensor = _NONE
    items: Tensor = _NONE

    @classmethod
    def bare(cls, ids: Tensor, numbers: Tensor, by: Tensor | None = None) -> "Batch":
        """Rows [B, S] to predict for, without labels or negatives."""
        empty = numbers.new_zeros(ids.shape[0], 0, 1)  # not len, which a traced program takes for a constant
        return cls(ids, numbers, numbers[:0], empty.long(), empty, _NONE if by is None else by)

    def first(self, share: float) -> "Batch":
        """The first rows of a stack's batch, a ``share`` of them, one at least."""
        return self._rows(slice(0, max(1, round(share * self.ids.shape[1]))))

    def cut(self, count: int) -> list["Batch"]:
        """A stack's batch in ``count`` micro-batches, or in one per row where there are fewer."""
        rows = self.ids.shape[1]
        ends = [rows * n // count for n in range(count + 1)]
        return [self._rows(slice(a, b)) for a, b in pairwise(ends) if b > a]

    def _rows(self, part: slice) -> "Batch":
        whole = ("catalogue_ids", "catalogue_numbers")
        return Batch(*(t if n in whole or t.dim() < 2 else t[:, part] for n, t in zip(self._fields, self, strict=True)))


class Feed:
    """Batches for R replicas, each with its own part and seed; the same (seed, epoch) gives the same batches.

    ``negatives`` names the sampler, ``size`` the rows per batch. A share ``unknown`` of the category values is
    replaced by "unknown", so that row 0 is trained. The position-bias fields are hidden together, in a tenth of the
    rows at least, and there have number 0. ``noise``: uniform numbers per row for the model; with ``catalogue`` a
    batch holds every item. The parts have equally many rows.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        seeds: Sequence[int],
        size: int,
        negatives: str,
        *,
        unknown: float = 0.0,
        noise: int = 0,
        catalogue: bool = False,
    ) -> None:
        self.sources, self.source_of = distinct_sources(parts, seeds)
        self.size, self.rows, self.noise, self.catalogue = size, len(parts[0]), noise, catalogue
        self.rates = _rates(parts[0], unknown)
        shown = parts[0].schema.bias_fields
        self.shown = torch.tensor([i.name in shown for i in parts[0].inputs for _ in range(i.slots)])
        self.count = max((t.negatives for t in parts[0].schema.tasks if t.kind == "ranking"), default=0)
        self.samplers = {id(p): _sampler(p, negatives) for p in parts if self.count}

    def __len__(self) -> int:
        """Steps per epoch; the last batch may be smaller."""
        return -(-self.rows // self.size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch``, from step ``start`` on."""
        draws = [self._draw(part, seed, epoch) for part, seed in self.sources]
        whole = self._whole()
        for first in range(start, len(self), _CHUNK):
            rows = slice(first * self.size, min((first + _CHUNK) * self.size, self.rows))
            gathered = [self._gather(p, *(t[rows] for t in d)) for (p, _), d in zip(self.sources, draws, strict=True)]
            chunk = [torch.stack([t[s] for s in self.source_of]) for t in zip(*gathered, strict=True)]
            for at in range(0, rows.stop - rows.start, self.size):
                *own, items = (t[:, at : at + self.size] for t in chunk)
                step = epoch, first + at // self.size
                noise = self._uniform("noise", step, items.shape[1], self.noise)
                plain = Batch(*own)._replace(
                    noise=noise, catalogue_ids=whole[0], catalogue_numbers=whole[1], items=items
                )
                yield self._hide(plain, step) if self.rates.any() else plain

    def _draw(self, part: Part, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Row order [N], and in that order the negative items [N, n] of each row."""
        order = torch.from_numpy(rng.generator(seed, "order", epoch).permutation(self.rows))
        items = np.zeros((self.rows, 0), dtype=np.int64)
        if self.count:
            random, sampler = rng.generator(seed, "negatives", epoch), self.samplers[id(part)]
            if sampler.kind.batch:
                items = sampler.draw_in_batch(part.item[order].numpy(), self.count, self.size, random)
            else:
                items = sampler.draw(part.user[order].numpy(), self.count, random)
        return order, torch.from_numpy(items)

    def _gather(self, part: Part, rows: Tensor, negatives: Tensor) -> tuple[Tensor, ...]:
        """The tensors of a batch that are cut by row, from ``ids`` to ``weights``, and ``items``."""
        ids, numbers = part.fields(part.user[rows], part.item[rows], rows)
        items = part.encoder.items
        of_negatives = numbers.new_zeros(len(rows), 0, 0).long(), numbers.new_zeros(len(rows), 0, 0)
        if items is not None:
            of_negatives = items.ids[negatives], items.numbers[negatives]
        further = [numbers[:, :0] if t is None else t[rows] for t in (part.by, part.row_weights)]
        places = torch.cat([part.item[rows, None], negatives], dim=1)[:, : self.count and 1 + self.count]
        return ids, numbers, part.labels[rows], *of_negatives, *further, places

    def _hide(self, batch: Batch, step: tuple[int, int]) -> Batch:
        """The batch with some categories unknown, and all of the display together at number 0; other numbers stay."""
        draws = self._uniform("unknown", step, batch.ids.shape[1], len(self.rates))
        draws[..., self.shown] = draws[..., self.shown][..., :1]
        hidden = draws < self.rates
        numbers = batch.numbers.masked_fill(hidden & self.shown, 0.0)
        return batch._replace(ids=batch.ids.masked_fill(hidden, 0), numbers=numbers)

    def _uniform(self, purpose: str, step: tuple[int, int], rows: int, width: int) -> Tensor:
        """Uniform numbers [R, B, width] of a (epoch, step); a larger width has the same first."""
        if not width:
            return torch.zeros(len(self.source_of), rows, 0)
        seeds = dict.fromkeys(seed for _, seed in self.sources)
        draws = {s: rng.generator(s, purpose, *step).random((width, rows), dtype=np.float32) for s in seeds}
        return torch.stack([torch.from_numpy(draws[self.sources[s][1]]).T for s in self.source_of])

    def _whole(self) -> tuple[Tensor, Tensor]:
        """Ids and numbers [R, I, S_item] of every item; of none where no task scores them all."""
        found = [p.encoder.items if self.catalogue and p.encoder.items else Catalogue.empty(0) for p, _ in self.sources]
        ids, numbers = (torch.stack([getattr(found[s], k) for s in self.source_of]) for k in ("ids", "numbers"))
        return ids, numbers


def distinct_sources(parts: Sequence[Part], seeds: Sequence[int]) -> tuple[list[tuple[Part, int]], list[int]]:
    """The different pairs of part and seed, and the place [R] of each replica's among them.

    Replicas that differ only in their settings read the same rows.
    """
    runs = list(zip(parts, seeds, strict=True))
    unique = {(id(part), seed): (part, seed) for part, seed in runs}
    return list(unique.values()), [list(unique).index((id(part), seed)) for part, seed in runs]


def _rates(part: Part, unknown: float) -> Tensor:
    """The share of rows [S] in which each slot is hidden."""
    of_display = max(unknown, BIAS_DROP)
    rates = [of_display if i.name in part.schema.bias_fields else unknown for i in part.inputs for _ in range(i.slots)]
    return torch.tensor(rates)


def _sampler(part: Part, kind: str) -> Sampler:
    return Sampler(kind, part.pairs, len(part.encoder.users or ()), part.popularity)
