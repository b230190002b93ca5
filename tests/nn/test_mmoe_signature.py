"""The published signature of gated experts, on data made up for it (Ma et al., MMoE, KDD 2018, figure 4).

Two regressions whose directions have the cosine p, read by polytask's own bodies of equal size; 16 seeds and
both p are trained as one stack on fresh samples. Under a minute on one free core.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "bench" / "mmoe_synthetic.py"
UNRELATED, ALIKE = 0, 1  # columns of the results: p = 0 and p = 1


@pytest.fixture(scope="module")
def medians() -> dict[str, np.ndarray]:
    """Median over the seeds of MSE / Var(y) for p = 0 and p = 1, by body."""
    spec = importlib.util.spec_from_file_location("mmoe_synthetic", BENCH)
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    found = bench.train(["shared_bottom", "omoe", "mmoe"], seeds=16, correlations=(0.0, 1.0), steps=2000)
    return {name: np.median(errors, axis=0) for name, errors in found.items()}


def test_gated_experts_beat_a_shared_bottom_of_their_size(medians: dict[str, np.ndarray]) -> None:
    assert (medians["mmoe"] <= 0.8 * medians["shared_bottom"]).all()


def test_a_gate_for_each_task_does_not_mind_unrelated_tasks(medians: dict[str, np.ndarray]) -> None:
    assert medians["mmoe"][UNRELATED] <= 1.15 * medians["mmoe"][ALIKE]


def test_one_gate_for_all_tasks_does_mind(medians: dict[str, np.ndarray]) -> None:
    assert medians["omoe"][UNRELATED] >= 1.2 * medians["omoe"][ALIKE]


def test_for_like_tasks_one_gate_is_as_good_as_two(medians: dict[str, np.ndarray]) -> None:
    assert medians["mmoe"][ALIKE] == pytest.approx(medians["omoe"][ALIKE], rel=0.15)
