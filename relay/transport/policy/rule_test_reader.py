"""Read the [[test]] tables of rule files.

The message of a test is complete, with CRLF line ends, as ingress passes it to the engine
(RFC 5322, RFC 2046 5.1.3).
"""

import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from io import BytesIO
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

from msgspec import Struct

from relay.base.message.address import own_mailbox
from relay.base.message.authentication_results import AuthResult
from relay.base.message.content import LARGE_BYTES, Content, LargeContent, MemoryOctets
from relay.base.message.envelope import Source, domain_of
from relay.base.phrases import words_in
from relay.formats import headers
from relay.formats.transfer_encoding import base64_lines
from relay.formats.write_header import parameter
from relay.transport.policy.conditions import AUTH_METHODS, SizeOverCondition
from relay.transport.policy.groups import is_inside
from relay.transport.policy.recipient_actions import NextHopAction, read_address
from relay.transport.policy.rules import ExpectedResult, OverallVerdict, RuleTest
from relay.transport.policy.table_reader import (
    TableReader,
    check_parts,
    part,
    parts,
    some_text,
    text,
    texts,
    typed,
)

SIZE_BYTES_MAX = 256 * 1024 * 1024
_TEST_KEYS = words_in(
    "name from to recipients subject headers body attachments size message source client login "
    "auth local enforce alone expect"
)
_DESCRIBING = ("subject", "headers", "body", "attachments", "size")
_EXPECTED = words_in(
    "verdict rules added redirected rejected quarantined journaled notified subject next_hop "
    "headers body reason"
)
_BOUNDARY = "test-message"
_TEXT = b"Content-Type: text/plain; charset=utf-8\r\n"
_line_end = re.compile(rb"\r\n|\r|\n")


def read_test(reader: TableReader, *, prefix: str, home: Path | None) -> RuleTest | None:
    """Return the test of a table, None if it has faults.

    Names of rules get the `prefix`. With `home`, the file of a message must be below it.
    """
    reader.check_keys(_TEST_KEYS)
    file = reader.document.file
    sender = reader.required("from", _sender, default="")
    recipients: list[str] = reader.required("to", _recipients, default=[])
    test = RuleTest(
        name=reader.required("name", some_text, default=""),
        sender=sender,
        recipients=tuple(recipients),
        recipient_count=reader.key("recipients", _count(len(recipients)), default=len(recipients)),
        content=_content(reader, file.parent, home=home, addresses=(sender, *recipients)),
        source=reader.key("source", typed(Source), default=Source.SMTP),
        client=reader.key("client", _client, default=""),
        login=reader.key("login", some_text, default=""),
        results=reader.key("auth", _results, default=()),
        local=reader.key("local", _domains, default=None),
        enforced=frozenset(reader.key("enforce", _rule_names(prefix), default=tuple[str, ...]())),
        is_alone=reader.key("alone", typed(bool), default=False),
        expect=_expectation(reader, prefix),
        file=file,
        line=reader.line,
    )
    return None if reader.has_faults else test


def crlf(content: bytes) -> bytes:
    """Return `content` with every line end as CRLF."""
    return _line_end.sub(b"\r\n", content)


def _expectation(reader: TableReader, prefix: str) -> ExpectedResult:
    if "expect" not in reader.table:
        reader.add_fault(
            ("expect",), 'found nothing, expected a table such as { verdict = "accept" }'
        )
        return ExpectedResult(OverallVerdict.ACCEPT)
    inner = reader.subtable("expect")
    if not isinstance(reader.table["expect"], dict):
        return ExpectedResult(OverallVerdict.ACCEPT)
    inner.check_keys(_EXPECTED)
    return ExpectedResult(
        verdict=inner.required("verdict", typed(OverallVerdict), default=OverallVerdict.ACCEPT),
        rules=inner.key("rules", _rule_names(prefix), default=None),
        added=inner.key("added", _address_set, default=None),
        redirected=inner.key("redirected", _address_set, default=None),
        rejected=inner.key("rejected", _address_set, default=None),
        quarantined=inner.key("quarantined", _address_set, default=None),
        journaled=inner.key("journaled", _address_set, default=None),
        notified=inner.key("notified", _address_set, default=None),
        subject=inner.key("subject", text, default=None),
        next_hop=inner.key("next_hop", _next_hop, default=None),
        reason=inner.key("reason", text, default=None),
        headers=inner.key("headers", _expected_fields, default=()),
        body=inner.key("body", _expected_texts, default=()),
    )


def _content(
    reader: TableReader, directory: Path, *, home: Path | None, addresses: Sequence[str]
) -> Content:
    """Return the message of the test: a file, or a message built from the keys of the test.

    `addresses` are the sender and the recipients.
    """
    if "message" not in reader.table:
        return _built_message(reader, *addresses)
    for key in _DESCRIBING:
        if key in reader.table:
            reader.add_fault((key,), "found this key and message, expected only one of them")

    def read(value: Any) -> bytes:
        try:
            file = directory / some_text(value)
            if home is not None and not is_inside(file, home):
                raise ValueError(f"a file in {home}, and no link out of it")
            if not file.is_file() or file.stat().st_size > SIZE_BYTES_MAX:
                raise ValueError(f"a file of at most {SIZE_BYTES_MAX} bytes")
            return crlf(file.read_bytes())
        except OSError as error:
            raise ValueError(f"a file that can be read: {error.strerror}") from None

    return reader.key("message", read, default=b"")


def _built_message(reader: TableReader, sender: str, *recipients: str) -> Content:
    head = headers.field("From", sender or "test@invalid")
    head += headers.field("To", ", ".join(recipients))
    head += headers.field("Subject", reader.key("subject", text, default="test"))
    head += reader.key("headers", _fields, default=b"")
    body = crlf(reader.key("body", _body, default="test\n").encode())
    files: list[_TestFile] = reader.key("attachments", _files, default=[])
    size_bytes = reader.key("size", _size, default=0)
    if not files:
        if not body.isascii() and b"content-type:" not in head.lower():
            head += b"MIME-Version: 1.0\r\n" + _TEXT + b"Content-Transfer-Encoding: 8bit\r\n"
        return _padded(head, b"\r\n" + body, size_bytes=size_bytes)
    kind = f'multipart/mixed; boundary="{_BOUNDARY}"'
    head += b"MIME-Version: 1.0\r\n" + headers.field("Content-Type", kind)
    parts = [_TEXT + b"\r\n" + body, *map(_attachment, files)]
    between = f"\r\n--{_BOUNDARY}\r\n".encode()
    end = f"\r\n--{_BOUNDARY}--\r\n".encode()
    return _padded(head, b"".join(between + part for part in parts), end, size_bytes=size_bytes)


def _padded(head: bytes, body: bytes, end: bytes = b"", *, size_bytes: int) -> Content:
    """Return a message of at least `size_bytes`; the octets that fill it are not in memory."""
    filler = _Filler(max(0, size_bytes - len(head + body + end)))
    if size_bytes <= LARGE_BYTES:
        return head + body + filler.read(0, filler.size) + end
    pieces = (MemoryOctets(body), filler, MemoryOctets(end))
    return LargeContent(head, pieces, eight_bit=not (body + end).isascii())


class _Filler(Struct, frozen=True):
    """Octets that fill the message of a test up to its size."""

    size: int

    def read(self, start: int, length: int) -> bytes:
        """See Octets."""
        return b"." * self.part(start, length).size

    def part(self, start: int, length: int) -> "_Filler":
        """See Octets."""
        return _Filler(max(0, min(length, self.size - start)))


# A file name, and for a ZIP file the names of the empty files in it.
_TestFile = tuple[str, tuple[str, ...]]


def _files(value: Any) -> list[_TestFile]:
    return parts(value if isinstance(value, list) else [value], _file)


def _file(value: Any) -> _TestFile:
    if isinstance(value, str):
        return text(value), ()
    if not isinstance(value, dict) or value.keys() != {"name", "inside"}:
        raise ValueError('a list of texts, and of ZIP files, { name = "a.zip", inside = ["b.js"] }')
    return part(value, "name", text), tuple(part(value, "inside", texts))


def _attachment(file: _TestFile) -> bytes:
    name, inside = file
    disposition = f"Content-Disposition: attachment{parameter('filename', name)}\r\n"
    head = b"Content-Type: application/octet-stream\r\n" + disposition.encode()
    if not inside:
        return head + b"\r\n"
    octets = BytesIO()
    with ZipFile(octets, "w") as archive:
        for inner_name in inside:
            archive.writestr(ZipInfo(inner_name), b"")
    coded = base64_lines(b64encode(octets.getvalue()))
    return head + b"Content-Transfer-Encoding: base64\r\n\r\n" + coded


def _sender(value: Any) -> str:
    if value in ("", "<>"):
        return ""
    return read_address(value)


def _recipients(value: Any) -> list[str]:
    addresses = texts(value)
    if not addresses:
        raise ValueError("at least one address")
    return [read_address(address) for address in addresses]


def _fields(value: Any) -> bytes:
    if not isinstance(value, dict) or not all(map(headers.is_field_name, value)):
        raise ValueError('a table of fields, { "X-Spam" = "yes" }')
    return b"".join(headers.field(name, text(field_text)) for name, field_text in value.items())


def _expected_fields(value: Any) -> tuple[tuple[str, str | None], ...]:
    if not isinstance(value, dict) or not all(
        headers.is_field_name(name) and (expected is False or isinstance(expected, str))
        for name, expected in value.items()
    ):
        raise ValueError(
            'a table of fields, { "X-Tag" = "yes", "X-Old" = false }; '
            "false for one that no copy has"
        )
    return tuple(
        (name, None if expected is False else text(expected)) for name, expected in value.items()
    )


def _expected_texts(value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(
        isinstance(expected, str) and expected.strip() for expected in values
    ):
        raise ValueError("a text that is not empty, or a list of them")
    return tuple(values)


def _next_hop(value: Any) -> str:
    """Read a next hop as the action does; "" for none."""
    return "" if value == "" else NextHopAction.parse(value).next_hop


def _count(least: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"a number of at least {least}, as many as to names")
        return value

    return read


def _client(value: Any) -> str:
    try:
        return str(ip_address(text(value)))
    except ValueError:
        raise ValueError('an IP address, "192.0.2.1"') from None


def _results(value: Any) -> tuple[AuthResult, ...]:
    if not isinstance(value, dict):
        raise ValueError('a table with what a milter found, { dmarc = "fail" }')
    check_parts(value, AUTH_METHODS)
    return tuple([AuthResult(method, part(value, method, some_text)) for method in value])


def _body(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text in quotes")
    return value


def _size(value: Any) -> int:
    size_bytes = SizeOverCondition.parse(value, {}).size_bytes
    if size_bytes > SIZE_BYTES_MAX:
        raise ValueError(f"a size of at most {SIZE_BYTES_MAX} bytes")
    return size_bytes


def _domains(value: Any) -> frozenset[str]:
    return frozenset(domain_of(f"@{domain}") for domain in texts(value))


def _rule_names(prefix: str) -> Callable[[Any], tuple[str, ...]]:
    def read(value: Any) -> tuple[str, ...]:
        names = texts(value)
        if prefix and any(name.startswith(prefix) for name in names):
            raise ValueError(f"the names of rules without {prefix} in front")
        return tuple([f"{prefix}{name}" for name in names])

    return read


def _address_set(value: Any) -> frozenset[str]:
    return frozenset(map(own_mailbox, texts(value)))
