"""CPython's own test messages, a collection of unusual mail.

They are available where Python is installed with its tests (Debian: libpython3-testsuite).
"""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from relay.base.message.content import read_all
from relay.base.message.header import Header, ParsedContent, cleaned, header_end, with_crlf
from relay.formats.convert import convert
from relay.formats.draft import DraftOrigin
from relay.formats.read_mime import read_message, read_mime
from tests.support.drafts import write_mime_draft

ORIGIN = DraftOrigin("alice@example.test", "1.R0123456789abcdef_1.h", "<id@h>", 5, 6)
ADDED = (b"from", b"date", b"message-id")


def messages():
    """Return the files, or [None] if they are not installed."""
    try:
        tests = importlib.util.find_spec("test.test_email")
    except ModuleNotFoundError:
        tests = None
    found = []
    if tests is not None and tests.origin:
        found = sorted((Path(tests.origin).parent / "data").glob("msg_*.txt"))
    return found or [None]


@pytest.fixture(params=messages(), ids=lambda path: path.name if path else "none")
def content(request):
    if request.param is None:
        pytest.skip("CPython's test messages are not installed (libpython3-testsuite)")
    return request.param.read_bytes()


def fields_and_body(content):
    """Return the fields of a message, except for those that every message gets, and its body."""
    end = header_end(content)
    fields = [
        one for one in Header.parse(cleaned(content[: end.header])).fields if one[0] not in ADDED
    ]
    return fields, with_crlf(content[end.body :])


def test_each_message_is_read_and_sent_unchanged(content):
    read_message(content)
    parsed = ParsedContent.of(b"X-First: x\r\n" + with_crlf(content))
    header = parsed.header.remove(("To", "Cc", "Bcc"))
    content = b"To: b@b.test\r\n" + replace(parsed, header=header).joined()
    made = convert(write_mime_draft(content, ORIGIN), now_us=0, hostname="h")
    assert made.recipients == ("b@b.test",)
    fields, body = fields_and_body(read_all(made.content))
    had_fields, had_body = fields_and_body(content)
    assert fields == [one for one in had_fields if one[0] not in (b"bcc", b"resent-bcc")]
    is_whole = not had_body or had_body.endswith(b"\r\n")
    assert body == (had_body if is_whole else had_body + b"\r\n")
    assert read_mime(read_all(made.content)).attachments == read_mime(content).attachments
