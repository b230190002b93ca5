"""KuaiRand: seven answers to one short video, and how long it was watched.

C. Gao et al., KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos, CIKM 2022.
"""

from dataclasses import replace
from pathlib import Path

import polars as pl

from polytask.data.datasets.archive import Archive
from polytask.data.datasets.download import Remote, locate
from polytask.data.datasets.rows import hour, joined, refuse, seconds
from polytask.data.table import Dataset, build
from polytask.data.text import Raw, parse_text
from polytask.schema import Field, Schema, Task

_SITE = Remote(
    "KuaiRand-Pure",
    "https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz",
    "KuaiRand is given by its authors under CC BY-SA 4.0: cite Gao et al. 2022, and pass it on only under the same "
    "conditions.",
    digest="md5:0820331067a3784d9691136f772b35a7",
    folders=("kuairand", "KuaiRand-Pure/data", "KuaiRand-1K/data", "data"),
)
_EXPLICIT = "kuairand27k_explicit_kcore15.tsv"
_LOGS = {
    size: tuple(
        f"log_{part}_{size}.csv" for part in ("standard_4_08_to_4_21", "standard_4_22_to_5_08", "random_4_22_to_5_08")
    )
    for size in ("pure", "1k")
}
_ANSWERS = {
    "click": "is_click",
    "long_view": "long_view",
    "like": "is_like",
    "follow": "is_follow",
    "comment": "is_comment",
    "forward": "is_forward",
    "profile": "is_profile_enter",
}
_USER = (
    "user_active_degree",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    *(f"onehot_feat{k}" for k in range(18)),
)
_VIDEO = (
    Field("author_id", side="item"),
    Field("video_type", side="item"),
    Field("upload_type", side="item"),
    Field("music_type", side="item"),
    Field("tag", "categories", "item", separator=",", length=4),
)


def kuairand(folder: str | Path | None = None, download: bool = True) -> Dataset:
    """One row per shown video: seven binary tasks and watch_time, in seconds, read beside the video's duration.

    Inputs are the two ids, the users table, the hour in Beijing and the duration in seconds; with the official logs
    also the tab of the app, and in KuaiRand-Pure the videos table. A duration of 0 (18 % of the sample; a set of
    pictures has none) is read as missing, and watch time may exceed the duration, as videos repeat. What else the
    user did (time in the comments or profile) is no input, as it is known only afterwards. Time is in seconds.

    The logs of KuaiRand-Pure and KuaiRand-1K are read as they are, the two of standard recommendation before the
    one of random videos. A folder with the explicit sample ``kuairand27k_explicit_kcore15.tsv`` is read too: its
    rows are there *because* the user liked or hated the video, so its base rates are far from real traffic, and its
    name says so; its exact copies of a row (116) are rejected.
    """
    first = tuple(logs[0] for logs in _LOGS.values())
    archive = locate(_SITE, (*first, _EXPLICIT), folder, download)
    size = next((size for size, logs in _LOGS.items() if archive.has(*logs)), None)
    if size is None:
        users = _table(archive, "user_features_pure.csv")
        name = "kuairand (sample of liked and hated videos, not real traffic)"
        return build(_explicit(archive), _schema(), users=users, items=None, name=name)
    users = _table(archive, f"user_features_{size}.csv")
    videos = _table(archive, "video_features_basic_pure.csv") if size == "pure" else None
    schema = _schema(Field("tab"), *(_VIDEO if videos else ()))
    logs = [_restated(_table(archive, name)) for name in _LOGS[size] if archive.has(name)]
    return joined([build(log, schema, users=users, items=videos, name=log.source) for log in logs], f"kuairand-{size}")


def _schema(*extra: Field) -> Schema:
    binary = (Task(name, "binary", label=name) for name in _ANSWERS)
    watch = Task("watch_time", "regression", label="watch_time", by="duration")
    fields = (*(Field(c, side="user") for c in _USER), Field("hour"), Field("duration", "number", scale="log"), *extra)
    return Schema((*binary, watch), fields, user="user_id", item="video_id", time="time")


def _table(archive: Archive, name: str) -> Raw:
    return parse_text(archive.read(name), name, "\t" if name.endswith(".tsv") else ",")


def _explicit(archive: Archive) -> Raw:
    """The derived sample: ``label`` is 1 where the user liked the video and 0 where they hated it."""
    raw = _table(archive, _EXPLICIT)
    raw = replace(raw, frame=raw.frame.rename({"label": "is_like"}, strict=False))
    first = raw.frame.select(pl.struct(pl.all()).is_first_distinct()).to_series()
    return _restated(refuse(raw, ~first, "video_id", "stands in an exact copy of an earlier row"))


def _restated(raw: Raw) -> Raw:
    answers = {name: pl.col(column) for name, column in _ANSWERS.items()}
    time, duration = seconds("time_ms"), seconds("duration_ms")
    frame = raw.frame.with_columns(
        time=time,
        hour=hour(time),
        duration=pl.when(duration.cast(pl.Float64, strict=False).ne_missing(0)).then(duration),
        watch_time=seconds("play_time_ms"),
        **answers,
    )
    return replace(raw, frame=frame)
