"""Reroute claims that the routes no longer send to their next hop, or now hold there.

Routes change at a restart or a reload while mail waits. A claim is attempted only where the routes
of now send its recipients: no mail leaves with the login, TLS policy or source address of another
route. Any other claim is withdrawn and rerouted, as an operator does it, or its recipients end that
the routes now reject, and the others are due at once. What an operator or a rule has chosen stays,
unless it is a route that is gone or leads elsewhere. No route holds again what was released, and
what an operator holds as it comes is no matter of mail that waits.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import islice

from relay.base.clock import Clock
from relay.base.message.nexthop import CAPTURE
from relay.base.message.outcome import DeferralClass, Deferred, Evidence, Failed, Outcome
from relay.base.observe.logs import get_logger
from relay.delivery.attempt_recorder import AttemptRecorder
from relay.delivery.fair_queue import ClaimQueue
from relay.store.spool.queue_commands import Operation, QueueCommand
from relay.store.spool.shared.queue_admin import QueueAdmin
from relay.store.spool.types import Claim, Selector, SpoolError
from relay.transport.routing.route_table import InvalidRecipient, RemoteRecipient, RouteTable

_log = get_logger("delivery")
_AT_ONCE = 500  # claims of one command
_AFTER_FAULT_S = 1.0
_CAPTURED_NOW = "451 4.3.5 the route now captures mail: reroute or cancel the entry"  # RFC 3463 3.4


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
        if claim.is_fresh and claim.message.received_us > self.changed_us:  # nearly always
            return False
        if self.table.is_settled(claim.next_hop, chosen=claim.extra.chosen):
            return False
        sender = claim.message.envelope.reverse_path
        moved = [
            to
            for one in claim.recipients
            if (to := self.table.destination_by_routes(one.path.address, sender)) is None
            or to.next_hop != claim.next_hop
            or (to.held and not claim.extra.released)
        ]
        if not moved:
            return False
        if any(to is not None and to.next_hop != CAPTURE for to in moved):
            self.recorder.claims.track(claim, self.ready)
            self.ready.push(claim)
            if self._task is None:
                self._task = self.recorder.begin(self._run())
        else:
            outcomes = {
                one.id: end
                for one in claim.recipients
                if (end := self._end(one.path.address, sender)) is not None
            }
            self.recorder.begin(self.recorder.record(claim, outcomes, reached=True))
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
                names = sorted({claim.next_hop.route or "no name" for claim in claims})
                _log.info("route changed: rerouted", entries=len(claims), routes=", ".join(names))
                try:
                    await self.admin.execute(self._command(claims))
                except SpoolError as error:
                    _log.warning("not rerouted yet", error=str(error))
                if any(claim in claims for claim in islice(self.ready, 1)):
                    await self.clock.sleep(_AFTER_FAULT_S)  # sleeps: limits retries after a fault
        finally:
            self._task = None

    def _command(self, claims: Sequence[Claim]) -> QueueCommand:
        ids = tuple(f"{message}-{entry}" for message, entry in (claim.key for claim in claims))
        return QueueCommand(
            Operation.REROUTE, Selector(ids=ids), "relay", why="its route has changed",
            to=self.table.destination_by_routes,
        )  # fmt: skip

    def _end(self, address: str, sender: str) -> Outcome | None:
        found = self.table.examine(address, sender)
        if isinstance(found, InvalidRecipient):
            return Failed(Evidence(found.status, found.text))
        if isinstance(found, RemoteRecipient) and found.next_hop == CAPTURE:
            return Deferred(Evidence("4.3.5", _CAPTURED_NOW), DeferralClass.INTERNAL)
        return None
