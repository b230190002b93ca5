import math
from statistics import median

import pytest
import torch
from torch import Tensor

from polytask.loss import Context, Observed, TaskLoss, loss, task_loss
from polytask.loss.quantiles import Quantile, rank_of, value_of
from polytask.loss.seconds import quantiles, softplus_inverse
from polytask.loss.tree import Tree, log_shares

WATCH_TIME = ["weighted_logistic", "log_mse", "log_normal", "quantile", "d2q", "tree"]
NAN = math.nan


def seen(label: Tensor, by: Tensor | None = None) -> Observed:
    return Observed(label.double(), torch.full_like(label, NAN).double() if by is None else by.double(), torch.empty(0))


def skewed(rows: int = 5000, zeros: float = 0.3, seed: int = 0) -> Tensor:
    """Seconds with a long tail, some of them 0."""
    draw = torch.Generator().manual_seed(seed)
    label = (torch.randn(rows, generator=draw, dtype=torch.float64) + 2.5).exp()
    return torch.where(torch.rand(rows, generator=draw) < zeros, 0.0, label)


def fitted(spec: TaskLoss, label: Tensor, context: Context, steps: int = 400) -> Tensor:
    """The constant logits [outputs] with the least loss, found from 0 and not from the start."""
    point = torch.zeros(spec.outputs, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([point], max_iter=steps, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        value = task_loss(spec, constant(spec, point, len(label)), label, context)
        value.backward()
        return value

    search.step(closure)
    return point.detach()


def constant(spec: TaskLoss, point: Tensor, rows: int) -> Tensor:
    return point.expand(rows) if spec.outputs == 1 else point.expand(rows, -1)


def predicted(spec: TaskLoss, point: Tensor, by: float = NAN) -> float:
    context = Context(by=torch.tensor([by], dtype=torch.float64))
    return float(spec.predict(constant(spec, point, 1), context))


def start(spec: TaskLoss) -> Tensor:
    found = spec.start()
    assert found is not None
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize(("options", "odds"), [({}, 12.01), ({"exact": False}, 20.06)])
def test_the_published_weighted_logistic_is_biased_and_the_exact_one_is_not(
    options: dict[str, bool], odds: float
) -> None:
    label = torch.zeros(10_000, dtype=torch.float64)
    label[:4013] = torch.linspace(1, 2 * 12.01 / 0.4013 - 1, 4013, dtype=torch.float64)
    assert label.mean().item() == pytest.approx(12.01)
    spec = loss("weighted_logistic").make(seen(label), **options)
    for point in (fitted(spec, label, Context()), start(spec)):
        assert predicted(spec, point) == pytest.approx(odds, abs=0.005)


@pytest.mark.parametrize("name", ["weighted_logistic", "log_mse", "tree"])
@pytest.mark.parametrize("zeros", [0.0, 0.3, 0.9])
def test_the_best_constant_predicts_the_mean(name: str, zeros: float) -> None:
    label = skewed(zeros=zeros)
    spec = loss(name).make(seen(label), **({"leaves": 8} if name == "tree" else {}))
    for point in (fitted(spec, label, Context()), start(spec)):
        assert predicted(spec, point) == pytest.approx(label.mean().item(), rel=2e-3)


def test_the_best_log_normal_constant_predicts_its_mean() -> None:
    label = skewed(zeros=0.0)
    log = (1 + label).log()
    expected = math.exp(log.mean() + log.var(correction=0) / 2) - 1
    spec = loss("log_normal").make(seen(label))
    for point in (fitted(spec, label, Context()), start(spec)):
        assert predicted(spec, point) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["log_mse", "log_normal"])
def test_the_mean_of_a_log_normal_is_found_from_its_logarithms(name: str) -> None:
    draw = torch.Generator().manual_seed(0)
    exact = torch.randn(50_000, generator=draw, dtype=torch.float64).mul(0.6).add(3).exp() - 1
    exact = exact.clamp(min=0)
    spec = loss(name).make(seen(exact))
    assert predicted(spec, start(spec)) == pytest.approx(exact.mean().item(), rel=0.01)
    assert predicted(spec, start(spec)) == pytest.approx(math.exp(3 + 0.6**2 / 2) - 1, rel=0.01)


@pytest.mark.parametrize(("unexplained", "statistic"), [(0.0, "median"), (1.0, "mean")])
def test_log_mse_undoes_the_logarithm_for_the_share_it_is_told(unexplained: float, statistic: str) -> None:
    label = torch.randn(50_001, generator=torch.Generator().manual_seed(1), dtype=torch.float64).mul(0.5).add(3).exp()
    spec = loss("log_mse").make(seen(label), unexplained=unexplained)
    expected = label.median() if statistic == "median" else label.mean()
    assert predicted(spec, start(spec)) == pytest.approx(expected.item(), rel=0.02)


def test_weighted_logistic_by_hand() -> None:
    label, logits = torch.tensor([0.0, 3.0, 10.0, NAN]), torch.tensor([0.5, -1.0, 2.0, 7.0])

    def softplus(x: float) -> float:
        return math.log(1 + math.exp(x))

    exact = [softplus(0.5), 3 * softplus(1.0) + softplus(-1.0), 10 * softplus(-2.0) + softplus(2.0)]
    paper = [softplus(0.5), 3 * softplus(1.0), 10 * softplus(-2.0)]
    for spec, rows in (
        (loss("weighted_logistic").make(seen(label), exact=e), r) for e, r in ((True, exact), (False, paper))
    ):
        assert task_loss(spec, logits, label).item() == pytest.approx(sum(rows) / 3, rel=1e-6)


def test_log_losses_by_hand() -> None:
    label = torch.tensor([0.0, 3.0, 10.0, NAN], dtype=torch.float64)
    mean, raw = torch.tensor([0.5, -1.0, 2.0, 7.0]).double(), torch.tensor([0.0, 1.0, -2.0, 3.0]).double()
    squares, likelihoods, seconds = [], [], []
    for w, m, r in zip(label.tolist()[:3], mean.tolist(), raw.tolist(), strict=False):
        s = math.log(1 + math.exp(r)) + 0.01
        squares.append((m - math.log(1 + w)) ** 2)
        likelihoods.append(((math.log(1 + w) - m) / s) ** 2 / 2 + math.log(s))
        seconds.append(max(math.exp(m + s * s / 2) - 1, 0.0))
    assert task_loss(loss("log_mse").make(seen(label)), mean, label).item() == pytest.approx(sum(squares) / 3)
    spec, logits = loss("log_normal").make(seen(label)), torch.stack([mean, raw], dim=1)
    assert task_loss(spec, logits, label).item() == pytest.approx(sum(likelihoods) / 3)
    assert spec.predict(logits, Context()).tolist()[:3] == pytest.approx(seconds)


def test_quantile_by_hand() -> None:
    label, levels = torch.tensor([0.0, 3.0, 11.0, NAN], dtype=torch.float64), [0.1, 0.5, 0.8]
    logits = torch.tensor([[0.5, -1.0, 2.0], [0.1, 0.2, 0.3], [-3.0, 1.0, -1.0], [9.0, 9.0, 9.0]], dtype=torch.float64)
    scale = 14 / 3
    total, seconds = 0.0, []
    for w, row in zip(label.tolist(), logits.tolist(), strict=True):
        steps = [math.log(1 + math.exp(x)) for x in row]
        found = [scale * sum(steps[: k + 1]) for k in range(3)]
        # flat tails, straight lines between
        seconds.append(
            0.1 * found[0] + 0.4 * (found[0] + found[1]) / 2 + 0.3 * (found[1] + found[2]) / 2 + 0.2 * found[2]
        )
        if not math.isnan(w):
            pinball = [t * max(w - q, 0) + (1 - t) * max(q - w, 0) for t, q in zip(levels, found, strict=True)]
            total += sum(pinball) / 3 / scale / 3
    spec = loss("quantile").make(seen(label), levels=levels)
    assert task_loss(spec, logits, label).item() == pytest.approx(total, rel=1e-12)
    assert spec.predict(logits, Context()).tolist() == pytest.approx(seconds)


def test_quantiles_never_cross_and_start_at_those_of_the_labels() -> None:
    label = skewed(zeros=0.0)
    spec = loss("quantile").make(seen(label))
    assert isinstance(spec, Quantile)
    wild = 50 * torch.randn(100, spec.outputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (spec.quantiles(wild).diff(dim=1) >= 0).all()
    expected = torch.quantile(label, torch.arange(0.05, 1, 0.1, dtype=torch.float64))
    torch.testing.assert_close(spec.quantiles(start(spec)[None])[0], expected, rtol=1e-6, atol=0)
    # ten evenly spaced quantiles: their mean, short of the upper tail
    assert predicted(spec, start(spec)) == pytest.approx(expected.mean().item())
    assert 0.85 < predicted(spec, start(spec)) / label.mean().item() < 1


def test_ranks_are_among_rows_of_like_duration() -> None:
    draw = torch.Generator().manual_seed(0)
    by = 300 * torch.rand(6000, generator=draw, dtype=torch.float64)
    label = by * torch.rand(6000, generator=draw, dtype=torch.float64)
    label[::3] = 0.0
    by[::50] = NAN
    spec = loss("d2q").make(seen(label, by), groups=4)
    edges = sorted(by[~by.isnan()].tolist())
    cuts = [edges[len(edges) * k // 4] for k in (1, 2, 3)]
    context = Context(by=by)
    ranks, seconds = spec.target(label, context), spec.predict(spec.target(label, context), context)
    for i in (0, 1, 2, 50, 51, 100, 700, 701, 1234, 5998, 5999):
        group = None if math.isnan(by[i]) else sum(c < by[i] for c in cuts)
        peers = [
            float(w)
            for w, d in zip(label.tolist(), by.tolist(), strict=True)
            if group is None or (not math.isnan(d) and sum(c < d for c in cuts) == group)
        ]
        own = float(label[i])
        middle = (sum(w < own for w in peers) + sum(w <= own for w in peers)) / 2 / len(peers)
        assert float(ranks[i]) == pytest.approx(middle, abs=0.01)
        assert float(seconds[i]) == pytest.approx(own, abs=0.02 * max(peers))
    assert float(ranks.mean()) == pytest.approx(0.5, abs=0.005)


def test_a_constant_rank_is_the_median_of_each_group() -> None:
    by = torch.tensor([10.0] * 500 + [100.0] * 500)
    label = torch.cat([torch.linspace(1, 9, 500), torch.linspace(30, 80, 500)]).double()
    spec = loss("d2q").make(seen(label, by), groups=2)
    point = fitted(spec, label, Context(by=by.double()))
    assert point.item() == pytest.approx(0.5, abs=1e-3)
    for duration, rows in ((5.0, label[:500]), (10.0, label[:500]), (100.0, label[500:]), (1e6, label[500:])):
        assert predicted(spec, start(spec), duration) == pytest.approx(median(rows.tolist()), rel=1e-3)
    assert predicted(spec, start(spec), NAN) == pytest.approx(median(label.tolist()), abs=10.6)


@pytest.mark.parametrize(("logit", "expected"), [(-3.0, 0.0), (0.0, 0.0), (0.25, 25.0), (1.0, 100.0), (9.0, 100.0)])
def test_a_rank_beyond_its_ends_is_the_least_or_most_seen(logit: float, expected: float) -> None:
    spec = loss("d2q").make(seen(torch.arange(101.0), torch.ones(101)), groups=3)
    assert predicted(spec, torch.tensor([logit]), 1.0) == pytest.approx(expected)


def test_ranks_and_values_invert_each_other() -> None:
    table = torch.tensor([[0.0, 0.0, 0.0, 5.0, 7.0]], dtype=torch.float64)
    for value, level in ((-1.0, 0.0), (0.0, 0.25), (2.5, 0.625), (5.0, 0.75), (6.0, 0.875), (7.0, 1.0), (9.0, 1.0)):
        assert rank_of(torch.tensor([value], dtype=torch.float64), table).item() == level
    for level, value in ((0.0, 0.0), (0.3, 0.0), (0.625, 2.5), (0.875, 6.0), (1.0, 7.0)):
        assert value_of(torch.tensor([level], dtype=torch.float64), table).item() == pytest.approx(value)


def tree_by_loop(logits: list[float], leaves: int) -> list[float]:
    """Probability of every leaf, walked down from the root."""
    shares = []
    for leaf in range(leaves):
        node, low, high, share = 0, 0, leaves, 1.0
        while high - low > 1:
            right = 1 / (1 + math.exp(-logits[node]))
            middle = (low + high) // 2
            share *= right if leaf >= middle else 1 - right
            node, low, high = (2 * node + 2, middle, high) if leaf >= middle else (2 * node + 1, low, middle)
        shares.append(share)
    return shares


@pytest.mark.parametrize("leaves", [4, 8, 32])
def test_leaf_probabilities_are_those_of_the_ways_down(leaves: int) -> None:
    logits = 2 * torch.randn(5, leaves - 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for row, found in zip(logits.tolist(), log_shares(logits).exp().tolist(), strict=True):
        assert found == pytest.approx(tree_by_loop(row, leaves), rel=1e-12)
        assert sum(found) == pytest.approx(1)


def test_tree_by_hand() -> None:
    label = torch.tensor([*range(1, 17)], dtype=torch.float64)
    means, scale = [2.5, 6.5, 10.5, 14.5], float(label.std(correction=0))
    logits = torch.randn(16, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spec = loss("tree").make(seen(label), leaves=4, squared=0.5, variance=0.25)
    assert isinstance(spec, Tree)
    total, seconds, spread = 0.0, [], []
    for place, (w, row) in enumerate(zip(label.tolist(), logits.tolist(), strict=True)):
        shares = tree_by_loop(row, 4)
        mean = sum(p * m for p, m in zip(shares, means, strict=True))
        variance = sum(p * (m - mean) ** 2 for p, m in zip(shares, means, strict=True))
        total += (-math.log(shares[place // 4]) + (0.5 * (mean - w) ** 2 + 0.25 * variance) / scale**2) / 16
        seconds.append(mean)
        spread.append(variance)
    assert task_loss(spec, logits, label).item() == pytest.approx(total, rel=1e-12)
    assert spec.predict(logits, Context()).tolist() == pytest.approx(seconds)
    assert spec.moments(logits)[1].tolist() == pytest.approx(spread)


def test_a_node_learns_only_from_rows_that_reach_it() -> None:
    label = torch.arange(1.0, 17.0, dtype=torch.float64)
    spec = loss("tree").make(seen(label), leaves=4, squared=0.0)
    logits = torch.zeros(16, 3, dtype=torch.float64, requires_grad=True)
    task_loss(spec, logits, label).backward()
    assert logits.grad is not None
    assert logits.grad[:, 0].all() and logits.grad[:8, 1].all() and logits.grad[8:, 2].all()
    assert not logits.grad[8:, 1].any() and not logits.grad[:8, 2].any()


def test_a_leaf_without_labels_stands_for_a_time_at_its_place() -> None:
    label = torch.cat([torch.full((60,), 5.0), torch.arange(6.0, 26.0), torch.full((40,), 30.0)])
    spec = loss("tree").make(seen(label), leaves=16)
    assert isinstance(spec, Tree)
    assert (spec.means.diff() >= 0).all() and spec.means[0] == 5 and spec.means[-1] == 30


@pytest.mark.parametrize("name", WATCH_TIME)
def test_equal_or_absent_labels_are_no_trouble(name: str) -> None:
    for label in (torch.full((5,), 7.0), torch.zeros(5), torch.full((5,), NAN)):
        spec = loss(name).make(seen(label, torch.full((5,), 3.0)))
        point = start(spec).requires_grad_()
        context = Context(by=torch.tensor([3.0, NAN, 1e9, 0.0, 3.0], dtype=torch.float64))
        value = task_loss(spec, constant(spec, point, 5), torch.tensor([7.0, 0.0, 1e5, NAN, 0.5]).double(), context)
        value.backward()
        assert value.isfinite() and point.grad is not None and point.grad.isfinite().all()
        expected = float(label.nan_to_num()[0])
        assert predicted(spec, point.detach(), 3.0) == pytest.approx(expected, abs=0.06 * max(expected, 1.0))


@pytest.mark.parametrize("levels", [[0.0, 0.5, 1.0], [0.1, 0.123, 0.999]])
def test_quantiles_of_a_sample(levels: list[float]) -> None:
    sample, level = skewed(999), torch.tensor(levels, dtype=torch.float64)
    torch.testing.assert_close(quantiles(sample, level), torch.quantile(sample, level))


@pytest.mark.parametrize("value", [1e-6, 0.01, 1.0, 50.0])
def test_softplus_inverse(value: float) -> None:
    assert math.log1p(math.exp(softplus_inverse(value))) == pytest.approx(value, rel=1e-9)
