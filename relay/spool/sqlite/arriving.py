"""A body on its way in: a file that grows while the client sends, before any message names it.

On the path: the session writes blocks of a large content into it; accept() gives it its name.
Holds: written in threads; nothing is written, and no file comes back, once it was discarded.
Fails: SpoolFullError, SpoolUnavailableError.
Standards: docs/design.md 4.
"""

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from relay.files import FileOctets, write_all
from relay.spool.sqlite.room import check_room
from relay.spool.types import SpoolFullError, SpoolUnavailableError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def disk_faults(place: Path) -> Iterator[None]:
    """Turn what the disk says into the spool's exceptions."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise SpoolFullError(f"{place}: the disk is full") from error
        raise SpoolUnavailableError(f"{place}: {error.strerror or error}") from error


class ArrivingFile:
    """A spool.types.Arrival. One write at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0
        self._discarded = False
        # A session that is cut off leaves its last write to its thread; discard() waits for it.
        self._lock = threading.Lock()

    async def write(self, blocks: Sequence[bytes]) -> None:
        """See Arrival."""
        await asyncio.to_thread(self._write, blocks)

    def octets(self) -> FileOctets:
        """See Arrival."""
        return FileOctets(self._path, 0, self._size)

    def discard(self) -> None:
        """See Arrival."""
        asyncio.get_running_loop().run_in_executor(None, self._remove)

    def _write(self, blocks: Sequence[bytes]) -> None:
        octets = b"".join(blocks)
        with self._lock, disk_faults(self._path.parent):
            if self._discarded:
                return
            check_room(self._path.parent, len(octets))
            begin = os.O_APPEND if self._size else os.O_CREAT | os.O_TRUNC
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC | begin, 0o600)
            try:
                write_all(descriptor, octets)
                self._size += len(octets)
            finally:
                os.close(descriptor)

    def _remove(self) -> None:
        with self._lock:
            self._discarded = True
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
