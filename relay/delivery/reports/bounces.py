"""Bounces and other reports: who gets one, and the report as a message for the spool.

decide_reports() prevents loops and backscatter (RFC 5321 6.1 and 6.2, RFC 3461 4.1 and 6.1).
Reporter writes the report (RFC 3464) and routes it. A report has the null reverse-path (RFC 5321
4.5.5) and NOTIFY=NEVER; only the operator's copy is from the login at its next hop, since providers
refuse other senders. It has one recipient, or the recipients of an alias, each with a next hop.

Ingress (step 5) and delivery (step 6) commit a report together with the failure; pickup puts the
report on a failed step 3 into the Inbox. The number of reports of successes and delays to one
sender is limited; it is counted from the start of the relay.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import assert_never

from msgspec import Struct
from msgspec.structs import replace

from relay.base.accounts.account import DEAD_LETTER, AliasTarget, Expansion
from relay.base.clock import Clock, Ids, rfc3339, wall_offset_us
from relay.base.message import envelope as envelopes
from relay.base.message.address import own_mailbox
from relay.base.message.content import Content, is_eight_bit, read_all, size_of
from relay.base.message.envelope import Envelope, ForwardPath, MessageFacts, Notify, Source
from relay.base.message.header import Header, ParsedContent
from relay.base.message.nexthop import LOCAL, Destination, NextHop
from relay.base.message.outcome import Evidence
from relay.base.message.receipt import ReceiptKind, ReceiptRequest
from relay.base.message.tls_policy import IF_OFFERED, REQUIRETLS, TlsDemand
from relay.base.message.verdict import RuleMail
from relay.base.observe.logs import get_logger
from relay.base.observe.metrics import Metrics
from relay.base.settings.tree import Strangers
from relay.delivery.reports.texts import TextSource
from relay.formats import dsn
from relay.formats.headers import decoded, takes_no_answer
from relay.formats.mdn import Receipt, write_mdn
from relay.store.journeys.details import COPY, POSTMASTER, ReportDetail, RoutedDetail
from relay.store.journeys.events import Event
from relay.store.spool.types import EntryExtra, NewEntry, NewMessage, NewRecipient, ReportPlan
from relay.transport.ingress.forwarding import replaced
from relay.transport.ingress.message_limits import RateLimits
from relay.transport.signing.signer import SignedContents, Signer, SigningError

_WARNINGS_APART_S = 3600.0
NOTICES_MAX = 100  # recipients of strangers' mail of which the postmaster hears in an hour


_log = get_logger("reports")
_NAMED_MAX = 100  # addresses in an event, which must stay small
_DEAD = "dead-letter"  # a kind of reports
_NEVER = frozenset({Notify.NEVER})


class ReportDecision(Struct, frozen=True):
    """The recipients by what is done about them.

    `reported` go into the report to the reverse-path, `noticed` into a notice to the postmaster,
    and so do those that a rule has `added`, because the sender does not know them. `dead_letters`
    cause a copy of the message to the postmaster. `dropped` are reports that failed at the
    postmaster or a stranger. Recipients in none of them cause no report, because of NOTIFY or the
    null reverse-path.
    """

    reported: tuple[dsn.ReportedRecipient, ...] = ()
    noticed: tuple[dsn.ReportedRecipient, ...] = ()
    added: tuple[dsn.ReportedRecipient, ...] = ()
    dead_letters: tuple[dsn.ReportedRecipient, ...] = ()
    dropped: tuple[dsn.ReportedRecipient, ...] = ()


def decide_reports(
    kind: dsn.ReportKind,
    message: MessageFacts,
    recipients: Sequence[dsn.ReportedRecipient],
    *,
    strangers: Strangers = "verified",
) -> ReportDecision:
    """Sort the `recipients` of one message.

    The null sender gets no reports. A sender that is not trusted gets reports of failures only, and
    only if `strangers` says so: a reverse-path is easily forged (backscatter). There are no reports
    about reports, nor about what comes back of one that left as mail. A report that fails becomes a
    dead letter, except a report to a stranger, who may cause many.
    """
    is_failure = kind in dsn.FAILURES
    if message.source is Source.REPORT:
        dead_letters, dropped = list[dsn.ReportedRecipient](), list[dsn.ReportedRecipient]()
        for recipient in recipients if is_failure else ():
            is_last = not message.trusted or recipient.path.address == POSTMASTER
            (dropped if is_last else dead_letters).append(recipient)
        return ReportDecision(dead_letters=tuple(dead_letters), dropped=tuple(dropped))
    hears_any = message.envelope.reverse_path and not message.extra.sent_report
    reported, added = [], []
    for recipient in recipients:
        if recipient.added_by:
            added.append(recipient)
        elif hears_any and _is_wanted(kind, recipient.path.notify):
            reported.append(recipient)
    hears = message.trusted or strangers == "sender"
    hears |= strangers == "verified" and message.extra.verified
    return ReportDecision(
        reported=tuple(reported) if hears and (message.trusted or is_failure) else (),
        noticed=tuple(reported) if is_failure and not hears else (),
        added=tuple(added) if is_failure else (),
    )


def _is_wanted(kind: dsn.ReportKind, notify: frozenset[Notify]) -> bool:
    """Return whether NOTIFY asks for this kind; its default is failure and delay (RFC 3461 4.1)."""
    match kind:
        case dsn.ReportKind.FAILED | dsn.ReportKind.UNKNOWN:
            return not notify or Notify.FAILURE in notify
        case dsn.ReportKind.DELAYED | dsn.ReportKind.HELD:
            return not notify or Notify.DELAY in notify
        case dsn.ReportKind.DELIVERED | dsn.ReportKind.RELAYED | dsn.ReportKind.EXPANDED:
            return Notify.SUCCESS in notify
        case _:
            assert_never(kind)


class Copies(Struct, frozen=True):
    """The address that gets copies of reports, "" for none, and the kinds of these reports.

    `accept` makes the copy of a report durable that goes into an Inbox without the spool. A second
    call with the same submission key changes nothing.
    """

    to: str = ""
    kinds: frozenset[str] = frozenset()
    accept: Callable[[NewMessage, str], Awaitable[None]] | None = None


class _Subject(Struct, frozen=True):
    """What a report is about."""

    kind: dsn.ReportKind  # of this report
    message: MessageFacts  # its times are in queue time
    recipients: Sequence[dsn.ReportedRecipient]  # those that it names
    content: Content  # of the message
    to: str = ""  # gets it in place of the reverse-path
    ret: str = "HDRS"  # what `to` gets of the message
    is_notice: bool = False  # to the postmaster
    author: str = ""  # sends it in place of MAILER-DAEMON


class LeftOut(StrEnum):
    """Why a report is not sent, in the journey; the name is in metrics. NOTICED is of a failure,
    the others are of a success, a delay or a hold.
    """

    UNROUTED = "the address of the sender has no next hop"
    AUTOMATIC = "a program or a list has sent the message"
    RATE = "the sender has had as many as reports.per_sender allows"
    NOTICED = "the postmaster has had one on this recipient, or as many as may be, in this hour"


@dataclass(kw_only=True, eq=False, repr=False)
class Reporter:
    """Decides, writes and routes reports."""

    hostname: str  # in their addresses and ids
    clock: Clock  # their dates
    ids: Ids  # of reports, and of the messages that they are
    # of an address and the reverse-path; None for an address without a next hop
    destination_of: Callable[[str, str], Destination | None]
    expire_after_s: float  # as other mail does
    metrics: Metrics  # count them by kind
    rate: str = ""  # of successes and delays to one sender, COUNT/SECONDS; "": no limit
    texts: TextSource = field(default_factory=TextSource)  # what people read
    # of an alias: who gets it
    expand: Callable[[str, str], Expansion | None] = lambda _address, _reverse_path: None
    # of an address here; DEAD_LETTER has no reader
    mailbox_for: Callable[[str], str | None] = lambda _address: None
    # as which mail leaves by Microsoft Graph; "" elsewhere
    graph_mailbox: Callable[[NextHop], str] = lambda _hop: ""
    # of the login at a next hop by SMTP; "" without one
    login_address: Callable[[NextHop], str] = lambda _hop: ""
    signer: Signer | None = None  # None: they are not signed
    copies: Copies = field(default_factory=Copies)  # none at first
    strangers: Strangers = "verified"  # who gets a report if their mail fails
    _noticed: dict[str, str] = field(default_factory=dict)  # in this hour: recipient, message
    _hour: int = 0

    def __post_init__(self) -> None:
        self._rates = RateLimits(self.clock)

    def wants(
        self,
        kind: dsn.ReportKind,
        message: MessageFacts,
        recipients: Sequence[dsn.ReportedRecipient],
    ) -> bool:
        """See ReportWriter."""
        return bool(decide_reports(kind, message, recipients, strangers=self.strangers).reported)

    def reports(
        self,
        kind: dsn.ReportKind,
        message: MessageFacts,
        recipients: Sequence[dsn.ReportedRecipient],
        *,
        content: Content,
    ) -> ReportPlan:
        """Return what to commit about `recipients`: at most one report or notice, one dead letter,
        and one report on recipients that a rule added.

        The account of the message may see the traces of the message and the report; events of the
        kinds COPY and POSTMASTER, and dead letters, are for operators only.
        """
        decision = decide_reports(kind, message, recipients, strangers=self.strangers)
        messages: list[NewMessage] = []
        events: list[Event] = []
        noticed = decision.noticed
        if not message.trusted and self._route_to(message.envelope.reverse_path) is None:
            noticed += decision.reported
        if noticed:
            plan = self._notice(_Subject(kind, message, noticed, content))
            messages += plan.messages
            events += plan.events
        elif decision.reported:
            subject = _Subject(kind, message, decision.reported, content)
            report, detail = self._report(subject)
            if kind is dsn.ReportKind.DELAYED:
                facts = self._in_wall_time(message)
                since, until = rfc3339(facts.received_us), rfc3339(facts.expires_us)
                detail = replace(detail, since=since, until=until)
            events.append(Event(self.clock.time_us(), detail))
            if report is not None:
                is_reader = self.copies.to == message.envelope.reverse_path
                copies = [] if is_reader else [*self._copy(subject)]
                messages += [report, *copies]
                copied = _DEAD if detail.to == POSTMASTER else COPY
                events += [self._event(copy, copied, subject.recipients) for copy in copies]
                if detail.to == POSTMASTER:
                    sender = message.envelope.reverse_path
                    self._warn_of_unread(message, sender, is_copied=bool(copies))
        if decision.added:
            plan = self._report_on_added(_Subject(kind, message, decision.added, content))
            messages += plan.messages
            events += plan.events
        if decision.dead_letters:
            unsigned = SignedContents((ParsedContent.of(content),))
            route = self._to_postmaster(decision.dead_letters)
            letter = self._message(unsigned, route, about=message, is_copy=True)
            messages.append(letter)
            self.count(_DEAD)
            events.append(self._event(letter, _DEAD, decision.dead_letters))
            self._warn_of(message, decision.dead_letters)
        if decision.dropped:
            self.count("dropped")
            detail = ReportDetail(kind="dropped", recipients=_named(decision.dropped))
            events.append(Event(self.clock.time_us(), detail))
        return ReportPlan(tuple(messages), tuple(events))

    def _warn_of_unread(self, message: MessageFacts, to: str, *, is_copied: bool) -> None:
        """Log that the report about trusted mail has no reader, unless an operator has a copy."""
        if message.trusted and not is_copied:
            event = "reports have no reader: set reports.copy_to, or a route"
            _log.repeated("warning", event, apart_s=_WARNINGS_APART_S, qid=message.id, to=to)

    def _warn_of(self, report: MessageFacts, recipients: Sequence[dsn.ReportedRecipient]) -> None:
        """Log that a delivery report about trusted mail has failed, and as which mailbox it would
        leave now.
        """
        if report.extra.of_trusted:
            to, reason = recipients[0].path.address, recipients[0].evidence.reply
            mailbox = self._mailbox_of(self._route_to(to, of_trusted=True))
            by_graph = {"mailbox": mailbox} if mailbox else {}
            _log.warning("a report is a dead letter", to=to, reason=reason, **by_graph)

    async def inbox_report(
        self,
        kind: dsn.ReportKind,
        message: MessageFacts,
        recipients: Sequence[dsn.ReportedRecipient],
        *,
        content: Content,
    ) -> bytes:
        """Return the report on a submission that failed in step 3, for the Inbox. Its ENVID is the
        submission id.

        It has the Return-Path that final delivery would add (RFC 5321 4.4). Its copy is durable
        then, so that no crash loses it before the submission is removed. Raises SpoolError.
        """
        subject = _Subject(kind, message, recipients, content)
        if self.copies.accept is not None:
            for copy in self._copy(subject):
                await self.copies.accept(copy, f"copy of {message.envelope.envid}")
        self.count(kind)
        report = self._written(subject)
        return b"Return-Path: <>\r\n" + read_all(report.contents[0].joined())

    def _copy(self, subject: _Subject) -> Iterator[NewMessage]:
        """Yield the operator's copy of a report, if one is wanted, with the header only. There is
        no report about it: it is a report itself, and has NOTIFY=NEVER.
        """
        if not self.copies.to or subject.kind not in self.copies.kinds:
            return
        of_trusted = subject.message.trusted
        route = self._route_to(self.copies.to, of_trusted=of_trusted) or self._to_postmaster()
        author = route.first_of(self.login_address)
        written = self._written(replace(subject, to=self.copies.to, author=author))
        yield self._message(written, route, about=subject.message, reverse_path=author)

    def _report_on_added(self, subject: _Subject) -> ReportPlan:
        """Return the report to the postmaster on recipients that a rule added, with the message, or
        beside it: a redirect leaves no other copy.
        """
        message, recipients = subject.message, subject.recipients
        route = self._to_postmaster(recipients)
        to = route.entries[0].recipients[0].path.address
        about = replace(subject, to=to, ret="FULL", is_notice=True)
        report = self._message(self._written(about), route, about=message)
        copies = [*self._copy(subject)]
        parsed, envelope = ParsedContent.of(subject.content), replace(message.envelope, ret="FULL")
        letters = []
        if not dsn.returns_whole(subject.kind, envelope, parsed.joined()):
            written, to_postmaster = SignedContents((parsed,)), self._to_postmaster(recipients)
            letters.append(self._message(written, to_postmaster, about=message, is_copy=True))
        detail = self._detail(report, POSTMASTER, recipients)
        is_unread = detail.to == POSTMASTER
        self.count(_DEAD if is_unread else POSTMASTER)
        if is_unread:
            self._warn_of_unread(message, POSTMASTER, is_copied=bool(copies))
        copied = [self._event(copy, COPY, recipients) for copy in copies]
        return ReportPlan(
            (report, *copies, *letters), (Event(self.clock.time_us(), detail), *copied)
        )

    def _notice(self, subject: _Subject) -> ReportPlan:
        """Return the notice about recipients that the postmaster has not heard of in this hour."""
        recipients, facts = subject.recipients, subject.message
        new = [recipient for recipient in recipients if self._is_new(recipient.path.address, facts)]
        messages, events = [], []
        if new:
            to = f"{POSTMASTER}@{self.hostname}"
            about = replace(subject, recipients=new, to=to, is_notice=True)
            route = self._to_postmaster()
            messages.append(self._message(self._written(about), route, about=facts))
            events.append(self._event(messages[0], POSTMASTER, new))
            self.count(POSTMASTER)
        if old := [recipient for recipient in recipients if recipient not in new]:
            detail = self._without_report(replace(subject, recipients=old), LeftOut.NOTICED)
            events.append(Event(self.clock.time_us(), detail))
        return ReportPlan(tuple(messages), tuple(events))

    def _is_new(self, address: str, message: MessageFacts) -> bool:
        """Return whether the postmaster gets a notice about a recipient: one message in an hour
        causes one. The answer for the same message stays the same, since its notice may not have
        been committed.
        """
        hour = int(self.clock.monotonic() // 3600)
        if hour != self._hour:
            self._hour, self._noticed = hour, {}
        if len(self._noticed) >= NOTICES_MAX:
            return self._noticed.get(address) == message.id
        return self._noticed.setdefault(address, message.id) == message.id

    def receipt(
        self, kind: ReceiptKind, request: ReceiptRequest, queue_id: str, *, is_manual: bool
    ) -> ReportPlan | None:
        """Return the read receipt about the message `queue_id`, and the event for its trace; None
        if the asker has no next hop. The caller counts it.
        """
        route = self._route_to(request.to)
        if route is None:
            return None
        now_us = self.clock.time_us()
        receipt = Receipt(kind, request, self.hostname, now_us, queue_id, is_manual)
        language = self._language(request.to, request.account)
        words = self.texts.current().receipt(receipt, language)
        written = write_mdn(receipt, words=words, report_id=self.ids.new())
        envelope = Envelope(request.to, tls=REQUIRETLS if request.requiretls else "")
        about = MessageFacts(queue_id, envelope, Source.SMTP, True, 0)
        made = self._message(self._signed(written), route, about=about, account=request.account)
        reader = dsn.ReportedRecipient(ForwardPath(request.recipient), Evidence("", ""))
        return ReportPlan((made,), (self._event(made, str(kind), (reader,)),))

    def rule_mail(
        self, mail: RuleMail, *, about: MessageFacts, write: Callable[[str], Content]
    ) -> NewMessage:
        """Return the mail that a rule sends about a message; `write` is given an id for it.

        An address without a next hop is looked for among the mailboxes here. A journal report is
        kept until it expires. A large one is not signed: that would take long.
        """
        route = self._route_to(mail.to) or _Route((_entry(Destination(LOCAL), (mail.to,)),))
        if not mail.text:
            new = [replace(entry, extra=replace(entry.extra, keep=True)) for entry in route.entries]
            route = replace(route, entries=tuple(new))
        written = write(self.ids.new())
        if isinstance(written, bytes):
            made = self._signed(written)
        else:
            made = SignedContents((ParsedContent.of(written),), unsigned="it is too large a report")
        self.count(mail.kind)
        return self._message(made, route, about=about, is_copy=not mail.text)

    def _report(self, subject: _Subject) -> tuple[NewMessage | None, ReportDetail]:
        """Return the report, None if it is left out, and what its event says."""
        kind, message = subject.kind, subject.message
        return_route = self._route_to(message.envelope.reverse_path, of_trusted=message.trusted)
        if kind not in dsn.FAILURES and (left_out := self._left_out(subject, return_route)):
            return None, self._without_report(subject, left_out)
        if return_route is None:  # the sender's own address has no next hop, or no reader
            route, label, account = self._to_postmaster(), _DEAD, ""
        else:
            route, label, account = return_route, str(kind), message.account
        self.count(label)
        report = self._message(
            self._written(subject), route, about=message, account=account, trusted=message.trusted
        )
        detail = self._detail(report, label, subject.recipients)
        return report, replace(detail, by_graph_as=self._mailbox_of(route))

    def _mailbox_of(self, route: "_Route | None") -> str:
        """Return the mailbox as which mail leaves by Microsoft Graph, "" if it does not."""
        return route.first_of(self.graph_mailbox) if route is not None else ""

    def _without_report(self, subject: _Subject, left_out: LeftOut) -> ReportDetail:
        """Count a report that is not sent, and return what its event says."""
        self.metrics.reports_left_out.labels(reason=left_out.name.lower()).inc()
        kind, recipients = str(subject.kind), _named(subject.recipients)
        return ReportDetail(kind=kind, recipients=recipients, left_out=str(left_out))

    def _left_out(self, subject: _Subject, route: "_Route | None") -> LeftOut | None:
        """Return why a report of a success or a delay is not sent, None if it is."""
        if route is None:
            return LeftOut.UNROUTED
        if takes_no_answer(ParsedContent.of(subject.content).header):
            return LeftOut.AUTOMATIC
        sender = subject.message.account or subject.message.envelope.reverse_path
        if self.rate and self._rates.message_of(own_mailbox(sender), self.rate) is None:
            return LeftOut.RATE
        return None

    def _in_wall_time(self, message: MessageFacts) -> MessageFacts:
        offset_us = wall_offset_us(self.clock)
        expires_us = message.expires_us and message.expires_us + offset_us
        return replace(message, received_us=message.received_us + offset_us, expires_us=expires_us)

    def _written(self, subject: _Subject) -> SignedContents:
        """Return the report, signed."""
        message = self._in_wall_time(subject.message)
        report = dsn.Report(
            subject.kind, message, subject.recipients, self.hostname, author=subject.author
        )
        envelope = message.envelope
        if subject.to:
            envelope = replace(envelope, reverse_path=subject.to, ret=subject.ret)
        language = self._language(envelope.reverse_path, message.account)

        def words(header: Header) -> dsn.HumanPart:
            texts = self.texts.current()
            return texts.write(report, header, language=language, is_notice=subject.is_notice)

        written = dsn.write_dsn(
            replace(report, message=replace(message, envelope=envelope)),
            content=subject.content,
            words=words,
            report_id=self.ids.new(),
            now_us=self.clock.time_us(),
        )
        return self._signed(written)

    def _signed(self, written: bytes) -> SignedContents:
        """Return a report with its signatures, or without them if signing fails: it must not be
        lost.
        """
        content = ParsedContent.of(written)
        if self.signer is None:
            return SignedContents((content,), unsigned="reports are not signed")
        try:
            return self.signer.sign_report(content)
        except SigningError as error:
            _log.error("a report is not signed", error=str(error))
            return SignedContents((content,), unsigned="signing failed")

    def _language(self, reader: str, account: str) -> str:
        """Return the language of who gets a report, else of the account that sent the message; ""
        if neither is known.
        """
        return self.texts.language_of(reader) or self.texts.language_of(account)

    def _message(
        self,
        made: SignedContents,
        route: "_Route",
        *,
        about: MessageFacts,
        account: str = "",
        is_copy: bool = False,
        trusted: bool = True,
        reverse_path: str = "",
    ) -> NewMessage:
        """Return a message with a route: it skips policy. A message to a stranger is not trusted,
        and a dead letter is not signed.

        If the report contains a copy of a message with REQUIRETLS, it demands REQUIRETLS too. Other
        reports are sent also where that is not offered (RFC 8689 5). TLS-Required: No applies to
        the message only.
        """
        demand: TlsDemand = ""
        if about.envelope.has_requiretls:
            demand = about.envelope.tls if is_copy else IF_OFFERED
        now_us = self.clock.queue_us()
        header, content = made.contents[0].header, made.contents[0].joined()
        routed = RoutedDetail(
            next_hops=route.next_hops(),
            about=about.id,
            dkim=made.signed_with,
            unsigned=made.unsigned,
            held=route.held(),
            tls=demand,
        )
        facts = MessageFacts(
            id=self.ids.new(),
            envelope=Envelope(
                reverse_path=reverse_path,
                smtputf8=route.needs_smtputf8 or not reverse_path.isascii(),
                eight_bit=is_eight_bit(content),
                tls=demand,
            ),
            source=Source.REPORT,
            trusted=trusted,
            received_us=now_us,
            expires_us=now_us + int(self.expire_after_s * 1_000_000),
            size=size_of(content),
            account=account,
            message_id=decoded(header, "message-id"),
            subject=dsn.short_subject(header),
            extra=envelopes.MessageExtra(of_trusted=route.of_trusted),
        )
        return NewMessage(
            facts,
            contents=(content,),
            entries=route.entries,
            final_recipients=route.aliases,
            events=(Event(self.clock.time_us(), routed),),
        )

    def _route_to(self, address: str, *, of_trusted: bool = False) -> "_Route | None":
        """Return where mail for an address goes, for an alias to whom it leads; None if nowhere, or
        into the dead-letter mailbox. Only a delivery report about trusted mail is `of_trusted`.
        """
        reverse_path = envelopes.OWN_REPORT if of_trusted else ""
        expansion = self.expand(address, reverse_path)
        groups: dict[tuple[Destination, str], list[str]] = {}
        for target in expansion.targets if expansion else (AliasTarget(address),):
            to = self._destination(target.address, reverse_path)
            if to is not None:
                by = "" if to.next_hop == LOCAL else target.forwarded_by
                groups.setdefault((to, by), []).append(target.address)
        if not groups:
            return None
        start = NewRecipient(ForwardPath(address, _NEVER))
        aliases = (replaced(start, expansion),) if expansion else ()
        entries = tuple(_entry(to, group, forwarded_by=by) for (to, by), group in groups.items())
        return _Route(entries, aliases, of_trusted)

    def _destination(self, address: str, reverse_path: str) -> Destination | None:
        to = self.destination_of(address, reverse_path)
        is_here = to is not None and to.next_hop == LOCAL
        return None if is_here and self.mailbox_for(address) == DEAD_LETTER else to

    def _to_postmaster(self, failed: Sequence[dsn.ReportedRecipient] = ()) -> "_Route":
        """Return where a dead letter goes: to the postmaster's address if that has a route; into
        the mailbox here if `failed` has an address to which that leads.
        """
        route = self._route_to(POSTMASTER) or _TO_POSTMASTER
        onward = {address for alias in route.aliases for address in alias.successors}
        return _TO_POSTMASTER if onward & {to.path.address for to in failed} else route

    def count(self, kind: str) -> None:
        """Count a report that was made."""
        self.metrics.reports.labels(kind=kind).inc()

    def _event(
        self, made: NewMessage, kind: str, recipients: Sequence[dsn.ReportedRecipient]
    ) -> Event:
        """Return the event about `made` for the trace of the message that it reports."""
        return Event(made.events[0].at_us, self._detail(made, kind, recipients))

    def _detail(
        self, made: NewMessage, kind: str, recipients: Sequence[dsn.ReportedRecipient]
    ) -> ReportDetail:
        """Return what the event about `made` says: to which alias or address it went, or into which
        mailbox here; POSTMASTER is the dead-letter mailbox.
        """
        aliases = [alias.path.address for alias in made.final_recipients]
        to = made.entries[0].recipients[0].path.address
        if aliases and aliases != [POSTMASTER]:
            [to] = aliases
        elif made.entries[0].next_hop == LOCAL:
            to = self.mailbox_for(to) or to
        return ReportDetail(
            report_id=made.facts.id,
            to=POSTMASTER if to == DEAD_LETTER else to,
            kind=kind,
            recipients=_named(recipients),
        )


class _Route(Struct, frozen=True):
    entries: tuple[NewEntry, ...]
    aliases: tuple[NewRecipient, ...] = ()  # that lead there
    of_trusted: bool = False  # found as OWN_REPORT, by which it is found again

    @property
    def needs_smtputf8(self) -> bool:
        paths = [to.path for entry in self.entries for to in entry.recipients]
        return not all(path.address.isascii() for path in paths)

    def first_of(self, address_of: Callable[[NextHop], str]) -> str:
        """Return the address of the first next hop that has one, else ""."""
        hops = (entry.next_hop for entry in self.entries)
        return next(filter(None, map(address_of, hops)), "")

    def next_hops(self) -> dict[str, list[str]]:
        """Return addresses by next hop, for the event of step 5."""
        return self._addresses_by(lambda entry: str(entry.next_hop))

    def held(self) -> dict[str, list[str]]:
        """Return the addresses of held entries, by the reason."""
        return self._addresses_by(lambda entry: entry.extra.reason)

    def _addresses_by(self, key: Callable[[NewEntry], str]) -> dict[str, list[str]]:
        by_name: dict[str, list[str]] = {}
        for entry in self.entries:
            if name := key(entry):
                by_name.setdefault(name, []).extend(to.path.address for to in entry.recipients)
        return {name: addresses[:_NAMED_MAX] for name, addresses in by_name.items()}


def _entry(to: Destination, addresses: Sequence[str], *, forwarded_by: str = "") -> NewEntry:
    recipients = tuple(NewRecipient(ForwardPath(address, _NEVER)) for address in addresses)
    extra = EntryExtra(reason=to.held, delivered_to=forwarded_by)
    return NewEntry(to.next_hop, recipients, extra=extra)


_TO_POSTMASTER = _Route((_entry(Destination(LOCAL), (POSTMASTER,)),))


def _named(recipients: Sequence[dsn.ReportedRecipient]) -> list[str]:
    return [recipient.path.address for recipient in recipients[:_NAMED_MAX]]
