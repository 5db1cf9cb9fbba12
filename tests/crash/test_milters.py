"""A milter and the relay are killed (-9) in turn while mail arrives by SMTP and by sendMail.

Nothing is lost, nothing arrives twice, and no message is half changed: it has both fields of the
milter, or none, and none only where `when_down` says "accept".
"""

import contextlib
import http.client
import itertools
import smtplib
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.relay_process import ROOT, RelayProcess, until

pytestmark = pytest.mark.crash

ROUNDS = 3
LATER = "451 4.7.1 Service unavailable - try again later"
MILTER = """\
import asyncio, sys
from tests.support.milter import ScriptedMilter, added, packet, placed
async def run():
    script = {b"E": placed(b"i", 0, "X-First", "1") + added("X-Last", "2") + packet(b"c")}
    async with ScriptedMilter(script).at(sys.argv[1]):
        await asyncio.Event().wait()
asyncio.run(run())
"""


class Load:
    """Clients that send until it is over; `sent` has what the relay has promised to deliver."""

    def __init__(self, relay: RelayProcess) -> None:
        self.relay = relay
        self.sent: list[str] = []
        self.replies: Counter[str] = Counter()
        self.over = threading.Event()
        self._numbers = itertools.count()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The clients send inside."""
        deeds = (self._by_smtp, self._by_smtp, self._by_graph)
        threads = [threading.Thread(target=self._send, args=(deed,)) for deed in deeds]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.over.set()
            for thread in threads:
                thread.join()

    def _send(self, deed) -> None:
        while not self.over.is_set():
            subject = f"message {next(self._numbers)}"
            try:
                reply = deed(subject)
            except (
                OSError,
                http.client.HTTPException,
                smtplib.SMTPException,
                KeyError,
                IndexError,
            ):
                reply = "gone"
                self.over.wait(0.01)
            self.replies[reply] += 1
            if reply in ("250", "202"):
                self.sent.append(subject)

    def _by_smtp(self, subject: str) -> str:
        content = f"From: a@x.test\r\nSubject: {subject}\r\n\r\n{'text ' * 2000}\r\n"
        with self.relay.smtp() as client:
            client.helo()
            for command in ("MAIL FROM:<a@x.test>", "RCPT TO:<bob@example.test>"):
                code, text = client.docmd(command)
                if code != 250:
                    return f"{code} {text.decode()}"
            code, text = client.data(content)
            return "250" if code == 250 else f"{code} {text.decode()}"

    def _by_graph(self, subject: str) -> str:
        self.relay.send_mail(to=["bob@example.test"], subject=subject)
        return "202"


@pytest.mark.parametrize(("when_down", "reply"), [("defer", LATER), ("accept", "250")])
def test_nothing_is_lost(tmp_path: Path, when_down: str, reply: str, serve) -> None:
    path = tmp_path / "milter"
    milter = {
        "name": "scripted",
        "address": f"unix:{path}",
        "role": ["relay", "local"],
        "when_down": when_down,
    }
    relay = serve(config={"milter": [milter]})
    with contextlib.ExitStack() as stack:
        process = start_milter(path, stack)
        load = Load(relay)

        def more(wanted: str) -> None:
            before = load.replies[wanted]
            until(f"another {wanted}", lambda: load.replies[wanted] > before)

        with load.running():
            for _ in range(ROUNDS):
                more("250")
                process.kill()
                process.wait()
                more(reply)
                process = start_milter(path, stack)
                more("250")
                relay.kill()
                more("gone")
                relay.start()
        until("no submission is pending", lambda: not relay.pending_submissions())
        until("the queue is empty", lambda: not relay.queue())
        arrived = relay.maildir("bob")
        subjects = Counter(str(one["Subject"]) for one in arrived)
        assert set(load.sent) <= set(subjects)
        assert max(subjects.values()) == 1
        filtered = Counter((one["X-First"], one["X-Last"]) for one in arrived)
        assert set(filtered) <= {("1", "2"), (None, None)}
        unfiltered = [one for one in arrived if one["X-First"] is None]
        assert bool(unfiltered) == (when_down == "accept")
        assert filtered["1", "2"] > 0
        assert set(load.replies) <= {"250", "202", "gone", reply}, load.replies
        assert relay.faults() == []


def start_milter(path: Path, stack: contextlib.ExitStack) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", MILTER, str(path)], cwd=ROOT)
    stack.callback(process.wait)
    stack.callback(process.kill)
    until("the milter listens", lambda: path.is_socket() and is_open(path))
    return process


def is_open(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0
