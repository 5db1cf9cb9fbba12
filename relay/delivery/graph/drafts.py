"""Delete drafts in a mailbox of Microsoft Graph outside of an attempt.

A draft is deleted if Graph gave its id to Relay, or if Relay made its Message-ID. A draft that
cannot be deleted within DELETE_S stays in Drafts, and nothing else changes: no message needs it.
The journey names what may be left before, and what was deleted then.
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
# deletes what has a name in a mailbox; False: there was nothing
_Use = Callable[[GraphConnection, str, str], Awaitable[bool]]


@dataclass(eq=False)
class DraftCleaner:
    """Logs in as the routes in force do."""

    table: RouteTable
    resolve: Resolve
    connect: Connect
    note_deleted: NoteDrafts  # records those that are gone

    def __post_init__(self) -> None:
        self.looks = TaskSet()
        self._turn = asyncio.Lock()  # Graph takes few requests at once
        self._sessions = asyncio.Semaphore(_SESSIONS_MAX)  # of many orders at once

    async def delete_drafts(self, next_hop: NextHop, drafts: Iterable[Named]) -> set[Named]:
        """Delete drafts by the ids that Graph gave. Return those that are gone."""
        return await self._each(next_hop, drafts, GraphConnection.delete)

    def delete_at_end(self, key: Key, next_hop: NextHop, extra: EntryExtra) -> None:
        """Begin to delete the drafts of an entry that has ended, and to look once for those of
        which the answer was lost.
        """
        self._start(key, next_hop, extra.unsent, use=GraphConnection.delete)
        self.look_for_lost(key, next_hop, extra.all_lost_posts)

    def look_for_lost(self, key: Key, next_hop: NextHop, lost_posts: Sequence[Named]) -> None:
        """Begin to look once for the drafts of EntryExtra.lost_posts of an entry."""
        made_here = [post for post in lost_posts if post[1].startswith(f"<{key[0]}.")]
        self._start(key, next_hop, made_here, use=GraphConnection.delete_found)

    def _start(self, key: Key, next_hop: NextHop, named: Sequence[Named], *, use: _Use) -> None:
        if named and len(self.looks) < _LOOKS_MAX:
            self.looks.start(self._delete(key, next_hop, named, use=use))

    async def _delete(
        self, key: Key, next_hop: NextHop, named: Sequence[Named], *, use: _Use
    ) -> None:
        with ContainedErrors(_log, "internal error in deleting drafts"):
            async with self._turn:
                gone = await self._each(next_hop, named, use)
            await self.note_deleted(key, gone)

    async def _each(self, next_hop: NextHop, named: Iterable[Named], use: _Use) -> set[Named]:
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
                                if await use(session, mailbox, name):
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
