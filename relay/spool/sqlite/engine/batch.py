"""What the operations of one commit share: the cursor, and counters that are written once for all.

On the path: the writer makes one per commit and hands it to each operation.
Holds: counters are part of the same transaction as what they count.
Fails: with apsw's exceptions.
Standards: docs/design.md 7.1 (relay_queue_unaccounted).
"""

from collections import Counter
from dataclasses import dataclass, field

import apsw

from relay.spool.sqlite.engine.last_commit import COMMITS_COUNTER

_COUNT = "INSERT INTO counter VALUES (?,?) ON CONFLICT DO UPDATE SET value = value + excluded.value"


@dataclass(frozen=True, slots=True)
class Batch:
    """One transaction in the making."""

    cursor: apsw.Cursor
    counts: Counter[str] = field(default_factory=Counter)

    def write_counts(self) -> None:
        """Add what was counted, and this commit, to the counters in the file; the last act before
        the commit.
        """
        self.counts[COMMITS_COUNTER] += 1
        self.cursor.executemany(_COUNT, self.counts.items())
