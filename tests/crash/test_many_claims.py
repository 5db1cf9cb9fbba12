"""A relay killed with thousands of claims: the next start retries each of them once.

Each is an indeterminate attempt in its journey, and due; the start waits for no delivery. See
docs/design.md 4 and 7.2; RFC 1047.
"""

import asyncio
import json
import sqlite3
from collections import Counter
from contextlib import closing

import pytest
import uvloop

from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes
from tests.support.spools import new_message, spool_on

pytestmark = pytest.mark.crash

CLAIMS = 5000
DELIVERED = 500  # of them, when the test has seen enough
START_CPU_S = 10.0


def test_claims_of_a_killed_relay_are_indeterminate_and_retried() -> None:
    with Remotes() as remotes:
        remote = remotes.start("a.test")
        relay = remotes.relay()
        try:
            uvloop.run(leave_claims(relay))
            relay.start()
            assert relay.cpu_s() < START_CPU_S
            check_indeterminate_attempts(relay)
            until("many have come", lambda: len(remote.envelopes) > DELIVERED, timeout_s=60)
        finally:
            relay.close()
        came = Counter(one.addresses[0] for one in remote.envelopes)
        assert set(came.values()) == {1}


async def leave_claims(relay: RelayProcess) -> None:
    """Accept as the relay does, and end without a word."""
    async with spool_on(relay.folder / "state/spool.sqlite") as spool:
        messages = (new_message([("mx:a.test", f"x{n}@a.test")]) for n in range(CLAIMS))
        accepted = await asyncio.gather(*(spool.accept(message) for message in messages))
        assert all(one.claims for one in accepted)


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
