"""Damage of a running spool: no new mail, until what failed works again.

SQLite reports "malformed" for a damaged page, and also for a page that the disk could not read
(EIO), although the file is whole. The writer therefore opens the spool again and repeats what
failed: at once, after 1, 2, 4 ... and then every 60 s. The damage ends when that succeeds. It is
recorded in a file: a later process cannot repeat what failed, and its spool stays damaged until it
was verified or restored.

See docs/design.md 4 (Damage) and docs/operation-backup.md (The spool is damaged).
"""

import math
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from relay.base.clock import Clock
from relay.base.observe.logs import get_logger
from relay.base.observe.metrics import Metrics
from relay.store.spool.sqlite.spool_files import damage_mark_of
from relay.store.spool.types import SpoolDamagedError, SpoolError, SpoolUnavailableError

_log = get_logger("spool")
_TEXT_CHARACTERS_MAX = 1000
_RETRY_S, _RETRY_S_MAX = 1.0, 60.0


class Damage:
    """The damage of one spool; `text` is "" for none. Thread-safe.

    New mail is rejected while the spool is damaged; what can be read is still delivered.
    """

    def __init__(self, database: Path, metrics: Metrics, clock: Clock) -> None:
        self.text = ""
        self._mark = damage_mark_of(database)
        self._metrics = metrics
        self._clock = clock
        self._lock = threading.Lock()
        self._repeat: Callable[[], object] | None = None
        self._next_s = -math.inf  # when to open the spool again, at the earliest
        self._pause_s = 0.0  # between the last attempt and the next
        self._advised = ""
        with suppress(OSError):
            text = self._mark.read_text(errors="replace")[:_TEXT_CHARACTERS_MAX].strip()
            self._set(text, do="relay storage verify")

    def found(self, error: SpoolDamagedError, repeat: Callable[[], object]) -> None:
        """Record the damage and log it, the first time. `repeat` does what failed once more and
        changes nothing; it is called in the writer's thread.
        """
        with self._lock:
            if self.text:
                return
            self._repeat, self._next_s, self._pause_s = repeat, -math.inf, _RETRY_S
            self._set(str(error), do="nothing yet: the spool is opened again")
            with suppress(OSError):  # a failing disk may not store it: the next start detects it
                self._mark.write_text(f"{self.text}\n")

    def check(self) -> None:
        """Raise SpoolUnavailableError if the spool is damaged."""
        if self.text:
            raise SpoolUnavailableError(f"no new mail is accepted: {self.text}")

    @property
    def retry_in_s(self) -> float | None:
        """When to call retry(); None for never."""
        if self._repeat is None:
            return None
        return max(0.0, self._next_s - self._clock.real_s())

    def retry(self, reopen: Callable[[], None]) -> bool:
        """If it is time, open the spool again and repeat what failed; return whether it worked."""
        if self._repeat is None or self.retry_in_s:
            return False
        try:
            reopen()
            self._do_again(self._repeat)
            self._end()
        except SpoolDamagedError as error:
            self._set(str(error), do="relay restore")
        except (SpoolError, OSError):
            pass  # the disk cannot be read or written yet
        else:
            return True
        self._next_s = self._clock.real_s() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _RETRY_S_MAX)
        return False

    def _do_again(self, repeat: Callable[[], object]) -> None:
        """Repeat what failed. Raises SpoolError if a page cannot be read; ignores other errors."""
        try:
            repeat()
        except (SpoolDamagedError, SpoolUnavailableError):
            raise
        except Exception:  # noqa: BLE001 - a refusal, for example: its pages can be read
            return

    def _set(self, text: str, *, do: str) -> None:
        self.text = text or "the spool was found damaged"
        self._metrics.spool_damaged.set(1)
        if do != self._advised:
            _log.critical("spool damaged", error=self.text, effect="no new mail", do=do)
        self._advised = do

    def _end(self) -> None:
        with self._lock:
            self._mark.unlink(missing_ok=True)
            self.text = ""
            self._repeat, self._advised = None, ""
            self._metrics.spool_damaged.set(0)
        _log.warning("spool works again")
