"""A body on its way in: a file that grows while the client sends, before any message names it.

On the path: the session writes blocks of a large content into it; accept() gives it its name.
Holds: written in threads; nothing is written, and no file comes back, once it was discarded. Its
    checksum is made of what is written, so that nobody reads it for that.
Fails: SpoolFullError, SpoolUnavailableError.
Standards: docs/design.md 4.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from relay.files import FileOctets, write_all
from relay.spool.sqlite.faults import disk_faults


@dataclass(frozen=True, slots=True)
class ArrivedOctets(FileOctets):
    """All of a file that arrived, and the checksum of what was written into it."""

    crc32: int


class ArrivingFile:
    """A spool.types.Arrival. One write at a time."""

    def __init__(self, path: Path, *, check_room: Callable[[int], None]) -> None:
        """`check_room` raises SpoolFullError where so many more bytes are too much."""
        self._path = path
        self._check_room = check_room
        self._size = 0
        self._crc32 = 0
        self._discarded = False
        # A session that is cut off leaves its last write to its thread; discard() waits for it.
        self._lock = threading.Lock()

    async def write(self, blocks: Sequence[bytes]) -> None:
        """See Arrival."""
        await asyncio.to_thread(self._write, blocks)

    def octets(self) -> ArrivedOctets:
        """See Arrival."""
        return ArrivedOctets(self._path, 0, self._size, self._crc32)

    def discard(self) -> None:
        """See Arrival."""
        asyncio.get_running_loop().run_in_executor(None, self._remove)

    def _write(self, blocks: Sequence[bytes]) -> None:
        octets = b"".join(blocks)
        with self._lock, disk_faults(self._path.parent):
            if self._discarded:
                return
            self._check_room(len(octets))
            begin = os.O_APPEND if self._size else os.O_CREAT | os.O_TRUNC
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC | begin, 0o600)
            try:
                write_all(descriptor, octets)
                self._size += len(octets)
                self._crc32 = crc32(octets, self._crc32)
            finally:
                os.close(descriptor)

    def _remove(self) -> None:
        with self._lock:
            self._discarded = True
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
