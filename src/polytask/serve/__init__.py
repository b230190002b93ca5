"""Recommendations over HTTP: one bundle, safe defaults, replaced while it serves; and a page to look at it."""

from polytask.serve.run import serve as serve
from polytask.serve.settings import Limits as Limits
from polytask.serve.settings import Options as Options

__all__ = ["Limits", "Options", "serve"]
