import numpy as np
import polars as pl
import pytest

from polytask.data.worlds import LIKENESS, NOISE, ROWS, SCALE, SIDE, WORLDS, World, world
from polytask.errors import ConfigError
from polytask.nn.design import Design
from polytask.run import TrainConfig

SEEDS = (1000, 1001)
RIDGES = {"aligned", "unrelated", "imbalanced"}  # of these the second moments x xᵀ y show the directions


def labels(made: World) -> np.ndarray:
    """[N, 2]; NaN where a label is unknown."""
    return made.data.interactions.select("first_label", "second_label").to_numpy()


def numbers(made: World) -> np.ndarray:
    frame = made.data.interactions
    return frame.select(c for c in frame.columns if c.startswith("x")).to_numpy()


def curvature(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The mean of y (x xᵀ − I) [d, d]: for a function of |w·x| it is large along w and nowhere else (Stein)."""
    known = ~np.isnan(y)
    x, y = x[known], y[known] - y[known].mean()
    found: np.ndarray = (x * y[:, None]).T @ x / len(y)
    return found


def explained(y: np.ndarray, groups: np.ndarray) -> float:
    """Share of the variance of y that the groups' means explain."""
    frame = pl.DataFrame({"y": y, "g": groups}).with_columns(mean=pl.col("y").mean().over("g"))
    return float(frame["mean"].to_numpy().var() / y.var())


@pytest.mark.parametrize("kind", WORLDS)
def test_a_world_is_its_seed_and_another_seed_another_world(kind: str) -> None:
    first, again, other = (world(kind, seed) for seed in (1000, 1000, 1001))
    assert first.data.fingerprint() == again.data.fingerprint() != other.data.fingerprint()
    assert (first.kind, first.model, first.train, first.weights) == (kind, other.model, other.train, other.weights)


@pytest.mark.parametrize("kind", WORLDS)
def test_what_a_world_asks_for_is_a_design_and_a_training(kind: str) -> None:
    made = world(kind, 1000)
    design, config = Design(**made.model).checked(), TrainConfig(**made.train)
    assert hash(design) == hash(Design(**world(kind, 1001).model)) and config.patience == 0
    assert made.weights.keys() == set(made.data.schema.task_names) and min(made.weights.values()) > 0


def test_harm_is_planted_in_five_of_seven_each_for_a_cause_of_its_own() -> None:
    causes = {kind: world(kind, 1000).cause for kind in WORLDS}
    harmless = {kind for kind, cause in causes.items() if cause is None}
    assert harmless == {"aligned", "unrelated"}
    assert len({c for c in causes.values() if c}) == len(WORLDS) - len(harmless)


@pytest.mark.parametrize("seed", SEEDS)
def test_aligned_labels_are_two_views_of_one_function(seed: int) -> None:
    both = labels(world("aligned", seed))
    known = ~np.isnan(both[:, 1])
    assert not np.isnan(both[:, 0]).any() and 0.27 < known.mean() < 0.33
    assert np.corrcoef(both[known].T)[0, 1] == pytest.approx(1 / (1 + NOISE**2), abs=0.03)
    assert np.var(both[known, 0] - both[known, 1]) == pytest.approx(2 * NOISE**2, rel=0.1)


@pytest.mark.parametrize("kind", ["unrelated", "imbalanced"])
def test_unrelated_labels_bend_along_orthogonal_directions(kind: str) -> None:
    made = world(kind, 1000)
    both = labels(made)
    assert abs(np.corrcoef(both.T)[0, 1]) < 0.05
    planes = []
    for y in both.T:
        sizes, vectors = np.linalg.eigh(curvature(numbers(made), y))
        assert sizes[-2] > 3 * np.abs(sizes[:-2]).max()  # two directions and no third
        planes.append(vectors[:, -2:])
    assert np.linalg.norm(planes[0].T @ planes[1], ord=2) < 0.2


def test_only_the_weights_make_the_imbalance() -> None:
    balanced, other = world("unrelated", 1000), world("imbalanced", 1000)
    assert other.weights["first"] == SCALE * other.weights["second"]
    assert balanced.weights["first"] == balanced.weights["second"]
    np.testing.assert_allclose(np.var(labels(other), axis=0), np.var(labels(balanced), axis=0), rtol=0.1)


@pytest.mark.parametrize("seed", SEEDS)
def test_starved_tasks_bend_along_ten_directions_and_the_trunk_is_narrower(seed: int) -> None:
    made = world("starved", seed)
    first, second = (curvature(numbers(made), y) for y in labels(made).T)
    for own in (first, second):
        sizes = np.linalg.eigvalsh(own)
        assert sizes[-5] > 2 * np.abs(sizes[:-5]).max()  # five directions of its own
    both = np.linalg.eigvalsh(first + second)
    assert both[0] > 2 * abs(np.linalg.eigvalsh(first)[0]) and both[0] > 0.02  # together all ten
    (_, layers), *_ = made.model["options"]
    assert 5 < layers[0] < 10


@pytest.mark.parametrize("seed", SEEDS)
def test_opposed_labels_are_one_taste_and_its_opposite(seed: int) -> None:
    made = world("opposed", seed)
    both, rows = labels(made), made.data.interactions
    assert np.corrcoef(both.T)[0, 1] == pytest.approx(-1 / (1 + NOISE**2), abs=0.03)
    assert np.var(both.sum(axis=1)) == pytest.approx(2 * NOISE**2, rel=0.1)  # what is left is noise
    assert not rows.select("user", "item").is_duplicated().any() and rows["user"].n_unique() == SIDE
    assert explained(both[:, 0], rows["user"].to_numpy()) < 0.2  # first-order terms cannot say it
    assert {t.head for t in made.data.schema.tasks} == {"dot"}


@pytest.mark.parametrize("seed", SEEDS)
def test_tables_tasks_agree_on_numbers_and_collide_on_categories(seed: int) -> None:
    made = world("tables", seed)
    first, second = (curvature(numbers(made), y) for y in labels(made).T)
    assert np.sum(first * second) > 0.9 * np.linalg.norm(first) * np.linalg.norm(second)
    for name in ("c0", "c1", "c2"):
        means = made.data.interactions.group_by(name).agg(pl.col("first_label", "second_label").mean())
        one, two = means["first_label"].to_numpy(), means["second_label"].to_numpy()
        assert np.corrcoef(one, two)[0, 1] == pytest.approx(LIKENESS, abs=0.15)
    assert made.model["dim"] == 1


def test_stopping_ids_mean_nothing_and_have_few_rows_each() -> None:
    made = world("stopping", 1000)
    both, ids = labels(made), made.data.interactions["id"].to_numpy()
    expected = (len(np.unique(ids)) - 1) / len(ids)  # of labels that ids say nothing about
    assert [explained(y, ids) for y in both.T] == pytest.approx([expected, expected], abs=0.03)
    slopes = numbers(made).T @ both / len(ids)
    assert np.linalg.norm(slopes[:, 0]) == pytest.approx(1, abs=0.1)  # a line in noise of 1.5
    assert np.var(both[:, 0]) == pytest.approx(1 + 1.5**2, rel=0.1)
    assert np.var(both[:, 1]) == pytest.approx(1 + NOISE**2, rel=0.1)


@pytest.mark.parametrize("kind", sorted(RIDGES))
def test_noise_is_what_is_left_beside_the_effect(kind: str) -> None:
    both = labels(world(kind, 1000))
    assert len(both) == ROWS
    np.testing.assert_allclose(np.nanvar(both, axis=0), 1 + NOISE**2, rtol=0.1)


def test_an_unknown_kind_names_the_near_one() -> None:
    with pytest.raises(ConfigError, match="starved"):
        world("starve")
