"""Proof that an exported file says what the bundle says: it is run on golden and random rows, and ranks for users."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
import torch

from polytask import rng
from polytask.bundle import Bundle
from polytask.data.encode import Catalogue
from polytask.errors import StateError
from polytask.export.inputs import ITEM, USER, Given, arrays, inputs, unknown
from polytask.recommend.lists import top
from polytask.recommend.rows import context, further, indices
from polytask.schema import Field

Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]
"""Predictions [B] of each task, given inputs by name."""

LARGEST = 1e-5
"""The largest difference allowed, relative to predictions that are larger than 1."""
ROWS, USERS, ITEMS = 1000, 1000, 2000
"""Random rows, users whose lists are compared, and items they are ranked from, where there are more."""
BATCHES = (1, 7, 512)
_K = 10
_TIE = 1e-6  # relative: scores this near each other are the same, in whichever order they come


@dataclass(frozen=True)
class Checked:
    """What a comparison found: ``difference`` is the largest over ``rows``.

    Of ``users``, ``identical`` got the same ten of ``items``; those of the others differ in ties alone.
    """

    rows: int
    difference: float
    users: int
    items: int
    identical: int

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        return asdict(self)


def check(what: str, bundle: Bundle, run: Run) -> Checked:
    """Compare ``run`` with the bundle; anything that differs is a :class:`StateError` that says where."""
    given = inputs(bundle.schema)
    golden = bundle.contents.golden
    columns = [c for c in dict.fromkeys(one.column for one in given) if c in golden.columns]
    rows = _rows(bundle, given)
    frames = [golden.select(columns), rows]
    for size, count in zip(BATCHES, (10, 10 * 7, len(rows)), strict=True):
        frames += rows[:count].iter_slices(size)
    difference = 0.0
    for frame in (f for f in frames if len(f)):
        found = run(arrays(bundle.contents.encoder, given, frame))
        difference = max(difference, _difference(what, bundle, frame, found))
    counted = len(golden) + len(rows)
    if not {USER, ITEM} <= {one.name for one in given}:
        return Checked(counted, difference, 0, 0, 0)
    users, items = _drawn(bundle, "user", USERS), _drawn(bundle, "item", ITEMS)
    same = [_list(what, bundle, run, int(user), items) for user in users]
    return Checked(counted, difference, len(users), len(items), sum(same))


def _difference(what: str, bundle: Bundle, frame: pl.DataFrame, found: list[np.ndarray]) -> float:
    """The largest |found - expected| / max(1, |expected|) over rows and tasks."""
    worst = 0.0
    for task, values, right in zip(bundle.tasks, found, _expected(bundle, frame), strict=True):
        if values.shape != right.shape:
            raise StateError(f"{what} gives {[*values.shape]} predictions of '{task}' for {len(right)} rows; refused")
        gap = np.abs(values - right) / np.maximum(1, np.abs(right))
        gap[np.isnan(values) & np.isnan(right)] = 0
        largest = float(np.nan_to_num(gap, nan=np.inf).max())
        if largest > LARGEST:
            row = int(np.nan_to_num(gap, nan=np.inf).argmax())
            raise StateError(
                f"{what} says {values[row]:.7g} where the model says {right[row]:.7g} (task '{task}'): more than "
                f"{LARGEST:g} apart; nothing was written"
            )
        worst = max(worst, largest)
    return worst


def _expected(bundle: Bundle, frame: pl.DataFrame) -> np.ndarray:
    """What the bundle says [T, B] of rows whose users and items are known by their ids alone."""
    contents, scorer = bundle.contents, bundle.scorer
    encoder = contents.encoder
    user, item = indices(encoder, frame, "user"), indices(encoder, frame, "item")
    things = Catalogue.empty(len(frame))
    if encoder.items is not None:
        things = Catalogue(encoder.items.ids[item], encoder.items.numbers[item])
    by = further(encoder, frame, contents.by[item])
    return scorer.values(scorer.users(user, own=item), things, context(encoder, frame), by).T.numpy()


def _list(what: str, bundle: Bundle, run: Run, user: int, items: np.ndarray) -> bool:
    """Whether a user's ten best are the same; a difference that is no tie is a :class:`StateError`."""
    scorer, mix = bundle.scorer, bundle.mix
    given = unknown(inputs(bundle.schema), len(items))
    given |= {USER: np.full(len(items), user), ITEM: items}
    right = scorer.pairs(scorer.users(torch.tensor([user])), torch.from_numpy(items)).T.numpy()
    scores = [mix(mix.inputs(v, scorer.tasks, bundle.schema)) for v in (right, np.stack(run(given)))]
    had = np.isin(items, bundle.contents.seen.items(user))
    # the first place stands for the unknown item, which no list holds
    full = [np.concatenate([[-np.inf], np.where(had, -np.inf, s)]) for s in scores]
    one, two = (top(s, _K) for s in full)
    if np.array_equal(one, two):
        return True
    of_one, of_two = full[0][one], full[0][two]
    if len(one) != len(two) or (np.abs(of_one - of_two) > _TIE * np.abs(of_one)).any():
        raise StateError(f"{what} recommends other items than the model to user {user}; nothing was written")
    return False


def _drawn(bundle: Bundle, side: str, most: int) -> np.ndarray:
    """Indices of known users or items, ``most`` of them at random where there are more."""
    encoder = bundle.contents.encoder
    count = len((encoder.users if side == "user" else encoder.items) or ()) - 1
    found = rng.generator(0, f"export {side}").permutation(count)[:most]
    return np.sort(found) + 1


def _rows(bundle: Bundle, given: tuple[Given, ...]) -> pl.DataFrame:
    """Random raw rows: known and unknown ids and categories, numbers about and far off the usual, missing values."""
    draw = rng.generator(0, "export rows")
    fields = {f.name: f for f in bundle.schema.inputs}
    columns = dict(_column(bundle, one, fields.get(one.column), draw) for one in given)
    return pl.DataFrame(columns)


def _column(bundle: Bundle, one: Given, field: Field | None, draw: np.random.Generator) -> tuple[str, pl.Series]:
    encoder = bundle.contents.encoder
    missing = draw.random(ROWS) < 0.05
    if one.kind == "number":
        values = _numbers(bundle, one.column, draw)
        return one.column, pl.Series(one.column, [None if m else v for v, m in zip(values, missing, strict=True)])
    known = encoder.vocabularies.get(one.column)
    if known is None or not len(known):
        known = pl.Series([f"value {n}" for n in range(ROWS)])  # hashed
    count = one.length + 1 if one.kind == "bag" else 1
    picked = known.gather(draw.integers(0, len(known), ROWS * count)).to_list()
    separator = field.separator if field else ""
    kept = draw.integers(0, count + 1, ROWS) if one.kind == "bag" else [1] * ROWS
    texts = [separator.join(picked[n * count : n * count + kept[n]]) for n in range(ROWS)]
    return one.column, pl.Series(one.column, [None if m else t for t, m in zip(texts, missing, strict=True)])


def _numbers(bundle: Bundle, column: str, draw: np.random.Generator) -> list[float]:
    encoder = bundle.contents.encoder
    if column in encoder.edges and len(encoder.edges[column]):
        at = draw.choice(encoder.edges[column], ROWS)  # on an edge, and beside it
        return list(map(float, at + draw.choice([0.0, 1e-3, -1e-3], ROWS)))
    mean, scale = encoder.scales.get(column, (0.0, 1.0))
    if column not in encoder.scales and (known := bundle.contents.by[~bundle.contents.by.isnan()]).numel():
        mean, scale = float(known.mean()), float(known.mean())
    return list(map(float, draw.normal(mean, 2 * abs(scale) + 1e-6, ROWS)))
