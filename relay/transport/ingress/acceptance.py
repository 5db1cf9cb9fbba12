"""Accept a message after the final dot: step 5 of the seven in docs/flow.md, in its order.

    prepare()    milters, and a header that is checked and completed      `arrival`
    examined()   aliases and routes          `forwarding`, relay/transport/routing/route_table.py
    _decide()    mail-flow rules             relay/transport/policy/engine.py
    _fan_out()   queue entries, signatures   `fanout`, relay/transport/signing/signer.py
    _commit()    limits, reports, commit     `message_limits`, relay/delivery/reports/bounces.py

accept() calls _accept() for the first three, and that _commit() for the others. Each stage returns
a value that contains the value of the stage before (`stages`), or raises RefusedError with the
reply to the client. `decision` has the parts of the stages that commit nothing.

If the tenant of some recipients has reached a limit, its copies are held (a rate limit) or rejected
(too many held copies), and the last two stages are repeated for the message; the client gets 250.

The 250 is returned only after the spool has committed (fsync) one transaction with the message, its
queue entries and the reports that are already due. Every error is a reply: 451 or 452 for an
internal one, 5yz for a fault of the message. A reply never contains the text of an exception.

RFC 5321 4.2.5, 6.1, 6.3 (loops); RFC 3461 5; RFC 6409 8.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from relay.base.accounts.account import AccountDirectory
from relay.base.accounts.usage import BeyondLimit, UsageCounter
from relay.base.clock import Clock, Ids
from relay.base.message.address import own_mailbox
from relay.base.message.content import Content, size_of
from relay.base.message.envelope import Envelope, ForwardPath, MessageExtra, MessageFacts
from relay.base.message.nexthop import NextHop
from relay.base.message.srs import Srs
from relay.base.message.status import SUPPRESSED
from relay.base.message.verdict import ExaminedMessage, RateCharge, Verdict, tenant_of_rule
from relay.base.observe.logs import ContainedErrors, get_logger
from relay.base.observe.metrics import Metrics
from relay.base.sliding_window import Reservation
from relay.base.socket_address import client_of
from relay.formats.dsn import ReportKind
from relay.formats.report_as_mail import is_sent_report
from relay.store.spool import types
from relay.store.spool.engine import SpoolEngine
from relay.transport.checks.checker import SenderChecker
from relay.transport.ingress import arrival as arrivals
from relay.transport.ingress import fanout, header_cleanup
from relay.transport.ingress.data import DataReply, Origin, RefusedError, subject_of
from relay.transport.ingress.decision import DecidingStages
from relay.transport.ingress.filtering import SessionFilters, is_verified
from relay.transport.ingress.forwarding import MANY_REPORTS, UNPROVEN, Forwarder
from relay.transport.ingress.message_limits import AnswerLimit, HoldLimit, RateLimits
from relay.transport.ingress.policy_threads import PolicyThreads
from relay.transport.ingress.rule_mail import RuleMails
from relay.transport.ingress.stages import DecidedMail, ExaminedMail
from relay.transport.milter.filters import MilterSet
from relay.transport.policy.message_parts import TooManyPartsError
from relay.transport.policy.message_view import UndecidedError
from relay.transport.policy.rule_book import DEFERRED, RuleBook
from relay.transport.refusals.refusal import RefusalReason
from relay.transport.routing.route_table import RouteTable
from relay.transport.routing.routing_result import InvalidRecipient, RoutingResult, suppressed
from relay.transport.signing.signer import Signer, SigningError

_log = get_logger("ingress")
_QUICK_HEADER_BYTES = 16384  # the time to read its fields is a few milliseconds
POLICY_TIMEOUT_S = 10.0
_CLAIMED_MAX = 100  # entries of one message: has_room() is called for each of them


@dataclass(kw_only=True, eq=False)
class Acceptance:
    """Takes responsibility for messages, or returns the reply that rejects them."""

    hostname: str  # in Received fields and reports
    router: RouteTable  # where the mail for an address goes
    policy: Callable[[], RuleBook]  # returns the active rules
    reporter: types.ReportWriter  # writes the reports of rejected recipients
    signer: Signer  # signs the mail of Relay's own users
    spool: SpoolEngine  # where messages become durable
    accounts: AccountDirectory  # what aliases lead to, and whose addresses a sender may use
    clock: Clock  # for queue time
    ids: Ids  # for queue ids
    metrics: Metrics  # counts accepted messages and rules
    srs: Srs  # the senders of copies that leave by an alias
    milters: MilterSet  # that see mail before the rules
    usage: UsageCounter  # counts what accounts send to the outside
    on_accepted: Callable[
        [Sequence[types.Claim]], None
    ]  # gets the claims of a message after the commit
    expire_after_s: float  # from acceptance
    delay_warning_after_s: float = 0.0  # from acceptance; 0: no warning
    any_sender: bool = False  # a login may send from any address
    forward_own_from: bool = False  # strangers' mail in the name of local domains may leave
    # gets messages that were committed without claims and are due in the spool
    on_waiting: Callable[[Sequence[types.NewMessage]], None] = lambda _messages: None
    # gets when held and captured mail ends: nothing looks at it before
    on_first_end: Callable[[int], None] = lambda _due_us: None
    # the priority level for a next hop and sender, which may be unreachable
    level_of: Callable[[NextHop, int, types.PriorityLevel], types.PriorityLevel] = (
        lambda _next_hop, _sender, level: level
    )
    # whether delivery can take a claim now, for a next hop, sender and level
    has_room: Callable[[NextHop, int, types.PriorityLevel], bool] = (
        lambda _next_hop, _sender, _level: True
    )
    checker: SenderChecker | None = None  # finds SPF, DKIM and DMARC results of strangers' mail
    policy_timeout_s: float = POLICY_TIMEOUT_S  # for all rules of one message; then 451
    held_max: int = 10_000  # entries that rules may hold; then 452
    # whether an account, or a client without one, has its share of the queue; then 452
    has_share: Callable[[str, str], bool] = lambda _account, _ip: False

    def __post_init__(self) -> None:
        self.threads = PolicyThreads()  # evaluate rules
        self.holds = HoldLimit(self.clock)
        self.answers = AnswerLimit(self.clock, self.metrics)  # of mail for MAILER-DAEMON
        self.rates = RateLimits(self.clock)  # of rules, and of reports to SRS addresses
        forwarding = Forwarder(
            self.accounts, self.router, self.srs, self.clock, self.rates, self.forward_own_from
        )
        self.rule_mails = RuleMails(self.hostname, self.reporter, self.clock)
        preparation = arrivals.Preparation(
            self.hostname,
            self.accounts,
            self.clock,
            self.any_sender,
            self.milters,
            self.spool.incoming_body,
            self.checker,
            lambda: self.policy().reads_auth,
        )
        self.stages = DecidingStages(preparation, forwarding)

    def use(self, srs: Srs, *, forward_own_from: bool) -> None:
        """Forward mail of later sessions and messages in another way."""
        forwarding = self.stages.forwarding
        forwarding = replace(forwarding, srs=srs, forward_own_from=forward_own_from)
        self.stages = replace(self.stages, forwarding=forwarding)

    def close(self) -> None:
        """Stop the threads without waiting for them, and end the processes of the checker."""
        self.threads.close()
        if self.checker is not None:
            self.checker.close()

    async def accept(
        self,
        envelope: Envelope,
        paths: Sequence[ForwardPath],
        content: Content,
        *,
        origin: Origin,
        filters: SessionFilters | None = None,
    ) -> DataReply:
        """Return the reply to the final dot; if it has a queue id, the message is durable.

        `filters` are the milters that heard the session.
        """
        queue_id, now_us = self.ids.new(), self.clock.queue_us()
        arrival = arrivals.ArrivedMail(
            envelope, paths, content, origin, queue_id, now_us, envelope.reverse_path, filters
        )
        try:
            return arrivals.accepted_reply(await self._accept(arrival))
        except Exception as error:  # noqa: BLE001 -- after any error, the client keeps the message
            reply = self._reply_to(error, arrival)
        if reply.queue_id or not origin.is_promised:
            return reply
        # Pickup repeats a submission of which it lost the 250, and a crash leaves a dropped file.
        # That mail is accepted already: no rule, limit or error may refuse it now, or pickup would
        # report it as failed in the end.
        try:
            known = await self.spool.accepted_as(origin.key or envelope.envid)
        except types.SpoolError as error:
            _log.repeated("warning", "spool unavailable", error=error)
            return reply
        return arrivals.accepted_reply(known) if known else reply

    def _reply_to(self, error: Exception, arrival: arrivals.ArrivedMail) -> DataReply:
        match error:
            case RefusedError():
                return error.reply
            case types.SpoolFullError():
                return arrivals.NO_ROOM
            case types.SpoolUnavailableError():
                _log.repeated("warning", "spool unavailable", error=error)
            case SigningError():
                _log.repeated("error", "signing failed", error=str(error))
            case _:
                _log.repeated("exception", "acceptance failed", client=arrival.origin.ip)
        return arrivals.LOCAL_ERROR

    async def _accept(self, arrival: arrivals.ArrivedMail) -> str:
        """Take a message through the stages, and return its queue id.

        Raises RefusedError, SpoolError, SigningError.
        """
        origin = arrival.origin
        account = origin.user.address if origin.user else origin.login
        if not origin.is_promised and self.has_share(account, origin.ip):
            raise RefusedError(arrivals.HAS_SHARE)
        to = [path.address for path in arrival.paths]
        counted = self.usage.reserve(arrival.origin.counted_for, to)
        if isinstance(counted, BeyondLimit):
            raise RefusedError(arrivals.limit_reply(counted))
        with counted:
            prepared = await self.stages.preparation.prepare(arrival)
            try:
                decided = await self._decide(self.stages.examined(prepared))
                return await self._commit(decided, counted)
            finally:
                prepared.release()

    async def _decide(self, examined: ExaminedMail) -> DecidedMail:
        """Ask the rules. Raises RefusedError if they defer, fail or take too long."""
        rules, stages, arrival = self.policy(), self.stages, examined.arrival
        verdict = await self._evaluate(
            rules, stages.rule_input(examined), is_trusted=arrival.origin.trusted
        )
        decided = stages.decided(examined, verdict, rules)
        if fanout.has_answers(decided.examined.routes):
            envelope, size = decided.arrival.envelope, size_of(arrival.content)
            reason = self.answers.why_discarded(envelope, size)
            decided = replace(decided, answers_discarded=reason)
        return decided

    async def _fan_out(self, decided: DecidedMail) -> fanout.SignedMail:
        """Sort the recipients into queue entries, and sign each content.

        Raises RefusedError if all recipients are rejected and the client hears it, SigningError.
        """
        arrival = decided.arrival
        times = fanout.HoldTimes(arrival.received_us, int(self.expire_after_s * 1_000_000))
        fan_out = self.stages.fan_out(decided, times)
        if any(recipient.reply == UNPROVEN.text for recipient in fan_out.rejected):
            raise RefusedError(DataReply(UNPROVEN.text, reason=RefusalReason.CHECKS))
        if fan_out.rejects_all and not arrival.origin.is_promised:
            self._count_rules(decided.verdict)
            first, filtered = fan_out.rejected[0], arrival.filtered
            milter = filtered.refused_by if first.position in filtered.recipients else ""
            rule = decided.verdict.rule_of(first.path.address)
            raise RefusedError(DataReply(first.reply, rule=rule, milter=milter))
        signed = await self.signer.sign(fan_out.contents, trusted=arrival.origin.trusted)
        return fanout.SignedMail(decided, replace(fan_out, contents=signed.contents), signed)

    async def _commit(self, decided: DecidedMail, counted: Reservation) -> str:
        """Fan the message out, commit it within its limits, and return its queue id.

        `counted` is what it counts against the limits of its account. It counts against no limit
        unless it is committed now. Raises RefusedError, SpoolError, SigningError.
        """
        # Copies that a limit stops are held or rejected, and all others go on. Each repetition
        # leaves fewer copies that a limit can stop, so the loop ends.
        while True:
            signed, verdict = await self._fan_out(decided), decided.verdict
            reserved = self.rates.reserve((*verdict.charges, *decided.examined.charges))
            if isinstance(reserved, RateCharge):
                decided = replace(decided, verdict=self._beyond_rate(verdict, reserved))
                continue
            mails, reserved = self.rule_mails.due(verdict.mails, reserved)
            with reserved:
                message, reports = self._with_reports(signed, self._message(signed))
                if mails:
                    message, reports = self.rule_mails.added(
                        message, reports, mails, subject=decided
                    )
                try:
                    accepted = await self._store(message, reports, decided.arrival.origin)
                except types.HoldsFullError as error:
                    verdict = await self._beyond_holds(signed, message, error.tenant)
                    decided = replace(decided, verdict=verdict)
                    continue
                except types.SuppressedError as error:
                    decided = _without(decided, error.since_us)
                    continue
                if not accepted.repeated:
                    reserved.keep()
                    counted.keep()
                self._count_rules(verdict)
                return accepted.queue_id

    def _beyond_rate(self, verdict: Verdict, charge: RateCharge) -> Verdict:
        """Return the verdict on a message beyond a rate limit of a tenant of recipients: the copies
        of the tenant are held. Raises RefusedError beyond another limit.
        """
        if tenant_of_rule(charge.rule) in verdict.recipient_tenants:
            return verdict.deferred_for(charge.deferral)
        if not charge.rule:
            raise RefusedError(DataReply(MANY_REPORTS))
        self.metrics.policy_rules.labels(rule=charge.rule, outcome=DEFERRED).inc()
        raise RefusedError(arrivals.deferral_reply(charge.deferral))

    async def _beyond_holds(
        self, signed: fanout.SignedMail, message: types.NewMessage, tenant: str
    ) -> Verdict:
        """Return the verdict on a message that needs more held copies than the rules of `tenant`
        may have: the copies that they hold are rejected. Raises RefusedError if it is no tenant of
        recipients ("" is the operator), or no other recipient is left.
        """
        verdict = signed.decided.verdict
        rule = next(rule for rule in message.held_by_rules if tenant_of_rule(rule) == tenant)
        reply = await self.holds.refuse(rule, self.spool.heaviest_held)
        rejecting = verdict.without_holds_of(
            tenant, *arrivals.HOLDS_FULL_OF_TENANT, in_mailboxes=signed.fan_out.in_mailboxes
        )
        is_of_recipients = tenant in verdict.recipient_tenants
        if is_of_recipients and rejecting != verdict and not rejecting.rejects_all:
            return rejecting
        self._count_rules(verdict)
        raise RefusedError(reply)

    def _with_reports(
        self, signed: fanout.SignedMail, message: types.NewMessage
    ) -> tuple[types.NewMessage, Sequence[types.NewMessage]]:
        """Return the message with the events of the reports that are due now, and the reports."""
        verdict, fan_out, examined = signed.decided.verdict, signed.fan_out, signed.decided.examined
        expanded, quarantined = examined.recipients.reported, fan_out.quarantined
        notices = fanout.notices_of(verdict, fan_out) if message.held_by_rules else {}
        if not (expanded or fan_out.rejected or notices or quarantined):  # nearly always
            return message, ()
        rules = {recipient.address: recipient.rule for recipient in verdict.recipients}
        due = {
            ReportKind.FAILED: [
                fanout.reported_recipient(recipient, rules.get(recipient.path.address, ""))
                for recipient in fan_out.rejected
            ],
            ReportKind.EXPANDED: expanded,
            ReportKind.DELIVERED: [
                fanout.reported_recipient(recipient, "") for recipient in quarantined
            ],
        }
        groups = [*due.items(), *((ReportKind.HELD, recipients) for recipients in notices.values())]
        plans = [
            self.reporter.reports(
                kind, message.facts, recipients, content=examined.content.joined()
            )
            for kind, recipients in groups
            if recipients
        ]
        events = [event for plan in plans for event in plan.events]
        message = replace(message, events=(*message.events, *events))
        return message, [report for plan in plans for report in plan.messages]

    async def _evaluate(
        self, rules: RuleBook, message: ExaminedMessage, *, is_trusted: bool
    ) -> Verdict:
        """Return the verdict of the rules. Raises RefusedError if they defer, fail or take too
        long: no message may bypass a rule that fails.
        """
        if not message.recipients:
            return Verdict((), (), (message.content,), ())
        try:
            verdict = await self._verdict(rules, message, is_trusted=is_trusted)
        except TooManyPartsError:
            raise RefusedError(arrivals.TOO_MANY_PARTS) from None
        except TimeoutError:
            _log.repeated("error", "policy timed out", size_bytes=message.content.size)
            raise RefusedError(arrivals.NO_POLICY) from None
        except UndecidedError as error:
            _log.repeated(
                "error", "policy failed", rule=error.rule, client=message.client, error=str(error)
            )
            self.metrics.policy_rules.labels(rule=error.rule, outcome="error").inc()
            raise RefusedError(arrivals.NO_POLICY) from None
        except Exception:  # noqa: BLE001 -- the reply has no text of an exception
            _log.repeated("exception", "policy failed")
            raise RefusedError(arrivals.NO_POLICY) from None
        if verdict.deferred:
            self._count_rules(verdict)
            raise RefusedError(arrivals.deferral_reply(verdict.deferred))
        return verdict

    async def _verdict(
        self, rules: RuleBook, message: ExaminedMessage, *, is_trusted: bool
    ) -> Verdict:
        evaluation, time_s = rules.begin(message), self.policy_timeout_s
        is_quick = message.content.header.size <= _QUICK_HEADER_BYTES
        if not is_quick or not evaluation.run(in_thread=False):
            await self.threads.run(
                message.login or client_of(message.client),
                lambda stopped: evaluation.run(in_thread=True, stopped=stopped, time_s=time_s),
                timeout_s=time_s,
                is_trusted=is_trusted,
            )
        return evaluation.verdict()

    def _message(self, signed: fanout.SignedMail) -> types.NewMessage:
        """Return the message for the spool, with the event of step 5."""
        arrival, examined, fan_out = signed.decided.arrival, signed.decided.examined, signed.fan_out
        envelope, origin, received_us = arrival.envelope, arrival.origin, arrival.received_us
        header, account = examined.content.header, examined.account
        address = f" [{origin.ip}]" if origin.ip else ""
        event = arrival.filtered.noted(fanout.routing_event(signed, self.clock.time_us()))
        if envelope.tls:
            event = replace(event, detail=replace(event.detail, tls=envelope.tls))
        contents = tuple([content.joined() for content in fan_out.contents])
        levels = [header_cleanup.priority(content.header, origin) for content in fan_out.contents]
        entries = fan_out.entries
        if len(set(levels)) > 1:  # the priority that a rule set in a copy is for this copy only
            entries = tuple(replace(entry, priority=levels[entry.content]) for entry in entries)
        by_sender = bool(account) and not (origin.login or origin.pickup)
        facts = MessageFacts(
            id=arrival.queue_id,
            envelope=envelope,
            source=origin.role.source,
            trusted=origin.trusted,
            received_us=received_us,
            expires_us=received_us + int(self.expire_after_s * 1_000_000),
            size=size_of(contents[0]),
            account=account,
            submission_id=envelope.envid if origin.pickup else "",
            client="" if origin.pickup else f"{origin.helo}{address}",
            message_id=header_cleanup.message_id(header),
            subject=subject_of(header),
            extra=MessageExtra(
                by_sender=by_sender,
                hides_client=origin.is_hidden,
                verified=not origin.trusted
                and is_verified(arrival.filtered.results, envelope.reverse_path, header),
                sent_report=is_sent_report(header),
            ),
        )
        return types.NewMessage(
            facts,
            contents=contents,
            entries=entries,
            final_recipients=fan_out.final_recipients,
            events=(event,),
            priority=levels[0],
            warn_us=self._warn_us(arrival),
            held_max=self.held_max,
        )

    def _warn_us(self, arrival: arrivals.ArrivedMail) -> int | None:
        """Return when a delay report is due, None if the sender gets no reports."""
        after_s = self.delay_warning_after_s
        hears = arrival.origin.trusted and bool(arrival.envelope.reverse_path)
        if not hears or not 0 < after_s < self.expire_after_s:
            return None
        return arrival.received_us + int(after_s * 1_000_000)

    async def _store(
        self, message: types.NewMessage, reports: Sequence[types.NewMessage], origin: Origin
    ) -> types.Accepted:
        """Commit the message, and pass on its claims. Raises SpoolError.

        The spool counts messages in the metrics; recipients are counted here.
        """
        message, sender = self._with_priorities(message), message.sender_key
        claim = len(message.entries) <= _CLAIMED_MAX and all(
            entry.extra.reason or self.has_room(entry.next_hop, sender, message.level_of(entry))
            for entry in message.entries
        )
        sought = list[str]()
        if self.spool.suppression.settings is not None:
            sought = [to for copy in message.entries for to in self.stages.looked_up(copy)]
        accepted = await self.spool.accept(
            message,
            reports=reports,
            submission_key=origin.key or message.facts.submission_id,
            claim=claim,
            sought=sought,
        )
        if not accepted.repeated:
            arrivals.log_accepted(message, origin.client)
            for to in message.final_recipients:
                is_suppressed = to.reply.startswith(SUPPRESSED)
                self.metrics.recipients_by("suppressed" if is_suppressed else to.state).inc()
        self._pass_on_claims(accepted, () if claim or accepted.repeated else (message, *reports))
        return accepted

    def _with_priorities(self, message: types.NewMessage) -> types.NewMessage:
        """Return the message; entries whose priority level differs from the usual one have it."""
        usual, sender = (
            [message.priority_of(entry) for entry in message.entries],
            message.sender_key,
        )
        levels = [
            self.level_of(entry.next_hop, sender, level)
            for entry, level in zip(message.entries, usual, strict=True)
        ]
        if levels == usual:  # nearly always
            return message
        pairs = zip(message.entries, levels, strict=True)
        return replace(
            message, entries=tuple(replace(entry, level=level) for entry, level in pairs)
        )

    def _pass_on_claims(
        self, accepted: types.Accepted, waiting: Sequence[types.NewMessage]
    ) -> None:
        # the message is durable, so the reply must be 250
        with ContainedErrors(_log, "claims not passed to delivery", qid=accepted.queue_id):
            self.on_accepted(accepted.claims)
            if accepted.first_end_us is not None:
                self.on_first_end(accepted.first_end_us)
            if waiting:
                self.on_waiting(waiting)

    def _count_rules(self, verdict: Verdict) -> None:
        for hit in verdict.hits:
            if hit.error:
                _log.repeated(
                    "warning", "rule skipped", of=hit.rule, rule=hit.rule, error=hit.error
                )
            self.metrics.policy_rules.labels(rule=hit.rule, outcome=hit.outcome).inc()


def _without(decided: DecidedMail, since_us: Mapping[str, int]) -> DecidedMail:
    """Return the message where addresses on the list of dead addresses, also those that rules add,
    are rejected.
    """
    examined = decided.examined
    rejections = {address: suppressed(at_us) for address, at_us in since_us.items()}

    def examine(address: str, alias: str, is_copy: bool) -> RoutingResult:
        return rejections.get(own_mailbox(address)) or examined.examine(address, alias, is_copy)

    routes = [
        route if isinstance(route, InvalidRecipient) else rejections.get(own_mailbox(to), route)
        for to, route in zip(
            [path.address for path in examined.recipients.paths], examined.routes, strict=True
        )
    ]
    return replace(decided, examined=replace(examined, routes=routes, examine=examine))
