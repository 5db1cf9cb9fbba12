"""Ask next hops which recipients they take, for own domains with recipients = "verify".

A probe is MAIL with the null sender and RCPT, on a separate connection. The answer to RCPT is kept
in memory: 2yz for a day, 5yz for an hour. That the mailbox is full is not kept; the client gets
that reply. Everything else is no answer, and the client tries again later. A next hop that gave no
session, or rejects MAIL, is not asked for a while, so that few clients wait for it. A next hop that
is silent at RCPT is not asked for that address. Clients probe in turn, and what strangers invent is
forgotten before an address that exists. See RFC 5321 3.3 and 4.2.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from relay.base.bounded_dict import BoundedDict
from relay.base.clock import Clock
from relay.base.message.address import own_mailbox
from relay.base.message.nexthop import HopKind, NextHop
from relay.base.message.outcome import Reply
from relay.base.message.status import reply_text, split_reply
from relay.base.shares import NoPlaceError
from relay.base.socket_address import client_of
from relay.base.turns import Turns
from relay.delivery.host_selection import targets_of
from relay.delivery.smtp.client_protocol import SmtpProtocolError
from relay.delivery.smtp.connect import ConnectError, Target
from relay.delivery.smtp.connection import Connection
from relay.transport.routing.route_table import RouteTable
from relay.transport.routing.usable_hosts import Resolve

CONNECT_S = 3.0  # to one address
_PROBES_MAX = 20  # at once
_TURN_S = 10.0  # a client waits for a place
_PROBE_S = 10.0
_KEPT_MAX = 10_000  # addresses that are taken; and as many answers of another kind
_KEPT_S = {2: 86400.0, 5: 3600.0}  # by the first digit of the reply
_FULL = ("452", "552")  # RFC 5321 4.2.3
_SILENT_S = 30.0  # in which what got no answer is not asked again
_UNKNOWN = "the next hop does not say now whether it takes this address, try again later"


@dataclass(eq=False, repr=False)
class RecipientVerifier:
    """Asks next hops, and remembers their answers."""

    table: RouteTable  # how hosts are contacted
    resolve: Resolve
    connect: Callable[[Target], Awaitable[Connection]]
    clock: Clock

    def __post_init__(self) -> None:
        self._turns = Turns("recipient probes", _PROBES_MAX)
        # until when each reply counts, the oldest first; "" is for all addresses of a next hop
        self._taken, self._others = (
            BoundedDict[tuple[str, NextHop], tuple[float, str]](_KEPT_MAX) for _ in range(2)
        )

    async def rejection(self, address: str, next_hop: NextHop, *, client: str) -> str:
        """Return the reply to RCPT if the next hop does not take the address, else "". `client` is
        the IP address of who asks.
        """
        known = self._known(own_mailbox(address), next_hop)
        if known is None:
            try:
                async with self._turns.turn(client_of(client), wait_s=_TURN_S):
                    known = await self._probe(address, next_hop)
            except NoPlaceError:
                known = ""
        if known.startswith("2"):
            return ""
        if known in _FULL:  # RFC 3463 3.3
            full = f"<{address}>: the next hop has no room for mail to this address"
            return f"{known} {known[0]}.2.2 {reply_text(full)}"
        # RFC 3463 3.2
        if not known:
            return f"450 4.1.1 {reply_text(f'<{address}>: {_UNKNOWN}')}"
        text = f"<{address}>: the next hop does not take this address ({known})"
        return f"550 5.1.1 {reply_text(text)}"

    def _known(self, mailbox: str, next_hop: NextHop) -> str | None:
        own, of_all = (mailbox, next_hop), ("", next_hop)
        for kept, key in ((self._taken, own), (self._others, own), (self._others, of_all)):
            until_s, reply = kept.get(key, (0.0, ""))
            if self.clock.monotonic() < until_s:
                return reply
        return None

    def _keep(self, mailbox: str, next_hop: NextHop, reply: str, *, kept_s: float) -> None:
        kept = self._taken if reply.startswith("2") else self._others
        kept[mailbox, next_hop] = (self.clock.monotonic() + kept_s, reply)

    async def _probe(self, address: str, next_hop: NextHop) -> str:
        """Return the code of the reply to RCPT, "" for none that counts."""
        if (known := self._known(own_mailbox(address), next_hop)) is not None:
            return known  # it was asked meanwhile
        silent = [""]  # the addresses that get no answer; "": all
        reply: Reply | None = None
        try:
            async with asyncio.timeout(_PROBE_S):  # real time: a peer
                reply = await self._ask(address, next_hop, silent)
        except (TimeoutError, SmtpProtocolError):
            pass
        if reply is None:
            self._keep(silent[-1], next_hop, "", kept_s=_SILENT_S)
            return ""
        full = f"{reply.code // 100}52"
        if full in _FULL and (
            str(reply.code) == full or split_reply(str(reply)).status[1:] == ".2.2"
        ):
            return full
        kept_s = _KEPT_S.get(reply.code // 100)
        if kept_s is None:
            return ""
        self._keep(own_mailbox(address), next_hop, str(reply.code), kept_s=kept_s)
        return str(reply.code)

    async def _ask(self, address: str, next_hop: NextHop, silent: list[str]) -> Reply | None:
        """Return the reply of the first host that gives a session, None if none does or MAIL is
        rejected. `silent` gets the mailbox before RCPT. Raises SmtpProtocolError.
        """
        if next_hop.kind is HopKind.GRAPH:  # it takes every address
            return None
        for target in await targets_of(next_hop, self.table, self.resolve):
            try:
                connection = await self.connect(target)
            except ConnectError:
                continue
            try:
                reply = None
                if await connection.takes_probe(address):
                    silent.append(own_mailbox(address))
                    reply = await connection.reply_to_probe(address)
                await connection.quit()
            finally:
                connection.close()
            return reply
        return None
