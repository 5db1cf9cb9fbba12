"""Durable file operations: write, link, rename, remove, and shared fsyncs of directories.

All steps of the store that must survive a crash use this module, in the store's threads. What
fails because a client renamed the file is repeated (`retry_if_renamed`). No operation replaces an
existing message. An fsync of a directory covers every change made before it started, by any
thread. The functions raise OSError; storage_errors() converts it to StoreUnavailableError.
Maildir; POSIX fsync.
"""

import contextlib
import ctypes
import errno
import functools
import os
import re
import socket
import stat
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, ParamSpec, TypeVar

from relay.base.files import opened, write_all
from relay.base.message.content import Content, UnreadableError, blocks
from relay.store.mailbox import errors

_NO_FILE = frozenset((errno.ELOOP, errno.ENXIO))  # a symbolic link, a socket
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
_DIRECTORY_MODE = 0o700
_LOOKS = 5
_LOCK_ATTEMPTS = 20
_LOCK_PAUSE_S = 0.05
_TICK_NS = 100_000_000
_COARSE_TICK_NS = 2_100_000_000  # for file systems with times in whole seconds
_SECOND_NS = 1_000_000_000
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
AnyPath = str | os.PathLike[str]  # a Path costs much where it is made for each message
Undo = list[Callable[[], object]]  # what takes back, in reverse order, what was done


class MissingRootError(OSError):
    """The path of the mail root does not lead to it now."""

    def __init__(self) -> None:
        super().__init__(errno.ENODEV, "the mail root is missing")


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Convert OSError to StoreUnavailableError."""
    try:
        yield
    except UnreadableError as error:
        raise errors.ContentUnreadableError(f"The message cannot be read: {error}.") from error
    except MissingRootError as error:
        raise errors.StoreUnavailableError(
            "The mail store cannot be used: its root is missing."
        ) from error
    except OSError as error:
        if error.errno in _FULL:
            raise errors.StoreUnavailableError("The mail store's disk is full.") from error
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise errors.StoreUnavailableError(f"The mail store cannot be used: {reason}.") from error


def retry_if_renamed(action: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Repeat an action that raised FileNotFoundError: a change of flags renames a file."""

    @functools.wraps(action)
    def repeated(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        for _ in range(_LOOKS):
            with contextlib.suppress(FileNotFoundError):
                return action(*args, **kwargs)
        raise errors.StoreUnavailableError("The message is renamed faster than it can be found.")

    return repeated


def write_file(path: AnyPath, content: Content) -> int:
    """Write a new file and return its descriptor, not synced. After an error no file is left.

    Raises UnreadableError if the file of a large content cannot be read.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for piece in blocks(content):
            write_all(descriptor, piece)
    except BaseException:
        os.close(descriptor)
        remove(path)
        raise
    return descriptor


def write_synced(path: Path, content: Content) -> None:
    """Write a new file and fsync it. Errors are those of write_file()."""
    descriptor = write_file(path, content)
    try:
        sync_descriptor(descriptor)
    except OSError:
        remove(path)
        raise
    finally:
        os.close(descriptor)


def replace_durably(
    path: Path, octets: bytes, *, part: Path, prepare: Callable[[Path], object] = lambda _: None
) -> None:
    """Create or replace a file by way of the file `part` next to it, which `prepare` gets when it
    is written. Callers hold a lock: a `part` that is there was left by a crash.
    """
    remove(part)
    try:
        write_synced(part, octets)
        prepare(part)
        part.rename(path)
    finally:
        remove(part)
    sync_directory(path.parent)


def open_written(path: AnyPath) -> int:
    """Return the descriptor of a file that was written but not synced."""
    return os.open(path, os.O_WRONLY | os.O_CLOEXEC)


def place(source: AnyPath, target: AnyPath) -> None:
    """Give a finished file another name, never replacing a file. Raises FileExistsError."""
    os.link(source, target)


def open_message(path: Path, directory: int | None = None) -> BinaryIO:
    """Open a message's file; `path` may be relative to the descriptor of a directory.

    Raises FileNotFoundError also for a FIFO, a symbolic link or a directory.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, dir_fd=directory)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise FileNotFoundError(errno.ENOENT, "Not a regular file", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "Not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def rename(source: Path, target: Path) -> None:
    """Rename a message's file, replacing none.

    Names are unique, so an existing target may be a second link to the same file, left by a mail
    client. Then the source is removed, because a rename between two links of a file does nothing.
    Raises FileExistsError.
    """
    if not exists(target):
        source.rename(target)
    elif target.samefile(source):
        remove(source)
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))


def exists(path: AnyPath) -> bool:
    """Whether a path leads to something. Raises OSError, also where Path.exists() says no: with
    Python 3.14 a disk that fails looks empty.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        os.stat(path)  # noqa: PTH116 - see above
        return True
    return False


def remove(path: AnyPath) -> None:
    """Unlink a file if it exists."""
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108 - of any kind


def is_old(changed_ns: int, *, now_us: int) -> bool:
    """Whether any later change gives a directory another modification time than this.

    The clock of a file system may be coarse: changes soon after this one can have the same time.
    """
    tick_ns = _TICK_NS if changed_ns % _SECOND_NS else _COARSE_TICK_NS
    return now_us * 1000 - changed_ns > tick_ns


def list_names(directory: Path | str) -> list[str]:
    """The names in a directory, none if it does not exist."""
    try:
        return os.listdir(directory)  # noqa: PTH208 - names are wanted, not Paths, by the thousand
    except (FileNotFoundError, NotADirectoryError):
        return []


def make_directory(path: Path, sync: Callable[[Path], None] | None = None) -> bool:
    """Create a directory within one that exists, 0700 and durable in its parent.

    Return whether it was created. A directory whose parent cannot be synced is removed, so that the
    next attempt syncs it. `sync` replaces sync_directory().
    """
    if path.is_dir():
        return False
    with contextlib.suppress(FileExistsError):
        path.mkdir(_DIRECTORY_MODE)
    try:
        (sync or sync_directory)(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            path.rmdir()
        raise
    return True


def make_directories(parent: Path, names: Iterable[str]) -> None:
    """Create directories within one that exists, in this order, each 0700; one fsync for all.

    If that fails, they are removed, as by make_directory().
    """
    made = []
    for name in names:
        with contextlib.suppress(FileExistsError):
            os.mkdir(f"{parent}/{name}", _DIRECTORY_MODE)  # noqa: PTH102 - there are many
            made.append(name)
    if not made:
        return
    try:
        sync_directory(parent)
    except OSError:
        for name in reversed(made):
            with contextlib.suppress(OSError):
                (parent / name).rmdir()
        raise


def sync_directory(path: AnyPath) -> None:
    """Make a directory's entries durable, and check that they are below the mail root."""
    with opened(path, os.O_DIRECTORY) as descriptor:
        sync_descriptor(descriptor)
    _work.check_root()


class _Work(threading.local):
    """What the current call of the store in this thread depends on."""

    def __init__(self) -> None:
        self.check_root: Callable[[], None] = lambda: None


_work = _Work()


def begin_work(check_root: Callable[[], None]) -> None:
    """Begin a call of the store in this thread.

    `check_root` is called now, and again after each sync of a directory. What it raises ends the
    call.
    """
    SYNC_FAILURES.begin()
    _work.check_root = check_root
    check_root()


@dataclass(slots=True)
class _Rounds:
    """The counted fsyncs of one directory. At most one runs at a time."""

    condition: threading.Condition
    started: int = 0
    finished: int = 0
    waiting: int = 0
    failed: dict[int, OSError] = field(default_factory=dict)


class SyncFailures:
    """Counts failed syncs of this process, so that work in progress during a failure fails too.

    A file system reports a failed commit once. A later fsync reports success for other changes of
    the same commit (observed on ext4), so a success counts only for work begun after the failure.
    """

    def __init__(self) -> None:
        self._count = 0
        self._begun = threading.local()

    def begin(self) -> None:
        """Begin new work in this thread: earlier failures do not concern it."""
        self._begun.count = self._count

    def add(self) -> None:
        """Count a failure. The number need not be exact: any change of it is noticed."""
        self._count += 1

    def check(self) -> None:
        """Raise OSError if a sync has failed since this thread's work began."""
        if getattr(self._begun, "count", self._count) != self._count:
            raise OSError(errno.EIO, "Another sync failed in the meantime")


SYNC_FAILURES = SyncFailures()


@contextlib.contextmanager
def undone_after_errors() -> Iterator[Undo]:
    """Provide a list of actions, which are called in reverse order after an error.

    Raises OutcomeUnknownError if one of them fails too.
    """
    actions: Undo = []
    try:
        yield actions
    except (OSError, errors.StoreError) as error:
        SYNC_FAILURES.begin()
        failures: list[Exception] = []
        for action in reversed(actions):
            try:
                action()
            except (OSError, errors.StoreError) as failure:
                failures.append(failure)
        if failures:
            raise errors.OutcomeUnknownError(
                f"The mail store failed during a change, and again when it was undone: "
                f"{failures[0]}. Whether the change was made is not known."
            ) from error
        raise


def sync_descriptor(descriptor: int) -> None:
    """Fsync a file or a directory and count a failure."""
    try:
        os.fsync(descriptor)
    except OSError:
        SYNC_FAILURES.add()
        raise


class DirectorySync:
    """Shares fsyncs among threads: each caller waits for one that started after its own change."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rounds: dict[str, _Rounds] = {}
        # called in any thread with a directory that this process has changed
        self.on_sync: Callable[[str], None] = lambda _directory: None

    def sync(self, path: AnyPath) -> None:
        """Make all changes in the directory `path` before this call durable.

        Raises OSError if this sync failed, or any other since the caller's work began.
        """
        directory = os.fspath(path)
        self.on_sync(directory)
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
                    if isinstance(error, MissingRootError):
                        raise MissingRootError
                    raise OSError(error.errno, error.strerror, directory)
                SYNC_FAILURES.check()
            finally:
                rounds.waiting -= 1
                if not rounds.waiting:
                    del self._rounds[directory]

    def _run_round(self, directory: str, rounds: _Rounds) -> None:
        """Run one fsync without the lock; keep a failure for all threads that wait for it."""
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
            if rounds.waiting > 1:
                rounds.condition.notify_all()


class Stripes:
    """A fixed number of locks. Each name has one of them, which serializes work on a message."""

    def __init__(self, count: int = 256) -> None:
        self._locks = tuple(threading.Lock() for _ in range(count))

    def of(self, name: str) -> threading.Lock:
        """The lock of a name."""
        return self._locks[hash(name) % len(self._locks)]


_MOUNTS = Path("/proc/self/mountinfo")
# ext4 journals, by device and inode. A journal on a separate device is not listed.
_JOURNALS = Path("/proc/fs/jbd2")
_BLOCK_DEVICES = Path("/sys/dev/block")
# With these mount options a journal commit does not flush the data written before it.
_LOOSE = re.compile(r"journal_async_commit|data=journal|rtdev=.*")
_WAIT_WRITE_WAIT = 1 | 2 | 4  # SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE and _WAIT_AFTER

_NOT_ALLOWED = (errno.ENOSYS, errno.EPERM)  # in a sandbox: a full sync is equivalent

_WriteBack = Callable[[int, int, int, int], int]


def finish_content(descriptor: int) -> bool:
    """Prepare a new file for its names: none of them becomes durable before its content.

    Return whether names that are given from now on become durable in the order in which they are
    given. If so, an fsync of a directory also covers every name that was given before the last one
    in it. Closes the descriptor. Raises OSError.
    """
    try:
        in_order = keeps_order(os.fstat(descriptor).st_dev)
        if in_order:
            _write_back(descriptor)
        else:
            sync_descriptor(descriptor)
        return in_order
    finally:
        os.close(descriptor)


@lru_cache(maxsize=64)
def keeps_order(device: int) -> bool:
    """Whether write-backs and changes of directories become durable in the order they were made in.

    `device` is a file's st_dev. True is certain; False means unknown or no.
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


def in_order_with(status: os.stat_result, directory: AnyPath) -> bool:
    """Whether changes in `directory`, and of names of the file with this status, become durable in
    the order in which they are made. Raises OSError.
    """
    return keeps_order(status.st_dev) and os.stat(directory).st_dev == status.st_dev  # noqa: PTH116


def is_ordered(mounts: str, numbers: str, *, device_name: str, journals: Collection[str]) -> bool:
    """Decide keeps_order() from system information.

    `mounts` is mountinfo, `numbers` the device numbers, `device_name` the kernel's name of the
    device, `journals` the ext4 journals. On ext4 and XFS a write-back returns when block map and
    size are in the journal's running transaction. Later links are in the same or a later
    transaction, and its commit flushes the disk, which already has the data. So are all changes of
    directories: an fsync of one commits those before its own last one.
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
    """Write a file's data to the disk and wait, without flushing the disk's cache."""
    assert _sync_file_range is not None
    if _sync_file_range(descriptor, 0, 0, _WAIT_WRITE_WAIT) == 0:
        return
    number = ctypes.get_errno()
    if number not in _NOT_ALLOWED:
        SYNC_FAILURES.add()
        raise OSError(number, os.strerror(number))
    sync_descriptor(descriptor)


def _found() -> _WriteBack | None:
    """Return the C library's sync_file_range(), or None. The call releases the GIL."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function


_sync_file_range = _found()


def take_lock(lock: Path, *, stale_s: int) -> bool:
    """Take one of Dovecot's locks by creating its file. Return False if it stays taken for a
    second.

    A lock file older than `stale_s` was left by a crash and is replaced. The program that created
    the file may change what it protects until it removes the file.
    """
    for _ in range(_LOCK_ATTEMPTS):
        with suppress(FileExistsError):
            # Dovecot takes the lock at once if this process is gone
            os.close(write_file(lock, f"{os.getpid()}:{socket.gethostname()}".encode()))
            return True
        with suppress(FileNotFoundError):
            if _now_s(lock) - lock.stat().st_mtime > stale_s:
                remove(lock)
                continue
        threading.Event().wait(_LOCK_PAUSE_S)
    return False


def _now_s(lock: Path) -> float:
    """Return the current time of the file system that holds the lock."""
    probe = lock.with_suffix(".probe")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        remove(probe)
