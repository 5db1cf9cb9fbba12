"""Queue entries as the JSON of `queue list`.

On the path: the spool's desk shows with it what it found, and what it has just changed.
Holds: an answer is bounded, also where single messages have very many recipients; times are told on
    the wall clock.
Fails: with apsw's exceptions.
Standards: the JSON of docs/names.md: `queue list`.
"""

from collections.abc import Iterator
from typing import Any

import apsw
import msgspec

from relay.clock import rfc3339
from relay.journeys.events import Step
from relay.message.lifecycle import FINAL, State, message_state
from relay.spool.sqlite.engine.database import fetch, fetch_one
from relay.spool.types import Key
from relay.spool.waiting import Lane

_EVENTS_MAX = 50  # of a message, the newest ones, that are looked through for a reason
_ENTRY = (
    "SELECT m.reverse_path, e.next_hop, e.state, e.retry_us, e.attempts, m.size, e.claimed, e.lane,"
    " CASE e.state WHEN 'captured' THEN e.due_us ELSE m.expires_us END"
    " FROM entry e LEFT JOIN message m ON m.id = e.message_id"
    " WHERE e.message_id = ? AND e.number = ?"
)
_RECIPIENTS = (
    "SELECT address, state, status, reply FROM recipient WHERE message_id = ? AND entry = ?"
    " ORDER BY number LIMIT ?"
)
_EVENTS = (
    "SELECT detail FROM event WHERE message_id = ? AND step = ? ORDER BY sequence DESC LIMIT ?"
)


class Listing:
    """The entries of one answer, one after the other."""

    def __init__(self, *, ahead_us: int, entries_max: int, recipients_max: int) -> None:
        """`ahead_us` is how far the wall clock is ahead of steady time."""
        self.entries: list[dict[str, Any]] = []
        self.recipients_left = recipients_max
        self._entries_max = entries_max
        self._ahead_us = ahead_us

    @property
    def is_full(self) -> bool:
        """Whether no more is listed."""
        return len(self.entries) >= self._entries_max

    def add(self, cursor: apsw.Cursor, key: Key, **more: str) -> None:
        """Put the entry, as it is in `cursor`'s transaction, behind those that are there,
        with `more` of it; nothing when there is no room.
        """
        if self.is_full:
            return
        row = fetch_one(cursor, _ENTRY, key)
        if row is None:
            return
        sender, next_hop, state, retry_us, attempts, size, claimed, lane, expires_us = row
        people = fetch(cursor, _RECIPIENTS, (*key, self.recipients_left + 1))
        shown = people[: self.recipients_left]
        self.recipients_left -= len(shown)
        if state == "final":
            state = str(message_state([State(one[1]) for one in people]))
        is_held, is_final = state == State.HELD, state in FINAL
        due = None if retry_us is None or is_final else self._told(retry_us)
        self.entries.append(
            {
                "id": key[0],
                "entry": key[1],
                "sender": sender,
                "next_hop": next_hop,
                "state": state,
                "due": due,
                "attempts": attempts,
                "size": size,
                "recipients": [
                    {"address": one[0], "state": one[1], "status": one[2], "reply": one[3]}
                    for one in shown
                ],
                "claimed": bool(claimed),
                "lane": Lane(lane).name.lower(),
                "expires": None if expires_us is None or is_final else self._told(expires_us),
                "held_until": due if is_held else None,
                "reason": last_reason(cursor, key) if is_held else "",
                **({"recipients_cut": True} if len(shown) < len(people) else {}),
                **more,
            }
        )

    def _told(self, steady_us: int) -> str:
        return rfc3339(steady_us + self._ahead_us)


def last_reason(cursor: apsw.Cursor, key: Key) -> str:
    """Why an entry is held, in the words of whoever held it: an operator, or the relay itself."""
    for detail in _details(cursor, key):
        if detail.get("operation") == "hold":
            return ": ".join(word for word in (detail.get("who"), detail.get("why")) if word)
        if "held" in detail:
            return f"relay: {detail['held']}"
    return ""


def operations(cursor: apsw.Cursor, key: Key) -> Iterator[dict[str, Any]]:
    """What was done to an entry by hand, the newest first."""
    return (detail for detail in _details(cursor, key) if "operation" in detail)


def _details(cursor: apsw.Cursor, key: Key) -> Iterator[dict[str, Any]]:
    """Operations on an entry, and attempts that left it held; the newest first."""
    message_id, number = key
    for (text,) in fetch(cursor, _EVENTS, (message_id, int(Step.DELIVERY), _EVENTS_MAX)):
        if '"operation"' not in text and '"held"' not in text:
            continue
        detail = msgspec.json.decode(text, type=dict[str, Any])
        if number in detail.get("entries", ()) or detail.get("entry") == number:
            yield detail
