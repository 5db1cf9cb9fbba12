"""Settling: what counts as something to do, and what does not."""

import asyncio
import json
import smtplib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.base.advanceable_clock import AdvanceError
from relay.base.socket_address import Address
from relay.development.options import DevelopmentOptions
from relay.development.relay import DevelopmentRelay
from relay.operation.app.development_folder import open_folder
from relay.operation.app.settling import SETTLE_S, UnsettledError

ALICE, BOB = "alice@example.test", "bob@example.test"


class Sender:
    """A development relay, and a client of it. The client returns with the response."""

    def __init__(self, relay: DevelopmentRelay) -> None:
        self.relay = relay

    async def http(self, path: str, body: dict) -> None:
        http = self.relay.addresses.http
        reader, writer = await asyncio.open_connection(http.host, http.port)
        octets = json.dumps(body).encode()
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer alice\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(octets)}\r\n\r\n".encode()
            + octets
        )
        status = await reader.readline()
        assert b" 202 " in status, status
        writer.close()

    async def send_mail(self, to: str = BOB, **properties) -> None:
        message = {"subject": "hello", "toRecipients": [{"emailAddress": {"address": to}}]}
        await self.http("/v1.0/me/sendMail", {"message": message | properties})

    async def submit(self, to: str = BOB) -> None:
        def run() -> None:
            smtp = self.relay.addresses.smtp
            with smtplib.SMTP(smtp.host, smtp.port, "client.test", 20) as session:
                session.sendmail(ALICE, [to], b"Subject: hello\r\n\r\nHello.\r\n")

        await asyncio.to_thread(run)

    def files(self, person: str = "bob", folder: str = "") -> list[Path]:
        mailbox = self.relay.folder.path / "mail/example.test" / person / folder
        return [*mailbox.glob("new/*"), *mailbox.glob("cur/*")]

    async def queue(self) -> dict[str, int]:
        counts = await self.relay.daemon.base.spool.counts()
        return {state: number for state, number in counts.entries.items() if number}


@pytest.fixture
async def sender() -> AsyncIterator[Sender]:
    with tempfile.TemporaryDirectory(prefix="settle") as directory:
        folder = open_folder(Path(directory) / "dev")
        any_port = Address("127.0.0.1", 0)
        http = Address("127.0.0.1", 0, plain=True)
        relay = DevelopmentRelay(
            folder, DevelopmentOptions(http=http, https=any_port, smtp=any_port)
        )
        try:
            await relay.start()
            yield Sender(relay)
        finally:
            await relay.stop()
            folder.remove()


async def test_what_was_sent_is_delivered_when_it_returns(sender):
    for number in range(1, 21):
        await sender.send_mail()
        await sender.relay.settle()
        assert (len(sender.files()), len(sender.files("alice", ".Sent"))) == (number, number)


async def test_reports_are_delivered_as_well(sender):
    for number in range(1, 6):
        await sender.send_mail("x+550@elsewhere.test")
        await sender.relay.settle()
        assert len(sender.files("alice")) == number


async def test_a_scheduled_send_is_nothing_to_do_until_its_time(sender):
    property_ = {"id": "SystemTime 0x3FEF", "value": "2100-01-01T00:00:00Z"}
    await sender.send_mail(singleValueExtendedProperties=[property_])
    await sender.relay.settle()
    assert sender.files() == []
    assert sender.relay.daemon.base.store.ready.timer.count == 1


async def test_a_request_in_progress_is_something_to_do(sender):
    await sender.relay.settle()  # what a start does
    http = sender.relay.addresses.http
    _, writer = await asyncio.open_connection(http.host, http.port)
    writer.write(
        b"POST /v1.0/me/sendMail HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer alice\r\n"
        b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    while not sender.relay.daemon.settling.graph.changes_in_progress:
        await asyncio.sleep(0.001)
    with pytest.raises(UnsettledError, match=r"after 0\.05 seconds: HTTP requests [a-z ]+: 1\b"):
        await sender.relay.settle(0.05)
    writer.close()
    await sender.relay.settle()


async def test_the_error_says_what_is_in_progress(sender):
    await sender.relay.settle()  # what a start does
    busy = ["a report of the simulated internet"]
    sender.relay.daemon.settling.others.append(lambda: busy[0])
    with pytest.raises(UnsettledError, match=r"^still in progress after 0\.01 seconds: .*a report"):
        await sender.relay.settle(0.01)
    busy[0] = ""
    await sender.relay.settle()


async def test_an_advance_that_cannot_settle_says_how_far_it_went(sender):
    relay = sender.relay
    relay.daemon.settling.others.append(lambda: "a report" if relay.clock.advanced_s > 50 else "")
    relay.clock.call_later(60, int)

    async def settle() -> None:
        await relay.settle(0.0 if relay.clock.advanced_s > 50 else SETTLE_S)

    relay._advances._settle = settle
    with pytest.raises(
        AdvanceError, match=r"advanced by [56].* of 3600 seconds: still in .* a report$"
    ):
        await relay.advance_clock(3600)
    assert relay.folder.advanced_s() == relay.clock.advanced_s
    assert 59 < relay.clock.advanced_s < 61
