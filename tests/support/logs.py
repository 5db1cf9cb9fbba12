"""What Relay logs, as events instead of lines."""

from collections.abc import Iterator
from contextlib import contextmanager

from structlog.testing import LogCapture
from structlog.typing import EventDict

from relay.observe import logs


@contextmanager
def capture_logs() -> Iterator[list[EventDict]]:
    """Collect the events of all rooms; none is written."""
    before = logs._PROCESSORS.copy()
    captured = LogCapture()
    logs._PROCESSORS[:] = [captured]
    try:
        yield captured.entries
    finally:
        logs._PROCESSORS[:] = before
