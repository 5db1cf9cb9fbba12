"""Dovecot's lock files: who creates one may change what it protects, until it removes the file.

Another program's crash leaves its lock, which is taken when it is old. Raises OSError.
"""

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

from relay.mailbox.maildir import remove, write_file

_ATTEMPTS = 20
_PAUSE_S = 0.05


def take_lock(lock: Path, *, stale_s: int) -> bool:
    """Take a lock, also one that is older than `stale_s`; return False if it stays taken for a
    second.
    """
    for _ in range(_ATTEMPTS):
        with suppress(FileExistsError):
            # Dovecot takes the lock at once if this process is gone
            os.close(write_file(lock, f"{os.getpid()}:{socket.gethostname()}".encode()))
            return True
        with suppress(FileNotFoundError):
            if _now_s(lock) - lock.stat().st_mtime > stale_s:
                remove(lock)
                continue
        threading.Event().wait(_PAUSE_S)
    return False


def _now_s(lock: Path) -> float:
    """Return the current time of the file system that holds the lock."""
    probe = lock.with_suffix(".probe")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        remove(probe)
