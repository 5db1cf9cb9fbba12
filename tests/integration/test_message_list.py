"""GET /relay/v1/messages of a running relay: conditions, waiting, and cursors."""

import sqlite3
from contextlib import closing
from typing import Any
from urllib.parse import urlencode

from relay.base.clock import Ids, SystemClock
from relay.store.journeys.message_list import SCAN_MAX
from tests.support.relay_process import OPERATOR, RelayProcess


def listed(relay: RelayProcess, *, token: str = OPERATOR, **query: Any) -> dict[str, Any]:
    answer = relay.graph("GET", "/relay/v1/messages?" + urlencode(query), token=token)
    assert answer.status == 200, answer.body
    return dict(answer.json())


def subjects(found: dict[str, Any]) -> list[str]:
    return [one["subject"] for one in found["messages"]]


def test_a_test_finds_its_own_mail_only(relay: RelayProcess) -> None:
    bob = "bob@example.test"
    for number in range(3):  # one after the other, as tests are
        cursor = listed(relay, limit=1)["cursor"]
        relay.send_mail(to=[bob], subject=f"graph {number}")
        relay.submit("alice@example.test", [bob], f"Subject: smtp {number}\r\n\r\nx\r\n".encode())
        found = listed(relay, after=cursor, to=bob, subject="graph *", wait=20)
        assert subjects(found) == [f"graph {number}"]
        both = listed(relay, after=cursor, to=bob)
        assert sorted(subjects(both)) == [f"graph {number}", f"smtp {number}"]
        assert subjects(listed(relay, after=both["cursor"])) == []
        final = listed(relay, after=cursor, to=bob, subject="smtp *", state="final", wait=20)
        assert final["messages"][0]["recipients"][0]["state"] == "delivered"


def test_an_address_is_traced_as_far_as_it_is_logged(relay: RelayProcess) -> None:
    """Behind more messages than one page of the list reads."""
    rare, content = "rare@example.test", b"Subject: rare\r\n\r\nx\r\n"
    queue_id = relay.submit(rare, ["bob@example.test"], content)
    relay.until_final(queue_id)
    relay.stop()
    ids = Ids(SystemClock())
    with closing(sqlite3.connect(relay.folder / "state/spool.sqlite")) as spool, spool:
        (row,) = spool.execute("SELECT * FROM message WHERE id = ?", (queue_id,))
        copies = [(ids.new(), "other@example.test", *row[2:]) for _ in range(SCAN_MAX + 1)]
        spool.executemany(f"INSERT INTO message VALUES ({','.join('?' * len(row))})", copies)
    for is_running in (False, True):
        if is_running:
            relay.start()
        found = relay.cli_json("trace", rare)
        assert (found["id"], found["subject"]) == (queue_id, "rare")
        assert relay.cli("trace", "nobody@else.test").returncode == 65
