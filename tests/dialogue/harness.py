"""A real SMTP listener on a loopback port, with a spool that only remembers.

Everything but the spool and the accounts is what Relay runs with.
"""

import asyncio
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from relay.accounts import Account
from relay.clock import Ids, ManualClock
from relay.ingress import Acceptance, IngressDependencies, SessionLimits, SmtpServer
from relay.mailbox.types import Room
from relay.message.content import MemoryOctets
from relay.message.verdict import RecipientVerdict, Subject, Verdict
from relay.observe.metrics import Metrics
from relay.pressure import Pressure
from relay.reports import Reporter
from relay.routing.route_table import RouteTable
from relay.settings.tree import Address, Route, SmtpListener, Tls
from relay.spool.types import Accepted, Claim, NewMessage

ROUTES = (Route("refused.test", "reject:5.7.1 Not this domain"),)


@dataclass
class MemoryArrival:
    """Remembers what was written; `fault` is raised instead."""

    written: list[bytes] = field(default_factory=list)
    discarded: int = 0
    fault: Exception | None = None

    async def write(self, blocks: Sequence[bytes]) -> None:
        await asyncio.sleep(0)
        if self.fault:
            raise self.fault
        self.written.append(b"".join(blocks))

    def octets(self) -> MemoryOctets:
        return MemoryOctets(b"".join(self.written))

    def discard(self) -> None:
        self.discarded += 1


@dataclass
class MemorySpool:
    """Remembers what was accepted; `fault` is raised instead, `gate` holds the commit up."""

    accepted: list[NewMessage] = field(default_factory=list)
    reports: list[NewMessage] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    fault: Exception | None = None
    gate: asyncio.Event | None = None
    committing: asyncio.Event = field(default_factory=asyncio.Event)
    arrivals: list["MemoryArrival"] = field(default_factory=list)

    def arrival(self) -> "MemoryArrival":
        self.arrivals.append(MemoryArrival(fault=self.fault))
        return self.arrivals[-1]

    async def accept(
        self,
        message: NewMessage,
        *,
        reports: Sequence[NewMessage] = (),
        submission_key: str = "",
        claim: bool = True,
    ) -> Accepted:
        self.committing.set()
        if self.gate:
            await self.gate.wait()
        if self.fault:
            raise self.fault
        if submission_key in self.keys:
            return Accepted(self.keys[submission_key], repeated=True)
        if submission_key:
            self.keys[submission_key] = message.id
        self.accepted.append(message)
        self.reports.extend(reports)
        return Accepted(message.id)


class FakeAccounts:
    """alice (with the alias al), bob; full, whose mailbox is full, and small, whose has 100 octets
    left and may hold 1000. The password is the name."""

    names = ("alice", "bob", "full", "small")

    def by_token(self, token: str) -> Account | None:
        return None

    def by_address(self, address: str) -> Account | None:
        local_part, _, domain = address.lower().partition("@")
        if domain != "example.test":
            return None
        name = "alice" if local_part == "al" else local_part.partition("+")[0]
        if name not in self.names:
            return None
        aliases = ("al@example.test",) if name == "alice" else ()
        send_as = ("office@elsewhere.test", "*@shared.test") if name == "alice" else ()
        return Account(f"{name}@example.test", aliases, send_as=send_as)

    async def by_password(self, user: str, password: str, *, client: str) -> Account | None:
        account = self.by_address(user)
        return account if account and password == user.partition("@")[0] else None


class FakeQuota:
    async def room(self, account: str, size: int) -> Room:
        if account.startswith("small") and size > 100:
            return Room.NEVER if size > 1000 else Room.FULL
        return Room.FULL if account.startswith("full") else Room.FITS


class NoRules:
    def evaluate(self, subject: Subject) -> Verdict:
        kept = tuple(RecipientVerdict(each.address) for each in subject.recipients)
        return Verdict(kept, (), (subject.content,), ())


@dataclass
class Relay:
    """The parts of a relay that a test may look at or put something else into."""

    spool: MemorySpool = field(default_factory=MemorySpool)
    accounts: FakeAccounts = field(default_factory=FakeAccounts)
    rules: object = field(default_factory=NoRules)
    claims: list[Claim] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)
    clock: ManualClock = field(default_factory=ManualClock)
    pressure: Pressure = field(default_factory=Pressure)

    @property
    def router(self) -> RouteTable:
        return RouteTable(ROUTES, ["example.test"], self.accounts)

    def acceptance(self, **changes) -> Acceptance:
        ids = Ids(self.clock)
        router = self.router
        reporter = Reporter(
            hostname="relay.example.test",
            clock=self.clock,
            ids=ids,
            next_hop_for=router.next_hop_for,
            expire_after_s=3600,
            metrics=self.metrics,
        )
        parts = {
            "hostname": "relay.example.test",
            "router": router,
            "policy": lambda: self.rules,
            "reporter": reporter,
            "spool": self.spool,
            "accounts": self.accounts,
            "clock": self.clock,
            "ids": ids,
            "metrics": self.metrics,
            "on_accepted": self.claims.extend,
            "expire_after_s": 3600,
        }
        return Acceptance(**(parts | changes))

    def server(
        self, *, pickup: bool = False, limits: SessionLimits | None = None, **listener
    ) -> SmtpServer:
        neighbours = IngressDependencies(
            hostname="relay.example.test",
            acceptance=self.acceptance(),
            router=self.router,
            accounts=self.accounts,
            quota=FakeQuota(),
            pressure=self.pressure,
        )
        settings = SmtpListener(**({"listen": Address("127.0.0.1", 0)} | listener))
        quick = limits or SessionLimits(auth_failure_delay_s=0.01, last_reply_s=0.2)
        return SmtpServer(settings, neighbours, pickup=pickup, limits=quick)


def make_certificate(directory: Path) -> Tls:
    """Make a self-signed certificate for localhost with the openssl command."""
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        f" -subj /CN=localhost -keyout {key} -out {certificate}"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    return Tls(certificate, key)
