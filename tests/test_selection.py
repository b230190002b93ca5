from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytask.schema import Schema, Task
from polytask.selection import Selection

SCHEMA = Schema((Task("watch", "ranking"), Task("rating", "regression", label="r")), user="u", item="i")
TASKS = ("watch", "rating")


def scores(mrr: float | None, mse: float | None) -> dict[str, dict[str, float | None]]:
    return {"watch": {"mrr": mrr, "ndcg@10": 0.0}, "rating": {"mse": mse, "mae": 9.0}}


def fed(curve: list[tuple[float | None, float | None]], tasks: tuple[str, ...] = TASKS, patience: int = 0) -> Selection:
    """A selection that has seen the epochs 1, 2, ... of ``curve`` (mrr, mse), until it stops."""
    found = Selection(SCHEMA, tasks, patience)
    for epoch, values in enumerate(curve, start=1):
        if not found.stopped:
            found.update(epoch, scores(*values))
    return found


def test_nothing_is_chosen_before_the_first_evaluation() -> None:
    found = Selection(SCHEMA, TASKS, 1)
    assert (found.joint, found.own, found.stopped) == (0, {}, False)


def test_the_first_metric_of_each_task_decides_in_its_own_direction() -> None:
    found = fed([(0.1, 1.0), (0.3, 0.8), (0.2, 0.9)])
    assert (found.joint, found.own) == (2, {"watch": 2, "rating": 2})


def test_the_joint_best_is_the_smallest_mean_relative_shortfall() -> None:
    #  best mrr .2, best mse .8: shortfalls (.5, 0), (.05, .125), (0, .25) -> means .25, .0875, .125
    found = fed([(0.1, 0.8), (0.19, 0.9), (0.2, 1.0)])
    assert (found.joint, found.own) == (2, {"watch": 3, "rating": 1})


def test_the_old_best_is_judged_by_what_is_known_now() -> None:
    #  epoch 2 falls .2 short in mse; once mrr .4 is seen, epoch 1 falls .75 short
    assert fed([(0.1, 1.0), (0.1, 1.2)]).joint == 1
    assert fed([(0.1, 1.0), (0.4, 1.2)]).joint == 2


def test_a_tie_keeps_the_earlier_epoch() -> None:
    found = fed([(0.2, 1.0), (0.2, 1.0), (0.2, 1.0)], patience=2)
    assert (found.joint, found.own, found.stopped) == (1, {"watch": 1, "rating": 1}, True)


def test_a_task_that_still_learns_keeps_training_alive_after_another_has_peaked() -> None:
    curve = [(0.1 + 0.001 * e, 0.8 + 0.2 * e) for e in range(6)]
    found = fed(curve, patience=2)
    assert (found.joint, found.own, found.stopped) == (1, {"watch": 6, "rating": 1}, False)
    assert fed([*curve, (0.1, 2.0), (0.1, 2.0)], patience=2).stopped


@pytest.mark.parametrize(("patience", "seen"), [(1, 2), (2, 6), (3, 7), (0, 8)])
def test_patience_counts_evaluations_in_a_row_without_a_better_one(patience: int, seen: int) -> None:
    curve = [(v, None) for v in (0.2, 0.1, 0.3, 0.4, 0.1, 0.1, 0.1, 0.5)]
    found = Selection(SCHEMA, ("watch",), patience)
    for epoch, values in enumerate(curve, start=1):
        assert not found.stopped
        assert found.update(epoch, scores(*values)) == (epoch in (1, 3, 4, 8))
        if found.stopped:
            break
    assert epoch == seen


def test_an_untrained_task_has_no_say() -> None:
    assert fed([(0.1, 1.0), (0.01, 0.9)], ("rating",)).joint == 2
    assert fed([(0.1, 1.0), (0.01, 0.9)], ("watch",)).joint == 1


def test_a_metric_that_is_absent_has_no_say() -> None:
    found = fed([(None, 1.0), (None, 0.8), (None, 0.9)])
    assert (found.joint, found.own) == (2, {"rating": 2})


values = st.tuples(st.floats(0.01, 1), st.floats(0.1, 10))


@given(curve=st.lists(values, min_size=1, max_size=12), scale=st.sampled_from([0.5, 2.0, 1024.0]))
def test_the_rule_holds_on_any_curve_and_on_any_scale(curve: list[Any], scale: float) -> None:
    kept = 0
    for now in range(len(curve)):
        best = max(m for m, _ in curve[: now + 1]), min(e for _, e in curve[: now + 1])
        falls = [(best[0] - curve[e][0]) / best[0] + (curve[e][1] - best[1]) / best[1] for e in (kept, now)]
        if abs(falls[1] - falls[0]) < 1e-9 and now != kept:
            return  # a tie but for rounding
        kept = now if falls[1] < falls[0] else kept
    found = fed(curve)
    assert found.joint == kept + 1
    assert found.own == {
        "watch": 1 + max(range(len(curve)), key=lambda e: (curve[e][0], -e)),
        "rating": 1 + min(range(len(curve)), key=lambda e: (curve[e][1], e)),
    }
    assert fed([(m / 2, e * scale) for m, e in curve]).joint == found.joint


@given(curve=st.lists(values, min_size=2, max_size=12), patience=st.integers(1, 4))
def test_stopping_early_never_chooses_what_it_has_not_seen(curve: list[Any], patience: int) -> None:
    found = fed(curve, patience=patience)
    assert not found.stopped or found.stale == patience
    assert 1 <= found.joint <= len(curve)
