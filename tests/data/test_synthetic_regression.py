import numpy as np
import pytest

import polytask as pt
from polytask.data.datasets import load
from polytask.data.synthetic_regression import FREQUENCIES, PHASES, directions, response, synthetic_regression
from polytask.data.table import Dataset
from polytask.errors import ConfigError


def arrays(data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """x [N, d] and the labels [N, 2]."""
    frame = data.interactions
    return frame.select(f.name for f in data.schema.fields).to_numpy(), frame.select("y1", "y2").to_numpy()


def test_the_default_is_known_by_name() -> None:
    data = load("synthetic-regression")
    assert data.interactions.height == 20_000 and len(data.schema.fields) == 100
    assert [(t.name, t.kind, t.head) for t in data.schema.tasks] == [
        ("first", "regression", "tower"),
        ("second", "regression", "tower"),
    ]
    assert data.schema.user is None and not data.rejects.count


@pytest.mark.parametrize("correlation", [-1.0, 0.0, 0.5, 1.0])
def test_directions_are_unit_vectors_with_the_cosine_asked_for(correlation: float) -> None:
    w1, w2 = directions(correlation, 100, np.random.default_rng(0))
    assert [w1 @ w1, w2 @ w2, w1 @ w2] == pytest.approx([1, 1, correlation], abs=1e-12)


def test_directions_point_anywhere() -> None:
    found = np.stack([directions(0.5, 5, np.random.default_rng(n)) for n in range(2000)])
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose((found**2).mean(axis=0), 1 / 5, atol=0.03)


def test_the_response_is_the_equation() -> None:
    expected = [s + sum(np.sin(a * s + b) for a, b in zip(FREQUENCIES, PHASES, strict=True)) for s in (-1.0, 0.0, 2.5)]
    assert response(np.array([-1.0, 0.0, 2.5])) == pytest.approx(expected)
    assert response(np.array([2.0]), np.array([np.pi / 4]), np.array([0.0])) == pytest.approx([3.0])


@pytest.mark.parametrize(("correlation", "published"), [(0.0, 0.004), (0.5, 0.256), (1.0, 0.996)])
def test_labels_correlate_less_than_their_directions(correlation: float, published: float) -> None:
    found = [np.corrcoef(arrays(synthetic_regression(4000, correlation=correlation, seed=s))[1].T) for s in range(5)]
    assert np.mean([f[0, 1] for f in found]) == pytest.approx(published, abs=0.05)


def test_a_label_is_a_function_of_one_direction_and_noise() -> None:
    x, labels = arrays(synthetic_regression(6000, width=3, correlation=0.3))
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(np.cov(x.T), np.eye(3), atol=0.06)
    for label in labels.T:
        score = x.T @ (label - label.mean())  # for normal x, E[x y] is along w (Stein, 1981)
        residual = label - response(x @ score / np.linalg.norm(score))
        assert 0.09 < residual.std() < 0.2 < 0.2 * label.std()  # the noise, and the error of w


def test_same_seed_same_data_and_another_seed_another() -> None:
    first, again, other = (synthetic_regression(50, 4, seed=s).fingerprint() for s in (3, 3, 4))
    assert first == again != other


def test_drawn_waves_belong_to_the_seed_and_change_the_labels_alone() -> None:
    (x, fixed), (same, drawn), (_, again) = (
        arrays(synthetic_regression(50, 4, drawn=drawn)) for drawn in (False, True, True)
    )
    assert np.array_equal(x, same) and not np.allclose(fixed, drawn) and np.array_equal(drawn, again)


def test_correlation_changes_the_second_label_alone() -> None:
    (x, labels), (same, others) = (arrays(synthetic_regression(50, 4, correlation=p)) for p in (0.0, 1.0))
    assert np.array_equal(x, same) and np.array_equal(labels[:, 0], others[:, 0])
    assert not np.allclose(labels[:, 1], others[:, 1])


@pytest.mark.parametrize("options", [{"rows": 0}, {"width": 1}, {"correlation": 1.1}, {"correlation": float("nan")}])
def test_impossible_shapes_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="synthetic regression: rows = "):
        synthetic_regression(**options)  # type: ignore[arg-type]


def test_it_can_be_split_and_read_by_a_model() -> None:
    parts = pt.split(synthetic_regression(200, 5), valid=0.1, test=0.1)
    model = pt.MultiTask.build(parts.train, body="shared_bottom", dim=2, options={"layers": (4,)})
    assert len(model.inputs) == 5 and model.shape.width == 10
