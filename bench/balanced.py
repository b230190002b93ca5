"""Write a finished comparison of balancing methods as a page, a setting per row.

    python bench/balanced.py runs/census-compare docs/results/balancing-census.md [MARGIN]

Gains over single-task models at the kept epochs, paired over seeds; milliseconds per step of one run (its share of its
stack) beside static weights on the same body; and whether any method beat tuned static weights. What stands above the
line `<!-- figures -->` of the page is kept.
"""

import sys
from pathlib import Path
from statistics import fmean

from polytask.report.balancing import balanced, labels, matches, reference, shown, sweeps
from polytask.report.settings import grouped
from polytask.run import Run, run_folders
from polytask.transfer import delta_m, transfers

_MARK = {"positive transfer": "**+**", "negative transfer": "**−**", "equivalent": "="}


def page(folder: Path, margin: float | None) -> str:
    """The page of the runs below ``folder``."""
    every = grouped([Run.load(path) for path in run_folders(folder)])
    found = sweeps(every)
    settings = shown(every, found)
    judged = {t.setting: t for t in transfers(settings, margin=margin) if settings[t.setting][0].shares}
    tasks = {t: g.kept.metric for t, g in next(iter(judged.values())).tasks.items()}
    seeds = sorted(r.config.seed for r in next(iter(settings.values())))
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
        overall, speed = delta_m(gains), _milliseconds(runs)
        times = f"{speed / _milliseconds(settings[other]):.2f}" if other else "–"
        epochs = fmean(len(r.history) for r in runs)
        mean = "–" if overall is None else f"{overall.mean:+.2f} ({overall.low:+.2f} to {overall.high:+.2f})"
        lines.append(_row(name, *cells, mean, f"{speed:.1f}", times, f"{epochs:.0f}"))
    return "\n".join(lines) + "\n"


def _milliseconds(runs: list[Run]) -> float:
    return 1000 * fmean(r.step_seconds for r in runs)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    kept = target.read_text("utf-8").split("<!-- figures -->")[0] if target.exists() else f"# {target.stem}\n\n"
    text = page(source, float(sys.argv[3]) if len(sys.argv) > 3 else None)
    target.write_text(f"{kept}<!-- figures -->\n\n{text}", "utf-8")
