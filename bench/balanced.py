"""Write a finished comparison of balancing methods as a page, a setting per row.

    python bench/balanced.py runs/census-compare docs/results/balancing-census.md [--margin 0.001] [--times LONG SHORT]

Gains over single-task models at the kept epochs, paired over seeds; milliseconds per step beside static weights on the
same body; and whether any method beat tuned static weights. With --times the milliseconds are those by which trainings
of more epochs (in the folder LONG) took longer than trainings of fewer (SHORT), so that the tracing of the first step
does not count; both are to be run in turn on a machine that does nothing else. What stands above the line
`<!-- figures -->` of the page is kept.
"""

import argparse
from pathlib import Path
from statistics import fmean

from polytask.report.balancing import balanced, labels, matches, reference, shown, sweeps
from polytask.report.settings import grouped
from polytask.run import Run, run_folders
from polytask.transfer import delta_m, transfers

_MARK = {"positive transfer": "**+**", "negative transfer": "**−**", "equivalent": "="}


def page(folder: Path, margin: float | None, timed: list[Path]) -> str:
    """The page of the runs below ``folder``, with the times of those below the ``timed`` folders, the longer first."""
    every = grouped([Run.load(path) for path in run_folders(folder)])
    found = sweeps(every)
    settings = shown(every, found)
    judged = {t.setting: t for t in transfers(settings, margin=margin) if settings[t.setting][0].shares}
    tasks = {t: g.kept.metric for t, g in next(iter(judged.values())).tasks.items()}
    seeds = sorted(r.config.seed for r in next(iter(settings.values())))
    speeds = [grouped([Run.load(path) for path in run_folders(own)]) for own in timed] or [settings]
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


def _milliseconds(speeds: list[dict[str, list[Run]]], name: str | None) -> float | None:
    """Per step of a setting; a swept one was trained like the fixed weights of its body."""
    each = [s.get(name or "") or s.get((name or "").replace(" static", " fixed")) for s in speeds]
    if not all(each):
        return None
    # seconds of all epochs, in units of an epoch's steps
    epochs = [fmean(len(r.history) for r in runs or ()) for runs in each]
    totals = [e * fmean(r.step_seconds for r in runs or ()) for e, runs in zip(epochs, each, strict=True)]
    if len(each) == 1:
        return 1000 * totals[0] / epochs[0]
    return 1000 * (totals[0] - totals[1]) / (epochs[0] - epochs[1])


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--margin", type=float)
    parser.add_argument("--times", type=Path, nargs=2, metavar=("LONG", "SHORT"), default=[])
    options = parser.parse_args()
    target = options.page
    kept = target.read_text("utf-8").split("<!-- figures -->")[0] if target.exists() else f"# {target.stem}\n\n"
    text = page(options.runs, options.margin, options.times)
    target.write_text(f"{kept}<!-- figures -->\n\n{text}", "utf-8")
