"""What stands between the embeddings and the heads, and decides how tasks share.

A body is a module made from a :class:`Shape` and its own options; its ``forward`` takes embeddings
[B, F, dim] to one representation [B, width] per task.
"""

from collections.abc import Callable
from typing import Any

from polytask.nn.bodies.adatt import Adatt
from polytask.nn.bodies.aitm import Aitm
from polytask.nn.bodies.cross_stitch import CrossStitch
from polytask.nn.bodies.dselect_k import DSelectK
from polytask.nn.bodies.factorize import Factorize
from polytask.nn.bodies.home import Home
from polytask.nn.bodies.mmoe import Mmoe, Omoe
from polytask.nn.bodies.mose import Mose
from polytask.nn.bodies.ple import Cgc, Ple
from polytask.nn.bodies.shape import Body, Shape
from polytask.nn.bodies.shared_bottom import SharedBottom
from polytask.nn.bodies.sluice import Sluice
from polytask.nn.bodies.snr import Snr
from polytask.nn.bodies.sparse_moe import SparseMoe
from polytask.nn.bodies.stem import Stem

BODIES: dict[str, Callable[..., Any]] = {
    "adatt": Adatt,
    "aitm": Aitm,
    "cgc": Cgc,
    "cross_stitch": CrossStitch,
    "dselect_k": DSelectK,
    "factorize": Factorize,
    "home": Home,
    "mmoe": Mmoe,
    "mose": Mose,
    "omoe": Omoe,
    "ple": Ple,
    "shared_bottom": SharedBottom,
    "sluice": Sluice,
    "snr": Snr,
    "sparse_moe": SparseMoe,
    "stem": Stem,
}

__all__ = ["BODIES", "Body", "Factorize", "Shape", "SharedBottom"]
