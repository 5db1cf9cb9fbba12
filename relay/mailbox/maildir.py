"""Files that are durable: write, link, rename, remove, and fsync of directories that writers share.

On the path: every step of the store that must survive a crash goes through here, in its threads.
Holds: nothing replaces a file; a directory's fsync counts for whoever changed it before it started.
Fails: OSError from the primitives; storage_errors() makes StoreUnavailableError of it.
Standards: Maildir; POSIX fsync.
"""

import contextlib
import ctypes
import errno
import functools
import os
import re
import stat
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, ParamSpec, TypeVar

from relay.files import FileOctets, write_all
from relay.mailbox.types import ContentUnreadableError, StoreUnavailableError
from relay.message.content import Content, UnreadableError, blocks, octets_in_blocks

_NO_LINKS = frozenset((errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP))
_NO_FILE = frozenset((errno.ELOOP, errno.ENXIO))  # a symbolic link, a socket
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700
_LOOKS = 5
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Raise StoreUnavailableError for what the disk refused."""
    try:
        yield
    except UnreadableError as error:
        raise ContentUnreadableError(f"The message cannot be read: {error}.") from error
    except OSError as error:
        if error.errno in _FULL:
            raise StoreUnavailableError("The mail store's disk is full.") from error
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StoreUnavailableError(f"The mail store cannot be used: {reason}.") from error


def retry_if_renamed(
    action: Callable[_Parameters, _Result],
) -> Callable[_Parameters, _Result]:
    """Repeat what lost its file: a mail client may change a file's flags, and so its name."""

    @functools.wraps(action)
    def repeated(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        for _ in range(_LOOKS):
            with contextlib.suppress(FileNotFoundError):
                return action(*args, **kwargs)
        raise StoreUnavailableError("The message changes its name faster than it can be found.")

    return repeated


def write_file(path: Path, content: Content) -> int:
    """Write a new file and return its descriptor, not synced; nothing is left after an error.

    Raises UnreadableError where a large content's own file cannot be read.
    """
    return _write(path, blocks(content))


def write_synced(path: Path, content: Content) -> None:
    """Write a new file and fsync it; nothing is left after an error, which is as write_file()'s."""
    _write_synced(path, blocks(content))


def open_written(path: Path) -> int:
    """Return the descriptor of a file that was written but not synced."""
    return os.open(path, os.O_WRONLY | os.O_CLOEXEC)


def _write(path: Path, pieces: Iterable[bytes]) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
    try:
        for piece in pieces:
            write_all(descriptor, piece)
    except BaseException:
        os.close(descriptor)
        remove(path)
        raise
    return descriptor


def _write_synced(path: Path, pieces: Iterable[bytes]) -> None:
    descriptor = _write(path, pieces)
    try:
        sync_descriptor(descriptor)
    except OSError:
        remove(path)
        raise
    finally:
        os.close(descriptor)


def link(source: Path, target: Path) -> bool:
    """Give `source` a second name; False where the file system cannot. Raises FileExistsError."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    return True


def link_or_copy(source: Path, target: Path) -> None:
    """Give `source` a second name; where that is impossible, write a synced copy of it."""
    if not link(source, target):
        _copy(source, target)


def place_again(source: Path, target: Path) -> bool:
    """Give a message's file a second name in a folder; where no link can be, by tmp/ a synced copy.

    Return whether it is a link. Raises FileExistsError.
    """
    if link(source, target):
        return True
    temporary = target.parents[1] / "tmp" / target.name.partition(",")[0]
    remove(temporary)  # what a crash left of a copy
    try:
        _copy(source, temporary)
        place(temporary, target)
    finally:
        remove(temporary)
    return False


def _copy(source: Path, target: Path) -> None:
    whole = FileOctets(source, 0, source.stat().st_size)
    _write_synced(target, octets_in_blocks((whole,)))


def place(source: Path, target: Path) -> None:
    """Give a finished file its final name, never replacing one; `source` may be left to remove.

    Raises FileExistsError.
    """
    if not link(source, target):
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
        source.rename(target)


def open_message(path: Path) -> BinaryIO:
    """Open a message's file; a FIFO, a link or a directory in its place is nobody's message.

    Raises FileNotFoundError for those as well.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise FileNotFoundError(errno.ENOENT, "It is no file", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "It is no file", str(path))
    return os.fdopen(descriptor, "rb")


def rename(source: Path, target: Path) -> None:
    """Rename a message's file, replacing none.

    Names are unique: what has this one already may be a second link of the same file, left by a
    mail client's copy. Then the source goes; a rename between two links of one file does nothing.
    Raises FileExistsError.
    """
    if not target.exists():
        source.rename(target)
    elif target.samefile(source):
        remove(source)
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))


def remove(path: Path) -> None:
    """Unlink if it is there."""
    path.unlink(missing_ok=True)


def list_names(directory: Path) -> list[str]:
    """The names in a directory, none if it does not exist."""
    try:
        return os.listdir(directory)  # noqa: PTH208 - names are wanted, not Paths, by the thousand
    except (FileNotFoundError, NotADirectoryError):
        return []


def make_directory(path: Path) -> None:
    """Make a directory and those above it, each 0700 and durable in its parent.

    One whose parent could not be synced goes again, so that whoever tries next makes it durable.
    """
    if path.is_dir():
        return
    make_directory(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir(_DIRECTORY_MODE)
    try:
        sync_directory(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            path.rmdir()
        raise


def sync_directory(path: Path) -> None:
    """Make a directory's entries durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


@dataclass(slots=True)
class _Rounds:
    """The fsyncs of one directory, counted; at most one runs."""

    condition: threading.Condition
    started: int = 0
    finished: int = 0
    waiting: int = 0
    failed: dict[int, OSError] = field(default_factory=dict)


class SyncFailures:
    """Counts the syncs that failed in this process, for those whose work was going on meanwhile.

    A file system reports a failed commit once. Of what else was in that commit, a later fsync
    says that it is durable (seen on ext4), so such an answer counts only for what was begun after
    the failure.
    """

    def __init__(self) -> None:
        self._count = 0
        self._begun = threading.local()

    def begin(self) -> None:
        """Say that what this thread changes from here on is new."""
        self._begun.count = self._count

    def add(self) -> None:
        """Count one. It need not be exact: any change is noticed."""
        self._count += 1

    def check(self) -> None:
        """Raise OSError if a sync has failed since this thread's work began."""
        if getattr(self._begun, "count", self._count) != self._count:
            raise OSError(errno.EIO, "Another sync failed meanwhile")


SYNC_FAILURES = SyncFailures()


def sync_descriptor(descriptor: int) -> None:
    """Fsync a file or a directory; a failure is counted."""
    try:
        os.fsync(descriptor)
    except OSError:
        SYNC_FAILURES.add()
        raise


class DirectorySync:
    """Shares fsyncs among threads: each caller waits for one that started after its own change."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rounds: dict[Path, _Rounds] = {}

    def sync(self, directory: Path) -> None:
        """Return when everything done in `directory` before this call is durable.

        Raises OSError if this sync failed, or any since the caller's work began.
        """
        with self._lock:
            rounds = self._rounds.setdefault(directory, _Rounds(threading.Condition(self._lock)))
            rounds.waiting += 1
            mine = rounds.started + 1
            try:
                while rounds.finished < mine:
                    if rounds.started == rounds.finished:
                        self._run_round(directory, rounds)
                    else:
                        rounds.condition.wait()
                if error := rounds.failed.get(mine):
                    raise OSError(error.errno, error.strerror, str(directory))
                SYNC_FAILURES.check()
            finally:
                rounds.waiting -= 1
                if not rounds.waiting:
                    del self._rounds[directory]

    def _run_round(self, directory: Path, rounds: _Rounds) -> None:
        """Run one fsync with the lock let go; a failure is kept for all who waited for it."""
        rounds.started += 1
        number = rounds.started
        self._lock.release()
        failure: OSError | None = None
        try:
            sync_directory(directory)
        except OSError as error:
            failure = error
        finally:
            self._lock.acquire()
            if failure is not None:
                rounds.failed[number] = failure
            rounds.finished = number
            rounds.condition.notify_all()


class Stripes:
    """A fixed number of locks, one of them for each name: who works on one message works alone."""

    def __init__(self, count: int = 256) -> None:
        self._locks = tuple(threading.Lock() for _ in range(count))

    def of(self, name: str) -> threading.Lock:
        """The lock of a name."""
        return self._locks[hash(name) % len(self._locks)]


_MOUNTS = Path("/proc/self/mountinfo")
_JOURNALS = Path(
    "/proc/fs/jbd2"
)  # of ext4's, by device and inode: one on a disk of its own has none
_BLOCK_DEVICES = Path("/sys/dev/block")
# With these the journal's commit does not flush what was written before it.
_LOOSE = re.compile(r"journal_async_commit|data=journal|rtdev=.*")
_WAIT_WRITE_WAIT = 1 | 2 | 4  # SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE and _WAIT_AFTER

_NOT_ALLOWED = (errno.ENOSYS, errno.EPERM)  # by a sandbox: a full sync does as well

_WriteBack = Callable[[int, int, int, int], int]


@contextmanager
def named_in_order(descriptor: int) -> Iterator[None]:
    """Inside the block a new file may be given names; behind it the file is durable, and a name
    when its directory is synced. Closes the descriptor.

    Raises OSError, for the block's end as well: the names are the caller's to remove.
    """
    try:
        is_durable = not keeps_order(os.fstat(descriptor).st_dev)
        if is_durable:
            sync_descriptor(descriptor)
        else:
            _write_back(descriptor)
        yield
        if not is_durable:
            sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


@lru_cache(maxsize=64)
def keeps_order(device: int) -> bool:
    """Whether names that are given behind a write-back cannot be durable before what was written.

    `device` is a file's st_dev. True is certain; False is all that is not known.
    """
    numbers = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = os.fsdecode(_MOUNTS.read_bytes())
        name = (_BLOCK_DEVICES / numbers).resolve().name
        journals = os.listdir(_JOURNALS) if _JOURNALS.is_dir() else []  # noqa: PTH208 - names
    except OSError:
        return False
    return _sync_file_range is not None and is_ordered(
        mounts, numbers, device_name=name, journals=journals
    )


def is_ordered(mounts: str, numbers: str, *, device_name: str, journals: Collection[str]) -> bool:
    """Decide keeps_order() by what the system tells.

    `mounts` is mountinfo, `numbers` the device's, `device_name` the kernel's name for it, and
    `journals` those of ext4. On ext4 and XFS a write-back ends when block map and size are in the
    journal's running transaction; names that come later are in no earlier one, and its commit
    flushes the disk, which has the octets.
    """
    for line in mounts.splitlines():
        mount, _, of_system = line.partition(" - ")
        fields, (kind, _, options) = mount.split(" "), of_system.split(" ", 2)
        if fields[2] != numbers:
            continue
        if any(_LOOSE.fullmatch(option) for option in options.split(",")):
            return False
        journal = re.compile(re.escape(device_name) + r"-\d+")
        return kind == "xfs" or (kind == "ext4" and any(map(journal.fullmatch, journals)))
    return False


def _write_back(descriptor: int) -> None:
    """Write all of a file's octets to the disk and wait for it; nothing is flushed."""
    assert _sync_file_range is not None
    if _sync_file_range(descriptor, 0, 0, _WAIT_WRITE_WAIT) == 0:
        return
    number = ctypes.get_errno()
    if number not in _NOT_ALLOWED:
        SYNC_FAILURES.add()
        raise OSError(number, os.strerror(number))
    sync_descriptor(descriptor)


def _found() -> _WriteBack | None:
    """The C library's sync_file_range(), None where it has none; it lets other threads work."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function


_sync_file_range = _found()
