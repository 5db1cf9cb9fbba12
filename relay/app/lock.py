"""The spool has one owner: whoever holds the lock in state_dir/run.

On the path: taken before the spool is opened for writing, kept until the process ends.
Holds: the kernel drops it with the process, so a lock that can be had proves the old owner dead.
Fails: AlreadyRunningError with the owner's pid.
Standards: flock(2).
"""

import contextlib
import fcntl
import os
from pathlib import Path


class AlreadyRunningError(Exception):
    """Another relay owns this state_dir."""


class OwnerLock:
    """The lock of one state_dir."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "lock"
        self._file: int | None = None

    def take(self) -> None:
        """Take the lock, making the directory. Raises AlreadyRunningError, OSError."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(file, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(file)
            state_dir = self._path.parent.parent
            raise AlreadyRunningError(f"{state_dir} is in use by process {owner}") from None
        self._file = file
        with contextlib.suppress(OSError):  # a full disk: the pid is only for people
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()}\n".encode(), 0)

    def give_back(self) -> None:
        """Let the next one have it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
