"""The model of whole histories against its equations, written out cell by cell."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

from polytask import rng
from polytask.data.batch import Batch, Part
from polytask.data.split import Split, split
from polytask.data.table import read_dataset
from polytask.data.views import ViewFeed, Views
from polytask.errors import ConfigError
from polytask.evaluate import evaluate, predict
from polytask.gradients import Programs
from polytask.nn import design as designs
from polytask.nn import models
from polytask.nn.design import Design
from polytask.nn.history import HistoryModel
from polytask.nn.model import MultiTask
from polytask.nn.models import make_model
from polytask.nn.ridge import linear_weights, ridge_biases
from polytask.nn.views import Side, View
from polytask.record import Recorder
from polytask.replicas import Stack
from polytask.run import Run, TrainConfig
from polytask.schema import Field, Schema, Task
from polytask.train import fit, fit_many

WATCH = Task("watch", "ranking", head="dot")
STARS = Task("stars", "regression", label="rating")
CLICK = Task("click", "binary", label="clicked")
FIELDS = (
    Field("gender", side="user"),
    Field("age", "number", side="user"),
    Field("genre", "categories", side="item", length=3),
)
USERS = pl.DataFrame(
    {"user": [f"u{k:02}" for k in range(1, 13)], "gender": ["f", "m", "m"] * 4, "age": list(range(20, 44, 2))}
)
ITEMS = pl.DataFrame({"item": [f"i{k:02}" for k in range(1, 11)], "genre": ["x|y", "y", None, "x|z", "z"] * 2})
NEW_USER, NEW_ITEM = 12, 10  # in the catalogue, without a row
CONFIG = TrainConfig(epochs=3, batch=4, lr=0.02, patience=0, checkpoint_steps=2)
Numbers = Mapping[str, np.ndarray]


def frame(rows: int = 60, seed: int = 0) -> pl.DataFrame:
    """Pairs of the first 11 users and 9 items, each once; a sixth of the ratings is missing."""
    draw = np.random.default_rng(seed)
    cells = draw.permutation(11 * 9)[:rows]
    rating = draw.integers(1, 6, rows).astype(float)
    return pl.DataFrame(
        {
            "user": [f"u{1 + c // 9:02}" for c in cells],
            "item": [f"i{1 + c % 9:02}" for c in cells],
            "rating": [None if k % 6 == 0 else r for k, r in enumerate(rating)],
            "clicked": draw.integers(0, 2, rows),
            "weight": draw.random(rows),
        }
    )


@cache
def cut(tasks: Sequence[Task] = (WATCH, STARS), fields: Sequence[Field] = FIELDS, seed: int = 0) -> Split:
    schema = Schema(tuple(tasks), tuple(fields), user="user", item="item")
    return split(read_dataset(frame(), schema, users=USERS, items=ITEMS), valid=0, test=0.15, seed=seed)


def design(dim: int = 3, **options: Any) -> Design:
    return Design("history", dim=dim, options=Design.frozen(options))


def built(part: Part | None = None, **options: Any) -> HistoryModel:
    """A model whose every parameter, the zeros and ones of a start included, is moved at random."""
    model = HistoryModel(part or cut().train, design(**options))
    for name, parameter in model.named_parameters():
        moved = rng.generator(5, name).standard_normal(parameter.shape)
        parameter.data += torch.tensor(0.5 * moved).float()
    return model


def batch_of(part: Part, size: int = 4, seed: int = 0, step: int = 0) -> Views:
    """A batch as one replica sees it."""
    rated = next((n for n, t in enumerate(part.schema.tasks) if t.kind == "regression"), None)
    found = list(ViewFeed([part], [seed], size, rated).epoch(1))[step]
    return Views(*(t[0] for t in found))


def numbers(model: HistoryModel, member: int = 0) -> dict[str, np.ndarray]:
    """A member's parameters and the model's constants, in float64."""
    every = {n.removeprefix(f"members.{member}."): p for n, p in model.named_parameters()}
    return {n: t.detach().double().numpy() for n, t in {**every, **dict(model.named_buffers())}.items()}


def value(model: HistoryModel, user: Sequence[int], item: Sequence[int], part: Part | None = None) -> Tensor:
    """Predictions [N, T] for pairs."""
    fields = (part or cut().train).fields(torch.tensor(user), torch.tensor(item), None)
    with torch.no_grad():
        return model.values(Batch.bare(*fields))


def every_pair(model: HistoryModel) -> tuple[list[int], list[int]]:
    shape = len(model.users), len(model.items)
    return [u for u in range(shape[0]) for _ in range(shape[1])], [*range(shape[1])] * shape[0]


# The equations, cell by cell.


def base(p: Numbers, u: int, i: int) -> float:
    """mu + b_u + b_i, where the biases learn above their ridge values, and what the features add."""
    levels = p["start_mean"] + p["start_user"][u] + p["start_item"][i]
    learned = 0.5 * (p["mean"] + p["user_bias"][u] + p["item_bias"][i])
    return float(levels + learned + p["users"][u] @ p["rate_user_feature"] + p["items"][i] @ p["rate_item_feature"])


def halves(p: Numbers, u: int, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Half the sums of the features of a user and of an item."""
    return 0.5 * p["users"][u] @ p["user_feature"], 0.5 * p["items"][i] @ p["item_feature"]


def rank(p: Numbers, u: int, i: int, seen: Sequence[int]) -> float:
    user, item = halves(p, u, i)
    pooled = sum((p["by_user.seen"][j] for j in seen), np.zeros_like(user)) / math.sqrt(max(len(seen), 1))
    bias = 0.5 * p["rank_bias"][i] + p["items"][i] @ p["rank_item_feature"]
    return float((user + pooled) @ ((p["item"][i] + item) * p["gates"][0]) + bias)


def by_user(p: Numbers, u: int, i: int, seen: Mapping[int, float]) -> float:
    """The rating from the user's items ``seen``, with their residuals; the item itself is left out."""
    user, item = halves(p, u, i)
    kept = [p["by_user.seen"][j] + e * p["by_user.rated"][j] for j, e in seen.items() if j != i]
    pooled = sum(kept, np.zeros_like(user)) / math.sqrt(max(len(seen), 1))
    return base(p, u, i) + float((user + pooled) @ ((p["item"][i] + item) * p["gates"][1]))


def by_item(p: Numbers, u: int, i: int, seen: Mapping[int, float]) -> float:
    """The rating from the item's users ``seen``, with their residuals; the user is left out."""
    user, item = halves(p, u, i)
    kept = [p["by_item.seen"][v] + e * p["by_item.rated"][v] for v, e in seen.items() if v != u]
    pooled = sum(kept, np.zeros_like(item)) / math.sqrt(max(len(seen), 1))
    own = p["user"][u] if u else 0.0
    return base(p, u, i) + float((item + pooled) @ ((own + user) * p["gates"][2]))


def residuals(part: Part, p: Numbers) -> dict[tuple[int, int], float]:
    """For each training pair its rating less the ridge biases, 0 where it has none."""
    found = {}
    for u, i, label in zip(part.user.tolist(), part.item.tolist(), part.labels[:, 1].tolist(), strict=True):
        level = p["start_mean"] + p["start_user"][u] + p["start_item"][i]
        found[u, i] = 0.0 if math.isnan(label) else float(label - level)
    return found


def test_scores_and_ratings_are_the_equations() -> None:
    part, model = cut().train, built()
    p = numbers(model)
    e = residuals(part, p)
    users, items = every_pair(model)
    found = value(model, users, items).numpy()
    for u, i, (score, rating) in zip(users, items, found, strict=True):
        if (u, i) in e:  # a training row is read when it is predicted again; only training leaves it out
            continue
        mine = {j: r for (v, j), r in e.items() if v == u}
        theirs = {v: r for (v, j), r in e.items() if j == i}
        assert score == pytest.approx(rank(p, u, i, list(mine)), abs=1e-4)
        assert rating == pytest.approx((by_user(p, u, i, mine) + by_item(p, u, i, theirs)) / 2, abs=1e-4)


def kept_of(noise: Tensor, share: float, number: int) -> np.ndarray:
    """1 where the history of the ``number``-th member is not hidden."""
    return (np.mod(noise.double().numpy() + number * 0.6180339887, 1) >= share).astype(float)


def rank_loss(model: HistoryModel, batch: Views, number: int) -> float:
    p, seen = numbers(model, number), batch.seen.numpy()
    kept, total, hidden = kept_of(batch.rank_noise, model.options.drop_ranking, number), 0.0, 0
    for row, u in enumerate(batch.users.tolist()):
        history = [j for j in range(seen.shape[1]) if seen[row, j] and kept[row, j]]
        for i in range(1, seen.shape[1]):  # index 0 is no item
            score = rank(p, u, i, history)
            if not seen[row, i]:
                total += model.options.unseen * score**2
            elif not kept[row, i]:
                total, hidden = total + (1 - score) ** 2, hidden + 1
    return total / hidden


def rate_loss(model: HistoryModel, batch: Views, number: int) -> float:
    """The mean squared error of the two views, each over the rated cells of its batch, added."""
    p, share, found = numbers(model, number), model.options.drop_rating, 0.0
    for rows, seen, ratings, noise, view in (
        (batch.users, batch.seen, batch.ratings, batch.rate_noise, by_user),
        (batch.items, batch.seen_by, batch.ratings_by, batch.rate_noise_by, by_item),
    ):
        kept, errors = kept_of(noise, share, number), []
        for row, own in enumerate(rows.tolist()):
            pair = partial(_pair, own, view is by_item)
            level = {j: _level(p, *pair(j)) for j in range(seen.shape[1])}
            rated = {j: float(ratings[row, j]) for j in range(seen.shape[1]) if ratings[row, j] == ratings[row, j]}
            history = {
                j: rated[j] - level[j] if j in rated else 0.0
                for j in range(seen.shape[1])
                if seen[row, j] and kept[row, j]
            }
            errors += [(view(p, *pair(j), history) - label) ** 2 for j, label in rated.items()]
        found += sum(errors) / len(errors)
    return found


def _pair(own: int, turned: bool, other: int) -> tuple[int, int]:
    return (other, own) if turned else (own, other)


def _level(p: Numbers, u: int, i: int) -> float:
    return float(p["start_mean"] + p["start_user"][u] + p["start_item"][i])


@pytest.mark.parametrize("members", [1, 3])
def test_the_losses_are_the_equations_with_another_part_hidden_from_every_member(members: int) -> None:
    model = built(members=members, l2=0.01, unseen=0.7)
    batch = batch_of(cut().train)
    with torch.no_grad():
        losses, penalty = model.objective({}, batch)
    for found, loss in zip(losses.tolist(), (rank_loss, rate_loss), strict=True):
        each = [loss(model, batch, n) for n in range(members)]
        assert found == pytest.approx(np.mean(each), rel=1e-4)
        assert members == 1 or len({round(v, 4) for v in each}) == members
    free = {"rank_bias", "item_bias", "user_bias", "mean", "gates"}
    squares = [(p**2).sum() for n in range(members) for name, p in _own(numbers(model, n)) if name not in free]
    assert penalty.item() == pytest.approx(0.01 * sum(squares) / members, rel=1e-4)


def _own(p: Numbers) -> list[tuple[str, np.ndarray]]:
    """The parameters of one member: neither constants nor those of other members."""
    constants = ("row_", "start_", "members.")
    return [(n, v) for n, v in p.items() if not n.startswith(constants) and n not in ("users", "items")]


def test_a_history_that_is_hidden_as_a_whole_leaves_the_features() -> None:
    model, batch = built(), batch_of(cut().train)
    hidden = batch._replace(rank_noise=torch.zeros_like(batch.rank_noise))
    with torch.no_grad():
        losses, _ = model.objective({}, hidden)
    assert losses[0].item() == pytest.approx(rank_loss(model, hidden, 0), rel=1e-4)
    shown = batch._replace(rank_noise=torch.full_like(batch.rank_noise, 0.999))
    with torch.no_grad():
        assert model.objective({}, shown)[0].isfinite().all()  # nothing to find: divided by 1, not by 0


# A cell is predicted without its own label.


def test_a_view_reads_every_entry_of_a_history_but_the_one_it_predicts() -> None:
    draw = torch.Generator().manual_seed(3)
    view, rows, entries = View(6, 4), 3, 6
    for parameter in view.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw)
    own, target = torch.randn(rows, 4, generator=draw), torch.randn(entries, 4, generator=draw)
    history = (torch.rand(rows, entries, generator=draw) < 0.7).float()
    residual = torch.randn(rows, entries, generator=draw) * history
    assert 0 < history.sum() < rows * entries

    def predicted(residual: Tensor) -> Tensor:
        return view(own, target, Side(torch.arange(rows), own, history, residual)).detach()

    before = predicted(residual)
    for b, j in history.nonzero().tolist():
        changed = residual.clone()
        changed[b, j] += 100.0
        moved = (predicted(changed) - before).abs() > 1e-3
        assert not moved[b, j] and moved[b].sum() == entries - 1 and not moved[torch.arange(rows) != b].any()


@pytest.mark.parametrize("hidden", [0.0, 0.999])
def test_a_label_changes_its_own_error_and_not_its_own_prediction(hidden: float) -> None:
    """With one rated cell the loss is (prediction - y)^2 in both views: its second difference is 2 in each."""
    model, batch = built(), batch_of(cut().train)
    at, by = (int((s > 0).any(dim=0).nonzero()[0]) for s in (batch.seen, batch.seen_by))
    row, column = (int(s[:, j].nonzero()[0]) for s, j in ((batch.seen, at), (batch.seen_by, by)))
    noise = {n: torch.full_like(getattr(batch, n), hidden) for n in ("rate_noise", "rate_noise_by")}

    def loss(label: float) -> float:
        ratings, ratings_by = (torch.full_like(t, torch.nan) for t in (batch.ratings, batch.ratings_by))
        ratings[row, at], ratings_by[column, by] = label, label
        with torch.no_grad():
            found = model.objective({}, batch._replace(ratings=ratings, ratings_by=ratings_by, **noise))
        return float(found[0][1])

    assert loss(1.0) - 2 * loss(3.0) + loss(5.0) == pytest.approx(2 * 2 * 2.0**2, rel=1e-3)


# What is served.


@pytest.mark.parametrize("options", [{}, {"members": 3}, {"blend": 0.4, "linear": 2.0}])
def test_values_are_products_of_the_vectors_of_users_and_items(options: dict[str, Any]) -> None:
    part, model = cut().train, built(**options)
    found = value(model, *every_pair(model)).reshape(len(model.users), len(model.items), 2)
    users, items = part.users(torch.arange(len(model.users))), part.encoder.items
    assert items is not None
    with torch.no_grad():
        for number, task in enumerate(("watch", "stars")):
            left = model.user_vectors(task, users.ids, users.numbers)
            right = model.item_vectors(task, items.ids, items.numbers)
            torch.testing.assert_close(left @ right.T, found[:, :, number], rtol=1e-4, atol=1e-4)


def test_members_are_averaged() -> None:
    model = built(members=3)
    users, items = every_pair(model)
    found = value(model, users, items)
    each = []
    for number in range(3):
        alone = built()
        for name, parameter in alone.named_parameters():
            parameter.data.copy_(model.get_parameter(name.replace("members.0.", f"members.{number}.")).data)
        each.append(value(alone, users, items))
    assert not torch.allclose(each[0], each[1], atol=0.1)
    torch.testing.assert_close(found, torch.stack(each).mean(dim=0), rtol=1e-4, atol=1e-4)


def test_members_start_apart_and_the_first_as_a_single_one() -> None:
    single, several = (HistoryModel(cut().train, design(members=n)) for n in (1, 2))
    for name, parameter in single.named_parameters():
        other = several.get_parameter(name.replace("members.0.", "members.1."))
        assert torch.equal(parameter, several.get_parameter(name))
        assert torch.equal(parameter, other) == bool((parameter == parameter.flatten()[0]).all())


def test_a_blend_adds_the_linear_model_to_the_ranking_and_nothing_to_the_rating() -> None:
    part = cut().train
    plain, blended = built(), built(blend=0.3, linear=1.5)
    x = np.zeros((len(plain.users), len(plain.items)))
    x[part.user, part.item] = 1
    weights = ridge_of_each_item(x, 1.5)
    users, items = every_pair(plain)
    expected, found = (value(m, users, items).numpy() for m in (plain, blended))
    assert_allclose(found[:, 0], 0.7 * expected[:, 0] + 0.3 * (x @ weights)[users, items], atol=1e-4)
    assert (found[:, 1] == expected[:, 1]).all()


def ridge_of_each_item(x: np.ndarray, penalty: float) -> np.ndarray:
    """Each item's column regressed on all the others, one ridge at a time."""
    weights = np.zeros((x.shape[1], x.shape[1]))
    for i in range(x.shape[1]):
        others = [j for j in range(x.shape[1]) if j != i]
        gram = x[:, others].T @ x[:, others] + penalty * np.eye(len(others))
        weights[others, i] = np.linalg.solve(gram, x[:, others].T @ x[:, i])
    return weights


@pytest.mark.parametrize("penalty", [0.5, 20.0])
def test_the_linear_model_is_the_ridge_of_each_item_on_all_the_others(penalty: float) -> None:
    x = (np.random.default_rng(0).random((20, 8)) < 0.4).astype(np.float64)
    found = linear_weights(torch.from_numpy(x).float(), penalty)
    assert not found.diagonal().any()
    assert_allclose(found, ridge_of_each_item(x, penalty), atol=1e-5)


def test_the_unknown_and_who_has_no_history_are_served_from_features_alone() -> None:
    model = built(members=2, blend=0.3)
    each = [numbers(model, n) for n in range(2)]
    users, items = [0, NEW_USER, 0, NEW_USER], [0, NEW_ITEM, NEW_ITEM, 0]
    found = value(model, users, items)
    for u, i, (score, rating) in zip(users, items, found.tolist(), strict=True):
        assert score == pytest.approx(0.7 * np.mean([rank(p, u, i, []) for p in each]), abs=1e-4)
        views = [by_user(p, u, i, {}) + by_item(p, u, i, {}) for p in each]
        assert rating == pytest.approx(np.mean(views) / 2, abs=1e-4)
    features = model.users[NEW_USER]
    assert features.any() and not model.users[0].any() and not model.items[0].any()
    assert model.start_user[NEW_USER] == model.start_item[NEW_ITEM] == 0


def test_features_are_one_place_per_category_and_value_of_a_bag_and_numbers_as_they_are() -> None:
    part = cut().train
    model = HistoryModel(part, design())
    encoder = part.encoder
    genders, genres = (encoder.vocabularies[n].to_list() for n in ("gender", "genre"))
    mean, scale = encoder.scales["age"]
    for row, (gender, age) in enumerate(USERS.select("gender", "age").iter_rows(), start=1):
        expected = [*(float(g == gender) for g in genders), (age - mean) / scale]
        assert model.users[row].tolist() == pytest.approx(expected, abs=1e-6)
    for row, genre in enumerate(ITEMS["genre"], start=1):
        assert model.items[row].tolist() == [float(g in (genre or "").split("|")) for g in genres]


def test_the_last_label_of_a_repeated_pair_is_what_a_history_holds() -> None:
    """As in the batches (test_views): the model and its feed read the same cells."""
    part = cut().train
    again = torch.tensor([0, 1, 0])
    user, item = (
        torch.cat([t, t[again], torch.tensor(rest)]) for t, rest in ((part.user, [0, 3]), (part.item, [3, 0]))
    )
    labels = torch.tensor([[1.0, y] for y in (4.0, 2.0, torch.nan, 5.0, 5.0)])  # the last two: an unknown user, item
    doubled = replace(part, user=user, item=item, labels=torch.cat([part.labels, labels]))
    model, size = HistoryModel(doubled, design()), len(USERS)
    seen, residual = model._cells()
    batch = batch_of(doubled, size=size)
    base = model.start_mean + model.start_user[batch.users][:, None] + model.start_item
    assert torch.equal(seen[batch.users], batch.seen)
    torch.testing.assert_close(residual[batch.users], (batch.ratings - base).nan_to_num(0.0))
    assert not seen[0].any() and not seen[:, 0].any()


# Ridge biases.


def test_ridge_biases_are_twenty_rounds_of_shrunk_means() -> None:
    draw = np.random.default_rng(1)
    user, item = draw.integers(0, 6, 40), draw.integers(0, 5, 40)
    label = np.where(draw.random(40) < 0.2, np.nan, draw.integers(1, 6, 40))
    found = ridge_biases(*(torch.from_numpy(t) for t in (user, item, label)), (7, 6))
    rows = [(u, i, y) for u, i, y in zip(user, item, label, strict=True) if y == y]
    mean = sum(y for *_, y in rows) / len(rows)
    of_user, of_item = dict.fromkeys(range(7), 0.0), dict.fromkeys(range(6), 0.0)
    for _ in range(20):
        for i in of_item:
            own = [y - mean - of_user[u] for u, j, y in rows if j == i]
            of_item[i] = sum(own) / (len(own) + 3)
        for u in of_user:
            own = [y - mean - of_item[i] for v, i, y in rows if v == u]
            of_user[u] = sum(own) / (len(own) + 5)
    assert found.mean.item() == pytest.approx(mean)
    assert found.user.tolist() == pytest.approx(list(of_user.values()), abs=1e-6)
    assert found.item.tolist() == pytest.approx(list(of_item.values()), abs=1e-6)


def test_golden_ridge_biases() -> None:
    """One row (5) of user 1, one (3) of user 2, both of item 1: b_i = 0 by symmetry and b_u = +-1 / (1 + 5)."""
    user, item = torch.tensor([1, 2]), torch.tensor([1, 1])
    found = ridge_biases(user, item, torch.tensor([5.0, 3.0]), (3, 2))
    assert found.mean == 4
    assert found.item.tolist() == [0, 0]
    assert found.user.tolist() == pytest.approx([0, 1 / 6, -1 / 6])
    # one row of 5 and one of 2 of other users and items: b_i = x, b_u = y with 4 x = 1.5 - y, 6 y = 1.5 - x
    found = ridge_biases(user, user, torch.tensor([5.0, 2.0]), (3, 3))
    assert found.item.tolist() == pytest.approx([0, 7.5 / 23, -7.5 / 23])
    assert found.user.tolist() == pytest.approx([0, 4.5 / 23, -4.5 / 23])


def test_without_a_label_all_biases_are_zero() -> None:
    found = ridge_biases(torch.tensor([1]), torch.tensor([1]), torch.tensor([torch.nan]), (2, 2))
    assert not any(t.any() for t in found)


# Training.


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps in their plain form: tracing takes longer than these trainings."""
    monkeypatch.setattr("polytask.train.Programs", partial(Programs, trace=False))


def state(model: torch.nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def close(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        atol = 1e-3 * float(first[name].abs().max()) + 1e-5
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.usefixtures("untraced")
def test_a_replica_ends_in_a_stack_where_it_ends_alone() -> None:
    parts = [cut(seed=s) for s in (0, 1, 0)]
    configs = [replace(CONFIG, epochs=2, seed=s, lr=lr) for s, lr in ((0, 0.02), (1, 0.02), (2, 0.01))]
    weights = [{"watch": 1.0, "stars": w} for w in (0.3, 1.0, 0.0)]
    runs = fit_many(
        [make_model(p.train, design(members=2)) for p in parts],
        [p.train for p in parts],
        weights=weights,
        config=configs,
    )
    for run, part, config, own in zip(runs, parts, configs, weights, strict=True):
        alone = fit(model := make_model(part.train, design(members=2)), part.train, weights=own, config=config)
        assert run.model is not None
        close(state(model), state(run.model))
        assert run.history[-1]["train"] == pytest.approx(alone.history[-1]["train"], rel=1e-3)
        close({"": predict(model, part.train)}, {"": predict(run.model, part.train)})


def test_the_traced_step_is_the_plain_step() -> None:
    part, found = cut().train, []
    for trace in (True, False):
        model = HistoryModel(part, design())
        stack = Stack([model], [0.02], programs=partial(Programs, trace=trace))
        for batch in ViewFeed([part], [0], 6, 1).epoch(1):
            stack.step(batch, torch.tensor([[1.0, 0.3]]))
        found.append(state(model))
    close(*found)


def trained(seed: int = 0, **options: Any) -> tuple[Run, dict[str, Tensor]]:
    parts = cut()
    run = fit(
        model := make_model(parts.train, design()),
        parts.train,
        test=parts.test,
        config=replace(CONFIG, seed=seed),
        **options,
    )
    return run, state(model)


class Killed(BaseException):
    """The process ends here."""


def kill_at(steps: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= steps:
            raise Killed

    return progress


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("step", [1, 5, 8])
def test_a_killed_run_goes_on_to_the_same_bits(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polytask.train._REPORT_STEPS", 1)
    whole, expected = trained()
    parts = cut()
    recorder = Recorder([tmp_path], tmp_path / "checkpoints", progress=kill_at(step))
    with pytest.raises(Killed):
        fit_many([make_model(parts.train, design())], parts.train, None, parts.test, config=CONFIG, recorder=recorder)
    run, found = trained(folder=tmp_path)
    assert equal(found, expected) and run.history == whole.history


@pytest.mark.usefixtures("untraced")
def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    (first, a), (second, b) = trained(), trained()
    assert equal(a, b) and first.history == second.history
    assert not equal(a, trained(seed=1)[1])


@pytest.mark.usefixtures("untraced")
def test_training_fits_the_rows_and_scores_are_finite() -> None:
    parts = cut()
    model = make_model(parts.train, design(l2=0.0))
    config = replace(CONFIG, epochs=16, batch=12, lr=0.05, evaluate_every=8)
    run = fit(model, parts.train, test=parts.test, config=config)
    first, *_, last = [h["train"] for h in run.history]
    assert last["watch"] < first["watch"] and last["stars"] < first["stars"]
    assert parts.test is not None
    scores = evaluate(model, parts.test).to_dict()
    assert all(value is not None for metrics in scores.values() for value in metrics.values())


@pytest.mark.parametrize(
    ("weights", "still"),
    [
        ((1.0, 0.0), {"user", "by_user.rated", "by_item.seen", "by_item.rated", "rate_user_feature", "user_bias"}),
        ((0.0, 1.0), {"rank_bias", "rank_item_feature"}),
    ],
)
def test_a_task_of_weight_0_moves_nothing(weights: tuple[float, float], still: set[str]) -> None:
    model, batch = built(l2=0.0), batch_of(cut().train)
    losses, _ = model.objective({}, batch)
    (losses * torch.tensor(weights)).sum().backward()
    gradients = {n.removeprefix("members.0."): p.grad for n, p in model.named_parameters()}
    assert {n for n in still if gradients[n] is not None and gradients[n].any()} == set()
    assert [bool(row.any()) for row in gradients["gates"]] == [weights[0] > 0, weights[1] > 0, weights[1] > 0]
    assert gradients["item"].any()  # shared


@pytest.mark.parametrize("task", [WATCH, STARS])
def test_either_task_may_be_the_only_one(task: Task) -> None:
    part = cut((task,)).train
    model, both = built(part), built()
    assert [model.ranking, model.rating] == ([0, None] if task is WATCH else [None, 0])
    number = both.schema.task_names.index(task.name)
    batch, together = batch_of(part), batch_of(cut().train)
    with torch.no_grad():
        (loss,), _ = model.objective({}, batch)
        assert loss.item() == pytest.approx(both.objective({}, together)[0][number].item())
    users, items = every_pair(model)
    if task is STARS:
        torch.testing.assert_close(value(model, users, items, part)[:, 0], value(both, users, items)[:, number])


# What does not fit.


@pytest.mark.parametrize(
    "options",
    [
        {"drop_ranking": 1.0},
        {"drop_rating": -0.1},
        {"blend": 1.0},
        {"unseen": -1.0},
        {"l2": -1e-9},
        {"l2": math.nan},
        {"l2": math.inf},
        {"l2": "small"},
        {"members": 0},
        {"members": 1.5},
        {"linear": 0.0},
    ],
)
def test_an_option_out_of_range_is_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"^body 'history': drop_ranking, .*members a whole number from 1.*"
    ) as caught:
        make_model(cut().train, design(**options))
    assert "\n" not in str(caught.value)


def test_an_unknown_option_names_the_near_one() -> None:
    with pytest.raises(ConfigError, match=r"option of body 'history' 'blnd' is unknown\. Did you mean 'blend'\?"):
        make_model(cut().train, design(blnd=0.3))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ((CLICK,), "task 'click': body 'history' takes one ranking task"),
        ((WATCH, STARS, CLICK), "task 'click': body 'history' takes one ranking task"),
        ((CLICK, replace(CLICK, name="bought", given="click")), "task 'click': body 'history' takes one ranking"),
        ((replace(WATCH, head="tower"), STARS), "task 'watch': body 'history' takes one ranking task with head"),
        ((replace(WATCH, loss="softmax"), STARS), "task 'watch': body 'history' has losses of its own"),
        ((replace(WATCH, positive="rating >= 4"),), "task 'watch': body 'history' has losses of its own"),
        ((replace(WATCH, label="clicked"), STARS), "task 'watch': body 'history' has losses of its own"),
        ((WATCH, replace(STARS, loss="huber")), "task 'stars': body 'history' has losses of its own"),
        ((WATCH, replace(STARS, row_weight="weight")), "task 'stars': body 'history' has losses of its own"),
        ((WATCH, STARS, replace(STARS, name="more")), "at most one ranking and one regression task"),
        ((WATCH, replace(WATCH, name="again")), "at most one ranking and one regression task"),
    ],
)
def test_tasks_that_do_not_fit_are_refused_in_one_line(tasks: tuple[Task, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_model(cut(tasks).train, design())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"share": "separate"}, "leave out share, blocks and dropout"),
        ({"blocks": (("cross", ()),)}, "leave out share, blocks and dropout"),
        ({"dropout": 0.1}, "leave out share, blocks and dropout"),
    ],
)
def test_what_only_a_body_has_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_model(cut().train, design()._replace(**changed))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (Field("clicked"), "field 'clicked': body 'history' reads users' and items' fields"),
        (Field("past", "history"), "field 'past': body 'history' reads users' and items' fields"),
        (Field("user", side="user", buckets=5), "tells every user apart; leave out the buckets of the user column"),
        (Field("item", side="item", buckets=5), "tells every item apart; leave out the buckets of the item column"),
    ],
)
def test_fields_it_would_not_read_are_refused(field: Field, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_model(cut(fields=(*FIELDS, field)).train, design())


def test_data_without_a_user_column_is_refused() -> None:
    schema = Schema((STARS,), item="item")
    part = split(read_dataset(frame(), schema, items=ITEMS), valid=0).train
    with pytest.raises(ConfigError, match="body 'history' needs a user and an item column"):
        make_model(part, design())


def test_multi_task_says_how_to_build_it() -> None:
    for build in (lambda: MultiTask.build(cut().train, body="history"), design().checked):
        with pytest.raises(ConfigError, match=r"body 'history' is a model of its own.*make_model") as caught:
            build()
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"body 'histroy' is unknown\. Did you mean 'history'\?"):
        make_model(cut().train, Design("histroy"))
    assert set(designs.WHOLE) == set(models.WHOLE)
