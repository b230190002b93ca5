"""The command line: every command is a function of :mod:`polytask.cli.training` or :mod:`polytask.cli.shipping`."""

from polytask.cli import shipping as shipping
from polytask.cli import training as training
from polytask.cli.app import app, main

__all__ = ["app", "main"]
