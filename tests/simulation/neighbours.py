"""The relay's neighbours in a world: mailboxes that last, name servers, rules.

A mailbox has what was put there whoever died since; the same `unique` is put there once. Raises
StoreUnavailableError, by chance. See docs/design.md 3 (local delivery is idempotent).
"""

import asyncio
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from relay.mailbox.types import (
    DeliveryResult,
    MailboxFullError,
    Room,
    StoreUnavailableError,
    WellKnown,
)
from relay.message.content import Content, LargeContent, octets_in_blocks
from relay.message.mta_sts import NO_STS, StsFinding, StsPolicy
from relay.message.nexthop import HopKind, NextHop
from relay.policy.engine import RuleSet
from relay.policy.rule_files import read_rules
from relay.routing.mx_hosts import Host, Hosts, NoSuchDomain, NullMx, Resolution, TemporaryFailure
from tests.simulation.ledger import Ledger
from tests.simulation.scenario import BESIDE, BOXES, GATE, SERVED_BY, STRICT, STRICT_MX, Scenario
from tests.simulation.world import World

_DEMANDS_TLS = StsPolicy("enforce", frozenset((f"*.{STRICT_MX}",)), 86400)
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
    """The name servers: a Resolver."""

    def __init__(self, world: World, ledger: Ledger, scenario: Scenario) -> None:
        self._world = world
        self._ledger = ledger
        self._scenario = scenario

    async def resolve(self, next_hop: NextHop) -> Resolution:
        rng = self._world.rng
        with self._ledger.progress.made():
            await asyncio.sleep(rng.random() * rng.choice((0.01, 0.01, 10.0)))
        domain = next_hop.host
        if next_hop.kind is HopKind.LMTP:
            name = host_name(0, BOXES)
            return Hosts((Host(name, 0, (address(0, BOXES),), next_hop.port, lmtp=True),))
        if next_hop.kind is not HopKind.MX or domain == BESIDE:
            return Hosts((Host(GATE, 0, (GATE_ADDRESS,), GATE_PORT),))
        match self._scenario.unresolved.get(domain):
            case "nxdomain":
                return NoSuchDomain(domain)
            case "nullmx":
                return NullMx(domain)
            case "servfail":
                return TemporaryFailure("SERVFAIL")
            case "flickering" if self._world.time() % _FLICKER_S < _FLICKER_S / 2:
                return TemporaryFailure("SERVFAIL")
        sts = StsFinding(policy=_DEMANDS_TLS) if domain == STRICT else NO_STS
        domain = SERVED_BY.get(domain, domain)
        hosts = self._scenario.domains.get(domain, self._scenario.domains["victim.test"])
        return Hosts(
            tuple(
                Host(host_name(number, domain), number // 2, (address(number, domain),), 25)
                for number in range(len(hosts))
            ),
            sts=sts,
        )


def host_name(number: int, domain: str) -> str:
    return f"mx{number}.{domain}"


def address(number: int, domain: str) -> str:
    """The world's network knows hosts by any text."""
    return f"ip-{host_name(number, domain)}"


def has_report(content: bytes) -> bool:
    return b"\r\nContent-Type: multipart/report" in content.partition(b"\r\n\r\n")[0]
