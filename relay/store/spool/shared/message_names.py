"""Find messages by a name: a queue id, submission id, draft id, Message-ID, Graph id or address."""

import re
from collections.abc import Sequence

from relay.base.clock import ID_LENGTH
from relay.base.message.address import own_mailbox, shown_address, with_capitals
from relay.base.message.rest_id import read_rest_id
from relay.store.journeys.events import Step
from relay.store.journeys.message_list import SCAN_MAX
from relay.store.spool.shared.columns import in_chunks
from relay.store.spool.shared.tables import Tables

_SCANNED_AT_ONCE = 200
_BY_MESSAGE_ID = "SELECT id FROM message WHERE message_id IN (?, ?) AND message_id <> ''"
_BY_ID = (
    "SELECT ? UNION SELECT id FROM message WHERE submission_id <> ''"
    " AND submission_id >= ? AND submission_id < ?"
)
_ENTRY = re.compile(rf"^([0-9a-z]{{{ID_LENGTH}}})-[0-9]{{1,9}}$", re.ASCII)
# The Graph id of a copy in a mailbox: no clock id begins with an "l". The event of the attempt has
# it. Only the events of the newest messages are searched.
_COPY = re.compile(r"^l[a-z2-7]{15}$", re.ASCII)
_LOOKUP_OF_COPY = (
    "SELECT message.id, account FROM message JOIN event ON event.message_id = message.id"
    " WHERE message.id IN (SELECT id FROM message ORDER BY id DESC LIMIT ?) AND step = ?"
    " AND detail LIKE ? LIMIT 1"
)


def find_queue_ids(tables: Tables, key: str, *, account: str | None, limit: int) -> list[str]:
    """SpoolHistory.find_queue_ids; also for an entry's ID-NUMBER."""
    key = _ENTRY.sub(r"\1", key)
    where, values = naming(key)
    sql = f"SELECT id, account FROM message WHERE id IN ({where})"
    rows = tables.fetch(sql, values) if key != "last" else []
    if not rows and _COPY.match(key):
        rows = tables.fetch(
            _LOOKUP_OF_COPY, (SCAN_MAX, int(Step.DELIVERY), f'%"graph_id":"{key}"%')
        )
    ids = [row[0] for row in rows if account in (None, row[1])]
    if ids or (key != "last" and "@" not in key):
        return sorted(ids, reverse=True)[:limit]
    return _scan(tables, key, account=account, limit=limit)


def naming(name: str) -> tuple[str, tuple[str, ...]]:
    """Return a query for the ids of messages with this name: a queue id, Message-ID, submission id,
    or draft id (the part of a submission id before the point).
    """
    name, _ = read_rest_id(name)
    if "@" in name or name.startswith("<"):
        bare = name.removeprefix("<").removesuffix(">")
        return _BY_MESSAGE_ID, (bare, f"<{bare}>")
    low, high = (name, name + "\1") if "." in name else (name + ".", name + "/")
    return _BY_ID, (name, low, high)


def _scan(tables: Tables, key: str, *, account: str | None, limit: int) -> list[str]:
    """Search the newest messages for this sender or recipient; older messages may be missed."""
    ids: list[str] = []
    address = own_mailbox(key)
    rows = tables.each(
        "SELECT id, account, reverse_path FROM message WHERE source <> 'report'"
        " ORDER BY id DESC LIMIT ?",
        (SCAN_MAX,),
    )
    for chunk in in_chunks(rows, _SCANNED_AT_ONCE):
        own = {row[0]: own_mailbox(row[2]) for row in chunk if account in (None, row[1])}
        named = set(own) if key == "last" else _sent_to(tables, tuple(own), address)
        ids += [queue_id for queue_id in own if own[queue_id] == address or queue_id in named]
        if len(ids) >= limit:
            break
    return ids[:limit]


def _sent_to(tables: Tables, queue_ids: Sequence[str], address: str) -> set[str]:
    """Return which of these messages have this recipient, if policy did not add it."""
    where, values = tables.among("message_id", queue_ids)
    rows = tables.fetch(
        f"SELECT DISTINCT message_id FROM recipient WHERE {where} AND lower(address) IN (?, ?, ?)"
        " AND added_by = ''",
        (*values, address, with_capitals(address), shown_address(address)),
    )
    return {queue_id for (queue_id,) in rows}


def accepted_submissions(tables: Tables, submission_ids: Sequence[str]) -> Sequence[str]:
    """SpoolHistory.accepted_submissions."""
    where, values = tables.among("submission_id", submission_ids)
    rows = tables.fetch(
        f"SELECT submission_id FROM message WHERE {where} AND submission_id <> ''", values
    )
    return [name for (name,) in rows]
