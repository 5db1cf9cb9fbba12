"""Store large contents as files next to the database.

A content over INLINE_BYTES_MAX is a file. The file is durable (write, fsync, rename or link, fsync
of the directory) before the transaction that names it, and is removed after the transaction that
removes its row. A body that came in as a file of this directory gets a second name and is not
copied. A file with a row is never changed; its checksum is compared when it is read. A file without
a row that is not being written is stale; maintenance removes it.

See docs/design.md 4.
"""

import asyncio
import contextlib
import dataclasses
import errno
import os
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path
from zlib import crc32

from msgspec import Struct

from relay.base.blocks import BodyDisk
from relay.base.crashpoints import CrashPoint, CrashPoints
from relay.base.files import (
    Descriptor,
    FileOctets,
    OpenOctets,
    fsync_path,
    has_writers,
    opened,
    write_all,
)
from relay.base.message.content import Content, LargeContent, Octets, octets_in_blocks
from relay.store.spool.shared.columns import verify_checksum
from relay.store.spool.shared.tables import StoredBodies, StoredBody, StoredContents
from relay.store.spool.sqlite.spool_files import ARRIVING, contents_of
from relay.store.spool.types import SpoolError, SpoolUnavailableError, translate_os_errors

INLINE_BYTES_MAX = 128 * 1024
_LISTED_AT_ONCE = 1000
_PART = ".part"
_CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP)


class IncomingOctets(FileOctets, frozen=True):
    """All of an incoming file, and the checksum of what was written."""

    crc32: int


class IncomingFile:
    """A spool.types.IncomingBody. Writes come one at a time. The file is open from the first write
    until discard(); no later write creates it again.
    """

    def __init__(self, path: Path, disk: BodyDisk) -> None:
        self._path = path
        self._disk = disk
        self._file: Descriptor | None = None
        self._size = 0
        self._crc32 = 0
        self._discarded = False
        # A cancelled session may leave a write running in its thread; discard() waits for it.
        self._lock = threading.Lock()

    async def write(self, blocks: Sequence[bytes]) -> None:
        """See IncomingBody."""
        await self._disk.run(partial(self._write, blocks))

    async def lend(self) -> int:
        """See IncomingBody."""
        await asyncio.to_thread(self._write, ())
        assert self._file is not None
        return self._file.number

    async def take_back(self, size_bytes: int, crc32: int) -> None:
        """See LendableBody. The checksum is compared when the body is read, or copied."""
        await asyncio.to_thread(self._take_back, size_bytes, crc32)

    def octets(self) -> IncomingOctets:
        """See IncomingBody."""
        return IncomingOctets(self._path, 0, self._size, self._crc32)

    def discard(self) -> None:
        """See IncomingBody."""
        asyncio.get_running_loop().run_in_executor(None, self._remove)

    def _write(self, blocks: Sequence[bytes]) -> None:
        octets = b"".join(blocks)
        with self._lock, translate_os_errors(self._path.parent):
            if self._discarded:
                return
            self._disk.check_free_space(len(octets))
            if self._file is None:
                created = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
                self._file = Descriptor(os.open(self._path, created, 0o600))
            write_all(self._file.number, octets)
            self._size += len(octets)
            self._crc32 = crc32(octets, self._crc32)

    def _take_back(self, size_bytes: int, crc32: int) -> None:
        with translate_os_errors(self._path.parent):
            lent = Descriptor(os.open(self._path, os.O_RDONLY | os.O_CLOEXEC))
            self._file, actual_bytes = None, os.fstat(lent.number).st_size
            if actual_bytes != size_bytes:
                raise SpoolUnavailableError(
                    f"found a body of {actual_bytes} octets, expected {size_bytes}"
                )
            if has_writers(lent.number):
                self._path.unlink()
                self._size = self._crc32 = 0
                for block in octets_in_blocks((OpenOctets(lent, 0, size_bytes),)):
                    self._write((block,))
                if self._crc32 != crc32:
                    raise SpoolUnavailableError("found a body with another checksum than expected")
        self._size, self._crc32 = size_bytes, crc32

    def _remove(self) -> None:
        with self._lock:
            self._discarded = True
            self._file = None
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)


def is_in_file(content: Content) -> bool:
    """Whether a content is stored in a file. The header of a large content is in its row."""
    return isinstance(content, LargeContent) or len(content) > INLINE_BYTES_MAX


class ContentRow(Struct, frozen=True):
    """The row of a content in a file: `size` includes the header.

    Without `header` the file is the whole content. `crc32` is the CRC-32 of the file, continued
    over the header: contents with different headers share the file.
    """

    name: str
    size: int
    header: bytes | None
    flags: int  # LargeContent.flags
    crc32: int

    @property
    def is_small(self) -> bool:
        """Whether it is held in memory."""
        return self.header is None


class ContentFiles:
    """The directory of contents. All methods but incoming_body() block: call them in a thread."""

    def __init__(
        self, database: Path, disk: BodyDisk, *, crash: CrashPoints, started_us: int = 0
    ) -> None:
        """`started_us` distinguishes incoming files from those before a crash."""
        self._directory = contents_of(database)
        self._crash = crash
        self._disk = disk
        self._numbers = count(1)
        self._arriving = f"{ARRIVING}{started_us:x}-"
        self._in_use: set[str] = set()  # names that a transaction may still commit

    def prepare(self) -> None:
        """Create the directory, and sync its name and the name of its parent."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for place in self._directory.parents[:2]:
            with contextlib.suppress(PermissionError):  # the parent may belong to another user
                fsync_path(place)

    def incoming_body(self) -> IncomingFile:
        """Return a file for an incoming body; the first write creates it.

        Its name begins with no queue id: a file that a crash left is recognised by that.
        """
        path = self._directory / f"{self._arriving}{next(self._numbers)}"
        return IncomingFile(path, self._disk)

    def write(
        self, message_id: str, contents: Sequence[Content], *, only: Collection[int]
    ) -> StoredBodies:
        """Store the contents with the indexes in `only`, at least one.

        Contents that differ only in their header share the file of their body. The names are in use
        until committed() or remove().
        """
        names = _names(message_id, contents, only)
        self._in_use.update(names.values())
        stored: dict[str, StoredBody] = {}
        try:
            with translate_os_errors(self._directory):
                for index, name in names.items():
                    if name not in stored:
                        stored[name] = StoredBody(name, self._store(name, contents[index]))
                fsync_path(self._directory)
        except SpoolError:
            self.remove(names.values())
            raise
        self._crash.reached(CrashPoint.SPOOL_BODY_SYNCED)
        return {index: stored[name] for index, name in names.items()}

    def read(self, row: ContentRow, *, check: bool) -> Content:
        """Return a content, a large one without its body; with `check` the body is read once.

        Raises SpoolError if the file is missing or has another size or checksum than its row says.
        """
        path = self._directory / row.name
        expected = row.size - len(row.header or b"")
        try:
            content = path.read_bytes() if row.is_small else b""
            actual = len(content) if row.is_small else path.stat().st_size
            if actual != expected:
                raise SpoolError(f"content {row.name} has {actual} bytes, expected {expected}")
            body = FileOctets(path, 0, actual)
            if check:
                blocks = (content,) if row.is_small else octets_in_blocks((body,))
                verify_checksum(row.name, checksum_of(blocks, row.header), expected=row.crc32)
            if row.is_small:
                return content
            return LargeContent.stored(row.header or b"", body, row.flags)
        except OSError as error:
            raise SpoolError(
                f"content {row.name} cannot be read: {error.strerror or error}"
            ) from error

    def opened(self, row: ContentRow) -> Content:
        """Return a content that stays readable when its file is removed. Raises SpoolError."""
        content = self.read(row, check=row.is_small)
        if isinstance(content, bytes):
            return content
        try:
            with (self._directory / row.name).open("rb") as file:
                octets = OpenOctets.of(file)
        except OSError as error:
            raise SpoolError(
                f"content {row.name} cannot be read: {error.strerror or error}"
            ) from error
        start = octets.size - sum(part.size for part in content.body)
        return dataclasses.replace(content, body=(octets.part(start, octets.size),))

    def committed(self, files: StoredContents) -> None:
        """Note that rows name these files now."""
        self._in_use.difference_update(file.name for bodies in files for file in bodies.values())

    def remove(self, names: Iterable[str]) -> int:
        """Remove files that no row names; return how many were there."""
        removed = 0
        for name in names:
            with contextlib.suppress(OSError):
                (self._directory / name).unlink()
                removed += 1
            self._in_use.discard(name)
        return removed

    def is_in_use(self, name: str) -> bool:
        """Whether this process may be writing the file, or its row."""
        return name.startswith(self._arriving) or name.removesuffix(_PART) in self._in_use

    def listed(self) -> Iterator[tuple[str, ...]]:
        """Yield the names of all files, in batches."""
        with translate_os_errors(self._directory), os.scandir(self._directory) as entries:
            names = (entry.name for entry in entries)
            while chunk := tuple(islice(names, _LISTED_AT_ONCE)):
                yield chunk

    def _store(self, name: str, content: Content) -> int:
        """Store a content in a file; return the file's checksum."""
        if isinstance(content, bytes):
            return self._write_one(name, (content,))
        if not self._link(name, content.body):
            return self._write_one(name, octets_in_blocks(content.body))
        (whole,) = content.body
        if isinstance(whole, IncomingOctets):
            return whole.crc32
        return checksum_of(octets_in_blocks(content.body))  # the body of another message, rare

    def _link(self, name: str, body: Sequence[Octets]) -> bool:
        """Link a body that is a whole file of this directory; False where it is not."""
        whole = body[0] if len(body) == 1 else None
        if not isinstance(whole, FileOctets):
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
        fsync_path(path)
        return True

    def _write_one(self, name: str, blocks: Iterable[bytes]) -> int:
        checksum = 0
        path = self._directory / name
        part = path.with_name(name + _PART)
        with opened(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
            try:
                for block in blocks:
                    write_all(descriptor, block)
                    checksum = crc32(block, checksum)
                os.fsync(descriptor)
            except OSError:
                part.unlink(missing_ok=True)
                raise
        part.rename(path)
        return checksum


def checksum_of(blocks: Iterable[bytes], header: bytes | None = None) -> int:
    """Return the CRC-32 of octets, continued with a header. Raises UnreadableError."""
    checksum = 0
    for block in blocks:
        checksum = crc32(block, checksum)
    return crc32(header or b"", checksum)


def _names(message_id: str, contents: Sequence[Content], only: Collection[int]) -> dict[int, str]:
    """Return the names of the files, one for each body, by the index of the content."""
    numbers: dict[tuple[Octets, ...], int] = {}
    names: dict[int, str] = {}
    for index in sorted(only):
        content, number = contents[index], index
        if isinstance(content, LargeContent):
            number = numbers.setdefault(content.body, index)
        names[index] = f"{message_id}-{number}"
    return names
