"""Train, diagnose and compare multi-task recommenders: who gains from sharing a model, and who pays."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polytask.balance import Balance
    from polytask.bundle import Bundle
    from polytask.data import datasets
    from polytask.data.check import check
    from polytask.data.split import Split, split
    from polytask.data.stream import stream
    from polytask.data.synthetic import synthetic
    from polytask.data.table import Dataset, read_dataset
    from polytask.diagnose import diagnose
    from polytask.errors import PolytaskError
    from polytask.evaluate import Scores, evaluate, predict
    from polytask.nn.design import Design
    from polytask.nn.model import MultiTask
    from polytask.nn.models import make_model
    from polytask.report import report
    from polytask.run import Run, TrainConfig
    from polytask.schema import Field, Schema, Task
    from polytask.train import fit, fit_many
    from polytask.transfer import transfer

# Imported on first use, so that the command line answers without loading PyTorch.
_HOME = {
    "Balance": "polytask.balance",
    "Bundle": "polytask.bundle",
    "datasets": "polytask.data.datasets",
    "check": "polytask.data.check",
    "Split": "polytask.data.split",
    "split": "polytask.data.split",
    "stream": "polytask.data.stream",
    "synthetic": "polytask.data.synthetic",
    "Dataset": "polytask.data.table",
    "read_dataset": "polytask.data.table",
    "diagnose": "polytask.diagnose",
    "PolytaskError": "polytask.errors",
    "Scores": "polytask.evaluate",
    "evaluate": "polytask.evaluate",
    "predict": "polytask.evaluate",
    "Design": "polytask.nn.design",
    "MultiTask": "polytask.nn.model",
    "make_model": "polytask.nn.models",
    "report": "polytask.report",
    "Run": "polytask.run",
    "TrainConfig": "polytask.run",
    "Field": "polytask.schema",
    "Schema": "polytask.schema",
    "Task": "polytask.schema",
    "fit": "polytask.train",
    "fit_many": "polytask.train",
    "transfer": "polytask.transfer",
}

__all__ = [
    "Balance",
    "Bundle",
    "Dataset",
    "Design",
    "Field",
    "MultiTask",
    "PolytaskError",
    "Run",
    "Schema",
    "Scores",
    "Split",
    "Task",
    "TrainConfig",
    "check",
    "datasets",
    "diagnose",
    "evaluate",
    "fit",
    "fit_many",
    "make_model",
    "predict",
    "read_dataset",
    "report",
    "split",
    "stream",
    "synthetic",
    "transfer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'polytask' has no attribute '{name}'")
    module = import_module(_HOME[name])
    value = globals()[name] = module if name == "datasets" else getattr(module, name)
    return value


class _Package(ModuleType):
    """Keeps ``polytask.evaluate`` the function, although importing the module of that name would replace it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
