"""What the server says of itself: JSON objects, one a line, on standard error; no ids, no tokens."""

import json
import logging
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from polytask.errors import visible


def log(event: str, facts: Mapping[str, Any] | None = None, level: str = "info") -> None:
    """Write one line about ``event``."""
    head = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level, "event": event}
    told = {name: visible(value) if isinstance(value, str) else value for name, value in (facts or {}).items()}
    sys.stderr.write(json.dumps(head | told) + "\n")
    sys.stderr.flush()


def log_fault(request: str, error: BaseException) -> None:
    """Write where an unexpected ``error`` came from; not what it says, for that may hold an id."""
    frames = [f"{f.filename.rpartition('/')[2]}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)]
    log("fault", {"request_id": request, "type": type(error).__name__, "at": frames[-8:]}, "error")


class Lines(logging.Handler):
    """Lets what the HTTP server reports come out in the same form."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record: its message template, for its arguments may hold what a client sent."""
        log("http", {"message": str(record.msg)}, record.levelname.lower())
