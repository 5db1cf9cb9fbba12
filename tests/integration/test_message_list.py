"""A message that is behind more of them than one page of the list reads."""

import sqlite3
from contextlib import closing

from relay.base.clock import Ids, SystemClock
from relay.store.journeys.message_list import SCAN_MAX
from tests.support.relay_process import RelayProcess


def test_an_address_is_traced_as_far_as_it_is_logged(relay: RelayProcess) -> None:
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
