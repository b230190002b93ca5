"""Data sets by name, from disk or their official address, and a generated one."""

from collections.abc import Callable
from pathlib import Path

from polytask.data.datasets.alibaba import ali_ccp, aliexpress
from polytask.data.datasets.kuaishou import kuairand
from polytask.data.datasets.movielens import movielens_1m, movielens_100k, movielens_latest_small
from polytask.data.datasets.uci import adult, census
from polytask.data.datasets.user_behavior import taobao
from polytask.data.synthetic import synthetic
from polytask.data.synthetic_regression import synthetic_regression
from polytask.data.table import Dataset
from polytask.errors import ConfigError, did_you_mean


def _synthetic(folder: str | Path | None = None, download: bool = True) -> Dataset:
    return synthetic()


def _synthetic_regression(folder: str | Path | None = None, download: bool = True) -> Dataset:
    return synthetic_regression()


DATASETS: dict[str, Callable[[str | Path | None, bool], Dataset]] = {
    "adult": adult,
    "ali-ccp": ali_ccp,
    "aliexpress": aliexpress,
    "census": census,
    "kuairand": kuairand,
    "movielens-100k": movielens_100k,
    "movielens-1m": movielens_1m,
    "movielens-latest-small": movielens_latest_small,
    "synthetic": _synthetic,
    "synthetic-regression": _synthetic_regression,
    "taobao": taobao,
}


def load(name: str, folder: str | Path | None = None, *, download: bool = True) -> Dataset:
    """The data set called ``name``, from ``folder`` (a folder or an archive), ``$POLYTASK_DATA``, the cache or the net.

    A generated data set reads no folder. An unknown name is a :class:`ConfigError`; data that are neither on disk
    nor to be had are an :class:`polytask.data.datasets.download.Offline`.
    """
    if name not in DATASETS:
        raise ConfigError(did_you_mean("data set", name, DATASETS))
    return DATASETS[name](folder, download)
