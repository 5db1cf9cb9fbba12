"""Check SPF, DKIM and DMARC of a stranger's message.

Workers judge SPF and DKIM by the DNS answers that they get; the DNS is asked here, so that a silent
name server keeps no worker. What is not known in time is a temporary error.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from msgspec import Struct, msgpack

from relay.base.blocks import next_block
from relay.base.clock import Clock
from relay.base.message.authentication_results import AuthResult, clipped
from relay.base.message.content import Content, octets_in_blocks
from relay.base.message.header import ParsedContent
from relay.base.observe.logs import ContainedErrors, get_logger
from relay.transport.checks.dmarc import Unanswered, author_of, dmarc_result, walk_questions
from relay.transport.checks.workers import CheckWorkers
from relay.transport.routing.dns_cache import DnsQuestion
from relay.transport.routing.mx_hosts import Answer, NoAnswer, Records

# Returns the answers in the order of the questions.
Ask = Callable[[Sequence[DnsQuestion]], Awaitable[Sequence[Answer]]]
# Answers as a worker gets them: values, none if there are no records, None without an answer.
Known = Mapping[DnsQuestion, Sequence[bytes] | None]

TIME_LIMIT_S = 5.0  # of a message
DNS_LIMIT_S = 4.0  # of a message; then what is not known stays so
QUESTIONS_MAX = 40  # of a message
SIGNED_OCTETS_MAX = 10_000_000  # of a message whose signatures are checked
_SMALL_OCTETS = 64 * 1024  # a body that is sent with each request
_CRLF = b"\r\n"
_log = get_logger("checks")


class SenderQuestion(Struct, frozen=True):
    """A client and its envelope."""

    ip: str  # of the client
    helo: str
    sender: str  # the reverse-path, "" is the null reverse-path
    hostname: str  # of this relay


class CheckRequest(Struct, frozen=True):
    """What a worker gets: a message, and the DNS answers so far."""

    question: SenderQuestion
    known: Sequence[tuple[DnsQuestion, Sequence[bytes] | None]]  # see Known
    header: bytes
    body: bytes | None  # None until all answers are known
    is_large: bool  # its signatures are not checked


class CheckReply(Struct, frozen=True):
    """The questions that lack an answer; else the results, if the request has the body."""

    lacking: Sequence[DnsQuestion]
    results: Sequence[AuthResult] = ()  # SPF of the sender, SPF of HELO, DKIM


_read_reply = msgpack.Decoder(CheckReply).decode


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
            if len(self._tasks) < QUESTIONS_MAX:
                if question not in self._tasks:
                    self._tasks[question] = asyncio.ensure_future(self._ask([question]))
            elif question not in self._tasks:
                text = f"the message needs more than {QUESTIONS_MAX} questions"
                self.answers[question] = NoAnswer(text)

    async def add_some(self, questions: Sequence[DnsQuestion]) -> None:
        """Ask, and wait until one more of these answers is known."""
        self.start(questions)
        tasks = {name: task for name in questions if (task := self._tasks.get(name))}
        if len(tasks) == len(questions):
            left_s = self._until_s - self._clock.real_s()
            await asyncio.wait(
                tasks.values(), timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )  # real time: name servers
        for question, task in tasks.items():
            if task.done():
                [self.answers[question]] = task.result()
            elif self._clock.real_s() >= self._until_s:
                self.answers[question] = NoAnswer(f"no answer within {DNS_LIMIT_S:g} s")

    def end(self) -> None:
        """Stop waiting for answers."""
        for task in self._tasks.values():
            task.cancel()


class SenderChecker:
    """Checks messages in worker processes, which are started for the first one."""

    def __init__(self, ask: Ask, *, clock: Clock) -> None:
        self._ask, self._clock = ask, clock
        self._workers = CheckWorkers()

    async def check(self, question: SenderQuestion, content: Content) -> tuple[AuthResult, ...]:
        """Return the results within TIME_LIMIT_S: SPF of the sender and of HELO, DKIM, DMARC.

        Nothing raises.
        """
        parsed = ParsedContent.of(content)
        author, fault = author_of(parsed.header)
        lookups = _Lookups(self._ask, self._clock)
        found, dmarc, why = list[AuthResult](), None, "internal error"
        with ContainedErrors(_log, "a sender could not be checked"):
            try:
                async with asyncio.timeout(TIME_LIMIT_S):  # real time: name servers, a child
                    lookups.start(walk_questions(author) if author else ())
                    found = [*await self._found(question, parsed, lookups)]
                    dmarc = await _dmarc(author, found, lookups) if author else None
            except OSError as error:
                why = str(error) or f"no result within {TIME_LIMIT_S:g} s"
            finally:
                lookups.end()
        if not found:
            sender = clipped(question.sender or f"postmaster@{question.helo}")
            found.append(AuthResult("spf", "temperror", why, {"smtp.mailfrom": sender}))
            found.append(AuthResult("dkim", "temperror", why))
        if fault:
            dmarc = AuthResult("dmarc", "permerror", fault)
        return (*found, dmarc or AuthResult("dmarc", "temperror", why, {"header.from": author}))

    def close(self) -> None:
        """End the worker processes."""
        self._workers.close()

    async def _found(
        self, question: SenderQuestion, parsed: ParsedContent, lookups: _Lookups
    ) -> Sequence[AuthResult]:
        """Return the results of SPF and DKIM. Raises OSError."""
        is_large = parsed.size > SIGNED_OCTETS_MAX
        is_small = isinstance(parsed.rest, bytes) and len(parsed.rest) <= _SMALL_OCTETS
        body = b"" if is_large else await _body(parsed) if is_small else None
        header = parsed.header.octets
        while True:
            known = [(name, _values(answer)) for name, answer in lookups.answers.items()]
            request = CheckRequest(question, known, header, body, is_large)
            reply = _read_reply(await self._workers.ask(msgpack.encode(request)))
            if reply.results:
                return reply.results
            if reply.lacking:
                await lookups.add_some(reply.lacking)
            else:
                body = await _body(parsed)


async def _dmarc(author: str, found: Sequence[AuthResult], lookups: _Lookups) -> AuthResult:
    of_sender, _, *signatures = found
    while True:
        try:
            return dmarc_result(author, (of_sender, *signatures), lookups.answers)
        except Unanswered as error:
            await lookups.add_some(error.args)


async def _body(parsed: ParsedContent) -> bytes:
    """Return the body without the blank line before it. Raises UnreadableError."""
    rest, blocks = parsed.rest, list[bytes]()
    coming = iter([rest]) if isinstance(rest, bytes) else octets_in_blocks(rest.body, on_loop=True)
    while block := await next_block(coming):
        blocks.append(block)
    return b"".join(blocks)[len(_CRLF) :]


def _values(answer: Answer) -> Sequence[bytes] | None:
    if isinstance(answer, NoAnswer):
        return None
    values = answer.values if isinstance(answer, Records) else ()
    return [value.encode("utf-8", "surrogateescape") for value in values]
