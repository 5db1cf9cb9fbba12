"""Notes that wait for a worker, with fair turns among accounts.

On the path: the daemon's feeder puts notes in, its workers take them out.
Holds: at most `limit` notes; an account with many does not delay another's one.
Fails: never; a full queue makes put() wait.
Standards: round robin.
"""

import asyncio
from collections import deque

from relay.mailbox.types import Note


class Turns:
    """First in, first out for each account; round robin among accounts."""

    def __init__(self, limit: int) -> None:
        self._room = asyncio.Semaphore(limit)
        self._ready = asyncio.Semaphore(0)
        self._by_account: dict[str, deque[Note]] = {}

    async def put(self, note: Note) -> None:
        """Add a note behind those of its account; waits while the queue is full."""
        await self._room.acquire()
        self._by_account.setdefault(note.account, deque()).append(note)
        self._ready.release()

    async def take(self) -> Note:
        """Remove and return the note whose turn it is; waits for one."""
        await self._ready.acquire()
        account = next(iter(self._by_account))
        waiting = self._by_account.pop(account)
        note = waiting.popleft()
        if waiting:
            self._by_account[account] = waiting  # to the end of the line
        self._room.release()
        return note
