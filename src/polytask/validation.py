"""Does the diagnosis say the truth? Worlds whose truth is planted, trained and judged as any comparison is."""

import json
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from polytask.affinity import TOTAL
from polytask.compare import Experiment, Setting, compare
from polytask.data.worlds import WORLDS, world
from polytask.diagnose import diagnose
from polytask.evidence import evidence
from polytask.files import write_json, write_text
from polytask.nn.design import Design
from polytask.run import WIDER, Run, TrainConfig
from polytask.transfer import transfers

SEEDS = tuple(range(5))
"""Seeds of each world's paired comparison."""
MARGIN = 0.05
"""The share of a single-task error below which a difference counts as none here."""
_VALID, _TEST = 0.2, 0.3
_PROBE_STEPS = 20  # the trainings are short: by default they would be probed a few times only
_SEEN_ALIKE = ("conflicting gradients", "embedding interference", "unexplained")
_JOINT = "joint"
_NONE = "none"


@dataclass(frozen=True)
class Trial:
    """One world judged: its ``kind`` and ``seed``, the ``planted`` cause and the one that was ``named``.

    ``harmed``: the tasks said to pay, at their own best epoch or at the kept one. ``gains`` are the relative gains at
    the own best epochs, ``relation`` what the tasks' gradients were said to be to each other.
    """

    kind: str
    seed: int
    planted: str
    named: str
    harmed: tuple[str, ...]
    gains: dict[str, float]
    relation: str

    @property
    def right(self) -> bool:
        """Whether the planted cause was named, or no harm was claimed where there is none."""
        return self.named == self.planted


def judge(kind: str, seed: int, folder: Path) -> Trial:
    """Train a world's joint and single-task models and say what a report would.

    Where a conflict is named, a wider trunk is trained too, as the report advises: it tells too little capacity apart.
    """
    made = world(kind, seed)
    train = TrainConfig(**dict(made.train) | {"probe_steps": _PROBE_STEPS})
    setting = Setting(_JOINT, Design(**made.model), dict(made.weights), train)
    wide = setting.widened()
    assert wide is not None
    place = folder / f"{kind}-{seed}"

    def trained(chosen: Setting, name: str) -> list[Run]:
        return compare(made.data, Experiment((chosen,), SEEDS, valid=_VALID, test=_TEST), place / name, workers=1)

    runs = trained(setting, "joint")
    trial = told(kind, seed, made.cause or _NONE, runs)
    if trial.named in _SEEN_ALIKE:
        wider = [replace(r, name=f"{r.name}{WIDER}" if r.alone else r.name) for r in trained(wide, "wider")]
        trial = told(kind, seed, made.cause or _NONE, [*runs, *wider])
    shutil.rmtree(place)
    return trial


def told(kind: str, seed: int, planted: str, runs: Sequence[Run]) -> Trial:
    """What a report on the ``runs`` says of the joint setting."""
    settings = {n: [r for r in runs if r.name == n] for n in dict.fromkeys(r.name for r in runs)}
    judged = transfers(settings, margin=MARGIN)
    findings = diagnose(settings, judged)
    (joint,) = (t for t in judged if t.setting == _JOINT)
    harmed = [t for t, v in joint.tasks.items() if v.harmed]
    causes = Counter(f.kind for f in findings if f.task in harmed and f.settings == (_JOINT,) and f.remedy)
    named = causes.most_common(1)[0][0] if causes else _NONE
    known = evidence(settings[_JOINT])
    relation = known.cosines[TOTAL][0].relation if known else "noise"
    gains = {t: v.own.relative for t, v in joint.tasks.items()}
    return Trial(kind, seed, planted, named, tuple(harmed), gains, relation)


def validate(
    folder: Path,
    worlds: Iterable[int] = range(20),
    kinds: Sequence[str] = (),
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Trial]:
    """Judge the worlds of every kind; finished ones are kept in ``folder`` and not judged again."""
    numbers = list(worlds)
    wanted = [(kind, seed, folder) for seed in numbers for kind in kinds or WORLDS]
    waiting = [job for job in wanted if not _kept(*job).exists()]
    progress(len(wanted) - len(waiting), len(wanted))
    if workers == 1:
        results: Iterable[None] = map(_judge_and_keep, waiting)
        _count(results, len(wanted) - len(waiting), len(wanted), progress)
    else:
        with multiprocessing.get_context("spawn").Pool(workers, initializer=_one_thread) as pool:
            results = pool.imap_unordered(_judge_and_keep, waiting)
            _count(results, len(wanted) - len(waiting), len(wanted), progress)
    return [_read(_kept(*job)) for job in wanted]


def _count(results: Iterable[None], done: int, total: int, progress: Callable[[int, int], None]) -> None:
    for number, _ in enumerate(results, done + 1):
        progress(number, total)


def _judge_and_keep(job: tuple[str, int, Path]) -> None:
    write_json(_kept(*job), asdict(judge(*job)))


def _kept(kind: str, seed: int, folder: Path) -> Path:
    return folder / "worlds" / f"{kind}-{seed}.json"


def _read(path: Path) -> Trial:
    value = json.loads(path.read_text("utf-8"))
    return Trial(**value | {"harmed": tuple(value["harmed"])})


def _one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Validation:
    """What the trials say together: shares of worlds, each with how many there were."""

    found: tuple[int, int]
    claimed: tuple[int, int]
    named: tuple[int, int]
    confusion: dict[str, dict[str, int]]

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> "Validation":
        """Harm found where it is planted, claimed where it is not, and causes named rightly of those planted."""
        planted = [t for t in trials if t.planted != _NONE]
        free = [t for t in trials if t.planted == _NONE]
        confusion: dict[str, Counter[str]] = {}
        for trial in trials:
            confusion.setdefault(trial.kind, Counter())[trial.named] += 1
        return cls(
            (sum(bool(t.harmed) for t in planted), len(planted)),
            (sum(bool(t.harmed) for t in free), len(free)),
            (sum(t.right for t in planted), len(planted)),
            {kind: dict(counts) for kind, counts in confusion.items()},
        )

    def lines(self) -> list[str]:
        """The outcome in three sentences."""
        texts = ("harm found where it is planted", "harm claimed where there is none", "the planted cause named")
        counts = (self.found, self.claimed, self.named)
        return [f"{text}: {a} of {b} worlds ({a / max(b, 1):.1%})" for text, (a, b) in zip(texts, counts, strict=True)]

    def markdown(self) -> str:
        """The outcome, and the confusion matrix: planted kinds by row, named causes by column."""
        causes = sorted({name for row in self.confusion.values() for name in row})
        rows = [
            f"| {kind} | {' | '.join(str(row.get(c, 0)) for c in causes)} |" for kind, row in self.confusion.items()
        ]
        head = [f"| planted | {' | '.join(causes)} |", f"|---|{'---:|' * len(causes)}"]
        return "\n".join([*(f"* {line}" for line in self.lines()), "", *head, *rows]) + "\n"


def report(trials: Sequence[Trial], folder: Path) -> Validation:
    """Write ``validation.json`` and ``validation.md`` on the ``trials`` to ``folder``."""
    found = Validation.of(trials)
    write_json(folder / "validation.json", {"trials": [asdict(t) for t in trials], **asdict(found)})
    write_text(folder / "validation.md", found.markdown())
    return found
