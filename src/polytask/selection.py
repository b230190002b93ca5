"""Which epoch to keep, and when to stop: decided on validation scores by one stated rule.

Every task is judged by its first metric. Its *shortfall* at an epoch is how far that epoch falls behind the
task's own best so far, relative to that best. The joint best epoch is the one with the smallest mean
shortfall over the tasks that are trained: a later epoch replaces it when its mean is strictly smaller.
Training stops when ``patience`` evaluations in a row neither replaced it nor gave any task a new best of its
own: a task that peaks early does not end the training of one that still learns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from polytask.metrics import metric
from polytask.schema import Schema

Values = Mapping[str, Mapping[str, float | None]]


@dataclass
class Selection:
    """The rule applied to one run, fed one evaluation after the other.

    ``tasks`` are those with a weight above 0. ``joint`` is the joint best epoch, ``own`` each task's own best
    epoch, both 0 before the first evaluation.
    """

    schema: Schema
    tasks: tuple[str, ...]
    patience: int = 0
    joint: int = 0
    own: dict[str, int] = field(default_factory=dict)
    stale: int = 0
    _best: dict[str, float] = field(default_factory=dict)
    _joint: dict[str, float] = field(default_factory=dict)

    def update(self, epoch: int, scores: Values) -> bool:
        """Take the scores of ``epoch``; whether it is the joint best now."""
        signed = {t: s for t in self.tasks if (s := self._signed(t, scores)) is not None}
        learned = {t: v for t, v in signed.items() if t not in self._best or v > self._best[t]}
        self._best |= learned
        self.own |= dict.fromkeys(learned, epoch)
        better = not self._joint or self._shortfall(signed) < self._shortfall(self._joint)
        if better:
            self.joint, self._joint = epoch, signed
        self.stale = 0 if better or learned else self.stale + 1
        return better

    @property
    def stopped(self) -> bool:
        """Whether training should end."""
        return 0 < self.patience <= self.stale

    def _signed(self, task: str, scores: Values) -> float | None:
        name = self.schema.task(task).metrics[0]
        value = scores[task][name]
        return None if value is None else value * (1 if metric(name).better == "higher" else -1)

    def _shortfall(self, signed: Mapping[str, float]) -> float:
        falls = [(self._best[t] - v) / max(abs(self._best[t]), 1e-12) for t, v in signed.items()]
        return sum(falls) / max(len(falls), 1)
