"""relay_queue_unaccounted: 0 while the queue is intact, above 0 when a row is missing."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.support.relay_config import OPERATOR
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes

PEOPLE = ["x@a.test", "y@a.test"]
SUBMITTED = 5


@pytest.fixture(scope="module")
def relay() -> Iterator[RelayProcess]:
    """It has messages that wait for an hour, and one that is done."""
    with Remotes() as remotes:
        remotes.start("a.test", replies={"RCPT": "450 4.2.0 not now"})
        with remotes.relay(config={"delivery": {"retry": ["1h"]}}) as relay:
            for _ in range(SUBMITTED):
                relay.submit("alice@example.test", PEOPLE)
            relay.until_final(relay.submit("alice@example.test", ["bob@example.test"]))
            until("all wait", lambda: {one["state"] for one in relay.queue()} == {"deferred"})
            until("counted", lambda: relay.metric("relay_queue_entries") == SUBMITTED)
            yield relay


def test_unaccounted_counts_deleted_rows_until_they_are_restored(relay: RelayProcess) -> None:
    assert relay.metric("relay_queue_unaccounted") == 0
    ids = [one["id"] for one in relay.queue()]
    with closing(sqlite3.connect(relay.folder / "state/spool.sqlite")) as spool:
        where = "message_id = ? AND number = 1"
        message = spool.execute("SELECT * FROM message WHERE id = ?", (ids[0],)).fetchone()
        for sql, queue_id, missing in (
            ("DELETE FROM message WHERE id = ?", ids[0], 2),
            (f"DELETE FROM entry WHERE {where}", ids[1], 4),
            (f"DELETE FROM recipient WHERE {where}", ids[2], 5),
        ):
            with spool:
                assert spool.execute(sql, (queue_id,)).rowcount == 1
            until_unaccounted(relay, missing)
        with spool:
            places = ",".join("?" * len(message))
            spool.execute(f"INSERT INTO message VALUES ({places})", message)
    until_unaccounted(relay, 3)
    relay.restart()
    until_unaccounted(relay, 3)
    reported = relay.graph("GET", "/relay/v1/queue/stats", token=OPERATOR).json()
    assert reported["unaccounted"] == 3


def until_unaccounted(relay: RelayProcess, number: int) -> None:
    until(f"{number} unaccounted", lambda: relay.metric("relay_queue_unaccounted") == number)
