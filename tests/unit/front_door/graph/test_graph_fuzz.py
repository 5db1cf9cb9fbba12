"""Any input gives a message or an ApiError, never another exception."""

import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.base.accounts.account import Account
from relay.formats.read_header import SubmittedHeader, read_submitted
from relay.front_door.graph import mime_body
from relay.front_door.graph.json_values import read_json_object
from relay.front_door.graph.message_parser import (
    AnswerParameters,
    parse_answer,
    parse_message,
    parse_send_mail,
)
from relay.front_door.graph.mime_body import check_content, check_mime_content
from relay.front_door.http.errors import ApiError

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


@given(body=st.dictionaries(st.sampled_from(["Message", "message", "saveToSentItems"]), VALUES))
def test_any_parameters(body: dict[str, Any]) -> None:
    assert isinstance(outcome_of(lambda: parse_send_mail(body, ALICE)), tuple | ApiError)


ANSWER_NAMES = ["Comment", "comment", "message", "toRecipients", "ToRecipients"]


@given(
    body=st.dictionaries(st.sampled_from(ANSWER_NAMES), VALUES),
    message=MESSAGES,
    forward=st.booleans(),
)
def test_any_parameters_of_a_reply(
    body: dict[str, Any], message: dict[str, Any], forward: bool
) -> None:
    for given_body in (body, body | {"message": message}):
        outcome = outcome_of(
            lambda given_body=given_body: parse_answer(
                given_body, ALICE, action="reply", is_forward=forward
            )
        )
        assert isinstance(outcome, AnswerParameters | ApiError)
        if isinstance(outcome, ApiError):
            assert outcome.status in (400, 403, 501)


@given(st.binary(max_size=200))
def test_any_body(body: bytes) -> None:
    outcome = outcome_of(lambda: read_json_object(body))
    assert isinstance(outcome, dict) or outcome.code == "UnableToDeserializePostBody"


@pytest.mark.parametrize(
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


@pytest.mark.parametrize(("length", "is_quick"), [(10, True), (10_000, False)])
@pytest.mark.parametrize("body", [b"x", b"x\r\n\r\n" * 10_000])
async def test_a_long_header_is_checked_in_a_thread(
    monkeypatch: pytest.MonkeyPatch, length: int, is_quick: bool, body: bytes
) -> None:
    asked_by = set()

    def watched(content: bytes, *, to_send: bool) -> SubmittedHeader:
        asked_by.add(threading.current_thread())
        return read_submitted(content, to_send=to_send)

    monkeypatch.setattr(mime_body, "read_submitted", watched)
    content = b"From: alice@example.test\r\nTo: " + b"(" + b"<" * length + b") z@b.c\r\n\r\n" + body
    assert (await check_mime_content(content)).content == content
    assert {one is threading.current_thread() for one in asked_by} == {is_quick}
