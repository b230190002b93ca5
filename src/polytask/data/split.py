"""Train, valid and test: which rows each part holds, and the encoder fitted on train."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from polytask import rng
from polytask.data.batch import Part
from polytask.data.encode import Encoder, encoder_of
from polytask.data.history import Histories, Log
from polytask.data.summary import Whole
from polytask.data.table import Dataset
from polytask.errors import ConfigError, DataError, did_you_mean

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Split:
    """Three parts of one data set; ``valid`` or ``test`` is None where its share was 0."""

    train: Part
    valid: Part | None
    test: Part | None


def split(data: Dataset, kind: str = "random", *, valid: float = 0.05, test: float = 0.05, seed: int = 0) -> Split:
    """Cut ``data`` into train, valid and test, and fit the encoder on train.

    ``random``: rows at random. ``temporal``: the last rows in time are test, those before valid.
    ``leave_last``: every user's last row is test, the one before valid (users with fewer than three rows
    stay in train). ``per_user``: the shares are taken at random inside each user. ``exercise``: the
    published exercise's shuffle, test at its end and valid before it. ``official``: the publisher's test part,
    whatever ``test`` says, and of the other rows the share ``valid`` at random. ``valid`` and ``test`` are shares
    of the rows, each in [0, 1). Ranking leaves out, for each part, what its users did in the parts before it.
    """
    if kind not in SPLITS:
        raise ConfigError(did_you_mean("split", kind, SPLITS))
    check_shares(valid, test, seed)
    rows = SPLITS[kind](data, valid, test, seed)
    if not len(rows[0]):
        raise DataError(f"{data.name}: the split leaves no training row; lower valid and test")
    return _parts(data, rows)


def check_shares(valid: float, test: float, seed: int) -> None:
    """Raise :class:`ConfigError` unless the shares of a split leave something for train."""
    if not (valid >= 0 and test >= 0 and valid + test < 1):
        raise ConfigError(f"split: valid = {valid} and test = {test} must be >= 0 and leave rows for train")
    if seed < 0:
        raise ConfigError(f"split: seed = {seed} must be at least 0")


def _parts(data: Dataset, rows: Rows) -> Split:
    frames = [data.interactions[r] for r in rows]
    encoder = encoder_of(data, Whole(frames[0]))

    def part(number: int, past: np.ndarray, *earlier: Part) -> Part:
        """The part of the ``number``-th rows, whose users' histories are taken from the rows ``past``."""
        own = Part.of(("train", "valid", "test")[number], encoder, frames[number])
        histories = _histories(data, encoder, rows[number], past) if encoder.schema.histories else None
        return replace(own, histories=histories, source=data, rows=rows[number], earlier=earlier)

    train = part(0, rows[0])
    valid = part(1, rows[0], train) if len(rows[1]) else None
    earlier = (train,) if valid is None else (train, valid)
    test = part(2, np.concatenate(rows[:2]), *earlier) if len(rows[2]) else None
    return Split(train, valid, test)


def _histories(data: Dataset, encoder: Encoder, rows: np.ndarray, past: np.ndarray) -> Histories:
    schema, items = encoder.schema, encoder.items
    assert items is not None  # a schema with a history has an item column
    found = []
    for part in (rows, past):
        frame = data.interactions[part]
        user, item = (encoder.index(name, frame[name]) for name in (str(schema.user), str(schema.item)))
        time = torch.from_numpy(frame[schema.time].to_numpy().copy()) if schema.time else None
        found.append((user, item, time))
    inputs = [i for i in encoder.inputs if i.kind == "history"]
    return Histories.of(inputs, Log.of(*found[1]), Log(*found[0]), items.ids[:, 0])


def _random(data: Dataset, valid: float, test: float, seed: int) -> Rows:
    return _cut(rng.generator(seed, "split").permutation(data.interactions.height), valid, test)


def _exercise(data: Dataset, valid: float, test: float, seed: int) -> Rows:
    order = np.arange(data.interactions.height)
    np.random.RandomState(seed).shuffle(order)
    return _cut(order, valid, test)


def _official(data: Dataset, valid: float, test: float, seed: int) -> Rows:
    if data.official is None:
        raise ConfigError(f"split: {data.name} has no official test part; use 'random'")
    rest = rng.generator(seed, "split").permutation(np.flatnonzero(~data.official))
    valids = round(len(rest) * valid)
    return rest[valids:], rest[:valids], np.flatnonzero(data.official)


def _temporal(data: Dataset, valid: float, test: float, seed: int) -> Rows:
    return _cut(np.argsort(_time(data), kind="stable"), valid, test)


def _cut(order: np.ndarray, valid: float, test: float) -> Rows:
    tests, valids = round(len(order) * test), round(len(order) * valid)
    ends = len(order) - tests
    return order[: ends - valids], order[ends - valids : ends], order[ends:]


def _leave_last(data: Dataset, valid: float, test: float, seed: int) -> Rows:
    by_time = np.argsort(_time(data), kind="stable")
    place, count = _within_user(data, by_time)
    back = np.where(count >= 3, count - 1 - place, -1)
    return _assign(
        back == bool(test) if valid else np.zeros_like(back, bool), (back == 0) if test else np.zeros_like(back, bool)
    )


def _per_user(data: Dataset, valid: float, test: float, seed: int) -> Rows:
    shuffled = rng.generator(seed, "split").permutation(data.interactions.height)
    place, count = _within_user(data, shuffled)
    tests, valids = np.rint(count * test), np.rint(count * valid)
    return _assign((place >= tests) & (place < tests + valids), place < tests)


def _assign(valid: np.ndarray, test: np.ndarray) -> Rows:
    return np.flatnonzero(~valid & ~test), np.flatnonzero(valid), np.flatnonzero(test)


def _within_user(data: Dataset, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row's place among its user's rows when taken in ``order``, and that user's number of rows."""
    if not data.schema.user:
        raise ConfigError("split: this kind needs a user column; name it in the schema or use 'random'")
    _, user, counts = np.unique(data.interactions[data.schema.user].to_numpy(), return_inverse=True, return_counts=True)
    grouped = order[np.argsort(user[order], kind="stable")]
    place = np.empty(len(order), dtype=np.int64)
    place[grouped] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place, counts[user]


def _time(data: Dataset) -> np.ndarray:
    if not data.schema.time:
        raise ConfigError(f"split: {data.name} has no time column; name it in the schema or use 'random'")
    return data.interactions[data.schema.time].to_numpy()


SPLITS: dict[str, Callable[[Dataset, float, float, int], Rows]] = {
    "random": _random,
    "temporal": _temporal,
    "leave_last": _leave_last,
    "per_user": _per_user,
    "exercise": _exercise,
    "official": _official,
}
