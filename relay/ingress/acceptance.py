"""Step 5: examine, apply the rules, fan out, and make it all durable before the 250.

On the path: a session (SMTP or pickup's) hands a message in; delivery gets its claims.
Holds: 250 only behind one spool transaction with message, entries and the reports already due.
Fails: every fault is a reply: 451 or 452 for ours, 5xx for the message's; never exception text.
Standards: RFC 5321 4.2.5, 6.1, 6.3; RFC 3461 5; RFC 6409 8.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from relay.clock import Clock, Ids
from relay.ingress import header_cleanup
from relay.ingress.authorization import Passwords, refused_header
from relay.ingress.data import HEADER_BYTES_MAX, Decision, Origin, Refusal
from relay.ingress.fanout import FanOut, fan_out, judge, reported
from relay.journeys.events import Event, Step
from relay.message.content import Content, edited, in_sight, size_of
from relay.message.envelope import Client, Envelope, domain_of
from relay.message.nexthop import NextHop
from relay.message.reporting import ReportedMessage, ReportedRecipient
from relay.message.verdict import Examined, Source, Subject, Verdict
from relay.mime import headers
from relay.mime.encodedwords import decode_words
from relay.mime.priority import Priority, priority_of
from relay.observe.logs import get_logger
from relay.observe.metrics import Metrics
from relay.policy import TooManyPartsError
from relay.routing.route_table import Examination, InvalidRecipient, LocalRecipient, RouteTable
from relay.spool.types import (
    Accepted,
    Claim,
    NewMessage,
    Spool,
    SpoolFullError,
    SpoolUnavailableError,
)
from relay.spool.waiting import Lane

_log = get_logger("ingress")
RECEIVED_MAX = 100  # RFC 5321 6.3: a loop
_QUICK_HEADER_BYTES = 16384  # its fields are found in some milliseconds
_INLINE_BYTES = 65536  # rules read so much faster than a thread is asked
_POLICY_TIMEOUT_S = 10.0
_POLICY_THREADS = 2
_CLAIMED_MAX = 100  # entries of one message as claims: room is asked for each of them alone
_NAMED_MAX = 100  # addresses per next hop in an event, which stays small
_SUBJECT_CHARACTERS_MAX = 200
_SUBJECT_OCTETS_MAX = 8192  # more than so many characters may need, however they are encoded

_LOCAL_ERROR = Decision(Refusal.LOCAL_ERROR)
_NO_POLICY = Decision("451 4.7.1 The mail rules could not be applied, try again later")
_TOO_MANY_PARTS = Decision(
    "554 5.6.0 The message has too many MIME parts, or nests them too deeply"
)
_LONG_HEADER = Decision(Refusal.LONG_HEADER)
_NO_ROOM = Decision(Refusal.QUEUE_FULL)
_LOOP = Decision("554 5.4.6 Routing loop detected: too many Received fields")


class Policy(Protocol):
    """The mail-flow rules: relay.policy's RuleSet."""

    def evaluate(self, subject: Subject) -> Verdict:
        """Decide; may raise anything, which is 451 4.7.1."""
        ...


class ReportPlan(Protocol):
    """The reports that are due already, and the events that tell of them."""

    @property
    def messages(self) -> tuple[NewMessage, ...]:
        """Each is routed and ready for the spool."""
        ...

    @property
    def events(self) -> tuple[Event, ...]:
        """They belong to the original message."""
        ...


class Reporter(Protocol):
    """Who hears of failures: relay.reports' Reporter."""

    def failures(
        self,
        message: ReportedMessage,
        *,
        trusted: bool,
        source: Source,
        account: str,
        recipients: Sequence[ReportedRecipient],
    ) -> ReportPlan:
        """Decide who gets a report, and write it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """Takes responsibility for messages, or says why not.

    `policy` returns the rules in force. With a `delay_warning_after_s` of 0 nobody hears of delays.
    `has_room` says whether delivery can take a claim now, for a next hop, of a sender, in a lane;
    `on_accepted` gets those of what was committed, and `on_waiting` what waits in the spool as due
    instead.
    """

    hostname: str
    router: RouteTable
    policy: Callable[[], Policy]
    reporter: Reporter
    spool: Spool
    accounts: Passwords
    clock: Clock
    ids: Ids
    metrics: Metrics
    on_accepted: Callable[[Sequence[Claim]], None]
    expire_after_s: float
    delay_warning_after_s: float = 0.0
    on_waiting: Callable[[Sequence[NewMessage]], None] = lambda _messages: None
    lane_of: Callable[[NextHop, int, Lane], Lane] = lambda _next_hop, _sender, lane: lane
    has_room: Callable[[NextHop, int, Lane], bool] = lambda _next_hop, _sender, _lane: True
    policy_timeout_s: float = _POLICY_TIMEOUT_S
    threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_POLICY_THREADS, thread_name_prefix="policy"),
        init=False,
    )

    def close(self) -> None:
        """Let the threads go."""
        self.threads.shutdown(wait=False, cancel_futures=True)

    async def accept(self, envelope: Envelope, content: Content, origin: Origin) -> Decision:
        """Return the reply to the final dot; with a queue id it is durable. Never raises."""
        try:
            return await self._accept(envelope, content, origin)
        except SpoolFullError:
            return _NO_ROOM
        except SpoolUnavailableError as error:
            _log.warning("spool unavailable", error=error)
            return _LOCAL_ERROR
        except Exception:  # noqa: BLE001 -- whatever it was, the client keeps the message
            _log.exception("acceptance failed", client=origin.ip)
            return _LOCAL_ERROR

    async def _accept(self, envelope: Envelope, content: Content, origin: Origin) -> Decision:
        known = in_sight(content)
        if headers.split(known) > HEADER_BYTES_MAX:
            return _LONG_HEADER
        if header_cleanup.is_looping(known, RECEIVED_MAX):
            return _LOOP
        if origin.login and (refusal := await self._refusal_of_author(known, origin)):
            return Decision(refusal)
        queue_id, now_us = self.ids.new(), self.clock.steady_us()
        content = edited(
            content,
            lambda content: header_cleanup.prepare(
                content,
                envelope,
                origin,
                hostname=self.hostname,
                queue_id=queue_id,
                time_us=self.clock.time_us(),
            ),
        )
        examinations = [self.router.examine(path.address) for path in envelope.forward_paths]
        verdict = await self._evaluate(
            self._subject(envelope, content, origin, examinations=examinations)
        )
        if isinstance(verdict, Decision):
            return verdict
        judged = judge(envelope.forward_paths, examinations, verdict)
        fan = fan_out(judged, verdict, self.router.examine)
        self._count_rules(verdict)
        if fan.refuses_all and not origin.pickup:  # the client is still there to hear it
            return Decision(fan.refused[0].reply)
        event = _step5(
            verdict, fan, self.clock.time_us(), client=None if origin.pickup else origin.client
        )
        message = self._message(
            envelope, origin, fan, content=content, event=event, queue_id=queue_id, time_us=now_us
        )
        if not fan.refused:
            return await self._commit(message, (), origin.client)
        plan = self._reports(message, fan, content=content)
        message = replace(message, events=(event, *plan.events))
        return await self._commit(message, plan.messages, origin.client)

    async def _refusal_of_author(self, known: bytes, origin: Origin) -> str:
        """Return why the account may not send this, in a thread where the header is long."""
        header = known[: headers.split(known)]
        if len(header) <= _QUICK_HEADER_BYTES:
            return refused_header(self.accounts, origin.login, header)
        return await asyncio.to_thread(refused_header, self.accounts, origin.login, header)

    def _subject(
        self,
        envelope: Envelope,
        content: Content,
        origin: Origin,
        *,
        examinations: Sequence[Examination],
    ) -> Subject:
        # A stranger may write any domain into MAIL FROM: that makes nobody one of ours.
        claims_local = self.router.is_local_domain(domain_of(envelope.reverse_path))
        return Subject(
            reverse_path=envelope.reverse_path,
            sender_local=claims_local and origin.trusted,
            recipients=tuple(
                Examined(path.address, isinstance(found, LocalRecipient))
                for path, found in zip(envelope.forward_paths, examinations, strict=True)
                if not isinstance(found, InvalidRecipient)
            ),
            content=content,
            source=origin.source,
        )

    async def _evaluate(self, subject: Subject) -> Verdict | Decision:
        """Apply the rules, bounded in time; a Decision when they could not be."""
        if not subject.recipients:
            return Verdict((), (), (subject.content,), ())
        rules = self.policy()
        try:
            if size_of(subject.content) <= _INLINE_BYTES:
                return rules.evaluate(subject)
            async with asyncio.timeout(self.policy_timeout_s):
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self.threads, rules.evaluate, subject)
        except TooManyPartsError:
            return _TOO_MANY_PARTS
        except TimeoutError:
            _log.error("policy timed out", size_bytes=size_of(subject.content))
        except Exception:  # noqa: BLE001 -- a rule may fail in any way; no message slips past it
            _log.exception("policy failed")
        return _NO_POLICY

    def _message(
        self,
        envelope: Envelope,
        origin: Origin,
        fan: FanOut,
        *,
        content: Content,
        event: Event,
        queue_id: str,
        time_us: int,
    ) -> NewMessage:
        """Return what the spool keeps; `content` is what the rules were asked about."""
        address = f" [{origin.ip}]" if origin.ip else ""
        known = in_sight(content)
        return NewMessage(
            id=queue_id,
            reverse_path=envelope.reverse_path,
            source=origin.source,
            trusted=origin.trusted,
            received_us=time_us,
            expires_us=time_us + int(self.expire_after_s * 1_000_000),
            contents=fan.contents,
            entries=fan.entries,
            final_recipients=fan.final_recipients,
            account=self._account_of(envelope, origin),
            submission_id=envelope.envid if origin.pickup else "",
            envid=envelope.envid,
            ret=envelope.ret,
            smtputf8=envelope.smtputf8,
            eight_bit=envelope.eight_bit,
            client="" if origin.pickup else f"{origin.helo}{address}",
            message_id=_message_id(known),
            subject=_subject(known),
            events=(event,),
            priority=self._priority(origin, fan),
            warn_us=self._warn_us(envelope, origin, time_us),
        )

    def _priority(self, origin: Origin, fan: FanOut) -> Lane:
        """Return what the message asks for, as the rules left it; strangers ask in vain."""
        if not origin.trusted:
            return Lane.NORMAL
        priority = priority_of(in_sight(fan.contents[0]))
        return Lane.NORMAL if priority is Priority.NORMAL else Lane(priority)

    def _warn_us(self, envelope: Envelope, origin: Origin, received_us: int) -> int | None:
        """Return when the sender would hear that it is late: of who would hear of its failure."""
        after_s = self.delay_warning_after_s
        if not (origin.trusted and envelope.reverse_path) or not 0 < after_s < self.expire_after_s:
            return None
        return received_us + int(after_s * 1_000_000)

    def _account_of(self, envelope: Envelope, origin: Origin) -> str:
        """Return whose message it is: who logged in, or the trusted reverse-path's account."""
        if origin.login or not origin.trusted:
            return origin.login
        account = self.accounts.by_address(envelope.reverse_path)
        return account.address if account else ""

    def _reports(self, message: NewMessage, fan: FanOut, *, content: Content) -> ReportPlan:
        about = ReportedMessage(
            queue_id=message.id,
            reverse_path=message.reverse_path,
            envid=message.envid,
            ret=message.ret,
            arrival_us=message.received_us,
            client=message.client,
            content=content,
        )
        return self.reporter.failures(
            about,
            trusted=message.trusted,
            source=message.source,
            account=message.account,
            recipients=[reported(each) for each in fan.refused],
        )

    async def _commit(
        self, message: NewMessage, reports: Sequence[NewMessage], client: Client
    ) -> Decision:
        """Make it durable, then hand its claims on; the spool counts messages, we recipients."""
        message, sender = self._in_lanes(message), message.sender_key
        claim = len(message.entries) <= _CLAIMED_MAX and all(
            self.has_room(entry.next_hop, sender, message.lane_of(entry))
            for entry in message.entries
        )
        accepted = await self.spool.accept(
            message,
            reports=reports,
            submission_key=message.submission_id,
            claim=claim,
        )
        if not accepted.repeated:
            self._log_accepted(message, client)
            for recipient in message.final_recipients:
                self.metrics.recipients.labels(outcome=recipient.state).inc()
        self._hand_on(accepted, () if claim or accepted.repeated else (message, *reports))
        return Decision(f"250 2.0.0 Ok: queued as {accepted.queue_id}", accepted.queue_id)

    def _in_lanes(self, message: NewMessage) -> NewMessage:
        """The message, with another lane for entries that wait elsewhere than its priority says."""
        usual, sender = message.priority, message.sender_key
        lanes = [self.lane_of(entry.next_hop, sender, usual) for entry in message.entries]
        if lanes.count(usual) == len(lanes):  # nearly always
            return message
        pairs = zip(message.entries, lanes, strict=True)
        return replace(message, entries=tuple(replace(one, lane=lane) for one, lane in pairs))

    def _log_accepted(self, message: NewMessage, client: Client) -> None:
        """Log one line per message, with Postfix's terms where they fit."""
        people = sum(len(entry.recipients) for entry in message.entries)
        _log.info(
            "accepted",
            qid=message.id,
            sender=message.reverse_path,
            recipients=people + len(message.final_recipients),
            size_bytes=size_of(message.contents[0]),
            via=message.source,
            client=client.address,
            helo="" if message.submission_id else client.helo,
            login=client.account or message.account if message.submission_id else client.account,
            tls=client.tls,
            message_id=message.message_id,
        )

    def _hand_on(self, accepted: Accepted, waiting: Sequence[NewMessage]) -> None:
        try:
            self.on_accepted(accepted.claims)
            if waiting:
                self.on_waiting(waiting)
        except Exception:  # noqa: BLE001 -- it is ours by now, so the client must hear 250
            _log.exception("claims were not taken", qid=accepted.queue_id)

    def _count_rules(self, verdict: Verdict) -> None:
        for hit in verdict.hits:
            self.metrics.policy_rules.labels(rule=hit.rule, outcome=hit.outcome).inc()


def _message_id(content: bytes) -> str:
    found = headers.first(content, "Message-ID") or b""
    return found[: headers.LINE_OCTETS_MAX].decode("utf-8", "replace")


def _subject(content: bytes) -> str:
    """Return what the trace shows; a stranger may send a megabyte of encoded words."""
    found = headers.first(content, "Subject") or b""
    return decode_words(found[:_SUBJECT_OCTETS_MAX])[:_SUBJECT_CHARACTERS_MAX]


def _step5(verdict: Verdict, fan: FanOut, at_us: int, *, client: Client | None) -> Event:
    """Return the event of this step, without recipients that rules added.

    Where it does not name all of them, `counts` has how many there are. What came by pickup has its
    `client` in step 2.
    """
    next_hops: dict[str, list[str]] = {}
    for entry in fan.entries:
        people = [each.address for each in entry.recipients if not each.added_by]
        if people:
            next_hops.setdefault(str(entry.next_hop), []).extend(people)
    refused = [each for each in fan.refused if not each.added_by]
    detail: dict[str, Any] = {
        "rules": [hit.as_json() for hit in verdict.hits],
        "next_hops": {hop: people[:_NAMED_MAX] for hop, people in next_hops.items()},
    }
    if client is not None:
        detail["client"] = client.as_json()
    if refused:
        detail["refused"] = [
            {"address": each.address, "reply": each.reply} for each in refused[:_NAMED_MAX]
        ]
    sizes = {hop: len(people) for hop, people in next_hops.items()} | {"refused": len(refused)}
    if counts := {name: size for name, size in sizes.items() if size > _NAMED_MAX}:
        detail["counts"] = counts
    return Event(Step.POLICY_AND_ROUTING, at_us, detail)
