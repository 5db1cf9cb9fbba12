"""The rows of a spool's file for the judges: messages with their recipients, entries and events.

Read-only, without the code of the spool. Raises the exceptions of apsw. See
relay/store/spool/sqlite/schema.sql.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import msgspec

from relay.base.message.lifecycle import RecipientState
from relay.store.spool.shared.columns import REMOVED_EVENTS
from relay.store.spool.sqlite.write_ahead_log import COMMITS_COUNTER
from tests.simulation.sites import TOKEN


@dataclass(frozen=True)
class Recipient:
    """A row."""

    number: int
    entry: int
    address: str
    notify: str
    state: RecipientState
    reply: str
    added_by: str
    successors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Message:
    """A message's rows."""

    id: str
    reverse_path: str
    source: str
    trusted: bool
    submission_id: str
    token: str
    expires_us: int
    recipients: tuple[Recipient, ...]
    events: tuple[tuple[int, int, dict[str, Any]], ...]  # sequence, step, detail


@dataclass(frozen=True)
class Rows:
    """What the spool has."""

    messages: Mapping[str, Message]
    contents: int
    counters: Mapping[str, int]
    violations: tuple[str, ...]


def read_finished(cursor: apsw.Cursor, before_us: int) -> dict[str, Message]:
    """Messages from before a time of which no entry lives: what pruning may take."""
    finished = (
        f"{_MESSAGES} m WHERE received_us < ? AND NOT EXISTS"
        " (SELECT 1 FROM entry e WHERE e.message_id = m.id AND e.state <> 'final')"
    )
    rows = cursor.execute(finished, (before_us,)).fetchall()
    return {row[0]: _message(cursor, row) for row in rows}


def read_rows(home: Path) -> Rows:
    """Read the spool's file as it was left."""
    connection = apsw.Connection(str(home / "spool.sqlite"))
    try:
        cursor = connection.cursor()
        messages = {row[0]: _message(cursor, row) for row in list(cursor.execute(_MESSAGES))}
        contents = cursor.execute("SELECT count(*) FROM content").fetchone()[0]
        counted = "SELECT name, value FROM counter WHERE name NOT IN (?, ?)"
        counters = dict(cursor.execute(counted, (COMMITS_COUNTER, REMOVED_EVENTS)))
        return Rows(messages, contents, counters, ())
    finally:
        connection.close()


def anchored_boot(home: Path) -> str:
    """Return since which start of the machine the spool's file knows the time; "" if it does not."""
    connection = apsw.Connection(str(home / "spool.sqlite"))
    try:
        row = connection.execute("SELECT boot_id FROM clock").fetchone()
        return row[0] if row else ""
    finally:
        connection.close()


_MESSAGES = (
    "SELECT id, reverse_path, source, trusted, submission_id, subject, expires_us FROM message"
)


def _message(cursor: apsw.Cursor, row: Any) -> Message:
    people = cursor.execute(
        "SELECT number, entry, address, notify, state, reply, added_by, successors FROM recipient"
        " WHERE message_id = ? ORDER BY number",
        (row[0],),
    ).fetchall()
    events = cursor.execute(
        "SELECT sequence, step, detail FROM event WHERE message_id = ? ORDER BY sequence", (row[0],)
    ).fetchall()
    token = TOKEN.search(f"Subject: {row[5]}".encode())
    return Message(
        row[0],
        row[1],
        row[2],
        bool(row[3]),
        row[4],
        token[1].decode() if token and row[2] != "report" else "",
        row[6],
        tuple(
            Recipient(*one[:4], RecipientState(one[4]), *one[5:7], tuple(one[7].split()))
            for one in people
        ),
        tuple((one[0], one[1], msgspec.json.decode(one[2])) for one in events),
    )
