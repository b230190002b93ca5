import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from polytask import rng
from polytask.calibration import Platt
from polytask.data.batch import Part
from polytask.data.split import Split, split
from polytask.data.synthetic import synthetic
from polytask.data.table import read_dataset
from polytask.errors import DataError
from polytask.evaluate import predict
from polytask.nn.design import Design
from polytask.nn.model import MultiTask
from polytask.nn.models import Model, make_model
from polytask.recommend.mix import Mix
from polytask.recommend.weights import Point, objective, search
from polytask.schema import Schema, Task

WATCH = Task("watch", "ranking", head="dot", metrics=("mrr",))
RATING = Task("rating", "regression", label="rating", range=(1, 5))
LOVED = Task("at least 4", "binary", positive="rating >= 4")


@cache
def cut(*tasks: Task) -> Split:
    data = synthetic(users=24, items=30, rows=600, seed=4)
    return split(replace(data, schema=replace(data.schema, tasks=tasks)), valid=0.3, test=0)


def valid(*tasks: Task) -> Part:
    part = cut(*tasks).valid
    assert part is not None
    return part


def randomized(part: Part, level: float = 0.0, **options: Any) -> MultiTask:
    """A model whose every parameter is random; values of towers are near ``level``."""
    model = MultiTask.build(part, **{"dim": 4, "tower": (5,)} | options)
    draw = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw) * 0.5)
        if name.endswith("network.2.bias"):
            parameter.data += level
    return model


def outputs(model: Model, part: Part, user: Sequence[int], item: Sequence[int]) -> dict[str, np.ndarray]:
    """What the names stand for, for pairs in an unknown context."""
    rows = replace(part, user=torch.tensor(user), item=torch.tensor(item))
    values = predict(model, rows).double().numpy().T
    found = dict(zip(model.schema.task_names, values, strict=True))
    return {t: np.logaddexp(0, v) if model.schema.task(t).kind == "ranking" else v for t, v in found.items()}


def kept(part: Part, rows: torch.Tensor) -> Part:
    """The part with some of its rows."""
    context = replace(part.context, ids=part.context.ids[rows], numbers=part.context.numbers[rows])
    return replace(part, user=part.user[rows], item=part.item[rows], labels=part.labels[rows], context=context)


def list_score(mix: Mix, model: Model, part: Part, users: Iterable[int]) -> float:
    """Mean over users of the mean over held-out items of 1 / rank in the whole catalogue, with loops."""
    known = set(zip(part.known.user.tolist(), part.known.item.tolist(), strict=True))
    pairs = set(zip(part.user.tolist(), part.item.tolist(), strict=True)) - known
    means = []
    for user in users:
        held = [i for u, i in pairs if u == user]
        score = mix(outputs(model, part, [user] * 31, range(31)))
        others = [i for i in range(1, 31) if (user, i) not in known]
        ranks = [0.5 + sum((score[j] > score[i]) + (score[j] == score[i]) / 2 for j in others) for i in held]
        means += [np.mean([1 / r for r in ranks])] if held else []
    return float(np.mean(means))


def pair_score(mix: Mix, model: Model, part: Part, task: str, users: Iterable[int], within: bool) -> float:
    """Share of pairs of rows with unequal labels in their order, over all users or the mean within each, by rows."""
    label = part.labels[:, part.schema.task_names.index(task)].tolist()
    user = part.user.tolist()
    score = mix(outputs(model, part, user, part.item.tolist()))
    right: dict[int, float] = {}
    every: dict[int, int] = {}
    chosen = [n for n, u in enumerate(user) if u in users]
    for a in chosen:
        for b in chosen:
            if label[a] > label[b] and (user[a] == user[b] or not within):
                key = user[a] if within else 0
                right[key] = right.get(key, 0) + (score[a] > score[b]) + (score[a] == score[b]) / 2
                every[key] = every.get(key, 0) + 1
    rows = {u: sum(user[n] == u for n in chosen) if within else 1 for u in every}
    return sum(rows[u] * right[u] / every[u] for u in every) / sum(rows.values())


def chosen_by_rule(points: Sequence[Point]) -> str:
    tasks = list(points[0].scores)
    sizes = [sum(t in p.mix for t in ("watch", "rating", "at least 4")) for p in points]
    singles = [p.scores for p, size in zip(points, sizes, strict=True) if size == 1]
    low, high = ({t: f(s[t] for s in singles) for t in tasks} for f in (min, max))
    gains = [np.mean([(p.scores[t] - low[t]) / (high[t] - low[t]) for t in tasks if high[t] > low[t]]) for p in points]
    best = max(gains)
    ties = [(size, n) for n, (g, size) in enumerate(zip(gains, sizes, strict=True)) if g > best - 1e-12]
    return points[min(ties)[1]].mix


def on_front(points: Sequence[Point]) -> list[bool]:
    rows = [tuple(p.scores.values()) for p in points]
    return [not any(all(np.array(o) >= p) and any(np.array(o) > p) for o in rows) for p in rows]


@pytest.mark.parametrize("head", ["dot", "tower"])
def test_every_score_of_every_mix_is_that_of_loops(head: Any) -> None:
    tasks = (replace(WATCH, head=head), RATING, LOVED)
    part = valid(*tasks)
    model = randomized(cut(*tasks).train, level=3.0)
    points = search(model, part)
    users = sorted(set(part.user.tolist()))
    assert len(points) == 67 and {p.mix for p in points} >= {"watch", "rating", "`at least 4`"}
    for point in points[::9]:
        mix = Mix.parse(point.mix, model.schema.task_names)
        wanted = {
            "watch": list_score(mix, model, part, users),
            "rating": pair_score(mix, model, part, "rating", users, within=False),
            "at least 4": pair_score(mix, model, part, "at least 4", users, within=True),
        }
        assert point.scores == pytest.approx(wanted, rel=1e-9)
    assert [p.mix for p in points if p.chosen] == [chosen_by_rule(points)]
    assert [p.front for p in points] == on_front(points)


def test_mixes_are_products_of_powers_of_even_shares_in_units_of_spread() -> None:
    tasks = (WATCH, RATING)
    part, model = valid(*tasks), randomized(cut(*tasks).train, level=3.0)
    points = search(model, part)
    row = outputs(model, part, part.user.tolist(), part.item.tolist())
    watch, rating = (np.std(np.log(row[t])) for t in ("watch", "rating"))
    assert (points[0].mix, points[-1].mix, len(points)) == ("watch", "rating", 11)
    for number, point in enumerate(points[1:-1], start=1):
        exponent = {"watch": (10 - number) / watch, "rating": number / rating}
        most = max(exponent.values())
        texts = [f"{t} ** {e / most:.3g}".removesuffix(" ** 1") for t, e in exponent.items()]
        assert point.mix == Mix.parse(" * ".join(texts), ["watch", "rating"]).text


def test_values_that_have_no_powers_are_added() -> None:
    tasks = (WATCH, RATING)
    part, model = valid(*tasks), randomized(cut(*tasks).train, level=0.0)
    row = outputs(model, part, part.user.tolist(), part.item.tolist())
    assert (row["rating"] <= 0).any()
    points = search(model, part)
    halves = {t: 1 / np.std(row[t]) for t in ("watch", "rating")}
    most = max(halves.values())
    texts = [f"{h / most:.3g} * {t}".removeprefix("1 * ") for t, h in halves.items()]
    assert points[5].mix == " + ".join(texts)
    users = sorted(set(part.user.tolist()))
    mix = Mix.parse(points[5].mix, ["watch", "rating"])
    assert points[5].scores["watch"] == pytest.approx(list_score(mix, model, part, users), rel=1e-9)


def test_items_whose_score_is_no_number_come_last() -> None:
    tasks = (WATCH, RATING)
    part, model = valid(*tasks), randomized(cut(*tasks).train, level=0.0)
    row = outputs(model, part, part.user.tolist(), part.item.tolist())
    part = kept(part, torch.from_numpy(row["rating"] > 0))  # the catalogue still holds values below 0
    users = sorted(set(part.user.tolist()))
    points = search(model, part)
    mix = Mix.parse(points[5].mix, ["watch", "rating"])
    every = mix(outputs(model, part, np.repeat(users, 30).tolist(), [*range(1, 31)] * len(users)))
    assert "**" in mix.text and (every == -np.inf).any()
    assert points[5].scores["watch"] == pytest.approx(list_score(mix, model, part, users))


def test_users_are_drawn_by_the_seed_and_only_their_rows_count() -> None:
    tasks = (WATCH, RATING)
    part, model = valid(*tasks), randomized(cut(*tasks).train, level=3.0)
    found = [search(model, part, users=5, seed=s) for s in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    everyone = torch.unique(part.user).numpy()
    drawn = everyone[rng.generator(1, "mix users").permutation(len(everyone))[:5]]
    assert found[2][-1].scores == pytest.approx(
        {
            "watch": list_score(Mix.single("rating"), model, part, drawn),
            "rating": pair_score(Mix.single("rating"), model, part, "rating", drawn, within=False),
        }
    )
    users = [1, 4, 9]
    fewer = kept(part, torch.isin(part.user, torch.tensor(users)))
    point = search(model, fewer)[-1]
    assert point.scores == pytest.approx(
        {
            "watch": list_score(Mix.single("rating"), model, part, users),
            "rating": pair_score(Mix.single("rating"), model, part, "rating", users, within=False),
        }
    )


def test_a_calibration_that_bends_probabilities_changes_what_is_fused() -> None:
    tasks = (WATCH, LOVED)
    part, model = valid(*tasks), randomized(cut(*tasks).train)
    plain, bent = search(model, part), search(model, part, {"at least 4": Platt(3.0, -2.0)})
    assert plain[0] == replace(bent[0], front=plain[0].front, chosen=plain[0].chosen)  # watch alone
    assert plain[-1].scores == bent[-1].scores  # and a single task keeps its order
    assert [p.mix for p in plain[1:-1]] != [p.mix for p in bent[1:-1]]


def test_only_the_tasks_that_are_asked_for_are_mixed() -> None:
    tasks = (WATCH, RATING, LOVED)
    part, model = valid(*tasks), randomized(cut(*tasks).train, level=3.0)
    (point,) = search(model, part, tasks=["rating"])
    assert (point.mix, list(point.scores), point.front, point.chosen) == ("rating", ["rating"], True, True)
    whole = {p.mix: p.scores for p in search(model, part)}
    assert {p.mix for p in search(model, part, tasks=["watch", "rating"])} & whole.keys() >= {"watch", "rating"}


def test_a_model_of_whole_histories_is_searched_too() -> None:
    tasks = (WATCH, RATING)
    part = valid(*tasks)
    model = make_model(cut(*tasks).train, Design("history", dim=4))
    for number, parameter in enumerate(model.parameters()):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    points = search(model, part)
    users = sorted(set(part.user.tolist()))
    for point in points[::3]:
        mix = Mix.parse(point.mix, ["watch", "rating"])
        assert point.scores["rating"] == pytest.approx(pair_score(mix, model, part, "rating", users, within=False))
        assert point.scores["watch"] == pytest.approx(list_score(mix, model, part, users))


CLICK = Task("click", "binary", label="click")
BUY = Task("buy", "binary", label="buy", given="click")


def log(users: bool, buys: Sequence[int] = (0, 1)) -> Split:
    """Rows with clicks, and with purchases where there was one."""
    draw = np.random.default_rng(0)
    click = draw.integers(0, 2, 400)
    columns: dict[str, Any] = {"user": draw.integers(0, 9, 400), "item": draw.integers(0, 20, 400), "click": click}
    columns["buy"] = np.where(click == 1, draw.choice(buys, 400), 0)
    names: Mapping[str, str] = {"user": "user", "item": "item"} if users else {"item": "item"}
    schema = Schema((CLICK, BUY), **names)
    return split(read_dataset(pl.DataFrame(columns), schema), valid=0.5, test=0)


@pytest.mark.parametrize("users", [True, False])
def test_a_conditional_task_is_judged_by_whether_all_of_it_held(users: bool) -> None:
    parts = log(users)
    part, model = parts.valid, randomized(parts.train, body="shared_bottom")
    assert part is not None
    points = search(model, part)
    label = part.labels[:, 0] * torch.nan_to_num(part.labels[:, 1])
    held = replace(part, labels=torch.stack([part.labels[:, 0], label], dim=1))
    everyone = sorted(set(part.user.tolist()))
    for point in points[::3]:
        mix = Mix.parse(point.mix, ["click", "buy"])
        expected = {t: pair_score(mix, model, held, t, everyone, within=users) for t in ("click", "buy")}
        assert point.scores == pytest.approx(expected, rel=1e-9)


def test_a_task_that_cannot_be_scored_is_left_out_and_none_at_all_is_an_error() -> None:
    parts = log(users=True, buys=(0,))
    assert parts.valid is not None
    model = randomized(parts.train)
    points = search(model, parts.valid)
    assert {tuple(p.scores) for p in points} == {("click",)}
    nothing = replace(parts.valid, labels=torch.full_like(parts.valid.labels, math.nan))
    with pytest.raises(DataError, match=r"mix: valid has no rows that can be scored.*name a mix") as caught:
        search(model, nothing)
    assert "\n" not in str(caught.value)


def test_a_tie_goes_to_the_simpler_mix() -> None:
    tasks = (RATING, replace(RATING, name="again"))
    part, model = valid(*tasks), randomized(cut(*tasks).train, level=3.0)
    model.heads[1].load_state_dict(model.heads[0].state_dict())
    points = search(model, part)
    assert len({tuple(p.scores.values()) for p in points}) == 1
    assert [p.mix for p in points if p.chosen] == ["rating"] and all(p.front for p in points)


def test_a_mix_that_is_too_long_to_be_written_is_not_tried() -> None:
    every = tuple(replace(RATING, name=n * 70) for n in "abcdefg")
    found = search(randomized(cut(*every).train, level=5.0), valid(*every), users=2)
    assert len(found) == 28 and {p.mix for p in found} >= {t.name for t in every}  # all but equal shares


def test_objectives_are_the_tasks_own() -> None:
    schema = Schema((WATCH, LOVED, BUY, CLICK), user="u", item="i")
    assert [objective(t, schema) for t in (WATCH, RATING, LOVED, BUY)] == ["mrr", "xauc", "gauc", "entire_gauc"]
    assert objective(LOVED, Schema((LOVED,), item="i")) == "auc"
    assert objective(replace(WATCH, metrics=("coverage@5", "hit@5")), schema) == "hit@5"
    assert objective(replace(WATCH, metrics=("coverage@5",)), schema) == "ndcg@10"


@pytest.mark.parametrize(("tasks", "points"), [(1, 1), (2, 11), (3, 67), (4, 57), (5, 71), (6, 57), (11, 67), (13, 14)])
def test_the_number_of_mixes_stays_small(tasks: int, points: int) -> None:
    every = tuple(replace(RATING, name=f"t{n}") for n in range(tasks))
    found = search(randomized(cut(*every).train, level=5.0), valid(*every), users=2)
    assert len(found) == points
    assert {p.mix for p in found} >= {t.name for t in every}
