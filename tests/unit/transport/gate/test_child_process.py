"""The real child: what it has, and what becomes of it when it or its owner stands still or dies."""

import asyncio
import os
import resource
import signal
import sys
from pathlib import Path

import pytest

from relay.base.child_process import ChildProcess
from relay.base.message.content import LARGE_BYTES
from relay.transport.gate import keeper as keeper_module
from tests.support.events import until
from tests.support.lying_child import HELLO, WAIT_S, Owner, owner_of

LINE = b"y" * 70 + b"\r\n"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")


async def replies(owner: Owner, *lines: bytes) -> list[bytes]:
    """The first reply to each, and the greeting; b"" for a connection that was closed."""
    reader, writer = await asyncio.open_connection(
        owner.server.address.host, owner.server.address.port
    )
    owner.writers.append(writer)
    found = []
    try:
        for line in (b"", *lines):
            writer.write(line)
            found.append((await asyncio.wait_for(reader.readline(), WAIT_S))[:3])
    except ConnectionError:
        found.append(b"")
    return found


def status_of(task: Path) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())


async def test_the_child_has_nothing_but_its_sockets(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RELAY_SECRET", "s3cret")
    async with owner_of(tmp_path, monkeypatch, None) as owner:
        sent = [
            b"HELO x\r\n",
            b"MAIL FROM:<a@x.test>\r\n",
            b"RCPT TO:<bob@example.test>\r\n",
            b"DATA\r\n",
            HELLO + LINE * (LARGE_BYTES // len(LINE) + 1) + b".\r\n",
        ]
        # more at once than the kernel holds packets for one socket
        for found in await asyncio.gather(*(replies(owner, *sent) for _ in range(15))):
            assert found == [b"220", b"250", b"250", b"250", b"354", b"250"]
        process = Path(f"/proc/{owner.pid}")
        tasks = [status_of(one) for one in (process / "task").iterdir()]
        assert len(tasks) > 1  # one has written the body
        for one in tasks:  # one filter for rings, one for all
            assert (one["NoNewPrivs"], one["Seccomp_filters"]) == ("1", "2")
        ignored = int(tasks[0]["SigIgn"], 16)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            assert ignored >> (number - 1) & 1
        assert os.getsid(owner.pid) != os.getsid(0)  # no terminal's
        assert "Max core file size 0 0" in " ".join((process / "limits").read_text().split())
        await many_files(owner)
        has_only_sockets(process)


async def test_an_owner_of_0_5_0_that_runs_on_starts_the_child(tmp_path, monkeypatch) -> None:
    def child(module, packets, *_, **more):
        return ChildProcess(module, packets, *("json", "", "color", "", ""), **more)

    async with owner_of(tmp_path, monkeypatch, child) as owner:
        assert await replies(owner, b"HELO x\r\n") == [b"220", b"250"]


def has_only_sockets(process: Path) -> None:
    """It has no other files, and no secret of its owner's."""
    try:
        links = [str(one.readlink()) for one in (process / "fd").iterdir()]
        opened = [one for one in links if "/libffi.so" not in one]  # which keeps itself open
        known = {"/dev/null", str((Path("/proc") / str(os.getpid()) / "fd/2").readlink())}
        assert {one.partition(":")[0] for one in opened if one not in known} <= {
            "socket",
            "pipe",
            "anon_inode",
        }
        told = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        assert b"s3cret" not in told
        names = {one.partition(b"=")[0] for one in (process / "environ").read_bytes().split(b"\0")}
        assert names <= {b"PYTHONPATH", b""}
    except PermissionError:
        pytest.skip("only with CAP_SYS_PTRACE a process can look into the child")


async def many_files(owner: Owner) -> None:
    """With few descriptors left, clients are closed; the child lives."""
    pid, opened = owner.pid, owner.keeper.sessions
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (40, before[1]))
    greetings = [(await replies(owner))[0] for _ in range(20)]
    assert greetings[:1] + greetings[-1:] == [b"220", b""]
    async with asyncio.timeout(WAIT_S):  # of those that are closed, the owner hears
        while owner.keeper.sessions != opened + greetings.count(b"220"):
            await asyncio.sleep(0.001)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    assert await replies(owner) == [b"220"]
    assert owner.pid == pid


async def test_a_child_that_stands_still_or_is_killed_is_replaced(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(keeper_module, "_TICK_S", 0.02)
    monkeypatch.setattr(keeper_module, "_UNANSWERED_MAX", 25)
    async with owner_of(tmp_path, monkeypatch, None) as owner:
        for number in (signal.SIGSTOP, signal.SIGKILL):
            os.kill(owner.pid, number)
            expected = (
                "it has not answered for 0.5 seconds" if number == signal.SIGSTOP else "signal 9"
            )
            await until(lambda expected=expected: expected in owner.reason)
            assert await replies(owner) == [b"220"]  # it waited for the next one
