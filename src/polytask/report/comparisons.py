"""The comparisons of a write-up: which settings to put side by side, and what the numbers say of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from polytask.diagnose import Finding
from polytask.report.settings import Mark, Settings, mark
from polytask.report.wording import ARROWS, epochs, interval, joined, number, quoted, spread, weights_of
from polytask.run import Run
from polytask.transfer import Gain, gain, judged

_SHOWN = 3  # settings told of behind the best; the tables hold the rest
_NOISE = {
    "positive transfer": "beyond noise",
    "negative transfer": "beyond noise",
    "equivalent": "equal within the margin",
    "inconclusive": "within noise",
}


@dataclass(frozen=True)
class Comparison:
    """Some ``settings`` side by side: a paragraph of ``text`` per task, then what else was found.

    ``baselines`` are the single-task settings drawn beside them.
    """

    title: str
    settings: tuple[str, ...]
    baselines: tuple[str, ...]
    text: tuple[str, ...]


def comparisons(settings: Settings, findings: Sequence[Finding], margin: float | None) -> tuple[Comparison, ...]:
    """All joint settings; then per way of sharing the weights and balances, and per weights the ways of sharing."""
    alone = tuple(n for n, runs in settings.items() if runs[0].alone)
    joint = {n: runs[0] for n, runs in settings.items() if n not in alone}
    groups = [*_by_weights(joint), *_by_sharing(joint)]
    if len(joint) < 2:
        groups = [("All settings", tuple(settings))]
    elif tuple(joint) not in {names for _, names in groups}:
        groups.insert(0, ("All joint settings", tuple(joint)))
    return tuple(
        Comparison(title, names, tuple(n for n in alone if n not in names), _text(settings, names, findings, margin))
        for title, names in groups
    )


def _by_weights(joint: dict[str, Run]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Settings that share alike and differ in their weights or balance."""
    for names in _alike(joint, lambda r: (r.design["share"], r.design["body"])):
        weights, balances = ({of(joint[n]) for n in names} for of in (weights_of, _balance))
        differ = [*(["weights"] if len(weights) > 1 else []), *(["balance"] if len(balances) > 1 else [])]
        if differ:
            share = str(joint[names[0]].design["share"]).capitalize()
            yield f"{share} settings with different {' and '.join(differ)}{_body(joint, names)}", names


def _by_sharing(joint: dict[str, Run]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Settings of equal weights and balance that differ in what they share."""
    for names in _alike(joint, lambda r: (weights_of(r), _balance(r), r.design["body"])):
        shares = list(dict.fromkeys(str(joint[n].design["share"]) for n in names))
        if len(shares) > 1:
            against = " against ".join(shares).capitalize()
            yield f"{against} at weights {weights_of(joint[names[0]])}{_body(joint, names)}", names


def _balance(run: Run) -> str:
    return run.config.balance.kind


def _alike(joint: dict[str, Run], key: Callable[[Run], object]) -> list[tuple[str, ...]]:
    groups: dict[object, list[str]] = {}
    for name, run in joint.items():
        groups.setdefault(key(run), []).append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]


def _body(joint: dict[str, Run], names: Sequence[str]) -> str:
    several = len({r.design["body"] for r in joint.values()}) > 1
    return f", body {joint[names[0]].design['body']}" if several else ""


def _text(
    settings: Settings, names: Sequence[str], findings: Sequence[Finding], margin: float | None
) -> tuple[str, ...]:
    chosen = {n: settings[n] for n in names}
    tasks = dict.fromkeys(t for runs in chosen.values() for t in runs[0].tasks)
    return (*(_task(chosen, t, margin) for t in tasks), *_overfitting(chosen, findings), *_idle(chosen, findings))


def _task(settings: Settings, task: str, margin: float | None) -> str:
    """The settings that train ``task``, best first, each against the best."""
    trained = {n: first_mark(runs, task) for n, runs in settings.items() if task in runs[0].tasks}
    best, *others = ranked(trained)
    metric = f"{trained[best].metric} {ARROWS[trained[best].better]}"
    if not others:
        return f"'{task}' ({metric}) is trained by '{best}' alone: {_values(trained[best])}."
    gains = _paired(settings, best, others, task, margin)
    clear = all(n in gains and gains[n].verdict == "positive transfer" for n in others)
    lead = "is best" if clear else "has the best mean"
    told = [f"'{n}' has {_values(trained[n])} ({_behind(gains.get(n))})" for n in others[:_SHOWN]]
    more = [f"and {len(others) - _SHOWN} more"] if len(others) > _SHOWN else []
    return f"On '{task}' ({metric}) '{best}' {lead}: {_values(trained[best])}. Behind it, {'; '.join([*told, *more])}."


def first_mark(runs: Sequence[Run], task: str) -> Mark:
    """The metric that chooses the epoch of ``task``."""
    return mark(runs, task, runs[0].schema.task(task).metrics[0])


def ranked(marks: dict[str, Mark]) -> list[str]:
    """The settings, best first; those without a value last."""

    def key(name: str) -> float:
        found = marks[name]
        if found.best is None:
            return float("inf")
        return found.best if found.better == "lower" else -found.best

    return sorted(marks, key=key)


def _values(found: Mark) -> str:
    return f"{spread(found.best, found.best_sd)} at {epochs(found.epochs)}, {number(found.last)} at the last"


def _paired(settings: Settings, best: str, others: Sequence[str], task: str, margin: float | None) -> dict[str, Gain]:
    """What ``best`` gains over each of the ``others`` that has a seed in common with it, judged together."""
    seeds = {r.config.seed for r in settings[best]}
    near = [n for n in others if seeds & {r.config.seed for r in settings[n]}]
    gains = [gain(settings[best], settings[n], task, margin=margin) for n in near]
    return dict(zip(near, judged(gains), strict=True))


def _behind(found: Gain | None) -> str:
    if found is None:
        return "no seed in common, so noise is unknown"
    if found.low is None:
        return f"by {number(found.mean, found.alone, '+')} in one pair of seeds, so noise is unknown"
    small = found.verdict.endswith("transfer") and abs(found.mean) < found.margin
    noise = _NOISE[found.verdict] + (", but within the margin" if small else "")
    return f"by {number(found.mean, found.alone)}, {interval(found)}: {noise}"


def _overfitting(settings: Settings, findings: Sequence[Finding]) -> Iterator[str]:
    cases: dict[str, list[str]] = {}
    for found in findings:
        if found.kind == "overfitting" and found.task and found.settings[0] in settings:
            worse = first_mark(settings[found.settings[0]], found.task)
            change = f"{number(worse.best)} at {epochs(worse.epochs)}, {number(worse.last)} at the last"
            cases.setdefault(found.task, []).append(f"in '{found.settings[0]}' ({change})")
    for task, where in cases.items():
        yield f"'{task}' overfits {joined(where)}."


def _idle(settings: Settings, findings: Sequence[Finding]) -> Iterator[str]:
    for found in findings:
        if found.kind == "no effect" and set(settings) <= set(found.settings):
            yield f"{quoted(tuple(settings))} share nothing between tasks, so their weights have no effect."
