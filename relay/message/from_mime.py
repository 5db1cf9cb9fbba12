"""Turn MIME content as it was given into the MIME that is submitted.

On the path: convert hands in what stands behind a note's private block.
Holds: what goes out is what came in, but for Bcc, line ends and the fields it lacks.
Fails: never; convert checks it before.
Standards: RFC 5322; RFC 2045, 2046.
"""

import re
from collections.abc import Iterator

from relay.message.draft import DraftOrigin
from relay.message.fields import people_field, raw_field
from relay.message.headers import date_field
from relay.message.properties import Person

_FIELD_START = re.compile(rb"([!-9;-~]+)[ \t]*:")


def from_mime(content: bytes, origin: DraftOrigin) -> tuple[bytes, bytes]:
    """Return what is sent, and the header as it was, from which the recipients are read."""
    content = with_crlf(content)
    end = header_end(content)
    header, body = content[:end], content[end:] or b"\r\n"
    if not header.endswith(b"\r\n"):
        header += b"\r\n"
    kept, names = [], set()
    for name, field in _fields(header):
        names.add(name)
        if name not in (b"bcc", b"resent-bcc"):
            kept.append(field)
    missing = ""
    if b"from" not in names:
        missing += people_field("From", [Person(origin.account)])
    if b"date" not in names:
        missing += raw_field("Date", date_field(origin.modified_us))
    if b"message-id" not in names:
        missing += raw_field("Message-ID", origin.message_id)
    sent = b"".join((*kept, missing.encode(), body))
    return sent if sent.endswith(b"\r\n") else sent + b"\r\n", header


def _fields(header: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (lower-case name, field with its continuation lines); b"" names what is no field."""
    field: list[bytes] = []
    for line in header.splitlines(keepends=True):
        if field and line[:1] in (b" ", b"\t"):
            field.append(line)
            continue
        if field:
            yield _name_of(field[0]), b"".join(field)
        field = [line]
    if field:
        yield _name_of(field[0]), b"".join(field)


def _name_of(line: bytes) -> bytes:
    match = _FIELD_START.match(line)
    return match[1].lower() if match else b""


def header_end(content: bytes) -> int:
    """Where the header's last line ends; what follows is the empty line and the body."""
    end = content.find(b"\r\n\r\n")
    return end + 2 if end >= 0 else len(content)


def with_crlf(content: bytes) -> bytes:
    """Bring every line end to CRLF, without a copy where that is so already."""
    pairs = content.count(b"\r\n")
    if pairs == content.count(b"\n") == content.count(b"\r"):
        return content
    content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return content.replace(b"\n", b"\r\n")
