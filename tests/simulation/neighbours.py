"""The relay's neighbours in a world: mailboxes that last, name servers, rules.

A mailbox has what was put there whoever died since; the same `unique` is put there once. Raises
StoreUnavailableError, by chance. See docs/design.md 3 (local delivery is idempotent).
"""

import asyncio
from contextlib import nullcontext
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from relay.base.message.content import Content, LargeContent, octets_in_blocks
from relay.base.message.nexthop import HopKind, NextHop
from relay.base.settings.tree import DnsSettings
from relay.base.socket_address import Address
from relay.store.mailbox.delivery_store import DeliveryResult
from relay.store.mailbox.errors import MailboxFullError, StoreUnavailableError
from relay.store.mailbox.stored_message import WellKnown
from relay.store.mailbox.usage import Room
from relay.transport.policy.engine import RuleSet
from relay.transport.policy.rule_files import read_rules
from relay.transport.routing import mx_hosts
from relay.transport.routing.resolver import Resolver
from relay.transport.routing.sts_policies import StsFetchError
from tests.simulation.ledger import Ledger
from tests.simulation.network import octets_of_certificate
from tests.simulation.scenario import (
    BESIDE,
    BOXES,
    FORGED,
    GATE,
    MATCHING,
    SERVED_BY,
    STRICT,
    STRICT_MX,
    Published,
    Scenario,
)
from tests.simulation.world import World
from tests.support.manual_clock import ManualClock

RULES = """
[[rule]]
name = "forbidden"
when = { subject = "*forbidden*", recipient = ["u1*", "bob@*"] }
then = [ { reject = "5.7.1 not that" } ]
[[rule]]
name = "vanish"
when = { subject = "*vanish*", recipient = ["u2*", "carol@*"] }
then = [ { discard = true } ]
[[rule]]
name = "redirect"
when = { subject = "*redirect*" , recipient = ["u*", "bob@*"] }
then = [ { redirect = "carol@home.test" } ]
[[rule]]
name = "copy"
when = { subject = "*copy*" }
then = [ { bcc = "added@d0.test" } ]
[[rule]]
name = "version"
when = { subject = "*version*", recipient = ["u1*", "u2*", "u3*", "u4*", "alice@*"] }
then = [ { set_header = { name = "X-Version", value = "marked" } } ]
[[rule]]
name = "wait"
when = { subject = "*wait*" }
unless = { recipient = "*@captured.test" }
then = [ { hold = "it is to be looked at" } ]
expires = "40m"
notice = "It waits."
[[rule]]
name = "hush"
when = { subject = "*hush*" }
unless = { recipient = "*@captured.test" }
then = [ { hold = "nobody hears of it" } ]
expires = "2h"
expired = "silent"
"""
MARKED = ("u1", "u2", "u3", "u4", "alice@")  # whose version of the content has the mark
MARK = b"X-Version: marked\r\n"
GATE_ADDRESS, GATE_PORT = "127.0.0.1", 25
_FLICKER_S = 700.0


@cache
def rules() -> RuleSet:
    """Some of each kind."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "10-simulated.toml").write_text(RULES)
        return read_rules(Path(folder))


class Mailboxes:
    """A DeliveryStore whose mailboxes are the ledger's."""

    def __init__(self, world: World, ledger: Ledger, scenario: Scenario) -> None:
        self._world = world
        self._ledger = ledger
        self._fails = scenario.store_fails
        self._full = scenario.full
        self.is_idempotent = True

    async def room(self, account: str, size: int) -> Room:
        await asyncio.sleep(0)
        return Room.FULL if self._is_full(account) else Room.FITS

    def _is_full(self, account: str) -> bool:
        now_s = self._world.time()
        return any(
            one.account == account and one.from_s <= now_s < one.until_s for one in self._full
        )

    async def deliver(
        self,
        account: str,
        *,
        unique: str,
        content: Content,
        folder: WellKnown = WellKnown.INBOX,
        over_quota: bool = False,
        is_repeat: bool = False,
    ) -> DeliveryResult:
        with self._ledger.progress.made():
            await asyncio.sleep(self._world.rng.random() * 0.01)
        if self._world.rng.random() < self._fails and self._world.time() < self._ledger.calm_s:
            raise StoreUnavailableError("the disk of the mailboxes is away")
        there = self._ledger.inboxes
        if self.is_idempotent and any(one[1] == unique and one[0] == account for one in there):
            return DeliveryResult.ALREADY_THERE
        if self._is_full(account) and not over_quota:
            self._world.reached["mailbox: full"] += 1
            raise MailboxFullError(f"{account} is full")
        self._world.note("mailbox", account, "has", unique)
        there.append((account, unique, _whole(content)))
        await asyncio.sleep(0)
        return DeliveryResult.DELIVERED


def _whole(content: Content) -> bytes:
    if isinstance(content, LargeContent):
        return content.header + b"".join(octets_in_blocks(content.body))
    return bytes(content)


class Names:
    """The name servers, a Resolver, and the web server of STRICT."""

    def __init__(self, world: World, ledger: Ledger, scenario: Scenario) -> None:
        self._world = world
        self._ledger = ledger
        self._scenario = scenario
        self._tlsa: Any = Resolver(  # the real one, as far as it asks answers()
            DnsSettings((Address("192.0.2.53", 53),), validating=True, timeout=1.0),
            clock=ManualClock(),
            rng=world.rng,
            hostname="relay.test",
        )
        self._tlsa._dns = self

    async def resolve(self, next_hop: NextHop) -> mx_hosts.Resolution:
        rng = self._world.rng
        domain = next_hop.host
        policies = self._ledger.policies
        look_up = policies.look_up(self._ledger.queue_us) if domain == STRICT else nullcontext()
        with self._ledger.progress.made(), look_up:
            await asyncio.sleep(rng.random() * rng.choice((0.01, 0.01, 10.0)))
        if next_hop.kind is HopKind.LMTP:
            name = host_name(0, BOXES)
            return mx_hosts.Hosts(
                (mx_hosts.Host(name, 0, (address(0, BOXES),), next_hop.port, lmtp=True),)
            )
        if next_hop.kind is not HopKind.MX or domain == BESIDE:
            return mx_hosts.Hosts((mx_hosts.Host(GATE, 0, (GATE_ADDRESS,), GATE_PORT),))
        match self._scenario.unresolved.get(domain):
            case "nxdomain":
                return mx_hosts.NoSuchDomain(domain)
            case "nullmx":
                return mx_hosts.NullMx(domain)
            case "servfail":
                return mx_hosts.TemporaryFailure("SERVFAIL")
            case "flickering" if self._world.time() % _FLICKER_S < _FLICKER_S / 2:
                return mx_hosts.TemporaryFailure("SERVFAIL")
        domain = SERVED_BY.get(domain, domain)
        hosts = self._scenario.domains.get(domain, self._scenario.domains["victim.test"])
        return mx_hosts.Hosts(
            tuple(
                mx_hosts.Host(
                    host_name(number, domain), number // 2, (address(number, domain),), 25
                )
                for number in range(len(hosts))
            ),
            mx_hosts.MxAnswer((mx_hosts.Exchange(0, host_name(0, domain)),), domains=(domain,)),
            find_tlsa=self._tlsa.find_tlsa if self._scenario.tlsa and domain == STRICT_MX else None,
        )

    async def answers(self, *questions: tuple[str, str]) -> list[mx_hosts.Answer]:
        """The addresses and the TLSA records of the hosts of STRICT_MX."""
        await asyncio.sleep(self._world.rng.random())
        return [self._answer(name, kind) for name, kind in questions]

    def _answer(self, name: str, kind: str) -> mx_hosts.Answer:
        tlsa = self._scenario.tlsa
        if kind != "TLSA":
            return mx_hosts.Records(("192.0.2.25",), secure=tlsa != FORGED)
        host = name.removeprefix("_25._tcp.") if tlsa == MATCHING else ""
        digest = sha256(octets_of_certificate(host)).hexdigest()
        return mx_hosts.Records((f"3 0 1 {digest}",), secure=tlsa != FORGED)

    async def texts(self, name: str) -> mx_hosts.Answer:
        """The TXT records of a name."""
        with self._ledger.progress.made():
            await asyncio.sleep(self._world.rng.random())
        published = self._published()
        if name != f"_mta-sts.{STRICT}" or not published.mode:
            return mx_hosts.NoName()
        if published.trouble == "dns":
            return mx_hosts.NoAnswer("SERVFAIL")
        return mx_hosts.Records((f"v=STSv1; id={published.id}",))

    async def policy_file(self, _domain: str) -> bytes:
        """The policy of STRICT. Raises StsFetchError."""
        rng = self._world.rng
        with self._ledger.progress.made():
            await asyncio.sleep(rng.random() * rng.choice((0.1, 0.1, 0.1, 90.0)))
        published = self._published()
        if published.trouble == "web" or not published.mode:
            raise StsFetchError("HTTP status 500")
        self._ledger.policies.gave(published, now_us=self._ledger.queue_us())
        lines = (
            "version: STSv1",
            f"mode: {published.mode}",
            f"mx: {published.mx}",
            f"max_age: {published.max_age_s}",
            "",
        )
        return "\r\n".join(lines).encode()

    def _published(self) -> Published:
        return [one for one in self._scenario.published if one.at_s <= self._world.time()][-1]


def host_name(number: int, domain: str) -> str:
    return f"mx{number}.{domain}"


def address(number: int, domain: str) -> str:
    """The world's network knows hosts by any text."""
    return f"ip-{host_name(number, domain)}"
