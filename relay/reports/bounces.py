"""Bounces: who gets a report on failed recipients, and the report as a message for the spool.

decide_reports() prevents loops and backscatter (RFC 5321 6.1 and 6.2, RFC 3461 4.1 and 6.1).
Reporter writes the report (RFC 3464) and routes it: it has the null reverse-path (RFC 5321 4.5.5),
one recipient with NOTIFY=NEVER, and a next hop. Ingress (step 5) and delivery (step 6) commit it
together with the failure; pickup puts the report on a failed step 3 into the Inbox.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from relay.clock import Clock, Ids, wall_offset_us
from relay.journeys.events import Event, Step
from relay.message.content import Content, is_eight_bit
from relay.message.envelope import Notify, wants_failure_report
from relay.message.header import Header
from relay.message.nexthop import LOCAL, NextHop
from relay.message.verdict import Source
from relay.mime.dsn import ReportedMessage, ReportedRecipient, write_dsn
from relay.mime.headers import decoded
from relay.observe.metrics import Metrics
from relay.spool.types import NewEntry, NewMessage, NewRecipient, ReportPlan

POSTMASTER = "postmaster"
_NAMED_MAX = 100  # addresses in an event, which must stay small
_SUBJECT_CHARACTERS_MAX = 200


@dataclass(frozen=True, slots=True)
class ReportDecision:
    """The failed recipients by what is done about them.

    `reported` go into the report to the reverse-path. `dead_letters` cause a copy of the message
    to the postmaster. `dropped` are reports that failed at the postmaster. Recipients in none of
    them cause no report, because of NOTIFY or because the sender is not trusted.
    """

    reported: tuple[ReportedRecipient, ...] = ()
    dead_letters: tuple[ReportedRecipient, ...] = ()
    dropped: tuple[ReportedRecipient, ...] = ()


def decide_reports(
    recipients: Sequence[ReportedRecipient], *, reverse_path: str, trusted: bool, source: Source
) -> ReportDecision:
    """Sort the failed `recipients` of one message.

    `trusted`: the sender was authenticated or in a listed network. Others get no reports, because a
    reverse-path is easily forged (backscatter).
    """
    if source is Source.REPORT:
        return ReportDecision(
            dead_letters=tuple(one for one in recipients if one.address != POSTMASTER),
            dropped=tuple(one for one in recipients if one.address == POSTMASTER),
        )
    may_report = trusted and bool(reverse_path)
    return ReportDecision(
        reported=tuple(
            one
            for one in recipients
            if may_report and not one.added_by and wants_failure_report(one.notify)
        ),
        # The sender does not know recipients that a rule added; the postmaster may.
        dead_letters=tuple(one for one in recipients if one.added_by),
    )


class Reporter:
    """Decides, writes and routes reports."""

    def __init__(
        self,
        *,
        hostname: str,
        clock: Clock,
        ids: Ids,
        next_hop_for: Callable[[str], NextHop | None],
        expire_after_s: float,
        metrics: Metrics,
    ) -> None:
        """`next_hop_for` returns None for an address that has no next hop."""
        self._hostname = hostname
        self._clock = clock
        self._ids = ids
        self._next_hop_for = next_hop_for
        self._expire_after_us = int(expire_after_s * 1_000_000)
        self._metrics = metrics

    def failures(
        self,
        message: ReportedMessage,
        *,
        trusted: bool,
        source: Source,
        account: str,
        recipients: Sequence[ReportedRecipient],
    ) -> ReportPlan:
        """Return what to commit for failed `recipients`: at most one report and one dead letter.

        `account` may see the trace of the failed message and of the report; a dead letter is for
        operators only. Recipients that a rule added leave no event, because the sender sees the
        trace.
        """
        decision = decide_reports(
            recipients, reverse_path=message.reverse_path, trusted=trusted, source=source
        )
        messages: list[NewMessage] = []
        events: list[Event] = []
        if decision.reported:
            report, event = self._report(message, decision.reported, account=account)
            messages.append(report)
            events.append(event)
        if decision.dead_letters:
            letter = self._message(message.content, _TO_POSTMASTER, about=message)
            messages.append(letter)
            self._count("dead-letter")
            if source is Source.REPORT:
                events.append(_event(letter, "dead-letter", decision.dead_letters))
        if decision.dropped:
            self._count("dropped")
            detail = {"kind": "dropped", "recipients": _named(decision.dropped)}
            events.append(Event(Step.REPORT, self._clock.time_us(), detail))
        return ReportPlan(tuple(messages), tuple(events))

    def inbox_report(
        self, message: ReportedMessage, recipients: Sequence[ReportedRecipient]
    ) -> bytes:
        """Return the report on a submission that failed in step 3, for the Inbox.

        It has the Return-Path that final delivery would add (RFC 5321 4.4).
        """
        self._count("failure")
        return b"Return-Path: <>\r\n" + self._written(message, recipients)

    def _report(
        self,
        message: ReportedMessage,
        recipients: Sequence[ReportedRecipient],
        *,
        account: str,
    ) -> tuple[NewMessage, Event]:
        next_hop = self._next_hop_for(message.reverse_path)
        if next_hop is None:  # the sender's own address has no next hop
            route, kind, account = _TO_POSTMASTER, "dead-letter", ""
        else:
            route, kind = _Route(message.reverse_path, next_hop), "failure"
        self._count(kind)
        content = self._written(message, recipients)
        report = self._message(content, route, about=message, account=account)
        return report, _event(report, kind, recipients)

    def _written(self, message: ReportedMessage, recipients: Sequence[ReportedRecipient]) -> bytes:
        arrival_us = message.arrival_us + wall_offset_us(self._clock)
        return write_dsn(
            replace(message, arrival_us=arrival_us),
            recipients,
            hostname=self._hostname,
            report_id=self._ids.new(),
            now_us=self._clock.time_us(),
        )

    def _message(
        self, content: Content, route: "_Route", *, about: ReportedMessage, account: str = ""
    ) -> NewMessage:
        """Return `content` as a routed message for one recipient: it skips policy."""
        now_us = self._clock.queue_us()
        header = Header.of(content)
        routed = {
            "rules": [],
            "next_hops": {str(route.next_hop): [route.address]},
            "about": about.queue_id,
        }
        recipient = NewRecipient(route.address, notify=frozenset({Notify.NEVER}))
        return NewMessage(
            id=self._ids.new(),
            reverse_path="",
            source=Source.REPORT,
            trusted=True,
            received_us=now_us,
            expires_us=now_us + self._expire_after_us,
            contents=(content,),
            entries=(NewEntry(route.next_hop, (recipient,)),),
            account=account,
            smtputf8=not route.address.isascii(),
            eight_bit=is_eight_bit(content),
            message_id=decoded(header, "message-id"),
            subject=decoded(header, "subject")[:_SUBJECT_CHARACTERS_MAX],
            events=(Event(Step.POLICY_AND_ROUTING, self._clock.time_us(), routed),),
        )

    def _count(self, kind: str) -> None:
        self._metrics.reports.labels(kind=kind).inc()


@dataclass(frozen=True, slots=True)
class _Route:
    address: str
    next_hop: NextHop


_TO_POSTMASTER = _Route(POSTMASTER, LOCAL)


def _event(made: NewMessage, kind: str, recipients: Sequence[ReportedRecipient]) -> Event:
    """Return the event about `made` for the trace of the failed message."""
    detail = {
        "report_id": made.id,
        "to": made.entries[0].recipients[0].address,
        "kind": kind,
        "recipients": _named(recipients),
    }
    return Event(Step.REPORT, made.events[0].at_us, detail)


def _named(recipients: Sequence[ReportedRecipient]) -> list[str]:
    return [recipient.address for recipient in recipients[:_NAMED_MAX]]
