"""Two generated regressions whose likeness is a dial: the data-free experiment of the MMoE paper."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from polytask.data.table import Dataset, read_dataset
from polytask.errors import ConfigError
from polytask.rng import generator
from polytask.schema import Field, Schema, Task

Floats = NDArray[np.float64]

WIDTH = 100
"""Numbers per row, as in the paper."""
NOISE = 0.1
"""Standard deviation of the labels' noise: the paper's variance is 0.01."""
FREQUENCIES = np.array([1.541, -0.2934, -2.1788, 0.5684, -1.0845, -1.3986, 0.4033, 0.838, -0.7193, -0.4033])
"""α_i of the sines; the paper does not give its own."""
PHASES = np.array([-0.5966, 0.182, -0.8567, 1.1006, -1.0712, 0.1227, -0.5663, 0.3731, -0.892, -1.5091])
"""β_i of the sines."""


def synthetic_regression(
    rows: int = 20_000, width: int = WIDTH, correlation: float = 0.5, drawn: bool = False, seed: int = 0
) -> Dataset:
    """Rows x ~ N(0, I) of ``width`` numbers with two labels, after Ma et al. (MMoE, KDD 2018, section 3.2).

        y_k = w_k·x + Σ_i sin(α_i w_k·x + β_i) + N(0, 0.1²),   |w_k| = 1,   w_1·w_2 = ``correlation``

    The paper calls the cosine of w_1 and w_2 the tasks' correlation; the labels' own is lower. α and β are
    ``FREQUENCIES`` and ``PHASES``, or with ``drawn`` numbers from N(0, 1) that belong to the seed: then a
    comparison over seeds must be paired, because some draws are far harder than others. A shape that is
    impossible is a :class:`ConfigError`.
    """
    if rows < 1 or width < 2 or not -1 <= correlation <= 1:
        raise ConfigError(
            f"synthetic regression: rows = {rows} must be at least 1, width = {width} at least 2 "
            f"and correlation = {correlation} in -1..1"
        )
    waves = generator(seed, "synthetic waves").standard_normal((2, len(PHASES))) if drawn else (FREQUENCIES, PHASES)
    weights = directions(correlation, width, generator(seed, "synthetic directions"))
    x = generator(seed, "synthetic rows").standard_normal((rows, width))
    noise = NOISE * generator(seed, "synthetic noise").standard_normal((rows, 2))
    labels = response(x @ weights.T, *waves) + noise
    numbers = {f"x{n}": x[:, n] for n in range(width)}
    schema = Schema(
        tasks=(Task("first", "regression", label="y1"), Task("second", "regression", label="y2")),
        fields=tuple(Field(name, "number") for name in numbers),
    )
    frame = pl.DataFrame(numbers | {"y1": labels[:, 0], "y2": labels[:, 1]})
    return read_dataset(frame, schema, name="synthetic-regression")


def directions(correlation: float, width: int, draw: np.random.Generator) -> Floats:
    """Unit vectors w_1 and w_2 [2, width] in random directions with the cosine ``correlation``."""
    u1, u2 = draw.standard_normal((2, width))
    u1 /= np.linalg.norm(u1)
    u2 -= (u1 @ u2) * u1
    u2 /= np.linalg.norm(u2)
    return np.stack([u1, correlation * u1 + np.sqrt(1 - correlation**2) * u2])


def response(projected: Floats, frequencies: Floats = FREQUENCIES, phases: Floats = PHASES) -> Floats:
    """s + Σ_i sin(α_i s + β_i) for each s of ``projected``: a label before its noise."""
    sines: Floats = np.sin(projected[..., None] * frequencies + phases).sum(axis=-1)
    return projected + sines
