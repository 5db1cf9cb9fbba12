"""The owner locks of state_dir and mail store, the user who owns them, and their permissions.

The spool has one owner, and so have the pending submissions of a mail store: the process that holds
the lock (flock(2)). The kernel releases the locks of a process that ends, so a free lock proves
that the old owner has ended. The permission checks change nothing; `relay serve` and `relay check`
report the same text.
"""

import contextlib
import fcntl
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from relay.base.files import nearest_existing
from relay.base.settings.tree import Settings
from relay.store import spool

RESTORING = "restoring"  # exists in state_dir until a restoration is complete
_PID_BYTES_MAX = 32


class AlreadyRunningError(Exception):
    """Another relay owns this state_dir, or this mail store."""


class OwnerLock:
    """The lock of one state_dir and, with `submissions`, the lock of a mail store.

    A `with` statement holds both for its block. Without the second lock, two relays with different
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
    """If this is root, run the block as the user who owns state_dir, or the first of `others` that
    does not belong to root.

    The service can then write all files that a command creates there. Call it before threads start,
    and after files that only root may read were read. The owner may not be able to read the modules
    of Relay, so the modules and schemas of the spool are loaded before the change of the user.
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


def become_process(pid: int) -> dict[str, str]:
    """Return the environment of a process, and continue as its user if this is root.

    The process may have changed its environment. Of the files that are named there, root would read
    more than its user may. Raises OSError.
    """
    process = Path(f"/proc/{pid}")
    pairs = os.fsdecode((process / "environ").read_bytes()).split("\0")
    if not os.geteuid():
        lines = (process / "status").read_text().splitlines()
        status = {name: words for name, *words in map(str.split, lines)}
        os.setgroups(list(map(int, status["Groups:"])))
        os.setegid(int(status["Gid:"][1]))
        os.seteuid(int(status["Uid:"][1]))  # as_owner() does the same
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def _groups_of(uid: int) -> list[int]:
    try:
        user = pwd.getpwuid(uid)
    except KeyError:  # a number without a name
        return []
    return os.getgrouplist(user.pw_name, user.pw_gid)


def is_running(run_dir: Path) -> bool:
    """Return whether a relay holds the lock. Changes nothing."""
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
    files = spool.storage(settings).files() if settings.spool.is_file else ()
    for file in (*files, settings.run_dir / "lock"):
        if file.is_file() and not os.access(file, os.R_OK | os.W_OK, effective_ids=True):
            return f"state_dir: {file} cannot be written by this user"
    return ""


def is_barred(settings: Settings) -> bool:
    """Return whether unusable_state() is for lack of a permission, not for a fault."""
    is_complete = not (settings.state_dir / RESTORING).exists()
    return (
        is_complete
        and nearest_existing(settings.state_dir).is_dir()
        and bool(unusable_state(settings))
    )


def foreign_state(settings: Settings) -> str:
    """Return why root cannot run the service, or "". The user who owns state_dir could not write
    the files that root creates.
    """
    folder = settings.state_dir
    owner = folder.stat().st_uid if folder.exists() else 0
    if os.geteuid() or not owner:
        return ""
    return f"state_dir: {folder} belongs to the user {owner}: run the service as that user"


def unwritable(name: str, folder: Path) -> str:
    """Return why this user cannot write in `folder` or its nearest existing parent, or ""."""
    folder, user = nearest_existing(folder), os.geteuid()
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        return ""
    owner = folder.stat().st_uid
    others = f": it belongs to the user {owner}, not to {user}" if user not in (0, owner) else ""
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        others = ": its file system is read-only"
    return f"{name}: {folder} is not a directory that this user can write{others}"
