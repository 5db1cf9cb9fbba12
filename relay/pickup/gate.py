"""What keeps workers back while the relay takes nothing: one of them asks, the others wait.

On the path: a worker passes it before it takes a note; every answer of the relay is told here.
Holds: while it is shut at most one note is on its way; the first good answer opens it for all.
Fails: never.
Standards: none.
"""

import asyncio
from contextlib import suppress

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
NOTES_TO_SHUT = 3  # so many different notes put off in a row are no fault of the notes


class Gate:
    """Open at first."""

    def __init__(self) -> None:
        self._put_off: set[str] = set()  # since the last good answer
        self._is_shut = False
        self._asking: asyncio.Task[None] | None = None
        self._pause_s = FIRST_PAUSE_S
        self._next_s = 0.0
        self._changed = asyncio.Event()

    async def passed(self) -> None:
        """Return when a note may be submitted; leave() must follow."""
        while self._is_shut:
            wait_s = self._next_s - _now_s()
            if self._asking is None and wait_s <= 0:
                self._asking = asyncio.current_task()
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s if self._asking is None else None):
                    await self._changed.wait()

    def leave(self) -> None:
        """Say that this task's note is on its way no more."""
        if self._asking is asyncio.current_task():
            self._asking = None
            self._tell()

    def answered(self) -> None:
        """The relay took a note, or refused it for what it is: it is there for all."""
        self._put_off.clear()
        self._pause_s = FIRST_PAUSE_S
        if self._is_shut:
            self._is_shut = False
            self._tell()

    def put_off(self, submission_id: str, *, is_down: bool) -> None:
        """The relay took no note now; `is_down`: it cannot even be asked."""
        if len(self._put_off) < NOTES_TO_SHUT:
            self._put_off.add(submission_id)
        if self._is_shut:
            if self._asking is asyncio.current_task():
                self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
                self._next_s = _now_s() + self._pause_s
        elif is_down or len(self._put_off) >= NOTES_TO_SHUT:
            self._is_shut = True
            self._next_s = _now_s() + self._pause_s

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _now_s() -> float:
    return asyncio.get_running_loop().time()
