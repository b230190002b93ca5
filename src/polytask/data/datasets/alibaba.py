"""AliExpress and Ali-CCP: shown, clicked, bought. Both need an account, so they are read from a folder alone.

P. Li et al., Improving Multi-Scenario Learning to Rank in E-commerce by Exploiting Task Relationships in the Label
Space, CIKM 2020 (AliExpress); X. Ma et al., Entire Space Multi-Task Model, SIGIR 2018 (Ali-CCP).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from polytask.data.datasets.download import Remote, locate
from polytask.data.datasets.rows import joined, refuse
from polytask.data.table import Dataset, build
from polytask.data.text import Raw, parse_text
from polytask.schema import Field, Schema, Task

_CONDITION = "Condition: research, not commercial (CC BY-NC-SA 4.0)."
_ALIEXPRESS = Remote(
    "aliexpress",
    "https://tianchi.aliyun.com/dataset/74690",
    _CONDITION,
    folders=("aliexpress", "tiny-samples"),
    account=True,
)
_ALI_CCP = Remote(
    "ali-ccp",
    "https://tianchi.aliyun.com/dataset/408",
    _CONDITION,
    folders=("ali-ccp", "tiny-samples"),
    account=True,
)
_Files = tuple[str, ...]
_SAMPLE = "{name} (sample, for trying out alone)"


def aliexpress(folder: str | Path | None = None, download: bool = True) -> Dataset:
    """``train.csv`` and ``test.csv`` of one country, in the columns of MTReclib: click, and conversion given click.

    79 inputs: ``categorical_1``.. and ``numerical_1``.., which the publisher left without a meaning. ``search_id``
    numbers the search a row was shown for, so it is no input and no user. A conversion without a click is a fault
    of the log; such rows are rejected. Nothing is downloaded, as an account is needed.
    """
    plain = ("train.csv", "test.csv")
    sample = ("aliexpress_train_sample.csv", "aliexpress_test_sample.csv")
    return _read(_ALIEXPRESS, folder, download, (plain, sample), _aliexpress_schema)


def ali_ccp(folder: str | Path | None = None, download: bool = True) -> Dataset:
    """``ali_ccp_train.csv``, ``_val`` and ``_test``, one row per impression: click, and purchase given click.

    Columns are called by the publisher's field numbers: 101 is the user, 205 the item; ``D...`` are numbers, all
    others categories of the row. The val part counts as train; ``official`` marks the test part. A purchase without
    a click is a fault of the log; such rows are rejected. Nothing is downloaded, as an account is needed.
    """
    plain, sample = (tuple(f"ali_ccp_{part}{end}.csv" for part in ("train", "val", "test")) for end in ("", "_sample"))
    return _read(_ALI_CCP, folder, download, (plain, sample), _ali_ccp_schema)


def _read(
    remote: Remote,
    folder: str | Path | None,
    download: bool,
    layouts: tuple[_Files, _Files],
    schema_of: Callable[[Sequence[str]], Schema],
) -> Dataset:
    plain, sample = layouts
    archive = locate(remote, (plain[0], sample[0]), folder, download)
    files, name = (plain, remote.name) if archive.has(plain[0]) else (sample, _SAMPLE.format(name=remote.name))
    raws = [parse_text(archive.read(file), file, ",") for file in files]
    schema = schema_of(raws[0].frame.columns)
    parts = [build(_clicked(raw, schema), schema, users=None, items=None, name=raw.source) for raw in raws]
    return joined(parts, name, [file is files[-1] for file in files])


def _clicked(raw: Raw, schema: Schema) -> Raw:
    """``raw`` without the rows that answer the second task but not the first one, which it is given."""
    first, second = (str(task.label) for task in schema.tasks)
    if not {first, second} <= set(raw.frame.columns):
        return raw
    impossible = (raw.frame[first] == "0") & (raw.frame[second] == "1")
    return refuse(raw, impossible, second, f"stands beside {first} 0; only what was clicked can be bought")


def _aliexpress_schema(columns: Sequence[str]) -> Schema:
    numbers = {c: c.startswith("numerical_") for c in columns if c.startswith(("categorical_", "numerical_"))}
    return Schema(_tasks("conversion"), _fields(numbers))


def _ali_ccp_schema(columns: Sequence[str]) -> Schema:
    own = ("click", "purchase", "101", "205")
    numbers = {c: c.startswith("D") for c in columns if c not in own}
    return Schema(_tasks("purchase"), _fields(numbers), user="101", item="205")


def _tasks(bought: str) -> tuple[Task, Task]:
    return Task("click", "binary", label="click"), Task(bought, "binary", label=bought, given="click")


def _fields(numbers: dict[str, bool]) -> tuple[Field, ...]:
    return tuple(Field(column, "number" if number else "category") for column, number in numbers.items())
