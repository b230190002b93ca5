"""Vectors of users and items as Parquet tables, for stores that search by inner product."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from polytask.bundle import Bundle
from polytask.errors import ConfigError
from polytask.nn.model import MultiTask

USERS, ITEMS = "user_vectors.parquet", "item_vectors.parquet"


def save_vectors(bundle: Bundle, folder: Path) -> dict[str, Any]:
    """Write the vectors of all known items, and of users where a task has a dot head; returns what there is.

    ``item_vectors.parquet``: ``task``, ``item_id``, ``embedding`` (list of Float32). ``user_vectors.parquet``:
    ``task``, ``user_id``, ``embedding``, ``bias``. The inner product of a user's and an item's embedding orders the
    items for the user, and with ``bias`` added it is the head's output. Without a dot head there are items alone,
    whose embeddings are near where items are alike, and ``task`` is null.
    """
    scorer, encoder = bundle.scorer, bundle.contents.encoder
    if encoder.users is None or encoder.items is None:
        raise ConfigError("export: the model knows no users and items, so there are no vectors; leave out 'vectors'")
    everyone = scorer.users(torch.arange(len(encoder.users)))
    people, things = [], []
    with torch.no_grad():
        for task in scorer.dot:
            level = torch.zeros(len(everyone))
            if isinstance(scorer.model, MultiTask):
                level = scorer.model.user_levels(task, everyone.side.ids)
            people.append(_table(bundle, "user", task, scorer.user_vectors(task, everyone)))
            people[-1] = people[-1].with_columns(pl.Series("bias", level[1:].numpy()))
            things.append(_table(bundle, "item", task, scorer.item_vectors(task)))
        if not things:
            things.append(_table(bundle, "item", None, scorer.item_embeddings()))
    tables = {ITEMS: pl.concat(things)} | ({USERS: pl.concat(people)} if people else {})
    for name, table in tables.items():
        table.write_parquet(folder / name)
    widths = [len(table["embedding"][0]) if len(table) else 0 for table in things]
    return {"files": list(tables), "tasks": list(scorer.dot), "widths": widths}


def _table(bundle: Bundle, side: str, task: str | None, vectors: Tensor) -> pl.DataFrame:
    """One row per known user or item with its vector, of ``vectors`` [V, W] whose first is the unknown one's."""
    name = str(bundle.schema.user if side == "user" else bundle.schema.item)
    ids: Sequence[str] = bundle.contents.encoder.vocabularies[name].to_list()
    kind = pl.List(pl.Float32)
    return pl.DataFrame(
        {
            "task": pl.Series([task] * len(ids), dtype=pl.String),
            f"{side}_id": pl.Series(ids, dtype=pl.String),
            "embedding": pl.Series(vectors[1:].numpy(), dtype=pl.Array(pl.Float32, vectors.shape[1])).cast(kind),
        }
    )
