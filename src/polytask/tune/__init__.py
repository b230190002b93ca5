"""A search over settings on validation data, and the paired comparison of its best points with single-task models."""

from polytask.tune.search import Search, Tuning, tune
from polytask.tune.space import TuneConfig

__all__ = ["Search", "TuneConfig", "Tuning", "tune"]
