"""Delete drafts in a mailbox of Microsoft Graph outside of an attempt.

A draft is deleted if Graph gave its id to Relay, or if Relay made its Message-ID. A draft that
cannot be deleted within DELETE_S stays in Drafts, and nothing else changes: no message needs it. If
its id is known, the journey names it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from relay.base.message.address import own_mailbox
from relay.base.message.nexthop import NextHop
from relay.base.observe.logs import ContainedErrors, get_logger
from relay.base.task_set import TaskSet
from relay.delivery.graph.connection import GraphConnection
from relay.delivery.host_selection import Connect, targets_of
from relay.delivery.http_connection import HttpError
from relay.delivery.smtp.connect import ConnectError
from relay.store.spool.types import EntryExtra, Key
from relay.transport.routing.route_table import RouteTable
from relay.transport.routing.usable_hosts import Resolve

DELETE_S = 10.0
_SESSIONS_MAX = 4
_LOOKS_MAX = 1000  # that wait for their turn; of further ones the drafts stay
_log = get_logger("delivery")
Named = tuple[str, str]  # a mailbox, and an id there
NoteDrafts = Callable[[Key, Collection[Named]], Awaitable[None]]


@dataclass(eq=False)
class DraftCleaner:
    """Logs in as the routes in force do."""

    table: RouteTable
    resolve: Resolve
    connect: Connect
    note_drafts: NoteDrafts  # records those that stay

    def __post_init__(self) -> None:
        self.looks = TaskSet()
        self._turn = asyncio.Lock()  # Graph takes few requests at once
        self._sessions = asyncio.Semaphore(_SESSIONS_MAX)  # of much mail that expires at once

    async def delete_drafts(self, next_hop: NextHop, drafts: Iterable[Named]) -> set[Named]:
        """Delete drafts by the ids that Graph gave. Return those that are gone."""
        return await self._each(next_hop, drafts, GraphConnection.delete)

    def delete_at_end(self, key: Key, next_hop: NextHop, extra: EntryExtra) -> None:
        """Begin to delete the drafts with files of an entry that has ended, and to look once for
        those of which the answer was lost.
        """
        self.look_for_lost(key[0], next_hop, extra.all_lost_posts)
        drafts = [(upload.mailbox, upload.draft) for upload in extra.uploads if upload.draft]
        if drafts and len(self.looks) < _LOOKS_MAX:
            self.looks.start(self._delete_all(key, next_hop, drafts))

    async def _delete_all(self, key: Key, next_hop: NextHop, drafts: Sequence[Named]) -> None:
        with ContainedErrors(_log, "internal error in deleting drafts"):
            async with self._turn:
                gone = await self.delete_drafts(next_hop, drafts)
            await self.note_drafts(key, [draft for draft in drafts if draft not in gone])

    def look_for_lost(self, queue_id: str, next_hop: NextHop, lost_posts: Sequence[Named]) -> None:
        """Begin to look once for the drafts of EntryExtra.lost_posts of a message."""
        made_here = [post for post in lost_posts if post[1].startswith(f"<{queue_id}.")]
        if made_here and len(self.looks) < _LOOKS_MAX:
            self.looks.start(self._delete_lost(next_hop, made_here))

    async def _delete_lost(self, next_hop: NextHop, posts: Sequence[Named]) -> None:
        with ContainedErrors(_log, "internal error in deleting drafts"):
            async with self._turn:
                await self._each(next_hop, posts, GraphConnection.delete_found)

    async def _each(
        self,
        next_hop: NextHop,
        named: Iterable[Named],
        use: Callable[[GraphConnection, str, str], Awaitable[object]],
    ) -> set[Named]:
        """Call `use` for each draft in the mailbox of the route, in one session; return the drafts
        for which it succeeded.
        """
        login, done = self.table.options_for(next_hop).login, set[Named]()
        user = own_mailbox(login.user) if login is not None else ""
        mine = [(mailbox, name) for mailbox, name in named if own_mailbox(mailbox) == user]
        with suppress(TimeoutError):
            async with asyncio.timeout(DELETE_S), self._sessions:  # real time: a peer
                session = await self._session(next_hop) if mine else None
                if session is not None:
                    try:
                        for mailbox, name in mine:
                            with suppress(ConnectError, HttpError):
                                await use(session, mailbox, name)
                                done.add((mailbox, name))
                    finally:
                        session.close()
        return done

    async def _session(self, next_hop: NextHop) -> GraphConnection | None:
        """Return a session with the first host that gives one."""
        for target in await targets_of(next_hop, self.table, self.resolve):
            with suppress(ConnectError):
                session = await self.connect(target)
                if isinstance(session, GraphConnection):
                    return session
                session.close()
        return None
