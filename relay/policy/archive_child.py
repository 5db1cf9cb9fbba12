"""The child process that looks into archives: it can be killed, and its limits are low.

A request is the descriptor of a file with a JSON object: how many `entries` and inflated `octets`
are left, and `cpu_s`. The answer is its length, followed by a JSON object: the `entries`, each with
names and types; whether it is `encrypted` or `unreadable`; `bound`, the one that was exceeded, ""
for none; what is left of `entries_left` and `octets_left`.

Everything that is stored or deflated is inflated and compared with its checksum; sizes in headers
do not count. PKWARE APPNOTE 4.3, 4.4.4 (encryption), 4.6.9 (a name in Unicode); MS-CFB 2.6;
MS-OFFCRYPTO 2.3.4.4 (EncryptedPackage).
"""

import json
import os
import socket
import struct
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from typing import IO, Any, cast
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from relay.base.child_limits import limit_cpu, limit_this_process
from relay.mime.file_types import CLOSED_ARCHIVES, OLE, ZIP, file_types

READY = b"\n"
LENGTH_BYTES = 4
REQUEST_BYTES_MAX = 256
DEPTH_MAX = 3  # archives inside each other
MEMORY_BYTES_MAX = 256 << 20
TAIL_OCTETS = 22 + 65535  # where a ZIP file's end record begins: itself, with a comment
END_RECORD = b"PK\5\6"
_DIRECTORY_OCTETS_MAX = 4 << 20  # of the names and places of all entries of a ZIP file
_NAMES_CHARACTERS_MAX = 1 << 20  # of all entries
_BLOCK_OCTETS = 1 << 16
_LOCAL_FLAGS = struct.Struct("<4s2xH")  # a local header
_ENCRYPTED = 0x2041  # the entry, also with strong encryption; the directory
_AES = 99  # a method of compression
_UNICODE_PATH = 0x7075
_UTF_8 = 0x800
_PACKAGE = "EncryptedPackage\0".encode("utf-16-le")
_DIRECTORY_ENTRY_OCTETS = 128  # of OLE, each at a multiple of it


class OverBoundError(Exception):
    """The archive exceeds a bound."""


class _Source:
    """A file for ZipFile, which reads all of a directory at once, however large."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self._file = file

    def read(self, length: int = -1) -> bytes:
        """Return so many octets, or all that are left."""
        is_bounded = 0 <= length <= _DIRECTORY_OCTETS_MAX
        octets = self._file.read(length if is_bounded else _DIRECTORY_OCTETS_MAX + 1)
        if len(octets) > _DIRECTORY_OCTETS_MAX:
            raise OverBoundError(f"a directory of {_DIRECTORY_OCTETS_MAX} octets")
        return octets


class Examination:
    """What is in a file: `entries` are all that were found so far."""

    def __init__(self, *, entries: int, octets: int) -> None:
        self.entries_left, self.octets_left = entries, octets
        self.entries: list[tuple[list[str], list[str]]] = []  # names, types
        self.is_encrypted = self.is_unreadable = False
        self._characters = 0  # of all names

    def look(self, file: IO[bytes], depth: int = 1) -> tuple[str, ...]:
        """Add what is in a file, and return its types. Raises OverBoundError, MemoryError."""
        file.seek(0)
        types = file_types(_blocks(file))
        if OLE in types:
            self.is_encrypted |= _has_encrypted_package(file)
        self.is_unreadable |= not CLOSED_ARCHIVES.isdisjoint(types)
        if (is_zip := ZIP in types) or _ends_as_zip(file):
            if depth > DEPTH_MAX:
                raise OverBoundError(f"{DEPTH_MAX} archives inside each other")
            self._read_zip(file, depth, is_zip=is_zip)
        return types

    def _read_zip(self, file: IO[bytes], depth: int, *, is_zip: bool) -> None:
        try:
            archive = ZipFile(cast("IO[bytes]", _Source(file)))
        except (OverBoundError, MemoryError):
            raise
        except Exception:  # noqa: BLE001 - zipfile raises many; another file may end like a ZIP
            if is_zip:
                self.is_unreadable = True
                self.is_encrypted |= _begins_encrypted(file)
            return
        listed = [(info, self._listed(info)) for info in archive.infolist()]
        for info, types in listed:
            if info.flag_bits & _ENCRYPTED or info.compress_type == _AES:
                self.is_encrypted = True
            elif info.compress_type in (ZIP_STORED, ZIP_DEFLATED):
                types.extend(self.look(self._inflated(archive, info), depth + 1))
            else:
                self.is_unreadable = True

    def _listed(self, info: ZipInfo) -> list[str]:
        """Add an entry, and return the list of its types."""
        self.entries_left -= 1
        if self.entries_left < 0:
            raise OverBoundError("the number of entries")
        names, types = list(dict.fromkeys(_names(info))), list[str]()
        self._characters += sum(map(len, names))
        if self._characters > _NAMES_CHARACTERS_MAX:
            raise OverBoundError(f"names of {_NAMES_CHARACTERS_MAX} characters")
        if not info.is_dir() or info.file_size:
            self.entries.append((names, types))
        return types

    def _count(self, block: bytes) -> None:
        self.octets_left -= len(block)
        if self.octets_left < 0:
            raise OverBoundError("the number of octets that are inflated")

    def _inflated(self, archive: ZipFile, info: ZipInfo) -> IO[bytes]:
        """Return the content of an entry, as far as it can be read."""
        content = BytesIO()
        try:
            with archive.open(info) as source:
                while block := source.read(_BLOCK_OCTETS):
                    self._count(block)
                    content.write(block)
        except (OverBoundError, MemoryError):
            raise
        except Exception:  # noqa: BLE001 - as above
            self.is_unreadable = True
        return content


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    return iter(partial(file.read, _BLOCK_OCTETS), b"")


def _ends_as_zip(file: IO[bytes]) -> bool:
    file.seek(max(0, file.seek(0, 2) - TAIL_OCTETS))
    return END_RECORD in file.read()


def _begins_encrypted(file: IO[bytes]) -> bool:
    """Return whether the first entry says that it, or the directory, is encrypted."""
    file.seek(0)
    head = file.read(_LOCAL_FLAGS.size)
    if len(head) < _LOCAL_FLAGS.size:
        return False
    magic, flags = _LOCAL_FLAGS.unpack(head)
    return magic == b"PK\3\4" and bool(flags & _ENCRYPTED)


def _has_encrypted_package(file: IO[bytes]) -> bool:
    """Return whether a directory entry of an OLE file is called so."""
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
    """Yield the names that programs show: up to a NUL or beyond it, in other charsets, from the
    extra field.
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


def examine(file: IO[bytes], *, entries: int, octets: int) -> dict[str, Any]:
    """Return the answer about a file."""
    found, bound = Examination(entries=entries, octets=octets), ""
    try:
        found.look(file)
    except OverBoundError as error:
        bound = str(error)
    except MemoryError:
        bound = "the memory"
    return {
        "entries": found.entries,
        "encrypted": found.is_encrypted,
        "unreadable": found.is_unreadable or bool(bound),
        "bound": bound,
        "entries_left": max(0, found.entries_left),
        "octets_left": max(0, found.octets_left),
    }


def main() -> None:
    """Answer requests until the input ends."""
    limit_this_process(MEMORY_BYTES_MAX)
    channel = socket.socket(fileno=0)
    channel.sendall(READY)
    while True:
        request, descriptors, *_ = socket.recv_fds(channel, REQUEST_BYTES_MAX, 1)
        if not request:
            return
        bounds = json.loads(request)
        limit_cpu(bounds.pop("cpu_s"))
        with os.fdopen(descriptors[0], "rb") as file:
            answer = json.dumps(examine(file, **bounds)).encode()
        channel.sendall(len(answer).to_bytes(LENGTH_BYTES) + answer)


if __name__ == "__main__":
    main()
