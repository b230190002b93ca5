"""Users and items are found by what somebody types."""

import time

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shipped import DOT, FIELDS, STARS, cut, finished, shipped

from polytask.bundle import Bundle
from polytask.bundle.search import Finder
from polytask.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return shipped(finished(cut((DOT, STARS), *FIELDS)), tmp_path_factory.mktemp("found") / "bundle")


def test_the_id_itself_is_first_then_ids_that_start_so_then_the_popular(bundle: Bundle) -> None:
    popularity = dict(
        zip(bundle.contents.encoder.vocabularies["item"], bundle.contents.popularity.tolist()[1:], strict=True)
    )
    found = bundle.search("item", "i2", 100)["item"].to_list()
    longer = [i for i in popularity if i.startswith("i2") and i != "i2"]
    assert found == ["i2", *sorted(longer, key=lambda i: -popularity[i])]
    assert bundle.search("item", "I2", 1)["item"].to_list() == ["i2"]


def test_a_row_has_all_columns_of_the_table_as_they_were_read_the_id_first(bundle: Bundle) -> None:
    found = bundle.search("item", "ROSE of 10")
    assert found.columns == ["item", "genre", "brand", "price", "title"]
    assert found.rows() == [("i10", "x|y", "b1", 10.0, "The Rose of 10")]


def test_capital_letters_of_any_script_do_not_matter(bundle: Bundle) -> None:
    assert set(bundle.search("item", "İSTANBUL OF 2")["item"]) == {"i2", "i22"}
    assert set(bundle.search("item", "i̇stanbul OF 2")["item"]) == {"i2", "i22"}
    assert set(bundle.search("item", "STRASSE")["item"]) == set()
    assert len(bundle.search("item", "Straße")) == 5


def test_without_text_the_most_popular_items_and_the_first_users(bundle: Bundle) -> None:
    counts = bundle.contents.popularity[1:]
    found = bundle.search("item", limit=5)["item"].to_list()
    expected = counts.argsort(descending=True, stable=True)[:5]
    assert found == [bundle.contents.encoder.raw("item", int(k) + 1) for k in expected]
    assert bundle.search("user", "", 3)["user"].to_list() == ["u0", "u1", "u2"]


def test_texts_of_other_columns_are_found_but_never_across_two(bundle: Bundle) -> None:
    assert set(bundle.search("user", "oslo")["user"]) == {f"u{k}" for k in range(0, 15, 3)}
    assert bundle.search("user", "u0oslo").is_empty() and bundle.search("user", "u0 oslo").is_empty()


@pytest.mark.parametrize("text", ["[", "(", "\\", ".*", "%", "\x00", "'; DROP TABLE items; --", "x" * 100_000])
def test_no_text_is_a_pattern(bundle: Bundle, text: str) -> None:
    assert bundle.search("item", text).is_empty()


def test_a_long_text_is_the_beginning_of_an_id_and_takes_no_time() -> None:
    ids = ["x" * 100_000, "X" * 50_000, "a" + "x" * 300]
    finder = Finder.of(pl.Series("id", ids), None, None)
    began = time.process_time()
    assert finder.find("x" * 50_000, 5)["id"].to_list() == [ids[1], ids[0]]
    assert finder.find("x" * 300, 5)["id"].to_list() == ids[:2]
    assert time.process_time() - began < 0.1


def test_what_cannot_be_asked_is_told(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"side 'itme' is unknown\. Did you mean 'item'"):
        bundle.search("itme", "x")
    for limit in (0, 101, True, 1.5):
        with pytest.raises(ConfigError, match="must be a whole number from 1 to 100"):
            bundle.search("item", "x", limit)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="lone surrogate"):
        bundle.search("item", "\ud800")


@given(st.lists(st.text(max_size=6), unique=True, min_size=1, max_size=20), st.text(max_size=3))
def test_what_is_found_holds_the_text_and_all_that_holds_it_is_found(ids: list[str], text: str) -> None:
    finder = Finder.of(pl.Series("id", ids), None, None)
    found = finder.find(text, 100)["id"].to_list()
    small = pl.Series([text, *ids]).str.to_lowercase().to_list()
    expected = [i for i, s in zip(ids, small[1:], strict=True) if small[0] in s]
    assert sorted(found) == sorted(expected)
    if text in ids and text:
        assert found[0] == text


def test_ten_thousand_rows_are_searched_in_five_milliseconds() -> None:
    draw = np.random.default_rng(0)
    words = np.array(["alpha", "beta", "gamma", "delta", "Epsilon"])
    table = pl.DataFrame({"id": [f"{k:05}" for k in range(10_000)]}).with_columns(
        pl.Series(f"c{n}", [" ".join(words[draw.integers(0, 5, 5)]) for _ in range(10_000)]) for n in range(3)
    )
    finder = Finder.of(table["id"], table, draw.integers(0, 100, 10_000))
    for text in ("epsilon", "12", "delta alpha", "nothing of this", ""):
        seconds = []
        for _ in range(7):  # the best of some, as others use the processor, too
            began = time.perf_counter()
            finder.find(text, 20)
            seconds.append(time.perf_counter() - began)
        assert min(seconds) < 0.005
