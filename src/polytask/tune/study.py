"""One search: what it proposes depends on its seed and its finished trials alone, so it can go on after a kill."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from polytask import rng
from polytask.balance import Balance
from polytask.compare import Setting
from polytask.errors import ConfigError
from polytask.metrics import metric
from polytask.run import Run
from polytask.tune.space import Choices, Space

Make = Callable[[str, Mapping[str, Any]], Setting]
Draw = dict[str, float]


@dataclass(frozen=True)
class Trial:
    """One training of a search: what was ``drawn``, and each task's first metric on validation data.

    ``values`` are those of the ``epoch`` whose weights the run keeps; None where training failed, and ``why``.
    """

    study: str
    number: int
    drawn: Draw
    values: dict[str, float] | None
    epoch: int = 0
    why: str = ""


@dataclass(frozen=True)
class Study:
    """A search of the joint model, or of the single model of the task ``alone``.

    ``make`` turns a name and dotted overrides into a setting. ``metrics`` names the objectives: by task its first
    metric, on validation data. ``trials`` are searched, ``together`` of them proposed at once.
    """

    name: str
    make: Make
    space: Space
    metrics: Mapping[str, str]
    trials: int
    together: int
    seed: int
    alone: str = ""

    def setting(self, name: str, drawn: Draw) -> Setting:
        """The setting of a draw; in a single-task study the other losses have weight 0, and nothing is balanced."""
        made = self.make(name, self.space.overrides(drawn))
        if not self.alone:
            return made
        weights = {t: float(t == self.alone) for t in made.weights}
        return Setting(name, made.design.joined(), weights, replace(made.train, balance=Balance()))

    def own(self, trials: Sequence[Trial]) -> list[Trial]:
        """Its own among ``trials``, in order."""
        return sorted((t for t in trials if t.study == self.name and t.number < self.trials), key=lambda t: t.number)

    def values(self, trials: Sequence[Trial]) -> dict[int, list[float]]:
        """The objectives of its finished trials by number, all better higher; none is a :class:`ConfigError`."""
        own = self.own(trials)
        if found := {t.number: self._signed(t.values) for t in own if t.values is not None}:
            return found
        raise ConfigError(f"tune: every trial of '{self.name}' failed, the last so: {own[-1].why}")

    def next(self, trials: Sequence[Trial]) -> list[tuple[int, Draw]]:
        """Numbers and draws of the round after ``trials``; of a round that was cut short, what is missing."""
        own = self.own(trials)
        start = len(own) // self.together * self.together
        stop = min(start + self.together, self.trials)
        draws = self._drawn(own[:start], stop - start) if len(own) < stop else []
        return [(n, draws[n - start]) for n in range(len(own), stop)]

    def trial(self, number: int, drawn: Draw, run: Run) -> Trial:
        """What came of a training."""
        values: dict[str, float] = {}
        for task, name in self.metrics.items():
            if (curve := run.curve("valid", task, name)).get(run.kept) is None:
                why = f"{name} of task '{task}' could not be computed on valid at epoch {run.kept}"
                return Trial(self.name, number, drawn, None, run.kept, why)
            values[task] = curve[run.kept]
        return Trial(self.name, number, drawn, values, run.kept)

    def _signed(self, values: Mapping[str, float]) -> list[float]:
        return [v if metric(self.metrics[t]).better == "higher" else -v for t, v in values.items()]

    def _drawn(self, past: Sequence[Trial], count: int) -> list[Draw]:
        """Proposals of the tree-structured Parzen estimator (Bergstra et al., 2011; Ozaki et al., 2022)."""
        try:
            import optuna
        except ImportError:
            raise ConfigError('tune needs optuna: pip install "polytask[tune]"') from None
        spread: dict[str, optuna.distributions.BaseDistribution] = {}
        for key, place in self.space.items():
            if isinstance(place, Choices):
                spread[key] = optuna.distributions.CategoricalDistribution(range(len(place.examples)))
            elif place.whole:
                spread[key] = optuna.distributions.IntDistribution(int(place.low), int(place.high), log=place.log)
            else:
                spread[key] = optuna.distributions.FloatDistribution(place.low, place.high, log=place.log)
        seed = rng.generator(self.seed, f"tune/{self.name}", step=len(past)).integers(2**31)
        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            sampler = optuna.samplers.TPESampler(seed=int(seed))
            study = optuna.create_study(directions=["maximize"] * len(self.metrics), sampler=sampler)
            study.add_trials(
                optuna.trial.create_trial(params=dict(t.drawn), distributions=spread, values=self._signed(t.values))
                for t in past
                if t.values is not None
            )
            return [study.ask(spread).params for _ in range(count)]
        finally:
            optuna.logging.set_verbosity(before)
