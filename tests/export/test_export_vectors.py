"""Vectors of users and items: their products are what the model says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from made_up_bundles import CONTEXT, DOT, GENRES, LIKE, PAST, STARS, WATCH, dataset, made_up

from polytask.bundle import Bundle
from polytask.errors import ConfigError
from polytask.export import export
from polytask.nn.design import Design
from polytask.schema import Field


def pairs(bundle: Bundle, folder: Path, task: str) -> tuple[pl.DataFrame, np.ndarray]:
    """All pairs of known users and items, and the product of their vectors with the user's bias added."""
    users, items = (
        pl.read_parquet(folder / f"{side}_vectors.parquet").filter(pl.col("task") == task) for side in ("user", "item")
    )
    assert users.columns == ["task", "user_id", "embedding", "bias"]
    assert items.columns == ["task", "item_id", "embedding"]
    assert users["embedding"].dtype == items["embedding"].dtype == pl.List(pl.Float32)
    products = np.stack(users["embedding"].to_list()) @ np.stack(items["embedding"].to_list()).T
    rows = users.select(user="user_id").join(items.select(item="item_id"), how="cross", maintain_order="left_right")
    return rows, (products + users["bias"].to_numpy()[:, None]).ravel()


@pytest.mark.parametrize(
    ("design", "fields", "width"),
    [(Design("factorize", 6), (PAST, GENRES, CONTEXT[0]), 7), (Design("history", 4), (GENRES,), 5)],
    ids=["dot heads", "a model of histories"],
)
def test_products_of_vectors_are_what_the_model_says(
    tmp_path: Path, design: Design, fields: tuple[Field, ...], width: int
) -> None:
    stars = replace(STARS, head="dot") if design.body == "factorize" else STARS
    bundle = made_up(tmp_path / "bundle", (DOT, stars), fields, design=design)
    facts = export(bundle, tmp_path / "out", ("vectors",))
    assert facts["vectors"]["tasks"] == ["watch", "stars"] and facts["vectors"]["widths"][0] == width
    for task in ("watch", "stars"):
        rows, found = pairs(bundle, tmp_path / "out", task)
        assert len(rows) == 13 * 28
        assert np.allclose(found, bundle.score(rows)[task], rtol=1e-5, atol=1e-5)


def test_only_tasks_with_a_dot_head_have_vectors(tmp_path: Path) -> None:
    bundle = made_up(tmp_path / "bundle", (DOT, STARS, LIKE))
    assert export(bundle, tmp_path / "out", ["vectors"])["vectors"]["tasks"] == ["watch"]
    for side in ("user", "item"):
        assert set(pl.read_parquet(tmp_path / "out" / f"{side}_vectors.parquet")["task"]) == {"watch"}


def test_without_a_dot_head_items_have_embeddings_that_are_near_where_items_are_alike(tmp_path: Path) -> None:
    bundle = made_up(tmp_path / "bundle", (WATCH, STARS), (GENRES,))
    facts = export(bundle, tmp_path / "out", ["vectors"])
    assert facts["vectors"] == {"files": ["item_vectors.parquet"], "tasks": [], "widths": [6]}
    assert not (tmp_path / "out" / "user_vectors.parquet").exists()
    items = pl.read_parquet(tmp_path / "out" / "item_vectors.parquet")
    assert items["task"].null_count() == len(items) == 28
    vectors = np.stack(items["embedding"].to_list())
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    at = items["item_id"].index_of("i7")
    cosines = vectors @ vectors[at]
    cosines[at] = -2
    assert items["item_id"].gather(np.argsort(-cosines)[:5]).to_list() == bundle.similar("i7", 5)["item"].to_list()


def test_a_model_without_users_and_items_has_no_vectors(tmp_path: Path) -> None:
    bundle = made_up(tmp_path / "bundle", data=dataset((STARS,), CONTEXT, ids=False))
    with pytest.raises(ConfigError, match="no users and items"):
        export(bundle, tmp_path / "out", ("vectors",))
    assert not (tmp_path / "out").exists()
