"""Octets that lie in a file.

On the path: who writes large contents hands these on; who passes them on reads them in blocks.
Holds: nothing is open between two reads; the file is the holder's to keep until they are read.
Fails: OSError from a file that is gone.
Standards: POSIX pread.
"""

import os
from dataclasses import dataclass
from pathlib import Path


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
