"""How the report writes numbers, names and lists."""

from collections.abc import Sequence

from polytask.run import Run
from polytask.transfer import Gain

ARROWS = {"higher": "↑", "lower": "↓"}
_MINUS = "−"


def visible(text: str) -> str:
    """``text`` on one line: line ends, terminal codes and direction marks are shown, not obeyed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def number(value: float | None, digits: int = 4) -> str:
    """``value`` to so many significant digits; a dash for none."""
    if value is None:
        return "–"
    text = f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"
    return text.replace("-", _MINUS)


def signed(value: float) -> str:
    """A difference with its sign."""
    return ("+" if value > 0 else "") + number(value, 3)


def percent(share: float) -> str:
    """A relative difference with its sign: one decimal below ten percent, none above."""
    decimals = 0 if abs(share) >= 0.0995 else 1
    return f"{share:+.{decimals}%}".replace("-", _MINUS).replace("%", " %")


def interval(gain: Gain) -> str:
    """The 95 % interval of a gain, if it has one."""
    if gain.low is None or gain.high is None:
        return "one pair of seeds, no interval"
    return f"95 % interval {signed(gain.low)} to {signed(gain.high)}"


def epochs(values: Sequence[int]) -> str:
    """``epoch 12`` or ``epochs 11 to 12``."""
    low, high = min(values), max(values)
    return f"epoch {low}" if low == high else f"epochs {low} to {high}"


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
