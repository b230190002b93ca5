"""The whole of a tuning: a joint search, a like one per single task, and the paired comparison of what they found."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from polytask.compare import Experiment, Progress, compare
from polytask.data.split import SPLITS, split
from polytask.data.table import Dataset
from polytask.errors import ConfigError, StateError, TrainingError
from polytask.files import lock, read_lines, write_json, write_lines, write_text
from polytask.loss import check_task
from polytask.metrics import check_metrics, metric
from polytask.nn.models import make_model
from polytask.run import Run
from polytask.tune.choice import Point, choose, front
from polytask.tune.space import TuneConfig, default_space, parse_space
from polytask.tune.study import Draw, Make, Study, Trial

Wanted = tuple[Study, int, Draw]


@dataclass(frozen=True)
class Search:
    """What to tune: ``make`` turns a name and dotted overrides into a setting, ``config`` says what to try.

    ``experiment`` holds the split, the settings that the chosen points are compared with, and over which seeds; the
    search's own is replaced by another. Without ``baselines`` no single-task model is searched.
    """

    make: Make
    experiment: Experiment
    config: TuneConfig


@dataclass(frozen=True)
class Tuning:
    """What came of a search: its studies (the joint one first), their trials, and what was chosen of them.

    ``points`` are the joint trials chosen, ``best`` the trial chosen for each task alone. ``runs`` are those of the
    final comparison, over ``seeds``. ``redrawn``: whether other seeds have other test rows.
    """

    studies: tuple[Study, ...]
    trials: tuple[Trial, ...]
    points: tuple[Point, ...]
    best: dict[str, Trial]
    seeds: tuple[int, ...]
    redrawn: bool
    runs: tuple[Run, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Everything that was tried and chosen, and why, as plain values."""
        joint, *alone = self.studies
        tried = {t.number: _plain(joint, t) for t in joint.own(self.trials)}
        chosen = [
            {"setting": p.name, "reasons": list(p.reasons), "shortfall": p.shortfall, **tried[p.number]}
            for p in self.points
        ]
        return {
            "objectives": {t: {"metric": n, "better": metric(n).better} for t, n in joint.metrics.items()},
            "trials": list(tried.values()),
            "front": front(joint.values(self.trials)),
            "chosen": chosen,
            "alone": {
                s.alone: {
                    "setting": s.name,
                    "trials": [_plain(s, t) for t in s.own(self.trials)],
                    "chosen": self.best[s.alone].number,
                }
                for s in alone
            },
            "seeds": list(self.seeds),
            "notes": self.notes(),
        }

    def notes(self) -> list[str]:
        """What the reader of the comparison has to know of the search."""
        joint, *alone = self.studies
        found = [f"The joint model was searched with {joint.trials} trials over {', '.join(joint.space)}."]
        for study in alone:
            over = f"{study.trials} trials over {', '.join(study.space)}" if study.space else "its one setting"
            found.append(f"The single model of {study.alone} was searched with {over}.")
        if self.redrawn:
            found.append(
                "Each final seed draws its own test rows, of which the search knew some as training or validation rows "
                "of its own split; a split by time has none such."
            )
        return found


def tune(
    data: Dataset,
    search: Search,
    folder: str | Path,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    config: str = "",
) -> Tuning:
    """Search on validation data, then compare the best points with tuned single-task models over fresh seeds.

    Below ``folder``: ``search/`` holds the trials, ``final/`` the runs of the comparison, ``tune.json`` what was
    tried and chosen. After a kill the same call goes on where it stopped, and ends with the same trials; more
    trials extend a search. ``workers``, ``progress`` and ``config`` are those of :func:`polytask.compare.compare`.
    """
    folder = Path(folder)
    studies = _studies(data, search)
    with lock(folder):
        _identify(folder, data, search)
        if config:
            write_text(folder / "config.toml", config)
        trials = _searched(data, search, studies, folder / "search", workers, progress)
        found = _chosen(data, search, studies, trials)
        write_json(folder / "tune.json", found.to_dict())
        joint, *alone = studies
        drawn = {t.number: t.drawn for t in joint.own(trials)}
        settings = [joint.setting(p.name, drawn[p.number]) for p in found.points]
        settings += [s.setting(s.name, found.best[s.alone].drawn) for s in alone]
        listed = (*search.experiment.settings, *settings)
        final = replace(search.experiment, settings=listed, seeds=found.seeds, baselines=False)
        runs = compare(data, final, folder / "final", workers=workers, progress=progress)
    return replace(found, runs=tuple(runs))


def _studies(data: Dataset, search: Search) -> list[Study]:
    """The joint study and one per task alone, with the same budget in all; what cannot be trained is an error now."""
    e, c = search.experiment, search.config
    base = search.make("tune.space", {})
    tasks = [t for t in data.schema.task_names if base.weights[t] > 0]
    if len(tasks) < 2:
        raise ConfigError(f"tune: only {', '.join(tasks)} is trained; give at least two tasks a weight above 0")
    if e.capacity != "network":
        raise ConfigError('tune: single-task models are searched as the same network; set compare.capacity = "network"')
    space = parse_space(c.space) or default_space(base.weights, base.train.lr)
    metrics = {t: data.schema.task(t).metrics[0] for t in tasks}
    found = [Study("joint", search.make, space, metrics, c.trials, c.together, c.seed)]
    own, count = space.without("task.", "balance."), len(tasks)
    budget = -(-c.trials // count) if own else 1
    for task in tasks if e.baselines else ():
        metrics_of_one = {task: metrics[task]}
        together = -(-c.together // count)
        found.append(Study(f"{task} alone", search.make, own, metrics_of_one, budget, together, c.seed, task))
    _check(data, search, found)
    return found


def _check(data: Dataset, search: Search, studies: Sequence[Study]) -> None:
    """Make every kind of model once: a search should not end hours later with what could be known now."""
    for task in data.schema.tasks:
        check_task(task)
        check_metrics(task, data.schema)
    e, (joint, *alone) = search.experiment, studies
    parts = split(data, e.split, valid=e.valid, test=e.test, seed=search.config.seed)
    for name, part in (("valid", parts.valid), ("test", parts.test)):
        if part is None:
            use = "chooses the settings" if name == "valid" else "is for the final comparison"
            raise ConfigError(f"tune: {name} data {use}; set data.split.{name} above 0")
    examples = [search.make("tune.space", overrides) for overrides in joint.space.examples()]
    baselines = [replace(examples[0], name=s.name) for s in alone]
    replace(e, settings=(*e.settings, *baselines))  # the names must differ
    for design in dict.fromkeys(s.design for s in (*e.settings, *examples)):
        make_model(parts.train, design)


def _identify(folder: Path, data: Dataset, search: Search) -> None:
    """Refuse a folder that holds another search; the number of trials may differ."""
    e, c = search.experiment, search.config
    own = {
        "data": data.fingerprint(),
        "tasks and features": hashlib.sha256(repr(data.schema).encode()).hexdigest(),
        "split": [e.split, e.valid, e.test],
        "configuration": repr(search.make("", {})),
        "tune": asdict(c) | {"trials": None},
    }
    path, plain = folder / "search.json", json.loads(json.dumps(own, default=str))
    before = json.loads(path.read_text("utf-8")) if path.exists() else plain
    for name, value in plain.items():
        if before.get(name) != value:
            raise StateError(f"{folder} holds a search with another value of '{name}'; use another --folder")
    write_json(path, plain)


def _searched(
    data: Dataset,
    search: Search,
    studies: Sequence[Study],
    folder: Path,
    workers: int | None,
    progress: Progress | None,
) -> list[Trial]:
    """All trials of all studies, round by round; those on the disk are not repeated."""
    trials = [Trial(**line) for line in read_lines(folder / "trials.jsonl")]
    total, rows = sum(s.trials for s in studies), _without_test(data, search)
    while wanted := [(s, *one) for s in studies for one in s.next(trials)]:
        done = sum(len(s.own(trials)) for s in studies)
        tell = _counting(progress, done, len(wanted), total)
        trials += _round(*rows, wanted, folder, workers, tell)
        write_lines(folder / "trials.jsonl", [asdict(t) for t in trials])  # a round at once: it stays a stack
        shutil.rmtree(folder / "stacks", ignore_errors=True)  # its checkpoints: large, and not needed any more
    return trials


def _without_test(data: Dataset, search: Search) -> tuple[Dataset, Experiment]:
    """The data and the experiment of the search: its test rows are not there at all."""
    e, seed = search.experiment, search.config.seed
    train, valid, test = SPLITS[e.split](data, e.valid, e.test, seed)
    kept = np.ones(data.interactions.height, dtype=bool)
    kept[test] = False
    official = None if data.official is None else data.official[kept]
    rest = replace(data, interactions=data.interactions.filter(kept), official=official)
    share = len(valid) / (len(train) + len(valid))
    return rest, replace(e, seeds=(seed,), baselines=False, valid=share, test=0.0)


def _round(
    data: Dataset,
    experiment: Experiment,
    wanted: Sequence[Wanted],
    folder: Path,
    workers: int | None,
    tell: Progress,
) -> list[Trial]:
    """Train what is wanted, in stacks; where one fails, each by itself, so that only that one is lost."""
    settings = tuple(study.setting(f"{study.name} {number}", drawn) for study, number, drawn in wanted)
    experiment = replace(experiment, settings=settings)
    try:
        runs = compare(data, experiment, folder, workers=workers, progress=tell)
    except (ConfigError, TrainingError) as error:
        if len(wanted) > 1:
            return [t for one in wanted for t in _round(data, experiment, [one], folder, workers, tell)]
        study, number, drawn = wanted[0]
        return [Trial(study.name, number, drawn, None, why=str(error))]
    return [study.trial(number, drawn, run) for (study, number, drawn), run in zip(wanted, runs, strict=True)]


def _counting(progress: Progress | None, done: int, wanted: int, total: int) -> Progress:
    """Progress of a round's stacks as progress of the whole search, in hundredths of a trial."""
    shares: dict[str, float] = {}

    def tell(stack: str, steps: int, steps_total: int) -> None:
        shares[stack] = steps / steps_total
        if progress:
            progress("search", round(100 * (done + wanted * fmean(shares.values()))), 100 * total)

    return tell


def _chosen(data: Dataset, search: Search, studies: Sequence[Study], trials: Sequence[Trial]) -> Tuning:
    """Choose the points for the final comparison, and its seeds."""
    e, used = search.experiment, search.config.seed
    joint, *alone = studies
    points = choose(joint.values(trials), list(joint.metrics))
    best = {s.alone: _best(s, trials) for s in alone}
    seeds = tuple(sorted(max(e.seeds) + 1 if s == used else s for s in e.seeds))
    first, second = (SPLITS[e.split](data, e.valid, e.test, seed)[2] for seed in (used, seeds[0]))
    redrawn = not np.array_equal(first, second)
    return Tuning(tuple(studies), tuple(trials), tuple(points), best, seeds, redrawn)


def _best(study: Study, trials: Sequence[Trial]) -> Trial:
    values = study.values(trials)
    number = max(values, key=lambda n: (values[n], -n))
    return next(t for t in study.own(trials) if t.number == number)


def _plain(study: Study, trial: Trial) -> dict[str, Any]:
    rest: Mapping[str, Any] = {"values": trial.values, "epoch": trial.epoch} if trial.values else {"failed": trial.why}
    return {"trial": trial.number, "set": study.space.overrides(trial.drawn), **rest}
