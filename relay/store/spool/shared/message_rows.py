"""What the rows of the message list show."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from relay.base.message.lifecycle import AT_REST, RecipientState, message_state
from relay.store.journeys.message_list import (
    LISTED_MAX,
    ListedRecipient,
    MessageSummary,
    position_of,
)
from relay.store.spool.shared.columns import LOGIN
from relay.store.spool.shared.tables import Tables

_SUMMARY = (
    "SELECT id, reverse_path, submission_id, message_id, subject, size, client, account,"
    f" {LOGIN.format('')} FROM message WHERE id = ?"
)
_STATES = (
    "SELECT message_id, state, count(*) FROM recipient WHERE message_id = ? AND added_by = ''"
    " GROUP BY message_id, state"
)
_FIRST_RECIPIENTS = (
    "SELECT message_id, number, address, state, status, reply FROM recipient"
    f" WHERE message_id = ? AND added_by = '' ORDER BY entry, number LIMIT {LISTED_MAX}"
)
_FIRST_ADDED = (
    "SELECT message_id, number, address, state, added_by FROM recipient"
    f" WHERE message_id = ? AND added_by <> '' ORDER BY number LIMIT {LISTED_MAX}"
)
_NEXT_ATTEMPT = (
    "SELECT message_id, min(retry_us) FROM entry WHERE message_id = ? AND state = 'deferred'"
    " GROUP BY message_id"
)


def summaries(
    tables: Tables, queue_ids: Sequence[str], *, account: str | None, added: bool = False
) -> Sequence[MessageSummary]:
    """SpoolHistory.summaries."""
    rows = [
        row
        for row in tables.fetch_each(_SUMMARY, [(queue_id,) for queue_id in queue_ids])
        if account in (None, row[7])
    ]
    keys = [(row[0],) for row in rows]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    first: dict[str, list[Any]] = defaultdict(list)
    for queue_id, *recipient in tables.fetch_each(_FIRST_RECIPIENTS, keys):
        first[queue_id].append(recipient)
        counts[queue_id][recipient[2]] += 1
    more = [(queue_id,) for queue_id, recipients in first.items() if len(recipients) == LISTED_MAX]
    for queue_id, state, number in tables.fetch_each(_STATES, more):
        counts[queue_id][state] = number
    copies: dict[str, list[ListedRecipient]] = defaultdict(list)
    for queue_id, *copy in tables.fetch_each(_FIRST_ADDED, keys) if added else ():
        copies[queue_id].append(ListedRecipient(*copy))
    waiting = [(queue_id,) for queue_id, states in counts.items() if not AT_REST.issuperset(states)]
    retries = dict(tables.fetch_each(_NEXT_ATTEMPT, waiting))
    listed = []
    for queue_id, sender, submission_id, message_id, subject, size, client, _, login in rows:
        recipients = sorted(first[queue_id])
        state = str(message_state([RecipientState(name) for name in counts[queue_id]]))
        status, reply = _deciding(tables, queue_id, state=state, first=recipients)
        listed.append(
            MessageSummary(
                position=position_of(queue_id, submission_id),
                id=queue_id,
                submission_id=submission_id or None,
                message_id=message_id,
                sender=sender,
                subject=subject,
                state=state,
                recipients=tuple(ListedRecipient(*recipient[:3]) for recipient in recipients),
                recipient_count=sum(counts[queue_id].values()),
                size_bytes=size,
                client=client,
                login=login,
                status=status,
                reply=reply,
                next_attempt_us=retries.get(queue_id),
                added=tuple(copies[queue_id]),
            )
        )
    return listed


def _deciding(
    tables: Tables, queue_id: str, *, state: str, first: Sequence[Any]
) -> tuple[str, str]:
    """Return the status and the reply of a recipient that has the state of the message."""
    for _, _, recipient_state, status, reply in first:
        if recipient_state == state:
            return status, reply
    row = tables.fetch_one(
        "SELECT status, reply FROM recipient WHERE message_id = ? AND added_by = ''"
        " AND state = ? LIMIT 1",
        (queue_id, state),
    )
    return (row[0], row[1]) if row is not None else ("", "")
