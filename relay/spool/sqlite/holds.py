"""Why entries are held: the fields of their EntryExtra, and how many a rule of the policy holds.

The counter HELD_BY_RULES is written with the transaction that changes an entry, so it holds after a
crash, and a message that holds needs no scan. Each function runs inside one transaction.

See relay/spool/types.py (EntryExtra) and docs/design.md 4.
"""

from collections.abc import Collection
from typing import Any

import apsw
import msgspec

from relay.spool.sqlite.database import fetch_one
from relay.spool.sqlite.writer import Batch
from relay.spool.types import Key, NewMessage

HELD_BY_RULES = "held_by_rules"  # the counter
# A text that is no JSON stays as it is: its entry is held when it is claimed.
_CHANGE = (
    "UPDATE entry SET"
    " extra = coalesce(nullif(json_patch(iif(extra = '', '{}', extra), ?), '{}'), '')"
    " WHERE message_id = ? AND number = ? AND (extra = '' OR json_valid(extra))"
)
# Fields of EntryExtra
RELEASED = {"reason": "", "rule": "", "since_us": 0, "released": True, "silent": False}
_BY_RULE = "state = 'held' AND json_valid(extra) AND extra ->> 'rule' <> ''"
COUNT_HELD_BY_RULES = f"SELECT count(*) FROM entry WHERE {_BY_RULE}"


def change_extra(cursor: apsw.Cursor, key: Key, **fields: Any) -> None:
    """Set these fields of an entry's EntryExtra; the others stay, also those that are not known."""
    changes = {name: value or None for name, value in fields.items()}
    cursor.execute(_CHANGE, (msgspec.json.encode(changes).decode(), *key))


def note_hold(batch: Batch, key: Key, reason: str, *, since_us: int) -> None:
    """Record why an entry is held, and since when in wall clock time. No rule holds it now; one
    that did has its entry counted as that of an operator.
    """
    _end_rule(batch, key)
    fields = {"reason": reason, "since_us": since_us, "rule": "", "silent": False}
    change_extra(batch.cursor, key, **fields)


def note_release(batch: Batch, key: Key) -> None:
    """Record that an entry is held no longer; called before its state changes."""
    _end_rule(batch, key)
    change_extra(batch.cursor, key, **RELEASED)


def is_held_by_rule(cursor: apsw.Cursor, key: Key) -> bool:
    """Whether a rule holds an entry."""
    sql = f"SELECT 1 FROM entry WHERE message_id = ? AND number = ? AND {_BY_RULE}"
    return fetch_one(cursor, sql, key) is not None


def count_holds(batch: Batch, by: int) -> None:
    """Count entries that rules hold from now on, or with a negative number no longer."""
    if by:
        batch.counts[HELD_BY_RULES] += by


def count_removed(batch: Batch, message_ids: Collection[str]) -> None:
    """Count the entries of messages that are about to be removed as no longer held."""
    sql = f"{COUNT_HELD_BY_RULES} AND message_id = ?"
    count_holds(batch, -sum(fetch_one(batch.cursor, sql, (one,))[0] for one in message_ids))


def has_room(batch: Batch, message: NewMessage) -> bool:
    """Whether a message may be accepted: rules do not hold it, or with it hold at most `held_max`
    entries. Other operations of the same transaction count.
    """
    number = len(message.held_by_rules)
    if not number or message.held_max is None:
        return True
    sql = "SELECT coalesce(sum(value), 0) FROM counter WHERE name = ?"
    (known,) = fetch_one(batch.cursor, sql, (HELD_BY_RULES,))
    return int(known) + batch.counts[HELD_BY_RULES] + number <= message.held_max


def counted(cursor: apsw.Cursor) -> tuple[int, int]:
    """Return the counter, and the number that it should be."""
    sql = f"SELECT coalesce(sum(value), 0), ({COUNT_HELD_BY_RULES}) FROM counter WHERE name = ?"
    found, expected = fetch_one(cursor, sql, (HELD_BY_RULES,))
    return found, expected


def recount(cursor: apsw.Cursor) -> None:
    """Correct the counter."""
    found, expected = counted(cursor)
    if found != expected:
        sql = "INSERT INTO counter VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2"
        cursor.execute(sql, (HELD_BY_RULES, expected))


def _end_rule(batch: Batch, key: Key) -> None:
    if is_held_by_rule(batch.cursor, key):
        count_holds(batch, -1)
