"""What a bundle is made of, from a finished run: its facts, its mixes, what users had, and rows to prove it by."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from polytask import rng
from polytask.bundle.contents import Contents
from polytask.bundle.facts import Trained, facts
from polytask.calibration import Calibration, from_dict
from polytask.data.batch import Part
from polytask.errors import DataError
from polytask.recommend.index import EXACT_BELOW, Index
from polytask.recommend.mix import Mix
from polytask.recommend.scorer import Scorer
from polytask.recommend.seen import Seen
from polytask.recommend.weights import objective, search

_SAMPLE = 2000  # users whose vectors an index is tuned on
_GOLDEN = 48  # rows whose predictions prove that a loaded model is the saved one


def contents_of(
    run: Trained, mix: str | Mapping[str, float] | None, report: str | Path | Mapping[str, Any] | None, toml: str
) -> Contents:
    """The contents of the bundle of ``run``, all but its golden rows and its index."""
    train, model = run.sources["train"], run.model
    assert model is not None
    told = facts(run, report)
    calibration = {t: from_dict(c) for t, c in run.calibration.items()}
    told |= _mixes(run, mix, calibration)
    source = train.source
    tables = {} if source is None else {"user": source.users, "item": source.items}
    return Contents(
        model=model,
        design=run.design,
        tasks=tuple(run.tasks),
        encoder=train.encoder,
        calibration=calibration,
        seen=_seen(list(run.sources.values())),
        popularity=train.popularity,
        by=_typical(train),
        tables={side: table for side, table in tables.items() if table is not None},
        golden=pl.DataFrame(),
        facts=told,
        toml=toml,
    )


def _mixes(
    run: Trained, mix: str | Mapping[str, float] | None, calibration: Mapping[str, Calibration]
) -> dict[str, Any]:
    """The default mix, and what the tasks get from this and others on validation data."""
    ranking = [t for t in run.tasks if run.schema.task(t).kind == "ranking"]
    default = Mix.single((ranking or list(run.tasks))[0]) if mix is None else Mix.parse(mix, run.tasks)
    valid = run.sources.get("valid")
    if valid is None or run.model is None or len(run.tasks) < 2 or not (run.schema.user and run.schema.item):
        return {"mix": default.text, "mix_points": [], "mix_metrics": {}}
    try:
        points = search(run.model, valid, calibration, tasks=run.tasks)
    except DataError:  # nothing to judge an order by
        return {"mix": default.text, "mix_points": [], "mix_metrics": {}}
    if mix is None and not ranking:
        default = Mix.parse(next(p.mix for p in points if p.chosen), run.tasks)
    metrics = {t: objective(run.schema.task(t), run.schema) for t in run.tasks}
    return {"mix": default.text, "mix_points": [asdict(p) for p in points], "mix_metrics": metrics}


def _seen(parts: Sequence[Part]) -> Seen:
    """What users had in any part: at serving all of it is past."""
    user, item = (np.concatenate([getattr(p, side).numpy() for p in parts]) for side in ("user", "item"))
    times = [
        p.source.interactions[p.schema.time][p.rows].to_numpy()
        for p in parts
        if p.schema.time and p.source is not None and p.rows is not None
    ]
    return Seen.of(user, item, np.concatenate(times) if len(times) == len(parts) else None)


def _typical(train: Part) -> torch.Tensor:
    """The median second column of every item [I + 1, T], of all rows for the unknown one; NaN where there is none."""
    items, tasks = len(train.popularity), len(train.schema.tasks)
    found = torch.full((max(items, 1), tasks), torch.nan)
    if train.by is None:
        return found
    for number in range(tasks):
        frame = pl.DataFrame({"item": train.item.numpy(), "by": train.by[:, number].numpy()}).drop_nans()
        median = frame["by"].median()
        found[:, number] = float("nan") if median is None else float(str(median))
        own = frame.group_by("item").agg(pl.col("by").median()).filter(pl.col("item") > 0)
        found[own["item"].to_torch().long(), number] = own["by"].to_torch()
    return found


def index_of(scorer: Scorer) -> Index | None:
    """An index over the items of a large catalogue, by the first task that has vectors."""
    users, items = scorer.encoder.users, scorer.encoder.items
    if not scorer.dot or users is None or items is None or len(items) <= EXACT_BELOW:
        return None
    sample = rng.generator(0, "index/users").permutation(len(users))[:_SAMPLE]
    vectors = scorer.user_vectors(scorer.dot[0], scorer.users(torch.from_numpy(sample)))
    return Index.build(scorer.item_vectors(scorer.dot[0]), vectors)


def golden_rows(train: Part, tasks: Sequence[str], score: Callable[[pl.DataFrame], pl.DataFrame]) -> pl.DataFrame:
    """Raw training rows, one of an unknown user and one of an unknown item, with what ``score`` says of their tasks."""
    if train.source is None or train.rows is None:
        return pl.DataFrame()
    places = rng.generator(0, "golden").choice(train.rows, min(_GOLDEN, len(train.rows)), replace=False)
    schema, frame = train.schema, train.source.interactions[places]
    columns = [n for n in dict.fromkeys([schema.user, schema.item, *schema.columns]) if n and n in frame.columns]
    labels = {t.column for t in schema.tasks} - {t.by for t in schema.tasks}
    frame = frame.select([c for c in columns if c not in labels])
    for number, name in enumerate(n for n in (schema.user, schema.item) if n):
        unknown = pl.when(pl.int_range(pl.len()) == number).then(None).otherwise(pl.col(name)).alias(name)
        frame = frame.with_columns(unknown)
    told = score(frame).get_columns()[-len(tasks) :]
    return frame.with_columns(v.rename(f"value/{t}") for t, v in zip(tasks, told, strict=True))
