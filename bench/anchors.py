"""Baselines every recommender must beat: what counting, neighbors and linear algebra give on the same split.

    python bench/anchors.py                        (the splits of the experiment movielens-best)
    python bench/anchors.py movielens-1m-best      (those of another built-in experiment, or of a TOML file)

They are scored on exactly the rows, and without exactly the items, that `polytask compare` scores its models on.
Rankers give scores [U, I] from who rated what; raters give a predictor of the rating of pairs. All of them read
the training rows alone, need no gradient and depend on nothing but numpy; the figures are polytask's own metrics.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

import polytask as pt
from polytask.config import read
from polytask.data.batch import Part
from polytask.data.split import Split
from polytask.metrics import average_ranks, metric

Predictor = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""The rating [N] of users [N] and items [N]."""


@dataclass(frozen=True, eq=False)
class Ratings:
    """Training rows: ``user`` [N] in 0..users - 1, ``item`` [N] in 0..items - 1 and ``rating`` [N]."""

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    users: int
    items: int

    @cached_property
    def seen(self) -> np.ndarray:
        """1 where the user rated the item, else 0: [U, I] float32."""
        seen = np.zeros((self.users, self.items), dtype=np.float32)
        seen[self.user, self.item] = 1
        return seen

    @cached_property
    def co_counts(self) -> np.ndarray:
        """Number of users who rated both items: [I, I] float64."""
        return (self.seen.T @ self.seen).astype(np.float64)  # counts below 2^24 are exact in float32

    def by_user(self) -> list[np.ndarray]:
        """The rows of each user."""
        return _grouped(self.user, self.users)

    def by_item(self) -> list[np.ndarray]:
        """The rows of each item."""
        return _grouped(self.item, self.items)


def _grouped(key: np.ndarray, size: int) -> list[np.ndarray]:
    ends = np.cumsum(np.bincount(key, minlength=size))[:-1]
    return np.split(np.argsort(key, kind="stable"), ends)


# ---- rankers: scores [U, I], higher is likelier ----


def popularity(data: Ratings) -> np.ndarray:
    """Number of ratings of each item, the same for every user: [U, I]."""
    return np.broadcast_to(data.seen.sum(axis=0), data.seen.shape)


def item_knn(data: Ratings, neighbors: int = 50) -> np.ndarray:
    """Cosine of each item's column with the user's items, over the item's nearest ``neighbors``: [U, I].

    cos(i, j) = n_ij / sqrt(n_i n_j) (Sarwar et al., Item-based collaborative filtering, WWW 2001). An item is no
    neighbor of its own.
    """
    count = np.maximum(data.co_counts.diagonal(), 1)
    cosine = data.co_counts / np.sqrt(np.outer(count, count))
    np.fill_diagonal(cosine, 0)
    if neighbors < data.items:
        far = np.argpartition(-cosine, neighbors, axis=0)[neighbors:]
        np.put_along_axis(cosine, far, 0, axis=0)
    return data.seen @ cosine.astype(np.float32)


def ease(data: Ratings, penalty: float = 200) -> np.ndarray:
    """The linear item-item model with a zero diagonal, in closed form: X B [U, I].

    P = (XᵀX + penalty I)⁻¹, B_ij = -P_ij / P_jj, B_jj = 0 (Steck, Embarrassingly Shallow Autoencoders, WWW 2019).
    """
    inverse = np.linalg.inv(data.co_counts + penalty * np.eye(data.items))
    weights = -inverse / inverse.diagonal()
    np.fill_diagonal(weights, 0)
    return data.seen @ weights.astype(np.float32)


def ials(
    data: Ratings, dim: int = 32, alpha: float = 2, penalty: float = 30, sweeps: int = 15, seed: int = 0
) -> np.ndarray:
    """Factorization of the whole matrix of zeros and ones, a one weighing 1 + ``alpha``: scores [U, I].

    Least squares in turn, u = (QᵀQ + alpha Q_uᵀQ_u + penalty I)⁻¹ (1 + alpha) Q_uᵀ1 (Hu et al., ICDM 2008).
    """
    users, items = _start(data, dim, seed)
    for _ in range(sweeps):
        for own, other, groups, index in _sides(data, users, items):
            always = other.T @ other + penalty * np.eye(dim)
            for at, rows in enumerate(groups):
                mine = other[index[rows]]
                own[at] = np.linalg.solve(always + alpha * mine.T @ mine, (1 + alpha) * mine.sum(axis=0))
    return (users @ items.T).astype(np.float32)


def _start(data: Ratings, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return np.zeros((data.users, dim)), random.normal(0, 0.1, (data.items, dim))


def _sides(
    data: Ratings, users: np.ndarray, items: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray, list[np.ndarray], np.ndarray]]:
    """Users from items, then items from users: (solved, given, the rows of each solved one, what they point at)."""
    return [(users, items, data.by_user(), data.item), (items, users, data.by_item(), data.user)]


# ---- raters: the rating of pairs ----


def global_mean(data: Ratings) -> Predictor:
    """The mean rating for every pair."""
    mean = float(data.rating.mean())
    return lambda user, item: np.full(len(user), mean)


def biases(data: Ratings, user_penalty: float = 5, item_penalty: float = 3, rounds: int = 20) -> Predictor:
    """mu + b_u + b_i, each bias a mean of what the other leaves, shrunk by its penalty, in turn.

    b_i = sum(r - mu - b_u) / (n_i + penalty) (Koren, Bell and Volinsky, Matrix factorization techniques, 2009).
    """
    mean = float(data.rating.mean())
    of_user, of_item = np.zeros(data.users), np.zeros(data.items)
    for _ in range(rounds):
        of_item = _shrunk(data.item, data.rating - mean - of_user[data.user], data.items, item_penalty)
        of_user = _shrunk(data.user, data.rating - mean - of_item[data.item], data.users, user_penalty)
    return lambda user, item: mean + of_user[user] + of_item[item]


def _shrunk(key: np.ndarray, left: np.ndarray, size: int, penalty: float) -> np.ndarray:
    return np.bincount(key, left, size) / (np.bincount(key, minlength=size) + penalty)


def factorization(data: Ratings, dim: int = 32, penalty: float = 12, sweeps: int = 20, seed: int = 0) -> Predictor:
    """The biases, and u·q fitted to what they leave by least squares in turn.

    u = (Q_uᵀQ_u + penalty I)⁻¹ Q_uᵀe over the user's ratings alone (Zhou et al., AAIM 2008, with a plain ridge).
    """
    base = biases(data)
    left = data.rating - base(data.user, data.item)
    users, items = _start(data, dim, seed)
    for _ in range(sweeps):
        for own, other, groups, index in _sides(data, users, items):
            for at, rows in enumerate(groups):
                mine = other[index[rows]]
                own[at] = np.linalg.solve(mine.T @ mine + penalty * np.eye(dim), mine.T @ left[rows])
    return lambda user, item: base(user, item) + (users[user] * items[item]).sum(axis=1)


RANKERS: dict[str, Callable[[Ratings], np.ndarray]] = {
    "popularity": popularity,
    "item-kNN (cosine, k = 50)": item_knn,
    "iALS (alpha 2, penalty 30, d = 32)": ials,
    "EASE (penalty 200)": ease,
}
RATERS: dict[str, Callable[[Ratings], Predictor]] = {
    "global mean": global_mean,
    "user + item bias (5, 3)": biases,
    "bias + factorization (d = 8, penalty 8)": lambda data: factorization(data, dim=8, penalty=8),
    "bias + factorization (d = 32, penalty 12)": factorization,
}


# ---- figures on a split ----


def ratings_of(part: Part) -> Ratings:
    """The rows of a part, counted from 0: polytask's index 0 is the unknown, which no training row holds."""
    users, items = part.encoder.users, part.encoder.items
    if users is None or items is None:
        raise ValueError(f"{part.name}: the anchors need a user and an item column")
    user, item, rating = (t.numpy() for t in (part.user - 1, part.item - 1, part.labels[:, -1].double()))
    return Ratings(user, item, rating, len(users) - 1, len(items) - 1)


def known_of(part: Part) -> np.ndarray:
    """1 where the user had the item in an earlier part, validation included: [U, I]; those are not ranked again."""
    users, items = len(part.encoder.users or ()), len(part.encoder.items or ())
    known = np.zeros((users - 1, items - 1), dtype=np.float32)
    known[part.known.user - 1, part.known.item - 1] = 1
    return known


@dataclass(frozen=True, eq=False)
class Case:
    """A split: what is learned from, what is left out of the lists (``known`` [U, I]), and what is predicted."""

    train: Ratings
    known: np.ndarray
    test: Ratings


def ranking_figures(scores: np.ndarray, known: np.ndarray, test: Ratings) -> tuple[float, float]:
    """MRR over all held-out items and NDCG@10, without the items where ``known`` [U, I] is above 0.

    Other held-out items stay in the list.
    """
    users, rows = np.unique(test.user, return_inverse=True)
    excluded = torch.from_numpy(np.argwhere(known[users] > 0))
    scores = torch.from_numpy(np.ascontiguousarray(scores[users]))
    group = torch.from_numpy(rows)
    ranks = average_ranks(scores, torch.from_numpy(test.item), group, excluded)
    return float(metric("mrr")(ranks, group)), float(metric("ndcg@10")(ranks, group))


def rating_figures(predictor: Predictor, test: Ratings, lowest: float = 1, highest: float = 5) -> tuple[float, float]:
    """Mean squared error of the predictions, and of the predictions clipped to the range of ratings."""
    predicted, label = torch.from_numpy(predictor(test.user, test.item)), torch.from_numpy(test.rating)
    error = metric("mse")
    return float(error(predicted, label)), float(error(predicted.clamp(lowest, highest), label))


def table(splits: Sequence[Split]) -> str:
    """The figures of every anchor, mean over ``splits`` (train and test are read), one line each, with its seconds."""
    cases = [Case(ratings_of(s.train), known_of(s.test), ratings_of(s.test)) for s in splits if s.test is not None]
    lines = [f"{'':<44}{'MRR':>8}{'NDCG@10':>9}{'seconds':>9}"]
    for name, ranker in RANKERS.items():
        lines.append(_line(name, lambda c, ranker=ranker: ranking_figures(ranker(c.train), c.known, c.test), cases))
    lines.append(f"\n{'':<44}{'MSE':>8}{'clipped':>9}{'seconds':>9}")
    for name, rater in RATERS.items():
        lines.append(_line(name, lambda c, rater=rater: rating_figures(rater(c.train), c.test), cases))
    return "\n".join(lines)


def _line(name: str, figures: Callable[[Case], tuple[float, float]], cases: list[Case]) -> str:
    start = time.process_time()
    first, second = np.mean([figures(case) for case in cases], axis=0)
    return f"{name:<44}{first:>8.4f}{second:>9.4f}{(time.process_time() - start) / len(cases):>9.1f}"


def splits_of(name: str) -> list[Split]:
    """The splits that a comparison of the experiment ``name`` (built in, or a TOML file) scores its models on."""
    config, base = read(name)
    data, kind = config.load_data(base), config.data.split
    return [pt.split(data, kind.kind, valid=kind.valid, test=kind.test, seed=s) for s in config.compare.seeds]


def main(arguments: Sequence[str]) -> None:
    torch.set_num_threads(1)
    try:
        print(table(splits_of(arguments[0] if arguments else "movielens-best")))
    except pt.PolytaskError as error:
        sys.exit(f"anchors: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
