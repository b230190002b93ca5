"""Ids of any characters come back byte for byte: from a table through training and the bundle into every answer."""

import csv
import unicodedata
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shipped import DOT, FIELDS, STARS, cut, finished, shipped

from polytask.bundle import Bundle
from polytask.data.split import split
from polytask.data.table import Dataset, read_dataset
from polytask.errors import DataError, PolytaskError
from polytask.gradients import Programs
from polytask.nn.model import MultiTask
from polytask.run import TrainConfig
from polytask.schema import Field, Schema, Task
from polytask.train import fit

SCHEMA = Schema(
    (Task("watch", "ranking", head="dot"), Task("stars", "regression", label="stars")),
    (Field("kind", side="item"),),
    user="user",
    item="item",
)
COUNT = 2200
KNOWN = [
    *(
        "007",
        "7",
        "7.0",
        "1e5",
        "100000",
        "nan",
        "NaN",
        "null",
        "NULL",
        "None",
        "NA",
        "-0",
        "inf",
        "true",
        "0x1F",
        "1_000",
    ),
    *(
        " x",
        "x ",
        "x",
        "\tx",
        "x\n",
        "x\r\n",
        "\n",
        " ",
        '"',
        '""',
        "'",
        ",",
        ";",
        "a,b",
        'a"b',
        "\\",
        "\\N",
        "#",
        "=1+1",
    ),
    *(
        "e\u0301",
        "\xe9",
        "\u212b",
        "\xc5",
        "A\u030a",
        "\ufeff",
        "\ufeffx",
        "\u200b",
        "a\u200bb",
        "\u202egnp",
        "\u05d0\u05d1",
    ),
    *("\x00", "a\x00b", "\x1b[31mred", "\x7f", "\x85", "\u2028", "\ufffd", "\U0001f468\u200d\U0001f469", "\U0010ffff"),
    *(
        "<script>alert(1)</script>",
        "../../etc/passwd",
        "{{7*7}}",
        "%s",
        "${x}",
        "[bold]b[/bold]",
        "'; DROP TABLE items; --",
    ),
    *(
        "x" * 1000,
        "y" * 100_000,
        "\u0130",
        "i\u0307",
        "\xdf",
        "SS",
        "ss",
        "\ufb01",
        "fi",
        "a\u0308\u0323",
        "a\u0323\u0308",
    ),
]


def ids() -> list[str]:
    """More than 2,000 different ids: known trouble, and what Hypothesis thinks of, also in two normal forms."""
    found = dict.fromkeys(KNOWN)
    anything = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
    marks = st.text(
        st.sampled_from("ae\u0301\u0308\u0323\u200b\u200f\u202e\xe9\xe4\u0627\u05d0\U0001f469"), min_size=1, max_size=6
    )
    controls = st.text(st.characters(max_codepoint=0xA0), min_size=1, max_size=6)
    numbers = st.one_of(st.integers().map(str), st.floats().map(str), st.integers(0, 999).map("{:05}".format))
    edge = st.sampled_from(["", " ", "\t", "\n", "\u3000"])
    blank = st.tuples(edge, anything, edge).map("".join)

    @settings(max_examples=2000, database=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(anything, marks, controls, numbers, blank))
    def collect(text: str) -> None:
        found.update(dict.fromkeys([text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))]))

    collect()
    return [text for text in found if text][:COUNT]


@pytest.fixture(autouse=True)
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps in their plain form: tracing takes longer than these trainings, and is tested elsewhere."""
    monkeypatch.setattr("polytask.train.Programs", partial(Programs, trace=False))


@pytest.fixture(scope="module")
def hostile() -> list[str]:
    found = ids()
    assert len(found) == COUNT
    return found


def rows(names: Sequence[str]) -> list[tuple[str, str, str]]:
    """Every name as a user of three items, and as an item of three users."""
    count = len(names)
    return [
        (names[k], names[(k * 7 + 31 * j + 1) % count], str(1 + (k + j) % 5)) for k in range(count) for j in range(3)
    ]


def written(names: Sequence[str], folder: Path, kind: str) -> Dataset:
    """The interactions and the items' table, whose texts are the ids again, read from files."""
    log, things = folder / f"log.{kind}", folder / f"items.{kind}"
    if kind == "parquet":
        pl.DataFrame(rows(names), schema=["user", "item", "stars"], orient="row").write_parquet(log)
        pl.DataFrame({"item": names, "kind": names}).write_parquet(things)
    else:
        for path, head, lines in (
            (log, ("user", "item", "stars"), rows(names)),
            (things, ("item", "kind"), zip(names, names, strict=True)),
        ):
            with path.open("w", encoding="utf-8", newline="") as stream:
                csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([head, *lines])
    return read_dataset(log, SCHEMA, items=things)


def trained(data: Dataset, folder: Path) -> Bundle:
    parts = split(data, "random", valid=0, test=0)
    model = MultiTask.build(parts.train, dim=4, tower=(4,))
    run = fit(model, parts.train, config=TrainConfig(epochs=1, batch=4096, probes=False))
    return Bundle.load(Bundle.save(folder, run))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_every_id_comes_back_byte_for_byte(hostile: list[str], tmp_path: Path, kind: str) -> None:
    bundle = trained(written(hostile, tmp_path, kind), tmp_path / "bundle")
    encoder, pairs = bundle.contents.encoder, rows(hostile)
    assert sorted(encoder.vocabularies["user"]) == sorted(hostile)
    assert encoder.vocabularies["item"].to_list() == hostile
    frame = pl.DataFrame(pairs, schema=["user", "item", "stars"], orient="row")
    scored = bundle.score(frame.select("user", "item"))
    assert scored.select("user", "item").rows() == [p[:2] for p in pairs]
    asked = hostile if kind == "csv" else hostile[:200]
    lists = bundle.recommend(users=asked, k=1)
    assert lists["user"].to_list() == asked and set(lists["item"]) <= set(hostile)
    had = frame.group_by("user", maintain_order=True).agg("item")
    history = {user: set(items) for user, items in had.iter_rows()}
    for name in asked:
        assert set(bundle.history(name)["item"]) == history[name]
        assert encoder.raw("item", bundle.item(name)) == name
    for name in [*KNOWN, *asked[::10]]:
        assert bundle.search("item", name, 1).rows() == [(name, name)]
        assert bundle.search("user", name, 1).rows() == [(name,)]
    for name in asked[::40]:
        assert name not in bundle.similar(name, 3)["item"].to_list()
        assert bundle.recommend(name, 1, candidates=[asked[0]], exclude_seen=False)["item"].to_list() == [asked[0]]


def test_two_normal_forms_of_a_name_are_two_names(tmp_path: Path) -> None:
    names = ["e\u0301", "\xe9", "\u212b", "\xc5", "A\u030a", *(f"u{k}" for k in range(20))]
    bundle = trained(written(names, tmp_path, "csv"), tmp_path / "bundle")
    at = [bundle.item(n) for n in names]
    assert len(set(at)) == len(names) and 0 not in at
    with pytest.raises(DataError, match="is unknown"):
        bundle.item("a\u030a")


SURROGATES = ["\ud800", "a\udfffb", "\ud83d", "\ude00\ud83d"]


@pytest.mark.parametrize("half", SURROGATES)
def test_half_a_character_is_refused_in_one_line_wherever_it_may_come_in(half: str, tmp_path: Path) -> None:
    bundle = shipped(finished(cut((DOT, STARS), *FIELDS)), tmp_path / "bundle")
    asks = [
        lambda: bundle.recommend(half),
        lambda: bundle.recommend(users=["u1", half]),
        lambda: bundle.recommend("u1", candidates=["i1", half]),
        lambda: bundle.recommend("u1", exclude=[half]),
        lambda: bundle.recommend("u1", history=[half]),
        lambda: bundle.recommend("u1", context={"device": half}),
        lambda: bundle.recommend("u1", context={half: "a"}),
        lambda: bundle.recommend("u1", caps={half: 1}),
        lambda: bundle.recommend("u1", mix=half),
        lambda: bundle.recommend("u1", mix={half: 1.0}),
        lambda: bundle.similar(half),
        lambda: bundle.explain(half, "i1"),
        lambda: bundle.explain("u1", half),
        lambda: bundle.history(half),
        lambda: bundle.search("item", half),
        lambda: bundle.search(half, "x"),
        lambda: read_dataset(pd.DataFrame({"user": [half], "item": ["i"], "stars": [1]}, dtype=object), SCHEMA),
    ]
    for number, ask in enumerate(asks):
        with pytest.raises(PolytaskError) as caught:
            ask()
        text = str(caught.value)
        assert "\n" not in text and text.encode("utf-8"), number


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b'user,item,stars\n"\xed\xa0\x80",i,1\nu,i,2\n')
    with pytest.raises(DataError) as caught:
        read_dataset(tmp_path / "log.csv", SCHEMA)
    assert "\n" not in str(caught.value)


def test_what_is_unknown_is_told_in_few_letters_that_a_terminal_does_not_obey(tmp_path: Path) -> None:
    bundle = shipped(finished(cut((DOT, STARS))), tmp_path / "bundle")
    for ask in (bundle.similar, bundle.history):
        for name in ("\x1b[31m", "a\nb", "x" * 10**6):
            with pytest.raises(DataError, match="is unknown") as caught:
                ask(name)
            assert str(caught.value).isprintable() and len(str(caught.value)) < 500
