"""Octets in files: read them in blocks, write them, sync them.

FileOctets opens its file for each read; the file must exist until the last read. OpenOctets keeps
the file open, also when it is renamed or removed. All functions except read_key_file() raise
OSError.
"""

import ctypes
import errno
import fcntl
import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj
from typing import BinaryIO

from msgspec import Struct

from relay.base.pressure import Disk

_BLOCK_BYTES = 1 << 20
LINE_BYTES_MAX = 512 * 1024  # of a log: 1,000 addresses of 320 characters, and the rest
_KEY_FILE_BYTES_MAX = 64 * 1024  # an RSA key of 4,096 bits has 3.3 KB
_CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES)


@contextmanager
def opened(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> Iterator[int]:
    """Open a file or a directory for the block, which gets the descriptor; a new file is for its
    owner alone. Raises OSError.
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class FileOctets(Struct, frozen=True, tag=True):
    """`size` octets of a file from `start` on (a relay.base.message.content.Octets)."""

    path: Path
    start: int
    size: int

    def read(self, start: int, length: int) -> bytes:
        """Return `length` octets from `start`, fewer only where they end. Raises OSError."""
        return OpenOctets.of_part(self).read(start, length)

    def part(self, start: int, length: int) -> "FileOctets":
        """Return a part; nothing is read."""
        return FileOctets(self.path, self.start + start, max(0, min(length, self.size - start)))


def check_readable(path: Path) -> None:
    """Raise PermissionError for a file that exists and this user cannot read."""
    if path.exists() and not os.access(path, os.R_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def nearest_existing(path: Path) -> Path:
    """Return `path`, or its nearest parent that exists."""
    while not os.access(path, os.F_OK, effective_ids=True) and path != path.parent:
        path = path.parent
    return path


def open_to_others(path: Path, *, to_read: bool = False) -> str:
    """Return which permission of `path` is too wide, and the command that corrects it; or ""."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return ""
    if to_read and mode & (stat.S_IROTH | stat.S_IWOTH):
        return f"found mode {mode:04o} of {path}: others can read it (chmod o-rwx)"
    if not to_read and mode & stat.S_IWOTH:
        return f"found mode {mode:04o} of {path}: others can write in it (chmod o-w)"
    return ""


def read_key_file(file: Path, *, expected: str, is_secret: bool) -> bytes:
    """Return the content of a small file, which others must not read if it is secret.

    Raises ValueError with what was found and expected.
    """
    try:
        with open(file, "rb", opener=_open_at_once) as stream:
            mode = os.fstat(stream.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ValueError(f"found no regular file, expected {expected}")
            if is_secret and mode & (stat.S_IROTH | stat.S_IWOTH):
                raise ValueError(
                    f"found mode {stat.S_IMODE(mode):04o}, expected one with which others cannot "
                    "read it (chmod o-rwx)"
                )
            octets = stream.read(_KEY_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise ValueError(f"found no such file, expected {expected}") from None
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        text = f"found one that cannot be read ({reason}), expected one that the service can read"
        raise ValueError(text) from None
    if len(octets) > _KEY_FILE_BYTES_MAX:
        raise ValueError(f"found more than {_KEY_FILE_BYTES_MAX} bytes, expected {expected}")
    return octets


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting for a writer of a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def disk_of(path: Path) -> Disk:
    """Return the file system of `path`. Raises OSError."""
    stat = os.statvfs(path)
    return Disk(
        size_bytes=stat.f_blocks * stat.f_frsize,
        free_bytes=stat.f_bavail * stat.f_frsize,
        files=stat.f_files,
        files_free=stat.f_favail,
        is_writable=not stat.f_flag & os.ST_RDONLY,
    )


def write_all(descriptor: int, octets: bytes) -> None:
    """Write all octets to an open file. Raises OSError."""
    view = memoryview(octets)
    while view:
        view = view[os.write(descriptor, view) :]


def has_writers(descriptor: int) -> bool:
    """Whether another open file may still write to the file of `descriptor`, open for reading.

    In this case the kernel grants no read lease (fcntl(2)). Also true if the system or the disk has
    no leases.
    """
    try:
        # a signal announces that a lease is broken; the default signal would end this process
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except (OSError, AttributeError):  # macOS
        return True
    return False


class Descriptor:
    """An open file, closed with the last reference to it."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


class OpenOctets(Struct, frozen=True):
    """`size` octets from `start` on of an open file (a relay.base.message.content.Octets)."""

    descriptor: Descriptor
    start: int
    size: int

    @classmethod
    def of(cls, file: BinaryIO) -> "OpenOctets":
        """Return all of an open file; the caller may close its own. Raises OSError."""
        number = os.dup(file.fileno())
        descriptor = Descriptor(number)
        return cls(descriptor, 0, os.fstat(number).st_size)

    @classmethod
    def of_part(cls, octets: FileOctets) -> "OpenOctets":
        """Return the same octets of the file, which is opened now. Raises OSError."""
        descriptor = Descriptor(os.open(octets.path, os.O_RDONLY | os.O_CLOEXEC))
        return cls(descriptor, octets.start, octets.size)

    def read(self, start: int, length: int) -> bytes:
        """Return `length` octets from `start`, fewer only where they end. Raises OSError."""
        count = min(length, self.size - start)
        if count <= 0:
            return b""
        return os.pread(self.descriptor.number, count, self.start + start)

    def read_cached(self, start: int, length: int) -> bytes:
        """Return at most `length` octets from `start` without waiting for the disk.

        b"" if the kernel does not have them in memory or does not report it: then call read().
        """
        buffer = bytearray(min(length, self.size - start))
        try:
            count = os.preadv(self.descriptor.number, [buffer], self.start + start, os.RWF_NOWAIT)
        except (OSError, AttributeError):  # EAGAIN; EOPNOTSUPP, in 2 microseconds; macOS
            return b""
        return bytes(memoryview(buffer)[:count])

    def part(self, start: int, length: int) -> "OpenOctets":
        """Return a part; nothing is read."""
        size = max(0, min(length, self.size - start))
        return OpenOctets(self.descriptor, self.start + start, size)


def lines_backwards(path: Path, needle: bytes = b"") -> Iterator[bytes]:
    """Yield the lines of a file from last to first, none if it is missing; skip overlong lines.

    Only lines that contain `needle`, which is in lower case; ASCII letters match in any case.
    Memory is bounded. Raises OSError.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:  # pruned meanwhile
        return
    with file:
        end = file.seek(0, os.SEEK_END)
        rest = b""
        while end > 0:
            start = max(0, end - _BLOCK_BYTES)
            file.seek(start)
            block = file.read(end - start) + rest
            first, _, complete = block.partition(b"\n")
            if start == 0:
                complete, first = block, b""
            if not needle:
                yield from reversed(complete.splitlines())
            elif needle in complete.lower():  # one search for a block without the needle
                lines = reversed(complete.splitlines())
                yield from (line for line in lines if needle in line.lower())
            rest = first + b"\n" if start and len(first) < LINE_BYTES_MAX else b""
            end = start


def fsync_path(path: Path) -> None:
    """Sync a file or a directory. Raises OSError."""
    with opened(path) as descriptor:
        os.fsync(descriptor)


def sync_disk(path: Path) -> None:
    """Sync the file system of `path`, for many files at once. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "syncfs"):
        os.sync()
        return
    with opened(path) as descriptor:
        if libc.syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))


def rewrite_file(path: Path) -> None:
    """Overwrite a file with the same content and sync it: the disk then has what was read.

    For a file of a dead process whose sync may have failed. Raises OSError.
    """
    with opened(path, os.O_RDWR) as descriptor:
        place = 0
        while block := os.pread(descriptor, _BLOCK_BYTES, place):
            place += os.pwrite(descriptor, block, place)
        os.fsync(descriptor)


def create_file(
    path: Path, octets: bytes, *, mode: int, prepare: Callable[[int], object] = lambda _: None
) -> None:
    """Create a file and sync it, but not its directory; after an error there is no file.

    `prepare` gets the open file, e.g. to change its owner. Raises FileExistsError, OSError.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        write_all(descriptor, octets)
        prepare(descriptor)
        os.fsync(descriptor)
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(descriptor)


def replace_file(path: Path, octets: bytes, *, mode: int) -> None:
    """Create or replace a file durably; after a crash it is complete, old or new. Raises OSError.

    Callers in several processes must use a lock, or each must write the complete file.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        create_file(part, octets, mode=mode)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file that never changes; where that is not possible, copy and sync it.

    Raises OSError.
    """
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
    else:
        return
    part = target.with_name(target.name + ".part")
    with source.open("rb") as octets:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as copy:
            copyfileobj(octets, copy, _BLOCK_BYTES)
            copy.flush()
            os.fsync(copy.fileno())
    part.rename(target)


@contextmanager
def locked_directory(directory: Path) -> Iterator[None]:
    """Exclude other processes that hold the lock of `directory` (flock(2)). Blocks.

    Raises OSError.
    """
    with opened(directory, os.O_DIRECTORY) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
