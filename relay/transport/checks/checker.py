"""Check SPF, DKIM and DMARC of a stranger's message.

Workers judge by the DNS answers that they get. The DNS is asked here, so that a silent name server
keeps no worker. What is not known in time is a temporary error.
"""

import asyncio
from asyncio import to_thread
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial

from msgspec import Struct, msgpack

from relay.base.bounded_dict import BoundedDict
from relay.base.clock import Clock
from relay.base.message.authentication_results import AuthResult
from relay.base.message.content import Content, LargeContent, octets_in_blocks
from relay.base.message.header import Header, ParsedContent, has_short_header
from relay.base.observe.logs import ContainedErrors, get_logger
from relay.base.socket_address import client_of
from relay.transport.checks.workers import WORKERS_MAX, CheckWorkers
from relay.transport.routing.dns_cache import Ask, DnsQuestion
from relay.transport.routing.mx_hosts import Answer, NoAnswer, NoName, Records

TIME_LIMIT_S = 5.0  # of a message
DNS_LIMIT_S = 4.0  # of a message; then what is not known stays so
QUESTIONS_MAX = 40  # of a message
SIGNED_OCTETS_MAX = 10_000_000  # of a message whose signatures are checked
_SMALL_OCTETS = 64 * 1024  # a message that is whole in each request
_ASKING = (b"from", b"dkim-signature")  # the fields that others have in each request
_ASKING_MAX, _ASKING_OCTETS_MAX = 5, 8192  # of these fields; longer ones ask last
_NEEDED_MAX = 1000  # clients and domains
_CRLF = b"\r\n"
TOO_MANY = f"the message needs more than {QUESTIONS_MAX} questions"
_TOO_LATE = f"no answer within {DNS_LIMIT_S:g} s"
_log = get_logger("checks")


class SenderQuestion(Struct, frozen=True):
    """A client and its envelope."""

    ip: str  # of the client
    helo: str
    sender: str  # the reverse-path, "" is the null reverse-path
    hostname: str  # of this relay


class KnownAnswer(Struct, frozen=True):
    """An answer as a worker gets it."""

    values: Sequence[bytes] = ()  # of the records; for MX, preference and name
    has_name: bool = True  # the name exists
    failure: str = ""  # why there is no answer


Known = Mapping[DnsQuestion, KnownAnswer]


class CheckRequest(Struct, frozen=True):
    """What a worker gets: a message, and the DNS answers so far."""

    question: SenderQuestion
    known: Known
    header: bytes  # without a body at first only the fields by which questions are asked
    body: bytes | None  # None until all answers are known
    is_large: bool  # its signatures are not checked


class CheckReply(Struct, frozen=True):
    """The questions that lack an answer; else the results, if the request has the body.

    Those in `early` may be needed in the end (np= of DMARC), when other name servers have taken all
    the time: they are asked, and not waited for.
    """

    lacking: Sequence[DnsQuestion]
    results: tuple[AuthResult, ...] = ()  # SPF of the sender, SPF of HELO, DKIM, DMARC
    early: Sequence[DnsQuestion] = ()


_read_reply = msgpack.Decoder(CheckReply).decode


class _Lookups:
    """The questions of a message and their answers."""

    def __init__(self, ask: Ask, client: str, clock: Clock) -> None:
        self.known: dict[DnsQuestion, KnownAnswer] = {}
        self._ask, self._clock = partial(ask, client=client, wait_s=DNS_LIMIT_S), clock
        self._until_s = clock.real_s() + DNS_LIMIT_S
        self._tasks: dict[DnsQuestion, asyncio.Future[Sequence[Answer]]] = {}

    async def add_some(
        self, questions: Sequence[DnsQuestion], early: Sequence[DnsQuestion] = ()
    ) -> None:
        """Ask what was not asked before, and wait until one more answer to `questions` is known."""
        for question in (*questions, *early):
            if question not in self._tasks and len(self._tasks) < QUESTIONS_MAX:
                self._tasks[question] = asyncio.ensure_future(self._ask([question]))
        tasks = {name: self._tasks[name] for name in questions if name in self._tasks}
        left_s = self._until_s - self._clock.real_s()
        if len(tasks) == len(questions):
            await asyncio.wait(  # real time: name servers
                tasks.values(), timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )
        is_late = self._clock.real_s() >= self._until_s
        for question in questions:
            if (task := tasks.get(question)) and task.done():
                self.known[question] = _known(*task.result())
            elif task is None or is_late:
                self.known[question] = KnownAnswer(failure=TOO_MANY if task is None else _TOO_LATE)

    def end(self) -> None:
        """Stop waiting for answers."""
        for task in self._tasks.values():
            task.cancel()


class SenderChecker:
    """Checks messages in worker processes, which are started for the first one."""

    def __init__(self, ask: Ask, *, clock: Clock) -> None:
        self._ask, self._clock = ask, clock
        self._workers = CheckWorkers()
        self._bodies = asyncio.Semaphore(WORKERS_MAX)  # large ones in memory
        # what the last message of a client and its sender's domain needed: saves most rounds
        self._needed = BoundedDict[tuple[str, ...], tuple[DnsQuestion, ...]](_NEEDED_MAX)

    async def check(self, question: SenderQuestion, content: Content) -> tuple[AuthResult, ...]:
        """Return the results within TIME_LIMIT_S: SPF of the sender and of HELO, DKIM, DMARC.

        Nothing raises.
        """
        client, why = client_of(question.ip), "internal error"
        lookups = _Lookups(self._ask, client, self._clock)
        with ContainedErrors(_log, "a sender could not be checked"):
            try:
                async with asyncio.timeout(TIME_LIMIT_S):  # real time: name servers, a child
                    parse = partial(ParsedContent.of, content)
                    parsed = parse() if has_short_header(content) else await to_thread(parse)
                    return await self._results(question, parsed, lookups)
            except TimeoutError:
                why = f"no result within {TIME_LIMIT_S:g} s"
            except OSError as error:
                why = str(error)
            finally:
                lookups.end()
        return tuple([AuthResult(method, "temperror", why) for method in ("spf", "dkim", "dmarc")])

    def close(self) -> None:
        """End the worker processes."""
        self._workers.close()

    async def _results(
        self, question: SenderQuestion, parsed: ParsedContent, lookups: _Lookups
    ) -> tuple[AuthResult, ...]:
        """Return the results. Raises OSError."""
        is_large = parsed.size > SIGNED_OCTETS_MAX
        is_small = isinstance(parsed.rest, bytes) and parsed.size <= _SMALL_OCTETS
        header = parsed.header.octets if is_small else _asking(parsed.header)
        body = _body(parsed.rest) if is_small else None
        key = (question.ip, question.helo, question.sender.rpartition("@")[2])
        if needed := self._needed.get(key):
            await lookups.add_some(needed)
        async with AsyncExitStack() as held:
            while True:
                request = CheckRequest(question, lookups.known, header, body, is_large)
                reply = _read_reply(
                    await self._workers.ask(msgpack.encode(request), client=client_of(question.ip))
                )
                if reply.results:
                    # what leaves too few questions for the next message is not remembered
                    is_usual = len(lookups.known) <= QUESTIONS_MAX // 2
                    self._needed[key] = tuple(lookups.known) if is_usual else ()
                    return reply.results
                if reply.lacking:
                    await held.aclose()  # no body waits for what a long field asks
                    body = body if is_small else None
                    await lookups.add_some(reply.lacking, reply.early)
                else:
                    await held.enter_async_context(self._bodies)
                    body = b"" if is_large else await to_thread(_body, parsed.rest)
                    header = parsed.header.octets


def _asking(header: Header) -> bytes:
    """Return what each round reads of a long header."""
    short = [field for field in header.fields if len(field[1]) <= _ASKING_OCTETS_MAX]
    fields = [[octets for name, octets in short if name == asking] for asking in _ASKING]
    return b"".join([octets for several in fields for octets in several[:_ASKING_MAX]])


def _body(rest: bytes | LargeContent) -> bytes:
    """Return the body without the blank line before it. Raises UnreadableError."""
    octets = rest if isinstance(rest, bytes) else b"".join(octets_in_blocks(rest.body))
    return octets[len(_CRLF) :]


def _known(answer: Answer) -> KnownAnswer:
    if isinstance(answer, NoAnswer):
        return KnownAnswer(failure=answer.text)
    values = answer.values if isinstance(answer, Records) else ()
    octets = [value.encode("utf-8", "surrogateescape") for value in values]
    return KnownAnswer(octets, has_name=not isinstance(answer, NoName))
