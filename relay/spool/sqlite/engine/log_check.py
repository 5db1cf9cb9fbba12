"""Whether the write-ahead log holds commits that SQLite does not see: then it was damaged.

On the path: an owner opens the spool, before anything is written; salvage.
Holds: what a loss of power or a failed sync leaves is no damage. SQLite ends the log at the first
    frame whose sum is wrong, without a word, and writes over what is behind.
Fails: SpoolDamagedError; OSError.
Standards: the SQLite file format, 4 (the write-ahead log).
"""

import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import apsw

from relay.spool.sqlite.disk.presence import may_be_opened
from relay.spool.types import SpoolDamagedError

_HEADER = struct.Struct(">IIII8s8s")  # magic, version, page size, checkpoints, salts, sums
_FRAME = struct.Struct(">II8s8s")  # page, pages of the database after a commit, salts, sums
_SUMMED = 8  # octets of a frame's header; then its page
_ORDERS = {0x377F0682: "<", 0x377F0683: ">"}  # of the octets in what is summed, by the magic
_MAGIC = 0x377F0682 if sys.byteorder == "little" else 0x377F0683
_VERSION = 3007000
_MASK = 0xFFFFFFFF
_PAGE_BYTES = 4096
_PAGE_SIZES = tuple(1 << bits for bits in range(9, 17))


@dataclass(frozen=True, slots=True)
class Foreseen:
    """The first page as the log has it, b"" where it has none, and what is wrong with the log."""

    first_page: bytes
    fault: str


@dataclass(frozen=True, slots=True)
class _Head:
    salts: bytes
    sums: bytes
    order: str
    is_good: bool


@dataclass(frozen=True, slots=True)
class _Frame:
    ends_commit: bool
    salts: bytes
    sums: bytes
    octets: bytes  # what is summed

    @property
    def page(self) -> int:
        """The number of the page that it is of."""
        return int.from_bytes(self.octets[:4], "big")

    def follows(self, sums: bytes, order: str) -> bool:
        """Whether it was written behind what has these sums."""
        return _sums(self.octets, sums, order) == self.sums


def log_of(database: Path) -> Path:
    """The write-ahead log of a spool."""
    return database.with_name(database.name + "-wal")


def check_log(connection: apsw.Connection, database: Path) -> None:
    """Raise SpoolDamagedError where a commit that was synced stands behind the end of the log.

    For its owner only: while somebody writes, the end is where it was a moment ago.
    """
    path = log_of(database)
    if not path.exists() or not path.stat().st_size:
        return
    connection.pragma("user_version")  # the log is looked at only with the first page
    seen = max(0, connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)[0])
    if last := _last_certain(path, seen, size=int(connection.pragma("page_size"))):
        raise SpoolDamagedError(_fault(path, seen=seen, last=last))


def foresee(database: Path) -> Foreseen:
    """What an owner who opens `database` would find in its log; neither is opened as SQLite does,
    which would leave files beside them. Raises OSError.
    """
    path = log_of(database)
    if not path.exists() or not path.stat().st_size:
        return Foreseen(b"", "")
    size = _page_size(database, path)
    seen, pending, first = 0, b"", b""
    with path.open("rb") as file:
        head = _head(file)
        sums = head.sums
        for number, frame in _frames(file, 0, size=size) if head.is_good else ():
            if frame.salts != head.salts or not frame.follows(sums, head.order):
                break
            sums = frame.sums
            if frame.page == 1:
                pending = frame.octets[_SUMMED:]
            if frame.ends_commit:
                seen, first = number, pending
    last = _last_certain(path, seen, size=size)
    return Foreseen(first, _fault(path, seen=seen, last=last) if last else "")


def log_fault(database: Path) -> str:
    """What is wrong with the log of a spool that nobody has open, or "", whatever else is."""
    if not may_be_opened(database):
        return ""
    with suppress(apsw.Error):
        connection = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            check_log(connection, database)
        except SpoolDamagedError as error:
            return str(error)
        finally:
            connection.close()
    return ""


def write_whole(damaged: Path, target: Path, *, size: int) -> None:
    """Write a log of the frames of another that are good, as if there had been no others."""
    last = _last_certain(damaged, 0, size=size)
    with damaged.open("rb") as source, target.open("wb") as log:
        head = _head(source)
        frames = list(_good(source, head, last=last, size=size))
        while frames and not frames[-1].ends_commit:
            frames.pop()
        salts = head.salts or (frames[0].salts if frames else bytes(8))
        header = _HEADER.pack(_MAGIC, _VERSION, size, 0, salts, bytes(8))[:24]
        order = _ORDERS[_MAGIC]
        sums = _sums(header, bytes(8), order)
        log.write(header + sums)
        for frame in frames:
            sums = _sums(frame.octets, sums, order)
            log.write(frame.octets[:_SUMMED] + salts + sums + frame.octets[_SUMMED:])


def _fault(path: Path, *, seen: int, last: int) -> str:
    return f"{path} is damaged: SQLite reads {seen} of its {last} pages, without those behind them"


def _page_size(database: Path, log: Path) -> int:
    """As the log says, else the database, else as every spool has it."""
    with log.open("rb") as file:
        size = _HEADER.unpack(file.read(_HEADER.size).ljust(_HEADER.size, b"\0"))[2]
    if size not in _PAGE_SIZES and database.exists():
        with database.open("rb") as file:
            size = int.from_bytes(file.read(18)[16:], "big")
    return size if size in _PAGE_SIZES else _PAGE_BYTES


def _last_certain(path: Path, seen: int, *, size: int) -> int:
    """The number of the last frame behind the first `seen` that goes on from a commit; 0 for none.

    SQLite syncs a commit before it writes the next one's frames behind it, and writes over one
    that could not be synced. So that commit was on the disk once, and everything before it.
    """
    last, before = 0, None
    with path.open("rb") as file:
        head = _head(file)
        if seen and not head.is_good:
            return 0
        for number, frame in _frames(file, seen, size=size):
            if head.is_good and frame.salts != head.salts:
                before = None  # of an earlier round, whose pages are in the database
                continue
            if before is not None and before.ends_commit and before.salts == frame.salts:
                last = number if frame.follows(before.sums, head.order) else last
            before = frame
    return last


def _good(source: BinaryIO, head: _Head, *, last: int, size: int) -> Iterator[_Frame]:
    """Frames that follow those before them, in the file, and nothing behind the last run."""
    salts, sums = head.salts, head.sums
    for number, frame in _frames(source, 0, size=size):
        is_first = not head.is_good and number == 1  # nothing is known of it
        salts = salts or frame.salts
        if frame.salts == salts and (is_first or frame.follows(sums, head.order)):
            yield frame
        elif number > last:
            return
        sums = frame.sums


def _head(file: BinaryIO) -> _Head:
    """A log that has none yet, or zeros, has no frames that count."""
    octets = file.read(_HEADER.size).ljust(_HEADER.size, b"\0")
    magic, _, _, _, salts, sums = _HEADER.unpack(octets)
    order = _ORDERS.get(magic, _ORDERS[_MAGIC])
    is_good = not any(octets) or (magic in _ORDERS and _sums(octets[:24], bytes(8), order) == sums)
    return _Head(salts if is_good else b"", sums, order, is_good)


def _frames(file: BinaryIO, seen: int, *, size: int) -> Iterator[tuple[int, _Frame]]:
    length = _FRAME.size + size
    file.seek(_HEADER.size + seen * length)
    number = seen
    while len(octets := file.read(length)) == length:
        number += 1
        _, pages_after, salts, sums = _FRAME.unpack_from(octets)
        summed = octets[:_SUMMED] + octets[_FRAME.size :]
        yield number, _Frame(pages_after > 0, salts, sums, summed)


def _sums(octets: bytes, before: bytes, order: str) -> bytes:
    """Go on from the sums before."""
    first, second = struct.unpack(">II", before)
    words = struct.unpack(f"{order}{len(octets) // 4}I", octets)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & _MASK
        second = (second + odd + first) & _MASK
    return struct.pack(">II", first, second)
