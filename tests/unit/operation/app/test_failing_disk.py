"""A relay whose spool disk fails: no 250 for mail that is not stored, no delivery of rejected mail."""

import asyncio
import re
import smtplib
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest

from relay.operation.app.daemon import Daemon
from relay.store.spool.sqlite import damage, database, write_ahead_log
from relay.store.spool.types import SpoolError
from tests.support.remote_mx import RemoteMx
from tests.support.vfs import FaultyDisk

SOON_S = 120.0


@dataclass
class Running:
    """A relay in this process, for clients in threads."""

    daemon: Daemon

    async def submit(self, subject: str, to: str = "alice@example.test") -> tuple[int, bytes]:
        """The reply to the final dot of a message, or an earlier refusal."""
        return await asyncio.to_thread(self._submit, subject, to)

    def _submit(self, subject: str, to: str) -> tuple[int, bytes]:
        address = self.daemon.transport.smtp_servers[0].address
        with smtplib.SMTP(address.host, address.port, "client.test", SOON_S) as session:
            session.ehlo()
            replies = [session.mail("x@remote.test"), session.rcpt(to)]
            refused = [one for one in replies if one[0] != 250]
            text = f"Subject: {subject}\r\n\r\nHello.\r\n"
            reply = refused[0] if refused else session.data(text)
            assert session.noop()[0] == 250
        return reply


@pytest.fixture
def disk() -> Iterator[FaultyDisk]:
    with FaultyDisk() as disk:
        yield disk


@pytest.fixture
async def relaying(
    disk: FaultyDisk, settings_with, composed, monkeypatch
) -> AsyncIterator[tuple[Running, RemoteMx]]:
    """A relay that delivers remotely, checkpoints often and has nothing in SQLite's cache."""
    monkeypatch.setattr(damage, "_RETRY_S_MAX", 0.5)
    monkeypatch.setattr(database, "_CACHE_KIB", 1)
    monkeypatch.setattr(write_ahead_log, "_PAGES_IDLE", 20)
    monkeypatch.setattr(write_ahead_log, "_PAGES_BUSY", 40)
    async with RemoteMx() as remote:
        route = {"domain": "remote.test", "next_hop": f"smtp://{remote.host}:{remote.port}"}
        daemon = composed(settings_with(route=[route]))
        await daemon.start()
        yield Running(daemon), remote
        disk.is_well()
        await daemon.stop()


@pytest.mark.parametrize(
    ("faults", "suffix"),
    [
        (("read",), ""),
        (("read",), "-wal"),
        (("write",), ""),
        (("sync",), ".sqlite"),  # of a checkpoint
        (("read", "write", "sync"), ""),
    ],
)
async def test_what_was_accepted_around_a_short_eio_is_sent_once(
    disk: FaultyDisk, relaying: tuple[Running, RemoteMx], faults: tuple[str, ...], suffix: str
) -> None:
    running, remote = relaying
    accepted: list[str] = []
    is_over = False

    async def client(name: str) -> None:
        number = 0
        while not is_over:
            subject = f"{name}-{number}"
            if (await running.submit(subject, to="x@remote.test"))[0] == 250:
                accepted.append(subject)
            number += 1

    async with asyncio.timeout(2 * SOON_S), asyncio.TaskGroup() as clients:
        for name in ("a", "b", "c"):
            clients.create_task(client(name))
        for _ in range(3):
            while_well = len(accepted)
            while len(accepted) < while_well + 10:
                await asyncio.sleep(0.01)
            disk.refusals.clear()
            for fault in faults:
                disk.refuses(fault, suffix=suffix)
            while disk.refusals.total() < 5:
                await asyncio.sleep(0.01)
            disk.is_well()
            while running.daemon.base.spool.health():
                await asyncio.sleep(0.01)
        is_over = True
    async with asyncio.timeout(2 * SOON_S):
        while True:
            with suppress(SpoolError):
                counts = await running.daemon.base.spool.counts()
                if not counts.unaccounted and not any(counts.entries.values()):
                    break
            await asyncio.sleep(0.05)
    sent = [re.search(rb"Subject: (\S+)", one.content)[1].decode() for one in remote.envelopes]
    assert sorted(sent) == sorted(accepted)
