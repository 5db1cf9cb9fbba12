"""Large contents as files: durable before the transaction that names them, removed after the one
that drops them.

On the path: beside the writer, for contents over INLINE_BYTES_MAX.
Holds: a file that no row names is an orphan of a crash; the spool's start removes it.
Fails: SpoolFullError, SpoolUnavailableError; a half-written file is never named.
Standards: write, fsync, rename, fsync of the directory (docs/design.md 4).
"""

import contextlib
import errno
import os
from collections.abc import Container, Iterator, Sequence
from itertools import islice
from pathlib import Path

from relay.journal.crash import CrashPoint, CrashPoints
from relay.spool.types import SpoolError, SpoolFullError, SpoolUnavailableError

INLINE_BYTES_MAX = 128 * 1024
_LISTED_AT_ONCE = 1000
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_large(content: bytes) -> bool:
    """Whether a content becomes a file."""
    return len(content) > INLINE_BYTES_MAX


class ContentFiles:
    """The directory of contents. Every method blocks: call it in a thread."""

    def __init__(self, directory: Path, *, crash: CrashPoints) -> None:
        self._directory = directory
        self._crash = crash

    def prepare(self) -> None:
        """Make the directory."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(
        self, message_id: str, contents: Sequence[bytes], *, only: Container[int]
    ) -> tuple[str, ...]:
        """Store the contents with the indexes in `only`; return a name for each, "" for others."""
        names = tuple(
            f"{message_id}-{index}" if index in only else "" for index in range(len(contents))
        )
        try:
            for name, content in zip(names, contents, strict=True):
                if name:
                    self._write_one(name, content)
            if any(names):
                _sync_directory(self._directory)
        except OSError as error:
            self.remove(names)
            if error.errno in _DISK_FULL:
                raise SpoolFullError(f"{self._directory}: the disk is full") from error
            raise SpoolUnavailableError(f"{self._directory}: {error.strerror}") from error
        if any(names):
            self._crash.reached(CrashPoint.SPOOL_BODY_SYNCED)
        return names

    def read(self, name: str, size: int) -> bytes:
        """Raise SpoolError if the file is gone or not `size` bytes long."""
        try:
            content = (self._directory / name).read_bytes()
        except OSError as error:
            raise SpoolError(f"content {name} cannot be read: {error.strerror}") from error
        if len(content) != size:
            raise SpoolError(f"content {name} has {len(content)} bytes, expected {size}")
        return content

    def remove(self, names: Sequence[str]) -> None:
        """Remove files that no row names; what is gone already is fine."""
        for name in names:
            if name:
                with contextlib.suppress(OSError):
                    (self._directory / name).unlink()

    def listed(self) -> Iterator[tuple[str, ...]]:
        """The names of all files, some at a time: there may be as many as messages."""
        with os.scandir(self._directory) as entries:
            names = (entry.name for entry in entries)
            while some := tuple(islice(names, _LISTED_AT_ONCE)):
                yield some

    def _write_one(self, name: str, content: bytes) -> None:
        path = self._directory / name
        part = path.with_name(name + ".part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        part.rename(path)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
