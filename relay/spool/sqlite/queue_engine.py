"""What SQLite supplies so that operators can list and change its queue (a QueueEngine)."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from relay.message.content import Content
from relay.spool.common.accepted_rows import CapturedMail
from relay.spool.sqlite.claims import read_claims
from relay.spool.sqlite.content_files import ContentFiles, StoredFile
from relay.spool.sqlite.database import Reader, SqliteTables
from relay.spool.sqlite.transactions import add_reports, drop_content
from relay.spool.sqlite.writer import Batch, Writer
from relay.spool.types import Claim, ContentKey, Key, NewMessage

T = TypeVar("T")
_Files = Sequence[Sequence[StoredFile | None]]  # of each message's contents


class SqliteQueueEngine:
    """A QueueEngine. An entry that has ended stays, as history."""

    def __init__(
        self,
        writer: Writer,
        reader: Reader,
        files: ContentFiles,
        *,
        captured: CapturedMail,
        read_content: Callable[[ContentKey], Awaitable[Content]],
        store_contents: Callable[[Sequence[NewMessage]], Awaitable[_Files]],
        discard: Callable[[_Files], Awaitable[None]],
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._files = files
        self._captured = captured
        self._read_content = read_content
        self._store_contents = store_contents
        self._discard = discard

    async def read(self, query: Callable[[SqliteTables], T]) -> T:
        """QueueEngine.read."""
        return await self._reader.read(query)

    async def change(self, operation: Callable[[Batch], T]) -> T:
        """QueueEngine.change."""
        return await self._writer.submit(operation)

    def read_claims(
        self, tables: Any, keys: Collection[Key]
    ) -> tuple[Sequence[Claim], Mapping[Key, str]]:
        """QueueEngine.read_claims."""
        return read_claims(tables.cursor, keys)

    def elsewhere(
        self,
        tables: Any,  # noqa: ARG002 - there is one node
        keys: Collection[Key],  # noqa: ARG002
    ) -> Mapping[Key, str]:
        """QueueEngine.elsewhere."""
        return {}

    async def other_nodes(self) -> Sequence[str]:
        """QueueEngine.other_nodes."""
        return ()

    async def read_content(self, key: ContentKey) -> Content:
        """QueueEngine.read_content."""
        return await self._read_content(key)

    async def store_contents(self, reports: Sequence[NewMessage]) -> _Files:
        """QueueEngine.store_contents."""
        return await self._store_contents(reports)

    def add_reports(
        self,
        transaction: Any,
        reports: Sequence[NewMessage],
        stored: _Files,
        *,
        original: str,  # noqa: ARG002 - there is one mail root
    ) -> None:
        """QueueEngine.add_reports."""
        add_reports(transaction, reports, stored, captured=self._captured)

    def committed(self, stored: _Files) -> None:
        """QueueEngine.committed."""
        self._files.committed(stored)

    async def discard(self, stored: _Files) -> None:
        """QueueEngine.discard."""
        await self._discard(stored)

    def entries_ended(self, transaction: Any, ended: Mapping[Key, ContentKey]) -> Sequence[str]:
        """QueueEngine.entries_ended: return the files of contents that were removed."""
        dropped = [
            drop_content(transaction.cursor, key[0], content) for key, content in ended.items()
        ]
        return [file for file in dropped if file]

    def remove(self, left: Sequence[str]) -> None:
        """QueueEngine.remove."""
        self._reader.later(partial(self._files.remove, left))
