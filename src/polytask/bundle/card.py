"""The model card of a bundle: what it was trained on, how well, what sharing did, and what it cannot do."""

from collections.abc import Mapping, Sequence
from typing import Any

from polytask.errors import visible


def card(facts: Mapping[str, Any]) -> str:
    """README.md of a bundle, with the front matter that model hubs read."""
    tasks, counts = facts["tasks"], facts["counts"]
    kinds = ", ".join(f"{_text(t['name'])} ({t['kind']})" for t in tasks)
    lines = [
        "---",
        "library_name: polytask",
        "tags: [recommender, multi-task]",
        "---",
        f"# {_text(facts['name'])}",
        "",
        f"A multi-task recommender: {kinds}. Body `{facts['body']}`, {facts['share']} parameters, "
        f"{facts['parameters']:,} numbers; made {facts['created']} with polytask.",
        "",
        "## Data",
        "",
        _data(facts),
        "",
        "## Tasks",
        "",
        *_table(["task", "part", "metric", "value"], _metrics(tasks)),
        "",
        "Values are those of the epoch kept on validation data; test data chose nothing.",
        "",
        "## What sharing did",
        "",
        *_sharing(facts["verdicts"]),
        "",
        "## One score of several tasks",
        "",
        f"By default items are ordered by {_code(facts['mix'])}.",
        *_mixes(facts),
        "",
        "## Limits",
        "",
        *_limits(facts, counts),
        "",
        "## Use",
        "",
        "```text",
        f"polytask recommend FOLDER{' --user ID' if facts['user'] else ' --rows rows.csv'}",
        "polytask serve FOLDER",
        "```",
    ]
    return "\n".join(lines) + "\n"


def _data(facts: Mapping[str, Any]) -> str:
    rows = facts["counts"]["rows"]
    parts = ", ".join(f"{count:,} {name}" for name, count in rows.items())
    sides = [f"{facts['counts'][side]:,} {side}" for side in ("users", "items") if side in facts["counts"]]
    return f"{_text(facts['data'] or 'a table of rows')}: {parts} rows" + (
        f", {' and '.join(sides)}." if sides else "."
    )


def _metrics(tasks: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [_text(task["name"]), part, name, "absent" if value is None else f"{value:.4f}"]
        for task in tasks
        for part, metrics in task["metrics"].items()
        for name, value in metrics.items()
    ]


def _sharing(verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    if not verdicts:
        return [
            "Not measured: this model was not compared with single-task models. `polytask compare` does that, and a "
            "bundle made with its report says here who gained and who paid."
        ]
    rows = [[_text(v["task"]), v["verdict"], v["text"]] for v in verdicts]
    return _table(["task", "verdict", "at the task's own best epoch, paired over seeds"], rows)


def _mixes(facts: Mapping[str, Any]) -> list[str]:
    points = [p for p in facts.get("mix_points", ()) if p["front"] or p["chosen"]]
    if not points:
        return []
    tasks = list(points[0]["scores"])
    rows = [
        [_code(p["mix"]) + (" (chosen)" if p["chosen"] else ""), *(f"{p['scores'][t]:.4f}" for t in tasks)]
        for p in points
    ]
    return [
        "",
        "On validation data, the mixes no other beats in every task:",
        "",
        *_table(["mix", *map(_text, tasks)], rows),
    ]


def _limits(facts: Mapping[str, Any], counts: Mapping[str, Any]) -> list[str]:
    lines = []
    if facts["user"]:
        lines.append(
            "- A user who is not among the data is answered by popularity, or by the items said to be just seen."
        )
    if facts["item"]:
        lines.append("- An item that is not among the data is judged by its features alone, and is never listed.")
    if any(t["kind"] == "ranking" for t in facts["tasks"]):
        lines.append("- The score of a ranking task orders items; it is not a probability.")
    if any(t["kind"] == "binary" and not t["calibrated"] for t in facts["tasks"]):
        lines.append("- Probabilities are as the model gives them, not calibrated.")
    if "test" not in counts["rows"]:
        lines.append("- No test data were held out.")
    return [
        *lines,
        "- What people did is not what they would have liked best: offline figures compare models, no more.",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _code(text: str) -> str:
    """An expression as it is written, whatever backticks are in it."""
    return f"`` {visible(text)} ``" if "`" in text else f"`{visible(text)}`"


def _text(value: Any) -> str:
    """A name on one line, without markup of its own."""
    return "".join(f"\\{c}" if c in "<>[]*_`#" else c for c in visible(str(value)))
