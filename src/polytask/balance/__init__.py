"""How the losses of the tasks become one: a balancer gives each task its weight."""

from collections.abc import Callable
from typing import Any

from polytask.balance.base import Balancer
from polytask.balance.fixed import Fixed

BALANCERS: dict[str, Callable[..., Any]] = {"fixed": Fixed}

__all__ = ["BALANCERS", "Balancer", "Fixed"]
