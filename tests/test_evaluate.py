import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from polytask.calibration import fit_calibration
from polytask.data.batch import Part
from polytask.data.split import Split, split
from polytask.data.synthetic import synthetic
from polytask.data.table import read_dataset
from polytask.errors import ConfigError, DataError, TrainingError
from polytask.evaluate import calibrate, catalogue_values, evaluate, left_out, predict, ranks_of, weight_use
from polytask.kernels.ranks import Excluded, Ranking, Targets
from polytask.metrics import rankings_of_vectors
from polytask.nn import layers
from polytask.nn.design import Design
from polytask.nn.model import MultiTask
from polytask.nn.models import Model, make_model
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
    for bound in ("_LEAST", "_MOST"):
        monkeypatch.setattr(layers, bound, 7)
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
    none = replace(test.context, ids=torch.zeros(31 * 41, 0).long(), numbers=torch.zeros(31 * 41, 0))
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


LIKE = Task("like", "binary", positive="rating >= 2", metrics=("auc", "gauc", "ece@5"))
LOVE = Task("love", "binary", positive="rating >= 4", given="like", metrics=("entire_auc", "auc", "entire_logloss"))
ADORE = Task("adore", "binary", positive="rating >= 5", given="love", metrics=("entire_logloss", "logloss"))


def with_column(part: Part, task: int, **columns: list[float]) -> Part:
    """The part with the given values at the start of one task's column of ``labels``, ``by`` or ``row_weights``."""
    blank = {"labels": part.labels, "by": part.labels * torch.nan, "row_weights": torch.ones_like(part.labels)}
    changed = {name: blank[name].clone() for name in columns}
    for name, values in columns.items():
        changed[name][: len(values), task] = torch.tensor(values)
    return replace(part, **changed)  # type: ignore[arg-type]


def test_a_conditional_task_is_scored_where_its_condition_held_and_in_the_entire_space() -> None:
    parts = cut(LIKE, LOVE, ADORE)
    nan = float("nan")
    like, love, adore = [0, 0, nan, 1, 1], [1, nan, 1, nan, 0], [1, 1, 1, 1, nan]  # the first five rows
    test = held(parts.test)
    for task, values in enumerate((like, love, adore)):
        test = with_column(test, task, labels=values)
    model = randomized(parts.train)
    p = predict(model, test).double().numpy()
    y = test.labels.double().numpy()
    plain: dict[str, list[float]] = {"love": [], "adore": []}
    entire: dict[str, list[float]] = {"love": [], "adore": []}

    def loss(p: float, y: float) -> float:
        p = min(max(p, 1e-7), 1 - 1e-7)
        return float(-np.log(p if y else 1 - p))

    for (a, b, c), (is_like, is_love, is_adore) in zip(p, y, strict=True):
        if is_like == 1 and is_love == is_love:
            plain["love"].append(loss(b, is_love))
        if is_love == 1 and is_adore == is_adore:
            plain["adore"].append(loss(c, is_adore))
        both = is_love if is_like == 1 else is_like
        if both == both:
            entire["love"].append(loss(a * b, both))
        every = is_adore if both == 1 else both
        if every == every:
            entire["adore"].append(loss(a * b * c, every))
    found = evaluate(model, test)
    for task in ("love", "adore"):
        score = found[task]["entire_logloss"]
        assert (score.value, score.used) == (pytest.approx(np.mean(entire[task])), len(entire[task]))
        assert score.used + score.skipped == len(test)
    assert found["adore"]["logloss"].value == pytest.approx(np.mean(plain["adore"]))
    assert found["love"]["auc"].used == len(plain["love"]) < len(entire["love"])
    assert list(found["love"]) == ["entire_auc", "auc", "entire_logloss"]


def test_the_label_of_a_condition_that_did_not_hold_changes_nothing() -> None:
    parts = cut(LIKE, LOVE)
    model, test = randomized(parts.train), held(parts.test)
    turned = test.labels.clone()
    apart = turned[:, 0] == 0
    assert 0 < int(apart.sum()) < len(test)
    turned[apart, 1] = 1 - turned[apart, 1]
    other = replace(test, labels=turned)
    assert evaluate(model, other).to_dict() == evaluate(model, test).to_dict()


def test_weights_of_the_rows_count_in_every_metric_of_values() -> None:
    rating = replace(RATING, metrics=("mse", "mae", "xauc"))
    parts = cut(rating, replace(LIKE, metrics=("logloss", "auc")))
    model, test = randomized(parts.train), held(parts.test)
    plain = evaluate(model, test).to_dict()
    ones = with_column(test, 0, row_weights=[1.0])
    assert evaluate(model, ones).to_dict() == plain
    weighted = with_column(test, 0, row_weights=[float(n % 3) for n in range(len(test))])
    found = evaluate(model, weighted).to_dict()
    assert found["like"] == plain["like"]
    weight = torch.arange(len(test)) % 3
    error = (predict(model, test)[:, 0].double() - test.labels[:, 0]).square()
    assert found["rating"]["mse"] == pytest.approx(float((weight * error).sum() / weight.sum()), rel=1e-12)
    assert all(found["rating"][name] != plain["rating"][name] for name in rating.metrics)


def test_range_second_column_and_users_reach_the_metrics() -> None:
    parts = cut(replace(RATING, range=(1, 5), by="timestamp", metrics=("mse", "mse_clipped", "field_rce@4")), LIKE)
    model, test = randomized(parts.train), held(parts.test)
    test = with_column(test, 0, by=[float(n) for n in range(len(test))])
    found = evaluate(model, test)
    prediction = predict(model, test).double()
    assert found["rating"]["mse_clipped"].value == pytest.approx(
        float((prediction[:, 0].clamp(1, 5) - test.labels[:, 0]).square().mean()), rel=1e-12
    )
    bias = [
        abs(float(p.sum() - y.sum()) / float(y.sum())) * len(y) / len(test)
        for at in [torch.arange(len(test)) * 4 // len(test)]
        for b in range(4)
        for p, y in [(prediction[at == b, 0], test.labels[at == b, 0].double())]
    ]
    assert found["rating"]["field_rce@4"].value == pytest.approx(sum(bias), rel=1e-9)
    gauc = found["like"]["gauc"]
    users = [u for u in test.user.unique().tolist() if len(test.labels[test.user == u, 1].unique()) == 2]
    assert gauc.used == len(users) > 0
    unknown = evaluate(model, replace(test, user=torch.where(test.user == users[0], 0, test.user)))["like"]["gauc"]
    assert unknown.used == len(users) - 1  # rows of an unknown user are nobody's


LISTED = ("mrr", "coverage@3", "gini@3", "novelty@3", "novelty@1", "precision@3", "map@3")


def test_lists_are_those_of_a_loop_over_users() -> None:
    parts = cut(replace(WATCH, metrics=LISTED))
    test = held(parts.test)
    table = torch.randn(31, 41, generator=torch.Generator().manual_seed(0))
    model = planted(parts.train, lambda u, i: table[u, i])
    known = pair_mask(test.known.user, test.known.item)
    counts, shown = known.sum(dim=0).double().numpy(), np.zeros(41)
    users = sorted(set(test.user.tolist()))
    for user in users:
        left = [i for i in range(1, 41) if not known[user, i]]
        for item in sorted(left, key=lambda i: -float(table[user, i]))[:3]:
            shown[item] += 1
    found = evaluate(model, test)["watch"]
    exposure = np.sort(shown[1:])
    assert found["coverage@3"].value == pytest.approx((exposure > 0).mean())
    assert found["gini@3"].value == pytest.approx(
        sum((2 * n - 41) * x for n, x in enumerate(exposure, start=1)) / (40 * exposure.sum())
    )
    bits = -np.log2(np.maximum(counts, 1) / counts.sum())
    assert found["novelty@3"].value == pytest.approx((shown * bits).sum() / shown.sum())
    assert found["novelty@3"].used == len(users)
    small = evaluate(model, test, budget=1).to_dict()["watch"]
    assert small == pytest.approx(evaluate(model, test).to_dict()["watch"], rel=1e-12)


def test_lists_are_made_only_when_a_metric_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def spy(users: Tensor, items: Tensor, targets: Targets, excluded: Excluded, k: int) -> Ranking:
        asked.append(k)
        return rankings_of_vectors(users, items, targets, excluded, k)

    monkeypatch.setattr(sys.modules["polytask.evaluate"], "rankings_of_vectors", spy)
    parts = cut()
    evaluate(randomized(parts.train), held(parts.test))
    assert asked == [0]
    parts = cut(replace(WATCH, metrics=LISTED))
    evaluate(randomized(parts.train), held(parts.test))
    assert asked == [0, 3]


def overconfident(model: MultiTask, part: Part) -> Tensor:
    """Stands in for :func:`predict`: noisy probabilities [N, T] of the labels, log-odds six times too large."""
    draw = torch.Generator().manual_seed(len(part))
    noise = torch.randn(part.labels.shape, generator=draw)
    return torch.sigmoid(6 * (part.labels.nan_to_num(0.5) - 0.2 + noise))


def test_a_calibration_fitted_on_validation_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["polytask.evaluate"], "predict", overconfident)
    like = replace(LIKE, positive="rating >= 3", metrics=("auc", "ece", "logloss"))
    parts = cut(WATCH, like, replace(LOVE, metrics=("entire_logloss", "logloss")), valid=0.3)
    model, valid, test = randomized(parts.train), held(parts.valid), held(parts.test)
    training = model.training
    fitted = calibrate(model, valid)
    assert list(fitted) == ["like", "love"] and model.training is training
    plain, mended = evaluate(model, test), evaluate(model, test, calibration=fitted)
    assert mended["watch"] == plain["watch"]
    assert mended["like"]["auc"].value == pytest.approx(held_value(plain["like"]["auc"].value), abs=1e-9)
    for task, name in (("like", "ece"), ("like", "logloss"), ("love", "logloss"), ("love", "entire_logloss")):
        assert held_value(mended[task][name].value) < held_value(plain[task][name].value)
    where = valid.labels[:, 1] == 1  # a conditional task is fitted where its condition held
    again = fit_calibration("platt", overconfident(model, valid)[where, 2], valid.labels[where, 2])
    assert again == fitted["love"]
    assert list(calibrate(model, valid, "isotonic", tasks=["like"])) == ["like"]


def test_the_use_of_propensity_weights_is_that_of_the_whole_condition() -> None:
    parts = cut(WATCH, LIKE, LOVE, replace(ADORE, loss="escm_ips", options={"clip": 0.1}))
    model, valid = randomized(parts.train), held(parts.valid)
    labels = valid.labels.clone()
    labels[:3, 2:] = torch.tensor([[1.0, torch.nan], [torch.nan, 1.0], [1.0, 1.0]])  # a row without label is in no loss
    labels[:3, 1] = 1.0
    valid = replace(valid, labels=labels)
    assert weight_use(model, valid, ["watch", "like", "love"]) == {}
    (found,) = weight_use(model, valid, ["like", "adore"]).values()
    counts = (labels[:, 1] == 1) & (labels[:, 2] == 1) & ~labels[:, 3].isnan()
    p = predict(model, valid).double()[counts, 1:3].prod(dim=1)
    w = 1 / p.clamp(min=0.1)
    assert 3 < found.rows == int(counts.sum()) < len(valid)
    assert found.effective == pytest.approx(float(w.sum() ** 2 / w.square().sum()), rel=1e-5)
    assert found.clipped == pytest.approx(float((p < 0.1).double().mean()))


def held_value(value: float | None) -> float:
    assert value is not None
    return value


def test_a_calibration_that_does_not_fit_is_one_line() -> None:
    parts = cut(WATCH, LIKE, valid=0.3)
    model, valid = randomized(parts.train), held(parts.valid)
    fitted = calibrate(model, valid)
    with pytest.raises(ConfigError, match=r"task 'lik' is unknown\. Did you mean 'like'"):
        evaluate(model, valid, calibration={"lik": fitted["like"]})
    with pytest.raises(ConfigError, match="'watch' is a ranking task; only binary tasks"):
        evaluate(model, valid, calibration={"watch": fitted["like"]})
    with pytest.raises(ConfigError, match="'watch' is a ranking task; only binary tasks"):
        calibrate(model, valid, tasks=["watch"])
    with pytest.raises(DataError, match="task 'like' on valid: platt: every label is 1") as caught:
        calibrate(model, replace(valid, labels=torch.ones_like(valid.labels)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("body", ["shared_bottom", "history"])
@pytest.mark.parametrize("budget", [1, 4 * 2 * 41 * 4, 1 << 20])
def test_the_values_of_a_whole_catalogue_are_those_of_its_rows(body: str, budget: int) -> None:
    parts = cut()
    test, users = held(parts.test), torch.tensor([3, 1, 0, 30, 7])
    model: Model = randomized(parts.train, body=body) if body != "history" else make_model(parts.train, Design(body))
    blocks = list(catalogue_values(model, test, users, budget=budget))
    sizes = {1: [1] * 5, 4 * 2 * 41 * 4: [4, 1]}.get(budget, [5])
    assert [v.shape for _, v in blocks] == [(2, n, 41) for n in sizes]
    assert [first for first, _ in blocks] == [0, *np.cumsum(sizes)[:-1]]
    pairs = replace(test, user=users.repeat_interleave(41), item=torch.arange(41).repeat(5))
    found = torch.cat([v for _, v in blocks], dim=1)
    torch.testing.assert_close(found, predict(model, pairs).T.reshape(2, 5, 41), rtol=1e-5, atol=1e-5)


def test_lists_leave_out_the_unknown_item_and_what_the_user_had() -> None:
    test = held(cut().test)
    users = torch.tensor([3, 1])
    had = zip(test.known.user.tolist(), test.known.item.tolist(), strict=True)
    expected = {(0, 0), (1, 0)} | {([3, 1].index(u), i) for u, i in had if u in (1, 3)}
    found = (~left_out(test, users).mask(len(test.popularity))).nonzero().tolist()
    assert sorted(map(tuple, found)) == sorted(expected)
