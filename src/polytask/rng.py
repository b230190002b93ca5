"""Every random draw of the package: a generator that is a function of (seed, purpose, epoch, step).

No global state: drawing more for one purpose, or evaluating more often, changes nothing elsewhere, and a
resumed run draws what the uninterrupted one would have drawn.
"""

import zlib

import numpy as np


def generator(seed: int, purpose: str, epoch: int = 0, step: int = 0) -> np.random.Generator:
    """A counter-based (Philox) generator for one purpose at one moment.

    >>> generator(0, "order", epoch=3).integers(10) == generator(0, "order", epoch=3).integers(10)
    np.True_
    """
    entropy = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), epoch, step])
    return np.random.Generator(np.random.Philox(entropy))
