"""A cache of DNS answers.

One query per question is in progress at a time; queries and cache are bounded, the cache also in
octets, since strangers choose the answers. A TTL is never extended (RFC 2181 5.2 and 8). Failures
are not cached.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from sys import getsizeof
from typing import Any, Protocol
from weakref import WeakSet

from relay.base.clock import Clock
from relay.base.task_set import end_all
from relay.transport.routing.mx_hosts import Answer, NoAnswer, Records

# A name in lower case without the final dot, and "MX", "A", "AAAA", "TXT", "TLSA" or "HOST".
DnsQuestion = tuple[str, str]
TimedAnswer = tuple[Answer, float]  # an answer and its TTL in seconds
AskTimed = Callable[[DnsQuestion], Awaitable[TimedAnswer]]


refused = WeakSet[asyncio.Task[Any]]()  # to which a name server has said REFUSED


class Ask(Protocol):
    """Asks questions that a client chose, as Resolver.answers_for_clients() does."""

    def __call__(
        self, questions: Sequence[DnsQuestion], *, client: str, wait_s: float, is_kept: bool = False
    ) -> Awaitable[Sequence[Answer]]:
        """Return the answers in the order of the questions; nothing raises.

        `client` is what client_of() returns. A question that could not be sent has a NoAnswer with
        `is_own`; one that was sent has a NoAnswer if `wait_s` later there is no answer. `is_kept`
        questions may use the places that are kept for them.
        """
        ...


QUERIES_MAX = 256  # in progress at once; others wait
CACHE_MAX = 20_000  # questions in the cache
OCTETS_MAX = 32 * 1024 * 1024  # of the cache, in memory
ANSWER_OCTETS_MAX = 8192  # a longer answer is not kept
_ENTRY_OCTETS_MIN = 500  # of a question and its answer


class _CachedAnswers(OrderedDict[DnsQuestion, tuple[float, int, Answer]]):
    """Answers with their end (monotonic) and octets; the most recently used one is the last."""

    octets = 0

    def keep(self, question: DnsQuestion, answer: Answer, ends_s: float) -> None:
        """Remember an answer in place of others."""
        texts = [*question, *(answer.values if isinstance(answer, Records) else ())]
        octets = max(_ENTRY_OCTETS_MIN, sum(map(getsizeof, [question, texts, *texts])))
        self.drop(question)
        if octets <= ANSWER_OCTETS_MAX:
            self[question] = ends_s, octets, answer
            self.octets += octets
        while len(self) > CACHE_MAX or self.octets > OCTETS_MAX:
            self.drop(next(iter(self)))

    def drop(self, question: DnsQuestion) -> None:
        """Forget an answer, if there is one."""
        if question in self:
            self.octets -= self.pop(question)[1]


class DnsCache:
    """A bounded cache of MX and address answers before `ask`; equal questions share a query."""

    def __init__(self, ask: AskTimed, *, clock: Clock, cache: _CachedAnswers | None = None) -> None:
        self._ask = ask
        self._clock = clock
        self._slots = asyncio.Semaphore(QUERIES_MAX)
        self._cache = _CachedAnswers() if cache is None else cache
        self._running: dict[DnsQuestion, asyncio.Task[Answer]] = {}

    def with_own_queries(self, ask: AskTimed) -> "DnsCache":
        """Return the same cache before another `ask`, with which no query is shared."""
        return DnsCache(ask, clock=self._clock, cache=self._cache)

    def forget(self, question: DnsQuestion) -> None:
        """Send a query for this question the next time."""
        self._cache.drop(question)

    def forget_ended(self, *, are_all: bool) -> None:
        """Forget the answers whose TTL has ended, or all."""
        now_s = self._clock.monotonic()
        for question in [name for name, kept in self._cache.items() if are_all or kept[0] <= now_s]:
            self._cache.drop(question)

    async def answers(self, *questions: DnsQuestion) -> list[Answer]:
        """Return the answers in the order of the questions; all queries run in parallel."""
        remembered = {query: self.remembered(query) for query in questions}
        tasks = [self.sent(query) for query, answer in remembered.items() if answer is None]
        if tasks:
            await asyncio.wait(tasks)  # not cancelled with this caller: others may wait for them
            fresh = [query for query, answer in remembered.items() if answer is None]
            remembered |= {query: result_of(task) for query, task in zip(fresh, tasks, strict=True)}
        return [answer for query in questions if (answer := remembered[query]) is not None]

    async def close(self) -> None:
        """Cancel the queries in progress."""
        await end_all(self._running.values())

    def known(self, question: DnsQuestion) -> Answer | asyncio.Task[Answer] | None:
        """Return the answer in the cache, or the query in progress; None if there is neither."""
        return self.remembered(question) or self._running.get(question)

    def sent(self, question: DnsQuestion) -> asyncio.Task[Answer]:
        """Return the query in progress; send one if there is none."""
        task = self._running.get(question)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._fetch(question))
            self._running[question] = task
            task.add_done_callback(lambda _: self._running.pop(question, None))
        return task

    async def _fetch(self, question: DnsQuestion) -> Answer:
        async with self._slots:
            answer, ttl_s = await self._ask(question)
        if ttl_s > 0:
            self._cache.keep(question, answer, self._clock.monotonic() + ttl_s)
        return answer

    def remembered(self, question: DnsQuestion) -> Answer | None:
        """Return the answer in the cache, None if there is none."""
        kept = self._cache.get(question)
        if kept is None or kept[0] <= self._clock.monotonic():
            self._cache.drop(question)
            return None
        self._cache.move_to_end(question)
        return kept[-1]


def result_of(task: asyncio.Task[Answer]) -> Answer:
    """Return the answer of a query that has ended."""
    return NoAnswer("the relay is shutting down") if task.cancelled() else task.result()
