"""How the numbers were made, and how to read them."""

from collections.abc import Iterator, Sequence

from polytask.metrics import metric
from polytask.report.balancing import static
from polytask.report.settings import Settings
from polytask.report.wording import joined, where
from polytask.run import Run
from polytask.transfer import MARGIN, parts

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
_DELTA = (
    "Δ_m is the mean over the tasks of their relative gains, each averaged over the task's metrics, in percent: "
    "positive means that joint training is better. Many papers print the drop, which has the other sign."
)
_OPTIMISTIC = (
    "No validation data was kept, so best epochs were read off the test data, as in the published "
    "exercise: best values are optimistic, for all settings alike."
)


_BALANCING = (
    "A balancing method is compared with static weights of the same network, the ones that validation data chose of a "
    "sweep if there was one, both at the epochs they keep. It beats them where Δ_m is above 0 with p below 0.05 by a "
    "paired t test over seeds, after Holm's correction for the methods, unless its 90 % interval is within the margin."
)
_FRONT = (
    "Fronts and hypervolumes compare means over the seeds and say nothing of chance; the verdicts do. Hypervolumes "
    "compare methods within this report only: another setting may widen the box."
)
_MEMORY = (
    "Peak memory is that of the whole process, which may have trained several settings, the earlier ones included; "
    "milliseconds per step are a run's share of its stack."
)
_COSINE = (
    "Cosines without noise are those between gradients on two halves of a batch, divided by how well each task's own "
    "halves agree; 'noise' means that these batches cannot tell, 'unrelated' that they can and the cosine is small."
)


def notes(settings: Settings, margin: float | None) -> tuple[str, ...]:
    """One sentence or a few per subject."""
    runs = [r for found in settings.values() for r in found]
    return (
        *_data(settings),
        *_metrics(runs),
        _GAIN,
        _verdict(_margin(margin, runs)),
        _DELTA,
        *_parts_of(runs),
        *_machine(runs),
    )


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


def _verdict(margin: str) -> str:
    return (
        f"Tried from the top. Equivalent: the 90 % interval of the mean gain lies within {margin}, so the difference "
        "is smaller than what one would act on. Positive or negative transfer: p is below 0.05 by a paired t test over "
        "seeds, after Holm's correction for all tasks and settings of a table column. Anything else is inconclusive; "
        "seeds needed is how many would settle it, were mean and spread as seen. The 95 % intervals are plain: each "
        "stands by itself, without that correction, so one may leave out 0 where the verdict is inconclusive."
    )


def _parts_of(runs: Sequence[Run]) -> Iterator[str]:
    """On what not every report holds."""
    if any(not static(r) for r in runs):
        yield _BALANCING
    if len({r.name for r in runs if r.alone is None}) > 1:
        yield _FRONT
    if any("probe" in h for r in runs for h in r.history):
        yield _COSINE
    if any(r.memory or r.step_seconds for r in runs):
        yield _MEMORY


def _margin(margin: float | None, runs: Sequence[Run]) -> str:
    """What counts as equivalent, in words."""
    if margin is not None:
        return f"{margin * 100:g} % of the single-task value"
    names = dict.fromkeys(r.schema.task(t).metrics[0] for r in runs for t in r.tasks)
    own = [f"{found.margin:g} in {n}" for n in names if (found := metric(n)).margin]
    rest = [f"{MARGIN * 100:g} % of the single-task value" + (" otherwise" if own else "")]
    return joined([*own, *(rest if len(own) < len(names) else [])])


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
