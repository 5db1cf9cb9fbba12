"""Rows as all engines store them: their columns, and the values in them."""

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from relay.base.message.address import ascii_address
from relay.base.message.envelope import Envelope, MessageFacts, Source
from relay.base.message.lifecycle import LIVE
from relay.base.phrases import words_in
from relay.formats.read_report import COMPLAINTS
from relay.store.journeys.events import Step
from relay.store.spool.types import NewRecipient, SpoolError, extra_text, parse_message_extra

T = TypeVar("T")
# The columns of a message, in the order of message_row() and read_facts().
MESSAGE_COLUMNS = words_in(
    "id reverse_path source trusted received_us expires_us size account submission_id envid ret"
    " smtputf8 eight_bit client message_id subject extra"
)
# The account that logged in to send a message, "" without a login; {} is the table and a point, or
# nothing.
LOGIN = (
    "CASE WHEN {0}source = 'report' OR {0}extra LIKE '%\"by_sender\":true%' THEN ''"
    " ELSE {0}account END"
)
# Of events: feedback reports, and those of them that are complaints.
IS_FEEDBACK = f'step = {Step.REPORT:d} AND detail LIKE \'%"kind":"complaint"%\''
_TYPES = " OR ".join(f'detail LIKE \'%"type":"{kind}"%\'' for kind in COMPLAINTS)
IS_COMPLAINT = f"{IS_FEEDBACK} AND ({_TYPES})"
_LIVE = ", ".join(f"'{state}'" for state in LIVE)
LIVE_STATES = f"({_LIVE})"
WAITS = "claimed = 0 AND due_us IS NOT NULL"  # of an entry that may come due
# Of a clock anchor, in the order of its fields.
ANCHOR_COLUMNS = "steady_us, wall_us, elapsed_us, boot_id, doubtful_us, doubt_ends_us"
# Of an entry's recipients: their reports are written, or no longer needed.
PAY_REPORTS = (
    "UPDATE recipient SET owed_report = '' WHERE message_id = ? AND entry = ? AND owed_report <> ''"
)
ACCEPTED_COUNTER = "accepted"  # recipients
# The place in a spool without events: 0 asks for all that there are.
NO_EVENTS = 1
REMOVED_EVENTS = "events_removed_to"  # the counter of the greatest sequence that was removed
# Of a schema.sql
_TABLE = re.compile(r"^CREATE TABLE (\w+) \((.*?)^\)", re.MULTILINE | re.DOTALL)
_COLUMN = re.compile(r"^ {4}([a-z]\w*)", re.MULTILINE)


def schema_difference(script: str, columns: Iterable[Sequence[str]]) -> str:
    """Return how the columns of a database differ from those of a schema.sql: missing tables and
    columns, and unexpected columns of its tables; "" if there is no difference. `columns` are the
    name of the table and of the column.
    """
    expected = {
        (table, column)
        for table, body in _TABLE.findall(script)
        for column in _COLUMN.findall(body)
    }
    actual = {(table, column) for table, column in columns}
    missing, unexpected = expected - actual, actual - expected
    tables, expected_tables = {table for table, _ in actual}, {table for table, _ in expected}
    differences = {
        "missing": {f"{name}.{column}" if name in tables else name for name, column in missing},
        "unexpected": {".".join(pair) for pair in unexpected if pair[0] in expected_tables},
    }
    texts = (f"{word}: {', '.join(sorted(names))}" for word, names in differences.items() if names)
    return "; ".join(texts)


def read_facts(row: Sequence[Any]) -> MessageFacts:
    """Return the facts in a row of MESSAGE_COLUMNS. Raises ValueError for values that are none."""
    extra = parse_message_extra(row[16])
    return MessageFacts(
        id=row[0],
        envelope=Envelope(
            ascii_address(row[1]),
            envid=row[9],
            ret=row[10],
            smtputf8=bool(row[11]),
            eight_bit=bool(row[12]),
            tls=extra.tls,
        ),
        source=Source(row[2]),
        trusted=bool(row[3]),
        received_us=row[4],
        expires_us=row[5],
        size=row[6],
        account=row[7],
        submission_id=row[8],
        client=row[13],
        message_id=row[14],
        subject=row[15],
        extra=extra,
    )


def message_row(facts: MessageFacts) -> tuple[Any, ...]:
    """Return the values of MESSAGE_COLUMNS."""
    mail, extra = facts.envelope, facts.extra
    if mail.tls:
        extra = replace(extra, tls=mail.tls)
    return (
        facts.id,
        mail.reverse_path,
        facts.source,
        int(facts.trusted),
        facts.received_us,
        facts.expires_us,
        facts.size,
        facts.account,
        facts.submission_id,
        mail.envid,
        mail.ret,
        int(mail.smtputf8),
        int(mail.eight_bit),
        facts.client,
        facts.message_id,
        facts.subject,
        extra_text(extra),
    )


def recipient_row(
    message_id: str, recipient: NewRecipient, *, entry: int, number: int
) -> tuple[Any, ...]:
    """Return the values of a recipient, without an owed report."""
    path = recipient.path
    return (
        message_id,
        entry,
        number,
        path.address,
        ",".join(sorted(path.notify)),
        path.orcpt,
        recipient.state,
        recipient.status,
        recipient.reply,
        recipient.added_by,
        "\n".join(recipient.successors),
    )


def in_chunks(rows: Iterator[T], size: int) -> Iterator[list[T]]:
    """Yield rows in lists of this size, read only as far as needed."""
    while chunk := list(islice(rows, size)):
        yield chunk


def inline_content(name: str, data: Any, *, size: int, crc32: int | None) -> bytes:
    """Return a content that is in its row. Raises SpoolError if it is damaged."""
    if not isinstance(data, bytes) or len(data) != size:
        raise SpoolError(f"content {name} is damaged: expected {size} bytes")
    verify_checksum(name, zlib.crc32(data), expected=crc32)
    return data


def verify_checksum(name: str, crc32: int, *, expected: int | None) -> None:
    """Raise SpoolError for a content whose octets have changed; `expected` is None to compare
    nothing.
    """
    if expected is not None and crc32 != expected:
        raise SpoolError(f"content {name} has changed: CRC-32 {crc32:08x}, expected {expected:08x}")


def json_text(detail: Any) -> str:
    """Return a value as the JSON in a row."""
    return msgspec.json.encode(detail).decode()
