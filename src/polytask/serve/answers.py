"""The answers, one function per question: a :class:`Job` says what to compute, and whether that takes any time."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import polars as pl

from polytask.errors import did_you_mean
from polytask.recommend.query import Query
from polytask.serve.reply import dump, invalid, unknown
from polytask.serve.schema import AskExplain, AskHistory, AskRecommend, AskScore, AskSearch, AskSimilar
from polytask.serve.snapshot import Snapshot


class Job(NamedTuple):
    """A computation whose result is the body of the answer; a ``light`` one takes no time to speak of."""

    call: Callable[[], bytes]
    light: bool = False


def recommend(s: Snapshot, asked: AskRecommend) -> Job:
    """The list for a user."""
    _require_lists(s)
    query = Query(
        user=asked.user_id,
        k=asked.k,
        mix=s.mix(asked.mix),
        exclude_seen=asked.exclude_seen,
        candidates=None if asked.candidates is None else tuple(asked.candidates),
        exclude=tuple(asked.exclude),
        context=asked.context,
        history=tuple(asked.history),
        diversity=asked.diversity,
        caps=asked.caps,
    )
    plain = not (asked.display or asked.diversity or asked.caps)
    return Job(partial(_recommended, s, query, asked.display), plain and s.bundle.recommender.cached(query))


def _recommended(s: Snapshot, query: Query, display: bool) -> bytes:
    top = s.bundle.recommender.top(query)
    tasks, ids = s.bundle.tasks, [s.items[i] for i in top.items.tolist()]
    items: list[dict[str, Any]] = [
        {"item_id": one, "rank": rank, "score": score, "values": dict(zip(tasks, values, strict=True))}
        for rank, (one, score, values) in enumerate(
            zip(ids, top.scores.tolist(), top.values.T.tolist(), strict=True), start=1
        )
    ]
    if display:
        for item, shown in zip(items, s.display("item", ids), strict=True):
            item["display"] = shown
    mix = query.mix or s.bundle.mix
    head = {"model_version": s.version, "user_id": query.user, "cold_start": top.cold, "mix": mix.text}
    return dump(head | {"items": items})


def score(s: Snapshot, asked: AskScore) -> Job:
    """What each task predicts for rows."""
    schema = s.bundle.schema
    names = {"user_id": schema.user, "item_id": schema.item}
    ids = {short: name for short, name in names.items() if name}
    fields = {f.name: f.kind == "number" for f in schema.inputs if f.kind != "history" and f.name not in ids.values()}
    given = dict.fromkeys(key for row in asked.rows for key in row)
    for key in given:
        if key not in ids and key not in fields:
            raise invalid("rows: " + did_you_mean("column", key, [*ids, *fields]))
    columns = [
        _column(ids.get(key, key), [row.get(key) for row in asked.rows], fields.get(key, False)) for key in given
    ]
    frame = pl.DataFrame(columns) if columns else pl.DataFrame({"": [None] * len(asked.rows)})
    return Job(partial(_scored, s, frame, asked.rows))


def _column(name: str, values: Sequence[Any], number: bool) -> pl.Series:
    for row, value in enumerate(values):
        if value is not None and isinstance(value, str) == number:
            raise invalid(f"rows.{row}: '{name}' must be a {'number' if number else 'string'}")
    return pl.Series(name, values, dtype=pl.Float64 if number else pl.String)


def _scored(s: Snapshot, frame: pl.DataFrame, rows: Sequence[dict[str, Any]]) -> bytes:
    told, lists = s.bundle.score(frame), s.bundle.recommender
    values = zip(*(told[t].to_list() for t in s.bundle.tasks), strict=True)
    answers = []
    for row, found in zip(rows, values, strict=True):
        user, item = row.get("user_id"), row.get("item_id")
        known = not s.listing or (lists.user_index(user) and lists.item_index(item or ""))
        predicted = dict(zip(s.bundle.tasks, found, strict=True))
        answers.append({"user_id": user, "item_id": item, "values": predicted, "cold_start": not known})
    return dump({"model_version": s.version, "rows": answers})


def similar(s: Snapshot, asked: AskSimilar) -> Job:
    """The items nearest to an item."""
    _require_lists(s)
    _require_item(s, asked.item_id)
    return Job(partial(_near, s, asked))


def _near(s: Snapshot, asked: AskSimilar) -> bytes:
    found = s.bundle.similar(asked.item_id, asked.k)
    ids = found[str(s.bundle.schema.item)].to_list()
    shown = s.display("item", ids) if asked.display else [None] * len(ids)
    items = [
        {"item_id": one, "rank": rank, "score": near} | ({} if display is None else {"display": display})
        for rank, (one, near, display) in enumerate(zip(ids, found["score"].to_list(), shown, strict=True), start=1)
    ]
    return dump({"model_version": s.version, "item_id": asked.item_id, "items": items})


def explain(s: Snapshot, asked: AskExplain) -> Job:
    """Why an item stands where it does."""
    _require_lists(s)
    _require_user(s, asked.user_id)
    _require_item(s, asked.item_id)
    mix = s.mix(asked.mix)
    return Job(partial(_explained, s, asked, None if mix is None else mix.text))


def _explained(s: Snapshot, asked: AskExplain, mix: str | None) -> bytes:
    found = s.bundle.explain(asked.user_id, asked.item_id, mix=mix, context=asked.context)
    ids = {"model_version": s.version, "user_id": asked.user_id, "item_id": asked.item_id}
    return dump(ids | {name: found[name] for name in ("score", "mix", "parts", "tasks", "rank")})


def search(s: Snapshot, asked: AskSearch) -> Job:
    """Users or items that hold a text."""
    _require_lists(s)
    return Job(partial(_found, s, asked))


def _found(s: Snapshot, asked: AskSearch) -> bytes:
    name = str(s.bundle.schema.user if asked.side == "user" else s.bundle.schema.item)
    ids = s.bundle.search(asked.side, asked.text, asked.limit)[name].to_list()
    matches = [{"id": one, "display": shown} for one, shown in zip(ids, s.display(asked.side, ids), strict=True)]
    return dump({"model_version": s.version, "matches": matches})


def history(s: Snapshot, asked: AskHistory) -> Job:
    """What a user had."""
    _require_lists(s)
    _require_user(s, asked.user_id)
    return Job(partial(_had, s, asked))


def _had(s: Snapshot, asked: AskHistory) -> bytes:
    ids = s.bundle.history(asked.user_id, asked.limit)[str(s.bundle.schema.item)].to_list()
    items = [{"item_id": one, "display": shown} for one, shown in zip(ids, s.display("item", ids), strict=True)]
    return dump({"model_version": s.version, "user_id": asked.user_id, "items": items})


def model(s: Snapshot, asked: None) -> Job:
    """What the model is."""
    return Job(lambda: s.model, light=True)


def _require_lists(s: Snapshot) -> None:
    if not s.listing:
        raise invalid("this model knows no users and items, so it has nothing to list; ask /v1/score")


def _require_user(s: Snapshot, user: str) -> None:
    if not s.bundle.recommender.user_index(user):
        raise unknown("user", user)


def _require_item(s: Snapshot, item: str) -> None:
    if not s.bundle.recommender.item_index(item):
        raise unknown("item", item)
