"""Sender checks with real worker processes, and a name server with the zone of a test.

async with open_checks({"bank.test": txt("v=spf1 -all")}) as checks:
    spf, helo, dkim, dmarc = await checks(content, "alice@bank.test", ip="192.0.2.1")
"""

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import dkim

from relay.base.clock import SystemClock
from relay.base.message.authentication_results import AuthResult
from relay.base.message.content import Content
from relay.transport.checks.checker import SenderChecker, SenderQuestion
from relay.transport.routing.dns_cache import DnsCache
from relay.transport.routing.dns_client import StubResolver
from relay.transport.signing.keys import SigningKey
from relay.transport.signing.private_keys import write_pem
from tests.support.dns_server import DnsThread, Zone


class Checks:
    """A checker, and the name server that it asks."""

    def __init__(self, dns: DnsThread) -> None:
        self.dns = dns
        self.resolver = StubResolver((dns.address,), timeout_s=10)
        self.cache = DnsCache(self.resolver.ask, clock=SystemClock())
        self.checker = SenderChecker(self.ask, clock=SystemClock())

    async def ask(self, questions: Sequence[tuple[str, str]], **_: Any) -> Any:
        return await self.cache.answers(*questions)

    def use(self, zone: Zone) -> None:
        """Answer from another zone."""
        self.dns.zone = zone
        self.dns.queries.clear()
        self.cache = DnsCache(self.resolver.ask, clock=SystemClock())

    async def __call__(
        self, content: Content, sender: str, *, ip: str = "192.0.2.1", helo: str = "mx.bank.test"
    ) -> tuple[AuthResult, ...]:
        question = SenderQuestion(ip, helo, sender, "relay.test")
        return await self.checker.check(question, content)


@contextlib.asynccontextmanager
async def open_checks(zone: Zone | None = None) -> AsyncIterator[Checks]:
    with DnsThread(zone) as dns:
        checks = Checks(dns)
        try:
            yield checks
        finally:
            checks.checker.close()
            await checks.cache.close()


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
