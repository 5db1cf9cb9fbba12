"""Check SPF, DKIM and DMARC of a stranger's message.

Workers judge SPF and DKIM by the DNS answers that they get; the DNS is asked here. A name server
that is silent keeps no worker. A temporary error is no pass and no refusal.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from msgspec import Struct

from relay.base.blocks import next_block
from relay.base.clock import Clock
from relay.base.message.authentication_results import AuthResult, clipped
from relay.base.message.content import Content, UnreadableError, octets_in_blocks
from relay.base.message.header import ParsedContent
from relay.base.observe.logs import ContainedErrors, get_logger
from relay.transport.checks.dmarc import (
    Author,
    UnansweredError,
    author_of,
    dmarc_result,
    walk_questions,
)
from relay.transport.checks.wire import Request
from relay.transport.checks.workers import CheckFailedError, CheckWorkers
from relay.transport.routing.dns_cache import DnsQuestion
from relay.transport.routing.mx_hosts import Answer, NoAnswer, Records

# Returns the answers in the order of the questions.
Ask = Callable[[Sequence[DnsQuestion]], Awaitable[Sequence[Answer]]]

TIME_LIMIT_S = 5.0  # of a message
DNS_LIMIT_S = 4.0  # then what is not known stays so
QUESTIONS_MAX = 40  # of a message
SIGNED_OCTETS_MAX = 10_000_000  # of a message whose signatures are checked
_SMALL_OCTETS = 64 * 1024  # sent with each request
_CRLF = b"\r\n"
_log = get_logger("checks")


class SenderQuestion(Struct, frozen=True):
    """A client and its envelope."""

    ip: str  # of the client
    helo: str
    sender: str  # the reverse-path, "" is the null reverse-path
    hostname: str  # of this relay


class _Lookups:
    """The questions of a message and their answers."""

    def __init__(self, ask: Ask, clock: Clock) -> None:
        self.answers: dict[DnsQuestion, Answer] = {}
        self._ask, self._clock = ask, clock
        self._until_s = clock.real_s() + DNS_LIMIT_S
        self._tasks: dict[DnsQuestion, asyncio.Future[Sequence[Answer]]] = {}

    def start(self, questions: Iterable[DnsQuestion]) -> None:
        """Ask what was not asked before."""
        for question in questions:
            if question in self._tasks or question in self.answers:
                continue
            if len(self._tasks) < QUESTIONS_MAX:
                self._tasks[question] = asyncio.ensure_future(self._ask([question]))
            else:
                text = f"the message needs more than {QUESTIONS_MAX} questions"
                self.answers[question] = NoAnswer(text)

    async def add_some(self, questions: Sequence[DnsQuestion]) -> None:
        """Ask, and wait until one more of these answers is known."""
        self.start(questions)
        if not self.answers.keys().isdisjoint(questions):
            return
        tasks = {question: self._tasks[question] for question in questions}
        await asyncio.wait(
            tasks.values(),
            timeout=self._until_s - self._clock.real_s(),  # real time: name servers
            return_when=asyncio.FIRST_COMPLETED,
        )
        is_late = self._clock.real_s() >= self._until_s
        for question, task in tasks.items():
            if task.done():
                [self.answers[question]] = task.result()
            elif is_late:
                self.answers[question] = NoAnswer(f"no answer within {DNS_LIMIT_S:g} s")

    def end(self) -> None:
        """Stop waiting for answers."""
        for task in self._tasks.values():
            task.cancel()


class SenderChecker:
    """Checks messages in worker processes, which are started for the first one."""

    def __init__(self, ask: Ask, *, clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._workers = CheckWorkers()

    async def check(self, question: SenderQuestion, content: Content) -> tuple[AuthResult, ...]:
        """Return the results within TIME_LIMIT_S: SPF of the sender and of HELO, DKIM, DMARC.

        Nothing raises.
        """
        parsed = ParsedContent.of(content)
        author, why = author_of(parsed.header), "internal error"
        lookups = _Lookups(self._ask, self._clock)
        with ContainedErrors(_log, "a sender could not be checked"):
            try:
                async with asyncio.timeout(TIME_LIMIT_S):  # real time: name servers, a child
                    return await self._results(question, parsed, author, lookups)
            except TimeoutError:
                why = f"no result within {TIME_LIMIT_S:g} s"
            except (CheckFailedError, UnreadableError) as error:
                why = str(error)
            finally:
                lookups.end()
        return _undecided(question, author, why)

    def close(self) -> None:
        """End the worker processes."""
        self._workers.close()

    async def _results(
        self, question: SenderQuestion, parsed: ParsedContent, author: Author, lookups: _Lookups
    ) -> tuple[AuthResult, ...]:
        """Return the results. Raises CheckFailedError, UnreadableError."""
        if author.domain:
            lookups.start(walk_questions(author.domain))
        is_large = parsed.size > SIGNED_OCTETS_MAX
        body = b"" if is_large else None
        if isinstance(parsed.rest, bytes) and len(parsed.rest) <= _SMALL_OCTETS:
            body = await _body(parsed)
        header = parsed.header.octets
        while True:
            known = [(name, _values(answer)) for name, answer in lookups.answers.items()]
            request = Request(
                ip=question.ip,
                helo=question.helo,
                sender=question.sender,
                hostname=question.hostname,
                known=known,
                header=header,
                body=body,
                is_large=is_large,
            )
            reply = await self._workers.ask(request)
            if reply.results:
                break
            if reply.lacking:
                await lookups.add_some(reply.lacking)
            else:
                body = await _body(parsed)
        of_sender, of_helo, *signatures = reply.results
        while True:
            try:
                dmarc = dmarc_result(author, (of_sender, *signatures), lookups.answers)
            except UnansweredError as error:
                await lookups.add_some(error.questions)
                continue
            return (of_sender, of_helo, *signatures, dmarc)


async def _body(parsed: ParsedContent) -> bytes:
    """Return the body without the blank line before it. Raises UnreadableError."""
    rest, blocks = parsed.rest, list[bytes]()
    coming = iter([rest]) if isinstance(rest, bytes) else octets_in_blocks(rest.body, on_loop=True)
    while block := await next_block(coming):
        blocks.append(block)
    return b"".join(blocks)[len(_CRLF) :]


def _values(answer: Answer) -> Sequence[bytes] | None:
    """Return an answer as the workers get it."""
    if isinstance(answer, NoAnswer):
        return None
    values = answer.values if isinstance(answer, Records) else ()
    return [value.encode("utf-8", "surrogateescape") for value in values]


def _undecided(question: SenderQuestion, author: Author, why: str) -> tuple[AuthResult, ...]:
    """Return the results of a message that could not be checked, and why."""
    named: Sequence[tuple[str, dict[str, str]]] = (
        ("spf", {"smtp.mailfrom": clipped(question.sender or f"postmaster@{question.helo}")}),
        ("spf", {"smtp.helo": clipped(question.helo)}),
        ("dkim", {}),
        ("dmarc", {"header.from": author.domain}),
    )
    *results, dmarc = [
        AuthResult(method, "temperror", clipped(why), properties) for method, properties in named
    ]
    return (*results, dmarc_result(author, (), {}) if author.fault else dmarc)
