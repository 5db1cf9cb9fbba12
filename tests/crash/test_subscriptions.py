"""The relay and a receiver are killed in turn while 400 messages arrive.

Each message is notified at least once, and in the order in which the mailbox got them.
"""

import json
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.crash.conftest import clients
from tests.support.ports import free_port
from tests.support.relay_process import ROOT, RelayProcess, until
from tests.support.subscribers import LOOPBACK, in_minutes, trusting
from tests.support.tls import new_authority

pytestmark = pytest.mark.crash

MESSAGES, CLIENTS, KILLS = 400, 4, 8
SEED = 20261125
# The receiver writes each body into a file, then answers: kill -9 loses nothing that it has answered.
PROGRAM = """
import signal, sys
from pathlib import Path
from tests.support.receiver import Receiver
from tests.support.tls import Certificate

certificate, key, port, path = sys.argv[1:]
journal = open(path, "ab", buffering=0)
receiver = Receiver(
    Certificate(Path(certificate), Path(key)), port=int(port),
    on_body=lambda body: body and journal.write(body + b"\\n"),
)
signal.pause()
"""


class ReceiverProcess:
    """A receiver in a process of its own, which can be killed and started again."""

    def __init__(self, folder: Path, certificate: Path, key: Path) -> None:
        self.port, self.journal = free_port(), folder / "journal"
        self._words = [str(one) for one in (certificate, key, self.port, self.journal)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-c", PROGRAM, *self._words]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(command, env=environment)

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def ids(self) -> list[str]:
        """The ids of all notifications; the last line may be cut off."""
        found = []
        lines = self.journal.read_bytes().split(b"\n") if self.journal.exists() else []
        for line in lines:
            with suppress(ValueError):
                found += [one["resourceData"]["id"] for one in json.loads(line)["value"]]
        return found


def submit(relay: RelayProcess, number: int) -> None:
    content = f"Subject: {number}\r\n\r\nHello.\r\n".encode()
    relay.submit("guest@remote.test", ["alice@example.test"], content)


def stored(relay: RelayProcess) -> list[str]:
    """The ids of all messages of the inbox, by any order."""
    found, path = [], "/me/mailFolders/inbox/messages?$select=id&$top=999"
    while path:
        page = relay.graph("GET", path).json()
        found += [one["id"] for one in page["value"]]
        path = page.get("@odata.nextLink", "").partition("/v1.0")[2]
    return found


def test_each_message_is_notified_in_order(tmp_path: Path) -> None:
    authority = new_authority(tmp_path)
    certificate = authority.issue("IP:127.0.0.1")
    receiver = ReceiverProcess(tmp_path, certificate.certificate, certificate.key)
    drawn = random.Random(SEED)
    config = LOOPBACK | {"delivery": {"shutdown_grace": "1s"}}
    receiver.start()
    with RelayProcess(config=config, environment=trusting(authority)) as relay:
        body = {
            "changeType": "created",
            "resource": "me/mailFolders('inbox')/messages",
            "notificationUrl": f"https://127.0.0.1:{receiver.port}/hook",
            "expirationDateTime": in_minutes(60),
        }
        until("it subscribed", lambda: relay.graph("POST", "/subscriptions", body).status == 201)
        delta = "/me/mailFolders/inbox/messages/delta?$deltatoken=latest"
        link = relay.graph("GET", delta).json()["@odata.deltaLink"]
        with clients(CLIENTS, partial(submit, relay), MESSAGES) as accepted:
            for number in range(KILLS):
                goal = number * MESSAGES // KILLS + drawn.randint(1, MESSAGES // KILLS // 2)
                until("some were accepted", lambda: len(accepted) >= goal)  # noqa: B023
                (relay if number % 2 else receiver).kill()
                (relay if number % 2 else receiver).start()
        until("the queue is empty", lambda: not relay.queue(), timeout_s=60)
        there = set(stored(relay))
        assert len(there) >= MESSAGES  # a client repeats what was accepted when it got no answer
        until("all were notified", lambda: there <= set(receiver.ids()))
        order: list[str] = []
        while link:
            page = relay.graph("GET", link.partition("/v1.0")[2]).json()
            order += [one["id"] for one in page["value"]]
            link = page.get("@odata.nextLink", "")
        first_seen = list(dict.fromkeys(receiver.ids()))
        assert first_seen == order
        repeated = len(receiver.ids()) - len(first_seen)
        assert repeated <= 100 * KILLS  # a batch at each kill
        assert relay.faults() == []
    receiver.kill()
