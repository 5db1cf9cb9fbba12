"""What Relay logs, as events instead of lines."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from relay.base.clock import Clock
from relay.base.observe import logs


@contextmanager
def capture_logs(clock: Clock | None = None) -> Iterator[list[dict[str, Any]]]:
    """Collect the events of all rooms; none is written. `log_level` is the level's name. `clock`
    decides which repeated events are due; none was logged before.
    """
    captured: list[dict[str, Any]] = []
    before, clock_before = logs._log, logs._sink.clock
    logs._sink.clock, logs._sink.repeated = clock or clock_before, {}

    def log(method: str, event: dict[str, Any]) -> None:
        captured.append({"log_level": "error" if method == "exception" else method, **event})

    logs._log = log
    try:
        yield captured
    finally:
        logs._log = before
        logs._sink.clock, logs._sink.repeated = clock_before, {}
