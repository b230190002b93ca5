import numpy as np
import polars as pl
import pytest

from polytask.data.datasets import load
from polytask.data.synthetic import synthetic
from polytask.data.table import Dataset
from polytask.errors import ConfigError


def test_default_has_the_shape_of_movielens_100k() -> None:
    data = load("synthetic")
    rows = data.interactions
    assert data.users is not None and data.items is not None
    assert (rows.height, data.users.height, data.items.height) == (100_000, 943, 1682)
    assert not rows.select("user_id", "item_id").is_duplicated().any()
    per_user = rows["user_id"].value_counts()["count"]
    assert per_user.len() == 943 and int(per_user.min()) >= 20  # type: ignore[arg-type]
    assert set(rows["rating"].unique()) == {1.0, 2.0, 3.0, 4.0, 5.0}
    assert rows["timestamp"].is_sorted() and rows["timestamp"].is_between(8.7e8, 9e8).all()
    per_item = rows["item_id"].value_counts(sort=True)["count"].to_numpy()
    assert per_item[: 1682 // 10].sum() > 0.25 * 100_000


def test_same_seed_same_data_and_another_seed_another() -> None:
    first, again, other = (synthetic(40, 60, 900, seed=s).fingerprint() for s in (3, 3, 4))
    assert first == again != other


def observed_taste(data: Dataset, users: int, items: int) -> np.ndarray:
    """Taste for the watched items, estimated from who else watched them (no look at the ratings)."""
    rows = data.interactions.select(pl.col("user_id", "item_id").cast(pl.Int64) - 1)
    watched = np.zeros((users, items))
    watched[rows["user_id"], rows["item_id"]] = 1
    centered = watched - watched.mean(axis=0) - watched.mean(axis=1, keepdims=True) + watched.mean()
    left, size, right = np.linalg.svd(centered, full_matrices=False)
    return ((left[:, :4] * size[:4]) @ right[:4])[rows["user_id"], rows["item_id"]]


def test_conflict_turns_ratings_from_aligned_to_opposed() -> None:
    found = []
    for conflict in (0.0, 0.5, 1.0):
        data = synthetic(300, 200, 12_000, dim=4, conflict=conflict, seed=1)
        taste = observed_taste(data, 300, 200)
        found.append(np.corrcoef(taste, data.interactions["rating"].to_numpy())[0, 1])
    assert found[0] > 0.25 and abs(found[1]) < 0.1 and found[2] < -0.25
    assert found[0] == pytest.approx(-found[2], abs=0.05)


def test_conflict_changes_the_ratings_alone() -> None:
    columns = ["user_id", "item_id", "timestamp"]
    tables = [synthetic(30, 50, 700, conflict=c).interactions.select(columns) for c in (0.0, 1.0)]
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize(("users", "items", "rows"), [(1, 1, 1), (5, 4, 20), (7, 3, 2), (10, 1000, 777), (3, 100, 299)])
def test_any_possible_shape_is_met_exactly(users: int, items: int, rows: int) -> None:
    data = synthetic(users, items, rows)
    assert data.interactions.height == rows
    assert not data.interactions.select("user_id", "item_id").is_duplicated().any()


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match="rows at most users x items"):
        synthetic(3, 3, 10)
    with pytest.raises(ConfigError, match=r"conflict 2 must be in 0..1"):
        synthetic(conflict=2)
    with pytest.raises(ConfigError, match="noise nan"):
        synthetic(noise=float("nan"))
