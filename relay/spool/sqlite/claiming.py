"""The right to try an entry: taken when it is due, given back untried, made due before its time.

On the path: between accept() or settle(), which put an entry back, and the next attempt.
Holds: one owner at a time; every claim and every release raises the epoch.
Fails: with apsw's exceptions, and the transaction with it.
Standards: docs/design.md 4 (claims and epochs), invariant 3.
"""

from collections.abc import Iterable, Sequence

import apsw
import msgspec

from relay.journal.events import Event, Step
from relay.journal.logs import get_logger
from relay.message.envelope import Notify
from relay.message.nexthop import NextHop
from relay.spool.sqlite.batch import Batch
from relay.spool.sqlite.database import fetch, fetch_one
from relay.spool.sqlite.transactions import append_events, read_facts
from relay.spool.types import Claim, ClaimedRecipient

_log = get_logger("spool")

_CLAIM_FACTS = (
    "SELECT m.id, m.reverse_path, m.source, m.trusted, m.received_us, m.expires_us, m.size,"
    " m.account, m.submission_id, m.envid, m.ret, m.smtputf8, m.eight_bit, m.client,"
    " m.message_id, m.subject, e.number, e.epoch, e.next_hop, e.attempts, e.content_id, c.size"
    " FROM entry e JOIN message m ON m.id = e.message_id"
    " LEFT JOIN content c ON c.id = e.content_id"
)


def claim_due(
    cursor: apsw.Cursor, now_us: int, limit: int, *, passing_over: Sequence[str]
) -> tuple[Claim, ...]:
    """Claim what is due, oldest first, but for the next hops named in `passing_over`.

    An entry whose rows cannot be read stays claimed by nobody, so that others go on: it is in the
    log, and in the queue's list, and tried again by the next owner.
    """
    due = fetch(
        cursor,
        "SELECT message_id, number FROM entry WHERE state <> 'final' AND claimed = 0"
        " AND due_us <= ? AND next_hop NOT IN (SELECT value FROM json_each(?))"
        " ORDER BY due_us LIMIT ?",
        (now_us, msgspec.json.encode(passing_over).decode(), limit),
    )
    cursor.executemany(
        "UPDATE entry SET claimed = 1, epoch = epoch + 1 WHERE message_id = ? AND number = ?", due
    )
    claims: list[Claim] = []
    for message_id, number in due:
        try:
            claims.append(_read_claim(cursor, message_id, number))
        except ValueError as error:
            _log.error("entry damaged", qid=message_id, entry=number, error=str(error))
    return tuple(claims)


def release(cursor: apsw.Cursor, claims: Iterable[Claim], now_us: int) -> None:
    """Make untried claims due at once, unless somebody else has them by now."""
    cursor.executemany(
        "UPDATE entry SET claimed = 0, epoch = epoch + 1, due_us = ?"
        " WHERE message_id = ? AND number = ? AND epoch = ? AND state <> 'final'",
        [(now_us, claim.message.id, claim.entry_id, claim.epoch) for claim in claims],
    )


def make_due(
    batch: Batch, *, keys: Iterable[tuple[str, int]], now_us: int, who: str
) -> set[tuple[str, int]]:
    """Make unclaimed entries due at once; return those that were."""
    done = set()
    for message_id, number in keys:
        changed = fetch_one(
            batch.cursor,
            "UPDATE entry SET due_us = ?, epoch = epoch + 1 WHERE message_id = ?"
            " AND number = ? AND claimed = 0 AND state <> 'final' RETURNING number",
            (now_us, message_id, number),
        )
        if changed:
            done.add((message_id, number))
            event = Event(Step.DELIVERY, now_us, {"entry": number, "retry": who})
            append_events(batch.cursor, message_id, [event])
    return done


def _read_claim(cursor: apsw.Cursor, message_id: str, number: int) -> Claim:
    row = fetch_one(
        cursor, _CLAIM_FACTS + " WHERE e.message_id = ? AND e.number = ?", (message_id, number)
    )
    if row is None:
        raise ValueError("its message is not there")
    people = fetch(
        cursor,
        "SELECT number, address, notify, orcpt, added_by, status, reply FROM recipient"
        " WHERE message_id = ? AND entry = ? AND state IN ('queued', 'deferred') ORDER BY number",
        (message_id, number),
    )
    return Claim(
        entry_id=number, epoch=row[17], message=read_facts(row), next_hop=NextHop.parse(row[18]),
        recipients=tuple(
            ClaimedRecipient(one[0], one[1], _parse_notify(one[2]), *one[3:]) for one in people
        ),
        attempts=row[19], content_id=row[20], content_size=row[21] or 0,
    )  # fmt: skip


def _parse_notify(text: str) -> frozenset[Notify]:
    """Read what accept() wrote."""
    return frozenset(Notify(word) for word in text.split(",")) if text else frozenset()
