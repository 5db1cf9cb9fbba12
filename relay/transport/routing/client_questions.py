"""Questions that clients choose: at RCPT of a stranger, and about a message.

They have places of their own, which clients take in turn, so that they delay neither each other nor
delivery. Time without a place is this relay's own (NOT_ASKED); from when a question is sent, it is
silence of a name server. Equal questions share a query, and answers are in the cache of delivery.
"""

import asyncio
from collections.abc import Awaitable, Callable

from relay.base.turns import Turns
from relay.transport.routing.dns_cache import DnsCache, DnsQuestion, TimedAnswer, result_of
from relay.transport.routing.mx_hosts import NOT_ASKED, Answer, NoAnswer

_PLACES = 96  # queries in progress
_KEPT = 32  # more of them, for questions that are kept
_SHARE = 4  # a client has at most one in so many places
_WAITING_MAX = 1000
_TURN_S = 5.0
_QUERY_S = 5.0  # no client waits longer for an answer


class ClientQuestions:
    """Asks what clients want to know, as Ask says."""

    def __init__(
        self, cache: DnsCache, ask: Callable[[DnsQuestion], Awaitable[TimedAnswer]]
    ) -> None:
        self._cache, self._ask = cache, ask
        self._places, self._kept = (
            Turns(places, share=places // _SHARE, waiting_max=_WAITING_MAX)
            for places in (_PLACES, _KEPT)
        )
        self._running: dict[DnsQuestion, asyncio.Task[Answer]] = {}

    async def answer(
        self, question: DnsQuestion, *, client: str, wait_s: float, is_kept: bool
    ) -> Answer:
        """Return the answer to one question."""
        found = self._found(question)
        if found is None:
            turns = await self._turn(client, is_kept=is_kept)
            if turns is None:
                return NOT_ASKED
            found = self._found(question)  # another client may have asked
            if found is None:
                found = self._sent(question)
                found.add_done_callback(lambda _: turns.give_back(client))
            else:
                turns.give_back(client)
        if not isinstance(found, asyncio.Task):
            return found
        await asyncio.wait([found], timeout=wait_s)  # real time: a name server
        return result_of(found) if found.done() else _late(wait_s)

    async def close(self) -> None:
        """Cancel the queries in progress."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _found(self, question: DnsQuestion) -> Answer | asyncio.Task[Answer] | None:
        return self._cache.remembered(question) or self._running.get(question)

    async def _turn(self, client: str, *, is_kept: bool) -> Turns | None:
        """Return the places of which the client has one now, None if there was none in time."""
        if await self._places.take(client, wait_s=0 if is_kept else _TURN_S):
            return self._places
        return self._kept if is_kept and await self._kept.take(client, wait_s=_TURN_S) else None

    def _sent(self, question: DnsQuestion) -> asyncio.Task[Answer]:
        task = self._running[question] = asyncio.create_task(self._fetch(question))
        task.add_done_callback(lambda _: self._running.pop(question, None))
        return task

    async def _fetch(self, question: DnsQuestion) -> Answer:
        try:
            async with asyncio.timeout(_QUERY_S):  # real time: a name server
                answer, ttl_s = await self._ask(question)
        except TimeoutError:
            return _late(_QUERY_S)
        self._cache.remember(question, answer, ttl_s)
        return answer


def _late(wait_s: float) -> NoAnswer:
    return NoAnswer(f"no answer within {wait_s:g} s")
