"""Write a finished comparison of balancing methods as a page, a setting per row.

    python bench/balanced.py runs/census-compare docs/results/balancing-census.md [--margin 0.001] [--times FOLDER]

Gains over single-task models at the kept epochs, paired over seeds; milliseconds per step beside static weights on the
same body; and whether any method beat tuned static weights. Times are those of the runs of another FOLDER if one is
given, taken in turn on a machine that did nothing else. What stands above the line `<!-- figures -->` of the page is
kept.
"""

import argparse
from pathlib import Path
from statistics import fmean

from polytask.report.balancing import balanced, labels, matches, reference, shown, sweeps
from polytask.report.settings import grouped
from polytask.run import Run, run_folders
from polytask.transfer import delta_m, transfers

_MARK = {"positive transfer": "**+**", "negative transfer": "**−**", "equivalent": "="}


def page(folder: Path, margin: float | None, timed: Path | None) -> str:
    """The page of the runs below ``folder``, with the times of those below ``timed``."""
    every = grouped([Run.load(path) for path in run_folders(folder)])
    found = sweeps(every)
    settings = shown(every, found)
    judged = {t.setting: t for t in transfers(settings, margin=margin) if settings[t.setting][0].shares}
    tasks = {t: g.kept.metric for t, g in next(iter(judged.values())).tasks.items()}
    seeds = sorted(r.config.seed for r in next(iter(settings.values())))
    speeds = grouped([Run.load(path) for path in run_folders(timed)]) if timed else settings
    lines = [
        balanced(matches(settings, found, margin), found),
        "",
        *(f"* {text}" for text in labels(found)),
        "",
        f"Seeds {', '.join(map(str, seeds))}; test, at the epochs kept on validation. Gains over the single-task "
        "models with plain 95 % intervals; **+** positive transfer, **−** negative transfer, = equivalent, nothing: "
        "inconclusive, corrected for all tasks and settings (Holm). Δ_m is the mean relative gain over the tasks. "
        "× is relative to static weights on the same body.",
        "",
        _row("setting", *(f"{t} {m}" for t, m in tasks.items()), "Δ_m %", "ms per step", "×", "epochs"),
        _row("---", *("---:" for _ in tasks), "---:", "---:", "---:", "---:"),
    ]
    for name, transfer in judged.items():
        runs, other = settings[name], reference(settings, found, name)
        gains = [transfer.tasks[t].kept for t in tasks]
        cells = [f"{g.mean:+.4f} ({g.low:+.4f} to {g.high:+.4f}) {_MARK.get(g.verdict, '')}".strip() for g in gains]
        overall, speed, beside = delta_m(gains), _milliseconds(speeds, name), _milliseconds(speeds, other)
        epochs = fmean(len(r.history) for r in runs)
        mean = "–" if overall is None else f"{overall.mean:+.2f} ({overall.low:+.2f} to {overall.high:+.2f})"
        times = ("–" if speed is None else f"{speed:.1f}", f"{speed / beside:.2f}" if speed and beside else "–")
        lines.append(_row(name, *cells, mean, *times, f"{epochs:.0f}"))
    return "\n".join(lines) + "\n"


def _milliseconds(settings: dict[str, list[Run]], name: str | None) -> float | None:
    """Per step of a setting; a swept one was trained like the fixed weights of its body."""
    own = settings.get(name or "") or settings.get((name or "").replace(" static", " fixed"))
    return 1000 * fmean(r.step_seconds for r in own) if own else None


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--margin", type=float)
    parser.add_argument("--times", type=Path)
    options = parser.parse_args()
    target = options.page
    kept = target.read_text("utf-8").split("<!-- figures -->")[0] if target.exists() else f"# {target.stem}\n\n"
    text = page(options.runs, options.margin, options.times)
    target.write_text(f"{kept}<!-- figures -->\n\n{text}", "utf-8")
