"""How a broken promise is told: an AssertionError of one line."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from polytask.errors import PolytaskError


class Claims:
    """Claims about ``what``, such as a body by its name, each told in a sentence if it does not hold."""

    def __init__(self, what: str) -> None:
        self.what = what

    def claim(self, holds: bool, sentence: str) -> None:
        """An AssertionError with ``sentence`` unless the promise ``holds``."""
        if not holds:
            raise AssertionError(f"{self.what}: {sentence}")

    def equal(
        self, found: Sequence[Tensor], expected: Sequence[Tensor], sentence: str, tolerance: tuple[float, float]
    ) -> None:
        """The claim that tensors are equal up to ``tolerance``, relative and as a share of 1 + the largest value."""
        relative, absolute = tolerance
        pairs = list(zip(found, expected, strict=True))
        alike = (
            f.shape == e.shape and torch.allclose(f, e, relative, absolute * (1 + _largest(e)), equal_nan=True)
            for f, e in pairs
        )
        self.claim(all(alike), sentence)

    @contextmanager
    def trying(self, sentence: str) -> Iterator[None]:
        """Any error inside is a broken promise; its own text follows ``sentence``."""
        try:
            yield
        except (AssertionError, PolytaskError):
            raise
        except Exception as error:
            first = str(error).strip().partition("\n")[0]
            raise AssertionError(f"{self.what}: {sentence}: {type(error).__name__}: {first}") from error


def _largest(values: Tensor) -> float:
    return float(values.detach().abs().max()) if values.numel() else 0.0
