"""How long a query of a mailbox may run, and how many of one account run and wait at once.

On the path: the store runs every query through an account's share, with a limit of its own.
Holds: a query ends soon after its time is over or its client has left; no account has all threads.
Fails: QueryTooLongError, TooManyQueriesError.
Standards: none.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from relay.clock import Clock
from relay.mailbox.types import QueryTooLongError, TooManyQueriesError

QUERY_TIME_MAX_S = 10.0
QUERIES_OF_ONE_MAX = 2
QUERIES_WAITING_MAX = 64
_Result = TypeVar("_Result")


class QueryLimit:
    """The time of one query, which its thread begins. Any thread may stop it before."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until_s = math.inf
        self.is_stopped = False

    def begin(self) -> None:
        """Start the time: what comes before, such as waiting for a thread, does not count."""
        self._until_s = self._clock.monotonic() + QUERY_TIME_MAX_S

    def stop(self) -> None:
        """End the query, because its client has gone."""
        self.is_stopped = True

    def is_over(self) -> bool:
        """Return whether the query has to end now."""
        return self.is_stopped or self._clock.monotonic() > self._until_s

    def check(self) -> None:
        """Raise QueryTooLongError if the query has to end now."""
        if self.is_over():
            raise QueryTooLongError(f"The query takes longer than {QUERY_TIME_MAX_S:g} seconds.")


class Shares:
    """Lets each account run a few queries at once; its others wait in order. Of one event loop."""

    def __init__(self) -> None:
        self._of: dict[str, _Share] = {}

    async def run(self, account: str, query: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
        """Await `query()` when it is its turn.

        A caller that is cancelled leaves `query()` running, and its place taken until it ends.
        Raises TooManyQueriesError.
        """
        share = self._of.setdefault(account, _Share(asyncio.Semaphore(QUERIES_OF_ONE_MAX)))
        if share.count >= QUERIES_OF_ONE_MAX + QUERIES_WAITING_MAX:
            raise TooManyQueriesError(
                f"The mailbox has {share.count} queries running or waiting; the maximum is"
                f" {QUERIES_OF_ONE_MAX + QUERIES_WAITING_MAX}."
            )
        share.count += 1
        try:
            await share.places.acquire()
        except BaseException:
            self._leave(account, share)
            raise

        def ended(_: object) -> None:
            share.places.release()
            self._leave(account, share)

        running = asyncio.ensure_future(query())
        running.add_done_callback(ended)
        return await asyncio.shield(running)

    def _leave(self, account: str, share: "_Share") -> None:
        share.count -= 1
        if not share.count:
            del self._of[account]


@dataclass(slots=True)
class _Share:
    """An account's places, and how many queries run or wait."""

    places: asyncio.Semaphore
    count: int = 0
