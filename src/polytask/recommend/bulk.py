"""Recommendations for millions of users, written to one file: in parts, so that a killed command goes on."""

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from polytask.bundle.bundle import Bundle
from polytask.errors import ConfigError, StateError
from polytask.files import lock, sha256, write_json, write_with
from polytask.recommend.ids import Ids
from polytask.recommend.lists import top_vectors
from polytask.recommend.mix import Mix
from polytask.recommend.query import Query
from polytask.recommend.recommender import Recommender

Progress = Callable[[int, int], None]
"""Is told the number of users answered so far, and of all."""

_ROWS = 1 << 17  # lines of answers in one part
_CACHE = 1 << 26
_PLAN = "plan.json"
_ENDINGS = (".parquet", ".csv")


@dataclass(frozen=True, eq=False)
class Job:
    """Whom to answer what: ``query`` holds for each of the ``users``, ``size`` of whom make up a part."""

    bundle: Bundle
    users: Ids
    query: Query
    folder: Path
    size: int

    def plan(self) -> dict[str, Any]:
        """What the parts are made from; parts of another plan are of no use."""
        asked = asdict(replace(self.query, mix=None)) | {"mix": (self.query.mix or self.bundle.mix).text}
        users = None if self.users.path is None else sha256(self.users.path)
        told = {"bundle": self.bundle.version, "users": users, "count": self.users.count, "size": self.size}
        return told | {name: asked[name] for name in asked if name not in ("user", "history")}

    def part(self, number: int) -> Path:
        """The file of a part."""
        return self.folder / f"{number:06d}.parquet"


def recommend_all(
    bundle: Bundle,
    users: str | Path | None,
    to: str | Path,
    query: Query | None = None,
    *,
    workers: int = 1,
    progress: Progress | None = None,
    size: int = 0,
) -> Path:
    """Answer ``query`` for every user of a file (None: every known one) and write ``to`` (.parquet or .csv); return it.

    The file (CSV, TSV, also ``.gz``, or Parquet) has the column of the schema's user; each of its rows is answered, in
    their order, unknown users as nobody in particular. Columns are those of :meth:`Bundle.recommend`. The answers
    appear at once, when all are there; until then parts of ``size`` users lie beside ``to``, and the same call goes
    on with them. ``workers`` processes share the parts. An empty id, and parts of another call, are an error.
    """
    target, query = Path(to), query or Query()
    if target.suffix not in _ENDINGS:
        raise ConfigError(f"{target}: the ending says how to write; use .parquet or .csv")
    if query.user is not None or query.history:
        raise ConfigError("user and history belong to one user's question; leave them out for a file of users")
    if bundle.schema.user is None or bundle.schema.item is None:
        raise ConfigError("this model knows no users and items, so it has nothing to list; use score(rows)")
    if workers < 1:
        raise ConfigError(f"workers = {workers} must be at least 1")
    vocabulary = bundle.contents.encoder.vocabularies[bundle.schema.user]
    ids = Ids.of(None if users is None else Path(users), bundle.schema.user, vocabulary)
    folder = target.with_name(f"{target.name}.parts")
    job = Job(bundle, ids, query, folder, size or max(1, _ROWS // query.k))
    with lock(folder):
        _begin(job)
        _answer(job, workers, progress)
        _join(job, target)
        shutil.rmtree(folder)
    return target


def _begin(job: Job) -> None:
    """Write down the plan, or see that it is the one the parts that lie there are made from."""
    path, plan = job.folder / _PLAN, json.loads(json.dumps(job.plan()))
    if not path.exists() or not any(job.folder.glob("*.parquet")):
        write_json(path, plan)
        return
    found = json.loads(path.read_text("utf-8"))
    changed = [name for name in plan if plan[name] != found.get(name)]
    if changed:
        then, now = found.get(changed[0]), plan[changed[0]]
        raise StateError(
            f"{job.folder} holds the beginning of other answers ({changed[0]} was {then!r}, now {now!r}); "
            "repeat that call to finish them, or delete the folder"
        )


def _answer(job: Job, workers: int, progress: Progress | None) -> None:
    """Write the parts that are not there yet."""
    parts = -(-job.users.count // job.size)
    missing = [n for n in range(parts) if not job.part(n).exists()]

    def tell() -> None:
        if progress is not None:
            done = sum(job.part(n).exists() for n in range(parts))
            progress(min(done * job.size, job.users.count), job.users.count)

    tell()
    if workers == 1 or len(missing) < 2:
        _write_parts(job, missing, tell)
        return
    shares = [missing[w::workers] for w in range(min(workers, len(missing)))]
    with ProcessPoolExecutor(len(shares), mp_context=get_context("spawn")) as pool:
        bare = replace(job, bundle=None)  # type: ignore[arg-type]  # each process reads its own
        at = [pool.submit(_work, bare, job.bundle.folder, job.bundle.version, s) for s in shares]
        while wait(at, timeout=1).not_done:
            tell()
        for one in at:
            one.result()
    tell()


def _work(job: Job, folder: Path, version: str, numbers: Sequence[int]) -> None:
    torch.set_num_threads(1)
    bundle = Bundle.load(folder)
    if bundle.version != version:
        raise StateError(f"{folder} was replaced while answers were written; repeat the call")
    _write_parts(replace(job, bundle=bundle), numbers, lambda: None)


def _write_parts(job: Job, numbers: Sequence[int], tell: Callable[[], None]) -> None:
    lists = replace(job.bundle.recommender, cache=_CACHE)
    wanted = set(numbers)
    for number, ids in enumerate(job.users.blocks(job.size)):
        if number in wanted:
            write_with(job.part(number), _frame(job, lists, ids).write_parquet)
            tell()


def _frame(job: Job, lists: Recommender, ids: Sequence[str]) -> pl.DataFrame:
    """The answers to some users, as :meth:`Bundle.recommend` gives them."""
    query, schema = job.query, job.bundle.schema
    ranking = _ranking(lists, query)
    if ranking is None:
        each = [lists.top(replace(query, user=user)) for user in ids]
        counts = np.array([len(t.items) for t in each])
        items, scores = (np.concatenate([getattr(t, n) for t in each]) for n in ("items", "scores"))
        values = np.concatenate([t.values for t in each], axis=1)
    else:
        counts, items, scores, values = _by_vectors(lists, query, ranking, [lists.user_index(u) for u in ids])
    starts = np.cumsum(counts) - counts
    frame = {
        str(schema.user): pl.Series(ids, dtype=pl.String).gather(np.repeat(np.arange(len(ids)), counts)),
        str(schema.item): job.bundle.contents.encoder.vocabularies[str(schema.item)].gather(items - 1),
        "score": scores,
        "rank": np.arange(1, len(items) + 1) - np.repeat(starts, counts),
    }
    tasks = {t: values[n].astype(np.float32) for n, t in enumerate(job.bundle.tasks)}
    return pl.DataFrame(frame | tasks)


def _ranking(lists: Recommender, query: Query) -> str | None:
    """The ranking task whose vectors alone order the items; None where the order takes more."""
    mix = query.mix or lists.mix
    task = mix.tasks[0]
    alone = mix == Mix.single(task) and task in lists.scorer.dot and lists.schema.task(task).kind == "ranking"
    return task if alone and lists.near is None and not query.diversity and not query.caps else None


def _by_vectors(
    lists: Recommender, query: Query, task: str, users: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Number of items of each user [U]; items [N], fused scores [N] and predictions [T, N], user by user."""
    scorer, mix = lists.scorer, query.mix or lists.mix
    person = scorer.users(torch.tensor(users))
    named = lists.item_indices(query.exclude)
    out = [np.append(named, lists.seen.items(u) if query.exclude_seen else named[:0]) for u in users]
    rows = torch.arange(len(users)).repeat_interleave(torch.tensor([len(o) for o in out]))
    candidates = None if query.candidates is None else torch.from_numpy(lists.item_indices(query.candidates))
    vectors, excluded = scorer.user_vectors(task, person), (rows, torch.from_numpy(np.concatenate(out)))
    found, _ = top_vectors(vectors, scorer.item_vectors(task), query.k, excluded=excluded, candidates=candidates)
    user, place = (found >= 0).nonzero(as_tuple=True)
    items: Tensor = found[user, place]
    values = scorer.pairs(person.repeated(user), items, lists.context(query.context)).T.numpy()
    fused = mix(mix.inputs(values, scorer.tasks, lists.schema))
    order = np.lexsort((items.numpy(), -fused, user.numpy()))  # of equal scores the lower index comes first
    counts = np.bincount(user.numpy(), minlength=len(users))
    return counts, items.numpy()[order], fused[order], values[:, order]


def _join(job: Job, target: Path) -> None:
    """Put the parts together, in their order, at once and without holding them in memory."""
    parts = [job.part(n) for n in range(-(-job.users.count // job.size))]
    try:
        found = pl.scan_parquet(parts, glob=False)
        write_with(target, lambda path: _sink(found, path, target.suffix))
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise StateError(f"{job.folder} holds a damaged part ({reason}); delete the folder and call again") from None


def _sink(found: pl.LazyFrame, path: Path, ending: str) -> None:
    if ending == ".csv":
        found.sink_csv(path)
    else:
        found.sink_parquet(path)
