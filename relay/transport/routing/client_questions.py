"""Questions that clients choose: at RCPT of a stranger, and about a message.

They have places of their own, which clients take in turn, so that they delay neither each other nor
delivery. Time without a place is this relay's own (NOT_ASKED); from when a question is sent, it is
silence of a name server. Equal questions share a query, and answers are in the cache of delivery.
"""

import asyncio

from msgspec.structs import replace

from relay.base.turns import Turns
from relay.transport.routing import dns_cache
from relay.transport.routing.mx_hosts import NOT_ASKED, Answer, NoAnswer

_PLACES = 96  # queries in progress
_KEPT = 32  # more of them, for questions that are kept
_WAITING_MAX = 1000
_TURN_S = 5.0
_QUERY_S = 5.0  # no client waits longer for an answer


class ClientQuestions:
    """Asks what clients want to know, as Ask says."""

    def __init__(self, ask: dns_cache.AskTimed, cache: dns_cache.DnsCache) -> None:
        """Answers are kept in `cache`, whose queries are delivery's own."""
        self._ask, self._queries = ask, cache.with_own_queries(self._in_time)
        self._places, self._kept = (
            Turns("name server questions", places, waiting_max=_WAITING_MAX)
            for places in (_PLACES, _KEPT)
        )

    async def answer(
        self, question: dns_cache.DnsQuestion, *, client: str, wait_s: float, is_kept: bool
    ) -> Answer:
        """Return the answer to one question."""
        known = self._queries.known(question)
        if known is None:
            turns = await self._turn(client, is_kept=is_kept)
            if turns is None:
                return NOT_ASKED
            known = self._queries.known(question)  # another client may have asked
            if known is None:
                known = self._queries.sent(question)
                known.add_done_callback(lambda _: turns.give_back(client))
            else:
                turns.give_back(client)
        if not isinstance(known, asyncio.Task):
            return known
        await asyncio.wait([known], timeout=wait_s)  # real time: a name server
        answer = dns_cache.result_of(known) if known.done() else _late(wait_s)
        is_refused = isinstance(answer, NoAnswer) and known in dns_cache.refused
        return replace(answer, is_refused=True) if is_refused else answer

    async def close(self) -> None:
        """Cancel the queries in progress."""
        await self._queries.close()

    async def _turn(self, client: str, *, is_kept: bool) -> Turns | None:
        """Return the places of which the client has one now, None if there was none in time."""
        if await self._places.take(client, wait_s=0 if is_kept else _TURN_S):
            return self._places
        return self._kept if is_kept and await self._kept.take(client, wait_s=_TURN_S) else None

    async def _in_time(self, question: dns_cache.DnsQuestion) -> dns_cache.TimedAnswer:
        try:
            async with asyncio.timeout(_QUERY_S):  # real time: a name server
                return await self._ask(question)
        except TimeoutError:
            return _late(_QUERY_S), 0.0


def _late(wait_s: float) -> NoAnswer:
    return NoAnswer(f"no answer within {wait_s:g} s")
