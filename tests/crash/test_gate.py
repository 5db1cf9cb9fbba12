"""kill -9 of the process with the SMTP sessions, and of its owner, while a message is between them.

The owner stands still meanwhile, so that it is. See docs/design.md 7.1, 7.10; RFC 1047.
"""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.support.relay_process import RelayProcess, until

GATE = True

pytestmark = pytest.mark.crash

CONTENT = b"Subject: between\r\n\r\n" + b"0123456789abcdef\r\n" * 2000
COMMANDS = ("EHLO c.test", "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@example.test>", "DATA")


@pytest.fixture
def relay(serve) -> RelayProcess:
    return serve(config={"smtp_gate": "on"})


@contextmanager
def session(relay: RelayProcess, *commands: str) -> Iterator[tuple[socket.socket, BinaryIO]]:
    with (
        socket.create_connection(relay.smtp_address(), timeout=60) as client,
        client.makefile("rb") as replies,
    ):
        assert replies.readline().startswith(b"220 ")
        for command in commands:
            client.sendall(command.encode() + b"\r\n")
            while (reply := replies.readline())[3:4] == b"-":
                pass
            assert reply[:1] in (b"2", b"3"), reply
        yield client, replies


def has_read(pid: int, client: socket.socket) -> bool:
    """Whether a process has read all that a client has sent, and waits for more (proc(5))."""
    ends = {f":{client.getpeername()[1]:04X}", f":{client.getsockname()[1]:04X}"}
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()]
    queued = [row[4] for row in rows if {row[1][-5:], row[2][-5:]} == ends]  # unsent:unread
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return queued == ["00000000:00000000"] * 2 and state == "S"


@contextmanager
def between(relay: RelayProcess) -> Iterator[tuple[int, BinaryIO, BinaryIO]]:
    """The process with the sessions has handed a message over, and the owner has not read it; with
    the replies to its client and to one that waits.
    """
    child = relay.gate_pid
    with session(relay, *COMMANDS) as (client, replies), session(relay, "EHLO d.test") as (_, idle):
        os.kill(relay.ready["pid"], signal.SIGSTOP)
        client.sendall(CONTENT + b".\r\n")
        until("it is handed over", lambda: has_read(child, client))
        yield child, replies, idle


def last_line(replies: BinaryIO) -> bytes:
    """What a client reads before the end of its connection."""
    try:
        return replies.read()[:3]
    except ConnectionError:
        return b""


def test_what_a_killed_process_has_handed_over_is_accepted(relay: RelayProcess) -> None:
    with between(relay) as (child, replies, idle):
        os.kill(child, signal.SIGKILL)
        os.kill(relay.ready["pid"], signal.SIGCONT)
        assert (last_line(replies), last_line(idle)) == (b"", b"")
        until("it is noticed", relay.faults)
        with session(relay):  # which waits for the next process
            until("it has a process", lambda: relay.gate_pid != child)
    until("it is delivered", lambda: relay.subjects("bob") == ["between"])
    (fault,) = relay.faults()
    assert "the process of the SMTP sessions ended: " in fault
    assert "signal 9" in fault
    assert relay.request("GET", "/readyz").status == 200
    assert relay.metric("relay_queue_unaccounted") == 0


def test_clients_hear_that_the_owner_is_gone(relay: RelayProcess) -> None:
    with between(relay) as (child, replies, idle):
        relay.kill()
        assert (last_line(replies), last_line(idle)) == (b"", b"421")  # it may be committed
        until("it has ended", lambda: not Path(f"/proc/{child}").exists())
    relay.start()
    assert relay.queue() == []
    with session(relay, *COMMANDS) as (client, replies):
        client.sendall(CONTENT + b".\r\n")
        assert replies.readline().startswith(b"250 ")
    until("it is delivered", lambda: relay.subjects("bob") == ["between"])


def test_the_rest_of_the_relay_goes_on_without_sessions(relay: RelayProcess) -> None:
    for kill in range(3):
        os.kill(child := relay.gate_pid, signal.SIGKILL)
        if kill == 2:  # only then there is a pause, of a second
            until("503", lambda: relay.request("GET", "/readyz").status == 503)
        relay.send_mail(to=["bob@example.test"], subject="by HTTP")
        until("another one", lambda pid=child: relay.gate_pid != pid)
    until("all is delivered", lambda: relay.subjects("bob") == ["by HTTP"] * 3)
    assert relay.request("GET", "/readyz").status == 200
