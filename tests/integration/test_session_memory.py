"""The memory of many strangers who send at once, in a real relay: bounded, and given back."""

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.relay_process import RelayProcess, until

GATE = True

SESSIONS = 300
MIB = 1 << 20
LINES = (b"x" * 998 + b"\r\n") * 1000
HEADER = b"X-Long: " + b"y" * 60 + b"\r\n"


def resident_bytes(relay: RelayProcess) -> int:
    """The resident memory of the relay's processes: of the service, and of the SMTP sessions."""
    assert relay.process is not None
    pid, pages = relay.process.pid, 0
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for one in (pid, *children):
        pages += int(Path(f"/proc/{one}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def begin(relay: RelayProcess, number: int, content: bytes) -> socket.socket:
    """Open a session of a stranger, and send content without its end."""
    source = (f"127.0.2.{number % 10 + 1}", 0)
    opened = socket.create_connection(relay.smtp_address(), timeout=120, source_address=source)
    commands = (
        b"",
        b"EHLO c.test",
        b"MAIL FROM:<>",  # no name server is asked
        b"RCPT TO:<bob@example.test>",
        b"DATA",
    )
    with opened.makefile("rb") as replies:
        for command in commands:
            if command:
                opened.sendall(command + b"\r\n")
            while (reply := replies.readline())[3:4] == b"-":
                pass
    assert reply.startswith(b"354"), reply
    opened.sendall(content)
    return opened


@pytest.mark.parametrize(
    "content",
    [b"Subject: x\r\n\r\n" + LINES, HEADER * (1_000_000 // len(HEADER))],
    ids=["bodies", "headers"],
)
def test_300_messages_that_arrive_at_once_take_little_memory_and_give_it_back(content) -> None:
    with RelayProcess() as relay, ExitStack() as sessions:
        before = resident_bytes(relay)
        most = 0
        for number in range(SESSIONS):
            sessions.enter_context(begin(relay, number, content))
            most = max(most, resident_bytes(relay) - before)
        assert 20 * MIB < most <= 200_000_000, f"{most / MIB:.0f} MiB more"
        relay.submit("ann@other.test", ["bob@example.test"], source="127.0.0.2")
        sessions.close()
        until(
            "the memory is given back",
            lambda: resident_bytes(relay) - before <= 40_000_000,
            timeout_s=120,
        )
