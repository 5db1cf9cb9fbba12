"""Check SPF, DKIM and DMARC of a stranger's message.

Workers judge by the DNS answers that they get. The DNS is asked here, so that a silent name server
keeps no worker. Each reply of a worker has the results by what is known then; what this relay could
not ask or compute in time is UNABLE. It is tried once more. A bound that a repeat would meet again
(octets, fields, questions, signatures) is no inability: that method has not passed.
"""

import asyncio
from asyncio import to_thread
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from math import inf

from msgspec import Struct, msgpack

from relay.base.bounded_dict import BoundedDict
from relay.base.child_process import ChildRequest
from relay.base.clock import Clock
from relay.base.message.authentication_results import (
    UNABLE,
    AuthResult,
    domain_shown,
    has_aligned_pass,
    is_of_helo,
    may_be_aligned,
    may_be_honest,
)
from relay.base.message.content import Content, LargeContent, octets_in_blocks
from relay.base.message.header import Header, ParsedContent, has_short_header
from relay.base.observe.logs import ContainedErrors, get_logger
from relay.base.observe.metrics import Metrics
from relay.base.socket_address import client_of
from relay.transport.checks.workers import CheckWorkers
from relay.transport.routing.dns_cache import Ask, DnsQuestion
from relay.transport.routing.mx_hosts import Answer, NoAnswer, NoName, Records

ATTEMPTS_MAX, ATTEMPT_S = 2, 5.0  # of a message: 10 s in all
DNS_LIMIT_S = 4.0  # of an attempt; then what has no answer is UNABLE
_SILENT_S = 3.5  # after a question was sent; then its name servers are silent
_REST_S = 1.0  # then an aligned pass waits no longer for other results
_NEEDED_S = 0.1  # for answers that the last such message needed
QUESTIONS_MAX, _KEPT = 40, 12  # of a message; some of them are kept for aligned names
SIGNED_OCTETS_MAX = 10_000_000  # of a message whose signatures are checked
_SMALL_OCTETS = 64 * 1024  # a message that is whole in each request, and the fields of others
_ASKING = (b"from", b"dkim-signature")  # the fields that others have in each request
_FIELD_OCTETS_MAX = 8192  # of these; longer ones are faults
_NEEDED_MAX = 1000  # clients and domains
_UNABLE_S = 60.0  # in which a check succeeds, if there was one
_CRLF = b"\r\n"
TOO_MANY = f"the message needs more than {QUESTIONS_MAX} questions"
NOT_COMPUTED = "not computed yet"
_TOO_LATE = f"not answered within {DNS_LIMIT_S:g} s"
_METHODS = ("spf", "dkim", "dmarc")
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
    is_own: bool = False  # this relay could not ask or wait, or its name server said REFUSED

    @property
    def undecided(self) -> str:
        """The result of what needs an answer that there is not."""
        return UNABLE if self.is_own else "temperror"


Known = Mapping[DnsQuestion, KnownAnswer]


class CheckRequest(ChildRequest, frozen=True):
    """What a worker gets: a message, and the DNS answers so far."""

    question: SenderQuestion
    known: Known
    header: bytes  # without a body at first only the fields by which questions are asked
    body: bytes | None  # None until all answers are known
    is_large: bool  # its signatures are not checked
    is_last: bool = False  # nothing else is waited for


class CheckReply(Struct, frozen=True):
    """The results by what is known, and the questions that lack an answer.

    Those in `early` may be needed in the end (walks of DMARC), when other name servers have taken
    all the time: they are asked, and not waited for.
    """

    lacking: Sequence[DnsQuestion]
    results: tuple[AuthResult, ...]  # SPF of the sender, SPF of HELO, DKIM, DMARC
    kept: int = 0  # so many of `lacking`, from the first, are for aligned names
    early: Sequence[DnsQuestion] = ()  # all for aligned names


_read_reply = msgpack.Decoder(CheckReply).decode


def is_asked(field: bytes) -> bool:
    """Return whether a field is short enough to be read before all questions are answered."""
    return len(field) <= _FIELD_OCTETS_MAX


class _Lookups:
    """The questions of a message and their answers."""

    def __init__(self, ask: Ask, client: str, clock: Clock) -> None:
        self.known: dict[DnsQuestion, KnownAnswer] = {}
        self.asked: dict[DnsQuestion, bool] = {}  # whether it is for an aligned name
        self._ask, self._clock = partial(ask, client=client, wait_s=_SILENT_S), clock
        self._tasks: dict[DnsQuestion, asyncio.Future[Sequence[Answer]]] = {}
        self._until_s = 0.0

    def begin(self) -> None:
        """Begin an attempt; what could not be asked before is asked again."""
        self.end()
        for question in [name for name, answer in self.known.items() if answer.is_own]:
            del self.known[question]
        self.asked = {name: kept for name, kept in self.asked.items() if name in self.known}
        self._tasks = {}
        self._until_s = self._clock.real_s() + DNS_LIMIT_S

    def ask(self, questions: Iterable[DnsQuestion], *, is_kept: bool) -> None:
        """Ask what was not asked before, as far as a message may."""
        for question in questions:
            others = list(self.asked.values()).count(False)
            has_room = is_kept or others < QUESTIONS_MAX - _KEPT
            if question in self.asked:
                continue
            if has_room and len(self.asked) < QUESTIONS_MAX:
                self.asked[question] = is_kept
                asked = self._ask([question], is_kept=is_kept)
                self._tasks[question] = asyncio.ensure_future(asked)
            else:
                self.known[question] = KnownAnswer(failure=TOO_MANY)

    async def wait(self, questions: Sequence[DnsQuestion], limit_s: float = inf) -> None:
        """Wait until one more answer to these questions is known."""
        tasks = [self._tasks[question] for question in questions if question in self._tasks]
        if tasks and not any(question in self.known for question in questions):
            left_s = min(self._until_s - self._clock.real_s(), limit_s)
            await asyncio.wait(  # real time: name servers
                tasks, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )
        for question, task in list(self._tasks.items()):
            if task.done():
                self.known.setdefault(question, _known(*task.result()))
                del self._tasks[question]
        if self._clock.real_s() >= self._until_s:
            late = KnownAnswer(failure=_TOO_LATE, is_own=True)
            self.known = dict.fromkeys(questions, late) | self.known

    def end(self) -> None:
        """Stop waiting for answers."""
        for task in self._tasks.values():
            task.cancel()


class _Checked:
    """A message that is checked, and what is known of it."""

    def __init__(self, question: SenderQuestion, lookups: _Lookups, *, needs_all: bool) -> None:
        self.question, self.lookups, self.needs_all = question, lookups, needs_all
        self.results: tuple[AuthResult, ...] = ()  # by what is known

    def read(self, parsed: ParsedContent) -> None:
        """Keep the content."""
        self.parsed = parsed
        self.needs_all |= "Sender" in parsed.header  # whom an aligned pass may not prove
        self.is_large = parsed.size > SIGNED_OCTETS_MAX
        self.is_small = isinstance(parsed.rest, bytes) and parsed.size <= _SMALL_OCTETS

    async def request(self, *, is_whole: bool, is_last: bool) -> CheckRequest:
        """Return a request; it has the body if the message is small or `is_whole`."""
        header, rest, body = self.parsed.header, self.parsed.rest, None
        if self.is_small:
            body = _body(rest)
        elif is_whole:
            body = b"" if self.is_large else await to_thread(_body, rest)
        octets = _asking(header) if body is None else header.octets
        known = self.lookups.known
        return CheckRequest(self.question, known, octets, body, self.is_large, is_last)


class SenderChecker:
    """Checks messages in worker processes, which are started for the first one."""

    def __init__(self, ask: Ask, *, clock: Clock, metrics: Metrics | None = None) -> None:
        self._ask, self._clock = ask, clock
        self._count = (metrics or Metrics()).sender_checks.labels
        self._workers = CheckWorkers()
        # what the last message of a client and its sender's domain needed: saves most rounds
        self._needed = BoundedDict[tuple[str, ...], Mapping[DnsQuestion, bool]](_NEEDED_MAX)
        self._last_s = [-inf, -inf]  # when the last check succeeded, and when one did not

    def impaired(self) -> str:
        """Return what /readyz says if checks of the last minute were tried, and none succeeded."""
        succeeded_s, failed_s = self._last_s
        is_impaired = succeeded_s < self._clock.real_s() - _UNABLE_S <= failed_s
        return "no sender could be checked in the last minute" if is_impaired else ""

    async def check(
        self, question: SenderQuestion, content: Content, *, needs_all: bool = True
    ) -> tuple[AuthResult, ...]:
        """Return the results within 10 s: SPF of the sender and of HELO, DKIM, DMARC.

        Unless `needs_all`, an aligned pass does not wait for the rest. Nothing raises.
        """
        lookups = _Lookups(self._ask, client_of(question.ip), self._clock)
        checked = _Checked(question, lookups, needs_all=needs_all)
        try:
            for _ in range(ATTEMPTS_MAX):
                why = await self._attempt(checked, content)
                unable = [AuthResult(method, UNABLE, why) for method in _METHODS]
                results = checked.results or tuple(unable)
                if not _is_open(results, needs_all=needs_all):
                    break
        finally:
            lookups.end()
        self._last_s[results[-1].result == UNABLE] = self._clock.real_s()
        for result in results:
            self._count("helo" if is_of_helo(result) else result.method, result.result).inc()
        return results

    def close(self) -> None:
        """End the worker processes."""
        self._workers.close()

    async def _attempt(self, checked: _Checked, content: Content) -> str:
        """Find the results, as far as this relay is able to. Return why it may not be."""
        with ContainedErrors(_log, "a sender could not be checked"):
            try:
                async with asyncio.timeout(ATTEMPT_S):  # real time: name servers, a child
                    parse = partial(ParsedContent.of, content)
                    checked.read(parse() if has_short_header(content) else await to_thread(parse))
                    await self._find(checked)
            except TimeoutError:
                return f"no result within {ATTEMPT_S:g} s"
            except OSError as error:
                return str(error)
        return "internal error"

    async def _find(self, checked: _Checked) -> None:
        """Find the results. Raises OSError."""
        lookups, question = checked.lookups, checked.question
        lookups.begin()
        rest_s = self._clock.real_s() + (inf if checked.needs_all else _REST_S)
        key = (question.ip, question.helo, question.sender.rpartition("@")[2])
        if needed := self._needed.get(key):
            for name, is_kept in needed.items():
                lookups.ask([name], is_kept=is_kept)
            await lookups.wait(list(needed), _NEEDED_S)
        is_whole = checked.is_small
        while True:
            reply = await self._reply(checked, is_whole=is_whole)
            if not reply.lacking and is_whole:
                # what leaves too few questions for the next message is not remembered
                is_usual = len(lookups.asked) <= QUESTIONS_MAX // 2
                self._needed[key] = lookups.asked if is_usual else {}
                return
            now_s, may_pass = self._clock.real_s(), _may_pass(reply.results)
            if may_pass and now_s >= rest_s:
                rest_s = inf
                last = await self._reply(checked, is_whole=True, is_last=True)
                if has_aligned_pass(last.results):
                    known = [result for result in last.results if result.result != UNABLE]
                    checked.results = tuple(known)
                    return
            is_whole = checked.is_small or not reply.lacking
            lookups.ask(reply.lacking[: reply.kept], is_kept=True)
            lookups.ask(reply.lacking[reply.kept :], is_kept=False)
            lookups.ask(reply.early, is_kept=True)
            await lookups.wait(reply.lacking, rest_s - now_s if may_pass else inf)

    async def _reply(
        self, checked: _Checked, *, is_whole: bool, is_last: bool = False
    ) -> CheckReply:
        """Ask a worker. Raises OSError."""
        make_request = partial(checked.request, is_whole=is_whole, is_last=is_last)
        client = client_of(checked.question.ip)
        reply = _read_reply(await self._workers.ask(make_request, client=client))
        checked.results = reply.results
        return reply


def _is_open(results: Sequence[AuthResult], *, needs_all: bool) -> bool:
    """Return whether it is worth another attempt."""
    if needs_all:
        return any(result.result == UNABLE for result in results)
    return results[-1].result == UNABLE and may_be_honest(results)


def _may_pass(results: Sequence[AuthResult]) -> bool:
    """Return whether an aligned method has passed, or lacks only its computation."""
    author = results[-1].domain("header.from")
    return any(
        may_be_aligned(domain_shown(result), author)
        and (result.result == "pass" or result.reason == NOT_COMPUTED)
        for result in results
    )


def _asking(header: Header) -> bytes:
    """Return what each round reads of a long header."""
    asking, left = list[bytes](), _SMALL_OCTETS
    for wanted in _ASKING:
        for name, field in header.fields:
            if name == wanted and is_asked(field) and left >= len(field):
                asking.append(field)
                left -= len(field)
    return b"".join(asking)


def _body(rest: bytes | LargeContent) -> bytes:
    """Return the body without the blank line before it. Raises UnreadableError."""
    octets = rest if isinstance(rest, bytes) else b"".join(octets_in_blocks(rest.body))
    return octets[len(_CRLF) :]


def _known(answer: Answer) -> KnownAnswer:
    if isinstance(answer, NoAnswer):
        return KnownAnswer(failure=answer.text, is_own=answer.is_own or answer.is_refused)
    values = answer.values if isinstance(answer, Records) else ()
    octets = [value.encode("utf-8", "surrogateescape") for value in values]
    return KnownAnswer(octets, has_name=not isinstance(answer, NoName))
