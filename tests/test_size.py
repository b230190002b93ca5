"""The size budget, docstrings on public names, and what the package must never contain."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import pytest

SOURCE = Path(__file__).parents[1] / "src"
FILES = sorted(SOURCE.rglob("*.py"))
TEMPLATES = sorted(f for f in SOURCE.rglob("*") if f.suffix in {".html", ".j2", ".js", ".css"})

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = Function | ast.ClassDef | ast.Module

# Searched in code without its comments and strings, so a docstring may say "no pickle".
FORBIDDEN_CODE = {
    "pickle": r"\b(c?[Pp]ickle|cloudpickle|dill|joblib|marshal|shelve)\b",
    "torch.load": r"(?<![\w.])torch\.load\(",
    "weights_only=False": r"weights_only=False",
    "eval": r"(?<![\w.])eval\(",
    "exec": r"(?<![\w.])exec\(",
    "a shell": r"shell=True|\bos\.system\(",
    "extractall": r"\bextractall\b",
    "allow_pickle": r"allow_pickle=True",
    "yaml.load": r"\byaml\.load\(",
    "Markup": r"\bMarkup\(",
    "squeeze without a dimension": r"\.squeeze\(\)|\btorch\.squeeze\([^,()]*\)",
}
FORBIDDEN_TEXT = {"the safe filter": r"\|\s*safe\b", "autoescape off": r"autoescape[ =]+[Ff]alse"}
WRITING_MODE = re.compile(r"[rbtU]*[wax+][rwaxbt+]*")


def tree(path: Path) -> ast.Module:
    """The parsed file."""
    return ast.parse(path.read_text("utf-8"))


def functions(module: ast.Module) -> list[Function]:
    """Every function, method and nested function."""
    return [n for n in ast.walk(module) if isinstance(n, Function)]


def length(function: Function) -> int:
    """Lines from ``def`` to the end, the docstring's not counted: documenting must cost nothing."""
    text = function.body[0] if ast.get_docstring(function) is not None else None
    documented = (text.end_lineno or 0) - text.lineno + 1 if text else 0
    return (function.end_lineno or 0) - function.lineno + 1 - documented


def arguments(function: Function) -> int:
    """Number of arguments, ``*args`` and ``**kwargs`` included, a leading self or cls not."""
    spec = function.args
    positional = [*spec.posonlyargs, *spec.args]
    own = bool(positional) and positional[0].arg in {"self", "cls"}
    found = len(positional) - own + len(spec.kwonlyargs) + bool(spec.vararg) + bool(spec.kwarg)
    command = any(ast.unparse(d).startswith("app.command(") for d in function.decorator_list)
    return 0 if command else found  # a command's arguments are its flags, each named by who calls it


def undocumented(node: Documented, name: str) -> Iterator[str]:
    """Public names in and under ``node`` that have no docstring; functions inside functions are private."""
    if ast.get_docstring(node) is None and not _overload(node):
        yield name
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            if isinstance(child, Function | ast.ClassDef) and not child.name.startswith("_"):
                yield from undocumented(child, f"{name}.{child.name}")


def _overload(node: Documented) -> bool:
    decorators = [] if isinstance(node, ast.Module) else [ast.unparse(d) for d in node.decorator_list]
    return any(d in {"overload", "typing.overload"} or d.endswith(".setter") for d in decorators)


def forbidden(source: str) -> list[str]:
    """What ``source`` must not contain, by name."""

    class Blank(ast.NodeTransformer):
        def visit_Constant(self, node: ast.Constant) -> ast.Constant:
            return ast.Constant("") if isinstance(node.value, str) else node

    code = ast.unparse(Blank().visit(ast.parse(source)))
    return [name for name, pattern in FORBIDDEN_CODE.items() if re.search(pattern, code)]


def writes(source: str) -> list[int]:
    """Lines that open a file for writing, or use pathlib's write_text and write_bytes."""
    calls = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call))
    return [call.lineno for call in calls if _writes(call)]


def _writes(call: ast.Call) -> bool:
    function = call.func
    if isinstance(function, ast.Attribute) and function.attr in {"write_text", "write_bytes"}:
        return ast.unparse(function.value).split(".")[-1] != "files"
    if (function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")) != "open":
        return False
    given = [*call.args, *(k.value for k in call.keywords if k.arg == "mode")]
    texts = [a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return any(WRITING_MODE.fullmatch(t) for t in texts)


def offenders(measure: Callable[[Function], int], most: int) -> list[str]:
    """Functions of the package whose measure is above ``most``."""
    every = [(path, f) for path in FILES for f in functions(tree(path))]
    return [f"{p.relative_to(SOURCE)}:{f.lineno} {f.name}: {measure(f)}" for p, f in every if measure(f) > most]


def test_files_are_short() -> None:
    lines = {p: len(p.read_text("utf-8").splitlines()) for p in FILES}
    assert [f"{p.relative_to(SOURCE)}: {n}" for p, n in lines.items() if n > 400] == []
    assert median(n for p, n in lines.items() if p.name != "__init__.py" or n > 10) <= 120


def test_functions_are_short() -> None:
    assert offenders(length, 60) == []
    assert median(length(f) for p in FILES for f in functions(tree(p))) <= 10


def test_functions_take_few_arguments() -> None:
    assert offenders(arguments, 7) == []


def test_public_names_have_a_docstring() -> None:
    missing = [name for p in FILES for name in undocumented(tree(p), str(p.relative_to(SOURCE)))]
    assert missing == []


def test_nothing_forbidden() -> None:
    found = [f"{p.relative_to(SOURCE)}: {name}" for p in FILES for name in forbidden(p.read_text("utf-8"))]
    for path in [*FILES, *TEMPLATES]:
        text = path.read_text("utf-8")
        found += [
            f"{path.relative_to(SOURCE)}: {n}" for n, pattern in FORBIDDEN_TEXT.items() if re.search(pattern, text)
        ]
    assert found == []


def test_only_files_py_writes() -> None:
    others = [p for p in FILES if p != SOURCE / "polytask" / "files.py"]
    assert [f"{p.relative_to(SOURCE)}:{line}" for p in others for line in writes(p.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "eval('1')",
        "exec(text)",
        "run(command, shell = True)",
        "archive.extractall(folder)",
        "np.load(path, allow_pickle=True)",
        "Markup(text)",
        "x.squeeze()",
        "torch.squeeze(x)",
    ],
)
def test_the_forbidden_is_seen(source: str) -> None:
    assert len(forbidden(source)) == 1


def test_the_like_of_it_is_allowed() -> None:
    assert forbidden('"""No pickle."""\nmodel.eval()\nx.squeeze(dim=1)\nsafetensors.torch.load(b)  # eval(1)') == []


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("open(p, 'w')", True),
        ("p.open('ab')", True),
        ("open(p, mode='r+')", True),
        ("p.write_text(t)", True),
        ("p.open('rb')", False),
        ("open(p)", False),
        ("files.write_text(p, t)", False),
        ("polytask.files.write_bytes(p, b)", False),
    ],
)
def test_writing_is_seen(source: str, seen: bool) -> None:
    assert bool(writes(source)) is seen


def test_measures() -> None:
    module = ast.parse(
        'class A:\n    def f(self, a, *, b=1, **c):\n        """One.\n\n        Two.\n        """\n        return a\n'
    )
    (function,) = functions(module)
    assert (length(function), arguments(function)) == (2, 3)
    assert list(undocumented(module, "m")) == ["m", "m.A"]
