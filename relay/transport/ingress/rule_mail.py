"""The mails that the rules `journal` and `notify` send about a message that is accepted.

They are reports: no rule runs on them, and only the postmaster gets reports about them. The
transaction that accepts the message makes them durable. A journal address gets one report for each
message, even if several rules name it. A notice of a rule is sent to an address at most once in an
hour. The times are kept in memory, as rate limits are. Messages that are not accepted do not count.

A report by the rule of a tenant names the recipients of the tenant only, and what the rules and
aliases of the tenant did.
"""

from collections.abc import Collection, Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

from relay.base.clock import Clock
from relay.base.message.address import own_mailbox
from relay.base.message.content import Content
from relay.base.message.envelope import domain_of
from relay.base.message.header import Header
from relay.base.message.lifecycle import RecipientState
from relay.base.message.verdict import RateCharge, RuleMail, VerdictAction
from relay.base.sliding_window import Reservation
from relay.formats.address_list import address_entries
from relay.formats.dsn import report_fields, short_subject, write_journal, write_notice
from relay.store.journeys.details import SentMail
from relay.store.spool.types import NewMessage, ReportWriter
from relay.transport.ingress.message_limits import RateLimits
from relay.transport.ingress.stages import DecidedMail
from relay.transport.policy.rule_book import RuleBook

_NAMED_MAX = 100  # recipients in a notice; mails in an event
_FIELD_OCTETS_MAX = 65_536  # of To and of Cc; longer fields are not read
_HOUR_S = 3600.0
_TITLES = {"journal": "Journal report", "notify": "Notice"}


class DueMail(Struct, frozen=True):
    """A mail that is sent, and all rules that send it."""

    mail: RuleMail
    rules: tuple[str, ...]


class RuleMails:
    """Decides which mails are sent, and writes them."""

    def __init__(self, hostname: str, reporter: ReportWriter, clock: Clock) -> None:
        self._hostname = hostname
        self._reporter = reporter
        self._clock = clock
        self._noticed = RateLimits(clock)

    def due(
        self, mails: Sequence[RuleMail], reserved: Reservation
    ) -> tuple[Sequence[DueMail], Reservation]:
        """Return the mails to send, and the reservation of the message and these mails."""
        if not mails:  # nearly always
            return (), reserved
        sent, counted = [], [reserved]
        for due in _joined(mails):
            charge = RateCharge(
                due.mail.rule,
                due.mail.kind,
                own_mailbox(due.mail.to),
                1,
                allowed=1,
                period_s=_HOUR_S,
                status="",
                text="",
            )
            count = self._noticed.reserve([charge] if due.mail.text else [])
            if isinstance(count, Reservation):
                sent.append(due)
                counted.append(count)
        return sent, Reservation.of(counted)

    def added(
        self,
        message: NewMessage,
        reports: Sequence[NewMessage],
        mails: Sequence[DueMail],
        *,
        subject: DecidedMail,
    ) -> tuple[NewMessage, Sequence[NewMessage]]:
        """Return the message whose step 5 names the mails, and the reports with them."""
        written = [self._written(due, message, subject) for due in mails]
        named = [
            SentMail(due.mail.kind, mail.facts.id, due.mail.to, due.rules)
            for due, mail in zip(mails, written, strict=True)
        ]
        routed, *others = message.events
        routed = replace(routed, detail=replace(routed.detail, mails=named[:_NAMED_MAX]))
        return replace(message, events=(routed, *others)), (*reports, *written)

    def _written(self, due: DueMail, message: NewMessage, subject: DecidedMail) -> NewMessage:
        content = subject.examined.content  # as it was accepted, before rules edited it
        mail, about = due.mail, short_subject(content.header)
        lines = [
            ("Sender", subject.sender or "<>"),
            ("Subject", about),
            ("Message-Id", message.facts.message_id),
        ]

        def write(report_id: str) -> Content:
            head = report_fields(
                author=f"Mail Delivery System <MAILER-DAEMON@{self._hostname}>",
                to=mail.to,
                subject=f"{_TITLES[mail.kind]}: {about or '(no subject)'}",
                message_id=f"<{report_id}.{mail.kind}@{self._hostname}>",
                now_us=self._clock.time_us(),
                automatic="auto-generated",
            )
            rules = [("Rule", rule) for rule in due.rules]
            if mail.text:
                return write_notice(head, mail.text, [*rules, *lines, *_named(mail.recipients)])
            # two random ids, which the author of a message cannot know
            boundary = f"=_journal_{message.facts.id}_{report_id}"
            return write_journal(
                head,
                [*lines, *_recipient_lines(due, subject), *rules],
                original=content.joined(),
                boundary=boundary,
            )

        return self._reporter.rule_mail(mail, about=message.facts, write=write)


def _joined(mails: Sequence[RuleMail]) -> Iterator[DueMail]:
    """Yield one journal report for each address, and one notice for each address and rule."""
    groups: dict[tuple[str, str], list[RuleMail]] = {}
    for mail in mails:
        by = mail.rule if mail.text else ""
        groups.setdefault((own_mailbox(mail.to), by), []).append(mail)
    for group in groups.values():
        recipients = dict.fromkeys(to for mail in group for to in mail.recipients)
        rules = dict.fromkeys(mail.rule for mail in group)
        yield DueMail(replace(group[0], recipients=tuple(recipients)), tuple(rules))


def _named(recipients: Sequence[str]) -> Iterator[tuple[str, str]]:
    for recipient in recipients[:_NAMED_MAX]:
        yield "Recipient", recipient
    if (more := len(recipients) - _NAMED_MAX) > 0:
        yield "Further recipients", f"{more}"


def _recipient_lines(due: DueMail, subject: DecidedMail) -> Iterator[tuple[str, str]]:
    """Yield lines about the recipients: the field of the header that names each, the alias that led
    to it, and the addresses that got the message instead.
    """
    rules, expanded = subject.rules, subject.examined.recipients
    tenants = _tenants_of(due.rules, rules)
    header = subject.examined.content.header
    named = {name: _addresses_in(header, name) for name in ("To", "Cc")}
    otherwise = "Recipient" if None in named.values() else "Bcc"
    places = zip(expanded.paths, expanded.positions, strict=True)
    behind = {path.address for path, position in places if not position}
    aliases = {
        successor: alias
        for alias in expanded.aliases
        if _is_of(tenants, alias.path.address, rules)
        for successor in alias.successors
        if successor in behind
    }
    for recipient in due.mail.recipients:
        searched, by = {own_mailbox(recipient)}, ""
        if (alias := aliases.get(recipient)) is not None:
            word = "Expanded" if alias.state is RecipientState.EXPANDED else "Forwarded"
            searched, by = {own_mailbox(alias.path.address)}, f", {word}: {alias.path.address}"
        field = next(
            (name for name, addresses in named.items() if addresses and addresses & searched),
            otherwise,
        )
        yield field, recipient + by
    matched = frozenset(due.mail.recipients)
    for decided in subject.verdict.recipients:
        is_shown = not tenants or _tenants_of([decided.rule], rules) & tenants
        if decided.successors and decided.address in matched and is_shown:
            is_redirect = decided.action is VerdictAction.REDIRECT
            word = "Redirected" if is_redirect else "Quarantined"
            for successor in decided.successors:
                yield "Recipient", f"{successor}, {word}: {decided.address}"


def _tenants_of(names: Sequence[str], rules: RuleBook) -> frozenset[str]:
    """Return the tenants of these rules; an empty set if one of the rules is the operator's."""
    tenants = {name.partition("/")[0] for name in names}
    return frozenset(tenants) if tenants <= rules.tenants.keys() else frozenset()


def _is_of(tenants: Collection[str], address: str, rules: RuleBook) -> bool:
    """Return whether the domain of an address is one of these tenants'; true without tenants."""
    tenant = rules.tenant_of(domain_of(address)) if tenants else None
    return not tenants or (tenant is not None and tenant.name in tenants)


def _addresses_in(header: Header, name: str) -> frozenset[str] | None:
    """Return the addresses in a field, None for one that is too long to be read."""
    values = header.values(name)
    if sum(map(len, values)) > _FIELD_OCTETS_MAX:
        return None
    texts = (value.decode("utf-8", "replace") for value in values)
    return frozenset(
        own_mailbox(addressee.address) for text in texts for addressee in address_entries(text)
    )
