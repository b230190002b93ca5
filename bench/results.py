"""Write a finished comparison as a page: `python bench/results.py runs/census-compare docs/results/census.md`.

Per setting and task: the mean of the task's metrics on test at the kept epoch, with the 95 % interval of the mean over
seeds; the paired gain over the single-task baseline with its interval and verdict; parameters and seconds.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev

from polytask.metrics import metric
from polytask.run import Run, run_folders
from polytask.transfer import transfers

_VERDICT = {"positive transfer": "**+**", "negative transfer": "**−**", "equivalent": "="}
_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}  # two-sided 95 % of Student's t, n - 1


def page(folder: Path, margin: float | None) -> str:
    """The page of the runs below ``folder``."""
    settings: dict[str, list[Run]] = {}
    for path in run_folders(folder):
        run = Run.load(path)
        settings.setdefault(run.name, []).append(run)
    first = next(iter(settings.values()))
    seeds = ", ".join(str(seed) for seed in sorted(r.config.seed for r in first))
    lines = [
        f"Seeds {seeds}; test, at the epoch kept on validation; ± is the half width of the 95 % interval of the mean "
        "over seeds.",
        "",
        *_values(settings, first[0]),
        "",
        "Gain over the single-task models of the same trunk and tower at the kept epoch, paired over seeds, with its "
        "95 % interval; **+** positive transfer, **−** negative transfer, = equivalent, nothing: inconclusive. "
        "Verdicts are corrected for all tasks and architectures together (Holm), the intervals are not.",
        "",
        *_gains(settings, margin),
        "",
        *_costs(settings),
    ]
    return "\n".join(lines) + "\n"


def _values(settings: dict[str, list[Run]], run: Run) -> Iterator[str]:
    yield _row("test", *settings)
    yield _row("---", *("---:" for _ in settings))
    for task in run.tasks:
        for name in run.schema.task(task).metrics:
            cells = [_mean([r.curve("test", task, name)[r.kept] for r in runs]) for runs in settings.values()]
            yield _row(f"{task} {name} {_arrow(name)}", *cells)


def _gains(settings: dict[str, list[Run]], margin: float | None) -> Iterator[str]:
    found = {t.setting: t.tasks for t in transfers(settings, margin=margin) if settings[t.setting][0].shares}
    yield _row("gain", *found)
    yield _row("---", *("---:" for _ in found))
    for task in next(iter(found.values())):
        gains = [tasks[task].kept for tasks in found.values()]
        cells = [f"{g.mean:+.4f} ({g.low:+.4f} to {g.high:+.4f}) {_VERDICT.get(g.verdict, '')}" for g in gains]
        yield _row(f"{task} {gains[0].metric}", *cells)


def _costs(settings: dict[str, list[Run]]) -> Iterator[str]:
    yield _row("setting", "parameters", "seconds per run", "epochs")
    yield _row("---", "---:", "---:", "---:")
    for name, runs in settings.items():
        epochs = fmean(len(r.history) for r in runs)
        yield _row(name, f"{runs[0].parameters:,}", f"{fmean(r.seconds for r in runs):.1f}", f"{epochs:.0f}")


def _mean(values: Sequence[float]) -> str:
    half = _T[len(values)] * stdev(values) / len(values) ** 0.5 if len(values) in _T else float("nan")
    return f"{fmean(values):.4f} ± {half:.4f}"


def _arrow(name: str) -> str:
    return {"higher": "↑", "lower": "↓"}.get(metric(name).better, "→ 1")


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    kept = target.read_text("utf-8").split("<!-- figures -->")[0] if target.exists() else f"# {target.stem}\n\n"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(
        f"{kept}<!-- figures -->\n\n{page(source, float(sys.argv[3]) if len(sys.argv) > 3 else None)}", "utf-8"
    )
