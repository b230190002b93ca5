"""Census-Income (KDD) and Adult: income above 50,000 dollars, and never married.

R. Kohavi, Scaling Up the Accuracy of Naive-Bayes Classifiers, KDD 1996 (Adult); T. Lane and R. Kohavi, Census-Income
(KDD), UCI Machine Learning Repository, 2000. Both come from the surveys of the US Census Bureau. The two tasks are
the first group of Ma et al., Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts, KDD 2018.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from polytask.data.datasets.download import Remote, locate, verified
from polytask.data.datasets.rows import joined
from polytask.data.table import Dataset, build
from polytask.data.text import parse_text
from polytask.errors import DataError
from polytask.schema import Field, Schema, Task

_CONDITION = (
    "{name} is given by the UCI Machine Learning Repository under CC BY 4.0: name the source where you use it or pass "
    "it on."
)
_CENSUS_TEST = "b82952d217858365c8e597827e3e5468"
_CENSUS_ROWS = 199_523
_ADULT = {"adult.data": "5d7c39d7b8804f071cdd1f2a7c460872", "adult.test": "35238206dfdf7f1fe215bbb874adecdc"}
_CENSUS_SITE = Remote(
    "census",
    "https://archive.ics.uci.edu/static/public/117/census+income+kdd.zip",
    _CONDITION.format(name="Census-Income (KDD)"),
    contents=(("census-income.test", _CENSUS_TEST),),
    folders=("census", "census-income-kdd"),
)
_ADULT_SITE = Remote(
    "adult",
    "https://archive.ics.uci.edu/static/public/2/adult.zip",
    _CONDITION.format(name="Adult"),
    contents=tuple(_ADULT.items()),
)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Columns in order, those that are numbers or no input, and what the two answers look like."""

    columns: tuple[str, ...]
    numbers: tuple[str, ...]
    unread: tuple[str, ...]
    income: tuple[str, str]
    marital: str
    never: str

    def schema(self) -> Schema:
        """The inputs and the two tasks."""
        inputs = (c for c in self.columns if c not in self.unread)
        fields = tuple(Field(c, "number" if c in self.numbers else "category") for c in inputs)
        return Schema(tuple(Task(name, "binary", label=name) for name in ("income", "never_married")), fields)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_CENSUS_LAYOUT = _Layout(
    columns=_words(
        "age class_worker det_ind_code det_occ_code education wage_per_hour hs_college marital_stat major_ind_code "
        "major_occ_code race hisp_origin sex union_member unemp_reason full_or_part_emp capital_gains capital_losses "
        "stock_dividends tax_filer_stat region_prev_res state_prev_res det_hh_fam_stat det_hh_summ instance_weight "
        "mig_chg_msa mig_chg_reg mig_move_reg mig_same mig_prev_sunbelt num_emp fam_under_18 country_father "
        "country_mother country_self citizenship own_or_self vet_question vet_benefits weeks_worked year "
        "income_50k"
    ),
    numbers=_words("age wage_per_hour capital_gains capital_losses stock_dividends num_emp weeks_worked"),
    unread=("education", "marital_stat", "instance_weight", "income_50k"),
    income=("- 50000", "50000+"),
    marital="marital_stat",
    never="Never married",
)
_ADULT_LAYOUT = _Layout(
    columns=_words(
        "age workclass fnlwgt education education_num marital_status occupation relationship race sex capital_gain "
        "capital_loss hours_per_week native_country income_50k"
    ),
    numbers=("age", "capital_gain", "capital_loss", "hours_per_week"),
    unread=("fnlwgt", "education_num", "marital_status", "relationship", "income_50k"),
    income=("<=50K", ">50K"),
    marital="marital_status",
    never="Never-married",
)


def census(folder: str | Path | None = None, download: bool = True) -> Dataset:
    """199,523 train and 99,762 official test rows; income is positive in 6.2 % and never_married in 43 %.

    38 inputs: all but education and marital status, as in the MMoE paper, and but the instance weight, which is the
    number of people a row stands for and says nothing of the person. As in the paper the household fields stay,
    although some of their values hold "never married": never_married is an easy task. Rows that repeat another
    (883 in test) are people with equal answers, so they stay. ``?`` is a missing value, "Not in universe" is a value.

    Where the train part is absent, the test part alone is read, and the name of the data set says so: what is
    measured on a split of it cannot be compared with published results.
    """
    archive = locate(_CENSUS_SITE, ("census-income.test",), folder, download)
    content = verified(archive, "census-income.test", _CENSUS_TEST, _CENSUS_SITE.url)
    test = _part(content, "census-income.test", _CENSUS_LAYOUT)
    if not archive.has("census-income.data"):
        return replace(test, name="census (official test part alone, not comparable with published results)")
    train = _part(archive.read("census-income.data"), "census-income.data", _CENSUS_LAYOUT)
    if train.rejects.read != _CENSUS_ROWS:
        raise DataError(
            f"census-income.data in {archive.path} has {train.rejects.read:,} rows, the official one {_CENSUS_ROWS:,}; "
            f"remove it, or get {_CENSUS_SITE.url}"
        )
    return joined((train, test), "census", (False, True))


def adult(folder: str | Path | None = None, download: bool = True) -> Dataset:
    """32,561 train and 16,281 official test rows; income is positive in 24 % and never_married in 33 %.

    10 inputs. Left out are marital status, which is the answer of never_married, and relationship, which all but
    spells it out (husband, wife, own child); education_num, which is education again, as a number; and fnlwgt,
    the survey's weight of the row. ``?`` is a missing value.
    """
    archive = locate(_ADULT_SITE, tuple(_ADULT), folder, download)
    contents = ((name, verified(archive, name, md5, _ADULT_SITE.url)) for name, md5 in _ADULT.items())
    train, test = (_part(content, name, _ADULT_LAYOUT) for name, content in contents)
    return joined((train, test), "adult", (False, True))


def _part(content: bytes, source: str, layout: _Layout) -> Dataset:
    """One file. The comment line and the dot after the answer, which some have, are no data."""
    if content.startswith(b"|"):
        content = content[content.index(b"\n") :]
    raw = parse_text(content, source, ",", list(layout.columns), quoted=False)
    text = pl.all().str.strip_chars()
    frame = raw.frame.select(pl.when(text != "?").then(text).name.keep())
    answers = dict(zip(layout.income, ("0", "1"), strict=True))
    frame = frame.with_columns(
        income=pl.col("income_50k").str.strip_suffix(".").replace(answers),
        never_married=(pl.col(layout.marital) == layout.never).cast(pl.Int8),
    )
    return build(replace(raw, frame=frame), layout.schema(), users=None, items=None, name=source)
