"""Room on the spool's disk that is taken in advance, and given up for what must still be written.

On the path: the writer asks for it when an outcome or a report cannot be written; new messages
    never get it. The monitor of pressure takes it again when there is room.
Holds: really allocated where the file system can; at most a part of a small disk; what was given up
    counts as taken until it is there again.
Fails: never; a disk that has no room for it has none.
Standards: posix_fallocate(3); docs/design.md 6.
"""

import contextlib
import errno
import os
import threading
from pathlib import Path

from relay.files import write_all
from relay.observe.logs import get_logger
from relay.pressure import RESERVE_PARTS
from relay.spool.sqlite.disk.room import RESERVE_BYTES, check_room, disk_of
from relay.spool.types import SpoolError, SpoolFullError

_log = get_logger("spool")
_FULL_BYTES = 256 * 1024
_BLOCK = b"\0" * 65536
_NOT_HERE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)  # a file system that cannot allocate


class Ballast:
    """A file of so many bytes beside the spool; every method may be called from any thread."""

    def __init__(
        self, path: Path, *, size_bytes: int = 0, reserve_bytes: int = RESERVE_BYTES
    ) -> None:
        """`reserve_bytes` stay free beside it."""
        self._path = path
        self._wanted_bytes = size_bytes
        self._reserve_bytes = reserve_bytes
        self._lock = threading.Lock()
        self.missing_bytes = 0  # how much was given up, or could not be had

    @property
    def directory(self) -> Path:
        """Where it is: on the spool's disk."""
        return self._path.parent

    def check_room(self, size_bytes: int) -> None:
        """Raise SpoolFullError where `size_bytes` more would go into what is kept."""
        kept_bytes = self.missing_bytes
        check_room(self._path.parent, size_bytes + kept_bytes, reserve_bytes=self._reserve_bytes)

    def give_up(self) -> bool:
        """Give its room to who writes next; False if it is gone already."""
        with self._lock:
            try:
                size_bytes = self._path.stat().st_size
                self._path.unlink()
            except OSError:
                return False
            self.missing_bytes = size_bytes
        _log.warning("ballast given up", size_bytes=size_bytes)
        return True

    def relieves(self, error: SpoolError) -> bool:
        """Whether what failed had no room, and may find some now that the ballast is given up.

        Some of that SQLite calls an I/O error.
        """
        if not isinstance(error, SpoolFullError):
            with contextlib.suppress(OSError):
                if disk_of(self.directory).free_bytes > _FULL_BYTES:
                    return False
        return self.give_up()

    def make(self) -> None:
        """Have it on the disk if there is room for it beside the reserve."""
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
        except OSError:  # somebody was quicker
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
    """Make a file of so many bytes that nothing has to be found for any more."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, 0)
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            for _ in range(-(-size_bytes // len(_BLOCK))):
                write_all(descriptor, _BLOCK)
            os.ftruncate(descriptor, size_bytes)
    finally:
        os.close(descriptor)
