import numpy as np
import polars as pl
import pytest

from polytask.data.lookup import Lookup, is_whole
from polytask.data.summary import Counts, Moments

ENDS = [-(2**63), 2**63 - 1]


@pytest.mark.parametrize(
    "known",
    [["3", "10", "-2"], ["07", "7", "+8", " 9", "x", "7.0", ""], [str(e) for e in ENDS], ["5", str(10**15)], []],
    ids=["close", "not plain", "extremes", "far apart", "none"],
)
def test_numbers_are_found_where_their_text_is(known: list[str]) -> None:
    values = [3, 10, -2, -3, 7, 8, 9, 5, 0, 10**15, 10**15 + 1, *ENDS, None]
    places = {value: place for place, value in enumerate(known, 1)}
    found = Lookup.of(pl.Series(known, dtype=pl.String)).places_of(pl.Series(values, dtype=pl.Int64))
    assert found.tolist() == [places.get(str(v), 0) for v in values]


def test_a_large_vocabulary_is_a_table_where_it_is_dense_and_none_where_it_is_not() -> None:
    draw = np.random.default_rng(0)
    for width, dense in ((10**5, True), (10**12, False)):
        known = draw.choice(width, 5000) if dense else draw.integers(0, width, 5000)
        vocabulary = pl.Series(np.unique(known)).cast(pl.String).sort()
        lookup = Lookup.of(vocabulary)
        assert (lookup.table is not None) is dense
        assert np.array_equal(lookup.places_of(vocabulary.cast(pl.Int64)), np.arange(1, len(vocabulary) + 1))


@pytest.mark.parametrize(
    ("kind", "whole"), [(pl.Int8, True), (pl.UInt32, True), (pl.UInt64, False), (pl.String, False)]
)
def test_numbers_that_an_int64_may_not_hold_are_text(kind: pl.DataType, whole: bool) -> None:
    assert is_whole(kind) is whole


@pytest.mark.parametrize("scale", [1, 10**14], ids=["dense", "sparse"])
def test_counts_of_blocks_add_up(scale: int) -> None:
    values = np.random.default_rng(1).integers(-50, 50, 4000) * scale
    counts = Counts()
    for block in np.split(values, 40):
        counts.add(pl.Series(block))
    found = counts.table().sort("value")
    own, rows = np.unique(values, return_counts=True)
    assert found["value"].to_list() == own.tolist() and found["rows"].to_list() == rows.tolist()


def test_counts_hold_no_more_than_the_span_of_the_values() -> None:
    counts = Counts()
    counts.add(pl.Series([10_000_002, 10_000_000, 10_000_002]))
    assert len(counts.dense) == 3
    assert counts.table().rows() == [(10_000_000, 1), (10_000_002, 2)]


def test_moments_of_blocks_are_those_of_all() -> None:
    values = np.random.default_rng(2).normal(1e6, 3, 5000)
    moments = Moments()
    for block in np.split(values, [0, 1, 7, 3000]):
        moments.add(block)
    assert moments.scale() == pytest.approx((values.mean(), values.std(ddof=1)), rel=1e-12)
    assert Moments().scale() == (0.0, 1.0)
