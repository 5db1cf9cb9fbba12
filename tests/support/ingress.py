"""An SMTP listener on a loopback port with a spool in memory, and a client for it.

Everything except the spool and the accounts is the real code.
"""

import asyncio
import dataclasses
import os
import socket
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

from relay.base.accounts.account import Account, Expansion, Scope
from relay.base.accounts.aliases import AliasTable, Forwarding
from relay.base.certificates import ServerCertificate
from relay.base.clock import Ids
from relay.base.message.content import MemoryOctets
from relay.base.message.srs import Srs
from relay.base.observe.metrics import Metrics
from relay.base.pressure import Pressure
from relay.base.settings.tree import Route, SmtpListener, TlsSettings
from relay.base.socket_address import Address
from relay.delivery.reports.bounces import Reporter
from relay.front_door.sign_in.token_login import TokenLogin
from relay.store.mailbox.usage import Room
from relay.store.spool.types import Accepted, Claim, NewMessage
from relay.transport.ingress.acceptance import Acceptance
from relay.transport.ingress.listener_role import ListenerRole
from relay.transport.ingress.session_limits import SessionLimits
from relay.transport.ingress.session_owner import IngressDependencies
from relay.transport.ingress.smtp_server import SmtpServer
from relay.transport.ingress.smtp_sessions import SmtpSessions
from relay.transport.ingress.strangers import StrangerChecks
from relay.transport.milter.filters import MilterSet
from relay.transport.policy.engine import RuleSet
from relay.transport.policy.rule_book import RuleBook
from relay.transport.refusals.refusal import Refusal
from relay.transport.routing.route_table import RouteTable
from relay.transport.signing.keys import KeyRing
from relay.transport.signing.signer import Signer
from tests.support.limits import usage_of
from tests.support.manual_clock import ManualClock
from tests.support.tls import self_signed

OPENING = [
    "EHLO client.test",
    "MAIL FROM:<alice@example.test>",
    "RCPT TO:<bob@example.test>",
    "DATA",
]
ROUTES = (Route("refused.test", "reject:5.7.1 Not this domain"),)


@dataclass
class MemoryArrival:
    """Records what is written, or raises `fault`."""

    written: list[bytes] = field(default_factory=list)
    discarded: int = 0
    fault: Exception | None = None

    async def write(self, blocks: Sequence[bytes]) -> None:
        await asyncio.sleep(0)
        if self.fault:
            raise self.fault
        self.written.append(b"".join(blocks))

    async def lend(self) -> int:
        if self.fault:
            raise self.fault
        self.file = os.memfd_create("body")
        return self.file

    async def take_back(self, size_bytes: int, crc32: int) -> None:
        self.written.append(os.pread(self.file, size_bytes + 1, 0))
        os.close(self.file)
        assert (len(self.written[-1]), zlib.crc32(self.written[-1])) == (size_bytes, crc32)

    def octets(self) -> MemoryOctets:
        return MemoryOctets(b"".join(self.written))

    def discard(self) -> None:
        self.discarded += 1


@dataclass
class MemorySpool:
    """Records what is accepted, or raises `fault`; `gate` delays the commit."""

    accepted: list[NewMessage] = field(default_factory=list)
    reports: list[NewMessage] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    fault: Exception | None = None
    gate: asyncio.Event | None = None
    committing: asyncio.Event = field(default_factory=asyncio.Event)
    arrivals: list["MemoryArrival"] = field(default_factory=list)
    suppression = SimpleNamespace(settings=None)

    async def heaviest_held(self, rule: str) -> str:
        return ""

    def incoming_body(self) -> "MemoryArrival":
        self.arrivals.append(MemoryArrival(fault=self.fault))
        return self.arrivals[-1]

    async def accept(
        self,
        message: NewMessage,
        *,
        reports: Sequence[NewMessage] = (),
        submission_key: str = "",
        claim: bool = True,
        sought: Sequence[str] = (),
    ) -> Accepted:
        self.committing.set()
        if self.gate:
            await self.gate.wait()
        if self.fault:
            raise self.fault
        if submission_key in self.keys:
            return Accepted(self.keys[submission_key], repeated=True)
        if submission_key:
            self.keys[submission_key] = message.facts.id
        self.accepted.append(message)
        self.reports.extend(reports)
        return Accepted(message.facts.id)

    async def accepted_as(self, submission_key: str) -> str:
        if self.fault:
            raise self.fault
        return self.keys.get(submission_key, "")


class FakeAccounts:
    """alice (with the alias al), bob; full, whose mailbox is full, and small, whose has 100 octets
    left of 1000. The password is the name."""

    names = ("alice", "bob", "full", "small")

    def __init__(self, **aliases: Sequence[str]) -> None:
        """Of each alias at example.test, the addresses that it leads to."""
        self.aliases = AliasTable(
            (Forwarding(name, tuple(to), keeps_copy=name == "bob@example.test", place=()), [name])
            for name, to in ((f"{alias}@example.test", to) for alias, to in aliases.items())
        )

    def expand(self, address: str) -> Expansion | None:
        return self.aliases.expand(address)

    def by_token(self, token: str, *, client: str = "") -> Account | None:
        """The token of alice is "token"; that of bob may only read."""
        match token:
            case "token":
                return self.by_address("alice@example.test")
            case "reads":
                bob = self.by_address("bob@example.test")
                return dataclasses.replace(bob, scopes=frozenset({Scope.MAIL_READ}))
        return None

    def opened(self, address: str, caller: Account) -> Account | None:
        owner = self.by_address(address)
        return owner if owner and caller.may_open(owner) else None

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

    def of_login(self, login: str) -> Account | None:
        account = self.by_address(login)
        return account if account and account.address == login else None

    async def by_smtp_login(self, user: str, password: str, *, client: str) -> Account | None:
        account = self.by_address(user)
        return account if account and password == user.partition("@")[0] else None


class FakeQuota:
    async def room(self, account: str, size: int) -> Room:
        if account.startswith("small") and size > 100:
            return Room.NEVER if size > 1000 else Room.FULL
        return Room.FULL if account.startswith("full") else Room.FITS


def as_book(rules: object) -> object:
    """The rules of an operator as a book; what a test has in its place stays."""
    return RuleBook(rules) if isinstance(rules, RuleSet) else rules


@dataclass
class Relay:
    """The parts of a relay that a test may inspect or replace."""

    spool: MemorySpool = field(default_factory=MemorySpool)
    accounts: FakeAccounts = field(default_factory=FakeAccounts)
    rules: object = field(default_factory=RuleBook)
    claims: list[Claim] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)
    clock: ManualClock = field(default_factory=ManualClock)
    pressure: Pressure = field(default_factory=Pressure)
    refused: list[Refusal] = field(default_factory=list)  # the oldest first
    keys: KeyRing = field(default_factory=KeyRing)
    srs: Srs = field(default_factory=lambda: Srs(b"a key for tests"))
    strangers: StrangerChecks | None = None
    milters: MilterSet = field(default_factory=lambda: MilterSet((), hostname="relay.example.test"))

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
            destination_of=router.destination_of,
            expire_after_s=3600,
            metrics=self.metrics,
        )
        parts = {
            "hostname": "relay.example.test",
            "router": router,
            "policy": lambda: as_book(self.rules),
            "reporter": reporter,
            "signer": Signer(lambda: self.keys, clock=self.clock, metrics=self.metrics),
            "spool": self.spool,
            "accounts": self.accounts,
            "clock": self.clock,
            "ids": ids,
            "metrics": self.metrics,
            "on_accepted": self.claims.extend,
            "expire_after_s": 3600,
            "srs": self.srs,
            "milters": self.milters,
            "usage": usage_of(self.clock),
        }
        return Acceptance(**(parts | changes))

    def server(
        self,
        *,
        listener_role: ListenerRole | None = None,
        limits: SessionLimits | None = None,
        elsewhere=None,
        **listener,
    ) -> SmtpServer:
        neighbours = IngressDependencies(
            hostname="relay.example.test",
            acceptance=self.acceptance(),
            accounts=self.accounts,
            check_token=TokenLogin(self.accounts, Path(), self.clock).check,
            quota=FakeQuota(),
            pressure=self.pressure,
            refusals=SimpleNamespace(record=self.refused.append),
            strangers=self.strangers,
        )
        settings = SmtpListener(**({"listen": Address("127.0.0.1", 0)} | listener))
        quick = limits or SessionLimits(auth_failure_delay_s=0.01, last_reply_s=0.2)
        tls = settings.tls
        return SmtpServer(
            settings,
            neighbours,
            role=listener_role,
            limits=quick,
            certificate=ServerCertificate(tls.certificate, tls.key) if tls else None,
            elsewhere=elsewhere,
        )


def inside(server: SmtpServer) -> SmtpSessions:
    """The sessions of a listener, with the memory that they share."""
    return server._smtp_sessions


def make_certificate(directory: Path) -> TlsSettings:
    """Make a self-signed certificate for localhost."""
    made = self_signed(directory, "DNS:localhost")
    return TlsSettings(made.certificate, made.key)


class Client:
    """A client that sends line by line; fixtures close all that are in `opened`."""

    opened: ClassVar[list["Client"]] = []

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, address: Address, **options) -> "Client":
        if address.path:
            streams = await asyncio.open_unix_connection(address.path)
        else:
            streams = await asyncio.open_connection(address.host, address.port, **options)
        client = cls(*streams)
        cls.opened.append(client)
        return client

    async def reply(self) -> str:
        """Return the last line of the next reply, or "" if the server has closed."""
        while True:
            line = (await asyncio.wait_for(self.reader.readline(), 120)).decode().rstrip("\r\n")
            if line[3:4] != "-":
                return line

    async def say(self, line: str) -> str:
        self.writer.write(line.encode() + b"\r\n")
        return await self.reply()

    async def say_all(self, *lines: str) -> list[str]:
        return [await self.say(line) for line in lines]

    def reset(self) -> None:
        """Reset the connection (RST)."""
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def open_transaction(self) -> None:
        await self.reply()
        assert [(await self.say(line))[:3] for line in OPENING] == ["250", "250", "250", "354"]
