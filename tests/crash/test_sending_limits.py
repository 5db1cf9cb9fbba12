"""kill -9 while accounts send to their limit: no more passes than it, what was in flight, and a second."""

import smtplib
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPException
from threading import Thread

import pytest

from tests.support.graph_client import message
from tests.support.relay_process import RelayProcess, until

GATE = True

pytestmark = pytest.mark.crash

LIMIT, FIRST, LATER, CLIENTS = 200, 60, 20, 4
BEYOND = (429, 450)
LOST_S = 2.0  # a second, and what a busy machine adds


def by_smtp(relay: RelayProcess) -> int:
    with relay.smtp(source="127.0.0.2") as client:
        client.login("alice@example.test", "alice")
        try:
            client.sendmail("alice@example.test", ["x@other.test"], "Subject: x\r\n\r\nx\r\n")
        except smtplib.SMTPDataError as error:
            return error.smtp_code
        return 202


def by_graph(relay: RelayProcess) -> int:
    body = {"message": message(to=["x@other.test"])}
    return relay.graph("POST", "/me/sendMail", body).status


@contextmanager
def sending(relay: RelayProcess, accepted: list[float], *, most: int) -> Iterator[list[int]]:
    """Clients send as alice until `most` were accepted, or each was refused; yield these replies."""
    refused: list[int] = []

    def work(send: Callable[[RelayProcess], int]) -> None:
        while len(accepted) < most:
            with suppress(OSError, smtplib.SMTPException, HTTPException, ValueError):
                if (code := send(relay)) in BEYOND:
                    refused.append(code)
                    return
                if code == 202:  # 503 while it starts
                    accepted.append(time.monotonic())

    senders = (by_smtp, by_graph) * (CLIENTS // 2)
    threads = [Thread(target=work, args=(one,), daemon=True) for one in senders]
    for one in threads:
        one.start()
    yield refused
    for one in threads:
        one.join()


def test_a_kill_lets_no_account_send_much_more_than_its_limit() -> None:
    def counts() -> str:
        with closing(sqlite3.connect(relay.folder / "state/spool.sqlite")) as spool:
            return "".join(one for (one,) in spool.execute("SELECT counts FROM usage"))

    config = {
        "limits": {"recipients": f"{LIMIT}/1d"},
        "route": [{"domain": "*", "next_hop": "capture"}],
    }
    accepted: list[float] = []
    with RelayProcess(config=config) as relay:
        with sending(relay, accepted, most=FIRST):
            pass
        first = len(accepted)
        until("they are stored", lambda: f":{first}}}" in counts())
        with sending(relay, accepted, most=10 * LIMIT) as refused:
            until("more", lambda: len(accepted) >= first + LATER)
            relay.kill()
            killed_s, before = time.monotonic(), len(accepted)
            relay.start()
    assert sorted(refused) == [429, 429, 450, 450]
    lost = sum(one > killed_s - LOST_S for one in accepted[first:before])
    assert LIMIT - CLIENTS <= len(accepted) <= LIMIT + lost + CLIENTS < LIMIT + before
