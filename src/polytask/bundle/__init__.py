"""A trained model as one folder from which it recommends for raw ids: no code in it, and nothing taken on trust."""

from polytask.bundle.bundle import Bundle as Bundle

__all__ = ["Bundle"]
