"""Reroute claims whose next hop the routes have changed, or now hold, and claims for a fallback.

Routes change at a restart or a reload while mail waits. A claim is attempted only where the routes
in force send its recipients: no mail leaves with the login, TLS policy or source address of another
route. Any other claim is withdrawn. Recipients that the routes now reject end; the others are
rerouted, as an operator does it, and are due at once.

What an operator or a rule has chosen stays, unless it is a route that is gone or leads elsewhere.
Where a route logs in as the sender, the sender is the address in MAIL of this copy (SRS). Mail that
Microsoft Graph may have taken stays where it is until that is known. Content that is too large for
Graph goes to the fallback at once. No route holds again what was released, and an operator's hold
of new mail does not apply to mail that waits.

A fallback (Postfix: smtp_fallback_relay) is tried when an attempt has failed after the time of the
route. If it does not answer either, each further attempt tries the first next hop before it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import islice

from relay.base.clock import Clock
from relay.base.message.address import own_mailbox
from relay.base.message.envelope import OWN_REPORT
from relay.base.message.nexthop import CAPTURE, Destination, HopKind, NextHop
from relay.base.message.outcome import DeferralClass, Deferred, Evidence, Failed, Outcome
from relay.base.observe.logs import get_logger
from relay.delivery.attempt_recorder import AttemptRecorder
from relay.delivery.attempt_result import same_outcome
from relay.delivery.fair_queue import ClaimQueue
from relay.store.spool.queue_commands import Operation, QueueCommand, RouteLookup
from relay.store.spool.shared.queue_admin import QueueAdmin
from relay.store.spool.types import Claim, Selector, SpoolError
from relay.transport.routing.route_table import RouteTable
from relay.transport.routing.routing_result import InvalidRecipient, RemoteRecipient

_log = get_logger("delivery")
_AT_ONCE = 500  # claims of one command
_AFTER_FAULT_S = 1.0
_CAPTURED_NOW = "451 4.3.5 the route now captures mail: reroute or cancel the entry"  # RFC 3463 3.4
_LOST_ROUTE = (  # RFC 3463 3.4
    "451 4.3.5 it is not known whether Microsoft Graph has sent it, and the route {} does not log"
    " in there as {} any more: restore the route, or ask in that mailbox"
)


@dataclass(eq=False)
class ClaimRerouter:
    """Takes claims whose route has changed."""

    recorder: AttemptRecorder  # records the results of claims that have no way left
    _: KW_ONLY
    table: RouteTable  # the routes in force
    admin: QueueAdmin  # reroutes entries
    clock: Clock

    def __post_init__(self) -> None:
        self.ready = ClaimQueue()
        self.changed_us = 0  # when a reload changed the table last, in queue time
        self._task: asyncio.Task[None] | None = None

    def takes(self, claim: Claim) -> bool:
        """Take the claim if it must not be attempted at its next hop; return whether it was."""
        hop, usual = claim.next_hop, claim.message.routed_as
        # too large for Graph, or with a sender that does not log in: routing knows neither
        is_odd = hop.kind is HopKind.GRAPH or hop.mailbox
        if claim.is_fresh and claim.message.received_us > self.changed_us and not is_odd:
            return False  # nearly always
        if claim.extra.in_doubt:
            return self._has_lost_route(claim)
        leaves_hop = self._leaves_hop(claim)
        is_report = usual == OWN_REPORT  # each recipient's mailbox logs in
        may_log_in = is_report or hop.mailbox in ("", own_mailbox(claim.extra.sender or usual))
        chosen = claim.extra.chosen
        must_stay = self.table.must_stay(hop, chosen=chosen, is_report=is_report) and may_log_in
        if must_stay and not leaves_hop:
            return False
        senders = [
            (recipient, self._sender_for(claim, recipient.path.address))
            for recipient in claim.recipients
        ]
        moved = [
            to
            for recipient, sender in senders
            if (to := self.table.destination_of(recipient.path.address, sender)) is None
            or to.next_hop != hop
            or (to.held and not claim.extra.released)
        ]
        if not (moved or leaves_hop):
            return False
        if leaves_hop or any(to is not None and to.next_hop != CAPTURE for to in moved):
            self.recorder.claims.track(claim, self.ready)
            self.ready.push(claim)
            if self._task is None:
                self._task = self.recorder.begin(self._run())
        else:
            outcomes = {
                recipient.id: end
                for recipient, sender in senders
                if (end := self._end(recipient.path.address, sender)) is not None
            }
            self.recorder.begin(self.recorder.record(claim, outcomes, reached=True))
        return True

    def _leaves_hop(self, claim: Claim) -> bool:
        """Whether a claim leaves its next hop because of a fallback: it is too large, or an attempt
        has failed after the time of the route. What Graph may have sent stays, and a report.
        """
        if (fallback := self.table.fallback_for(claim.next_hop)) is None:  # nearly always
            return False
        if claim.stays_at_graph:
            return False
        if self.table.is_too_large(claim.next_hop, claim.content_size):
            return fallback.to is not None  # it does not go back
        is_timed = fallback.to is None or fallback.after_us > 0
        return is_timed and 0 < claim.extra.fallback_us < (claim.retry_us or 0)

    def _sender_for(self, claim: Claim, address: str) -> str:
        """Return the sender by which the routes decide: the address in MAIL where that logs in."""
        usual, sender = claim.message.routed_as, claim.extra.sender
        to = self.table.destination_of(address, usual) if sender else None
        return sender if to is not None and to.next_hop.mailbox else usual

    def _has_lost_route(self, claim: Claim) -> bool:
        """Take a claim that Microsoft Graph may have sent if its route does not lead there."""
        login = self.table.options_for(claim.next_hop).login
        requests = claim.extra.requests
        mailboxes = {own_mailbox(request.mailbox) for request in requests if request.sent_us}
        if login is not None and mailboxes == {own_mailbox(login.user)}:
            return False
        text = _LOST_ROUTE.format(claim.next_hop.route, ", ".join(sorted(mailboxes)))
        outcome = Deferred(Evidence("4.3.5", text), DeferralClass.INTERNAL)
        self.recorder.begin(self.recorder.record(claim, same_outcome(claim, outcome), reached=True))
        return True

    def close(self) -> list[Claim]:
        """Take no more claims; return those that were not rerouted."""
        if self._task is not None:
            self._task.cancel()
        return self.ready.drain()

    async def _run(self) -> None:
        await asyncio.sleep(0)  # for the other claims of the batch
        try:
            while self.ready:
                claims = list(islice(self.ready, _AT_ONCE))
                by_hop: dict[NextHop | None, list[Claim]] = {}
                for claim in claims:
                    key = claim.next_hop if self._leaves_hop(claim) else None
                    by_hop.setdefault(key, []).append(claim)
                try:
                    for around, group in by_hop.items():
                        await self.admin.execute(self._command(group, around))
                except SpoolError as error:
                    _log.warning("not rerouted yet", error=str(error))
                if any(claim in claims for claim in islice(self.ready, 1)):
                    await self.clock.sleep(_AFTER_FAULT_S)  # sleeps: limits retries after a fault
        finally:
            self._task = None

    def _command(self, claims: Sequence[Claim], around: NextHop | None) -> QueueCommand:
        """Return the command that takes claims away from the next hop `around`, because of its
        fallback; with None the other routes decide.
        """
        ids = tuple(f"{message}-{entry}" for message, entry in (claim.key for claim in claims))
        names = ", ".join(sorted({claim.next_hop.route or "no name" for claim in claims}))
        why = "its route has changed"
        to: RouteLookup = self.table.destination_of
        if around is not None and (fallback := self.table.fallback_for(around)) is not None:
            why, to = f"{around} is a fallback", self.table.lookup_by_route(around.route)
            if fallback.to is not None:
                there = Destination(fallback.to, chosen=True)
                why, to = f"no host of {around} answered", lambda *_: there
                if self.table.is_too_large(around, claims[0].content_size):
                    why = f"it is too large for {around}"
        _log.info("rerouted", entries=len(claims), routes=names, why=why)
        return QueueCommand(
            Operation.REROUTE, Selector(ids=ids), "relay", why=why, to=to, forgets=around is None
        )

    def _end(self, address: str, sender: str) -> Outcome | None:
        result = self.table.examine(address, sender)
        if isinstance(result, InvalidRecipient):
            return Failed(Evidence(result.status, result.text))
        if isinstance(result, RemoteRecipient) and result.next_hop == CAPTURE:
            return Deferred(Evidence("4.3.5", _CAPTURED_NOW), DeferralClass.INTERNAL)
        return None
