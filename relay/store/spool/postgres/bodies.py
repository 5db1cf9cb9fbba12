"""The bodies of messages over 1 MiB, as rows of 256 KiB, on a separate connection.

A body that arrives is written to the database in parts. Each part is committed without waiting for
the disk: the commit that accepts the message makes the parts durable too. A body that no content
names is swept. On this machine a body is a file without a name, so that a crash leaves no file.
"""

import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

from relay.base.files import Descriptor, OpenOctets, write_all
from relay.base.message.content import Content, LargeContent, Octets, octets_in_blocks
from relay.store.spool.postgres.server import DatabaseHosts
from relay.store.spool.postgres.tables import ConnectionTables, ReadConnection
from relay.store.spool.shared.accepted import used_contents
from relay.store.spool.shared.columns import inline_content, verify_checksum
from relay.store.spool.shared.tables import StoredBodies, StoredBody, StoredContents, Tables
from relay.store.spool.types import (
    NewMessage,
    SpoolError,
    SpoolUnavailableError,
    translate_os_errors,
)

T = TypeVar("T")
PART_BYTES = 256 * 1024
_ALIVE = "SELECT incarnation FROM node WHERE state = 'alive'"
_AT_ONCE = 200
# Of this statement alone: a session may be another's next.
_WITHOUT_SYNC = "set_config('synchronous_commit', 'off', true)"
_INSERT = (
    "INSERT INTO body (id, part, data)"
    f" SELECT CAST(? AS text), CAST(? AS integer), CAST(? AS bytea) FROM {_WITHOUT_SYNC}"
)
_CONTENT = (
    "SELECT size, data, header, body, eight_bit, crc32 FROM content"
    " WHERE message_id = ? AND number = ?"
)
_PART = "SELECT data FROM body WHERE id = ? AND part = ?"
_REMOVE = (
    f"DELETE FROM body USING {_WITHOUT_SYNC} WHERE id = ?"
    " AND NOT EXISTS (SELECT FROM content c WHERE c.body = ?)"
)
_STRAYS = (
    "SELECT DISTINCT id FROM body b WHERE id > ? AND part = 0"
    " AND NOT EXISTS (SELECT FROM content c WHERE c.body = b.id AND c.body <> '')"
    " ORDER BY id LIMIT ?"
)


class ReceivedOctets(OpenOctets, frozen=True):
    """The octets of an incoming body, and the body."""

    body: "IncomingParts"


class IncomingParts:
    """A spool.types.IncomingBody: a file without a name here, and rows in the database."""

    def __init__(self, body_id: str, directory: Path, reader: ReadConnection) -> None:
        self.id = body_id
        self.crc32 = 0
        self.is_accepted = False
        self._directory = directory
        self._reader = reader
        self._file: Descriptor | None = None
        self._left = b""  # not yet a whole part
        self._parts = 0
        self._begun_on: ConnectionTables | None = None
        self._discarded = False
        self._lock = threading.Lock()

    async def write(self, blocks: Sequence[bytes]) -> None:
        """See IncomingBody."""
        await self._reader.read(lambda tables: self._write(tables, b"".join(blocks)))

    async def lend(self) -> int:
        """See IncomingBody."""
        with translate_os_errors(self._directory):
            return self._opened().number

    async def take_back(self, size_bytes: int, crc32: int) -> None:
        """See LendableBody. Copy the body to the database, and to a file that only this process
        has.
        """
        lent = self.octets()
        if lent.size != size_bytes:
            raise SpoolUnavailableError(
                f"found a body of {lent.size} octets, expected {size_bytes}"
            )
        self._file = None

        def add(tables: ConnectionTables) -> None:
            with translate_os_errors(self._directory):
                for block in octets_in_blocks((lent,)):
                    self._write(tables, block)

        await self._reader.read(add)
        if self.crc32 != crc32:
            raise SpoolUnavailableError("found a body with another checksum than expected")

    def octets(self) -> ReceivedOctets:
        """See IncomingBody."""
        file = self._opened()
        return ReceivedOctets(file, 0, os.fstat(file.number).st_size, self)

    async def finish(self) -> StoredBody:
        """Write the last part."""
        await self._reader.read(lambda tables: self._send(tables, at_least=1))
        self.is_accepted = True
        return StoredBody(self.id, self.crc32, self._parts)

    def discard(self) -> None:
        """See IncomingBody."""
        self._discarded = True
        self._file = None
        if not self.is_accepted:
            self._reader.later(lambda tables: remove_bodies(tables, (self.id,)))

    def _opened(self) -> Descriptor:
        if self._file is None:
            self._file = _new_file(self._directory)
        return self._file

    def _write(self, tables: ConnectionTables, octets: bytes) -> None:
        if self._discarded:
            return
        self._check_connection(tables)
        with self._lock, translate_os_errors(self._directory):
            write_all(self._opened().number, octets)
        self.crc32 = crc32(octets, self.crc32)
        self._left += octets
        self._send(tables, at_least=PART_BYTES)

    def _send(self, tables: ConnectionTables, *, at_least: int) -> None:
        self._check_connection(tables)
        while len(self._left) >= at_least:
            part, self._left = self._left[:PART_BYTES], self._left[PART_BYTES:]
            tables.execute(_INSERT, (self.id, self._parts, part))
            self._parts += 1

    def _check_connection(self, tables: ConnectionTables) -> None:
        """Raise SpoolUnavailableError if the connection has changed since the first part: the last
        part may be missing, and a server that crashed may have lost others.
        """
        self._begun_on = self._begun_on or tables
        if tables is not self._begun_on:
            raise SpoolUnavailableError(
                "the connection to the database was lost while the message came in"
            )


class BodyStore:
    """Stores and reads bodies. Its connection commits without waiting for the disk. Short queries
    of delivery use it too.
    """

    def __init__(
        self, hosts: DatabaseHosts, directory: Path, *, incarnation: Callable[[], int]
    ) -> None:
        self.reader = ReadConnection(hosts, purpose="bodies")
        self._directory = directory
        self._numbers = count(1)
        self._in_use: set[str] = set()
        self._incarnation = incarnation  # of this owner now

    def incoming(self) -> IncomingParts:
        """Return an object to which an incoming body is written."""
        return IncomingParts(self._new_id(), self._directory, self.reader)

    async def store(self, message: NewMessage) -> StoredBodies:
        """Store the bodies of a message; contents that differ only in their header share one.

        Raises SpoolError, OSError.
        """
        used = used_contents(message)
        stored: dict[tuple[Octets, ...], StoredBody] = {}
        bodies: dict[int, StoredBody] = {}
        for index, content in enumerate(message.contents):
            if index in used and isinstance(content, LargeContent):
                if content.body not in stored:
                    stored[content.body] = await self._stored(content)
                bodies[index] = stored[content.body]
        return bodies

    def accepted(self, bodies: StoredContents) -> None:
        """Note that contents name these bodies now."""
        for stored in bodies:
            self._in_use.difference_update(body.name for body in stored.values())

    async def discard(self, bodies: StoredContents) -> None:
        """Remove bodies that no content names."""
        ids = [body.name for stored in bodies for body in stored.values()]
        if ids:
            with suppress(SpoolError):  # they are swept
                await self.reader.read(lambda tables: remove_bodies(tables, ids))
            self._in_use.difference_update(ids)

    async def read(self, message_id: str, number: int) -> Content:
        """Return a content, a large one with its body in a file. Raises SpoolError."""
        return await self.reader.read(lambda tables: self._read(tables, message_id, number))

    def content_of(self, tables: Tables, name: str, row: Sequence[Any]) -> Content:
        """Return the content in a row: size, data, header, body, eight_bit and crc32. Raises
        SpoolError.
        """
        size, data, header, body, flags, checksum = row
        if not body:
            return inline_content(name, data, size=size, crc32=checksum)
        with translate_os_errors(self._directory):
            file = _new_file(self._directory)
        checksum_now = written = 0
        for number in count(0):
            part = tables.fetch_one(_PART, (body, number))
            if part is None:
                break
            with translate_os_errors(self._directory):
                write_all(file.number, part[0])
            written += len(part[0])
            checksum_now = crc32(part[0], checksum_now)
        if written + len(header) != size:
            raise SpoolError(f"content {name} has {written + len(header)} bytes, expected {size}")
        verify_checksum(name, crc32(header, checksum_now), expected=checksum)
        return LargeContent.stored(header, OpenOctets(file, 0, written), flags)

    def _read(self, tables: ConnectionTables, message_id: str, number: int) -> Content:
        row = tables.fetch_one(_CONTENT, (message_id, number))
        if row is None:
            raise SpoolError(f"content {message_id}/{number} is not in the spool")
        return self.content_of(tables, f"{message_id}/{number}", tuple(row))

    def remove_later(self, ids: Sequence[str]) -> None:
        """Remove those of these bodies that no content names any more, in the background."""
        if ids:
            self.reader.later(lambda tables: remove_bodies(tables, ids))

    async def sweep(self) -> int:
        """Remove bodies without a content; return their number."""
        return await self.reader.read(self._sweep)

    async def close(self) -> None:
        """Close the connection."""
        await self.reader.close()

    def _sweep(self, tables: ConnectionTables) -> int:
        swept, after = 0, ""
        while rows := tables.fetch(_STRAYS, (after, _AT_ONCE)):
            after = rows[-1][0]
            # Read after the bodies: the node of a body that is in use had joined before.
            alive = tuple(_prefix(number) for (number,) in tables.fetch(_ALIVE))
            stale = [
                name for (name,) in rows if name not in self._in_use and not name.startswith(alive)
            ]
            remove_bodies(tables, stale)
            swept += len(stale)
        return swept

    def _new_id(self) -> str:
        body_id = f"{_prefix(self._incarnation())}{next(self._numbers):x}"
        self._in_use.add(body_id)
        return body_id

    async def _stored(self, content: LargeContent) -> StoredBody:
        whole = content.body[0] if len(content.body) == 1 else None
        if isinstance(whole, ReceivedOctets) and not whole.body.is_accepted and not whole.start:
            return await whole.body.finish()
        body_id = self._new_id()
        return await self.reader.read(lambda tables: _upload(tables, body_id, content))


def _prefix(incarnation: int) -> str:
    return f"{incarnation:x}-"


def remove_bodies(tables: ConnectionTables, ids: Iterable[str]) -> None:
    """Remove the parts of bodies that no content names."""
    tables.execute_each(_REMOVE, [(body_id, body_id) for body_id in ids])


def _upload(tables: ConnectionTables, body_id: str, content: LargeContent) -> StoredBody:
    checksum, parts, left = 0, 0, b""
    for block in octets_in_blocks(content.body):
        checksum = crc32(block, checksum)
        left += block
        while len(left) >= PART_BYTES:
            tables.execute(_INSERT, (body_id, parts, left[:PART_BYTES]))
            left, parts = left[PART_BYTES:], parts + 1
    if left:
        tables.execute(_INSERT, (body_id, parts, left))
        parts += 1
    return StoredBody(body_id, checksum, parts)


def _new_file(directory: Path) -> Descriptor:
    """Return a new file without a name."""
    number, name = tempfile.mkstemp(dir=directory)
    Path(name).unlink()
    return Descriptor(number)
