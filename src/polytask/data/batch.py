"""Parts of a split, and the batches a stack of replicas trains on."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, Protocol, Self, TypeVar

import numpy as np
import polars as pl
import torch
from torch import Tensor

from polytask import rng
from polytask.data.encode import Catalogue, Encoder
from polytask.data.history import Histories
from polytask.data.negatives import NEGATIVES, Sampler
from polytask.data.pairs import Pairs
from polytask.data.table import Dataset
from polytask.loss.base import Observed, joint_label
from polytask.schema import Input, Schema

BIAS_DROP = 0.1  # share of rows in which position-bias fields are hidden, so that serving without them is learned
P = TypeVar("P")
_NONE = torch.zeros(0)
_CHUNK = 32  # steps whose rows are gathered at once, to amortize the calls
_ROWS = 1 << 13  # and at most so many rows, which stay in the cache


@dataclass(frozen=True, eq=False)
class Part:
    """Encoded rows of one part: ``user`` [N], ``item`` [N], context fields [N, C], ``labels`` [N, T] (NaN = missing).

    ``earlier`` are the parts before this one, whose pairs ranking leaves out. ``by`` and ``row_weights`` [N, T] are the
    tasks' further columns, None where no task has one. ``histories`` holds what its users did before. ``source`` is
    the data set it was cut from, and ``rows`` [N] its rows there.
    """

    name: str
    encoder: Encoder
    user: Tensor
    item: Tensor
    context: Catalogue
    labels: Tensor
    by: Tensor | None = None
    row_weights: Tensor | None = None
    histories: Histories | None = None
    source: Dataset | None = None
    rows: np.ndarray | None = None
    earlier: "tuple[TrainRows, ...]" = ()

    @classmethod
    def of(cls, name: str, encoder: Encoder, frame: pl.DataFrame) -> Self:
        """The interactions ``frame`` as the model reads them, without histories."""
        schema, none = encoder.schema, torch.zeros(frame.height, dtype=torch.int64)
        return cls(
            name=name,
            encoder=encoder,
            user=encoder.index(schema.user, frame[schema.user]) if schema.user else none,
            item=encoder.index(schema.item, frame[schema.item]) if schema.item else none,
            context=encoder.side(frame, "context"),
            labels=encoder.labels(frame),
            by=encoder.extra(frame, "by"),
            row_weights=encoder.extra(frame, "row_weight"),
        )

    def __len__(self) -> int:
        return len(self.user)

    def windows(self, seed: int, epoch: int, start: int = 0) -> Iterator["Window"]:
        """All rows in the order of (``seed``, ``epoch``), from place ``start`` on."""
        order = torch.from_numpy(rng.generator(seed, "order", epoch).permutation(len(self)))
        yield Window(0, self, order, start)

    @property
    def schema(self) -> Schema:
        """The schema of the data this part was cut from."""
        return self.encoder.schema

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The fields as the model sees them."""
        return self.encoder.inputs

    @property
    def sample(self) -> Self:
        """Rows in memory that stand for all: this part itself."""
        return self

    @property
    def sides(self) -> dict[str, Catalogue | None]:
        """The encoded fields of all users and all items, histories aside."""
        return {"user": self.encoder.users, "item": self.encoder.items}

    @cached_property
    def known(self) -> Pairs:
        """The pairs of earlier parts."""
        first, *others = [part.pairs for part in self.earlier] or [Pairs.none()]
        for other in others:
            first = first.plus(other.user, other.item)
        return first

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
            digest.update(tensor.contiguous().numpy().data)
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
        found = self.users(user, rows).beside(self.encoder.rows_of("item", item))
        if rows is None:
            context, rows = self.encoder.unknown("context"), torch.zeros_like(user)
        else:
            context = self.context
        found = found.beside(context.take(rows))
        return found.ids, found.numbers

    def users(self, user: Tensor, rows: Tensor | None = None) -> Catalogue:
        """The fields of users [M], histories included: before ``rows`` [M], or all that is known."""
        own = self.encoder.rows_of("user", user)
        if self.histories is None:
            return own
        return own.beside(self.histories.of_users(user) if rows is None else self.histories.of_rows(rows))


class Window(NamedTuple):
    """Rows that are shuffled together, the ``number``-th of an epoch: those of ``part`` in ``order`` [M].

    Those before place ``start`` were read already.
    """

    number: int
    part: Part
    order: Tensor
    start: int


class TrainRows(Protocol):
    """Training rows as a feed takes them, all in memory or a window at a time."""

    def __len__(self) -> int:
        """Number of rows."""

    @property
    def encoder(self) -> Encoder:
        """What turned the raw rows into these."""

    @property
    def pairs(self) -> Pairs:
        """The pairs of user and item that occur."""

    @property
    def popularity(self) -> Tensor:
        """Number of rows of every item [I], index 0 (unknown) counted as none."""

    def windows(self, seed: int, epoch: int, start: int = 0) -> Iterator[Window]:
        """Windows that hold every row once, in an order drawn from (``seed``, ``epoch``), from row ``start`` on."""


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
        parts: Sequence[TrainRows],
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
        encoder = parts[0].encoder
        shown = encoder.schema.bias_fields
        self.shown = torch.tensor([i.name in shown for i in encoder.inputs for _ in range(i.slots)])
        self.rates = torch.where(self.shown, max(unknown, BIAS_DROP), unknown)
        self.hides, self.shows = bool((self.rates > 0).any()), bool(self.shown.any())
        self.count = max((t.negatives for t in encoder.schema.tasks if t.kind == "ranking"), default=0)
        self.samplers = {id(p): _sampler(p, negatives) for p in parts if self.count}

    def __len__(self) -> int:
        """Steps per epoch; the last batch may be smaller."""
        return -(-self.rows // self.size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch``, from step ``start`` on."""
        whole = self._whole()
        sources = [self._steps(part, seed, epoch, start) for part, seed in self.sources]
        for step, found in enumerate(zip(*sources, strict=True), start):
            own = found[0]
            if len(self.source_of) > 1:
                own = tuple(torch.cat([found[s][k] for s in self.source_of]) for k in range(len(own)))
            if self.hides:
                own = (*self._hidden(own[0], own[1], (epoch, step)), *own[2:])
            noise = self._uniform("noise", (epoch, step), own[0].shape[1], self.noise).contiguous()
            yield Batch(*own[:-1])._replace(
                noise=noise, catalogue_ids=whole[0], catalogue_numbers=whole[1], items=own[-1]
            )

    def _steps(self, part: TrainRows, seed: int, epoch: int, start: int) -> Iterator[tuple[Tensor, ...]]:
        """The batches of one source, each as tensors [1, B, ...] up to ``weights``, and ``items``."""
        size = self.size * max(1, min(_CHUNK, _ROWS // self.size))
        rest: tuple[Tensor, ...] = ()  # of a window, too few rows for a batch: the next one's come after them
        for window in part.windows(seed, epoch, start * self.size):
            if window.start >= len(window.order):
                continue
            negatives = self._negatives(part, window, rng.generator(seed, "negatives", epoch, window.number))
            pieces = (torch.split(t[window.start :], size) for t in (window.order, negatives))
            for rows, drawn in zip(*pieces, strict=True):
                chunk = self._gather(window.part, rows, drawn)
                if rest:
                    chunk = tuple(torch.cat(pair, dim=1) for pair in zip(rest, chunk, strict=True))
                steps = list(zip(*(torch.split(t, self.size, dim=1) for t in chunk), strict=True))
                rest = steps.pop() if chunk[0].shape[1] % self.size else ()
                yield from steps
        if rest:
            yield rest

    def _negatives(self, part: TrainRows, window: Window, random: np.random.Generator) -> Tensor:
        """The negative items [M, n] of the rows of a window, in its order."""
        if not self.count:
            return torch.zeros(len(window.order), 0, dtype=torch.int64)
        sampler, own = self.samplers[id(part)], window.part
        if sampler.kind.batch:
            items = own.item.index_select(0, window.order).numpy()
            return torch.from_numpy(sampler.draw_in_batch(items, self.count, self.size, random))
        users = own.user.index_select(0, window.order).numpy()
        return torch.from_numpy(sampler.draw(users, self.count, random))

    def _gather(self, part: Part, rows: Tensor, negatives: Tensor) -> tuple[Tensor, ...]:
        """The tensors [1, M, ...] of a batch that are cut by row, from ``ids`` to ``weights``, and ``items``."""
        user, item = part.user.index_select(0, rows), part.item.index_select(0, rows)
        ids, numbers = part.fields(user, item, rows)
        sampled = part.encoder.rows_of("item", negatives.flatten())
        of_negatives = (t.view(*negatives.shape, t.shape[1]) for t in (sampled.ids, sampled.numbers))
        further = [numbers[:, :0] if t is None else t.index_select(0, rows) for t in (part.by, part.row_weights)]
        places = torch.cat([item[:, None], negatives], dim=1)[:, : self.count and 1 + self.count]
        labels = part.labels.index_select(0, rows)
        return tuple(t[None] for t in (ids, numbers, labels, *of_negatives, *further, places))

    def _hidden(self, ids: Tensor, numbers: Tensor, step: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Ids with some categories unknown, and all of the display together at number 0; other numbers stay."""
        draws = self._uniform("unknown", step, ids.shape[1], len(self.rates))
        if self.shows:
            draws[..., self.shown] = draws[..., self.shown][..., :1]
        hidden = draws < self.rates
        return ids.masked_fill(hidden, 0), numbers.masked_fill(hidden & self.shown, 0.0) if self.shows else numbers

    def _uniform(self, purpose: str, step: tuple[int, int], rows: int, width: int) -> Tensor:
        """Uniform numbers [R, B, width] of a (epoch, step); a larger width has the same first."""
        if not width:
            return torch.zeros(len(self.source_of), rows, 0)
        seeds = dict.fromkeys(seed for _, seed in self.sources)
        draws = {s: rng.generator(s, purpose, *step).random((width, rows), dtype=np.float32) for s in seeds}
        found = [torch.from_numpy(draws[self.sources[s][1]]).T for s in self.source_of]
        return torch.stack(found) if len(found) > 1 else found[0][None]

    def _whole(self) -> tuple[Tensor, Tensor]:
        """Ids and numbers [R, I, S_item] of every item; of none where no task scores them all."""
        found = [p.encoder.items if self.catalogue and p.encoder.items else Catalogue.empty(0) for p, _ in self.sources]
        ids, numbers = (torch.stack([getattr(found[s], k) for s in self.source_of]) for k in ("ids", "numbers"))
        return ids, numbers


def distinct_sources(parts: Sequence[P], seeds: Sequence[int]) -> tuple[list[tuple[P, int]], list[int]]:
    """The different pairs of part and seed, and the place [R] of each replica's among them.

    Replicas that differ only in their settings read the same rows.
    """
    runs = list(zip(parts, seeds, strict=True))
    unique = {(id(part), seed): (part, seed) for part, seed in runs}
    return list(unique.values()), [list(unique).index((id(part), seed)) for part, seed in runs]


def _sampler(part: TrainRows, kind: str) -> Sampler:
    blind = kind in NEGATIVES and not NEGATIVES[kind].unseen  # to what users had, which need not be collected
    return Sampler(kind, Pairs.none() if blind else part.pairs, len(part.encoder.users or ()), part.popularity)
