"""Room on the spool's disk: what is in the queue must stay able to leave it.

On the path: accept() asks before a message comes in; the writer makes room when there is none.
Holds: the last of the disk is for outcomes, reports and the log that SQLite writes them to: a
    queue that filled its own disk could not even write that a message is gone.
Fails: SpoolFullError.
Standards: RFC 5321 4.5.3.1.9 (452); docs/design.md 6.
"""

import os
from pathlib import Path

from relay.pressure import RESERVE_PARTS, Disk
from relay.spool.types import SpoolFullError

RESERVE_BYTES = 64 * 1024 * 1024


def check_room(directory: Path, size_bytes: int, *, reserve_bytes: int = RESERVE_BYTES) -> None:
    """Raise SpoolFullError where `size_bytes` more would go into the reserve."""
    found = os.statvfs(directory)  # for each message: this is a quarter of disk_of()'s time
    reserve = min(reserve_bytes, found.f_blocks * found.f_frsize // RESERVE_PARTS)
    if found.f_bavail * found.f_frsize - size_bytes < reserve:
        raise SpoolFullError(f"{directory}: the disk is nearly full")


def disk_of(path: Path) -> Disk:
    """Return the file system that `path` is on. Raises OSError."""
    found = os.statvfs(path)
    return Disk(
        size_bytes=found.f_blocks * found.f_frsize,
        free_bytes=found.f_bavail * found.f_frsize,
        files=found.f_files,
        files_free=found.f_favail,
        is_writable=not found.f_flag & os.ST_RDONLY,
    )
