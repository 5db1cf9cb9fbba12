"""Lists of messages: queries, what changed since a position, and words in messages.

Queries take long: they have threads of their own, and a time limit. The coroutines raise
StoreError's children. See Graph's message: list, delta.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from relay.store.mailbox.changes import ChangePage, DeltaPage, MessageDelta
from relay.store.mailbox.errors import NoSuchItemError
from relay.store.mailbox.index.content_index import CopyLookup
from relay.store.mailbox.message_file import MessageFile, loaded
from relay.store.mailbox.query import DeltaQuery, MessageQuery
from relay.store.mailbox.store_part import StorePart
from relay.store.mailbox.stored_message import Page, StoredMessage
from relay.store.mailbox.threads import AccountQueues, QueryTimeLimit

_Result = TypeVar("_Result")
_Numbers = Mapping[tuple[str, str], int]


@dataclass(kw_only=True, eq=False, repr=False)
class MessageLists(StorePart):
    """Lists of the messages of all mailboxes. `account` is the canonical address of a mailbox."""

    queries: AccountQueues  # in which the queries of an account wait

    async def query(self, account: str, query: MessageQuery) -> Page:
        """Return a page of the requested messages.

        The page ends before `top` messages when it has `bytes_max` of them, or when the time of a
        query is over. Cancelling the caller stops the query. Raises NoSuchItemError for the folder,
        StalePositionError for `after`, QueryTooLongError, StoreUnavailableError.
        """
        return await self._in_time(account, partial(self._find, account, query))

    async def look_up(
        self, account: str, message_ids: Sequence[str], words: Sequence[str], *, read_s: float
    ) -> CopyLookup:
        """Look up messages by their ids, and which of the words their texts have.

        Words match as in `$search`: a word may be the beginning of a word of the text, or be
        several words in their order. Texts that the index has not read yet are read for at most
        `read_s`. Messages that are not in the mailbox are left out. Raises StoreUnavailableError.
        """

        def look_up(limit: QueryTimeLimit) -> CopyLookup:
            mailbox = self.folders.directory(account)
            if not mailbox.is_dir():
                return CopyLookup({})
            return self.index.look_up(mailbox, message_ids, words, read_s=read_s, limit=limit)

        return await self._in_time(account, look_up)

    async def number(self, account: str, message_ids: Sequence[str]) -> _Numbers:
        """Return the article numbers of messages, by folder and id.

        If a message has none yet, all messages of its folder get one.
        """
        return await self.queries.run(account, self._number, account, message_ids)

    def _number(self, account: str, message_ids: Sequence[str]) -> _Numbers:
        mailbox = self.folders.mailbox(account)
        files = self.index.find_all(mailbox, message_ids)
        if folder_ids := {file.folder.id for file in files if not file.article}:
            self.index.number(mailbox, tuple(folder_ids))
            files = self.index.find_all(mailbox, message_ids)
        return {(file.folder.id, file.message_id): file.article for file in files}

    async def delta(self, account: str, query: DeltaQuery) -> DeltaPage:
        """Return what became of a folder's messages since a position, each message once.

        Only the changes and the changed messages are read, whatever the size of the mailbox. A page
        may end early, as in query(). Raises what query() raises.
        """
        return await self._in_time(account, partial(self._delta, account, query))

    async def changes(self, account: str, *, after: str = "", limit: int = 1000) -> ChangePage:
        """Return the changes of a mailbox's messages after the position `after`, by any program.

        "" returns no changes, only the current position. Raises StalePositionError for a position
        that is no longer known; the caller then lists all messages and starts again.
        """
        return await self.queries.run(account, self._changes, account, after, limit)

    async def changed_versions(
        self, account: str, *, after: str, limit: int
    ) -> tuple[ChangePage, dict[str, str]]:
        """Return what changes() returns, and the change keys of the changed messages that exist."""
        return await self.queries.run(account, self._changed_versions, account, after, limit)

    async def _in_time(self, account: str, find: Callable[[QueryTimeLimit], _Result]) -> _Result:
        limit = QueryTimeLimit(self.clock)
        try:
            return await self.queries.run(account, find, limit)
        finally:
            limit.stop()

    def _changes(self, account: str, after: str, limit: int) -> ChangePage:
        return self.index.changes(self.folders.mailbox(account), after, limit)

    def _changed_versions(
        self, account: str, after: str, limit: int
    ) -> tuple[ChangePage, dict[str, str]]:
        page = self._changes(account, after, limit)
        ids = list(dict.fromkeys(change.message_id for change in page.changes))
        files = self.index.find_all(self.folders.mailbox(account), ids) if ids else ()
        return page, {file.message_id: file.change_key for file in files}

    def _find(self, account: str, query: MessageQuery, limit: QueryTimeLimit) -> Page:
        limit.check()
        mailbox = self.folders.mailbox(account)
        result = self.index.query(mailbox, query, limit)
        messages: list[StoredMessage] = []
        positions: list[str] = []
        left_bytes, next_after = query.bytes_max, ""
        for hit in result.hits:
            if messages and (left_bytes <= 0 or limit.is_over()):
                break
            next_after = hit.position
            if (message := self._listed(mailbox, hit.located, query)) is not None:
                messages.append(message)
                positions.append(next_after)
                left_bytes -= message.memory_bytes
        else:
            next_after = next_after if result.more else ""
        return Page(tuple(messages), result.total, next_after, tuple(positions))

    def _delta(self, account: str, query: DeltaQuery, limit: QueryTimeLimit) -> DeltaPage:
        limit.check()
        mailbox = self.folders.mailbox(account)
        delta = self.index.delta(mailbox, query, limit)
        changed: list[MessageDelta] = []
        left_bytes = query.bytes_max
        for change in delta.changed:
            if changed and (left_bytes <= 0 or limit.is_over()):
                return DeltaPage(tuple(changed), change.position, more=True)
            message = None
            if change.located is not None:
                message = self._listed(mailbox, change.located, query)
                if message is None:  # the feed has a later change of it
                    continue
                left_bytes -= message.memory_bytes
            changed.append(
                MessageDelta(
                    change.message_id, change.kind, change.position, message, change.folder_id
                )
            )
        return DeltaPage(tuple(changed), delta.position, delta.more)

    def _listed(
        self, mailbox: Path, located: MessageFile, query: MessageQuery | DeltaQuery
    ) -> StoredMessage | None:
        """Load a message of a listing, None if it was removed in the meantime."""
        with suppress(FileNotFoundError):
            return loaded(located, query.extent)
        with suppress(FileNotFoundError, NoSuchItemError):  # renamed in the meantime
            located = self.index.get(mailbox, located.message_id, folder_id=query.folder_id)
            return loaded(located, query.extent)
        return None
