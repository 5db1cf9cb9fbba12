"""Clients submit by SMTP and by sendMail while the relay is killed (-9) and started again, and in
turn with it only the process of the SMTP sessions. `make crash RUNS=200` kills it as often.

Every message that got a 250 or a 202 arrives, whole. See docs/design.md 7, invariants
1 and 10; RFC 5321 4.5.4 (a client keeps what was not accepted).
"""

import http.client
import os
import random
import signal
import smtplib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.support.long_tests import long
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes

pytestmark = pytest.mark.crash

SEED = 20240229
KILLS = int(os.environ.get("RUNS", "4"))
SMTP_CLIENTS, GRAPH_CLIENTS = 4, 2
PER_TURN = 60
TEXT = "".join(f"line {number}: {'abcdefgh' * 7}\r\n" for number in range(200))


class Load:
    """Threads that submit, each message again and again until it is accepted."""

    def __init__(self, relay: RelayProcess) -> None:
        self.relay = relay
        self.accepted: set[str] = set()
        self.over = threading.Event()
        self._lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[None]:
        work = [self._by_smtp] * SMTP_CLIENTS + [self._by_graph] * GRAPH_CLIENTS
        threads = [threading.Thread(target=one, args=(number,)) for number, one in enumerate(work)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.over.set()
            for thread in threads:
                thread.join()

    def _by_smtp(self, client: int) -> None:
        number = 0
        while not self.over.is_set():
            with suppress(OSError, smtplib.SMTPException), self.relay.smtp() as session:
                session.ehlo()
                while not self.over.is_set():
                    address = f"smtp-{client}-{number}@a.test"
                    content = f"Subject: {address}\r\n\r\n{TEXT}"
                    session.sendmail("alice@example.test", [address], content)
                    self._accept(address)
                    number += 1

    def _by_graph(self, client: int) -> None:
        number = 0
        while not self.over.is_set():
            address = f"graph-{client}-{number}@a.test"
            with suppress(OSError, http.client.HTTPException):
                self.relay.send_mail(to=[address], subject=address, text=TEXT)
                self._accept(address)
                number += 1

    def _accept(self, address: str) -> None:
        with self._lock:
            self.accepted.add(address)


@long
def test_kills_under_load_lose_no_accepted_message() -> None:
    rng = random.Random(SEED)
    with Remotes() as remotes:
        remote = remotes.start("a.test")
        with remotes.relay(config={"smtp_gate": "on"}) as relay:
            load = Load(relay)
            in_flight = 0
            with load.running():
                for kill in range(KILLS):
                    wait_for_more(load, PER_TURN + rng.randrange(PER_TURN))
                    time.sleep(rng.uniform(0, 0.05))  # so that the kill hits any moment
                    if kill % 2:
                        os.kill(child := relay.gate_pid, signal.SIGKILL)
                        in_flight += SMTP_CLIENTS  # who heard no 250
                        until("another one", lambda pid=child: relay.gate_pid != pid)
                        continue
                    relay.kill()
                    in_flight += remote.most_open
                    relay.start()
                wait_for_more(load, PER_TURN)
            until(
                "the queue is empty", lambda: not relay.pending_submissions() and not relay.queue()
            )
            came = Counter(one.addresses[0] for one in remote.envelopes)
            assert load.accepted - came.keys() == set()
            assert sum(came.values()) - len(came) <= in_flight, (
                "more than what was in flight came twice"
            )
            assert all(TEXT.rstrip().encode() in one.content for one in remote.envelopes)
            graph = sorted(one for one in load.accepted if one.startswith("graph"))
            sent = Counter(relay.subjects("alice", "Sent"))
            assert set(graph) <= sent.keys()
            assert relay.metric("relay_queue_unaccounted") == 0
            assert relay.faults(but="of the SMTP sessions ended") == []


def wait_for_more(load: Load, number: int) -> None:
    goal = len(load.accepted) + number
    until(f"{number} more are accepted", lambda: len(load.accepted) >= goal)
