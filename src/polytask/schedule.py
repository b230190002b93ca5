"""Learning-rate schedules: the factor on the learning rate as a function of how much of training is done."""

import math
from collections.abc import Callable

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.01 + 0.99 * (1.0 + math.cos(math.pi * done)) / 2.0,
}
