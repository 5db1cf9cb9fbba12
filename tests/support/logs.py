"""What Relay logs, as events instead of lines."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from relay.base.observe import logs


@contextmanager
def capture_logs() -> Iterator[list[dict[str, Any]]]:
    """Collect the events of all rooms; none is written. `log_level` is the level's name."""
    captured: list[dict[str, Any]] = []
    before = logs._log

    def log(method: str, event: dict[str, Any]) -> None:
        captured.append({"log_level": "error" if method == "exception" else method, **event})

    logs._log = log
    try:
        yield captured
    finally:
        logs._log = before
