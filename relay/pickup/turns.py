"""Notes that wait for a worker, with fair turns among accounts.

On the path: the daemon's feeder puts notes in; its workers take them out, and say what is done.
Holds: at most `limit` notes; an account with many does not delay another's one, and has at most
`share` in progress at once.
Fails: never; a full queue makes put() wait.
Standards: round robin.
"""

import asyncio
from collections import Counter, deque

from relay.mailbox.types import Note


class Turns:
    """First in, first out for each account; round robin among accounts."""

    def __init__(self, limit: int, *, share: int) -> None:
        self._share = share
        self._room = asyncio.Semaphore(limit)
        self._by_account: dict[str, deque[Note]] = {}
        self._in_work: Counter[str] = Counter()
        self._takers: deque[asyncio.Future[None]] = deque()

    @property
    def is_full(self) -> bool:
        """Whether put() would wait."""
        return self._room.locked()

    def share_out(self, share: int) -> None:
        """Let an account have so many notes in progress from now on."""
        self._share = share
        for _ in range(len(self._takers)):
            self._wake()

    async def put(self, note: Note) -> None:
        """Add a note after those of its account; waits while the queue is full."""
        await self._room.acquire()
        self._by_account.setdefault(note.account, deque()).append(note)
        self._wake()

    async def take(self) -> Note:
        """Remove and return the note whose turn it is; waits for one. done() must follow."""
        while (note := self._next()) is None:
            taker = asyncio.get_running_loop().create_future()
            self._takers.append(taker)
            try:
                await taker
            except asyncio.CancelledError:
                if not taker.cancelled():  # it was woken: another has to look
                    self._wake()
                raise
        self._room.release()
        return note

    def done(self, note: Note) -> None:
        """Record that the work on a note that was taken has ended."""
        self._in_work[note.account] -= 1
        if not self._in_work[note.account]:
            del self._in_work[note.account]
        self._wake()

    def _next(self) -> Note | None:
        """Remove the note whose turn it is; accounts with a full share are left out."""
        for account in self._by_account:
            if self._in_work[account] < self._share:
                break
        else:
            return None
        waiting = self._by_account.pop(account)
        note = waiting.popleft()
        if waiting:
            self._by_account[account] = waiting  # to the end of the line
        self._in_work[account] += 1
        return note

    def _wake(self) -> None:
        while self._takers:
            taker = self._takers.popleft()
            if not taker.done():
                taker.set_result(None)
                return
