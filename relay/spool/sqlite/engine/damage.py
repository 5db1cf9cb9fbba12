"""What SQLite could not read of the spool: said loudly, and not forgotten by a new start.

On the path: beside every connection; accept() asks before it takes mail on.
Holds: mail is not put into a file that loses pages, and what can be read goes on being delivered.
Fails: never.
Standards: docs/operation.md (A damaged spool).
"""

import threading
from contextlib import suppress
from pathlib import Path

from relay.observe.logs import get_logger
from relay.observe.metrics import Metrics
from relay.spool.types import SpoolDamagedError, SpoolUnavailableError

_log = get_logger("spool")
_TEXT_CHARACTERS_MAX = 1000


def mark_of(database: Path) -> Path:
    """The file that keeps in mind that a spool is damaged, until it was verified or salvaged."""
    return database.with_name(database.name + ".damage")


class Damage:
    """Of one spool; `text` is "" for none. May be told from any thread."""

    def __init__(self, database: Path, metrics: Metrics) -> None:
        self.text = ""
        self._mark = mark_of(database)
        self._metrics = metrics
        self._lock = threading.Lock()
        with suppress(OSError):
            self._say(self._mark.read_text(errors="replace")[:_TEXT_CHARACTERS_MAX].strip())

    def found(self, error: SpoolDamagedError) -> None:
        """Say it, the first time."""
        with self._lock:
            if self.text:
                return
            self._say(str(error))
        with suppress(OSError):  # a disk that fails may not take it: the next start finds out anew
            self._mark.write_text(f"{self.text}\n")

    def check(self) -> None:
        """Raise SpoolUnavailableError where no mail may come in."""
        if self.text:
            raise SpoolUnavailableError(f"no new mail is taken on: {self.text}")

    def _say(self, text: str) -> None:
        self.text = text or "the spool was found damaged"
        self._metrics.spool_damaged.set(1)
        _log.critical(
            "spool damaged", error=self.text, effect="no new mail", do="relay storage salvage"
        )
