import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from polytask.data.batch import Part
from polytask.data.split import Split, split
from polytask.data.synthetic import synthetic
from polytask.data.table import read_dataset
from polytask.errors import TrainingError
from polytask.evaluate import evaluate, predict, ranks_of
from polytask.nn.model import MultiTask
from polytask.schema import Field, Schema, Task

DATA = synthetic(users=30, items=40, rows=700, seed=4)
WATCH = Task("watch", "ranking", head="dot")
RATING = Task("rating", "regression", label="rating")


def cut(*tasks: Task, valid: float = 0.1) -> Split:
    data = replace(DATA, schema=replace(DATA.schema, tasks=tasks)) if tasks else DATA
    return split(data, valid=valid, test=0.15)


def randomized(part: Part, **options: Any) -> MultiTask:
    """A model whose every parameter, the zeros of a start included, is random."""
    model = MultiTask.build(part, **{"dim": 4, "tower": (5,)} | options)
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw))
    return model


def held(part: Part | None) -> Part:
    assert part is not None
    return part


def scores_of(model: MultiTask, users: int, items: int) -> np.ndarray:
    """Score of every user for every item by the dot head's formula, in float64."""
    values = {n: p.detach().double().numpy() for n, p in model.named_parameters()}
    table, bias = values["tables.0.weight"], values["heads.0.bias.weight"][:, 0]
    return table[:users] @ table[users : users + items].T + bias[:users, None] + bias[None, users:]


def brute_force(scores: np.ndarray, part: Part) -> float:
    """The exercise's MRR, one user after the other: train items left out, other held-out items not."""
    seen: dict[int, set[int]] = {}
    for user, item in zip(part.known.user.tolist(), part.known.item.tolist(), strict=True):
        seen.setdefault(user, set()).add(item)
    means = []
    for user in sorted(set(part.user.tolist())):
        wanted = {i for u, i in zip(part.user.tolist(), part.item.tolist(), strict=True) if u == user}
        others = [i for i in range(1, scores.shape[1]) if i not in seen.get(user, ())]
        values = []
        for item in wanted - seen.get(user, set()):
            above = sum(scores[user, i] > scores[user, item] for i in others)
            tied = sum(scores[user, i] == scores[user, item] for i in others) - 1
            values.append(1 / (1 + above + tied / 2))
        if values:
            means.append(np.mean(values))
    return float(np.mean(means))


@pytest.mark.parametrize("name", ["valid", "test"])
def test_mrr_is_that_of_a_loop_over_users_and_items(name: str) -> None:
    parts = cut()
    model, part = randomized(parts.train), held(getattr(parts, name))
    found = evaluate(model, part)["watch"]["mrr"]
    assert found.value == pytest.approx(brute_force(scores_of(model, 31, 41), part), rel=1e-6)
    assert (found.better, found.used, found.skipped) == ("higher", len(part.heldout["watch"].users), 0)


def test_the_rating_errors_are_those_of_the_predictions() -> None:
    parts = cut()
    model, test = randomized(parts.train), held(parts.test)
    error = predict(model, test)[:, 1].double() - test.labels[:, 1]
    found = evaluate(model, test)["rating"]
    assert found["mse"].value == pytest.approx(error.square().mean().item(), rel=1e-12)
    assert found["mae"].value == pytest.approx(error.abs().mean().item(), rel=1e-12)
    assert found["mse"].used == len(test)


def planted(train: Part, score: Callable[[Tensor, Tensor], Tensor]) -> MultiTask:
    """A model whose score of user u and item i is ``score(u, i)``: users are unit vectors, items columns."""
    users, items = 31, 41
    model = MultiTask.build(train, dim=users, tower=(1,))
    table = model.get_parameter("tables.0.weight").data
    table[:users] = torch.eye(users)
    table[users:] = score(torch.arange(users)[None, :], torch.arange(items)[:, None]).float()
    return model


def pair_mask(user: Tensor, item: Tensor) -> Tensor:
    """Which of [31, 41] cells are among the pairs."""
    mask = torch.zeros(31, 41, dtype=torch.bool)
    mask[user, item] = True
    return mask


def test_what_the_user_had_before_does_not_count_whatever_its_score() -> None:
    parts = cut()
    test = held(parts.test)
    known = pair_mask(test.known.user, test.known.item)
    plain = torch.randn(31, 41, generator=torch.Generator().manual_seed(0))
    found = [
        evaluate(planted(parts.train, lambda u, i, s=s: s[u, i]), test, tasks=["watch"]).to_dict()
        for s in (plain, torch.where(known, 1e6, plain), torch.where(known, -1e6, plain))
    ]
    assert found[0] == found[1] == found[2]


def test_a_model_that_knows_the_answer_has_the_best_scores() -> None:
    parts = cut()
    test = held(parts.test)
    wanted = pair_mask(test.user, test.item)
    oracle = planted(parts.train, lambda u, i: wanted[u, i].float() - i / 1000)
    found = evaluate(oracle, test)["watch"]
    counts = np.unique(test.heldout["watch"].rows.numpy(), return_counts=True)[1]
    harmonic = [np.mean(1 / np.arange(1, n + 1)) for n in counts]  # held-out items stay in each other's list
    assert found["mrr"].value == pytest.approx(np.mean(harmonic))
    assert found["mrr_first"].value == found["hit@10"].value == found["ndcg@10"].value == 1


def test_a_constant_scorer_scores_as_chance_does() -> None:
    parts = cut()
    test = held(parts.test)
    model = planted(parts.train, lambda u, i: torch.zeros_like(u * i))
    heldout = test.heldout["watch"]
    candidates = 40 - np.array([int((test.known.user == u).sum()) for u in heldout.users])
    found = evaluate(model, test)["watch"]
    assert found["mrr"].value == pytest.approx(np.mean(2 / (candidates + 1)))
    assert ranks_of(model, test, "watch").tolist() == [(candidates[r] + 1) / 2 for r in heldout.rows]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("tables.0.weight", "task 'watch' on test: scores of .* rows are not finite"),
        ("heads.0.bias.weight", "task 'watch' on test"),
        ("heads.1.network.2.bias", "task 'rating' on test: mse: .* predictions are not finite"),
    ],
)
def test_a_score_that_is_not_finite_is_never_a_number(parameter: str, message: str, bad: float) -> None:
    parts = cut()
    model = randomized(parts.train)
    test = held(parts.test)
    row = -1 if "tables" in parameter or "bias.weight" in parameter else 0
    model.get_parameter(parameter).data[row] = bad
    with pytest.raises(TrainingError, match=message) as caught:
        evaluate(model, test)
    assert "\n" not in str(caught.value)
    assert model.training


@pytest.mark.parametrize("head", ["dot", "tower"])
def test_memory_changes_no_value(head: Any) -> None:
    parts = cut(replace(WATCH, head=head), RATING)
    model, test = randomized(parts.train), held(parts.test)
    whole = evaluate(model, test).to_dict()
    for budget in (1, 4 * 41 * 7, 4 * 41 * 13 + 1):
        small = evaluate(model, test, budget=budget).to_dict()
        assert small["rating"] == whole["rating"]
        assert small["watch"] == pytest.approx(whole["watch"], rel=1e-12)


def test_rows_per_block_change_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = cut(replace(WATCH, head="tower"), RATING)
    model, test = randomized(parts.train), held(parts.test)
    values, ranks = predict(model, test), ranks_of(model, test, "watch")
    monkeypatch.setattr(sys.modules["polytask.evaluate"], "_ROWS", 7)
    torch.testing.assert_close(predict(model, test), values, rtol=1e-5, atol=1e-5)
    assert torch.equal(ranks_of(model, test, "watch"), ranks)


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_leaves_no_trace(training: bool) -> None:
    parts = cut()
    model, test = randomized(parts.train).train(training), held(parts.test)
    before = {n: p.clone() for n, p in model.named_parameters()}
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    first, second = evaluate(model, test), evaluate(model, test)
    assert first.to_dict() == second.to_dict()
    assert model.training is training
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # type: ignore[index]
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())


@pytest.mark.parametrize("share", ["shared", "separate"])
@pytest.mark.parametrize("body", ["factorize", "shared_bottom"])
def test_a_tower_ranks_as_its_predictions_of_the_rows(body: str, share: Any) -> None:
    parts = cut(replace(WATCH, head="tower"), RATING)
    model, test = randomized(parts.train, body=body, share=share), held(parts.test)
    users, items = torch.meshgrid(torch.arange(31), torch.arange(41), indexing="ij")
    none = replace(test.context, ids=test.context.ids[:0], numbers=test.context.numbers[:0])
    grid = replace(test, user=users.flatten(), item=items.flatten(), context=none, labels=torch.zeros(31 * 41, 2))
    scores = predict(model, grid)[:, 0].view(31, 41).double().numpy()
    assert evaluate(model, test)["watch"]["mrr"].value == pytest.approx(brute_force(scores, test), rel=1e-6)


def test_context_is_unknown_when_a_tower_ranks() -> None:
    table = DATA.interactions.with_columns(device=pl.col("timestamp").cast(pl.Int64) % 3, hour=pl.col("timestamp") % 24)
    schema = Schema(
        (replace(WATCH, head="tower"),), (Field("device"), Field("hour", "number")), user="user_id", item="item_id"
    )
    parts = split(read_dataset(table, schema, users=DATA.users, items=DATA.items), valid=0, test=0.1)
    model, test = randomized(parts.train), held(parts.test)
    before = evaluate(model, test).to_dict()
    moved = replace(
        test, context=replace(test.context, ids=test.context.ids.flip(0), numbers=test.context.numbers.flip(0))
    )
    assert evaluate(model, moved).to_dict() == before


def test_the_tasks_asked_for_are_scored_and_no_other() -> None:
    parts = cut()
    model, test = randomized(parts.train), held(parts.test)
    every = evaluate(model, test)
    assert list(every) == ["watch", "rating"]
    for task in every:
        assert evaluate(model, test, tasks=[task]).to_dict() == {task: every.to_dict()[task]}
    model.get_parameter("heads.1.network.2.bias").data.fill_(float("nan"))
    assert evaluate(model, test, tasks=["watch"]).to_dict()["watch"] == every.to_dict()["watch"]


def test_a_binary_task_is_scored_by_probabilities() -> None:
    parts = cut(Task("like", "binary", positive="rating >= 4"))
    model, test = randomized(parts.train), held(parts.test)
    values = predict(model, test)
    assert values.shape == (len(test), 1) and 0 < values.min() < values.max() < 1
    p, y = values[:, 0].double().clamp(1e-7, 1 - 1e-7), test.labels[:, 0]
    expected = -(y * p.log() + (1 - y) * (1 - p).log()).mean().item()
    assert evaluate(model, test)["like"]["logloss"].value == pytest.approx(expected)


def test_scores_as_plain_values_and_as_text() -> None:
    parts = cut()
    model, test = randomized(parts.train), held(parts.test)
    empty = replace(test, labels=torch.full_like(test.labels, float("nan")))
    scores = evaluate(model, empty)
    assert scores.to_dict() == {t.name: dict.fromkeys(t.metrics) for t in DATA.schema.tasks}
    assert scores["rating"]["mse"].skipped == len(test)
    lines = str(scores).splitlines()
    assert len(lines) == sum(len(t.metrics) for t in DATA.schema.tasks)
    assert all("absent: no" in line for line in lines)
    assert "higher is better" in lines[0] and "lower is better" in lines[-1]


def test_users_without_held_out_items_change_nothing() -> None:
    parts = cut(valid=0.0)
    model, test = randomized(parts.train), held(parts.test)
    before = evaluate(model, test)
    first = test.user == test.user[0]
    labels = test.labels.clone()
    labels[first, 0] = float("nan")  # one user has no positive left
    fewer = evaluate(model, replace(test, labels=labels))
    assert fewer["watch"]["mrr"].used == before["watch"]["mrr"].used - 1
    assert fewer.to_dict()["rating"] == before.to_dict()["rating"]
    kept = replace(
        test,
        user=test.user[~first],
        item=test.item[~first],
        labels=test.labels[~first],
        context=replace(test.context, ids=test.context.ids[~first], numbers=test.context.numbers[~first]),
    )
    assert fewer.to_dict()["watch"] == pytest.approx(evaluate(model, kept).to_dict()["watch"])
