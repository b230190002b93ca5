"""Taobao UserBehavior: whether a first view is followed by a favorite, a cart or a purchase.

H. Zhu et al., Learning Tree-based Deep Model for Recommender Systems, KDD 2018.
"""

from dataclasses import replace
from pathlib import Path

import polars as pl

from polytask.data.datasets.download import Remote, locate
from polytask.data.datasets.rows import hour, refuse
from polytask.data.table import Dataset, build
from polytask.data.text import Raw, parse_text
from polytask.schema import Field, Schema, Side, Task

_SITE = Remote(
    "taobao",
    "https://tianchi.aliyun.com/dataset/649",
    "Condition: research, not commercial (CC BY-NC-SA 4.0).",
    folders=("taobao", "taobao-userbehavior"),
    account=True,
)
_FILES = ("UserBehavior.csv", "UserBehavior.first84475.csv")
_START, _END = 1_511_539_200, 1_512_316_800
_FUNNEL = {"favorite": "fav", "cart": "cart", "buy": "buy"}
_PAIR = ["user_id", "item_id"]


def taobao(folder: str | Path | None = None, download: bool = True) -> Dataset:
    """One row per (user, item) pair that was viewed, at its first view: what followed until the end of the log.

    The log has one event a row: view, favorite, cart or purchase. Task favorite (cart, buy) is 1 where the same user
    favored (put into the cart, bought) the same item at or after the first view, up to the log's end, so pairs first
    viewed late had less time for it. An action before the first view does not count, and a pair without a
    view makes no row: its view lies before the log. The three tasks do not contain one another; a purchase needs no
    cart. Further views only make no further row.

    Events outside 25 November to 3 December 2017 in Beijing are rejected. ``rejects`` counts events, so it has more
    accepted than there are rows. Inputs are the ids, the item's category (the first one logged) and the hour of
    the view in Beijing. Nothing is downloaded, as an account is needed; the file may be a part of the
    official one, cut at any line.
    """
    archive = locate(_SITE, _FILES, folder, download)
    name = next(name for name in _FILES if archive.has(name))
    raw = parse_text(archive.read(name), name, ",", [*_PAIR, "category", "behavior", "time"])
    events = build(_restated(raw), _schema("context"), users=None, items=None, name="taobao")
    log = events.interactions
    items = log.select("item_id", "category").unique("item_id", keep="first", maintain_order=True)
    return replace(events, schema=_schema("item"), interactions=_first_views(log).drop("category"), items=items)


def _schema(side: Side) -> Schema:
    """Of the events, where the category is read beside them, and of the views, where it is the item's."""
    tasks = tuple(Task(name, "binary", label=name) for name in _FUNNEL)
    return Schema(tasks, (Field("category", side=side), Field("hour")), user="user_id", item="item_id", time="time")


def _restated(raw: Raw) -> Raw:
    """Events in time, each with 1 for the task it answers; an unknown behavior stays as text, to be rejected."""
    time = raw.frame["time"].str.strip_chars().cast(pl.Float64, strict=False)
    raw = refuse(
        raw, ~time.is_between(_START, _END, closed="left"), "time", "is outside 25 Nov to 3 Dec 2017 (Beijing)"
    )
    answers = {}
    for task, own in _FUNNEL.items():
        answers[task] = pl.col("behavior").replace({b: str(int(b == own)) for b in ("pv", *_FUNNEL.values())})
    return replace(raw, frame=raw.frame.with_columns(hour=hour(pl.col("time")), **answers))


def _first_views(events: pl.DataFrame) -> pl.DataFrame:
    """The first view of every pair, in the order of the log, with what came at or after it."""
    is_view = pl.sum_horizontal(*_FUNNEL) == 0
    ordered = events.with_row_index("row").sort("time", maintain_order=True)
    views = ordered.filter(is_view).unique(_PAIR, keep="first", maintain_order=True)
    after = ordered.filter(~is_view).join(views.select(*_PAIR, start="time"), on=_PAIR)
    answers = after.filter(pl.col("time") >= pl.col("start")).group_by(_PAIR).agg(pl.col(*_FUNNEL).max())
    rows = views.drop(*_FUNNEL).join(answers, on=_PAIR, how="left").sort("row")
    return rows.with_columns(pl.col(*_FUNNEL).fill_null(0.0)).select(events.columns)
