"""How the report writes numbers, names and lists."""

from collections.abc import Sequence
from math import floor, log10

from polytask.run import Run
from polytask.significance import Estimate
from polytask.transfer import Gain

ARROWS = {"higher": "↑", "lower": "↓", "near 1": "→ 1"}
MINUS = "−"
"""The sign of a number below 0."""


def number(value: float | None, scale: float | None = None, sign: str = "-") -> str:
    """``value`` with the decimals that give ``scale`` (itself by default) four digits; a dash for none.

    A difference beside its values is written with their scale, so that both can be compared digit by digit.
    """
    if value is None:
        return "–"
    size = abs(value if scale is None else scale)
    decimals = max(0, 3 - floor(log10(size))) if size else 1
    if decimals > 8:
        return f"{value:{sign}.3g}".replace("-", MINUS)
    return f"{value:{sign}z,.{decimals}f}".replace("-", MINUS)


def spread(mean: float | None, sd: float | None) -> str:
    """A mean and its standard deviation, if it has one."""
    return number(mean) if sd is None else f"{number(mean)} ± {number(sd, mean)}"


def percent(share: float) -> str:
    """A relative difference with its sign: one decimal below ten percent, none above."""
    decimals = 0 if abs(share) >= 0.0995 else 1
    return f"{share:+z.{decimals}%}".replace("-", MINUS)


def probability(p: float | None) -> str:
    """A probability to three decimals, or what it is below; a dash for none."""
    if p is None:
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def interval(gain: Gain) -> str:
    """The 95 % interval of a gain, if it has one, in a sentence."""
    return ends(gain) if gain.low is None else f"95 % interval {ends(gain)}"


def ends(gain: Gain) -> str:
    """The ends of the 95 % interval of a gain, with the digits of the values compared."""
    if gain.low is None or gain.high is None:
        return "one pair of seeds"
    low, high = (number(end, gain.alone, "+") for end in (gain.low, gain.high))
    return f"{low} to {high}"


def share_interval(found: Estimate) -> str:
    """The 95 % interval of an estimate in percent, in a sentence."""
    if found.low is None or found.high is None:
        return "one pair of seeds"
    return f"95 % interval {percent(found.low / 100)} to {percent(found.high / 100)}"


def epochs(values: Sequence[int]) -> str:
    """``epoch 12`` or ``epochs 11 to 12``."""
    low, high = min(values), max(values)
    return f"epoch {low}" if low == high else f"epochs {low} to {high}"


def counted(count: int, word: str) -> str:
    """``1 task`` or ``3 tasks``."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def quoted(names: Sequence[str]) -> str:
    """``'a', 'b' and 'c'``."""
    return joined([f"'{name}'" for name in names])


def joined(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def weights_of(run: Run) -> str:
    """The loss weights of the tasks that were trained."""
    return ", ".join(f"{task} {run.weights[task]:g}" for task in run.tasks)


def where(part: str) -> str:
    """What a part of the data is called in a sentence."""
    return "validation data" if part == "valid" else "test data"
