"""Larger contents as files: durable before the transaction that names them, removed after the one
that drops them.

On the path: beside the writer, for contents over INLINE_BYTES_MAX. A body that arrived in a file of
    this directory gets a second name; nothing is copied.
Holds: a file that no row names is an orphan of a crash; the spool's start removes it. A file that
    has a row's name is never changed.
Fails: SpoolFullError, SpoolUnavailableError; a half-written file is never named.
Standards: write, fsync, rename or link, fsync of the directory (docs/design.md 4).
"""

import contextlib
import errno
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from relay.files import FileOctets, write_all
from relay.journal.crash import CrashPoint, CrashPoints
from relay.message import headers
from relay.message.content import LARGE_BYTES, Content, LargeContent, Octets, octets_in_blocks
from relay.spool.sqlite.arriving import ArrivingFile, disk_faults
from relay.spool.types import SpoolError

INLINE_BYTES_MAX = 128 * 1024
_LISTED_AT_ONCE = 1000
_CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP)


def is_in_file(content: Content) -> bool:
    """Whether a content becomes a file; of a large one the header does not."""
    return isinstance(content, LargeContent) or len(content) > INLINE_BYTES_MAX


@dataclass(frozen=True, slots=True)
class InFile:
    """What a row says of a content in a file: `size` with the header.

    Without `header` the file is all of it.
    """

    name: str
    size: int
    header: bytes | None
    eight_bit: bool


class ContentFiles:
    """The directory of contents. Every method blocks, but for arrival(): call it in a thread."""

    def __init__(self, directory: Path, *, crash: CrashPoints) -> None:
        self._directory = directory
        self._crash = crash
        self._numbers = count(1)

    def prepare(self) -> None:
        """Make the directory."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def arrival(self) -> ArrivingFile:
        """Return a file for a body that begins to arrive; it appears with the first write.

        No message has such an id, so that a start removes what a crash left of it.
        """
        return ArrivingFile(self._directory / f"arriving-{next(self._numbers)}")

    def write(
        self, message_id: str, contents: Sequence[Content], *, only: Container[int]
    ) -> tuple[str, ...]:
        """Store the contents with the indexes in `only`; return a name for each, "" for others.

        Contents that differ in their header only share the file of their body.
        """
        names = _names(message_id, contents, only)
        stored: set[str] = set()
        try:
            with disk_faults(self._directory):
                for name, content in zip(names, contents, strict=True):
                    if name and name not in stored:
                        stored.add(name)
                        self._store(name, content)
                if stored:
                    _sync(self._directory)
        except SpoolError:
            self.remove(names)
            raise
        if stored:
            self._crash.reached(CrashPoint.SPOOL_BODY_SYNCED)
        return names

    def read(self, row: InFile) -> Content:
        """Return a content, a large one without its body.

        Raises SpoolError if the file is gone or has not as many octets as its row says.
        """
        path = self._directory / row.name
        expected = row.size - len(row.header or b"")
        is_small = row.header is None and row.size <= LARGE_BYTES
        try:
            content = path.read_bytes() if is_small else b""
            found = len(content) if is_small else path.stat().st_size
            if found != expected:
                raise SpoolError(f"content {row.name} has {found} bytes, expected {expected}")
            if is_small:
                return content
            body = FileOctets(path, 0, found)
            if row.header is None:
                return _divided(body)
            return LargeContent(row.header, (body,), row.eight_bit)
        except OSError as error:
            raise SpoolError(f"content {row.name} cannot be read: {error.strerror}") from error

    def remove(self, names: Iterable[str]) -> None:
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

    def _store(self, name: str, content: Content) -> None:
        if isinstance(content, bytes):
            self._write_one(name, (content,))
        elif not self._link(name, content.body):
            self._write_one(name, octets_in_blocks(content.body))

    def _link(self, name: str, body: Sequence[Octets]) -> bool:
        """Give a body that is a whole file of ours another name; False where it is none."""
        if len(body) != 1 or not isinstance(whole := body[0], FileOctets):
            return False
        if whole.path.parent != self._directory or whole.start != 0:
            return False
        if whole.path.stat().st_size != whole.size:
            return False
        path = self._directory / name
        try:
            path.hardlink_to(whole.path)
        except OSError as error:
            if error.errno in _CANNOT_LINK:
                return False
            raise
        _sync(path)
        return True

    def _write_one(self, name: str, blocks: Iterable[bytes]) -> None:
        path = self._directory / name
        part = path.with_name(name + ".part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            for block in blocks:
                write_all(descriptor, block)
            os.fsync(descriptor)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        part.rename(path)


def _names(message_id: str, contents: Sequence[Content], only: Container[int]) -> tuple[str, ...]:
    """One name for each body that is stored."""
    numbers: dict[tuple[Octets, ...], int] = {}
    names: list[str] = []
    for index, content in enumerate(contents):
        number = index
        if isinstance(content, LargeContent) and index in only:
            number = numbers.setdefault(content.body, index)
        names.append(f"{message_id}-{number}" if index in only else "")
    return tuple(names)


def _divided(whole: FileOctets) -> LargeContent:
    """Return a large content whose header is in its file as well, as a spool of schema 1 has it."""
    header_end = headers.split(whole.read(0, 2 * LARGE_BYTES))
    body = whole.part(header_end, whole.size - header_end)
    eight_bit = not all(block.isascii() for block in octets_in_blocks((body,)))
    return LargeContent(whole.read(0, header_end), (body,), eight_bit)


def _sync(path: Path) -> None:
    """Sync a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
