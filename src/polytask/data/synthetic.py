"""A generated data set whose two tasks agree, ignore each other or collide, as a dial says."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from polytask.data.ratings import ratings_schema
from polytask.data.table import Dataset, read_dataset
from polytask.errors import ConfigError
from polytask.rng import generator

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

AFFINITY = 1.5
"""Weight of taste in the choice of items, against Gumbel noise of scale 1."""
SKEW = 0.9
"""Exponent of the items' popularity: the k-th most popular has the prior weight k ** -SKEW (Zipf)."""
ACTIVITY = 1.1
"""Spread (sigma of a log-normal) of the number of rows per user."""
SHARES = (0.06, 0.11, 0.27, 0.35, 0.21)
"""Share of the ratings 1, 2, 3, 4 and 5."""
_LEAST = 20
_START, _SPAN = 874_724_710, 18_561_928
_CELLS = 1 << 22


def synthetic(
    users: int = 943,
    items: int = 1682,
    rows: int = 100_000,
    dim: int = 8,
    conflict: float = 0.0,
    noise: float = 0.7,
    seed: int = 0,
) -> Dataset:
    """Interactions with ratings 1..5 and times, in the columns and (by default) the shape of MovieLens 100K.

    With taste w = p·q / sqrt(dim) and a second, independent taste v = p'·q' / sqrt(dim), both of variance 1:

    * watch: user u takes the n_u items of largest ``AFFINITY * w + log popularity + Gumbel``, no pair twice;
    * rating: ``cos(pi * conflict) * w + sin(pi * conflict) * v + noise * N(0, 1)``, cut into 1..5 at the quantiles
      of ``SHARES``. So conflict 0: both tasks follow the same taste; 0.5: unrelated tastes; 1: opposite tastes.

    Every user has at least 20 rows (or rows // users, if less). An impossible shape is a :class:`ConfigError`.
    """
    _check(users, items, rows, dim, conflict, noise)
    latent = generator(seed, "synthetic latent")
    people, things = latent.standard_normal((2, users, dim)), latent.standard_normal((2, items, dim))
    popularity = -SKEW * np.log(latent.permutation(items) + 1.0)
    counts = _counts(users, items, rows, generator(seed, "synthetic activity"))
    user = np.repeat(np.arange(users), counts)
    item = _watched(people[0], things[0], popularity, counts, generator(seed, "synthetic watch"))
    watch, other = (np.einsum("nd,nd->n", people[k][user], things[k][item]) / np.sqrt(dim) for k in (0, 1))
    taste = np.cos(np.pi * conflict) * watch + np.sin(np.pi * conflict) * other
    taste = taste + noise * generator(seed, "synthetic noise").standard_normal(rows)
    rating = 1 + np.searchsorted(np.quantile(taste, np.cumsum(SHARES)[:-1]), taste)
    time = _times(user, users, generator(seed, "synthetic time"))
    return _dataset(users, items, np.lexsort((item, user, time)), (user, item, rating, time))


def _dataset(users: int, items: int, order: Ints, columns: tuple[Ints, Ints, Ints, Ints]) -> Dataset:
    user, item, rating, time = (column[order] for column in columns)
    return read_dataset(
        pl.DataFrame({"user_id": user + 1, "item_id": item + 1, "rating": rating, "timestamp": time}),
        ratings_schema(),
        users=pl.DataFrame({"user_id": np.arange(1, users + 1)}),
        items=pl.DataFrame({"item_id": np.arange(1, items + 1)}),
        name="synthetic",
    )


def _counts(users: int, items: int, rows: int, draw: np.random.Generator) -> Ints:
    """Rows per user: at least 20 where rows allow it, at most half the items where rows allow it; the sum is rows."""
    most = max(-(-rows // users), items // 2)
    weights = draw.lognormal(sigma=ACTIVITY, size=users)
    counts = np.full(users, min(_LEAST, rows // users), dtype=np.int64)
    while rest := rows - int(counts.sum()):
        open_ = counts < most
        extra = np.floor(rest * weights * open_ / (weights @ open_)).astype(np.int64)
        if not extra.any():
            extra[np.argsort(-weights * open_, kind="stable")[: min(rest, int(open_.sum()))]] = 1
        counts = np.minimum(counts + extra, most)
    return counts


def _watched(people: Floats, things: Floats, popularity: Floats, counts: Ints, draw: np.random.Generator) -> Ints:
    """The items taken, user by user: Gumbel top-k is sampling without replacement (Efraimidis and Spirakis, 2006)."""
    dim = people.shape[1]
    step = max(1, _CELLS // len(things))
    taken = []
    for start in range(0, len(people), step):
        block = people[start : start + step]
        score = AFFINITY * block @ things.T / np.sqrt(dim) + popularity + draw.gumbel(size=(len(block), len(things)))
        order = np.argsort(-score, axis=1, kind="stable")
        taken.append(order[np.arange(len(things)) < counts[start : start + step, None]])
    return np.concatenate(taken)


def _times(user: Ints, users: int, draw: np.random.Generator) -> Ints:
    """Seconds: each user comes at some moment of seven months and stays for a time of their own."""
    start = draw.random(users)
    stay = (1 - start) * draw.random(users) ** 4
    moment = start[user] + stay[user] * draw.random(len(user))
    return (_START + _SPAN * moment).astype(np.int64)


def _check(users: int, items: int, rows: int, dim: int, conflict: float, noise: float) -> None:
    if min(users, items, rows, dim) < 1 or rows > users * items:
        raise ConfigError(
            f"synthetic: {rows:,} rows of {users:,} users and {items:,} items with dim {dim} are impossible; "
            f"every number is at least 1 and rows at most users x items"
        )
    if not 0 <= conflict <= 1 or not 0 <= noise < np.inf:
        raise ConfigError(f"synthetic: conflict {conflict} must be in 0..1 and noise {noise} finite and >= 0")
