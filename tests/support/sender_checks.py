"""Sender checks with real worker processes, and a name server with the zone of a test.

async with open_checks({"bank.test": txt("v=spf1 -all")}) as checks:
    spf, helo, dkim, dmarc = await checks(content, "alice@bank.test", ip="192.0.2.1")
"""

import contextlib
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import dkim
import pytest

from relay.base.clock import SystemClock
from relay.base.message.authentication_results import AuthResult
from relay.base.message.content import Content
from relay.base.settings.tree import DnsSettings
from relay.transport.checks import checker, workers
from relay.transport.checks.checker import SenderChecker, SenderQuestion
from relay.transport.routing.resolver import Resolver
from relay.transport.signing.keys import SigningKey
from relay.transport.signing.private_keys import write_pem
from tests.support.dns_server import DnsThread, Zone

_PATIENT = [
    *((checker, name) for name in ("ATTEMPT_S", "DNS_LIMIT_S")),
    *((workers, name) for name in ("_TURN_S", "_REQUEST_S", "_FIRST_REQUEST_S")),
]


class Checks:
    """A checker, and the name server that it asks."""

    def __init__(self, dns: DnsThread) -> None:
        self.dns = dns
        self.settings, clock = DnsSettings((dns.address,), timeout=100.0), SystemClock()
        self.resolver = Resolver(self.settings, clock=clock, rng=Random(1), hostname="relay.test")
        self.checker = SenderChecker(self.resolver.answers_for_clients, clock=clock)

    def use(self, zone: Zone) -> None:
        """Answer from another zone."""
        self.dns.zone = zone
        self.dns.queries.clear()
        self.resolver.use(self.settings, port=25)

    async def __call__(
        self,
        content: Content,
        sender: str,
        *,
        ip: str = "192.0.2.1",
        helo: str = "mx.bank.test",
        needs_all: bool = True,
    ) -> tuple[AuthResult, ...]:
        question = SenderQuestion(ip, helo, sender, "relay.test")
        return await self.checker.check(question, content, needs_all=needs_all)


@contextlib.asynccontextmanager
async def open_checks(zone: Zone | None = None) -> AsyncIterator[Checks]:
    """Only a silent name server uses up its time, however busy the machine is."""
    with DnsThread(zone) as dns, pytest.MonkeyPatch.context() as patch:
        for module, name in _PATIENT:
            patch.setattr(module, name, 100.0)
        checks = Checks(dns)
        try:
            yield checks
        finally:
            checks.checker.close()
            await checks.resolver.close()


def txt(*texts: str | bytes) -> dict[str, list[str]]:
    """TXT records, each in strings of at most 250 characters."""
    plain = [text.decode() if isinstance(text, bytes) else text for text in texts]
    return {
        "TXT": [
            " ".join(f'"{text[at : at + 250]}"' for at in range(0, len(text), 250))
            for text in plain
        ]
    }


def signed(content: bytes, key: SigningKey, **options: Any) -> bytes:
    """A message with a signature of dkimpy before it; `options` are those of dkim.sign()."""
    options = {"include_headers": [b"From", b"Subject"]} | options
    selector, domain = key.selector.encode(), key.domain.encode()
    return bytes(dkim.sign(content, selector, domain, write_pem(key.private), **options)) + content
