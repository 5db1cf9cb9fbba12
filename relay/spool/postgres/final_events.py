"""Up to which number all events are there, while several nodes commit at the same time.

Numbers are taken before the commit, so that a smaller one may become visible after a greater one.
A transaction takes its own id before it takes a number (commit.sql). So all numbers up to the last
one that was given are final once every transaction has ended that began to write before a later id
was given: `pg_snapshot_xmin` is the oldest one that still runs. A transaction of somebody else that
writes for a long time delays the events, but loses none.
"""

import asyncio

from relay.spool.postgres.tables import ConnectionTables

_LAST = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM event_number"
_OWN_ID = "SELECT CAST(CAST(pg_current_xact_id() AS text) AS bigint)"
_OLDEST_ID = "SELECT CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint)"
_LOOKS = 30
_PAUSE_S = 0.001  # after the first look; each next one is a fifth longer


class FinalEvents:
    """Runs in the thread of a read connection, outside of any transaction."""

    def __init__(self) -> None:
        self._up_to = 0  # all numbers up to this one are final
        self._left: tuple[int, int] | None = None  # a number, and the id before which all must end

    def read(self, tables: ConnectionTables) -> int:
        """Return the last number up to which all are final. It is behind the events of commits that
        have ended, unless somebody else's transaction writes for longer than about a second.
        """
        if self._left is not None and _oldest(tables) >= self._left[1]:
            self._up_to, self._left = self._left[0], None
        last = int(tables.fetch_one(_LAST)[0])
        if last <= self._up_to:
            return self._up_to
        before = int(tables.fetch_one(_OWN_ID)[0])
        pause_s = _PAUSE_S
        for _ in range(_LOOKS):
            if _oldest(tables) >= before:
                self._up_to, self._left = last, None
                return last
            tables.wait(asyncio.sleep(pause_s))  # real time: other transactions
            pause_s *= 1.2
        self._left = self._left or (last, before)
        return self._up_to


def _oldest(tables: ConnectionTables) -> int:
    return int(tables.fetch_one(_OLDEST_ID)[0])
