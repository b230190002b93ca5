import math
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from polytask.significance import (
    equivalence,
    holm,
    holm_factors,
    paired_t,
    seeds_needed,
    standard_error,
    t_probability,
    t_quantile,
    wilcoxon,
)

PUBLISHED = [
    a - b for a, b in zip((0.712, 0.708, 0.715, 0.71, 0.711), (0.709, 0.707, 0.709, 0.709, 0.708), strict=True)
]
small = st.lists(st.integers(-20, 20).map(lambda n: n / 100), min_size=2, max_size=10)


def test_the_published_example() -> None:
    found = paired_t(PUBLISHED)
    assert found.mean == pytest.approx(0.0028) and found.p == pytest.approx(0.037841, abs=5e-7)
    assert (found.low, found.high) == (pytest.approx(0.000255, abs=5e-7), pytest.approx(0.005345, abs=5e-7))
    assert found.mean / standard_error(PUBLISHED) == pytest.approx(3.05505, abs=5e-6)


def test_one_difference_has_a_mean_and_nothing_else() -> None:
    found = paired_t([0.3])
    assert (found.mean, found.low, found.high, found.p) == (0.3, None, None, None)


def test_equal_differences_are_certain() -> None:
    assert (paired_t([0.5, 0.5]).p, paired_t([0.0, 0.0]).p) == (0, 1)
    assert [equivalence(m, 0.0, 2, 0.5) for m in (0.5, -0.5, 0.6)] == [0, 0, 1]


@given(q=st.floats(0.501, 0.9999), freedom=st.integers(1, 200))
@settings(max_examples=25)
def test_quantiles_are_those_of_scipy(q: float, freedom: int) -> None:
    assert t_quantile(q, freedom) == pytest.approx(stats.t.ppf(q, freedom), rel=1e-7)


@given(t=st.floats(-50, 50), freedom=st.integers(1, 200))
@settings(max_examples=25)
def test_probabilities_are_those_of_scipy(t: float, freedom: int) -> None:
    assert t_probability(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), rel=1e-7, abs=1e-15)


def test_probabilities_at_the_ends() -> None:
    assert t_probability(0.0, 4) == 1
    assert 0 <= t_probability(1e6, 4) < 1e-20


@given(mean=st.floats(-2, 2), error=st.floats(0.01, 2), freedom=st.integers(1, 30), margin=st.floats(0, 2))
@settings(max_examples=50)
def test_equivalence_is_the_larger_of_two_one_sided_tests(
    mean: float, error: float, freedom: int, margin: float
) -> None:
    upper, lower = stats.t.sf((margin - mean) / error, freedom), stats.t.sf((mean + margin) / error, freedom)
    assert equivalence(mean, error, freedom, margin) == pytest.approx(max(upper, lower), rel=1e-6, abs=1e-12)


def test_equivalence_on_the_published_example() -> None:
    error = standard_error(PUBLISHED)
    expected = stats.ttest_1samp(np.array(PUBLISHED) - 0.0071, 0, alternative="less").pvalue
    assert equivalence(0.0028, error, 4, 0.0071) == pytest.approx(expected, rel=1e-9) == pytest.approx(0.0047, abs=1e-4)
    assert equivalence(0.0028, error, 4, 0.001) > 0.9  # the mean is outside


@given(differences=small)
@settings(max_examples=40, deadline=None)
def test_wilcoxon_is_what_all_choices_of_signs_give(differences: list[float]) -> None:
    given_ = [d for d in differences if d]
    ranks = stats.rankdata(np.abs(given_)) if given_ else np.array([])
    sums = np.array([ranks @ np.array(signs) for signs in product((0, 1), repeat=len(given_))])
    found = sum(r for r, d in zip(ranks, given_, strict=True) if d > 0)
    tail = min((sums <= found + 1e-9).mean(), (sums >= found - 1e-9).mean())
    assert wilcoxon(differences) == pytest.approx(min(1, 2 * tail))


@pytest.mark.parametrize("count", [8, 11, 25])
def test_wilcoxon_without_ties_is_that_of_scipy(count: int) -> None:
    differences = np.random.default_rng(count).normal(0.3, 1, count)
    expected = stats.wilcoxon(differences, method="exact").pvalue
    assert wilcoxon(differences.tolist()) == pytest.approx(expected, rel=1e-12)


def test_wilcoxon_with_five_differences_of_one_sign_is_a_sixteenth() -> None:
    assert wilcoxon(PUBLISHED) == 0.0625


def test_holm_by_hand() -> None:
    p = (0.01, 0.04, 0.03, 0.005)
    assert holm_factors(p) == (3, 1, 2, 4)
    assert holm(p) == pytest.approx((0.03, 0.06, 0.06, 0.02))  # .04 is held back by .03
    assert holm((0.4, 0.6, 0.9)) == (1, 1, 1) and holm(()) == ()


@given(p=st.lists(st.floats(0.0001, 1), min_size=1, max_size=8))
def test_holm_claims_what_the_step_down_rule_claims(p: list[float]) -> None:
    assume(len(set(p)) == len(p))
    claimed = set()
    for step, (value, number) in enumerate(sorted(zip(p, range(len(p)), strict=True))):
        if value * (len(p) - step) >= 0.05:
            break
        claimed.add(number)
    assert {n for n, adjusted in enumerate(holm(p)) if adjusted < 0.05} == claimed
    assert all(a >= q for a, q in zip(holm(p), p, strict=True))


@pytest.mark.parametrize(
    ("mean", "sd", "margin", "level"),
    [(0.01, 0.02, 0.001, 0.05), (0.01, 0.02, 0.001, 0.005), (0.0005, 0.005, 0.002, 0.05), (0.02, 0.005, 0.001, 0.05)],
)
def test_the_seeds_needed_settle_the_verdict_and_one_less_does_not(
    mean: float, sd: float, margin: float, level: float
) -> None:
    def settled(count: int) -> bool:
        error = sd / math.sqrt(count)
        different = 2 * stats.t.sf(mean / error, count - 1) < level
        return bool(different or mean + stats.t.ppf(0.95, count - 1) * error <= margin)

    needed = seeds_needed(mean, sd, margin, level=level)
    assert needed is not None and settled(needed) and (needed == 2 or not settled(needed - 1))


def test_seeds_needed_at_the_ends() -> None:
    assert seeds_needed(0.0, 0.0, 0.0) == 2  # the same every time
    assert seeds_needed(0.0, 1.0, 0.0) is None  # nothing to find, and no margin to find it in
    assert seeds_needed(0.0001, 0.1, 0.0005) is None
    assert seeds_needed(0.1, 1.0, 0.01, most=10) is None and seeds_needed(0.1, 1.0, 0.01, most=500) == 387
