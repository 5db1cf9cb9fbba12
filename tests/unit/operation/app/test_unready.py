"""What makes a relay not ready: a queue that cannot be read, clients of SMTP that wait."""

import asyncio
import contextlib
import http.client
import os
import re
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from relay.delivery import scheduler
from relay.operation.app.daemon import Daemon
from relay.transport.gate import keeper as keeper_module
from tests.support.lying_child import WORDS
from tests.support.remote_mx import RemoteMx
from tests.support.spools import new_message

SOON_S = 120.0


@pytest.fixture
async def daemon(settings_with, composed) -> AsyncIterator[Daemon]:
    async with RemoteMx(replies={"MAIL": "451 4.3.2 later"}) as remote:
        route = {"domain": "a.test", "next_hop": f"smtp://{remote.host}:{remote.port}"}
        daemon = composed(settings_with(route=[route]))
        await daemon.start()
        yield daemon
        await daemon.stop()


async def asked(daemon: Daemon, path: str) -> tuple[int, str]:
    def ask() -> tuple[int, str]:
        address = daemon.http_servers[0].bound[0]
        with closing(http.client.HTTPConnection(address.host, address.port)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    return await asyncio.to_thread(ask)


async def until_status(daemon: Daemon, status: int) -> str:
    async with asyncio.timeout(SOON_S):
        while (answer := await asked(daemon, "/readyz"))[0] != status:
            await asyncio.sleep(0.02)
    return answer[1]


async def until_answer(daemon: Daemon, answer: tuple[int, str]) -> None:
    async with asyncio.timeout(SOON_S):
        while await asked(daemon, "/readyz") != answer:
            await asyncio.sleep(0.02)


async def unread_s(daemon: Daemon) -> float:
    _, text = await asked(daemon, "/metrics")
    (line,) = (one for one in text.splitlines() if one.startswith("relay_queue_unread_seconds "))
    return float(line.split()[1])


async def test_the_reason_is_said_once_it_lasts(daemon, tmp_path: Path, monkeypatch) -> None:
    assert (await asked(daemon, "/readyz"), await unread_s(daemon)) == ((200, "ready\n"), 0)
    monkeypatch.setattr(scheduler, "_AFTER_FAULT_S", 0.01)
    monkeypatch.setattr(scheduler, "_UNREADABLE_S", 3600.0)
    message = new_message([("mx:a.test", "x@a.test")])
    with closing(apsw.Connection(str(tmp_path / "state/spool.sqlite"))) as other:
        other.execute("ALTER TABLE recipient RENAME COLUMN owed_report TO owed")
        await daemon.base.spool.accept(message, claim=False)
        daemon.transport.scheduler.accepted_unclaimed([message])
        async with asyncio.timeout(SOON_S):
            while not await unread_s(daemon):
                await asyncio.sleep(0.01)
        assert (await asked(daemon, "/readyz"))[0] == 200, "it may pass"
        monkeypatch.setattr(scheduler, "_UNREADABLE_S", 0.02)
        text = await until_status(daemon, 503)
        assert "the queue cannot be read, and mail in it waits: " in text
        assert "no such column: r.owed_report" in text
        other.execute("ALTER TABLE recipient RENAME COLUMN owed TO owed_report")
    await until_status(daemon, 200)
    assert await unread_s(daemon) == 0


async def test_smtp_that_stands_still_is_said(settings_with, composed, monkeypatch) -> None:
    monkeypatch.setattr(keeper_module, "_TICK_S", 0.01)
    monkeypatch.setattr(keeper_module, "_UNANSWERED_MAX", 1_000_000)
    settings = settings_with(smtp=[{"listen": "127.0.0.1:0"}], smtp_gate="on")
    daemon = composed(settings, gate_words=WORDS)
    try:
        await daemon.start()
        assert await asked(daemon, "/readyz") == (200, "ready\n")
        child = daemon.transport.gate._child.process.process.pid
        os.kill(child, signal.SIGSTOP)
        text = await until_status(daemon, 503)
        assert text == "the process of the SMTP sessions does not answer\n"
        os.kill(child, signal.SIGCONT)
        assert await until_status(daemon, 200) == "ready\n"
    finally:
        await daemon.stop()


@pytest.mark.parametrize("gate", ["on", "off"])
async def test_full_places_of_strangers_are_said(settings_with, composed, gate) -> None:
    smtp = {"listen": "127.0.0.1:0", "trusted_networks": [], "max_sessions": 1}
    daemon = composed(settings_with(smtp=[smtp], smtp_gate=gate), gate_words=WORDS)
    try:
        await daemon.start()
        address = daemon.transport.smtp_servers[0].address
        with socket.create_connection((address.host, address.port)):
            said = f"ready; the places of strangers are full at {address}\n"
            await until_answer(daemon, (200, said))
            assert "\nrelay_smtp_strangers_full 1.0\n" in (await asked(daemon, "/metrics"))[1]
        await until_answer(daemon, (200, "ready\n"))
    finally:
        await daemon.stop()


@pytest.mark.parametrize("gate", ["on", "off"])
async def test_a_bound_that_refuses_sessions_is_said(settings_with, composed, gate) -> None:
    smtp = {"listen": "127.0.0.1:0", "max_sessions": 1}
    daemon = composed(settings_with(smtp=[smtp], smtp_gate=gate), gate_words=WORDS)
    try:
        await daemon.start()
        place = daemon.transport.smtp_servers[0].address
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(socket.create_connection((place.host, place.port)))
            await until_answer(daemon, (200, "ready; full: SMTP trusted clients\n"))
        [line] = re.findall(
            r'^relay_shares_refused_total\{bound="SMTP trusted clients"\} .*$',
            (await asked(daemon, "/metrics"))[1],
            re.MULTILINE,
        )
        assert float(line.split()[-1]) >= 1
    finally:
        await daemon.stop()
