import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from polytask.errors import ConfigError
from polytask.nn.design import Design
from polytask.run import Run, TrainConfig
from polytask.schema import Schema, Task
from polytask.significance import holm
from polytask.transfer import (
    Gain,
    TaskTransfer,
    Transfer,
    corrected,
    delta_m,
    gain,
    judged,
    paired,
    transfer,
    transfers,
)

SCHEMA = Schema((Task("watch", "ranking"), Task("rating", "regression", label="r")), user="u", item="i")
A, B = (0.712, 0.708, 0.715, 0.710, 0.711), (0.709, 0.707, 0.709, 0.709, 0.708)


def run(
    name: str,
    mrr: list[float],
    mse: list[float],
    *,
    seed: int = 0,
    weights: tuple[float, float] = (1.0, 1.0),
    kept: int = 1,
    parts: tuple[str, ...] = ("test",),
    **design: Any,
) -> Run:
    """A made-up run with these metrics per epoch, equal on all its parts, and falling training losses."""
    history = []
    for epoch, values in enumerate(zip(mrr, mse, strict=True), start=1):
        trained = {n: v for n, v, w in zip(("watch", "rating"), values, weights, strict=True) if w > 0}
        scores = {n: {SCHEMA.task(n).metrics[0]: v} for n, v in trained.items()}
        losses = dict.fromkeys(trained, 1 / epoch) | {"joint": 1 / epoch}
        history.append({"epoch": epoch, "train": losses} | dict.fromkeys(parts, scores))
    return Run(
        name=name,
        schema=SCHEMA,
        weights=dict(zip(("watch", "rating"), weights, strict=True)),
        config=TrainConfig(seed=seed),
        design=Design(**design)._asdict(),
        history=history,
        kept=kept,
        own={},
        seconds=1.0,
        parameters=1,
    )


def alone(task: str, values: list[float], **options: Any) -> Run:
    weights = (1.0, 0.0) if task == "watch" else (0.0, 1.0)
    return run(f"{task} alone", values, values, weights=weights, **options)


def test_the_published_example() -> None:
    found = paired("click", "auc", A, B)
    assert found.mean == pytest.approx(0.0028)
    assert found.p == pytest.approx(0.037841, abs=5e-7)
    assert (found.low, found.high) == (pytest.approx(0.000255, abs=5e-7), pytest.approx(0.005345, abs=5e-7))
    error = np.std(np.subtract(A, B), ddof=1) / math.sqrt(5)
    assert found.mean / error == pytest.approx(3.05505, abs=5e-6)
    assert found.verdict == "positive transfer"
    assert (found.joint, found.alone) == (pytest.approx(np.mean(A)), pytest.approx(np.mean(B)))
    assert found.relative == pytest.approx(0.0028 / 0.7084)


def test_a_metric_that_is_better_lower_is_signed_so_that_up_is_better() -> None:
    up, down = paired("t", "auc", A, B, 0.001), paired("t", "mse", A, B, 0.001)
    assert down.better == "lower" and down.verdict == "negative transfer"
    assert down.gains == tuple(-g for g in up.gains)
    assert (down.mean, down.p) == (pytest.approx(-up.mean), pytest.approx(up.p))
    assert (down.low, down.high) == (pytest.approx(-(up.high or 0)), pytest.approx(-(up.low or 0)))


samples = st.lists(st.tuples(st.floats(0.01, 10), st.floats(0.01, 10)), min_size=2, max_size=12)


@given(pairs=samples)
@settings(max_examples=25)
def test_the_statistics_are_those_of_scipy(pairs: list[tuple[float, float]]) -> None:
    joint, single = (np.array(side) for side in zip(*pairs, strict=True))
    assume(np.std(joint - single) > 1e-6)
    found, expected = paired("t", "auc", list(joint), list(single)), stats.ttest_rel(joint, single)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert found.low == pytest.approx(interval.low, rel=1e-6, abs=1e-9)
    assert found.high == pytest.approx(interval.high, rel=1e-6, abs=1e-9)
    two_sided = (found.p or 0) < 0.05 and found.verdict != "equivalent"
    assert abs((found.p or 0) - 0.05) < 1e-9 or (found.verdict.endswith("transfer")) == two_sided


def of(gains: list[float], margin: float = 0.01, base: float = 1.0) -> Gain:
    """Paired gains of a metric that is better higher, over a single-task value of ``base``."""
    return paired("t", "auc", [base + g for g in gains], [base] * len(gains), margin)


@pytest.mark.parametrize(
    ("gains", "margin", "verdict"),
    [
        ([0.02, 0.021, 0.019], 0.01, "positive transfer"),
        ([-0.02, -0.021, -0.019], 0.01, "negative transfer"),
        ([0.0002, 0.00021, 0.00019], 0.0001, "positive transfer"),
        ([0.0002, 0.00021, 0.00019], 0.01, "equivalent"),  # beyond noise, but smaller than what counts
        ([-0.0002, -0.00021, -0.00019], 0.01, "equivalent"),
        ([0.001, -0.001, 0.0005], 0.01, "equivalent"),
        ([0.001, -0.001, 0.0005], 0.0001, "inconclusive"),
        ([0.1, -0.1, 0.05], 0.01, "inconclusive"),
        ([0.0, 0.0, 0.0], 0.01, "equivalent"),
        ([0.02, 0.02], 0.01, "positive transfer"),  # the same gain every time
    ],
)
def test_verdicts(gains: list[float], margin: float, verdict: str) -> None:
    assert of(gains, margin).verdict == verdict


@given(gains=st.lists(st.floats(-0.05, 0.05), min_size=2, max_size=8), margin=st.floats(1e-4, 0.1))
@settings(max_examples=25)
def test_equivalent_is_a_90_percent_interval_within_the_margin(gains: list[float], margin: float) -> None:
    assume(np.std(gains) > 1e-6)
    found = of(gains, margin)
    half = stats.t.ppf(0.95, len(gains) - 1) * np.std(found.gains, ddof=1) / math.sqrt(len(gains))
    within = found.mean - half >= -margin and found.mean + half <= margin
    assume(abs(abs(found.mean) + half - margin) > 1e-9)
    assert (found.verdict == "equivalent") == within == ((found.equivalence or 0) <= 0.05)
    assert found.margin == pytest.approx(margin)


def test_the_margin_is_a_share_of_the_single_task_value() -> None:
    gains = [0.02, -0.02, 0.01]
    assert (of(gains, 0.01, base=1.0).verdict, of(gains, 0.01, base=10.0).verdict) == ("inconclusive", "equivalent")
    assert of(gains, 0.01, base=10.0).margin == pytest.approx(0.1)


def test_a_single_pair_proves_nothing() -> None:
    found = of([0.5])
    assert (found.verdict, found.low, found.high, found.p) == ("inconclusive", None, None, None)
    assert found.mean == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "margin", "expected"),
    [
        ("auc", None, 0.001),
        ("entire_auc", None, 0.001),
        ("xauc", None, 0.001),
        ("mse", None, 0.005),
        ("auc", 0.1, 0.05),
    ],
)
def test_a_metric_has_its_customary_margin_unless_one_is_given(
    name: str, margin: float | None, expected: float
) -> None:
    assert paired("t", name, [0.5, 0.6], [0.4, 0.6], margin).margin == pytest.approx(expected)


def test_the_signed_rank_test_is_given_from_eight_pairs_on() -> None:
    gains = [0.02, -0.01, 0.03, 0.011, 0.05, 0.04, -0.005]
    assert of(gains).wilcoxon is None
    found = of([*gains, 0.06])
    assert found.wilcoxon == pytest.approx(stats.wilcoxon([*gains, 0.06], method="exact").pvalue)


def family(*means: float) -> list[Gain]:
    """Gains of three seeds around each of ``means``, spread by .001."""
    return [of([m - 0.001, m, m + 0.001], margin=0.0001) for m in means]


def test_a_family_is_judged_by_adjusted_p() -> None:
    by_itself = family(0.0028)[0]
    assert by_itself.verdict == "positive transfer" and by_itself.adjusted == by_itself.p
    one, two, large = judged(family(0.0028, -0.0028, 0.2))
    assert [g.verdict for g in (one, two, large)] == ["inconclusive", "inconclusive", "positive transfer"]
    assert (large.adjusted or 1) == pytest.approx(3 * (large.p or 1))
    assert (one.adjusted or 1) == (two.adjusted or 1) == pytest.approx(2 * (one.p or 1))
    assert (one.low, one.high) == (by_itself.low, by_itself.high)  # the interval is the plain one
    assert one.needed == 4 and large.needed is None


def test_judging_again_starts_from_the_plain_p() -> None:
    gains = judged(family(0.0028, -0.0028, 0.2))
    assert judged(judged(gains)) == gains
    assert judged(gains[:1]) == family(0.0028)


def test_single_pairs_and_unshared_settings_are_in_no_family() -> None:
    unshared = replace(of([0.02, 0.021, 0.019]), verdict="nothing shared")
    found = judged([of([0.5]), unshared, *family(0.0028)])
    assert [g.verdict for g in found] == ["inconclusive", "nothing shared", "positive transfer"]


def test_an_inconclusive_verdict_says_how_many_seeds_would_settle_it() -> None:
    found = of([0.02, -0.015, 0.03, 0.001], margin=0.001)
    assert found.verdict == "inconclusive" and found.needed and found.needed > 4
    again = [*np.tile(found.gains, 1 + found.needed // 4)]
    assert of(again, margin=0.001).verdict == "positive transfer"
    assert of([1.0, -1.0], margin=1e-6).needed is None  # more than a thousand


def delta(*changes: tuple[str, float, float]) -> float:
    """Δ_m of one seed from (metric, joint, alone) per task."""
    gains = []
    for name, joint, single in changes:
        sign = 1 if name == "auc" else -1
        gains.append(
            replace(paired("t", name, [joint], [single]), seeds=(0,), relatives=(sign * (joint / single - 1),))
        )
    found = delta_m(gains)
    assert found is not None
    return found.mean


def test_delta_m_of_the_published_example() -> None:
    assert delta(("auc", 0.707, 0.70), ("auc", 0.594, 0.60), ("mse", 0.98, 1.0)) == pytest.approx(2 / 3)


def test_delta_m_averages_the_metrics_of_a_task_first_and_is_paired_by_seed() -> None:
    joint, others = several(0.2, 0.5), baselines()
    for record in [h for r in (*joint, *others) for h in r.history]:
        for scores in record["test"].values():
            if "mse" in scores:
                scores |= {"rmse": scores["mse"] ** 0.5, "mae": None}  # one that could not be computed
    found = transfer(joint, others)
    change = delta_m(found.own)
    expected = []
    for seed, noise in enumerate((0.0, 0.0012, 0.0018, 0.0031)):
        mrr, mse = (0.2 + seed / 1000) / (0.1 + noise) - 1, 1 - (0.5 + seed / 1000) / (1.0 + noise)
        rmse = 1 - ((0.5 + seed / 1000) / (1.0 + noise)) ** 0.5
        expected.append(100 * (mrr + (mse + rmse) / 2) / 2)
    assert change is not None and change.mean == pytest.approx(np.mean(expected))
    interval = stats.ttest_1samp(expected, 0).confidence_interval(0.95)
    assert (change.low, change.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_delta_m_is_over_the_seeds_that_all_tasks_have() -> None:
    one = replace(of([0.1, 0.2]), seeds=(0, 1), relatives=(0.1, 0.2))
    two = replace(of([0.1, 0.2]), seeds=(1, 2), relatives=(0.4, 0.5))
    found = delta_m([one, two])
    assert found is not None and found.mean == pytest.approx(30) and found.low is None
    assert delta_m([one, replace(two, seeds=(5, 6))]) is None and delta_m([of([0.1])]) is None


def test_runs_are_paired_by_seed() -> None:
    joint = [run("j", [0.1 + s / 100], [1.0], seed=s) for s in (2, 0, 1)]
    single = [alone("watch", [0.05 + s / 100], seed=s) for s in (5, 1, 2, 0)]
    found = gain(joint, single, "watch")
    assert found.gains == pytest.approx([0.05] * 3)
    with pytest.raises(ConfigError, match="no run of another setting shares a seed for task 'watch'"):
        gain(joint[:1], single[:1], "watch")


def test_each_run_is_read_at_its_own_best_epoch_or_at_the_kept_one() -> None:
    joint = [run("j", [0.1, 0.3, 0.2], [1.0, 0.9, 0.8], kept=3)]
    single = [alone("rating", [0.7, 0.75, 0.9], kept=2)]
    own, kept = gain(joint, single, "rating"), gain(joint, single, "rating", kept=True)
    assert (own.joint, own.alone, own.epochs) == (0.8, 0.7, ((3, 1),))
    assert (kept.joint, kept.alone, kept.epochs) == (0.8, 0.75, ((3, 2),))


def test_epochs_are_chosen_on_validation_data_and_values_read_on_test_data() -> None:
    def with_test(found: Run, values: list[float]) -> Run:
        for record, value in zip(found.history, values, strict=True):
            record["test"] = {t: {SCHEMA.task(t).metrics[0]: value} for t in found.tasks}
        return found

    joint = [with_test(run("j", [0.1, 0.3], [1.0, 1.0], parts=("valid",)), [0.9, 0.2])]
    single = [with_test(alone("watch", [0.3, 0.1], parts=("valid",)), [0.15, 0.8])]
    found = gain(joint, single, "watch")
    assert (found.joint, found.alone, found.epochs) == (0.2, 0.15, ((2, 1),))
    whole = transfer(joint, [*single, with_test(alone("rating", [1.0, 1.0], parts=("valid",)), [1.0, 1.0])])
    assert (whole.part, whole.chosen_on) == ("test", "valid")


def several(mrr: float, mse: float) -> list[Run]:
    return [run("joint", [mrr + s / 1000], [mse + s / 1000], seed=s) for s in range(4)]


def baselines(mrr: float = 0.1, mse: float = 1.0, **design: Any) -> list[Run]:
    noise = (0.0, 0.0012, 0.0018, 0.0031)
    return [
        *(alone("watch", [mrr + n], seed=s, **design) for s, n in enumerate(noise)),
        *(alone("rating", [mse + n], seed=s, **design) for s, n in enumerate(noise)),
    ]


@pytest.mark.parametrize(
    ("mrr", "mse", "seesaw"),
    [(0.2, 2.0, True), (0.05, 0.5, True), (0.2, 0.5, False), (0.05, 2.0, False), (0.1, 2.0, False)],
)
def test_a_seesaw_is_one_task_up_and_another_down(mrr: float, mse: float, seesaw: bool) -> None:
    found = transfer(several(mrr, mse), baselines())
    assert found.setting == "joint" and found.seesaw is seesaw
    expected = {0.2: "positive transfer", 0.05: "negative transfer", 0.1: "equivalent"}
    assert found.tasks["watch"].own.verdict == expected[mrr]


def test_all_settings_of_a_comparison_are_one_family() -> None:
    up = several(0.2, 0.5)
    names = ("a", "b", "c")
    joint = {n: [replace(r, name=n) for r in up] for n in names}
    alone_ = {n: [r for r in baselines() if r.name == n] for n in ("watch alone", "rating alone")}
    found = transfers(joint | alone_)
    assert [t.setting for t in found] == [*names]
    (single,) = transfers({"a": joint["a"]} | alone_)
    assert single == transfer(joint["a"], baselines())
    for reading in ("own", "kept"):
        gains = [g for t in found for g in getattr(t, reading)]
        assert [g.adjusted for g in gains] == list(holm([g.p for g in gains]))
        assert gains[0].adjusted > getattr(single, reading)[0].adjusted
    assert corrected(found) == found


def test_a_baseline_of_the_same_network_is_preferred() -> None:
    wide = [replace(r, name=f"{r.name}, wide") for r in baselines(mrr=0.5, dim=64)]
    chosen = transfer(several(0.1, 1.0), [*wide, *baselines()])
    assert {t: v.baseline for t, v in chosen.tasks.items()} == {"watch": "watch alone", "rating": "rating alone"}
    only = transfer(several(0.1, 1.0), wide)
    assert only.tasks["watch"].baseline == "watch alone, wide" and only.tasks["watch"].own.alone > 0.4


def test_sharing_is_no_part_of_the_network() -> None:
    wide = [replace(r, name=f"{r.name}, wide") for r in baselines(dim=64)]
    separate = [run("joint", [0.1], [1.0], seed=s, share="separate") for s in range(4)]
    found = transfer(separate, [*wide, *baselines()]).tasks["rating"]
    assert found.baseline == "rating alone"
    assert (found.own.verdict, found.own.adjusted, found.own.needed) == ("nothing shared", None, None)


def test_a_setting_that_shares_nothing_is_a_baseline_where_no_task_was_trained_alone() -> None:
    separate = [run("apart", [0.2], [1.0], seed=s, share="separate") for s in range(4)]
    found = transfer(several(0.1, 1.0), separate)
    assert found.tasks["watch"].baseline == "apart" and found.tasks["watch"].own.mean < -0.09
    mixed = transfer(several(0.1, 1.0), [*separate, *baselines()[:4]])
    assert {t: v.baseline for t, v in mixed.tasks.items()} == {"watch": "watch alone", "rating": "apart"}


def test_a_task_without_a_baseline_is_left_out_and_none_at_all_is_an_error() -> None:
    assert list(transfer(several(0.1, 1.0), baselines()[:4]).tasks) == ["watch"]
    for others in ([], several(0.1, 1.0), [replace(r, name="other") for r in several(0.1, 1.0)]):
        with pytest.raises(ConfigError, match="train single-task baselines") as caught:
            transfer(several(0.1, 1.0), others)
        assert "\n" not in str(caught.value)


def test_runs_without_scores_cannot_be_compared() -> None:
    with pytest.raises(ConfigError, match="scored on no validation or test data"):
        transfer([run("j", [0.1], [1.0], parts=())], baselines())


def test_harm_that_is_gone_at_the_best_epoch_is_an_artefact() -> None:
    up, down = of([0.02, 0.021, 0.019]), of([-0.02, -0.021, -0.019])
    even = of([0.001, -0.001, 0.0005])

    def artefact(own: Gain, kept: Gain) -> bool:
        return TaskTransfer("alone", own, kept).artefact

    assert artefact(even, down) and artefact(up, down)
    assert not artefact(down, down) and not artefact(down, even)
    assert not Transfer("s", "test", "valid", {"t": TaskTransfer("alone", even, down)}).seesaw


def test_a_seesaw_that_is_gone_at_the_best_epochs_is_an_artefact() -> None:
    up, down, even = of([0.02, 0.021, 0.019]), of([-0.02, -0.021, -0.019]), of([0.001, -0.001, 0.0005])

    def of_setting(own: tuple[Gain, Gain], kept: tuple[Gain, Gain]) -> Transfer:
        tasks = {f"t{n}": TaskTransfer("alone", o, k) for n, (o, k) in enumerate(zip(own, kept, strict=True))}
        return Transfer("s", "test", "valid", tasks)

    assert of_setting((up, even), (up, down)).artefact and not of_setting((up, even), (up, down)).seesaw
    assert not of_setting((up, down), (up, down)).artefact  # a seesaw at any epoch
    assert not of_setting((up, down), (up, even)).artefact
    assert not of_setting((even, even), (down, down)).artefact  # harm, but no seesaw


def test_an_alone_value_of_zero_has_no_relative_gain() -> None:
    assert paired("t", "auc", [0.1, 0.2], [0.0, 0.0]).relative == 0


def test_a_metric_that_is_absent_where_it_is_read_is_said_in_one_line() -> None:
    joint, single = (
        run("joint", [0.2], [1.0], parts=("valid", "test")),
        alone("watch", [0.1], parts=("valid", "test")),
    )
    joint.history[0]["test"] = {"watch": {"mrr": None}, "rating": {"mse": 1.0}}
    with pytest.raises(ConfigError, match="mrr of task 'watch' could not be computed on test at epoch 1"):
        transfer([joint], [single])
