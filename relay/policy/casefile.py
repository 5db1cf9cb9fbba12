"""Read the [[test]] tables of one file, and write the messages that they describe.

On the path: loader calls it for each file.
Holds: a test's message is a whole one, with CRLF line ends, as ingress hands them over.
Fails: never; faults are added to the list that is passed in.
Standards: docs/policy.md; RFC 5322, RFC 2046 5.1.3 for the messages.
"""

import re
from pathlib import Path
from typing import Any

from relay.message.address import AddressError, parse_mailbox
from relay.message.verdict import Source
from relay.mime import headers
from relay.mime.fields import parameter
from relay.policy.conditions import SizeOver
from relay.policy.reading import TableReader, some_text, text, texts
from relay.policy.rules import Case, Expectation, Judgement
from relay.settings.document import Document
from relay.settings.faults import Fault, KeyPath

SIZE_BYTES_MAX = 256 * 1024 * 1024

_KEYS = ("name", "from", "to", "subject", "headers", "body", "attachments", "size", "message",
         "source", "local", "expect")  # fmt: skip
_DESCRIBING = ("subject", "headers", "body", "attachments", "size")
_EXPECTED = ("verdict", "rules", "added", "redirected", "rejected", "subject")
_BOUNDARY = "test-message"
_line_end = re.compile(rb"\r\n|\r|\n")


def read_case(
    document: Document, path: KeyPath, raw: object, *, faults: list[Fault]
) -> Case | None:
    """Return the test at `path`, or None after adding to `faults`."""
    before = len(faults)
    reader = TableReader(document, path, raw, faults=faults)
    if not isinstance(raw, dict):
        return None
    reader.allow(_KEYS)
    case = Case(
        name=reader.required("name", some_text, default=""),
        sender=reader.required("from", _sender, default=""),
        recipients=tuple(reader.required("to", _recipients, default=[])),
        content=_content(reader, document.file.parent),
        source=reader.key("source", _source, default=Source.SMTP),
        local=reader.key("local", _domains, default=None),
        expect=_expectation(reader),
        file=document.file,
        line=reader.line,
    )
    return case if len(faults) == before else None


def crlf(content: bytes) -> bytes:
    """Return `content` with every line end as CRLF."""
    return _line_end.sub(b"\r\n", content)


def _expectation(reader: TableReader) -> Expectation:
    if "expect" not in reader.table:
        reader.tell(("expect",), 'found nothing, expected a table such as { verdict = "accept" }')
        return Expectation(Judgement.ACCEPT)
    inner = reader.inside("expect")
    inner.allow(_EXPECTED)
    return Expectation(
        verdict=inner.required("verdict", _judgement, default=Judgement.ACCEPT),
        rules=inner.key("rules", _names, default=None),
        added=inner.key("added", _people, default=None),
        redirected=inner.key("redirected", _people, default=None),
        rejected=inner.key("rejected", _people, default=None),
        subject=inner.key("subject", text, default=None),
    )


def _content(reader: TableReader, directory: Path) -> bytes:
    """Return the test's message: the file it names, or one made of what it describes."""
    if "message" not in reader.table:
        return _described(reader)
    for key in _DESCRIBING:
        if key in reader.table:
            reader.tell((key,), "found this key beside message, expected one or the other")

    def read(value: Any) -> bytes:
        try:
            file = directory / some_text(value)
            if not file.is_file() or file.stat().st_size > SIZE_BYTES_MAX:
                raise ValueError(f"a file of at most {SIZE_BYTES_MAX} bytes")
            return crlf(file.read_bytes())
        except OSError as error:
            raise ValueError(f"a file that can be read: {error.strerror}") from None

    return reader.key("message", read, default=b"")


def _described(reader: TableReader) -> bytes:
    head = headers.field("From", reader.key("from", _sender, default="") or "test@invalid")
    head += headers.field("To", ", ".join(reader.key("to", _recipients, default=[])))
    head += headers.field("Subject", reader.key("subject", text, default="test"))
    head += reader.key("headers", _fields, default=b"")
    body = crlf(reader.key("body", _body, default="test\n").encode())
    names: list[str] = reader.key("attachments", texts, default=[])
    size_bytes = reader.key("size", _size, default=0)
    if not names:
        content = head + b"\r\n" + body
        return content + b"." * (size_bytes - len(content))
    kind = f'multipart/mixed; boundary="{_BOUNDARY}"'
    head += b"MIME-Version: 1.0\r\n" + headers.field("Content-Type", kind)
    parts = [b"Content-Type: text/plain; charset=utf-8\r\n\r\n" + body, *map(_attachment, names)]
    between = f"\r\n--{_BOUNDARY}\r\n".encode()
    content = head + b"".join(between + part for part in parts)
    end = f"\r\n--{_BOUNDARY}--\r\n".encode()
    return content + b"." * (size_bytes - len(content) - len(end)) + end


def _attachment(name: str) -> bytes:
    disposition = f"Content-Disposition: attachment{parameter('filename', name)}\r\n\r\n"
    return b"Content-Type: application/octet-stream\r\n" + disposition.encode()


def _sender(value: Any) -> str:
    if value in ("", "<>"):
        return ""
    return _address(value)


def _recipients(value: Any) -> list[str]:
    addresses = texts(value)
    if not addresses:
        raise ValueError("at least one address")
    return [_address(each) for each in addresses]


def _address(value: Any) -> str:
    try:
        return parse_mailbox(text(value), smtputf8=True)
    except AddressError as error:
        raise ValueError(f"an address: {error}") from None


def _fields(value: Any) -> bytes:
    if not isinstance(value, dict):
        raise ValueError('a table of fields, { "X-Spam" = "yes" }')
    return b"".join(headers.field(name, text(each)) for name, each in value.items())


def _body(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text in quotes")
    return value


def _size(value: Any) -> int:
    size_bytes = SizeOver.parse(value).size_bytes
    if size_bytes > SIZE_BYTES_MAX:
        raise ValueError(f"a size of at most {SIZE_BYTES_MAX} bytes")
    return size_bytes


def _source(value: Any) -> Source:
    if value not in list(Source):
        raise ValueError(f"one of {', '.join(Source)}")
    return Source(value)


def _judgement(value: Any) -> Judgement:
    if value not in list(Judgement):
        raise ValueError(f"one of {', '.join(Judgement)}")
    return Judgement(value)


def _domains(value: Any) -> frozenset[str]:
    return frozenset(each.lower() for each in texts(value))


def _names(value: Any) -> tuple[str, ...]:
    return tuple(texts(value))


def _people(value: Any) -> frozenset[str]:
    return frozenset(each.casefold() for each in texts(value))
