"""A relay killed with thousands of claims: the next start retries each of them once.

Each is an indeterminate attempt in its journey, and due; the start waits for no delivery. See
docs/design.md 4 and 7.2; RFC 1047.
"""

import asyncio
import json
import sqlite3
import time
from collections import Counter
from contextlib import closing

import pytest

from relay.clock import Ids, SystemClock
from relay.crashpoints import CrashPoints
from relay.message.nexthop import NextHop
from relay.message.verdict import Source
from relay.observe.metrics import Metrics
from relay.spool import SqliteSpool
from relay.spool.types import NewEntry, NewMessage, NewRecipient
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes

pytestmark = pytest.mark.crash

CLAIMS = 5000
DELIVERED = 500  # of them, when the test has seen enough
START_S = 10.0  # on a machine that does much else


def test_claims_of_a_killed_relay_are_indeterminate_and_retried() -> None:
    with Remotes() as remotes:
        remote = remotes.start("a.test")
        relay = remotes.relay()
        try:
            asyncio.run(leave_claims(relay))
            began = time.monotonic()
            relay.start()
            assert time.monotonic() - began < START_S
            check_indeterminate_attempts(relay)
            until("many have come", lambda: len(remote.envelopes) > DELIVERED, timeout_s=60)
        finally:
            relay.close()
        came = Counter(one.addresses[0] for one in remote.envelopes)
        assert set(came.values()) == {1}


async def leave_claims(relay: RelayProcess) -> None:
    """Accept as the relay does, and end without a word."""
    clock = SystemClock()
    ids = Ids(clock)
    spool = SqliteSpool(
        relay.folder / "state/spool.sqlite", clock=clock, crash=CrashPoints(), metrics=Metrics(),
        submission_keep_s=60,
    )  # fmt: skip
    await spool.start()
    now_us = clock.queue_us()
    messages = (
        NewMessage(
            id=ids.new(), reverse_path="alice@example.test", source=Source.SMTP, trusted=True,
            received_us=now_us, expires_us=now_us + 3600 * 1_000_000,
            contents=(b"Subject: s\r\n\r\nHello.\r\n",),
            entries=(NewEntry(NextHop.parse("mx:a.test"), (NewRecipient(f"x{number}@a.test"),)),),
        )
        for number in range(CLAIMS)
    )  # fmt: skip
    accepted = await asyncio.gather(*(spool.accept(message) for message in messages))
    assert all(one.claims for one in accepted)
    await spool.stop()


def check_indeterminate_attempts(relay: RelayProcess) -> None:
    with closing(sqlite3.connect(relay.folder / "state/spool.sqlite")) as spool:
        reported = Counter(
            recipient["outcome"]
            for (detail,) in spool.execute("SELECT detail FROM event")
            for recipient in json.loads(detail).get("recipients", ())
        )
        attempts = spool.execute("SELECT count(*) FROM entry WHERE attempts >= 1").fetchone()
    assert reported["indeterminate"] == CLAIMS
    assert attempts == (CLAIMS,)
