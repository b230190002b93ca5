"""The report as one HTML page that needs nothing but itself."""

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files

from jinja2 import Environment
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from polytask.errors import visible
from polytask.report.charts import charts
from polytask.report.document import Document
from polytask.report.findings import by_kind
from polytask.report.tables import ICONS, cost_table, mark_table, setting_table, verdict_tables
from polytask.report.trade_tables import (
    balancing_tables,
    calibration_tables,
    gate_tables,
    probe_tables,
    tradeoff_tables,
)

_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
_PART = re.compile("<!-- part: ([a-z]+)(?: ([a-z]+(?:-[0-9]+)?))? -->")

_DRAWN = (  # figures inside the models: name, title, how to read it
    (
        "conflicts",
        "Where and when tasks conflict",
        "Cosine of the two tasks' gradients by group of parameters (rows) and epoch, noise of batches taken out: ▼ "
        "conflict beyond noise, · cannot be told from noise. The pairs with the lowest cosine of each setting.",
    ),
    (
        "pace",
        "Who sets the pace",
        "The share of each task by epoch, mean over the seeds: of the weights in force, the weighted loss, the "
        "gradients' norms on what is shared, and the optimizer's step there.",
    ),
    (
        "lookahead",
        "Who helps whom in the next step",
        "By how much a step of the task in the row alone lowers the loss of the task in the column: below 0 it hurts.",
    ),
    (
        "gates",
        "Which experts the gates take",
        "Mean share in percent of every expert (columns) under every gate (rows) at the kept epoch of the first seed.",
    ),
)


def html(document: Document) -> str:
    """The page: texts escaped, figures as JSON beside the one drawing library, all other scripts forbidden."""
    scripts = {"plotly": get_plotlyjs(), "page": _read("page.js")}
    environment = Environment(autoescape=True, finalize=_finalize, trim_blocks=True, lstrip_blocks=True)
    plots = charts(document)
    page = environment.from_string(_read("template.html")).render(
        document=document,
        charts=list(plots),
        verdicts=verdict_tables(document),
        findings=by_kind(document.findings),
        balancing=balancing_tables(document),
        tradeoffs=tradeoff_tables(document),
        probes=probe_tables(document),
        drawn=_DRAWN,
        gates=gate_tables(document),
        calibrations=calibration_tables(document),
        tables=[cost_table(document), setting_table(document), mark_table(document)],
        tones={f"{icon} {verdict}": verdict.split()[0] for verdict, icon in ICONS.items()},
        hashes=[_hash(text) for text in scripts.values()],
    )
    return _filled(page, scripts, plots)


def _filled(page: str, scripts: dict[str, str], plots: Mapping[str, str]) -> str:
    """Put the scripts in place of the comments that stand for them.

    Scripts must not be escaped, so they cannot pass through the template. No text from outside can pose as
    such a comment: in the template's output its ``<`` is ``&lt;``. All are replaced in one pass, so nothing
    inside a script is taken for a comment either.
    """

    def part(found: re.Match[str]) -> str:
        if found[1] == "figure":
            block = json_block(plots[found[2]])
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
