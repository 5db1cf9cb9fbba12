"""What is read from the spool: queue listings, journeys, figures. Nothing here changes anything.

On the path: the command line and the web ask through the spool's reader.
Holds: every answer is bounded by a limit or by one message.
Fails: with apsw's exceptions.
Standards: the JSON of docs/names.md: `queue list` and `/relay/v1/messages/{id}`.
"""

from collections.abc import Sequence
from typing import Any

import apsw
import msgspec

from relay.clock import rfc3339
from relay.journal.events import Event, Step
from relay.message.lifecycle import FINAL, State, message_state
from relay.spool.sqlite.database import fetch, fetch_one
from relay.spool.sqlite.transactions import ACCEPTED_COUNTER, read_facts
from relay.spool.types import QueueCounts, Selector

SCAN_MAX = 20_000
_ENTRY_STATES = ("queued", "deferred", "held", "captured")
_LIVE = (
    "SELECT coalesce(sum((SELECT count(*) FROM recipient r WHERE r.message_id = e.message_id"
    " AND r.entry = e.number AND r.state IN ('queued', 'deferred', 'held', 'captured'))), 0),"
    " min(CASE WHEN e.state IN ('queued', 'deferred') THEN e.message_id END), "
    + ", ".join(f"count(*) FILTER (WHERE e.state = '{state}')" for state in _ENTRY_STATES)
    + " FROM entry e INDEXED BY entry_live WHERE e.state <> 'final'"
)


def queue_list(cursor: apsw.Cursor, selector: Selector, *, limit: int, now_us: int) -> list[Any]:
    """Entries not yet final as JSON, oldest first."""
    where, values = _where(selector, now_us)
    rows = fetch(
        cursor,
        "SELECT e.message_id, e.number, m.reverse_path, e.next_hop, e.state, e.due_us, e.attempts,"
        f" m.size FROM entry e JOIN message m ON m.id = e.message_id WHERE {where}"
        " ORDER BY e.message_id, e.number LIMIT ?",
        (*values, limit),
    )
    return [
        {
            "id": row[0],
            "entry": row[1],
            "sender": row[2],
            "next_hop": row[3],
            "state": row[4],
            "due": None if row[5] is None else rfc3339(row[5]),
            "attempts": row[6],
            "size": row[7],
            "recipients": [
                {"address": one[0], "state": one[1], "status": one[2], "reply": one[3]}
                for one in fetch(
                    cursor,
                    "SELECT address, state, status, reply FROM recipient"
                    " WHERE message_id = ? AND entry = ? ORDER BY number",
                    (row[0], row[1]),
                )
            ],
        }
        for row in rows
    ]


def next_due_us(cursor: apsw.Cursor, *, passing_over: Sequence[str]) -> int | None:
    """When the next unclaimed entry is due, but for the next hops named in `passing_over`."""
    row = fetch_one(
        cursor,
        "SELECT due_us FROM entry WHERE state <> 'final' AND claimed = 0 AND due_us IS NOT NULL"
        " AND next_hop NOT IN (SELECT value FROM json_each(?)) ORDER BY due_us LIMIT 1",
        (msgspec.json.encode(passing_over).decode(),),
    )
    return None if row is None else int(row[0])


def journey(cursor: apsw.Cursor, queue_id: str) -> dict[str, Any] | None:
    """One message with its steps 5 to 7 and its recipients; those that policy added stay out."""
    row = fetch_one(cursor, "SELECT * FROM message WHERE id = ?", (queue_id,))
    if row is None:
        return None
    facts = read_facts(row)
    people = fetch(
        cursor,
        "SELECT r.number, r.address, r.state, r.status, r.reply, r.added_by, r.successors,"
        " e.next_hop FROM recipient r LEFT JOIN entry e"
        " ON e.message_id = r.message_id AND e.number = r.entry"
        " WHERE r.message_id = ? ORDER BY r.number",
        (queue_id,),
    )
    hidden = {one[0] for one in people if one[5]}
    steps: list[dict[str, Any]] = []
    attempts: dict[int, list[dict[str, Any]]] = {}
    for step, at_us, text in fetch(
        cursor,
        "SELECT step, at_us, detail FROM event WHERE message_id = ? ORDER BY sequence",
        (queue_id,),
    ):
        detail = msgspec.json.decode(text)
        if step == Step.DELIVERY and not _told(detail, at_us, hidden=hidden, attempts=attempts):
            continue
        steps.append(Event(Step(step), at_us, detail).as_json())
    shown = [one for one in people if one[0] not in hidden]
    return {
        "id": facts.id,
        "account": facts.account,
        "submission_id": facts.submission_id or None,
        "message_id": facts.message_id,
        "sender": facts.reverse_path,
        "subject": facts.subject,
        "state": str(message_state([State(one[2]) for one in shown])),
        "steps": steps,
        "recipients": [
            {
                "address": address,
                "state": state,
                "next_hop": next_hop,
                "status": status,
                "reply": reply,
                **({"successors": successors.split("\n")} if successors else {}),
                "attempts": attempts.get(number, []),
            }
            for number, address, state, status, reply, _, successors, next_hop in shown
        ],
    }


def _told(
    detail: dict[str, Any],
    at_us: int,
    *,
    hidden: set[int],
    attempts: dict[int, list[dict[str, Any]]],
) -> bool:
    """Sort an attempt's outcomes by recipient; False when only hidden ones took part."""
    people = detail.get("recipients")
    if people is None:
        return True
    for one in people:
        attempts.setdefault(one["number"], []).append(
            {
                "at": rfc3339(at_us),
                "host": detail.get("host", ""),
                "outcome": one["outcome"],
                "status": one["status"],
                "reply": one["reply"],
                "tls": detail.get("tls", ""),
            }
        )
    detail["recipients"] = [one for one in people if one["number"] not in hidden]
    return bool(detail["recipients"])


def find_queue_ids(cursor: apsw.Cursor, key: str, *, account: str | None, limit: int) -> list[str]:
    """Newest first; every kind of name that docs/names.md has."""
    rows = fetch(cursor, _lookup(key), _lookup_values(key)) if key != "last" else []
    found = [row[0] for row in rows if account in (None, row[1])]
    if found or (key != "last" and "@" not in key):
        return sorted(found, reverse=True)[:limit]
    return _scan(cursor, key, account=account, limit=limit)


def _lookup(key: str) -> str:
    if "@" in key:
        return "SELECT id, account FROM message WHERE message_id IN (?, ?) AND message_id <> ''"
    return (
        "SELECT id, account FROM message WHERE id = ?"
        " UNION SELECT id, account FROM message WHERE submission_id <> ''"
        " AND submission_id >= ? AND submission_id < ?"
    )


def _lookup_values(key: str) -> tuple[str, ...]:
    if "@" in key:
        bare = key.removeprefix("<").removesuffix(">")
        return (key, f"<{bare}>")
    if "." in key:  # a whole submission id
        return (key, key, key + "\0")
    return (key, key + ".", key + "/")  # "." to "/": every submission of a draft


def _scan(cursor: apsw.Cursor, key: str, *, account: str | None, limit: int) -> list[str]:
    """The newest messages of a sender or for a recipient; bounded, so an old one may be missed."""
    found: list[str] = []
    wanted = key.lower()
    rows = cursor.connection.execute(  # read as far as it takes, beside what `cursor` is asked
        "SELECT id, account, reverse_path FROM message WHERE source <> 'report'"
        " ORDER BY id DESC LIMIT ?",
        (SCAN_MAX,),
    )
    for queue_id, owner, reverse_path in rows:
        if account not in (None, owner):
            continue
        if key == "last" or reverse_path.lower() == wanted or _is_for(cursor, queue_id, wanted):
            found.append(queue_id)
            if len(found) == limit:
                break
    return found


def _is_for(cursor: apsw.Cursor, queue_id: str, address: str) -> bool:
    row = fetch_one(
        cursor,
        "SELECT 1 FROM recipient WHERE message_id = ? AND lower(address) = ? AND added_by = ''",
        (queue_id, address),
    )
    return row is not None


def counts(cursor: apsw.Cursor) -> QueueCounts:
    """Queue figures from one snapshot: what was ever counted against the rows that live.

    One statement over the live entries only, so that it takes neither history nor the interpreter.
    """
    cursor.execute("BEGIN")
    try:
        counters: dict[str, int] = dict(fetch(cursor, "SELECT name, value FROM counter"))
        live, oldest, *entries = fetch_one(cursor, _LIVE)
        received = fetch_one(cursor, "SELECT received_us FROM message WHERE id = ?", (oldest,))
    finally:
        cursor.execute("COMMIT")
    final = sum(counters.get(state, 0) for state in FINAL)
    return QueueCounts(
        entries=dict(zip(_ENTRY_STATES, entries, strict=True)),
        oldest_us=received[0] if received else None,
        unaccounted=counters.get(ACCEPTED_COUNTER, 0) - final - live,
    )


def _where(selector: Selector, now_us: int) -> tuple[str, tuple[Any, ...]]:
    """A condition on e (entry) and m (message)."""
    conditions = ["e.state <> 'final'"]
    values: list[Any] = []
    if selector.ids:
        marks = ",".join("?" * len(selector.ids))
        conditions.append(f"(e.message_id IN ({marks}) OR m.submission_id IN ({marks}))")
        values += [*selector.ids, *selector.ids]
    if selector.sender:
        conditions.append("lower(m.reverse_path) GLOB ?")
        values.append(selector.sender.lower().removeprefix("<").removesuffix(">"))
    if selector.next_hop:
        conditions.append("(e.next_hop GLOB ? OR e.next_hop GLOB ?)")
        values += [selector.next_hop, "mx:" + selector.next_hop]
    if selector.state:
        conditions.append("e.state = ?")
        values.append(selector.state)
    if selector.older_than_s is not None:
        conditions.append("m.received_us < ?")
        values.append(now_us - int(selector.older_than_s * 1_000_000))
    for pattern in (selector.recipient, selector.domain and f"*@{selector.domain}"):
        if pattern:
            conditions.append(
                "EXISTS (SELECT 1 FROM recipient r WHERE r.message_id = e.message_id"
                " AND r.entry = e.number AND lower(r.address) GLOB ?)"
            )
            values.append(pattern.lower())
    return " AND ".join(conditions), tuple(values)
