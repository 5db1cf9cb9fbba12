"""Room on the spool's disk: what is in the queue must stay able to leave it.

On the path: accept() asks before a message comes in; the writer makes room when there is none.
Holds: the last of the disk is for outcomes, reports and the log that SQLite writes them to: a
    queue that filled its own disk could not even write that a message is gone.
Fails: SpoolFullError.
Standards: RFC 5321 4.5.3.1.9 (452); docs/design.md 6.
"""

import os
from contextlib import suppress
from pathlib import Path

import apsw

from relay.spool.types import SpoolFullError

_RESERVE_BYTES_MAX = 64 * 1024 * 1024
_RESERVE_PARTS = 16  # of a small disk, one in so many


def check_room(directory: Path, size_bytes: int) -> None:
    """Raise SpoolFullError where `size_bytes` more would go into the reserve."""
    disk = os.statvfs(directory)
    reserve = min(_RESERVE_BYTES_MAX, disk.f_blocks * disk.f_frsize // _RESERVE_PARTS)
    if disk.f_bavail * disk.f_frsize - size_bytes < reserve:
        raise SpoolFullError(f"{directory}: the disk is nearly full")


def shrink_log(connection: apsw.Connection) -> None:
    """Bring SQLite's log into its file, which has room inside, and give the log's room back."""
    with suppress(apsw.Error):  # a reader is in the way: it will not be the next time
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
