"""Octets that lie in a file, and writing them there.

On the path: who writes large contents hands these on; who passes them on reads them in blocks.
Holds: of FileOctets nothing is open between two reads, and the file is the holder's to keep until
they are read; OpenOctets keep it open, whoever renames or removes it.
Fails: OSError from a file that is gone, and from a disk that refuses.
Standards: POSIX pread, write.
"""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class FileOctets:
    """`size` octets of a file from `start` on (a relay.message.content.Octets)."""

    path: Path
    start: int
    size: int

    def read(self, start: int, length: int) -> bytes:
        """Return `length` octets from `start`, fewer only where they end. Raises OSError."""
        wanted = min(length, self.size - start)
        if wanted <= 0:
            return b""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, wanted, self.start + start)
        finally:
            os.close(descriptor)

    def part(self, start: int, length: int) -> "FileOctets":
        """Return those from `start` on; nothing is read."""
        return FileOctets(self.path, self.start + start, max(0, min(length, self.size - start)))


def check_readable(path: Path) -> None:
    """Raise PermissionError for a file that is there, and not for this user."""
    if path.exists() and not os.access(path, os.R_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def write_all(descriptor: int, octets: bytes) -> None:
    """Write octets to an open file; the system may take them a part at a time. Raises OSError."""
    view = memoryview(octets)
    while view:
        view = view[os.write(descriptor, view) :]


class _Descriptor:
    """An open file, closed when nobody has octets of it any more."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


@dataclass(frozen=True, slots=True)
class OpenOctets:
    """`size` octets from `start` on of a file that is open (a relay.message.content.Octets)."""

    descriptor: _Descriptor
    start: int
    size: int

    @classmethod
    def of(cls, file: BinaryIO) -> "OpenOctets":
        """Return all of an open file, which its holder may close. Raises OSError."""
        number = os.dup(file.fileno())
        descriptor = _Descriptor(number)
        return cls(descriptor, 0, os.fstat(number).st_size)

    def read(self, start: int, length: int) -> bytes:
        """Return `length` octets from `start`, fewer only where they end. Raises OSError."""
        wanted = min(length, self.size - start)
        if wanted <= 0:
            return b""
        return os.pread(self.descriptor.number, wanted, self.start + start)

    def part(self, start: int, length: int) -> "OpenOctets":
        """Return those from `start` on; nothing is read."""
        size = max(0, min(length, self.size - start))
        return OpenOctets(self.descriptor, self.start + start, size)
