"""Keep room on the spool's disk for what must still be written.

New messages are rejected (SpoolFullError, RFC 5321 4.2.3: 452) while the disk can still store
outcomes, reports and SQLite's log. Otherwise a full queue could not even record a delivery.

The reserve file allocates some of that room in advance. The writer removes it when there is no room
for an outcome or a report. The pressure monitor allocates it again. Until then its size counts as
used.

See docs/design.md 6.
"""

import contextlib
import os
import threading
from pathlib import Path

from relay.base.files import disk_of, opened
from relay.base.observe.logs import get_logger
from relay.base.pressure import RESERVE_PARTS
from relay.store.spool.types import SpoolError, SpoolFullError

_log = get_logger("spool")

RESERVE_FILE = "ballast"
RESERVE_FILE_PARTS = 4  # the file is a quarter of the room that stays free
RESERVE_BYTES = 64 * 1024 * 1024
_FULL_BYTES = 256 * 1024


def check_free_space(
    directory: Path, size_bytes: int, *, reserve_bytes: int = RESERVE_BYTES
) -> None:
    """Raise SpoolFullError where `size_bytes` more would use the reserve."""
    status = os.statvfs(directory)  # for each commit: takes a quarter of the time of disk_of()
    reserve = min(reserve_bytes, status.f_blocks * status.f_frsize // RESERVE_PARTS)
    if status.f_bavail * status.f_frsize - size_bytes < reserve:
        raise SpoolFullError(f"{directory}: the disk is nearly full")


class ReserveFile:
    """A file that allocates room on the spool's disk. All methods are thread-safe."""

    def __init__(
        self, path: Path, *, size_bytes: int = 0, reserve_bytes: int = RESERVE_BYTES
    ) -> None:
        """`reserve_bytes` stay free in addition to it."""
        self._path = path
        self._wanted_bytes = size_bytes
        self._reserve_bytes = reserve_bytes
        self._lock = threading.Lock()
        self.missing_bytes = 0  # released, or could not be allocated

    @property
    def directory(self) -> Path:
        """Its directory, on the spool's disk."""
        return self._path.parent

    def check_free_space(self, size_bytes: int) -> None:
        """Raise SpoolFullError where `size_bytes` more would use what is reserved."""
        kept_bytes = self.missing_bytes
        check_free_space(
            self._path.parent, size_bytes + kept_bytes, reserve_bytes=self._reserve_bytes
        )

    def release(self) -> bool:
        """Remove the file, so that its room is free; False if it does not exist."""
        with self._lock:
            try:
                size_bytes = self._path.stat().st_size
                self._path.unlink()
            except OSError:
                return False
            self.missing_bytes = size_bytes
        _log.warning("reserve file released", size_bytes=size_bytes)
        return True

    def release_for(self, error: SpoolError) -> bool:
        """Whether `error` means a full disk, and the file was released for it.

        SQLite reports some of these as I/O errors.
        """
        if not isinstance(error, SpoolFullError):
            with contextlib.suppress(OSError):
                if disk_of(self.directory).free_bytes > _FULL_BYTES:
                    return False
        return self.release()

    def make(self) -> None:
        """Allocate the file if there is room for it in addition to the reserve."""
        with self._lock, contextlib.suppress(OSError):
            self._make()

    def _make(self) -> None:
        disk = disk_of(self._path.parent)
        size_bytes = min(self._wanted_bytes, disk.size_bytes // RESERVE_PARTS)
        there_bytes = self._allocated_bytes()
        if there_bytes >= size_bytes:
            self.missing_bytes = 0
            if there_bytes > size_bytes:
                os.truncate(self._path, size_bytes)
            return
        self.missing_bytes = size_bytes - there_bytes
        if disk.free_bytes - self.missing_bytes <= disk.reserve_bytes(self._reserve_bytes):
            return
        try:
            _allocate(self._path, size_bytes)
        except (OSError, AttributeError):  # another process was faster; macOS has no such call
            self._path.unlink(missing_ok=True)
            self.missing_bytes = size_bytes
            return
        self.missing_bytes = 0

    def _allocated_bytes(self) -> int:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return 0
        return min(status.st_size, status.st_blocks * 512)


def _allocate(path: Path, size_bytes: int) -> None:
    """Allocate a file of `size_bytes`."""
    with opened(path, os.O_WRONLY | os.O_CREAT) as descriptor:
        os.ftruncate(descriptor, 0)
        os.posix_fallocate(descriptor, 0, size_bytes)
