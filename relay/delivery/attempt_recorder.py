"""Record attempts: commit outcomes, reports and events in one transaction.

Which recipients are final is decided in `attempt_result`, who gets a report in
relay/delivery/reports/bounces.py.

A final status and its report (bounce) are one transaction. A report of success waits for the end of
the attempt: until then the spool records that it is owed, so that one report names all recipients.
Late mail gets one delay report, which names the recipients of all entries of the message.

Each method returns when it is committed, and none raises. A spool that fails is retried with
growing pauses, until stop_retrying(); the next start recovers the claim then as indeterminate. Each
attempt, of deferred mail too, is counted in the metric relay_attempts_total and logged.
See RFC 3461 6; docs/design.md 4 and 7, invariants 1 and 5.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from itertools import chain, repeat
from types import MappingProxyType
from zlib import crc32

from msgspec import Struct
from msgspec.structs import replace

from relay.base.clock import Clock
from relay.base.message.address import own_mailbox
from relay.base.message.content import LargeContent, UnreadableError, octets_in_blocks, octets_of
from relay.base.message.envelope import Source
from relay.base.message.nexthop import NextHop
from relay.base.message.outcome import UNRECORDED, Deferred, Indeterminate, Outcome, Success
from relay.base.observe.logs import ContainedErrors, RepeatedError, get_logger
from relay.base.observe.metrics import Metrics
from relay.base.task_set import TaskSet
from relay.delivery.active_queue import ClaimsInMemory
from relay.delivery.attempt_result import (
    OUTCOME_NAMES,
    AttemptResult,
    AttemptTime,
    Lookup,
    expiry_result,
    fallback_us,
    late_elsewhere,
    partial_result,
    postponed_warning,
    requeue_result,
    result_of_attempt,
    unrecorded_result,
)
from relay.delivery.content_cache import ContentCache
from relay.delivery.retry import RetrySchedule
from relay.formats import read_report
from relay.formats.dsn import UNREADABLE, ReportedRecipient, ReportKind
from relay.store.journeys.events import Event
from relay.store.spool.engine import SpoolEngine
from relay.store.spool.types import Claim, ClaimResult, Key, NewMessage, ReportWriter, SpoolError
from relay.transport.routing.routes import Fallback

_log = get_logger("delivery")
_PAUSE_S_FIRST = 0.2
_PAUSE_S_MAX = 10.0
_LOCKS = 64
_NO_OUTCOMES: Mapping[int, Outcome] = MappingProxyType({})


class EndedClaim(Struct, frozen=True):
    """What follows from the end of a claim. `reports` are claimed already. `due_us` is when the
    entry is due again, None if it is final or not known. `is_final`: it has ended. `has_unclaimed`:
    some reports in the spool are not claimed, because they are held or captured.
    """

    reports: tuple[Claim, ...] = ()
    due_us: int | None = None
    is_final: bool = False
    has_unclaimed: bool = False


_UNKNOWN_END = EndedClaim()


@dataclass(eq=False)
class AttemptRecorder:
    """Computes the results of attempts and commits them."""

    spool: SpoolEngine  # where attempts become durable
    contents: ContentCache  # of the messages that reports are about
    reporter: ReportWriter  # writes the reports
    _: KW_ONLY
    schedule: RetrySchedule  # when recipients are retried
    clock: Clock  # for the times of attempts
    metrics: Metrics  # counts attempts and recipients
    # where mail goes if no host of its next hop answers: RouteTable.fallback_for()
    fallback_for: Callable[[NextHop], Fallback | None]
    hostname: str = ""  # of this relay
    claims_reports: bool = True  # False while delivery drains: reports wait in the spool
    # called when a claim has ended, with whether an attempt reached a host (None: there was none);
    # its result is durable, unless the spool failed until the stop
    ended: Callable[[Claim, EndedClaim, bool | None], None] = lambda *_ended: None
    # what the last lookup for a claim gave
    lookup_of: Callable[[Claim], Lookup | None] = lambda _claim: None
    # the mailbox that mail for an address goes to: RouteTable.mailbox_for()
    mailbox_for: Callable[[str], str | None] = lambda _address: None
    complaints: str = ""  # the address to which complaints about the mail of all come
    # called with the queue id of each message whose state has changed
    on_change: Callable[[str], None] = lambda _queue_id: None

    def __post_init__(self) -> None:
        self.claims = ClaimsInMemory()  # where each waits
        self.unfinished = TaskSet()
        self._stopped = asyncio.Event()
        self._spool_fault = RepeatedError()  # logged once for all claims that wait
        self._owed: dict[tuple[Key, int], tuple[ReportedRecipient, ...]] = {}  # key, epoch
        self._warning = [asyncio.Lock() for _ in range(_LOCKS)]  # by message

    def stop_retrying(self) -> None:
        """Stop retrying a spool that fails: the next start recovers what is not recorded."""
        self._stopped.set()

    def begin(self, recording: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Record in the background; a stop waits for it."""
        return self.unfinished.start(recording)

    async def finish(self, recordings: Iterable[Coroutine[None, None, None]]) -> None:
        """Begin these, and wait for them; they go on if this is cancelled."""
        if tasks := [self.begin(recording) for recording in recordings]:
            await asyncio.wait(tasks)

    async def record(
        self,
        claim: Claim,
        outcomes: Mapping[int, Outcome],
        *,
        reached: bool,
        paused_until_us: int = 0,
        took_s: float | None = None,
        unanswered_s: float | None = None,
    ) -> None:
        """Record an attempt; `reached` and `took_s` as for result_of_attempt(). The next attempt is
        not before the site's pause ends. `unanswered_s`: for how long no host has answered; None:
        one did.
        """
        lookup, fallback = self.lookup_of(claim), self.fallback_for(claim.next_hop)
        schedule = self.schedule
        if paused_until_us:
            schedule = replace(schedule, earliest_us=paused_until_us)
        if fallback is not None:
            now_us = self.clock.queue_us()
            when_us = fallback_us(claim, fallback, lookup, now_us=now_us, unanswered_s=unanswered_s)
            schedule = replace(schedule, fallback_us=when_us)

        def result() -> AttemptResult:
            time = self._time(took_s, lookup)
            return result_of_attempt(claim, outcomes, time=time, schedule=schedule, reached=reached)

        await self._end(claim, result, outcomes, reached=reached)

    async def record_some(
        self, claim: Claim, outcomes: Mapping[int, Success], *, took_s: float
    ) -> None:
        """Record recipients that have the message; the attempt goes on with the others. After an
        internal error they are indeterminate.
        """
        await self._recorded(
            claim,
            partial(self._record_some, claim, outcomes, took_s),
            partial(self._record_some, claim, dict.fromkeys(outcomes, UNRECORDED), None),
        )
        self.on_change(claim.message.id)

    async def expire(self, claim: Claim) -> None:
        """Record an expired claim."""
        await self._end(claim, lambda: expiry_result(claim, time=self._time()))

    async def requeue(self, claim: Claim) -> None:
        """Requeue a claim without an attempt; report its delay once, when that is due."""
        await self._end(claim, lambda: requeue_result(claim, time=self._time()))

    def end_unattempted(self, claim: Claim, now_us: int) -> None:
        """Begin to record the end of a claim without an attempt, which `now_us` may have ended."""
        self.begin(self.expire(claim) if now_us >= claim.expires_us else self.requeue(claim))

    def postpone(self, claims: Iterable[Claim], until_us: int) -> None:
        """Begin to requeue claims that were not attempted: their site is paused until this queue
        time. Those that have expired end.
        """
        now_us = self.clock.queue_us()
        for claim in claims:
            self.end_unattempted(replace(claim, retry_us=until_us), now_us)

    async def release(self, *claims: Claim) -> None:
        """Release claims without an attempt, at a stop; their due times stay."""
        if not claims:  # the spool is not open if the start failed
            return
        try:
            await self.spool.release(claims)
        except SpoolError as error:  # the next start releases them
            _log.warning("claims not released", claims=len(claims), error=str(error))
        for claim in claims:
            self.contents.release(claim)
            self.ended(claim, EndedClaim(due_us=claim.due_us), None)

    async def _end(
        self,
        claim: Claim,
        result: Callable[[], AttemptResult],
        outcomes: Mapping[int, Outcome] = _NO_OUTCOMES,
        *,
        reached: bool | None = None,
    ) -> None:
        """Record the result that ends a claim; after an internal error, unrecorded_result()."""
        end = await self._recorded(
            claim,
            lambda: self._record(claim, result()),
            lambda: self._record(claim, unrecorded_result(claim, outcomes, time=self._time())),
        )
        self.ended(claim, end, reached)
        self.on_change(claim.message.id)

    async def _recorded(
        self,
        claim: Claim,
        record: Callable[[], Awaitable[EndedClaim]],
        after_fault: Callable[[], Awaitable[EndedClaim]],
    ) -> EndedClaim:
        """Return what was recorded, by `after_fault` after an internal error; until that succeeds,
        no other task has the claim.
        """
        qid, entry = claim.message.id, claim.entry_id
        fault, pause_s = RepeatedError(), _PAUSE_S_FIRST
        for attempt in chain((record,), repeat(after_fault)):
            try:
                return await attempt()
            except SpoolError as error:
                _log.warning("claim left unsettled", qid=qid, entry=entry, error=str(error))
                break
            except Exception as error:  # noqa: BLE001 - an internal error
                if fault.is_new(error):
                    _log.exception("internal error in settlement", qid=qid, entry=entry)
            if self._stopped.is_set():
                break
            pause_s = await self._pause(pause_s)
        return _UNKNOWN_END

    async def _record_some(
        self, claim: Claim, outcomes: Mapping[int, Outcome], took_s: float | None
    ) -> EndedClaim:
        time = self._time(took_s, self.lookup_of(claim))
        result = partial_result(claim, outcomes, time=time)
        in_time, _ = await self._write(result.commit)
        if in_time:
            if result.commit.owed:
                succeeded = chain.from_iterable(result.reported.values())
                self._owed[claim.key, claim.epoch] = (*self._owed_by(claim), *succeeded)
            self._count_and_log(claim, result)
        return _UNKNOWN_END

    def _time(self, took_s: float | None = None, lookup: Lookup | None = None) -> AttemptTime:
        return AttemptTime(self.clock.queue_us(), self.clock.time_us(), took_s, lookup)

    async def _record(self, claim: Claim, result: AttemptResult) -> EndedClaim:
        own = result.late
        if own is None:  # nearly always
            return await self._record_with(claim, result, late=())
        lock = self._warning[crc32(claim.message.id.encode()) % _LOCKS]
        async with lock:  # its other entries may be late at the same moment
            try:
                waiting = await self.spool.late_recipients(claim.key)
            except SpoolError as error:
                _log.error("delay not reported yet", qid=claim.message.id, error=str(error))
                return await self._record_with(claim, postponed_warning(result), late=())
            late = own + late_elsewhere(claim, waiting) if waiting else ()
            return await self._record_with(claim, result, late=late)

    async def _record_with(
        self, claim: Claim, result: AttemptResult, *, late: tuple[ReportedRecipient, ...]
    ) -> EndedClaim:
        """Record a result; the delay report, if any, is about `late`."""
        commit, reported = result.commit, {**result.reported, ReportKind.DELAYED: late}
        if owed := self._owed_by(claim):  # rarely
            for kind in (ReportKind.DELIVERED, ReportKind.RELAYED):
                is_delivered = kind is ReportKind.DELIVERED
                before = [recipient for recipient in owed if recipient.is_delivered == is_delivered]
                reported[kind] = (*before, *reported.get(kind, ()))
        reports, events = await self._reports(claim, reported)
        commit = replace(
            commit,
            reports=reports,
            events=(*commit.events, *events),
            pays=bool(owed),
            remote_report=await self._remote_report(claim, commit.outcomes),
        )
        in_time, claims = await self._write(commit)
        self._owed.pop((claim.key, claim.epoch), None)
        self.contents.release(claim)
        if not in_time:
            _log.warning(
                "settlement ignored: the claim has another owner",
                qid=claim.message.id,
                entry=claim.entry_id,
            )
            return _UNKNOWN_END
        if commit.held:
            in_doubt = any(isinstance(known, Indeterminate) for known in commit.outcomes.values())
            why = "outcome not recorded" if in_doubt else "content unreadable"
            _log.error(f"message held: {why}", qid=claim.message.id)
        self._count_and_log(claim, result)
        due_us = commit.waiting.due_us if commit.waiting else None
        has_unclaimed = len(claims) < sum(len(report.entries) for report in reports)
        return EndedClaim(claims, due_us, due_us is None, has_unclaimed)

    async def _write(self, claim_result: ClaimResult) -> tuple[bool, tuple[Claim, ...]]:
        pause_s = _PAUSE_S_FIRST
        while True:
            try:
                recorded = await self.spool.record(claim_result, claim_reports=self.claims_reports)
            except SpoolError as error:
                if self._spool_fault.is_new(error):
                    qid = claim_result.claim.message.id
                    _log.error("spool cannot settle", qid=qid, error=str(error))
                if self._stopped.is_set():
                    raise
                pause_s = await self._pause(pause_s)
            else:
                self._spool_fault.clear()
                return recorded

    async def _pause(self, pause_s: float) -> float:
        """Wait, or until stop_retrying(); return the next pause."""
        await self.clock.wait(self._stopped, pause_s)
        return min(pause_s * 2, _PAUSE_S_MAX)

    async def _remote_report(
        self, claim: Claim, outcomes: Mapping[int, Outcome]
    ) -> tuple[read_report.RemoteReport, tuple[str, ...]] | None:
        """Return what a report from another host says about a message, and the recipients whose
        mailboxes here this attempt put it into. None for other mail and for Relay's own reports. No
        content prevents the delivery.
        """
        facts = claim.message
        if facts.source is Source.REPORT:
            return None
        to = tuple(
            recipient.path.address
            for recipient in claim.recipients
            if recipient.id in outcomes and outcomes[recipient.id].evidence.graph_id
        )
        if not to:
            return None
        try:
            content = await self.contents.of(claim)
            is_feedback = read_report.is_feedback_report(content)
            if facts.envelope.reverse_path and not is_feedback:
                return None
            to = self._complained_to(to) if is_feedback else to
            read = read_report.read_feedback if is_feedback else read_report.read_remote_report
            report = await asyncio.to_thread(read, octets_of(content))
        except (SpoolError, OSError) as error:
            _log.error("a report that came in cannot be read", qid=facts.id, error=str(error))
        except Exception:  # noqa: BLE001 - no content may prevent its delivery
            _log.exception("internal error in reading a report that came in", qid=facts.id)
        else:
            return (report, to) if report is not None else None
        return None

    def _complained_to(self, addresses: Sequence[str]) -> tuple[str, ...]:
        """Return the addresses and their mailboxes; () if that of complaints is one of these."""
        boxes = {own_mailbox(self.mailbox_for(address) or address) for address in addresses}
        if self.complaints and own_mailbox(self.mailbox_for(self.complaints) or "") in boxes:
            return ()
        return (*boxes, *map(own_mailbox, addresses))

    def _owed_by(self, claim: Claim) -> tuple[ReportedRecipient, ...]:
        """Return the recipients of earlier partial results that a report of success must name."""
        return self._owed.get((claim.key, claim.epoch), claim.owed)

    async def _reports(
        self, claim: Claim, recipients: Mapping[ReportKind, Sequence[ReportedRecipient]]
    ) -> tuple[tuple[NewMessage, ...], tuple[Event, ...]]:
        """Return the reports about `recipients`; their content is read only if there are any."""
        due = {kind: group for kind, group in recipients.items() if group}
        if not due:
            return (), ()
        try:
            content = await self.contents.of(claim, for_report=True)
            if isinstance(content, LargeContent):  # it existed when the attempt began
                await asyncio.to_thread(_check_readable, content)
        except (SpoolError, UnreadableError) as error:
            _log.error("content unreadable for a report", qid=claim.message.id, error=str(error))
            content = UNREADABLE
        messages: list[NewMessage] = []
        events: list[Event] = []
        for kind, group in due.items():
            try:
                plan = self.reporter.reports(kind, claim.message, group, content=content)
            except Exception:  # noqa: BLE001 - no content may prevent its report
                _log.exception("internal error in a report", qid=claim.message.id)
                plan = self.reporter.reports(kind, claim.message, group, content=UNREADABLE)
            messages += plan.messages
            entry = claim.entry_id if kind is ReportKind.DELAYED else 0
            events += (
                replace(event, detail=replace(event.detail, entry=entry)) for event in plan.events
            )
        return tuple(messages), tuple(events)

    def _count_and_log(self, claim: Claim, result: AttemptResult) -> None:
        """Count the attempt and log it, one line per recipient.

        The names of the fields are Postfix's where they fit. The attempt is recorded: an
        error here must not record it again.
        """
        qid, commit = claim.message.id, result.commit
        delay_s = (result.time.now_us - claim.message.received_us) / 1_000_000
        outcomes, counts = {**commit.expired, **commit.outcomes}, Counter[tuple[str, str]]()
        with ContainedErrors(_log, "internal error in logging an outcome", qid=qid):
            addresses = {recipient.id: recipient.path.address for recipient in claim.recipients}
            numbers_of: dict[int, list[int]] = {}  # that share an outcome
            for number, outcome in outcomes.items():
                numbers_of.setdefault(id(outcome), []).append(number)
            for numbers in numbers_of.values():
                outcome, is_expired = outcomes[numbers[0]], numbers[0] in commit.expired
                name = "expired" if is_expired else OUTCOME_NAMES[type(outcome)]
                kind = outcome.kind if isinstance(outcome, Deferred) else ""
                counts[name, kind] += len(numbers)
                evidence = outcome.evidence
                encoded = {"encoded": evidence.encoded} if evidence.encoded else {}
                _log.info_of_each(
                    "recipient",
                    "to",
                    [addresses[number] for number in numbers],
                    qid=qid,
                    to="",
                    status=name,
                    relay=evidence.host or str(claim.next_hop),
                    delay_s=round(delay_s, 3),
                    dsn=evidence.status,
                    reply=evidence.reply,
                    **encoded,
                )
        for (name, kind), count in counts.items():
            if name != "expired":
                self.metrics.attempts_by(name, kind).inc(count)
            if name in {"delivered", "relayed", "failed", "expired"}:
                self.metrics.recipients_by(name).inc(count)
            if name in {"delivered", "relayed", "captured"}:
                self.metrics.delivery_seconds.observe_times(max(0.0, delay_s), count)


def _check_readable(content: LargeContent) -> None:
    """Raise UnreadableError if the body's file was removed: the report is then sent without it."""
    next(octets_in_blocks(content.body, block_bytes=1), b"")
