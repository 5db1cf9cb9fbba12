"""Read the [[test]] tables of rule files.

The message of a test is complete, with CRLF line ends, as ingress passes it to the engine
(RFC 5322, RFC 2046 5.1.3).
"""

import re
from pathlib import Path
from typing import Any

from msgspec import Struct

from relay.message.address import AddressError, parse_mailbox
from relay.message.content import LARGE_BYTES, Content, LargeContent, MemoryOctets
from relay.message.envelope import Source
from relay.mime import headers
from relay.mime.write_header import parameter
from relay.policy.conditions import SizeOverCondition
from relay.policy.rules import ExpectedResult, OverallVerdict, RuleTest
from relay.policy.table_reader import TableReader, one_of, some_text, text, texts
from relay.settings.document import Document, Fault, KeyPath

SIZE_BYTES_MAX = 256 * 1024 * 1024
_TEST_KEYS = ("name", "from", "to", "subject", "headers", "body", "attachments", "size", "message",
         "source", "local", "expect")  # fmt: skip
_DESCRIBING = ("subject", "headers", "body", "attachments", "size")
_EXPECTED = ("verdict", "rules", "added", "redirected", "rejected", "subject")
_BOUNDARY = "test-message"
_line_end = re.compile(rb"\r\n|\r|\n")


def read_test(
    document: Document, path: KeyPath, raw: object, *, faults: list[Fault]
) -> RuleTest | None:
    """Return the test at `path`, or None after adding to `faults`."""
    before = len(faults)
    reader = TableReader(document, path, raw, faults=faults)
    if not isinstance(raw, dict):
        return None
    reader.check_keys(_TEST_KEYS)
    test = RuleTest(
        name=reader.required("name", some_text, default=""),
        sender=reader.required("from", _sender, default=""),
        recipients=tuple(reader.required("to", _recipients, default=[])),
        content=_content(reader, document.file.parent),
        source=reader.key("source", one_of(Source), default=Source.SMTP),
        local=reader.key("local", _domains, default=None),
        expect=_expectation(reader),
        file=document.file,
        line=reader.line,
    )
    return test if len(faults) == before else None


def crlf(content: bytes) -> bytes:
    """Return `content` with every line end as CRLF."""
    return _line_end.sub(b"\r\n", content)


def _expectation(reader: TableReader) -> ExpectedResult:
    if "expect" not in reader.table:
        reader.add_fault(
            ("expect",), 'found nothing, expected a table such as { verdict = "accept" }'
        )
        return ExpectedResult(OverallVerdict.ACCEPT)
    inner = reader.subtable("expect")
    inner.check_keys(_EXPECTED)
    return ExpectedResult(
        verdict=inner.required("verdict", one_of(OverallVerdict), default=OverallVerdict.ACCEPT),
        rules=inner.key("rules", _names, default=None),
        added=inner.key("added", _address_set, default=None),
        redirected=inner.key("redirected", _address_set, default=None),
        rejected=inner.key("rejected", _address_set, default=None),
        subject=inner.key("subject", text, default=None),
    )


def _content(reader: TableReader, directory: Path) -> Content:
    """Return the test's message: the file that it names, or one built from its keys."""
    if "message" not in reader.table:
        return _built_message(reader)
    for key in _DESCRIBING:
        if key in reader.table:
            reader.add_fault((key,), "found this key and message, expected only one of them")

    def read(value: Any) -> bytes:
        try:
            file = directory / some_text(value)
            if not file.is_file() or file.stat().st_size > SIZE_BYTES_MAX:
                raise ValueError(f"a file of at most {SIZE_BYTES_MAX} bytes")
            return crlf(file.read_bytes())
        except OSError as error:
            raise ValueError(f"a file that can be read: {error.strerror}") from None

    return reader.key("message", read, default=b"")


def _built_message(reader: TableReader) -> Content:
    head = headers.field("From", reader.key("from", _sender, default="") or "test@invalid")
    head += headers.field("To", ", ".join(reader.key("to", _recipients, default=[])))
    head += headers.field("Subject", reader.key("subject", text, default="test"))
    head += reader.key("headers", _fields, default=b"")
    body = crlf(reader.key("body", _body, default="test\n").encode())
    names: list[str] = reader.key("attachments", texts, default=[])
    size_bytes = reader.key("size", _size, default=0)
    if not names:
        return _padded(head, b"\r\n" + body, size_bytes=size_bytes)
    kind = f'multipart/mixed; boundary="{_BOUNDARY}"'
    head += b"MIME-Version: 1.0\r\n" + headers.field("Content-Type", kind)
    parts = [b"Content-Type: text/plain; charset=utf-8\r\n\r\n" + body, *map(_attachment, names)]
    between = f"\r\n--{_BOUNDARY}\r\n".encode()
    end = f"\r\n--{_BOUNDARY}--\r\n".encode()
    return _padded(head, b"".join(between + part for part in parts), end, size_bytes=size_bytes)


def _padded(head: bytes, body: bytes, end: bytes = b"", *, size_bytes: int) -> Content:
    """Return a message of at least `size_bytes`; what fills a large one is not in memory."""
    filler = _Filler(max(0, size_bytes - len(head + body + end)))
    if size_bytes <= LARGE_BYTES:
        return head + body + filler.read(0, filler.size) + end
    pieces = (MemoryOctets(body), filler, MemoryOctets(end))
    return LargeContent(head, pieces, eight_bit=not (body + end).isascii())


class _Filler(Struct, frozen=True):
    """Octets that make a message of a test as large as it says."""

    size: int

    def read(self, start: int, length: int) -> bytes:
        """See Octets."""
        return b"." * self.part(start, length).size

    def part(self, start: int, length: int) -> "_Filler":
        """See Octets."""
        return _Filler(max(0, min(length, self.size - start)))


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
    size_bytes = SizeOverCondition.parse(value).size_bytes
    if size_bytes > SIZE_BYTES_MAX:
        raise ValueError(f"a size of at most {SIZE_BYTES_MAX} bytes")
    return size_bytes


def _domains(value: Any) -> frozenset[str]:
    return frozenset(each.lower() for each in texts(value))


def _names(value: Any) -> tuple[str, ...]:
    return tuple(texts(value))


def _address_set(value: Any) -> frozenset[str]:
    return frozenset(each.casefold() for each in texts(value))
