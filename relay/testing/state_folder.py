"""The directories of the relays of the test kit: in memory where the system offers that.

/dev/shm (tmpfs(5)) makes every sync free, so that the relay of a test needs no other durability
than that of a service. Each directory is locked by its relay. Those of processes that were killed
are removed when the next relay starts.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from relay.app.development.folder import DevelopmentFolder
from relay.app.state_dir import AlreadyRunningError, OwnerLock
from relay.files import disk_of

_MEMORY = Path("/dev/shm")  # noqa: S108 - the directory in it is this user's
_FREE_BYTES_MIN = 128 * 1024 * 1024  # a container often has 64 MiB: too little for large mail


def new_state_folder() -> DevelopmentFolder:
    """Create and lock the directory of one relay. Raises OSError."""
    parent = _parent()
    with _locked(parent):
        _remove_abandoned(parent)
        path = Path(tempfile.mkdtemp(dir=parent, prefix=""))
        lock = OwnerLock(path / "run")
        lock.take()
    return DevelopmentFolder(path, temporary=True, lock=lock)


def _parent() -> Path:
    """Return this user's directory for all of them."""
    for place in (_MEMORY, Path(tempfile.gettempdir())):
        if place == _MEMORY and not _is_roomy(place):
            continue
        own = place / f"relay-tests-{os.getuid()}"
        with contextlib.suppress(OSError):
            own.mkdir(mode=0o700, exist_ok=True)
            found = own.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
                return own
    return Path(tempfile.mkdtemp(prefix="relay-tests-"))


def _is_roomy(place: Path) -> bool:
    if not os.access(place, os.W_OK | os.X_OK):
        return False
    try:
        return disk_of(place).free_bytes >= _FREE_BYTES_MIN
    except OSError:
        return False


@contextmanager
def _locked(parent: Path) -> Iterator[None]:
    """Exclude other processes that create or remove directories."""
    descriptor = os.open(parent / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(parent: Path) -> None:
    """Remove the directories that no relay has locked."""
    for path in parent.iterdir():
        if path.name == "lock" or not path.is_dir():
            continue
        lock = OwnerLock(path / "run")
        try:
            lock.take()
        except (AlreadyRunningError, OSError):
            continue
        shutil.rmtree(path, ignore_errors=True)
        lock.give_back()
