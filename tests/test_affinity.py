import json
import math

import pytest
import torch

from polytask.affinity import (
    TOTAL,
    Affinity,
    Reading,
    mean_lookahead,
    pairs,
    readings_of,
    summaries,
    summarize,
)

ROOT = math.sqrt
# Two tasks on two parameters; the sums over the halves are (6.4, 3.2) and (-0.6, -1.8).
HALVES = torch.tensor([[4.0, 0.0], [0.0, -1.0], [2.4, 3.2], [-0.6, -0.8]])
GOLDEN = Affinity.of(HALVES @ HALVES.T, torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0]))


def affinity(cosine: float, first: float, second: float) -> Affinity:
    """Two tasks of equal norm, ``cosine`` in both ways between halves, and their reliabilities."""
    return Affinity((1.0, 1.0), (1.0, 1.0), (cosine,), ((first, cosine), (cosine, second)))


def reading(step: int, group: Affinity, lookahead: float = 0.1) -> Reading:
    ahead = ((0.2, lookahead), (-0.1, 0.3))
    return Reading(step, ("a", "b"), (1.0, 1.0), (0.5, 1.5), -0.2, 0.1, ahead, group, {"tables.0": group})


def test_a_case_by_hand() -> None:
    assert GOLDEN.norms == pytest.approx((3.2 * ROOT(5), 1.2 * ROOT(10)))  # the second has weight 2
    assert GOLDEN.cosine == pytest.approx((-1 / ROOT(2),))
    assert GOLDEN.cross[0] == pytest.approx((0.6, -0.6)) and GOLDEN.cross[1] == pytest.approx((-0.8, 0.8))
    assert GOLDEN.reliability == pytest.approx((0.6, 0.8))
    assert GOLDEN.between == pytest.approx((-0.7,))
    assert GOLDEN.disattenuated == pytest.approx((-0.7 / ROOT(0.48),))
    assert GOLDEN.similarity == pytest.approx((7.68 * ROOT(50) / 65.6,))
    assert GOLDEN.dominance == pytest.approx((0.653454, 0.346546), abs=1e-6)
    assert GOLDEN.update_share == (0.75, 0.25)


def test_a_task_without_a_gradient_has_no_cosine_and_no_dominance() -> None:
    halves = HALVES.clone()
    halves[1] = halves[3] = 0.0
    found = Affinity.of(halves @ halves.T, torch.ones(2), torch.zeros(2))
    assert found.norms[1] == 0.0 and found.dominance == (1.0, 0.0) and found.similarity == (0.0,)
    assert math.isnan(found.cosine[0]) and math.isnan(found.reliability[1]) and math.isnan(found.disattenuated[0])
    assert all(math.isnan(share) for share in found.update_share)


def test_scaling_a_task_changes_its_norm_and_no_cosine() -> None:
    halves = HALVES * torch.tensor([[1e3], [1.0], [1e3], [1.0]])
    found = Affinity.of(halves @ halves.T, torch.tensor([1.0, 2.0]), torch.ones(2))
    assert found.cosine == pytest.approx(GOLDEN.cosine) and found.disattenuated == pytest.approx(GOLDEN.disattenuated)
    assert found.norms == pytest.approx((1e3 * GOLDEN.norms[0], GOLDEN.norms[1]))
    assert found.similarity[0] < 0.01


def test_swapping_the_halves_changes_nothing_but_the_way_of_the_cross_cosines() -> None:
    other = HALVES.roll(2, dims=0)
    found = Affinity.of(other @ other.T, torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0]))
    assert found.between == pytest.approx(GOLDEN.between) and found.cosine == pytest.approx(GOLDEN.cosine)
    assert found.cross[0][1] == pytest.approx(GOLDEN.cross[1][0])


def test_a_file_gives_a_reading_back() -> None:
    broken = Affinity((1.0, 0.0), (1.0, 0.0), (math.nan,), ((0.5, math.nan), (math.nan, math.nan)))
    found = reading(7, broken)
    text = json.dumps(found.to_dict(), allow_nan=False)
    again = Reading.from_dict(json.loads(text))
    assert again.to_dict() == found.to_dict() and again.total.cross[0][0] == 0.5
    assert math.isnan(again.total.cosine[0]) and again.tasks == ("a", "b")


def test_a_file_holds_six_digits() -> None:
    plain = Affinity((1 / 3, 2e-9 / 3), (1.0, 1.0), (0.1,), ((1.0, 0.1), (0.1, 1.0))).to_dict()
    assert plain["norms"] == [0.333333, 6.66667e-10]


def test_loss_share_and_excess() -> None:
    found = reading(1, GOLDEN)
    assert found.loss_share == (0.25, 0.75) and found.excess == pytest.approx(0.25)


def test_conflicts_are_counted_and_their_severity_is_that_of_the_conflicts_alone() -> None:
    found = summarize([affinity(c, 0.5, 0.5) for c in (-0.2, -0.4, 0.3, 0.1)])
    assert found.readings == 4 and found.conflict == (0.5,) and found.severity == pytest.approx((0.3,))
    assert found.cosine == pytest.approx((-0.05,)) and found.spread == (0.0,)
    assert math.isnan(summarize([affinity(0.3, 0.5, 0.5)]).severity[0])


def test_the_summary_corrects_by_mean_reliabilities() -> None:
    found = summarize([affinity(0.2, 0.8, 0.4), affinity(0.4, 0.4, 0.4)])
    assert found.reliability == pytest.approx((0.6, 0.4))
    assert found.disattenuated == pytest.approx((0.3 / ROOT(0.24),))
    assert summarize([GOLDEN]).spread == pytest.approx((0.1,))
    assert summarize([GOLDEN]).error == pytest.approx((0.1 / ROOT(0.48),))


@pytest.mark.parametrize(
    ("cosine", "gap", "reliability", "relation"),
    [
        (-0.3, 0.0, 0.5, "conflict"),
        (0.3, 0.0, 0.5, "aligned"),
        (0.02, 0.0, 0.5, "unrelated"),
        (-0.02, 0.02, 0.04, "conflict"),  # -0.5 with an error of 0.01 / 0.04 = 0.25
        (-0.02, 0.03, 0.04, "noise"),  # an error of 0.375
        (0.002, 0.01, 0.04, "unrelated"),  # 0.05 with an error of 0.125
        (0.02, 0.0, 0.005, "noise"),
        (-0.3, 0.0, -0.1, "noise"),
        (math.nan, 0.0, math.nan, "noise"),
    ],
)
def test_noise_and_unrelated_are_different_answers(
    cosine: float, gap: float, reliability: float, relation: str
) -> None:
    cross = ((reliability, cosine + gap / 2 - 1e-9), (cosine - gap / 2 + 1e-9, reliability))
    assert summarize([Affinity((1.0, 1.0), (1.0, 1.0), (cosine,), cross)]).relations == (relation,)


def test_summaries_and_the_mean_lookahead_of_a_history() -> None:
    first, second = reading(10, affinity(-0.2, 0.5, 0.5), 0.1), reading(20, affinity(0.4, 0.5, 0.5), 0.3)
    history = [{"epoch": 1, "probe": [first.to_dict()]}, {"epoch": 2}, {"epoch": 3, "probe": [second.to_dict()]}]
    found = readings_of(history)
    assert [r.step for r in found] == [10, 20]
    assert set(summaries(found)) == {TOTAL, "tables.0"}
    assert summaries(found)["tables.0"].cosine == pytest.approx((0.1,))
    assert mean_lookahead(found)[0] == pytest.approx((0.2, 0.2))


def test_pairs_stand_in_order() -> None:
    assert pairs(3) == [(0, 1), (0, 2), (1, 2)]
