"""A relay whose spool disk fails: no 250 for mail that is not stored, no delivery of rejected mail."""

import asyncio
import http.client
import json
import mailbox
import smtplib
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay.app.daemon import Daemon
from tests.support.graph_client import message
from tests.support.vfs import FaultyDisk

SOON_S = 15.0


@dataclass
class Running:
    """A relay in this process, for clients in threads."""

    daemon: Daemon
    folder: Path

    async def submit(self, subject: str) -> tuple[int, bytes]:
        """The reply to the final dot of a message to alice, or an earlier refusal."""
        return await asyncio.to_thread(self._submit, subject)

    async def until_accepted(self, subject: str) -> None:
        """Submit until it is taken: a relay knows some time later that its disk is well."""
        async with asyncio.timeout(SOON_S):
            while (await self.submit(subject))[0] != 250:
                await asyncio.sleep(0.05)

    async def send_mail(self, subject: str) -> int:
        """The status of alice's message to herself."""
        return await asyncio.to_thread(self._send_mail, subject)

    async def until_inbox_has(self, *subjects: str) -> None:
        async with asyncio.timeout(SOON_S):
            while sorted(self._inbox()) != sorted(subjects):
                await asyncio.sleep(0.02)

    def _submit(self, subject: str) -> tuple[int, bytes]:
        address = self.daemon.smtp_servers[0].address
        with smtplib.SMTP(address.host, address.port, "client.test", SOON_S) as session:
            session.ehlo()
            replies = [session.mail("x@remote.test"), session.rcpt("alice@example.test")]
            refused = [one for one in replies if one[0] != 250]
            text = f"Subject: {subject}\r\n\r\nHello.\r\n"
            reply = refused[0] if refused else session.data(text)
            assert session.noop()[0] == 250
        return reply

    def _send_mail(self, subject: str) -> int:
        address = self.daemon.http_servers[0].bound[0]
        body = {"message": message(to=["alice@example.test"], subject=subject)}
        headers = {"Authorization": "Bearer alice", "Content-Type": "application/json"}
        with closing(http.client.HTTPConnection(address.host, address.port)) as connection:
            connection.request("POST", "/v1.0/me/sendMail", json.dumps(body), headers)
            return connection.getresponse().status

    def _inbox(self) -> list[str]:
        home = self.folder / "mail/example.test/alice"
        if not all((home / part).is_dir() for part in ("cur", "new")):  # it is made just now
            return []
        return [str(one["subject"]) for one in mailbox.Maildir(home, create=False)]


@pytest.fixture
def disk() -> Iterator[FaultyDisk]:
    with FaultyDisk() as disk:
        yield disk


@pytest.fixture
async def running(
    disk: FaultyDisk, settings_with, composed, tmp_path: Path
) -> AsyncIterator[Running]:
    daemon = composed(settings_with())
    await daemon.start()
    yield Running(daemon, tmp_path)
    disk.is_well()
    await daemon.stop()


@pytest.mark.parametrize(
    ("fault", "code", "status"),
    [("sync", 451, b"4.3.0"), ("write", 451, b"4.3.0"), ("full", 452, b"4.3.1")],
)
async def test_no_250_where_the_commit_fails(
    disk: FaultyDisk, running: Running, fault: str, code: int, status: bytes
) -> None:
    assert (await running.submit("before"))[0] == 250
    await running.until_inbox_has("before")
    disk.refuses(fault)
    reply = await running.submit("refused")
    assert (reply[0], reply[1][:5]) == (code, status)
    replies = await asyncio.gather(*(running.submit("refused") for _ in range(5)))
    assert {reply[0] for reply in replies} <= {code, 452}  # the relay may know it by now
    disk.is_well()
    await running.until_accepted("behind")
    await running.until_inbox_has("before", "behind")


@pytest.mark.parametrize("fault", ["sync", "full"])
async def test_a_submission_waits_for_the_spool_disk_and_is_sent_once(
    disk: FaultyDisk, running: Running, fault: str
) -> None:
    disk.refuses(fault)
    assert await running.send_mail("waits") == 202
    ready = running.folder / "mail/.submissions/ready"
    assert len(list(ready.iterdir())) == 1
    async with asyncio.timeout(SOON_S):
        while disk.refusals[fault] < 2:  # it was attempted, and again
            await asyncio.sleep(0.02)
    assert len(list(ready.iterdir())) == 1
    disk.is_well()
    await running.until_inbox_has("waits")
    async with asyncio.timeout(SOON_S):
        while list(ready.iterdir()):
            await asyncio.sleep(0.02)
        while any((counts := await running.daemon.spool.counts()).entries.values()):
            await asyncio.sleep(0.02)  # it is in the mailbox before it is settled
    assert counts.unaccounted == 0
