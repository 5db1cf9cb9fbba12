"""What a dead owner left behind: claims that nobody settles, content files that nobody names.

On the path: before the spool's first claim, while its new owner holds the lock.
Holds: an attempt that may have been made is in the journey, and counts; nothing is kept in memory
    for each message of the queue.
Fails: with apsw's exceptions, and the transaction with it.
Standards: docs/design.md 4 (indeterminate attempts), invariants 2, 6, 8, 9; RFC 1047.
"""

from collections.abc import Sequence

import apsw

from relay.journal.events import Event, Step
from relay.spool.sqlite.database import fetch
from relay.spool.sqlite.transactions import append_events, is_file_needed

_WORDS = "the relay was stopped before this attempt was recorded"
_STATUS = "4.4.2"  # RFC 3463: bad connection, which is how the peer saw it
_LIVE = "message_id = ? AND entry = ? AND state IN ('queued', 'deferred')"


def release_all(cursor: apsw.Cursor, now_us: int) -> int:
    """Record what was claimed as indeterminate attempts, due at once; return how many."""
    claimed = fetch(
        cursor,
        "SELECT message_id, number, next_hop, attempts + 1 FROM entry"
        " WHERE state <> 'final' AND claimed = 1",
    )
    for message_id, entry, next_hop, attempt in claimed:
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
        append_events(cursor, message_id, [Event(Step.DELIVERY, now_us, detail)])
    cursor.execute(
        "UPDATE entry SET state = 'deferred', claimed = 0, epoch = epoch + 1, due_us = ?,"
        " attempts = attempts + 1 WHERE state <> 'final' AND claimed = 1",
        (now_us,),
    )
    return len(claimed)


def orphans(cursor: apsw.Cursor, names: Sequence[str]) -> list[str]:
    """Return those of `names`, content files, that no live entry needs."""
    return [name for name in names if not is_file_needed(cursor, name)]
