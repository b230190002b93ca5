"""Checks for those who add parts of their own: everything the package relies on, one broken promise at a time."""

from polytask.testing.balancers import check_balancer
from polytask.testing.bodies import NAMES, check_body
from polytask.testing.losses import check_loss
from polytask.testing.metrics import check_metric

__all__ = ["NAMES", "check_balancer", "check_body", "check_loss", "check_metric"]
