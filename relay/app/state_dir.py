"""The spool has one owner, and so have the notes of a mail store: whoever holds the locks.

On the path: taken before the spool is opened for writing, kept until the process ends.
Holds: the kernel drops it with the process, so a lock that can be had proves the old owner dead.
Fails: AlreadyRunningError with the owner's pid.
Standards: flock(2).
"""

import contextlib
import fcntl
import os
import stat
from pathlib import Path

from relay.settings import Settings

_PID_BYTES_MAX = 32


class AlreadyRunningError(Exception):
    """Another relay owns this state_dir, or this mail store."""


class OwnerLock:
    """The lock of one state_dir and, with `notes`, that of the mail store with these notes.

    Two relays with a state_dir each would submit the same notes to two spools.
    """

    def __init__(self, run_dir: Path, *, notes: Path | None = None) -> None:
        self._run_dir = run_dir
        self._notes = notes
        self._files: list[int] = []

    def take(self) -> None:
        """Take the locks, making the directories. Raises AlreadyRunningError, OSError."""
        self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._files.append(_locked(self._run_dir / "lock"))
        if self._notes is None:
            return
        # Who only asks whether a lock is taken need not load the store.
        from relay.mailbox.maildir import make_directory  # noqa: PLC0415

        try:
            with contextlib.suppress(OSError):  # where no lock can be written, no note can be
                make_directory(self._notes)
                self._files.append(_locked(self._notes / "lock"))
        except AlreadyRunningError:
            self.give_back()
            raise

    def give_back(self) -> None:
        """Let the next one have it."""
        while self._files:
            os.close(self._files.pop())


def is_running(run_dir: Path) -> bool:
    """Whether a relay runs there; nothing is made or changed."""
    return owner_of(run_dir) is not None


def owner_of(run_dir: Path) -> str | None:
    """Return the process that runs there ("" if it has not said), None where none does.

    Nothing is made or changed.
    """
    try:
        file = os.open(run_dir / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(file, _PID_BYTES_MAX).decode("ascii", "replace").strip()
    finally:
        os.close(file)
    return None


def _locked(path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(file, _PID_BYTES_MAX).decode("ascii", "replace").strip() or "unknown"
        os.close(file)
        if not isinstance(error, BlockingIOError):
            raise
        text = f"{path.parent.parent} is in use by process {owner}"
        raise AlreadyRunningError(text) from None
    with contextlib.suppress(OSError):  # a full disk: the pid is only for people
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    return file


def unusable_state(settings: Settings) -> str:
    """Return why this user cannot keep a queue in state_dir, or ""."""
    if fault := unwritable("state_dir", settings.state_dir):
        return fault
    if settings.run_dir.exists() and (fault := unwritable("state_dir", settings.run_dir)):
        return fault
    spool = settings.spool_file
    for file in (spool, spool.with_name(spool.name + "-wal"), settings.run_dir / "lock"):
        if file.is_file() and not os.access(file, os.R_OK | os.W_OK):
            return f"state_dir: {file} is no file that this user can write"
    return ""


def unwritable(name: str, folder: Path) -> str:
    """Return why this user cannot write `folder`, or the nearest one above it, or ""."""
    while not os.access(folder, os.F_OK) and folder != folder.parent:
        folder = folder.parent
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        return ""
    return f"{name}: {folder} is no folder that this user can write"


def open_to_others(path: Path, *, to_read: bool = False) -> str:
    """Return how others can write `path`, or read it as well, and what to do; or ""."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return ""
    if to_read and mode & (stat.S_IROTH | stat.S_IWOTH):
        return f"found mode {mode:04o} of {path}: others can read it (chmod o-rwx)"
    if not to_read and mode & stat.S_IWOTH:
        return f"found mode {mode:04o} of {path}: others can write in it (chmod o-w)"
    return ""
