"""A bundle's model for programs other than this one: ONNX, PyTorch's program format, vectors, and the model hub."""

from polytask.export.folder import FORMATS as FORMATS
from polytask.export.folder import export as export
from polytask.export.folder import summary as summary
from polytask.export.hub import pull as pull
from polytask.export.hub import push as push

__all__ = ["FORMATS", "export", "pull", "push", "summary"]
