"""What is measured: workloads, their contenders and aims, and what a contender is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

PROFILES = ("quick", "standard", "full")
Form = Literal["speed", "time", "share", "value"]
Found = dict[str, float]


class SkippedError(Exception):
    """A contender cannot take part here, for the reason given."""


@dataclass(frozen=True)
class Case:
    """One run of one contender: the ``folder`` of the workload's arrays, its ``size``, the contender's ``options``."""

    folder: Path
    size: Mapping[str, Any]
    options: Mapping[str, Any]
    seed: int
    threads: int
    device: str = "cpu"


@dataclass(frozen=True)
class Contender:
    """Who is measured: ``call`` names the function ("module:function") that takes a :class:`Case` and gives figures.

    It runs in the virtual ``environment`` of that name below bench/, if there is one, else in the suite's own.
    """

    name: str
    call: str
    note: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    profiles: tuple[str, ...] = PROFILES
    environment: str = ".venv"


@dataclass(frozen=True)
class Column:
    """A quantity of the table, and how it is written."""

    quantity: str
    heading: str
    form: str = "{:,.0f}"


@dataclass(frozen=True)
class Aim:
    """What the best of ``ours`` must reach beside the best of ``against``.

    speed: ours / theirs, time: theirs / ours, both to be at least floor and goal; share: ours / theirs, value: ours
    alone, both at most. ``equal`` are quantities in which ours may not be worse, each "higher" or "lower" is better.
    """

    label: str
    ours: tuple[str, ...]
    against: tuple[str, ...]
    quantity: str
    form: Form
    floor: float
    goal: float
    equal: Mapping[str, Literal["higher", "lower"]] = field(default_factory=dict)
    unit: str = "×"


@dataclass(frozen=True)
class Workload:
    """Contenders on the same data: ``make`` ("module:function") writes arrays of a size and gives facts about them."""

    name: str
    title: str
    text: str
    make: str
    contenders: tuple[Contender, ...]
    columns: tuple[Column, ...]
    sizes: Mapping[str, Mapping[str, Any]]
    aims: tuple[Aim, ...] = ()
    rounds: Mapping[str, int] = field(default_factory=lambda: {"quick": 1, "standard": 3, "full": 4})

    def taking_part(self, profile: str) -> list[Contender]:
        """The contenders of a profile."""
        return [c for c in self.contenders if profile in c.profiles]
