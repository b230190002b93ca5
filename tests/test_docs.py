"""Every code block of README.md and docs/ is true: Python and commands are run, settings are checked.

The blocks of a page run in order, in one Python namespace and one empty folder. By the language of the fence:

* ``python``: run, warnings as errors.
* ``console``: lines that begin with ``$`` are commands. ``sh``: every line is one. A command that ends in ``# exit 2``
  must end with that code, any other with 0. ``polytask`` is run; ``make`` must name a target that exists. One that
  ends in ``&`` is left running until the end of the page.
* ``toml``: must parse, and where it has a ``[data]`` table, be a configuration the package accepts.
* ``text``, ``html``, ``json``, ``csv``: read, not run.

A file name after ``toml``, ``text``, ``json`` or ``csv`` writes the block to that file for the blocks that follow.
A page that holds ``<!-- needs: movielens-100k -->`` in its first lines is skipped where POLYTASK_DATA is unset.
"""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from polytask.balance import BALANCERS
from polytask.loss import LOSSES
from polytask.nn.blocks import BLOCKS
from polytask.nn.bodies import BODIES

ROOT = Path(__file__).parents[1]
PAGES = [p for p in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if p.exists()]

NEEDS_MOVIELENS = "<!-- needs: movielens-100k -->"
RUN = {"python", "console", "sh"}
READ = {"toml", "text", "html", "json", "csv"}
NOT_RUN = {"git", "pip", "cd", "tensorboard"}  # network, the reader's own folders, a server that does not end
FENCE = re.compile(r"(?P<indent> *)(?P<mark>`{3,}|~{3,}) *(?P<language>[^\s`]*) *(?P<info>[^`]*)$")
EXIT = re.compile(r"\s+# exit (\d+)$")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the rest of the fence line, its text, and the line of the fence."""

    language: str
    info: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    """Every fenced block of a page; one that is never closed is an error."""
    found, lines = [], enumerate(page.splitlines(), start=1)
    for number, line in lines:
        if not (fence := FENCE.match(line)):
            continue
        body: list[str] = []
        for _, inner in lines:
            if re.fullmatch(rf" *{fence['mark'][0]}{{{len(fence['mark'])},}} *", inner):
                break
            body.append(inner.removeprefix(fence["indent"]))
        else:
            raise ValueError(f"line {number}: the block is never closed")
        found.append(Block(fence["language"], fence["info"].strip(), "\n".join(body) + "\n", number))
    return found


def problem(block: Block) -> str | None:
    """Why a block cannot be tested as it is written, if so."""
    if block.language not in RUN | READ:
        return f"language '{block.language}' is not one of {', '.join(sorted(RUN | READ))}"
    if block.language in RUN and block.info:
        return f"a {block.language} block is always run; '{block.info}' has no meaning there"
    return None


def commands(block: Block) -> list[tuple[list[str], int]]:
    """The commands of a console or sh block, each as words with the exit code it must have."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line for line in lines if line.startswith("$ ")]
    found: list[tuple[list[str], int]] = []
    for line in lines:
        code = int(match[1]) if (match := EXIT.search(line)) else 0
        for part in line.removeprefix("$ ").split("&&"):
            if words := shlex.split(part, comments=True):
                found.append((words, code))
    return found


def targets() -> set[str]:
    """Targets of the Makefile."""
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def run_command(words: list[str], code: int) -> subprocess.Popen[bytes] | None:
    """Run ``polytask ...`` in the current folder; of other commands check what can be checked.

    A command that is to go on behind the others is given back.
    """
    name, *rest = words
    if name == "make":
        asked = {w for w in rest if not w.startswith("-") and "=" not in w}
        assert asked <= targets(), f"make has no target {', '.join(sorted(asked - targets()))}"
    elif name == "polytask":
        environment = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "120"}
        command = [sys.executable, "-m", "polytask", *rest]
        if rest[-1:] == ["&"]:
            return subprocess.Popen(command[:-1], env=environment)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
        said = f"{shlex.join(words)} ended with {done.returncode}, not {code}\n{done.stdout}{done.stderr}"
        assert done.returncode == code, said
    else:
        assert name in NOT_RUN, f"a page shows '{name}', which this test does not know"
    return None


def check_toml(text: str) -> None:
    """The text parses; a whole configuration is one the package accepts."""
    if "data" in tomllib.loads(text) and importlib.util.find_spec("polytask.config"):
        importlib.import_module("polytask.config").parse(text)


def run_block(block: Block, name: str, namespace: dict[str, Any]) -> list[subprocess.Popen[bytes]]:
    """Run, check or write one block in the current folder; ``name`` is the page's, for tracebacks.

    What is to go on behind the other blocks is given back.
    """
    left = []
    if block.language == "python":
        exec(compile("\n" * block.line + block.text, name, "exec"), namespace)
    elif block.language == "toml":
        check_toml(block.text)
    elif block.language in RUN:
        left = [found for words, code in commands(block) if (found := run_command(words, code))]
    if block.language in READ and block.info:
        Path(block.info).write_text(block.text, "utf-8")
    return left


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page.read_text("utf-8")
    if NEEDS_MOVIELENS in text.splitlines()[:10] and not os.environ.get("POLYTASK_DATA"):
        pytest.skip("needs MovieLens 100K: set POLYTASK_DATA")
    found = blocks(text)
    name = str(page.relative_to(ROOT))
    assert [f"{name}:{b.line}: {why}" for b in found if (why := problem(b))] == []
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "page"}
    running: list[subprocess.Popen[bytes]] = []
    try:
        for block in found:
            try:
                running += run_block(block, name, namespace)
            except Exception as error:
                error.add_note(f"in the {block.language} block of {name}, line {block.line}")
                raise
    finally:
        for process in running:
            process.terminate()
    assert [process.wait(timeout=30) for process in running] == [0] * len(running)


def section(page: str, name: str) -> str:
    """The part of a page below the heading ```name```, up to the next heading."""
    _, heading, rest = page.partition(f"### `{name}`\n")
    return heading and re.split(r"^#", rest, maxsplit=1, flags=re.MULTILINE)[0]


def table_rows(page: str, name: str) -> str:
    """The lines of tables that name ``name`` in their first column."""
    return "\n".join(line for line in page.splitlines() if line.startswith("|") and f"`{name}`" in line.split("|")[1])


def unsaid(entry: str, make: Callable[..., Any]) -> list[str]:
    """The options of ``make`` that ``entry`` does not give with their default, as ```dropout = 0.0```."""
    options = [p for p in signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY]
    said = [p.name if p.default is None else f"{p.name} = {json.dumps(p.default)}" for p in options]
    return [text for text in said if f"`{text}`" not in entry]


@pytest.mark.parametrize(
    ("page", "makers", "entry"),
    [
        ("models.md", BODIES, section),
        ("models.md", BLOCKS, section),
        ("losses.md", {name: known.make for name, known in LOSSES.items()}, table_rows),
        ("balancing.md", BALANCERS, table_rows),
    ],
    ids=["bodies", "blocks", "losses", "balancers"],
)
def test_every_name_has_its_entry_with_the_defaults_of_its_options(
    page: str, makers: Mapping[str, Callable[..., Any]], entry: Callable[[str, str], str]
) -> None:
    text = (ROOT / "docs" / page).read_text("utf-8")
    entries = {name: entry(text, name) for name in makers}
    assert [name for name, found in entries.items() if not found] == []
    assert {name: missing for name, found in entries.items() if (missing := unsaid(found, makers[name]))} == {}


def test_the_paths_that_contributors_are_sent_to_exist() -> None:
    tables = [line for line in (ROOT / "CONTRIBUTING.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    named = {path for line in tables for path in re.findall(r"`((?:\w+/)*[\w*]+(?:\.\w+|/))`", line)}
    assert len(named) > 40 and "tests/loss/" in named and "loss/base.py" in named
    below = [ROOT, ROOT / "src" / "polytask", ROOT / "src" / "polytask" / "data"]
    assert sorted(path for path in named if not any(list(folder.glob(path)) for folder in below)) == []


def test_an_entry_ends_at_the_next_and_an_option_counts_with_its_default_alone() -> None:
    def make(shape: int, *, layers: tuple[int, ...] = (8, 4), noise: bool = True) -> None: ...

    page = "### `a`\n`layers = [8, 4]`, `noise`\n### `b`\n`noise = true`\n\n| `c`, `d` | `a` |\n| e | `c` |\n"
    assert section(page, "a") == "`layers = [8, 4]`, `noise`\n"
    assert (section(page, "c"), table_rows(page, "d"), table_rows(page, "a")) == ("", "| `c`, `d` | `a` |", "")
    assert unsaid(section(page, "a"), make) == ["noise = true"]
    assert unsaid(section(page, "b"), make) == ["layers = [8, 4]"]


def test_blocks_are_found_with_their_line_and_indent_and_an_open_one_is_an_error() -> None:
    page = "# A\n```python\nx = 1\n```\n1. b\n   ````text a.txt\n   ```\n   ````\n"
    assert blocks(page) == [Block("python", "", "x = 1\n", 2), Block("text", "a.txt", "```\n", 6)]
    with pytest.raises(ValueError, match="line 1"):
        blocks("```python\nx = 1\n")


@pytest.mark.parametrize(
    ("fence", "why"),
    [
        ("python no-run", "always run"),
        ("console no-run", "always run"),
        ("bash", "is not one of"),
        ("", "is not one of"),
    ],
)
def test_no_block_is_left_out_silently(fence: str, why: str) -> None:
    (block,) = blocks(f"```{fence}\n```\n")
    assert why in (problem(block) or "")


def test_commands_of_console_and_sh() -> None:
    text = "$ cd a && polytask train \\\n  'x y'  # why\nepoch 1\n$ polytask trian  # exit 2\n"
    expected = [(["cd", "a"], 0), (["polytask", "train", "x y"], 0), (["polytask", "trian"], 2)]
    assert commands(Block("console", "", text, 1)) == expected
    assert commands(Block("sh", "", "# first\nmake demo\n\n", 1)) == [(["make", "demo"], 0)]


def test_what_a_command_must_be() -> None:
    run_command(["make", "TORCH=cpu", "demo"], 0)
    run_command(["git", "clone", "somewhere"], 0)
    with pytest.raises(AssertionError, match="no target demmo"):
        run_command(["make", "demmo"], 0)
    with pytest.raises(AssertionError, match="does not know"):
        run_command(["rm", "-r", "."], 0)


def test_blocks_share_a_namespace_and_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    page = (
        "```csv a.csv\nu,i\n```\n```python\nx = open('a.csv').close()\n```\n```python\nassert x is None\n1 / 0\n```\n"
    )
    *before, last = blocks(page)
    for block in before:
        run_block(block, "page.md", namespace)
    with pytest.raises(ZeroDivisionError) as caught:
        run_block(last, "page.md", namespace)
    assert (caught.traceback[-1].path, caught.traceback[-1].lineno) == ("page.md", 8)  # counted from 0: line 9
