"""A development relay whose pages are read by HTTP."""

import asyncio
import html
import re
import smtplib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from relay.base.settings.environment import shipped
from relay.development.relay import DevelopmentRelay
from relay.transport.policy.rule_book import RuleBook
from relay.transport.policy.rule_files import load_rules
from tests.support.development_relay import development_relay

_ADDRESS = re.compile(r'<span class="address"[^>]*>([^<]*)</span>')


def plain_addresses(page: str) -> str:
    """Return a page whose addresses have no places where they may break."""
    return _ADDRESS.sub(r"\1", page.replace("<wbr>", ""))


class PageReader:
    """A browser without scripts: it reads pages and sends their forms."""

    def __init__(self, relay: DevelopmentRelay, http: httpx.AsyncClient) -> None:
        self.relay, self.http = relay, http

    async def get(self, path: str, **more: Any) -> httpx.Response:
        return await self.http.get(path, **more)

    async def text(self, path: str) -> str:
        answer = await self.get(path)
        assert answer.status_code == 200, answer.text
        return plain_addresses(answer.text)

    async def csrf(self) -> str:
        found = re.search(r'name="csrf" value="([^"]+)"', await self.text("/clock"))
        assert found
        return found[1]

    async def post(self, path: str, fields: dict[str, Any], **more: Any) -> httpx.Response:
        """Send a form with the CSRF token of a page."""
        return await self.http.post(path, data={"csrf": await self.csrf()} | fields, **more)


async def submit(pages: PageReader, *mails: tuple[Sequence[str], bytes]) -> None:
    """Send messages, each to its recipients, by SMTP, and wait until everything that is due is done."""
    at = pages.relay.addresses.smtp

    def all_of_them() -> None:
        with smtplib.SMTP(at.host, at.port) as client:
            for recipients, content in mails:
                client.sendmail("alice@example.test", recipients, content)

    await asyncio.to_thread(all_of_them)
    await pages.relay.settle()


async def send(pages: PageReader, *recipients: str) -> None:
    await submit(pages, (recipients, b"Subject: x\r\n\r\nx"))


def plain(text: str) -> str:
    """The text without tags, with single spaces."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", text)).strip())


@pytest.fixture(scope="session")
def shipped_rules() -> RuleBook:
    """Read and tested once: that takes a relay 0.1 s and a process."""
    return RuleBook(load_rules(shipped("policies")))


@pytest.fixture
async def pages(short_path: Path, shipped_rules: RuleBook) -> AsyncIterator[PageReader]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("relay.development.relay._rules_of", lambda *_: shipped_rules)
        async with development_relay(short_path / "dev") as relay:
            address = f"http://{relay.addresses.http}"
            async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=120) as http:
                yield PageReader(relay, http)
