"""What a dead owner left behind: claims that nobody settles, content files that nobody names.

On the path: before the spool's first claim, while its new owner holds the lock; files later.
Holds: an attempt that may have been made is in the journey, and counts; each step is one small
    transaction, and the length of the queue costs nothing.
Fails: with apsw's exceptions, and the transaction with it.
Standards: docs/design.md 4 (indeterminate attempts), invariants 2, 6, 8, 9; RFC 1047.
"""

from collections.abc import Sequence

import apsw

from relay.journeys.events import Event, Step
from relay.message.lifecycle import PARKED
from relay.spool.sqlite.engine.database import fetch
from relay.spool.sqlite.transactions import append_events, is_file_needed

_AT_ONCE = 500
_WORDS = "the relay was stopped before this attempt was recorded"
_STATUS = "4.4.2"  # RFC 3463: bad connection, which is how the peer saw it
_LIVE = "message_id = ? AND entry = ? AND state IN ('queued', 'deferred')"


def release_some(cursor: apsw.Cursor, *, now_us: int, at_us: int) -> int:
    """Record some of what was claimed as indeterminate attempts, to be tried at once; how many:
    0 when nothing is left.

    It stays due since when it was due: before this start, so that it is tried though its time may
    be over by now. What was held or captured was claimed to expire, and nobody has tried it.
    `now_us` is steady time, `at_us` the wall's.
    """
    claimed = fetch(
        cursor,
        "SELECT message_id, number, next_hop, attempts + 1, state"
        f" FROM entry INDEXED BY entry_claimed WHERE claimed = 1 LIMIT {_AT_ONCE}",
    )
    tried = [row for row in claimed if row[4] not in PARKED]
    for message_id, entry, next_hop, attempt, _ in tried:
        people = fetch(
            cursor,
            f"UPDATE recipient SET state = 'deferred', status = ?, reply = ? WHERE {_LIVE}"
            " RETURNING number, address",
            (_STATUS, _WORDS, message_id, entry),
        )
        told = [
            {
                "number": number,
                "address": address,
                "outcome": "indeterminate",
                "status": _STATUS,
                "reply": _WORDS,
            }
            for number, address in people
        ]
        detail = {"entry": entry, "attempt": attempt, "next_hop": next_hop, "recipients": told}
        append_events(cursor, message_id, [Event(Step.DELIVERY, at_us, detail)])
    cursor.executemany(
        "UPDATE entry SET state = 'deferred', due_us = min(due_us, ?1), retry_us = ?1,"
        " attempts = attempts + 1 WHERE message_id = ?2 AND number = ?3",
        [(now_us, message_id, number) for message_id, number, *_ in tried],
    )
    cursor.executemany(
        "UPDATE entry SET claimed = 0, epoch = epoch + 1 WHERE message_id = ? AND number = ?",
        [(message_id, number) for message_id, number, *_ in claimed],
    )
    return len(claimed)


def orphans(cursor: apsw.Cursor, names: Sequence[str]) -> list[str]:
    """Return those of `names`, files, that no content has."""
    return [name for name in names if not is_file_needed(cursor, name)]
