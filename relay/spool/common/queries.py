"""Read the journey of a message, and find messages by id, Message-ID or address.

Nothing is changed here. A limit or a single message bounds each answer. The JSON is that of
`/relay/v1/messages/{id}` (docs/names.md).
"""

import re
from collections.abc import Collection, Container, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from relay.base.clock import ID_LENGTH, rfc3339
from relay.journeys.document import Attempt, Journey, JourneyStep, Recipient, attempts_in
from relay.journeys.events import Event, Step
from relay.journeys.message_search import SCAN_MAX
from relay.message.envelope import MessageFacts
from relay.message.lifecycle import FINAL, RecipientState, hold_text, message_state
from relay.spool.common.rows import MESSAGE_COLUMNS, in_chunks, read_facts
from relay.spool.queue_commands import Operation, ShownTimes, command_reason
from relay.spool.tables import Tables
from relay.spool.types import NO_EXTRA, readable_extra

_MESSAGE = f"SELECT {', '.join(MESSAGE_COLUMNS)} FROM message WHERE id = ?"
_RECIPIENTS = (
    "SELECT r.number, r.address, r.state, r.status, r.reply, r.added_by, r.successors,"
    " {}, r.entry, e.retry_us, e.due_us, e.extra FROM recipient r LEFT JOIN entry e"
    " ON e.message_id = r.message_id AND e.number = r.entry"
    " WHERE r.message_id = ? ORDER BY r.number"
)
_EVENTS = "SELECT step, at_us, detail FROM event WHERE message_id = ? ORDER BY sequence"
_ENTRY = re.compile(rf"^([0-9a-z]{{{ID_LENGTH}}})-[0-9]{{1,9}}$", re.ASCII)
# The Graph id of a copy in a mailbox: no clock id begins with an "l". It is in the event of the
# attempt; those of older messages may be missed.
_COPY = re.compile(r"^l[a-z2-7]{15}$", re.ASCII)
_LOOKUP_OF_COPY = (
    "SELECT message.id, account FROM message JOIN event ON event.message_id = message.id"
    " WHERE message.id IN (SELECT id FROM message ORDER BY id DESC LIMIT ?) AND step = ?"
    " AND detail LIKE ? LIMIT 1"
)
# Of submission keys: the history of a message may be gone before its key.
RECIPIENTS_OF_KEYS = (
    "SELECT s.key, coalesce(s.message_id || '-' || r.number, '')"
    " FROM submission s LEFT JOIN recipient r ON r.message_id = s.message_id WHERE {}"
)


def journey(tables: Tables, queue_id: str, times: ShownTimes) -> Journey | None:
    """Return a message with its steps 5 to 7 and recipients, except those that policy added."""
    with tables.snapshot():  # the states, and the attempts that led to them
        row = tables.fetch_one(_MESSAGE, (queue_id,))
        recipients = tables.fetch(_RECIPIENTS.format(tables.next_hop), (queue_id,))
        events = tables.fetch(_EVENTS, (queue_id,))
    if row is None:
        return None
    facts = read_facts(row)
    hidden = {one[0] for one in recipients if one[5]}
    entries = {one[8] for one in recipients if not one[5]}
    steps: list[JourneyStep] = []
    attempts: dict[int, list[Attempt]] = {}
    copies: dict[int, str] = {}  # Graph ids
    for step, at_us, text in events:
        detail = msgspec.json.decode(text)
        if step == Step.DELIVERY:
            for number, tried in attempts_in(detail, rfc3339(at_us)):
                attempts.setdefault(number, []).append(tried)
            for one in detail.get("recipients", ()):
                if "graph_id" in one:
                    copies[one["number"]] = one["graph_id"]
            if not is_shown(detail, hidden=hidden, entries=entries):
                continue
        steps.append(Event(Step(step), at_us, detail).as_step())
    shown = [one for one in recipients if one[0] not in hidden]
    reasons = _reasons({(one[2], one[8], one[11] or "") for one in shown}, steps)
    return Journey(
        id=facts.id,
        graph_id=None,
        submission_id=facts.submission_id or None,
        message_id=facts.message_id,
        sender=facts.envelope.reverse_path,
        subject=facts.subject,
        state=str(message_state([RecipientState(one[2]) for one in shown])),
        client={},
        steps=tuple(steps),
        recipients=tuple(
            _recipient(
                one,
                attempts.get(one[0], ()),
                reason=reasons.get((one[2], one[8])),
                graph_id=copies.get(one[0]),
                facts=facts,
                times=times,
            )
            for one in shown
        ),
    )  # fmt: skip


def _recipient(
    row: Sequence[Any],
    attempts: Sequence[Attempt],
    *,
    reason: str | None,
    graph_id: str | None,
    facts: MessageFacts,
    times: ShownTimes,
) -> Recipient:
    _, address, state, status, reply, _, successors, hop, _, retry_us, due_us, text = row
    extra = readable_extra(text or "") or NO_EXTRA
    expires_us = extra.expires_us or facts.expires_us
    next_hop, _, route = hop.partition(" ") if hop is not None else (None, "", "")  # NextHop.key
    return Recipient(
        address=address,
        state=state,
        reason=reason,
        next_attempt=None if retry_us is None or state in FINAL else times.wall_time(retry_us),
        expires=times.end(
            state, due_us=due_us, expires_us=expires_us, received_us=facts.received_us
        ),
        next_hop=next_hop,
        route=route or None,
        status=status,
        reply=reply,
        successors=tuple(successors.split("\n")) if successors else UNSET,
        attempts=tuple(attempts),
        graph_id=graph_id,
    )


def _reasons(
    entries: Collection[tuple[str, int, str]], steps: Sequence[JourneyStep]
) -> dict[tuple[str, int], str]:
    """Return why entries are in a state that an operator, a route or the relay itself has put them
    in; each is given by its state, number and EntryExtra.
    """
    found = {}
    for state, number, text in entries:
        extra = readable_extra(text) or NO_EXTRA
        if state == RecipientState.HELD and extra.reason:
            found[state, number] = hold_text(extra.reason, extra.rule)
        elif (operation := _OPERATIONS.get(state)) is not None:
            details = (one.detail for one in reversed(steps) if one.step == Step.DELIVERY)
            if reason := command_reason(number, details, operation):
                found[state, number] = reason
    return found


_OPERATIONS: Mapping[str, Operation] = {
    RecipientState.HELD: Operation.HOLD,
    RecipientState.CANCELLED: Operation.CANCEL,
}


def is_shown(detail: dict[str, Any], *, hidden: Container[int], entries: Container[int]) -> bool:
    """Remove from an event of step 6 what concerns recipients that policy added; return whether
    anything is left. `hidden` are the numbers of these recipients, `entries` those of the others.
    """
    if (recipients := detail.get("recipients")) is not None:
        detail["recipients"] = [one for one in recipients if one["number"] not in hidden]
        if not detail["recipients"]:
            return False
    if "operation" in detail:
        detail["entries"] = [number for number in detail["entries"] if number in entries]
        return bool(detail["entries"])
    return True


def find_queue_ids(tables: Tables, key: str, *, account: str | None, limit: int) -> list[str]:
    """Return ids, newest first, for any name in docs/names.md or an entry's ID-NUMBER."""
    key = _ENTRY.sub(r"\1", key)
    rows = tables.fetch(*_lookup(key)) if key != "last" else []
    if not rows and _COPY.match(key):
        rows = tables.fetch(
            _LOOKUP_OF_COPY, (SCAN_MAX, int(Step.DELIVERY), f'%"graph_id":"{key}"%')
        )
    found = [row[0] for row in rows if account in (None, row[1])]
    if found or (key != "last" and "@" not in key):
        return sorted(found, reverse=True)[:limit]
    return _scan(tables, key, account=account, limit=limit)


def _lookup(key: str) -> tuple[str, tuple[str, ...]]:
    """Return a query for the messages with this name, and its values."""
    if "@" in key:
        sql = "SELECT id, account FROM message WHERE message_id IN (?, ?) AND message_id <> ''"
        return sql, (key, f"<{key.removeprefix('<').removesuffix('>')}>")
    sql = (
        "SELECT id, account FROM message WHERE id = ?"
        " UNION SELECT id, account FROM message WHERE submission_id <> ''"
        " AND submission_id >= ? AND submission_id < ?"
    )
    if "." in key:  # a whole submission id
        return sql, (key, key, key + "\1")
    return sql, (key, key + ".", key + "/")  # "." to "/": every submission of a draft


def _scan(tables: Tables, key: str, *, account: str | None, limit: int) -> list[str]:
    """Scan the newest messages by sender or recipient; older ones may be missed."""
    found: list[str] = []
    wanted = key.lower()
    rows = tables.each(
        "SELECT id, account, reverse_path FROM message WHERE source <> 'report'"
        " ORDER BY id DESC LIMIT ?",
        (SCAN_MAX,),
    )
    for some in in_chunks(rows, _SCANNED_AT_ONCE):
        own = {row[0]: row[2].lower() for row in some if account in (None, row[1])}
        named = set(own) if key == "last" else _sent_to(tables, tuple(own), wanted)
        found += [one for one, sender in own.items() if sender == wanted or one in named]
        if len(found) >= limit:
            break
    return found[:limit]


def _sent_to(tables: Tables, queue_ids: Sequence[str], address: str) -> set[str]:
    """Return those of these messages that have this recipient, not added by policy."""
    where, values = tables.among("message_id", queue_ids)
    rows = tables.fetch(
        f"SELECT DISTINCT message_id FROM recipient WHERE {where} AND lower(address) = ?"
        " AND added_by = ''",
        (*values, address),
    )
    return {queue_id for (queue_id,) in rows}


_COPIES_MAX = 20
_SCANNED_AT_ONCE = 200


def first_recipients(tables: Tables, queue_id: str) -> list[tuple[int, str, str]]:
    """Return number, address and state of the first recipients that policy has not added."""
    return tables.fetch(
        "SELECT number, address, state FROM recipient WHERE message_id = ? AND added_by = ''"
        " ORDER BY state = 'delivered' DESC, number LIMIT ?",
        (queue_id, _COPIES_MAX),
    )
