"""The owner locks of state_dir and mail store, the user who owns them, and their permissions.

The spool and the pending submissions of a mail store have one owner each: the process that holds
the lock (flock(2)). The kernel releases a lock with its process, so a free lock proves that the
old owner ended. The permission checks read only; `relay serve` and `relay check` report the same
text.
"""

import contextlib
import fcntl
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from relay.base.settings.tree import Settings
from relay.store import spool

RESTORING = "restoring"  # exists in state_dir until a restoration is complete
_PID_BYTES_MAX = 32


class AlreadyRunningError(Exception):
    """Another relay owns this state_dir, or this mail store."""


class OwnerLock:
    """The lock of one state_dir and, with `submissions`, that of a mail store.

    A `with` statement holds it for its block. Without the second lock, two relays with different
    state_dirs could submit the same messages.
    """

    def __init__(self, run_dir: Path, *, submissions: Path | None = None) -> None:
        self._run_dir = run_dir
        self._submissions = submissions
        self._files: list[int] = []

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(self, *_error: object) -> None:
        self.give_back()

    def take(self) -> None:
        """Acquire the locks; create the directories. Raises AlreadyRunningError, OSError."""
        self._run_dir.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._run_dir.mkdir(mode=0o700, exist_ok=True)
        self._files.append(lock_file(self._run_dir / "lock"))
        if self._submissions is None:
            return
        # A caller of is_running() should not load the store.
        from relay.store.mailbox.maildir import make_directory  # noqa: PLC0415

        try:
            with contextlib.suppress(OSError):  # if no lock can be written, no submission can
                make_directory(self._submissions)
                self._files.append(lock_file(self._submissions / "lock"))
        except AlreadyRunningError:
            self.give_back()
            raise

    def give_back(self) -> None:
        """Release the locks."""
        while self._files:
            os.close(self._files.pop())


@contextlib.contextmanager
def as_owner(settings: Settings, *others: Path) -> Iterator[None]:
    """Run as the owner of state_dir, or the first of `others` that belongs to another user, if this
    is root.

    All that a command writes there can then be written by the service. Call it before there are
    threads, and after what root alone may read was read. The owner may not be able to read Relay's
    own files either, so the spool's modules and all schemas are loaded before.
    """
    folders = (settings.state_dir, *others)
    status = next((path.stat() for path in folders if path.exists() and path.stat().st_uid), None)
    if os.geteuid() or status is None:
        yield
        return
    from relay.store.mailbox.index.database import load_schema  # noqa: PLC0415 - slow

    spool.load_engine(settings)
    load_schema()
    groups, group = os.getgroups(), os.getegid()
    os.setgroups(_groups_of(status.st_uid))
    os.setegid(status.st_gid)
    os.seteuid(status.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def _groups_of(uid: int) -> list[int]:
    try:
        user = pwd.getpwuid(uid)
    except KeyError:  # a number without a name
        return []
    return os.getgrouplist(user.pw_name, user.pw_gid)


def is_running(run_dir: Path) -> bool:
    """Whether a relay holds the lock. Changes nothing."""
    return owner_of(run_dir) is not None


def owner_of(run_dir: Path) -> str | None:
    """Return the pid of the relay that holds the lock, "" if unknown, None if there is none.

    Changes nothing.
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


def lock_file(path: Path) -> int:
    """Lock a file and return its descriptor. Raises AlreadyRunningError, OSError."""
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
    with contextlib.suppress(OSError):  # a full disk: the pid is only informative
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    return file


def unusable_state(settings: Settings) -> str:
    """Return why this user cannot write in state_dir, or ""."""
    if fault := unwritable("state_dir", settings.state_dir):
        return fault
    if settings.run_dir.exists() and (fault := unwritable("state_dir", settings.run_dir)):
        return fault
    if (settings.state_dir / RESTORING).exists():
        return (
            f"state_dir: a restoration in {settings.state_dir} was cut short or is in progress:"
            f" empty it and {settings.mailboxes.root}, then repeat relay restore"
        )
    for file in (*spool.storage(settings).files(), settings.run_dir / "lock"):
        if file.is_file() and not os.access(file, os.R_OK | os.W_OK, effective_ids=True):
            return f"state_dir: {file} cannot be written by this user"
    return ""


def foreign_state(settings: Settings) -> str:
    """Return why root cannot be the service, or "": no other user can write files of root."""
    folder = settings.state_dir
    owner = folder.stat().st_uid if folder.exists() else 0
    if os.geteuid() or not owner:
        return ""
    return f"state_dir: {folder} belongs to the user {owner}: run the service as that user"


def unwritable(name: str, folder: Path) -> str:
    """Return why this user cannot write in `folder` or its nearest existing parent, or ""."""
    while not os.access(folder, os.F_OK, effective_ids=True) and folder != folder.parent:
        folder = folder.parent
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        return ""
    return f"{name}: {folder} is not a directory that this user can write"
