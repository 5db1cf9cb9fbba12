"""kill -9 while accounts send to their limit: no more passes than it, what was in flight, and a second."""

import smtplib
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest

from tests.support.graph_client import message
from tests.support.relay_process import RelayProcess, until

pytestmark = pytest.mark.crash

LIMIT, STORED, LATER = 200, 60, 40
CLIENTS = 4
LOST_S = 2.0  # a second, and what a busy machine adds
BEYOND = (429, 450)


class Senders:
    """Clients that send as alice; `accepted` has the times of messages that were."""

    def __init__(self, relay: RelayProcess) -> None:
        self.relay = relay
        self.accepted: list[float] = []
        self.refused = 0

    @contextmanager
    def sending(self, most: int) -> Iterator[None]:
        """Send until `most` were accepted, or until all clients were refused."""
        self.refused, over = 0, threading.Event()

        def work(number: int) -> None:
            while not over.is_set() and len(self.accepted) < most:
                with suppress(OSError, smtplib.SMTPException, ValueError):
                    code = self._by_smtp() if number % 2 else self._by_graph()
                    if code in BEYOND:
                        self.refused += 1
                        return
                    assert code in (202, 250), code
                    self.accepted.append(time.monotonic())

        threads = [threading.Thread(target=work, args=(one,)) for one in range(CLIENTS)]
        with ExitStack() as stack:
            for one in threads:
                one.start()
                stack.callback(one.join)
            stack.callback(over.set)
            yield

    def _by_graph(self) -> int:
        body = {"message": message(to=["x@other.test"])}
        return self.relay.graph("POST", "/me/sendMail", body).status

    def _by_smtp(self) -> int:
        with self.relay.smtp(source="127.0.0.2") as client:
            client.login("alice@example.test", "alice")
            try:
                client.sendmail("alice@example.test", ["x@other.test"], "Subject: x\r\n\r\nx\r\n")
            except smtplib.SMTPDataError as error:
                return error.smtp_code
            return 250


def test_a_kill_lets_no_account_send_much_more_than_its_limit() -> None:
    routes = [{"domain": "*", "next_hop": "capture"}]
    config = {"limits": {"recipients": f"{LIMIT}/1d"}, "route": routes}
    with RelayProcess(config=config) as relay:
        senders = Senders(relay)
        with senders.sending(STORED):
            until("the first ones", lambda: len(senders.accepted) >= STORED)
        first = len(senders.accepted)
        until("they are stored", lambda: any(f":{first}}}" in one for one in counts(relay)))
        with senders.sending(first + LATER):
            until("more", lambda: len(senders.accepted) >= first + LATER // 2)
            relay.kill()
            killed_s = time.monotonic()
        before = len(senders.accepted)
        relay.start()
        with senders.sending(10 * LIMIT):
            until("all are refused", lambda: senders.refused == CLIENTS)
        lost = sum(one > killed_s - LOST_S for one in senders.accepted[first:before])
        assert len(senders.accepted) + CLIENTS >= LIMIT
        assert len(senders.accepted) <= LIMIT + lost + CLIENTS < LIMIT + before


def counts(relay: RelayProcess) -> list[str]:
    """What the spool has of accounts."""
    with closing(sqlite3.connect(relay.folder / "state/spool.sqlite")) as spool:
        return [one for (one,) in spool.execute("SELECT counts FROM usage")]
