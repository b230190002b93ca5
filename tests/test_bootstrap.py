from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polytask import rng
from polytask.bootstrap import delong, kept_predictions, resampled, user_bootstrap
from polytask.errors import ConfigError, StateError
from polytask.metrics import metric
from polytask.nn.design import Design
from polytask.predictions import TEST_FILE, Predictions
from polytask.run import Run, TrainConfig
from polytask.schema import Schema, Task

ROWS, USERS = 60, 12


def schema(kind: Any = "binary", name: str = "auc", **options: Any) -> Schema:
    return Schema((Task("t", kind, label="y", metrics=(name,), **options),), user="u", item="i")


def made(name: str, seed: int = 0, kind: Any = "binary", quality: float = 1.0, **options: Any) -> Predictions:
    """Predictions of one task on rows that are always the same; some are tied, some have no label or user."""
    fixed, own = torch.Generator().manual_seed(7), torch.Generator().manual_seed(seed)
    user = torch.randint(0, USERS, (ROWS,), generator=fixed)
    label = (torch.rand(ROWS, generator=fixed) < 0.4).float()
    noise = torch.randn(ROWS, generator=own)
    value = ((quality * label + noise) * 4).round() / 4
    label[::13] = torch.nan
    value = torch.sigmoid(value) if kind == "binary" else value
    weight = 1 + torch.randint(0, 3, (ROWS,), generator=fixed).float()
    return Predictions(schema(kind, name, **options), user, {"t": value}, {"t": label}, {"t": weight})


def duplicated(told: Predictions, name: str, counts: Tensor, unit: Tensor) -> float:
    """The metric on rows that are really there as often as their user was drawn, each copy a user of its own."""
    chosen, rows = metric(name), []
    for row, n in enumerate(unit.tolist()):
        rows += [(row, copy) for copy in range(int(counts[n]))]
    at = torch.tensor([r for r, _ in rows])
    group = torch.tensor([int(unit[r]) * 1000 + c for r, c in rows])
    group = torch.where(told.user[at] > 0, group, -1)
    value, label, weight = told.values["t"][at], told.labels["t"][at], told.weights["t"][at]
    return float(chosen(value, label, weight=weight, group=group))


def units(told: Predictions, chosen: str) -> tuple[Tensor, Tensor]:
    """Which rows count, and the number of the user of each of them; every unknown user is one of its own."""
    known = ~told.labels["t"].isnan() & ((told.user > 0) | ("group" not in metric(chosen).reads))
    apart = torch.where(told.user > 0, told.user, -1 - torch.arange(ROWS))[known]
    return known, torch.unique(apart, return_inverse=True)[1]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("binary", "auc"),
        ("binary", "gauc"),
        ("binary", "logloss"),
        ("binary", "ne"),
        ("regression", "mse"),
        ("regression", "rmse"),
        ("regression", "xauc"),
    ],
)
def test_the_interval_is_that_of_rows_really_repeated(kind: Any, name: str) -> None:
    one, other = made(name, 0, kind), made(name, 1, kind)
    found = user_bootstrap(one, other, "t", replications=40, seed=3)
    known, unit = units(one, name)
    kept = [
        replace(
            p,
            user=p.user[known],
            **{k: {"t": getattr(p, k)["t"][known]} for k in ("values", "labels", "weights")},
        )
        for p in (one, other)
    ]
    draw, users = rng.generator(3, "bootstrap"), int(unit.max()) + 1
    gains = []
    sign = 1 if metric(name).better == "higher" else -1
    for _ in range(40):
        counts = torch.from_numpy(np.bincount(draw.integers(users, size=users), minlength=users))
        a, b = (duplicated(p, name, counts, unit) for p in kept)
        gains.append(sign * (a - b))
    low, high = np.quantile(gains, [0.025, 0.975])
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))
    assert found.mean == pytest.approx(sign * (float(one.score("t", name)) - float(other.score("t", name))))


def ranked(seed: int, name: str = "mrr") -> Predictions:
    users = torch.tensor([1, 1, 1, 4, 4, 5, 6, 6, 7, 9])
    ranks = 1 + torch.randint(0, 40, (10,), generator=torch.Generator().manual_seed(seed)).double() / 2
    told = Schema((Task("t", "ranking", head="dot", metrics=(name,)),), user="u", item="i")
    return Predictions(told, torch.zeros(0, dtype=torch.int64), {}, {}, ranks={"t": (ranks, users)})


@pytest.mark.parametrize("name", ["mrr", "ndcg@10", "recall@5", "map@5"])
def test_rankings_are_resampled_by_user(name: str) -> None:
    one, other = ranked(0, name), ranked(1, name)
    found = user_bootstrap(one, other, "t")
    values = []
    for told in (one, other):
        ranks, users = told.ranks["t"]
        values.append([float(metric(name)(ranks[users == u], users[users == u])) for u in users.unique()])
    differences = np.subtract(*values)
    assert found.mean == pytest.approx(differences.mean())
    drawn = np.random.default_rng(0).choice(differences, (20_000, len(differences))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    width = high - low
    assert found.low == pytest.approx(low, abs=0.08 * width) and found.high == pytest.approx(high, abs=0.08 * width)


def test_users_are_resampled_whole() -> None:
    """Rows of one user that agree are one observation, so more of them make nothing surer."""
    draw = torch.Generator().manual_seed(0)
    errors = torch.randn(200, generator=draw)
    told = schema("regression", "mse")
    zero = torch.zeros(1600)

    def width(user: Tensor) -> float:
        first = Predictions(told, user, {"t": errors.repeat_interleave(8)}, {"t": zero})
        found = user_bootstrap(first, replace(first, values={"t": zero}), "t")
        assert found.low is not None and found.high is not None
        return found.high - found.low

    by_user, by_row = width(1 + torch.arange(200).repeat_interleave(8)), width(zero.long())
    assert by_user / by_row == pytest.approx(8**0.5, rel=0.1)


def test_a_large_sample_has_the_normal_interval() -> None:
    draw = torch.Generator().manual_seed(1)
    label = torch.randn(3000, generator=draw)
    one, other = (label + s * torch.randn(3000, generator=draw) for s in (1.0, 1.1))
    told = schema("regression", "mse")
    first, second = (Predictions(told, torch.zeros(3000).long(), {"t": v}, {"t": label}) for v in (one, other))
    found = user_bootstrap(first, second, "t")
    gains = ((other - label) ** 2 - (one - label) ** 2).double()
    half = 1.96 * float(gains.std()) / 3000**0.5
    assert found.mean == pytest.approx(float(gains.mean()))
    assert (found.low, found.high) == (
        pytest.approx(found.mean - half, abs=0.08 * half),
        pytest.approx(found.mean + half, abs=0.08 * half),
    )


def test_the_same_model_gains_nothing_and_the_same_call_says_the_same() -> None:
    one, other = made("auc", 0), made("auc", 1)
    same = user_bootstrap(one, one, "t", replications=50)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    assert user_bootstrap(one, other, "t", replications=50) == user_bootstrap(one, other, "t", replications=50)
    turned = user_bootstrap(other, one, "t", replications=50)
    found = user_bootstrap(one, other, "t", replications=50)
    assert turned.mean == -found.mean and turned.low == pytest.approx(-(found.high or 0))


def test_other_test_rows_are_an_error() -> None:
    one, other = made("auc"), made("auc", 1)
    relabeled = replace(other, labels={"t": 1 - other.labels["t"]})
    for strange in (relabeled, replace(other, user=other.user + 1)):
        with pytest.raises(ConfigError, match="tested on different rows; compare runs of one seed"):
            user_bootstrap(one, strange, "t")


def test_metrics_of_whole_lists_and_those_right_near_1_are_refused() -> None:
    for told, name in ((ranked(0), "coverage@5"), (made("auc"), "pcoc")):
        with pytest.raises(ConfigError, match="cannot be resampled by user"):
            user_bootstrap(told, told, "t", name)


def a_run(folder: Path | None, seed: int, told: Predictions) -> Run:
    if folder is not None:
        folder.mkdir()
        told.save(folder / TEST_FILE)
    found = Run("r", told.schema, {"t": 1.0}, TrainConfig(seed=seed), Design()._asdict(), [], 1, {}, 1.0, 1)
    found.folder = folder
    return found


def test_runs_are_resampled_seed_by_seed_from_their_folders(tmp_path: Path) -> None:
    first = [a_run(tmp_path / f"a{s}", s, made("auc", s)) for s in (0, 1)]
    second = [a_run(tmp_path / f"b{s}", s, made("auc", 10 + s)) for s in (1, 2)]
    found = resampled(first, second, "t")
    assert found == {1: user_bootstrap(made("auc", 1), made("auc", 11), "t")}


def test_a_run_that_kept_no_predictions_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="run 'r' has no folder"):
        kept_predictions(a_run(None, 0, made("auc")))
    run = a_run(tmp_path / "a", 0, made("auc"))
    (tmp_path / "a" / TEST_FILE).write_bytes(b"no tensors")
    with pytest.raises(StateError, match="missing or damaged: it holds a run's test predictions"):
        kept_predictions(run)


def brute_force(prediction: Tensor, label: Tensor) -> Tensor:
    """Whether each positive [m] is above each negative [n], ties one half."""
    up, down = prediction[label == 1], prediction[label == 0]
    return (up[:, None] > down).double() + (up[:, None] == down).double() / 2


def test_delong_is_the_textbook_formula_by_all_pairs() -> None:
    one, other = made("auc", 0), made("auc", 1, quality=0.2)
    label = one.labels["t"].nan_to_num(0.0)
    pairs = [brute_force(p.values["t"], label) for p in (one, other)]
    m, n = pairs[0].shape
    s10 = np.cov(np.stack([p.mean(dim=1).numpy() for p in pairs]))
    s01 = np.cov(np.stack([p.mean(dim=0).numpy() for p in pairs]))
    variance = float(np.array([1, -1]) @ (s10 / m + s01 / n) @ np.array([1, -1]))
    found = delong(one.values["t"], other.values["t"], label)
    assert found.mean == pytest.approx(float(pairs[0].mean() - pairs[1].mean()))
    assert found.high is not None and found.high - found.mean == pytest.approx(1.959964 * variance**0.5, rel=1e-6)


def test_delong_agrees_with_resampled_rows() -> None:
    draw = torch.Generator().manual_seed(2)
    label = (torch.rand(1500, generator=draw) < 0.3).float()
    one, other = (torch.sigmoid(label * s + torch.randn(1500, generator=draw)) for s in (1.0, 0.8))
    exact = delong(one, other, label)
    first, second = (Predictions(schema(), torch.zeros(1500).long(), {"t": v}, {"t": label}) for v in (one, other))
    found = user_bootstrap(first, second, "t")
    assert exact.low is not None and exact.high is not None and found.low is not None and found.high is not None
    width = exact.high - exact.low
    assert found.mean == pytest.approx(exact.mean)
    assert found.low == pytest.approx(exact.low, abs=0.08 * width) and found.high == pytest.approx(
        exact.high, abs=0.08 * width
    )


def test_delong_claims_a_twentieth_of_equal_models() -> None:
    draw = torch.Generator().manual_seed(3)
    label = torch.arange(300) % 3 == 0
    claims = [
        (delong(label + torch.randn(300, generator=draw), label + torch.randn(300, generator=draw), label).p or 0)
        < 0.05
        for _ in range(400)
    ]
    assert 0.02 < sum(claims) / 400 < 0.08


def test_delong_at_the_ends() -> None:
    label = torch.tensor([0.0, 0.0, 1.0, 1.0])
    same = delong(label, label, label)
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)
    with pytest.raises(ConfigError, match="two rows of each class"):
        delong(label, label, torch.tensor([0.0, 0.0, 0.0, 1.0]))
