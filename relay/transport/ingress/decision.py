"""Decide what becomes of a message: the stages of step 5 without the rules and without the commit.

`acceptance` has all stages, in their order. `relay explain` asks the same stages, and commits
nothing. All but Preparation.prepare() are pure functions.
"""

from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.address import own_mailbox
from relay.base.message.content import size_of
from relay.base.message.envelope import domain_of
from relay.base.message.nexthop import HopKind
from relay.base.message.verdict import AddedRecipient, ExaminedMessage, Verdict
from relay.store.spool.types import NewEntry
from relay.transport.ingress import fanout
from relay.transport.ingress.arrival import Preparation, PreparedMail
from relay.transport.ingress.data import DataReply, RefusedError
from relay.transport.ingress.forwarding import (
    LARGE_REPORT,
    REPORT_BYTES_MAX,
    Forwarder,
    expand_recipients,
    with_added,
)
from relay.transport.ingress.stages import DecidedMail, ExaminedMail
from relay.transport.policy.rule_book import RuleBook
from relay.transport.refusals.refusal import RefusalReason
from relay.transport.routing.routing_result import InvalidRecipient

_LEAVES = frozenset({HopKind.MX, HopKind.SMTP, HopKind.SMTPS, HopKind.GRAPH})


class DecidingStages(Struct, frozen=True):
    """The stages; each gets the value of the stage before."""

    preparation: Preparation  # what the rules see of a message
    forwarding: Forwarder  # aliases and routes

    def examined(self, prepared: PreparedMail) -> ExaminedMail:
        """Replace aliases, and find the next hop of each recipient. Raises RefusedError."""
        arrival, content = prepared.arrival, prepared.content
        origin, filtered, forwarding = arrival.origin, arrival.filtered, self.forwarding
        sender = arrival.envelope.reverse_path
        if filtered.refusal:
            raise RefusedError(DataReply(filtered.refusal, reason=RefusalReason.CHECKS))
        charges = forwarding.reports_to([path.address for path in arrival.paths], sender)
        if charges and size_of(arrival.content) > REPORT_BYTES_MAX:
            raise RefusedError(DataReply(LARGE_REPORT))
        expand = forwarding.expander(sender, content.header)
        refuse = partial(forwarding.writer_rejection, sender=origin.sender(arrival.mail_from))
        recipients = expand_recipients(arrival.paths, expand, filtered.recipients, refuse=refuse)
        if filtered.added:
            recipients = with_added(recipients, expand, filtered.added)
        examine = forwarding.examiner(arrival.sender, content.header)
        return ExaminedMail(
            arrival=arrival,
            content=content,
            account=self.preparation.account_of(arrival),
            recipients=recipients,
            routes=fanout.examined_recipients(recipients, examine),
            expand=expand,
            examine=examine,
            charges=charges,
        )

    def rule_input(self, examined: ExaminedMail) -> ExaminedMessage:
        """Return the message as the rules see it."""
        arrival, recipients = examined.arrival, examined.recipients
        router = self.forwarding.router
        envelope, origin = arrival.envelope, arrival.origin
        # An untrusted client may write any domain into MAIL FROM, so that alone is not internal.
        claims_local = router.is_local_domain(domain_of(envelope.reverse_path))
        valid = [
            (path.address, route)
            for path, route in zip(recipients.paths, examined.routes, strict=True)
            if not isinstance(route, InvalidRecipient)
        ]
        return ExaminedMessage(
            reverse_path=envelope.reverse_path,
            sender_local=claims_local and origin.trusted,
            recipients=tuple([address for address, _ in valid]),
            local=frozenset([address for address, route in valid if route.is_local]),
            content=examined.content,
            source=origin.role.source,
            client=origin.ip,
            # a client of a trusted network has no login, whatever sender it names
            login=examined.account if origin.pickup else origin.login,
            recipient_count=len(arrival.paths),
            time_us=self.preparation.clock.time_us(),
            is_own=router.is_local_domain,
            alias_domains=router.alias_domains,
            results=arrival.filtered.results,
            originals=recipients.originals,
        )

    def decided(self, examined: ExaminedMail, verdict: Verdict, rules: RuleBook) -> DecidedMail:
        """Return the message with the verdict of these rules and that of the milters."""
        filtered, forwarding = examined.arrival.filtered, self.forwarding
        if filtered.in_junk:
            verdict = verdict.into_junk()
        if hold := filtered.hold:
            verdict = verdict.with_holds(lambda _tenant: hold)
        sender = examined.arrival.envelope.reverse_path
        if verdict.sender and sender:
            examined = self._with_sender(examined, verdict.sender)
        chosen = forwarding.examiner_of_chosen(examined.arrival.sender, examined.content.header)
        routes = fanout.with_next_hops(examined.routes, verdict, chosen)
        return DecidedMail(replace(examined, routes=routes), verdict, rules, sender)

    def _with_sender(self, examined: ExaminedMail, sender: str) -> ExaminedMail:
        """Return the message with the sender that a rule gave it, and with routes for this sender.

        The routes, SRS addresses and reports of the message use the new sender.
        """
        arrival = examined.arrival
        envelope = replace(arrival.envelope, reverse_path=sender)
        arrival = replace(arrival, envelope=envelope)
        examine = self.forwarding.examiner(arrival.sender, examined.content.header)
        routes = fanout.examined_recipients(examined.recipients, examine)
        return replace(
            examined,
            arrival=arrival,
            examine=examine,
            routes=fanout.later_routes(examined.routes, routes),
        )

    def looked_up(self, queued: NewEntry) -> list[str]:
        """Return the addresses that are looked up in the list of dead addresses: those to which
        mail would leave now, and of no own domain.
        """
        if queued.next_hop.kind not in _LEAVES or queued.extra.reason:
            return []
        addresses = [recipient.path.address for recipient in queued.recipients]
        is_own = self.forwarding.router.is_own_anywhere
        return [own_mailbox(address) for address in addresses if not is_own(domain_of(address))]

    def fan_out(self, decided: DecidedMail, times: fanout.HoldTimes) -> fanout.FanOut:
        """Sort the recipients into queue entries; `times` are for holds."""
        examined, verdict, forwarding = decided.examined, decided.verdict, self.forwarding
        arrival, recipients, rules = decided.arrival, examined.recipients, decided.rules
        reverse_path, is_trusted = arrival.envelope.reverse_path, arrival.origin.trusted
        aliases = recipients.alias_by_address if verdict.additions else {}

        def sender_of(forwarded_by: str, address: str, added: AddedRecipient | None) -> str:
            if added and added.is_quarantine:  # no report of another host may go to the sender
                return f"MAILER-DAEMON@{self.preparation.hostname}" if reverse_path else ""
            if added and not forwarded_by and not verdict.sender:
                forwarded_by = aliases.get(added.acted_for) or added.acted_for
            return forwarding.sender_of(forwarded_by, address, reverse_path, trusted=is_trusted)

        return fanout.fan_out(
            recipients,
            examined.routes,
            verdict,
            expand=examined.expand,
            sender_of=sender_of,
            examine=forwarding.examiner_of_added(
                examined.examine, verdict, rules.tenants, sender=arrival.sender
            ),
            answers_discarded=decided.answers_discarded,
            times=times,
        )
