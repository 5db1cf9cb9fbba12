"""How long a process has done nothing about the claims that it has in memory.

A wake-up that is lost leaves a claim where it is until something else happens there, or until it
expires. No wait of the relay explains the time in which nothing at all is done: no lookup, no
connection, no transaction, no call of the spool.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Progress:
    """What goes on in one process."""

    def __init__(self, world: Any) -> None:
        self._world = world
        self._busy = 0
        self._idle_s = 0.0
        self._idle_since_s: float | None = world.time()

    @property
    def idle_s(self) -> float:
        """How long nothing was done, in all."""
        since_s = self._idle_since_s
        return self._idle_s + (0.0 if since_s is None else self._world.time() - since_s)

    @contextmanager
    def made(self) -> Iterator[None]:
        """Something is done in this block."""
        self._idle_s, self._idle_since_s = self.idle_s, None
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            if not self._busy:
                self._idle_since_s = self._world.time()

    def watched_connect(self, connect: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        """Return `connect` where it, and each transaction of its connections, is something done."""

        async def watched(*args: Any, **more: Any) -> Any:
            with self.made():
                connection = await connect(*args, **more)
            transact = connection.transact

            async def watched_transact(*args: Any, **more: Any) -> Any:
                with self.made():
                    return await transact(*args, **more)

            connection.transact = watched_transact
            return connection

        return watched
