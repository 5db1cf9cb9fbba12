"""A wall clock of its own for a relay's process, by libfaketime; all other clocks stay the machine's.

A jump is there for the process within a second. The test is skipped where libfaketime is not
installed.
"""

from datetime import timedelta
from pathlib import Path

import pytest

LIBRARIES = "/usr/lib/*/faketime/libfaketime.so.1"


class WallClock:
    """The clock that a relay reads; `jump` moves it against ours."""

    def __init__(self, folder: Path) -> None:
        found = list(Path("/").glob(LIBRARIES.removeprefix("/")))
        if not found:
            pytest.skip("libfaketime is not installed")
        self._file = folder / "clock"
        self.ahead = timedelta()
        self.jump(timedelta())
        self.environment = {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_CACHE_DURATION": "1",
            "NO_FAKE_STAT": "1",
        }

    def jump(self, ahead: timedelta) -> None:
        part = self._file.with_suffix(".part")
        part.write_text(f"{ahead.total_seconds():+.0f}\n")
        part.replace(self._file)
        self.ahead = ahead
