"""Any input gives a message or an ApiError, never another exception."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.base.accounts.account import Account
from relay.front_door.graph.json_values import read_json_object
from relay.front_door.graph.message_parser import (
    parse_message,
)
from relay.front_door.graph.mime_body import check_content
from relay.front_door.http.errors import ApiError
from tests.support.tables import each_row

ALICE = Account("alice@example.test")
PROPERTIES = [
    *("subject", "body", "from", "sender", "toRecipients", "ccRecipients", "bccRecipients"),
    *("replyTo", "importance", "internetMessageId", "internetMessageHeaders", "attachments"),
    *("categories", "isRead", "flag", "singleValueExtendedProperties", "isReadReceiptRequested"),
]
NAMES = st.sampled_from(
    [
        *("emailAddress", "address", "name", "value", "contentType", "content", "contentBytes"),
        *("isInline", "contentId", "flagStatus", "@odata.type", "other"),
    ]
)
WORDS = st.sampled_from(["a@b.test", "x-a", "html", "high", "aGk=", "flagged", "<a@b>", ""])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | WORDS
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
MESSAGES = st.dictionaries(st.sampled_from(PROPERTIES), VALUES, max_size=4)


def outcome_of(parse: Callable[[], Any]) -> Any:
    """Return the result or the ApiError, whose message must be valid in JSON."""
    try:
        return parse()
    except ApiError as api_error:
        msgspec.json.encode(api_error.message)
        return api_error


@given(message=MESSAGES, patch=st.booleans())
def test_any_message(message: dict[str, Any], patch: bool) -> None:
    outcome = outcome_of(lambda: parse_message(message, ALICE, patch=patch).properties)
    if isinstance(outcome, ApiError):
        assert outcome.status in (400, 403, 501)
    else:
        headers = (outcome.subject, *outcome.categories, outcome.internet_message_id)
        assert not any(set(text) & set("\r\n\0") for text in headers)


@each_row(
    "body",
    [
        b'{"message":[' + b"{}," * 100_000 + b"{}]}",
        b'{"a":"\\",[","b":[' + b"1," * 100_000 + b"1]}",
        b"[" * 100_001,
    ],
)
def test_many_small_values_are_refused_before_they_fill_the_memory(body: bytes) -> None:
    with pytest.raises(ApiError, match="more than 100000 values"):
        read_json_object(body)


def test_signs_within_strings_are_not_counted_as_values() -> None:
    text = ",[{" * 100_000 + '\\" ,'
    assert read_json_object(msgspec.json.encode({"content": text})) == {"content": text}


HEADERS = st.lists(
    st.sampled_from([b"From: ", b"To: ", b"Cc:", b"Bcc:\t", b"Sender: ", b"Message-ID: "])
    | st.sampled_from(
        [b"\r\n", b"\n", b"\r", b" ", b"<", b">", b",", b'"', b":", b";", b"=?utf-8?"]
    )
    | st.sampled_from([b"a@b.test", b"alice@example.test", b"\xff", b"(", b")", b"?=", b"b?w6k="])
    | st.binary(max_size=6),
    max_size=25,
).map(b"".join)


@given(HEADERS)
def test_any_mime(content: bytes) -> None:
    outcome = outcome_of(lambda: check_content(content))
    assert isinstance(outcome, ApiError) or outcome.content == content


def test_a_header_without_end_is_refused() -> None:
    with pytest.raises(ApiError, match="its header has"):
        check_content(b"To: a@b.test\r\n" * 20_000)
