"""Generated worlds whose relation between two tasks is planted: what a diagnosis must find, and where it must not.

Every world has two regressions ``first`` and ``second`` on the same rows, and comes with the network, the training
configuration and the loss weights in which the planted relation takes effect. Throughout, x ~ N(0, I) are the rows'
numbers, ε ~ N(0, 1) is noise drawn for each label, and w_1, w_2, .. are orthonormal directions. An effect is
standardized to variance 1, so the smallest possible mse of a task is the variance of its noise.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from polytask.data.table import Dataset, read_dataset
from polytask.errors import ConfigError, did_you_mean
from polytask.rng import generator
from polytask.schema import Field, Schema, Task

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Columns = Mapping[str, Floats | Ints]
Cause = Literal["conflicting gradients", "loss scale", "capacity", "embedding interference", "early stopping"]

ROWS = 6000
"""Rows of a world, but for ``opposed``."""
NOISE = 0.5
"""Standard deviation of a label's noise unless a world says otherwise."""
PAIRS = 2500
"""Rows of ``opposed``: each another pair of its ``SIDE`` users and ``SIDE`` items."""
SIDE = 60
SCALE = 1000.0
"""By how much one loss outweighs the other in ``imbalanced``."""
LABELED = 0.3
"""Share of the rows of ``aligned`` on which the second label is known."""
ANGLE = 60.0
"""Degrees between a direction of the first task and its fellow of the second in ``starved``."""
LIKENESS = -0.6
"""Correlation of the two tasks' effects of a category in ``tables``."""


@dataclass(frozen=True)
class World:
    """A data set with a planted relation, and how to train on it so that the relation shows.

    ``model`` and ``train`` are keywords of :class:`polytask.nn.design.Design` and :class:`polytask.TrainConfig`,
    ``weights`` the loss weights. ``cause`` is why sharing harms, None where it does not; an ``early stopping`` world
    is harmed at the kept epoch alone.
    """

    kind: str
    data: Dataset
    cause: Cause | None
    model: Mapping[str, Any]
    train: Mapping[str, Any]
    weights: Mapping[str, float] = field(default_factory=lambda: {"first": 1.0, "second": 1.0})


def world(kind: str, seed: int = 0) -> World:
    """The world of one of the ``WORLDS`` with the numbers of ``seed``; an unknown kind is a :class:`ConfigError`."""
    if kind not in WORLDS:
        raise ConfigError(did_you_mean("world", kind, WORLDS))
    return WORLDS[kind](generator(seed, f"world {kind}"))


def _aligned(draw: np.random.Generator) -> World:
    """y_t = f(x) + 0.5 ε_t with f ∝ |w_1·x| + |w_2·x|; the second label is known on 30 % of the rows.

    Why sharing helps: both labels teach one function, and the second alone has fewer rows to learn it from.
    """
    x = draw.standard_normal((ROWS, 6))
    effect = _ridges(x, _directions(6, draw)[:2])
    first, second = effect + _noise(draw), effect + _noise(draw)
    second[draw.random(ROWS) >= LABELED] = np.nan
    return World("aligned", _dataset(_numbers(x), first, second), None, _bottom(64), _slow())


def _unrelated(draw: np.random.Generator) -> World:
    """y_t = f_t(x) + 0.5 ε_t with f_1 ∝ |w_1·x| + |w_2·x| and f_2 ∝ |w_3·x| + |w_4·x|; the trunk holds both.

    Why sharing does no harm: each task needs a handful of the trunk's 64 ReLUs and leaves the others alone.
    """
    return World("unrelated", _independent(draw), None, _bottom(64), _slow())


def _imbalanced(draw: np.random.Generator) -> World:
    """As ``unrelated`` in everything, but the first loss counts 1000 times as much.

    Why sharing harms: the trunk follows the sum of the gradients, which is the first task's. The second has its
    head alone to learn with, on features made for another function; with equal weights it would not pay.
    """
    weights = {"first": SCALE, "second": 1.0}
    return World("imbalanced", _independent(draw), "loss scale", _bottom(64), _slow(), weights)


def _starved(draw: np.random.Generator) -> World:
    """y_t = f_t(x) + 0.5 ε_t, f_t ∝ Σ_k |v_tk·x| over five directions, v_2k at 60° to v_1k; a trunk of 8 ReLUs.

    Why sharing harms: |v·x| = 2 relu(v·x) − v·x, so one task needs five ReLUs and one or two for the linear rest,
    and two need twice as many. A wide trunk holds both, and then nobody pays.
    """
    x, own = draw.standard_normal((ROWS, 10)), _directions(10, draw)
    angle = np.radians(ANGLE)
    turned = np.cos(angle) * own[:5] + np.sin(angle) * own[5:]
    labels = [_ridges(x, directions) + _noise(draw) for directions in (own[:5], turned)]
    return World("starved", _dataset(_numbers(x), *labels), "capacity", _bottom(8), _train(lr=0.02))


def _opposed(draw: np.random.Generator) -> World:
    """y_1 = s + 0.5 ε_1 and y_2 = −s + 0.5 ε_2 with s ∝ p_u·q_i, both predicted by the inner product of u and i.

    Why sharing harms: both tasks are one and the same function of the shared embeddings, but for first-order terms,
    and no width lets one function be s and −s. Tower heads would turn the sign around, inner products cannot.
    """
    users, items = draw.standard_normal((2, SIDE, 2))
    picked = draw.choice(SIDE * SIDE, PAIRS, replace=False)
    user, item = picked // SIDE, picked % SIDE
    taste = _standard((users[user] * items[item]).sum(axis=1))
    first, second = taste + _noise(draw, PAIRS), -taste + _noise(draw, PAIRS)
    schema = Schema(tuple(_task(name, head="dot") for name in ("first", "second")), user="user", item="item")
    data = _read({"user": user, "item": item}, first, second, schema)
    return World("opposed", data, "conflicting gradients", {"body": "factorize", "dim": 4}, _train(epochs=40, lr=0.02))


def _tables(draw: np.random.Generator) -> World:
    """y_t = f(x) + Σ_k a_tk[c_k] / √3 + 0.5 ε_t, f ∝ |w_1·x|; three categories c_k of 60 values; embeddings of width 1.

    The effects a_1k and a_2k of a category's values have variance 1 and correlation −0.6. Why sharing harms: one number
    per value cannot say both effects, so the tables end in between, while the trunk learns one f for both tasks. Wider
    tables, or tables of a task's own, hold both.
    """
    x = draw.standard_normal((ROWS, 4))
    shared = _ridges(x, _directions(4, draw)[:1])
    categories = draw.integers(60, size=(3, ROWS))
    first, second = shared + _noise(draw), shared + _noise(draw)
    for values in categories:
        one, two = _standard(draw.standard_normal((2, 60)), axis=1)
        two = _standard(two - (one @ two) / 60 * one)
        both = LIKENESS * one + np.sqrt(1 - LIKENESS**2) * two
        first, second = first + one[values] / np.sqrt(3), second + both[values] / np.sqrt(3)
    columns = _numbers(x) | {f"c{k}": values for k, values in enumerate(categories)}
    return World("tables", _dataset(columns, first, second), "embedding interference", _bottom(32, dim=1), _train())


def _stopping(draw: np.random.Generator) -> World:
    """y_1 = w_1·x + 1.5 ε_1 and y_2 ∝ sin(1.2 w_2·x) + 0.5 ε_2, beside an id of 800 values that means nothing.

    Why the kept epoch harms: the first task learns its line in two or three epochs and then learns the ids by heart,
    the second needs many epochs for its wave; the one epoch kept for both is too late for the first. At its own
    best epoch neither pays.
    """
    rows = 5000
    x, (one, two) = draw.standard_normal((rows, 4)), _directions(4, draw)[:2]
    first = _standard(x @ one) + 3 * _noise(draw, rows)
    second = _standard(np.sin(1.2 * (x @ two))) + _noise(draw, rows)
    columns = _numbers(x) | {"id": draw.integers(800, size=rows)}
    return World("stopping", _dataset(columns, first, second), "early stopping", _bottom(64), _train(epochs=40))


WORLDS: dict[str, Callable[[np.random.Generator], World]] = {
    "aligned": _aligned,
    "unrelated": _unrelated,
    "opposed": _opposed,
    "imbalanced": _imbalanced,
    "starved": _starved,
    "tables": _tables,
    "stopping": _stopping,
}


def _independent(draw: np.random.Generator) -> Dataset:
    x, directions = draw.standard_normal((ROWS, 6)), _directions(6, draw)
    first, second = (_ridges(x, own) + _noise(draw) for own in (directions[:2], directions[2:4]))
    return _dataset(_numbers(x), first, second)


def _directions(width: int, draw: np.random.Generator) -> Floats:
    """Orthonormal rows [width, width]."""
    return np.linalg.qr(draw.standard_normal((width, width)))[0]


def _ridges(x: Floats, directions: Floats) -> Floats:
    """The standardized Σ_k |w_k·x| [N] of x [N, d] and directions [K, d]."""
    return _standard(np.abs(x @ directions.T).sum(axis=1))


def _standard(values: Floats, axis: int | None = None) -> Floats:
    found: Floats = (values - values.mean(axis=axis, keepdims=True)) / values.std(axis=axis, keepdims=True)
    return found


def _noise(draw: np.random.Generator, rows: int = ROWS) -> Floats:
    return NOISE * draw.standard_normal(rows)


def _bottom(width: int, dim: int = 2) -> dict[str, Any]:
    """A trunk of one hidden layer and linear heads."""
    return {"body": "shared_bottom", "dim": dim, "tower": (), "options": (("layers", (width,)),)}


def _train(epochs: int = 30, lr: float = 0.01) -> dict[str, Any]:
    return {"epochs": epochs, "batch": 200, "lr": lr, "patience": 0, "unknown": 0.0}


def _slow() -> dict[str, Any]:
    """Small steps: with twice as large ones either of two unrelated tasks pays some tenths of a percent."""
    return _train(epochs=40, lr=0.005)


def _task(name: str, head: Literal["tower", "dot"] = "tower") -> Task:
    return Task(name, "regression", label=f"{name}_label", head=head)


def _numbers(x: Floats) -> dict[str, Floats | Ints]:
    return {f"x{k}": column for k, column in enumerate(x.T)}


def _dataset(columns: Columns, first: Floats, second: Floats) -> Dataset:
    kinds: dict[str, Literal["number", "category"]] = {
        n: "number" if v.dtype.kind == "f" else "category" for n, v in columns.items()
    }
    schema = Schema((_task("first"), _task("second")), tuple(Field(name, kind) for name, kind in kinds.items()))
    return _read(columns, first, second, schema)


def _read(columns: Columns, first: Floats, second: Floats, schema: Schema) -> Dataset:
    frame = pl.DataFrame(dict(columns) | {"first_label": first, "second_label": second}, nan_to_null=True)
    return read_dataset(frame, schema, name="world")
