"""Make the end of an attempt durable: outcomes, reports and events in one transaction.

On the path: sites and local delivery bring outcomes; the spool commits; report claims come back.
Holds: a final status and its report are one transaction; returns only when it is committed.
Fails: never while delivery goes on: a spool that refuses is asked again with growing pauses until
    it agrees. With SpoolError after give_up().
Standards: RFC 3461 6; docs/design.md 4, invariants 1 and 5.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from relay.clock import Clock
from relay.delivery.attempt_result import (
    Conclusion,
    Moment,
    conclude,
    conclude_some,
    deferral_class,
    expire,
    outcome_name,
    put_back,
    unrecorded,
)
from relay.delivery.content_budget import Contents
from relay.delivery.dependencies import Reporter
from relay.delivery.retry import Schedule
from relay.journeys.events import Event
from relay.message.content import Content, LargeContent, UnreadableError, octets_in_blocks
from relay.message.lifecycle import State
from relay.message.outcome import (
    INTERNAL_ERROR,
    Delivered,
    Evidence,
    Indeterminate,
    Outcome,
    Relayed,
)
from relay.message.reporting import ReportedMessage
from relay.observe.lasting import LastingFault
from relay.observe.logs import get_logger
from relay.observe.metrics import Metrics
from relay.spool.types import Claim, NewMessage, Settlement, Spool, SpoolError

T = TypeVar("T")
_log = get_logger("delivery")
_PAUSE_S_FIRST = 0.2
_PAUSE_S_MAX = 10.0
_UNREADABLE = b"Subject: (the original message could not be read)\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Settled:
    """`reports` are claimed already; `due_us` is when the entry is looked at again,
    None if it is done.
    """

    reports: tuple[Claim, ...]
    due_us: int | None


class Settler:
    """Concludes attempts and writes them down."""

    def __init__(
        self,
        spool: Spool,
        contents: Contents,
        reporter: Reporter,
        *,
        schedule: Schedule,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._spool = spool
        self._contents = contents
        self._reporter = reporter
        self._schedule = schedule
        self._clock = clock
        self._metrics = metrics
        self._given_up = asyncio.Event()
        self._refusal = LastingFault()  # of all that wait: a queue may be full of them
        self.claims_reports = True  # False while delivery drains: they wait in the spool

    def give_up(self) -> None:
        """Ask a spool that refuses no more: the next start takes what is unsettled for in doubt."""
        self._given_up.set()

    async def attempted(
        self, claim: Claim, outcomes: Mapping[int, Outcome], *, reached: bool = True
    ) -> Settled:
        """Settle an attempt; `reached` as in conclude()."""
        moment = self._moment()
        conclusion = conclude(
            claim, outcomes, moment=moment, schedule=self._schedule, reached=reached
        )
        return await self._settle(claim, conclusion, moment)

    async def took_some(self, claim: Claim, outcomes: Mapping[int, Outcome]) -> None:
        """Settle those who have the message, or may; the attempt goes on with the others."""
        moment = self._moment()
        conclusion = conclude_some(claim, outcomes, moment=moment)
        settlement = Settlement(
            claim=claim, at_us=conclusion.at_us, outcomes=outcomes, events=conclusion.events,
            goes_on=True,
        )  # fmt: skip
        in_time, _ = await self._until_written(settlement)
        if in_time:
            self._tell(claim, conclusion, moment)

    async def unrecorded(self, claim: Claim, outcomes: Mapping[int, Outcome]) -> Settled:
        """Settle a claim whose settlement a fault of Relay's own broke off; as in conclude.

        Until that succeeds, no other task has the claim. Raises SpoolError after give_up().
        """

        async def settle() -> Settled:
            moment = self._moment()
            return await self._settle(claim, unrecorded(claim, outcomes, moment=moment), moment)

        return await self._insist(claim, settle)

    async def some_unrecorded(self, claim: Claim, outcomes: Mapping[int, Relayed]) -> None:
        """Record those as in doubt who have the message, where that could not be recorded."""
        in_doubt = Indeterminate(Evidence("4.3.0", f"451 4.3.0 {INTERNAL_ERROR}"))
        doubts = dict.fromkeys(outcomes, in_doubt)
        await self._insist(claim, lambda: self.took_some(claim, doubts))

    async def expired(self, claim: Claim) -> Settled:
        """Settle a claim whose time is over, untried."""
        moment = self._moment()
        return await self._settle(claim, expire(claim, moment=moment), moment)

    async def late(self, claim: Claim) -> Settled:
        """Put a claim back untried as it was, but that its delay is told, once, when it is time."""
        moment = self._moment()
        return await self._settle(claim, put_back(claim, moment=moment), moment)

    def _moment(self) -> Moment:
        return Moment(now_us=self._clock.steady_us(), at_us=self._clock.time_us())

    async def _settle(self, claim: Claim, conclusion: Conclusion, moment: Moment) -> Settled:
        reports, events = await self._reports(claim, conclusion)
        outcomes = conclusion.outcomes.values()
        settlement = Settlement(
            claim=claim,
            at_us=conclusion.at_us,
            outcomes=conclusion.outcomes,
            waiting=conclusion.waiting,
            expired=conclusion.expired,
            reports=reports,
            events=(*conclusion.events, *events),
            counts_as_attempt=bool(conclusion.outcomes),
            held=conclusion.held,
        )
        in_time, claims = await self._until_written(settlement)
        self._contents.release(claim)
        if not in_time:
            _log.warning("settled too late", qid=claim.message.id, entry=claim.entry_id)
            return Settled((), None)
        if conclusion.held and any(isinstance(one, Indeterminate) for one in outcomes):
            _log.error("message held: its outcome was not recorded", qid=claim.message.id)
        elif conclusion.held:
            _log.error("message held: it cannot be read", qid=claim.message.id)
        self._tell(claim, conclusion, moment)
        return Settled(claims, conclusion.waiting.due_us if conclusion.waiting else None)

    async def _until_written(self, settlement: Settlement) -> tuple[bool, tuple[Claim, ...]]:
        pause_s = _PAUSE_S_FIRST
        while True:
            try:
                settled = await self._spool.settle(settlement, claim_reports=self.claims_reports)
            except SpoolError as error:
                if self._refusal.is_news(error):
                    qid = settlement.claim.message.id
                    _log.error("spool refuses to settle", qid=qid, error=str(error))
                if self._given_up.is_set():
                    raise
                pause_s = await self._pause(pause_s)
            else:
                self._refusal.is_over()
                return settled

    async def _insist(self, claim: Claim, settle: Callable[[], Awaitable[T]]) -> T:
        """Settle, also after faults of Relay's own. Raises SpoolError after give_up()."""
        pause_s = _PAUSE_S_FIRST
        while True:
            try:
                return await settle()
            except SpoolError:
                raise
            except Exception as error:
                if self._refusal.is_news(error):
                    _log.exception("settlement broken off again", qid=claim.message.id)
                if self._given_up.is_set():
                    raise SpoolError(INTERNAL_ERROR) from error
            pause_s = await self._pause(pause_s)

    async def _pause(self, pause_s: float) -> float:
        """Wait, unless it was given up; return how long to wait the next time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._given_up.wait()
        return min(pause_s * 2, _PAUSE_S_MAX)

    async def _reports(
        self, claim: Claim, conclusion: Conclusion
    ) -> tuple[tuple[NewMessage, ...], tuple[Event, ...]]:
        if not conclusion.failed:
            return (), ()
        try:
            content = await self._contents.of(claim)
            if isinstance(content, LargeContent):  # it was there when the attempt began
                await asyncio.to_thread(_look_at, content)
        except (SpoolError, UnreadableError) as error:
            _log.error("content lost", qid=claim.message.id, error=str(error))
            content = _UNREADABLE
        try:
            return self._plan(claim, conclusion, content)
        except Exception:  # noqa: BLE001 - ours: no content may keep its failure from being told
            _log.exception("report broken off", qid=claim.message.id)
            return self._plan(claim, conclusion, _UNREADABLE)

    def _plan(
        self, claim: Claim, conclusion: Conclusion, content: Content
    ) -> tuple[tuple[NewMessage, ...], tuple[Event, ...]]:
        message = claim.message
        reported = ReportedMessage(
            queue_id=message.id, reverse_path=message.reverse_path, envid=message.envid,
            ret=message.ret, arrival_us=message.received_us, client=message.client,
            content=content,
        )  # fmt: skip
        plan = self._reporter.failures(
            reported, trusted=message.trusted, source=message.source, account=message.account,
            recipients=conclusion.failed,
        )  # fmt: skip
        return plan.messages, plan.events

    def _tell(self, claim: Claim, conclusion: Conclusion, moment: Moment) -> None:
        """Metrics and one log line per recipient, in Postfix's words where they fit.

        It is settled already: a fault here must not settle it again.
        """
        try:
            self._tell_all(claim, conclusion, moment)
        except Exception:  # noqa: BLE001 - ours
            _log.exception("outcome not logged", qid=claim.message.id)

    def _tell_all(self, claim: Claim, conclusion: Conclusion, moment: Moment) -> None:
        delay_s = (moment.now_us - claim.message.received_us) / 1_000_000
        for recipient in claim.recipients:
            outcome = conclusion.outcomes.get(recipient.id)
            if outcome is None:
                if recipient.id not in conclusion.expired:
                    continue
                outcome = conclusion.expired[recipient.id]
                name = str(State.EXPIRED)
            else:
                name = outcome_name(outcome)
                self._metrics.attempts.labels(name, deferral_class(outcome)).inc()
            if name in _FINAL_NAMES:
                self._metrics.recipients.labels(name).inc()
            if isinstance(outcome, Delivered | Relayed):
                self._metrics.delivery_seconds.observe(max(0.0, delay_s))
            evidence = outcome.evidence
            _log.info(
                "recipient", qid=claim.message.id, to=recipient.address, status=name,
                relay=evidence.host or str(claim.next_hop), delay_s=round(delay_s, 3),
                dsn=evidence.status, reply=evidence.reply,
            )  # fmt: skip


def _look_at(content: LargeContent) -> None:
    """Raise UnreadableError for a body that is gone: no report can be made of it, ever."""
    next(octets_in_blocks(content.body, block_bytes=1), b"")


_FINAL_NAMES = frozenset({"delivered", "relayed", "failed", "expired"})
