"""The child process that reads archives: it can be killed, and its limits are low.

A request comes with the descriptor of a file.

Entries are inflated and compared with their checksums. Programs differ in which entries of a
damaged or doubled ZIP file they find. So a file is unreadable if it has something that its
directory does not list or describes differently.

PKWARE APPNOTE 4.3, 4.4.4 (encryption), 4.6.9 (a name in Unicode); MS-CFB 2.6; MS-OFFCRYPTO 2.3.4.4
(EncryptedPackage).
"""

import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from typing import IO, cast
from zipfile import ZIP_BZIP2, ZIP_DEFLATED, ZIP_LZMA, ZIP_STORED, ZipFile, ZipInfo

from msgspec import Struct

from relay.base.child_process import ChildRequest, ChildTask
from relay.formats.file_types import CLOSED_ARCHIVES, OLE, ZIP, file_types

# limit of rules: archives inside each other
DEPTH_MAX = 3
MEMORY_BYTES_MAX = 256 << 20
END_RECORD = b"PK\5\6"
_DIRECTORY_OCTETS_MAX = 4 << 20  # of the names and places of all entries of a ZIP file
_NAMES_CHARACTERS_MAX = 1 << 20  # of all entries
_BLOCK_OCTETS = 1 << 16
_SMALL_BLOCK_OCTETS = 1 << 12  # zipfile inflates all of a block that is not deflated at once
_METHODS = {
    **dict.fromkeys((ZIP_STORED, ZIP_DEFLATED), _BLOCK_OCTETS),
    **dict.fromkeys((ZIP_BZIP2, ZIP_LZMA), _SMALL_BLOCK_OCTETS),
}
_DIRECTORY_RECORD, _LOCAL_RECORD = b"PK\1\2", b"PK\3\4"
# A local header: flags, method, size in the file, lengths of the name and the extra field.
_LOCAL = struct.Struct("<4s2xHH8xI4xHH")
_SIZE_BEHIND = 8  # a flag: the local header has no sizes
_ZIP64 = 0xFFFFFFFF  # in place of a size
# A local header with a method that exists, or an end record: rare enough among octets by chance.
_RECORD = re.compile(rb"PK(?:\x03\x04.{4}[\0-\x63]\0|\x05\x06(?:\0\0|\xff\xff).{4})", re.DOTALL)
_RECORD_OCTETS = 10
_ENCRYPTED = 0x2041  # the entry, also with strong encryption; the directory
_AES = 99  # a method of compression
_UNICODE_PATH = 0x7075
_UTF_8 = 0x800
_PACKAGE = "EncryptedPackage\0".encode("utf-16-le")
_DIRECTORY_ENTRY_OCTETS = 128  # of OLE; the position of each is a multiple


class ArchiveRequest(ChildRequest, frozen=True):
    """What is left of the bounds: entries, and inflated octets."""

    entries: int
    octets: int


class ArchiveAnswer(Struct, frozen=True):
    """What is in a file."""

    entries: list[tuple[list[str], list[str]]] = []  # names, types
    is_zip: bool = False
    is_encrypted: bool = False
    is_unreadable: bool = True
    bound: str = ""  # the bound that it exceeds, or ""
    entries_left: int = 0
    octets_left: int = 0


class OverBoundError(Exception):
    """The archive exceeds a bound."""


class _Source:
    """A file for ZipFile, with a bound for the directory.

    ZipFile reads a whole directory at once, of any size, and needs 5 µs for each record in it.
    """

    def __init__(self, file: IO[bytes], count: Callable[[int], None]) -> None:
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self._file = file
        self.count: Callable[[int], None] | None = count  # gets the number of records

    def read(self, length: int = -1) -> bytes:
        """Return `length` octets, or all that are left. Raises what `count` raises."""
        is_bounded = 0 <= length <= _DIRECTORY_OCTETS_MAX
        octets = self._file.read(length if is_bounded else _DIRECTORY_OCTETS_MAX + 1)
        if len(octets) > _DIRECTORY_OCTETS_MAX:
            raise OverBoundError(f"a directory of {_DIRECTORY_OCTETS_MAX} octets")
        if self.count and octets.startswith(_DIRECTORY_RECORD):
            self.count(octets.count(_DIRECTORY_RECORD))
        return octets


class Examination:
    """What is in a file; `entries` has what was found so far."""

    def __init__(self, *, entries: int, octets: int) -> None:
        self.entries_left, self.octets_left = entries, octets
        self.entries: list[tuple[list[str], list[str]]] = []  # names, types
        self.is_zip = self.is_encrypted = self.is_unreadable = False
        self._characters = 0  # of all names

    def look(self, file: IO[bytes], depth: int = 1) -> tuple[str, ...]:
        """Add what is in a file, and return its types. Raises OverBoundError, MemoryError."""
        file.seek(0)
        types = file_types(_blocks(file))
        if OLE in types:
            self.is_encrypted |= _has_encrypted_package(file)
        self.is_unreadable |= not CLOSED_ARCHIVES.isdisjoint(types)
        if ZIP in types or _has_zip(file):
            self.is_zip |= depth == 1 and CLOSED_ARCHIVES.isdisjoint(types)
            if depth > DEPTH_MAX:
                raise OverBoundError(f"{DEPTH_MAX} archives inside each other")
            is_whole = self._read_zip(file, depth)
            # older Office documents may have newer ones in them, also in pieces
            self.is_unreadable |= not is_whole and OLE not in types
        return types

    def _read_zip(self, file: IO[bytes], depth: int) -> bool:
        """Add what is in a ZIP file. Return whether its directory is readable and complete."""
        source = _Source(file, self._count_entries)
        try:
            archive = ZipFile(cast("IO[bytes]", source))
        except (OverBoundError, MemoryError):
            raise
        except Exception:  # noqa: BLE001 - zipfile raises many
            return False
        source.count = None
        listed = [(info, self._listed(info)) for info in archive.infolist()]
        for info, types in listed:
            if info.flag_bits & _ENCRYPTED or info.compress_type == _AES:
                self.is_encrypted = True
            elif info.compress_type in _METHODS:
                types.extend(self.look(self._inflated(archive, info), depth + 1))
            else:
                self.is_unreadable = True
        return _lists_all(file, archive)

    def _count_entries(self, entries: int) -> None:
        self.entries_left -= entries
        if self.entries_left < 0:
            raise OverBoundError("the number of entries")

    def _listed(self, info: ZipInfo) -> list[str]:
        """Add an entry, and return the list of its types."""
        names, types = list(dict.fromkeys(_names(info))), list[str]()
        self._characters += sum(map(len, names))
        if self._characters > _NAMES_CHARACTERS_MAX:
            raise OverBoundError(f"names of {_NAMES_CHARACTERS_MAX} characters")
        # is_dir() of Python 3.11 fails for a name that is empty
        if not info.filename.endswith("/") or info.file_size:
            self.entries.append((names, types))
        return types

    def _count(self, octets: int) -> None:
        self.octets_left -= octets
        if self.octets_left < 0:
            raise OverBoundError("the number of octets that are inflated")

    def _inflated(self, archive: ZipFile, info: ZipInfo) -> IO[bytes]:
        """Return the content of an entry, as far as it can be read."""
        content = BytesIO()
        try:
            with archive.open(info) as source:
                while block := source.read(_METHODS[info.compress_type]):
                    self._count(len(block))
                    content.write(block)
        except (OverBoundError, MemoryError):
            raise
        except Exception:  # noqa: BLE001 - as above
            self.is_unreadable = True
        self._count(max(0, info.compress_size - content.tell()))  # blocks may be empty
        return content


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    return iter(partial(file.read, _BLOCK_OCTETS), b"")


def _has_zip(file: IO[bytes]) -> bool:
    """Return whether there are a ZIP file's records before its end record."""
    is_begun, held = False, b""
    for block in _blocks(file):
        held += block
        end = held.rfind(END_RECORD)
        begin = held.find(_DIRECTORY_RECORD), held.find(_LOCAL_RECORD)
        if end >= 0 and (is_begun or any(0 <= start < end for start in begin)):
            return True
        is_begun |= max(begin) >= 0
        held = held[1 - len(END_RECORD) :]
    return False


def _lists_all(file: IO[bytes], archive: ZipFile) -> bool:
    """Return whether the directory lists all entries that a program may find in the file."""
    at, others = 0, list[tuple[int, int]]()
    for info in sorted(archive.infolist(), key=lambda zip_info: zip_info.header_offset):
        file.seek(max(0, info.header_offset))  # less than 0 makes no sense
        octets = file.read(_LOCAL.size)
        if len(octets) < _LOCAL.size:
            return False
        magic, flags, method, size, *lengths = _LOCAL.unpack(octets)
        is_elsewhere = flags & _SIZE_BEHIND or size == _ZIP64
        if (
            magic != _LOCAL_RECORD
            or method != info.compress_type
            or flags & _ENCRYPTED != info.flag_bits & _ENCRYPTED
            or not (is_elsewhere or size == info.compress_size)
        ):
            return False
        others.append((at, info.header_offset))
        begin = info.header_offset + _LOCAL.size + sum(lengths)
        # without a size in the header, another entry may follow the compressed octets
        is_known = not is_elsewhere or method == ZIP_STORED
        at = max(at, begin + (info.compress_size if is_known else 0))
    others.append((at, archive.start_dir))
    end = file.seek(0, os.SEEK_END)
    return not any(_records(file, *span) for span in others) and (
        _records(file, archive.start_dir, end) <= 1
    )


def _records(file: IO[bytes], start: int, end: int) -> int:
    """Return how many records there are in a part of the file."""
    count, held = 0, b""
    while start < end:
        file.seek(start)
        block = file.read(min(_BLOCK_OCTETS, end - start))
        if not block:
            break
        held += block
        count += len(_RECORD.findall(held))
        start += len(block)
        held = held[1 - _RECORD_OCTETS :]  # too short for a whole record
    return count


def _has_encrypted_package(file: IO[bytes]) -> bool:
    """Return whether an OLE file has a directory entry "EncryptedPackage"."""
    held, place = b"", 0
    for block in _blocks(file):
        held += block
        at = held.find(_PACKAGE)
        while at >= 0:
            if (place + at) % _DIRECTORY_ENTRY_OCTETS == 0:
                return True
            at = held.find(_PACKAGE, at + 1)
        place += max(0, len(held) - len(_PACKAGE))
        held = held[-len(_PACKAGE) :]
    return False


def _names(info: ZipInfo) -> Iterator[str]:
    """Yield the names that programs may show: cut at a NUL or whole, in other charsets, and the
    name in the extra field.
    """
    yield from (info.filename, info.orig_filename)
    if not info.flag_bits & _UTF_8:
        yield info.orig_filename.encode("cp437", "replace").decode("utf-8", "replace")
    extra = info.extra
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == _UNICODE_PATH:  # a version and a checksum stand before it
            yield extra[9 : 4 + length].decode("utf-8", "replace")
        extra = extra[4 + length :]


def examine(file: IO[bytes], bounds: ArchiveRequest) -> ArchiveAnswer:
    """Return the answer about a file."""
    examination, bound = Examination(entries=bounds.entries, octets=bounds.octets), ""
    try:
        examination.look(file)
    except OverBoundError as error:
        bound = str(error)
    except MemoryError:
        bound = "the memory"
    return ArchiveAnswer(
        examination.entries,
        examination.is_zip,
        examination.is_encrypted,
        examination.is_unreadable or bool(bound),
        bound,
        max(0, examination.entries_left),
        max(0, examination.octets_left),
    )


def _answer(request: ArchiveRequest, descriptor: int) -> ArchiveAnswer:
    with os.fdopen(descriptor, "rb") as file:
        return examine(file, request)


def task(_words: Sequence[str] = ()) -> ChildTask:
    """Return what the process does."""
    return ChildTask(ArchiveRequest, _answer, MEMORY_BYTES_MAX)
