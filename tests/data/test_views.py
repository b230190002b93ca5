"""Batches of whole users and items against a look at every row."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from polytask.data.batch import Part
from polytask.data.split import split
from polytask.data.synthetic import synthetic
from polytask.data.views import ViewFeed, Views
from polytask.errors import ConfigError

DATA = synthetic(users=14, items=11, rows=60, seed=2)
RATING = DATA.schema.task_names.index("rating")


def part(seed: int = 0) -> Part:
    """A training part whose rows 0..3 are made special: an unknown user, an unknown item, and no label."""
    train = split(DATA, valid=0.0, test=0.1, seed=seed).train
    user, item, labels = train.user.clone(), train.item.clone(), train.labels.clone()
    user[0], item[1], labels[2:4, RATING] = 0, 0, torch.nan
    return replace(train, user=user, item=item, labels=labels)


def feed(parts: Sequence[Part], seeds: Sequence[int], size: int = 5, task: int | None = RATING) -> ViewFeed:
    return ViewFeed(parts, seeds, size, task)


def same(first: Views, second: Views) -> bool:
    return all(a.equal(b) or a.nan_to_num(-1).equal(b.nan_to_num(-1)) for a, b in zip(first, second, strict=True))


def epochs(found: ViewFeed, count: int = 2) -> list[list[Views]]:
    return [list(found.epoch(n)) for n in range(1, count + 1)]


def flat(found: list[list[Views]]) -> list[Views]:
    return [batch for batches in found for batch in batches]


def brute(train: Part, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """1 where a pair of ``users`` and ``items`` has a row, and its last label, by a look at every row."""
    seen, ratings = torch.zeros(len(users), len(items)), torch.full((len(users), len(items)), torch.nan)
    rows = list(zip(train.user.tolist(), train.item.tolist(), train.labels[:, RATING].tolist(), strict=True))
    for a, u in enumerate(users.tolist()):
        for b, i in enumerate(items.tolist()):
            labels = [label for user, item, label in rows if (user, item) == (u, i) and u and i]
            seen[a, b] = bool(labels)
            known = [label for label in labels if label == label]
            ratings[a, b] = known[-1] if known else torch.nan
    return seen, ratings


def test_every_epoch_goes_once_through_every_user_and_every_item() -> None:
    found = epochs(feed([part()], [0], size=5), 3)
    for batches in found:
        assert len(batches) == 3  # 14 users in parts of about 5
        for name, count in (("users", 14), ("items", 11)):
            each = torch.cat([getattr(b, name)[0] for b in batches])
            assert sorted(each.tolist()) == list(range(1, count + 1))
    orders = [torch.cat([b.users[0] for b in batches]).tolist() for batches in found]
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize(("size", "steps"), [(1, 14), (4, 4), (5, 3), (14, 1), (1000, 1)])
def test_the_number_of_steps_is_that_of_the_parts_of_the_users(size: int, steps: int) -> None:
    found = feed([part()], [0], size)
    assert len(found) == len(list(found.epoch(1))) == steps
    assert max(len(b.users[0]) for b in found.epoch(1)) <= -(-14 // steps)


def test_cells_are_what_a_look_at_every_row_finds() -> None:
    train = part()
    for batch in feed([train], [0]).epoch(1):
        for chosen, seen, ratings, turned in (
            (batch.users[0], batch.seen[0], batch.ratings[0], False),
            (batch.items[0], batch.seen_by[0], batch.ratings_by[0], True),
        ):
            every = torch.arange(15 if turned else 12)
            expected = brute(train, *((every, chosen) if turned else (chosen, every)))
            for found, wanted in zip((seen, ratings), expected, strict=True):
                torch.testing.assert_close(found, wanted.T if turned else wanted, rtol=0, atol=0, equal_nan=True)


def test_of_several_rows_of_a_pair_the_last_label_stands_and_a_missing_one_hides_none() -> None:
    train = part()
    pair = [torch.tensor([3] * 4), torch.tensor([4] * 4)]
    labels = torch.ones(4, train.labels.shape[1])
    labels[:, RATING] = torch.tensor([2.0, 5.0, 1.0, torch.nan])
    rest = (train.user != 3) | (train.item != 4)
    doubled = replace(
        train,
        user=torch.cat([train.user[rest], pair[0]]),
        item=torch.cat([train.item[rest], pair[1]]),
        labels=torch.cat([train.labels[rest], labels]),
    )
    (batch,) = feed([doubled], [0], size=14).epoch(1)
    user, item = (b[0].tolist() for b in (batch.users, batch.items))
    assert (batch.seen[0, user.index(3), 4], batch.ratings[0, user.index(3), 4]) == (1, 1)
    assert (batch.seen_by[0, item.index(4), 3], batch.ratings_by[0, item.index(4), 3]) == (1, 1)


def test_without_a_rated_task_there_is_no_label() -> None:
    for batch in feed([part()], [0], task=None).epoch(1):
        assert batch.ratings.isnan().all() and batch.ratings_by.isnan().all() and batch.seen.any()


def test_the_same_seed_and_epoch_give_the_same_batches_and_another_gives_others() -> None:
    train = part()
    first, again = (epochs(feed([train], [0])) for _ in range(2))
    for a, b in zip(flat(first), flat(again), strict=True):
        assert same(a, b)
    other = epochs(feed([train], [1]))
    assert not same(first[0][0], other[0][0]) and not same(first[0][0], first[1][0])


def test_an_epoch_entered_at_a_step_gives_the_rest_of_it() -> None:
    found = feed([part()], [0])
    whole = list(found.epoch(2))
    for start in range(len(found) + 1):
        rest = list(found.epoch(2, start))
        assert len(rest) == len(whole) - start
        assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_a_replica_sees_in_a_stack_what_it_sees_alone() -> None:
    parts, seeds = [part(0), part(1), part(0)], [0, 1, 2]
    parts[2] = parts[0]
    alone = [epochs(feed([p], [s])) for p, s in zip(parts, seeds, strict=True)]
    together = epochs(feed([*parts, parts[1]], [*seeds, 1]))
    for epoch, batches in enumerate(together):
        for step, batch in enumerate(batches):
            for number, own in enumerate([*alone, alone[1]]):
                assert same(Views(*(t[number : number + 1] for t in batch)), own[epoch][step])


def test_noise_is_uniform_and_differs_from_cell_to_cell_and_step_to_step() -> None:
    batches = flat(epochs(feed([part()], [0]), 12))
    for name in ("rank_noise", "rate_noise", "rate_noise_by"):
        drawn = np.concatenate([getattr(b, name)[0].numpy().ravel() for b in batches])
        assert len(np.unique(drawn)) > 0.99 * len(drawn)
        assert drawn.min() >= 0 and drawn.max() < 1 and drawn.mean() == pytest.approx(0.5, abs=0.02)
    assert not any(b.rank_noise.equal(b.rate_noise) for b in batches)


def test_data_without_a_user_column_is_refused_in_one_line() -> None:
    train = part()
    with pytest.raises(ConfigError, match="whole users and items are scored: name the user and the item column"):
        feed([replace(train, encoder=replace(train.encoder, users=None))], [0])
