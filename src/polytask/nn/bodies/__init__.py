"""What stands between the embeddings and the heads, and decides how tasks share.

A body is a module made from a :class:`Shape` and its own options; its ``forward`` takes embeddings
[B, F, dim] to one representation [B, width] per task.
"""

from collections.abc import Callable
from typing import Any

from polytask.nn.bodies.factorize import Factorize
from polytask.nn.bodies.shape import Body, Shape
from polytask.nn.bodies.shared_bottom import SharedBottom

BODIES: dict[str, Callable[..., Any]] = {
    "factorize": Factorize,
    "shared_bottom": SharedBottom,
}

__all__ = ["BODIES", "Body", "Factorize", "Shape", "SharedBottom"]
