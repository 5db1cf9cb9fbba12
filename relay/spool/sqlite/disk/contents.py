"""Larger contents as files: durable before the transaction that names them, removed after the one
that drops them.

On the path: beside the writer, for contents over INLINE_BYTES_MAX. A body that arrived in a file of
    this directory gets a second name; nothing is copied.
Holds: a file that no row names and nobody is writing is left over; the spool's upkeep removes it.
    A file that has a row's name is never changed; if something else did, its checksum tells.
Fails: SpoolFullError, SpoolUnavailableError; a half-written file is never named.
Standards: write, fsync, rename or link, fsync of the directory (docs/design.md 4).
"""

import contextlib
import errno
import os
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from zlib import crc32

from relay.crashpoints import CrashPoint, CrashPoints
from relay.files import FileOctets, write_all
from relay.message.content import LARGE_BYTES, Content, LargeContent, Octets, octets_in_blocks
from relay.mime import headers
from relay.spool.sqlite.disk.arriving import ArrivedOctets, ArrivingFile
from relay.spool.sqlite.disk.copying import sync
from relay.spool.sqlite.disk.presence import ARRIVING
from relay.spool.sqlite.faults import disk_faults
from relay.spool.types import SpoolError

INLINE_BYTES_MAX = 128 * 1024
_LISTED_AT_ONCE = 1000
_PART = ".part"
_CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP)


def is_in_file(content: Content) -> bool:
    """Whether a content becomes a file; of a large one the header does not."""
    return isinstance(content, LargeContent) or len(content) > INLINE_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Stored:
    """A file that was written for a content, and the checksum of its octets."""

    name: str
    crc32: int


@dataclass(frozen=True, slots=True)
class InFile:
    """What a row says of a content in a file: `size` with the header.

    Without `header` the file is all of it. `crc32` is that of the file, gone on with the header:
    versions share the file, and it is read once for each of their sums. None: nobody knows it.
    """

    name: str
    size: int
    header: bytes | None
    eight_bit: bool
    crc32: int | None

    @property
    def is_small(self) -> bool:
        """Whether it is held in memory."""
        return self.header is None and self.size <= LARGE_BYTES


class ContentFiles:
    """The directory of contents. Every method blocks, but for arrival(): call it in a thread."""

    def __init__(
        self,
        directory: Path,
        *,
        crash: CrashPoints,
        started_us: int = 0,
        check_room: Callable[[int], None] = lambda _size_bytes: None,
    ) -> None:
        """`check_room` raises SpoolFullError where so many more bytes are too much; `started_us`
        sets what arrives now apart from what arrived before a crash.
        """
        self._directory = directory
        self._check_room = check_room
        self._crash = crash
        self._numbers = count(1)
        self._arriving = f"{ARRIVING}{started_us:x}-"
        self._in_work: set[str] = set()  # names that a transaction to come will have, or never

    def prepare(self) -> None:
        """Make the directory; its name, and that of the one it is in, are on the disk then."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for place in self._directory.parents[:2]:
            with contextlib.suppress(PermissionError):  # above the spool others may rule
                sync(place)

    def arrival(self) -> ArrivingFile:
        """Return a file for a body that begins to arrive; it appears with the first write.

        No message has such an id, so that what a crash left of it is known for that.
        """
        path = self._directory / f"{self._arriving}{next(self._numbers)}"
        return ArrivingFile(path, check_room=self._check_room)

    def write(
        self, message_id: str, contents: Sequence[Content], *, only: Container[int]
    ) -> tuple[Stored | None, ...]:
        """Store the contents with the indexes in `only`; return a file for each, None for others.

        Contents that differ in their header only share the file of their body. The names are in
        work until committed() or remove().
        """
        names = _names(message_id, contents, only)
        self._in_work.update(filter(None, names))
        stored: dict[str, Stored] = {}
        try:
            with disk_faults(self._directory):
                for name, content in zip(names, contents, strict=True):
                    if name and name not in stored:
                        stored[name] = Stored(name, self._store(name, content))
                if stored:
                    sync(self._directory)
        except SpoolError:
            self.remove(names)
            raise
        if stored:
            self._crash.reached(CrashPoint.SPOOL_BODY_SYNCED)
        return tuple(stored.get(name) for name in names)

    def read(self, row: InFile, *, check: bool) -> Content:
        """Return a content, a large one without its body; with `check` that is read through once.

        Raises SpoolError if the file is gone, has not as many octets as its row says, or others.
        """
        path = self._directory / row.name
        expected = row.size - len(row.header or b"")
        try:
            content = path.read_bytes() if row.is_small else b""
            found = len(content) if row.is_small else path.stat().st_size
            if found != expected:
                raise SpoolError(f"content {row.name} has {found} bytes, expected {expected}")
            body = FileOctets(path, 0, found)
            if check and row.crc32 is not None:
                blocks = (content,) if row.is_small else octets_in_blocks((body,))
                check_sum(row.name, sum_of(blocks, row.header), expected=row.crc32)
            if row.is_small:
                return content
            if row.header is None:
                return _divided(body)
            return LargeContent(row.header, (body,), row.eight_bit)
        except OSError as error:
            raise SpoolError(
                f"content {row.name} cannot be read: {error.strerror or error}"
            ) from error

    def committed(self, files: Iterable[Sequence[Stored | None]]) -> None:
        """Rows have these files now."""
        self._in_work.difference_update(file.name for some in files for file in some if file)

    def remove(self, names: Iterable[str]) -> None:
        """Remove files that no row names; what is gone already is fine."""
        for name in names:
            if name:
                with contextlib.suppress(OSError):
                    (self._directory / name).unlink()
                self._in_work.discard(name)

    def is_in_work(self, name: str) -> bool:
        """Whether somebody of this process may be writing the file, or its row."""
        return name.startswith(self._arriving) or name.removesuffix(_PART) in self._in_work

    def listed(self) -> Iterator[tuple[str, ...]]:
        """The names of all files, some at a time: there may be as many as messages."""
        with disk_faults(self._directory), os.scandir(self._directory) as entries:
            names = (entry.name for entry in entries)
            while some := tuple(islice(names, _LISTED_AT_ONCE)):
                yield some

    def _store(self, name: str, content: Content) -> int:
        """Give a content its file; return the file's checksum."""
        if isinstance(content, bytes):
            return self._write_one(name, (content,))
        if not self._link(name, content.body):
            return self._write_one(name, octets_in_blocks(content.body))
        (whole,) = content.body
        if isinstance(whole, ArrivedOctets):
            return whole.crc32
        return sum_of(octets_in_blocks(content.body))  # another message's, sent on: that is rare

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
        sync(path)
        return True

    def _write_one(self, name: str, blocks: Iterable[bytes]) -> int:
        found = 0
        path = self._directory / name
        part = path.with_name(name + _PART)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            for block in blocks:
                write_all(descriptor, block)
                found = crc32(block, found)
            os.fsync(descriptor)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        part.rename(path)
        return found


def sum_of(blocks: Iterable[bytes], header: bytes | None = None) -> int:
    """The checksum of octets, gone on with those of a header. Raises UnreadableError."""
    found = 0
    for block in blocks:
        found = crc32(block, found)
    return crc32(header or b"", found)


def check_sum(name: str, found: int, *, expected: int | None) -> None:
    """Raise SpoolError for a content that has other octets than it had."""
    if expected is not None and found != expected:
        raise SpoolError(
            f"content {name} has other octets than it had: CRC-32 {found:08x}, expected"
            f" {expected:08x}"
        )


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
