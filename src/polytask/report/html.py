"""The report as one HTML page that needs nothing but itself."""

import json
import re
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files

from jinja2 import Environment
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from polytask.errors import visible
from polytask.report.document import Document
from polytask.report.figures import figures
from polytask.report.tables import ICONS, cost_table, mark_table, setting_table, verdict_tables

_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
_PART = re.compile("<!-- part: ([a-z]+)(?: ([0-9]+))? -->")


def html(document: Document) -> str:
    """The page: texts escaped, figures as JSON beside the one drawing library, all other scripts forbidden."""
    scripts = {"plotly": get_plotlyjs(), "page": _read("page.js")}
    environment = Environment(autoescape=True, finalize=_finalize, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(_read("template.html")).render(
        document=document,
        verdicts=verdict_tables(document),
        tables=[cost_table(document), setting_table(document), mark_table(document)],
        tones={f"{icon} {verdict}": verdict.split()[0] for verdict, icon in ICONS.items()},
        hashes=[_hash(text) for text in scripts.values()],
    )
    return _filled(page, scripts, figures(document))


def _filled(page: str, scripts: dict[str, str], plots: Sequence[str]) -> str:
    """Put the scripts in place of the comments that stand for them.

    Scripts must not be escaped, so they cannot pass through the template. No text from outside can pose as
    such a comment: in the template's output its ``<`` is ``&lt;``. All are replaced in one pass, so nothing
    inside a script is taken for a comment either.
    """

    def part(found: re.Match[str]) -> str:
        if found[1] == "figure":
            block = json_block(plots[int(found[2])])
            return f'<script type="application/json" id="figure-{found[2]}">{block}</script>'
        return f"<script>{scripts[found[1]]}</script>"

    return _PART.sub(part, page)


def json_block(text: str) -> str:
    """JSON ``text`` checked to be strict and spelled so that it cannot end a script element."""

    def refuse(value: str) -> None:
        raise ValueError(f"{value} is not JSON")

    value = json.loads(text, parse_constant=refuse)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_UNSAFE)


def _finalize(value: object) -> object:
    """Applied to every value before it is escaped; a macro's output is escaped already."""
    return value if hasattr(value, "__html__") else visible(str(value))


def _hash(script: str) -> str:
    return "sha256-" + b64encode(sha256(script.encode("utf-8")).digest()).decode("ascii")


def _read(name: str) -> str:
    return files("polytask.report").joinpath(name).read_text("utf-8")
