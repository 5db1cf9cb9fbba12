"""Whether RCPT takes an address: relaying and full mailboxes; asks which addresses are valid.

Which are valid is decided in relay/transport/routing/route_table.py, with the reply for an unknown
user or domain; what an alias or an SRS address leads to in `forwarding`, and whether a mailbox has
room in relay/store/mailbox/quota.py. How a next hop is asked whether it takes an address is decided
in relay/delivery/recipient_verification.py.

A client that may not relay may send to local domains, wherever a route sends their mail. An alias
is taken if any of the addresses is that it leads to. Those may be outside although the client may
not relay: the operator has decided where the mail for an alias goes, and the key of SRS
addresses proves that mail came from where a report goes back to. A rejection names
the address that the client gave, never one behind an alias.

RFC 5321 3.9.1, 4.1.1.3, 7.9.
"""

from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct

from relay.base.accounts.account import DEAD_LETTER
from relay.base.message.envelope import ForwardPath, domain_of
from relay.base.message.nexthop import NextHop
from relay.store.mailbox.types import Room
from relay.transport.ingress.forwarding import Forwarder
from relay.transport.ingress.session_services import RecipientAnswer
from relay.transport.policy.rule_book import RuleBook, unavailable
from relay.transport.routing.route_table import (
    InvalidRecipient,
    LocalRecipient,
    RemoteRecipient,
    RoutingResult,
)

# RFC 5321 7.9
_DENIED = "550 5.7.1 Relaying denied: authenticate, or use your own mail server"
_TAKEN = RecipientAnswer()
_KEPT = RecipientAnswer(may_keep=True)
# DeliveryStore.room(), of the mailbox of an account and a size in octets.
AskRoom = Callable[[str, int], Awaitable[Room]]
# Returns the reply if a next hop does not take an address, else "".
Verify = Callable[[str, NextHop], Awaitable[str]]


class RecipientChecks(Struct, frozen=True):
    """What the check of a recipient needs."""

    forwarding: Forwarder  # which addresses are valid, and what they lead to
    room: AskRoom  # whether a local mailbox has room
    verify: Verify | None = None  # None: no next hop is asked
    rules: Callable[[], RuleBook] = RuleBook  # those in force
    # Pickup's recipients are checked after DATA, so that a rejection becomes a report.
    is_pickup: bool = False

    async def answer(
        self, address: str, reverse_path: str, *, size_bytes: int, may_relay: bool
    ) -> RecipientAnswer:
        """Return whether a recipient is taken."""
        if self.is_pickup:
            return _TAKEN
        if reply := self.forwarding.report_rejection(address, reverse_path, size_bytes):
            return RecipientAnswer(reply)
        if not (may_relay or reverse_path):  # reports of others to this host's name
            match self.forwarding.examine(address, reverse_path):
                case LocalRecipient(is_local=False):
                    return RecipientAnswer(_DENIED)
        expansion = self.forwarding.expand(address, reverse_path)
        if expansion is None:
            found = self.forwarding.examine(address, reverse_path)
            reply = await self._rejection(
                found, address, given=address, size_bytes=size_bytes, may_relay=may_relay,
                asks=not may_relay,
            )  # fmt: skip
            if reply:
                return RecipientAnswer(reply)
            is_kept = may_relay and reverse_path and isinstance(found, RemoteRecipient)
            return _KEPT if is_kept else _TAKEN
        rejection, expanded = "", len(expansion.targets)
        for target in expansion.addresses:
            found = self.forwarding.examine(target, reverse_path)
            reply = await self._rejection(
                found, target, given=address, size_bytes=size_bytes, may_relay=True,
                asks=not may_relay and expanded == 1,
            )  # fmt: skip
            if not reply:
                return RecipientAnswer(expanded=expanded)
            rejection = rejection or reply.replace(f"<{target}>", f"<{address}>", 1)
        return RecipientAnswer(rejection, expanded)

    async def rejection_of_all(
        self, paths: Sequence[ForwardPath], reverse_path: str, *, size_bytes: int, may_relay: bool
    ) -> str:
        """Return the reply if no recipient accepts a message of this size, else ""."""
        rejection = ""
        for path in paths:
            answer = await self.answer(
                path.address, reverse_path, size_bytes=size_bytes, may_relay=may_relay
            )
            if not (rejection := answer.reply):
                break
        return rejection

    async def _rejection(
        self,
        found: RoutingResult,
        address: str,
        *,
        given: str,
        size_bytes: int,
        may_relay: bool,
        asks: bool,
    ) -> str:
        """`given` is the address that the client gave, which leads to `address`."""
        if self.rules().tenants and self._waits(address, found):
            return f"451 4.3.0 {unavailable(domain_of(given))}"  # RFC 3463 3.4
        match found:
            case RemoteRecipient(next_hop):
                if not (found.is_local or may_relay):
                    return self._denial(given)
                if asks and found.is_asked and next_hop.host and self.verify is not None:
                    return await self.verify(address, next_hop)
            case LocalRecipient(mailbox):
                if mailbox != DEAD_LETTER:
                    match await self.room(mailbox, size_bytes):
                        case Room.FULL:
                            # RFC 3463 3.3
                            return f"452 4.2.2 <{address}>: the mailbox is full, try again later"
                        case Room.NEVER:
                            # RFC 3463 3.3
                            return f"552 5.2.2 <{address}>: the message is larger than the mailbox"
            case InvalidRecipient(text=text):
                return text
        return ""

    def _denial(self, address: str) -> str:
        if not self.forwarding.router.is_of_other_store(domain_of(address)):
            return _DENIED
        # RFC 3463 3.5
        return f"450 4.4.4 <{address}>: another node has the mailboxes of its domain, try its MX"

    def _waits(self, address: str, found: RoutingResult) -> bool:
        """Return whether mail for a valid address waits: its tenant has no rules to be used."""
        tenant = self.rules().tenant_of(domain_of(address))
        is_valid = not isinstance(found, InvalidRecipient)
        return is_valid and tenant is not None and tenant.rules is None
