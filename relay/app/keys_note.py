"""The number of commits of the records of keys, kept in state_dir as well.

The records are in the mail root, the spool in state_dir. If one of the two was restored from an
older copy, keys that were used since are unknown: a start logs it. docs/operation-run.md (Restore).
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from relay.base.clock import rfc3339
from relay.mailbox.types import StoreError
from relay.observe.logs import get_logger
from relay.outbox.idempotency import KeyedSubmissions

_NAME = "keys.commits"

_log = get_logger("app")


def note_lost(state_dir: Path, number: int) -> None:
    """Note that records with this many commits were moved aside: the next start logs it."""
    _write(state_dir / _NAME, max(number, _read(state_dir / _NAME), 1))


def _read(path: Path) -> int:
    with suppress(OSError, ValueError):
        return int(path.read_text("ascii"))
    return 0


def _write(path: Path, number: int) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(f"{number}\n", "ascii")
    part.replace(path)


class KeysNote:
    """The note of one state_dir. Blocking."""

    def __init__(
        self, state_dir: Path, keys: KeyedSubmissions, *, is_there: Callable[[], bool]
    ) -> None:
        """`is_there` returns whether the mail root is."""
        self._path = state_dir / _NAME
        self._keys = keys
        self._is_there = is_there
        self._is_checked = False
        self._written = 0

    @property
    def is_due(self) -> bool:
        """Whether attend() has something to do."""
        return not self._is_checked or self._keys.commits != self._written

    def attend(self) -> None:
        """Check once, when the mail root is there; then write the number if it has changed.

        It is not synced: an older number only notices less.
        """
        if not self._is_checked and self._is_there():
            with suppress(StoreError, OSError):  # it is tried again at the next call
                self._keys.read_file()
                self._check()
                self._is_checked = True
        number = self._keys.commits
        if not self._is_checked or number == self._written or self._keys.damage:
            return
        with suppress(OSError):
            _write(self._path, number)
            self._written = number

    def _check(self) -> None:
        """Log from when on keys are unknown, if the records have fewer commits than noted."""
        noted = self._written = _read(self._path)
        if noted <= self._keys.commits:
            return
        newest_us = self._keys.newest_us()
        _log.warning(
            "idempotency keys unknown",
            since=rfc3339(newest_us) if newest_us else "the first one",
            found=self._keys.commits, expected=noted,
            effect="a repeat of a request since then is carried out again",
        )  # fmt: skip
