"""How the numbers were made, and how to read them."""

from collections.abc import Iterator, Sequence

from polytask.report.settings import Settings
from polytask.report.wording import where
from polytask.run import Run
from polytask.transfer import parts

_RANKING = (
    "Rankings are over the full catalogue. Items that the user had in earlier parts are left out, other held-out items "
    "stay in the list, and ties take the average rank."
)
_MRR = (
    "mrr is, per user, the mean of 1/rank over all held-out items, then the mean over users with held-out items. It is "
    "not the first-hit reciprocal rank (mrr_first)."
)
_GAIN = (
    "A gain is joint minus alone, with its sign turned where lower is better: above 0 the joint model is better. Runs "
    "are paired by seed."
)
_OPTIMISTIC = (
    "No validation data was kept, so best epochs were read off the test data, as in the published "
    "exercise: best values are optimistic, for all settings alike."
)


def notes(settings: Settings, margin: float) -> tuple[str, ...]:
    """One sentence or a few per subject."""
    runs = [r for found in settings.values() for r in found]
    return (*_data(settings), *_metrics(runs), _GAIN, _verdict(margin), *_machine(runs))


def _data(settings: Settings) -> Iterator[str]:
    read = dict.fromkeys(parts(runs) for runs in settings.values())
    for part, chosen_on in read:
        who = (
            "" if len(read) == 1 else f" ({', '.join(n for n, r in settings.items() if parts(r) == (part, chosen_on))})"
        )
        yield f"Metrics were read on {where(part)}; best epochs were chosen on {where(chosen_on)}{who}."
        if part == chosen_on == "test":
            yield _OPTIMISTIC
    yield (
        "Best: at the epoch where the task's first metric is best, for each run by itself. Kept: at the epoch whose "
        "weights the run keeps. ± is the standard deviation over seeds."
    )


def _metrics(runs: Sequence[Run]) -> Iterator[str]:
    tasks = [r.schema.task(t) for r in runs for t in r.tasks]
    if any(t.kind == "ranking" for t in tasks):
        yield _RANKING
    if any("mrr" in t.metrics for t in tasks):
        yield _MRR


def _verdict(margin: float) -> str:
    return (
        "Positive or negative transfer: the 95 % interval of the mean gain (paired t over seeds) leaves out 0. No "
        f"change: the 90 % interval lies within {margin * 100:g} % of the single-task value. Anything else is "
        "inconclusive. The intervals are not corrected for the number of comparisons."
    )


def _machine(runs: Sequence[Run]) -> Iterator[str]:
    seeds = sorted({r.config.seed for r in runs})
    yield f"Seeds: {', '.join(map(str, seeds))}. Seconds are a run's share of the stack it was trained in."
    machines = list(dict.fromkeys(_environment(r) for r in runs if r.environment))
    if machines:
        yield f"Environment: {'; '.join(machines)}."
    if len(machines) > 1:
        yield "The runs come from different environments, so their seconds cannot be compared."


def _environment(run: Run) -> str:
    return ", ".join(f"{k} {v}" for k, v in run.environment.items() if isinstance(v, str | int | float))
