"""polytask on Parquet files: streamed, or read whole."""

import time

import torch
from case import Case, Found, SkippedError
from timing import Clock, Memory, stopwatch

import polytask as pt
from peers.ours import train_config
from polytask.data.batch import Feed
from polytask.nn.model import MultiTask
from polytask.record import Recorder
from polytask.train import fit_many

SCHEMA = pt.Schema(
    tasks=(pt.Task("click", "binary", label="click"), pt.Task("like", "binary", label="like")),
    fields=(pt.Field("hour"), pt.Field("device"), pt.Field("price", "number", scale="log")),
    user="user",
    item="item",
)


def _split(case: Case, rows: int, whole: bool) -> pt.Split:
    if case.device != "cpu":
        raise SkippedError(f"not measured on {case.device}")
    if not hasattr(pt, "stream"):
        raise SkippedError("this polytask has no pt.stream")
    path = case.folder / f"rows{rows}.parquet"
    if whole:
        return pt.split(pt.read_dataset(path, SCHEMA), valid=0.0, test=0.0)
    return pt.stream(path, SCHEMA).split(valid=0.0, test=0.0)


def load(case: Case) -> Found:
    """Seconds to the first batch, and until every row has been in one."""
    (rows,), memory = case.size["rows"], Memory()
    with stopwatch() as seconds:
        part = _split(case, rows, case.options.get("whole", False)).train
        first, seen = 0.0, 0
        for batch in Feed([part], [0], 4096, "uniform").epoch(1):
            first = first or seconds()
            seen += batch.ids.shape[1]
        found = {"first_batch": first, "all_rows": seconds()}
    assert seen == rows
    return found | {"added_memory": memory.over(10**9)["added_memory"]}


def grown(case: Case) -> Found:
    """Seconds of training per million rows, streamed."""
    rows, epochs = case.options["rows"], case.options["epochs"]
    started = time.perf_counter()
    part = _split(case, rows, whole=False).train
    fitted, memory, clock = time.perf_counter() - started, Memory(), Clock()
    model = MultiTask.build(part, body="shared_bottom", dim=16, tower=(32,), options={"layers": [64]})
    wanted = {"epochs": epochs, "evaluate_every": epochs, "batch": case.size["batch"], "probes": False}
    fit_many([model], part, config=train_config(wanted), recorder=Recorder(progress=clock))
    seconds = 1e6 / case.size["batch"] / clock.steps_per_second(0)
    tables = sum(4 * table.weight.numel() for table in model.tables if isinstance(table.weight, torch.Tensor))
    found = {"seconds_per_million": seconds, "epoch": seconds * rows / 1e6, "fitted": fitted}
    return found | {"added_memory": memory.over(tables)["added_memory"]}
