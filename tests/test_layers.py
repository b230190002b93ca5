"""The layer rule: a module imports only from a lower number, and beside itself only inside its folder or line."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src"
PACKAGE = "polytask"

# Number -> lines of that number. A name is a file or folder of src/polytask; names on one line may import each other.
LAYERS: dict[int, tuple[str, ...]] = {
    -1: ("errors",),
    0: ("files", "schema", "intact", "kernels"),
    1: ("loss", "metrics", "rng", "schedule"),
    2: ("data", "nn", "balance", "calibration", "pareto"),
    3: ("parallel", "checkpoint", "evaluate predictions", "gates", "affinity", "selection"),
    4: (
        "train replicas run record gradients gramian balancing probe steps updates optimizers compiling planning scale",
        "bundle recommend export",
    ),
    5: ("diagnose transfer significance bootstrap evidence causes", "grouping"),
    6: ("compare sweep",),
    7: ("tune", "report", "serve", "validation"),
    8: ("config revive", PACKAGE),  # the package itself: its public names are for users and the command line
    9: ("cli console",),
}
FREE = {"polytask", "polytask.__main__", "polytask.experiments"}  # may import anything, as polytask.testing may

PLACE = {name: (number, line) for number, lines in LAYERS.items() for line in lines for name in line.split()}

# What the training loop must not name, and where the names are kept.
OPTIONS = {
    "polytask.nn.bodies": "BODIES",
    "polytask.balance": "BALANCERS",
    "polytask.loss": "LOSSES",
    "polytask.data.datasets": "DATASETS",
}


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name -> file, for every module of the package."""
    files = sorted((root / PACKAGE).rglob("*.py"))
    return {".".join(f.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def imported(name: str, path: Path, known: Mapping[str, Path], inner: bool = True) -> set[str]:
    """Modules of the package that ``name`` imports; without ``inner`` only those imported as it is loaded."""
    found: set[str] = set()
    for node in _nodes(ast.parse(path.read_text("utf-8")), inner):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _base(name, path, node)
            found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names}
    return {n for n in found if n.split(".")[0] == PACKAGE} - {name}


def _nodes(tree: ast.AST, inner: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        yield child
        if inner or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _nodes(child, inner)


def _base(name: str, path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    return ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])


def top(name: str) -> str:
    """The part of a dotted name that stands in the table."""
    return name.split(".")[1] if "." in name else name


def free(name: str) -> bool:
    """Whether a module stands beside the layers."""
    return name in FREE or top(name) == "testing"


def breaches(known: Mapping[str, Path]) -> list[str]:
    """One line per import that goes up or sideways, and per module without a place."""
    found = [
        f"{name}: '{top(name)}' has no layer; add it to LAYERS in tests/test_layers.py"
        for name in known
        if not free(name) and top(name) not in PLACE
    ]
    for name, path in known.items():
        if free(name) or top(name) not in PLACE:
            continue
        number, line = PLACE[top(name)]
        for target in sorted(imported(name, path, known)):
            other, beside = PLACE.get(top(target), (99, ""))
            if other >= number and beside != line:
                found.append(f"{name} (layer {number}) imports {target} (layer {other})")
    return found


def cycle(known: Mapping[str, Path]) -> list[str]:
    """The modules of one import cycle, or nothing."""
    graph = {name: imported(name, path, known, inner=False) for name, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def named_options(source: str, options: set[str]) -> set[str]:
    """String constants of ``source`` that are an option's name."""
    constants = (n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant))
    return {c for c in constants if isinstance(c, str) and c in options}


def known_options() -> set[str]:
    """Keys of every dict of OPTIONS whose module exists."""
    present = modules()
    dicts = [getattr(importlib.import_module(m), name) for m, name in OPTIONS.items() if m in present]
    return {key for options in dicts for key in options}


def test_modules_import_only_from_lower_layers() -> None:
    assert breaches(modules()) == []


def test_no_import_cycle() -> None:
    assert cycle(modules()) == []


@pytest.mark.parametrize("name", ["recommend.recommender", "bundle.making", "export.folder"])
def test_a_module_can_be_the_first_to_be_imported(name: str) -> None:
    subprocess.run([sys.executable, "-c", f"import {PACKAGE}.{name}"], check=True, timeout=120)


@pytest.mark.parametrize("name", ["train", "replicas"])
def test_training_names_no_body_balancer_loss_or_data_set(name: str) -> None:
    path = ROOT / PACKAGE / f"{name}.py"
    if not path.exists():
        pytest.skip(f"there is no {name}.py")
    assert named_options(path.read_text("utf-8"), known_options()) == set()


def write(root: Path, **sources: str) -> dict[str, Path]:
    """A small package under ``root``; ``__`` in a name stands for a folder."""
    for name, source in sources.items():
        path = root / PACKAGE / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, "utf-8")
    return modules(root)


@pytest.mark.parametrize(
    "source",
    [
        "from polytask import train",
        "import polytask.train",
        "from polytask.train import fit",
        "from . import train",
        "from .train import fit",
        "def f():\n    from polytask.train import fit",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from polytask.train import fit",
    ],
)
def test_every_form_of_an_upward_import_is_seen(tmp_path: Path, source: str) -> None:
    known = write(tmp_path, train="", loss=source)
    assert breaches(known) == ["polytask.loss (layer 1) imports polytask.train (layer 4)"]


def test_one_line_and_one_folder_may_import_each_other_and_neighbors_may_not(tmp_path: Path) -> None:
    allowed = {"train": "import polytask.replicas", "replicas": "", "nn__a": "from polytask.nn import b", "nn__b": ""}
    assert breaches(write(tmp_path / "allowed", **allowed)) == []
    known = write(tmp_path / "not", data__a="from ..nn import b", nn__b="", strange="")
    assert breaches(known) == [
        "polytask.strange: 'strange' has no layer; add it to LAYERS in tests/test_layers.py",
        "polytask.data.a (layer 2) imports polytask.nn.b (layer 2)",
    ]


def test_a_cycle_is_seen_and_an_import_inside_a_function_makes_none(tmp_path: Path) -> None:
    known = write(tmp_path, nn__a="from polytask.nn import b", nn__b="from polytask.nn.a import x")
    assert set(cycle(known)) == {"polytask.nn.a", "polytask.nn.b"}
    assert cycle(write(tmp_path, nn__b="def f():\n    from polytask.nn.a import x")) == []


def test_named_options_are_whole_strings() -> None:
    assert named_options('"""About mse."""\nx = {"mse": 1, "mse is": 2}', {"mse", "bpr"}) == {"mse"}
