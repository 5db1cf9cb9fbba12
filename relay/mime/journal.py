"""The mails that rules send about a message: a journal report, and a notice.

A journal report is in the manner of Exchange's: a text part with a "Key: value" in each line, then
the message itself, octet for octet. Of a large message nothing is read or copied here.

RFC 2046 5.1.1 (multipart), 5.2.1 (message/rfc822); RFC 3834 5 (Auto-Submitted).
"""

from collections.abc import Iterable

from relay.message.content import Content, LargeContent, is_eight_bit, join_octets, octets_of
from relay.mime.dsn import clipped
from relay.mime.transfer_encoding import LINE_MAX, coded_text, has_line_over
from relay.mime.write_header import raw_field

_CRLF = b"\r\n"
_MIME = b"MIME-Version: 1.0\r\n"
_EIGHT_BIT = b"Content-Transfer-Encoding: 8bit\r\n"


def write_journal(
    head: bytes, lines: Iterable[tuple[str, str]], *, original: Content, boundary: str
) -> Content:
    """Return a journal report with the fields of `head`. No message has `boundary` in it."""
    delimiter = f"\r\n--{boundary}\r\n".encode("ascii")
    label = _EIGHT_BIT if is_eight_bit(original) else b""
    content_type = f'Content-Type: multipart/mixed;\r\n boundary="{boundary}"\r\n'.encode("ascii")
    header = head + b"X-MS-Journal-Report:\r\n" + _MIME + content_type + label
    text = _text_part(_written(lines))
    message = b"Content-Type: message/rfc822\r\nContent-Disposition: attachment\r\n" + label + _CRLF
    before = b"".join((_CRLF, delimiter[2:], text, delimiter, message))
    after = delimiter[:-2] + b"--\r\n"
    if isinstance(original, bytes):
        return b"".join((header, before, original, after))
    body = join_octets([before, octets_of(original), after])
    long_lines = original.long_lines or has_line_over(original.header, LINE_MAX)
    return LargeContent(header, (body,), is_eight_bit(original), long_lines)


def write_notice(head: bytes, text: str, lines: Iterable[tuple[str, str]]) -> bytes:
    """Return a notice with the fields of `head`: a text, then the lines."""
    paragraphs = "\r\n".join(text.splitlines()) + "\r\n\r\n"
    return head + _MIME + _text_part(paragraphs + _written(lines))


def _written(lines: Iterable[tuple[str, str]]) -> str:
    return "".join(f"{name}: {clipped(value)}\r\n" for name, value in lines)


def _text_part(text: str) -> bytes:
    coded = coded_text(text.encode("utf-8", "replace"))
    fields = "".join(raw_field(*one) for one in coded.fields("plain"))
    return fields.encode("ascii") + _CRLF + coded.content
