"""Any input gives a message or an ApiError, never another exception."""

import threading
from collections.abc import Callable
from itertools import product
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.formats.read_header import SubmittedHeader, read_submitted
from relay.front_door.graph import mime_body
from relay.front_door.graph.json_values import read_json_object
from relay.front_door.graph.mime_body import check_content, check_mime_content
from relay.front_door.http.errors import ApiError
from tests.support.tables import each_row


def outcome_of(parse: Callable[[], Any]) -> Any:
    """Return the result or the ApiError, whose message must be valid in JSON."""
    try:
        return parse()
    except ApiError as api_error:
        msgspec.json.encode(api_error.message)
        return api_error


@each_row(
    "body",
    [
        b'{"message":[' + b"{}," * 100_000 + b"{}]}",
        b'{"a":"\\",[","b":[' + b"1," * 100_000 + b"1]}",
        b"[" * 100_001,
    ],
)
def test_many_small_values_are_refused_before_they_fill_the_memory(body: bytes) -> None:
    with pytest.raises(ApiError) as refusal:
        read_json_object(body)
    assert "more than 100000 values" in refusal.value.detail


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
    with pytest.raises(ApiError) as refusal:
        check_content(b"To: a@b.test\r\n" * 20_000)
    assert "its header has" in refusal.value.detail


async def test_a_long_header_is_checked_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_by: list[threading.Thread] = []

    def watched(content: bytes, *, to_send: bool) -> SubmittedHeader:
        asked_by.append(threading.current_thread())
        return read_submitted(content, to_send=to_send)

    monkeypatch.setattr(mime_body, "read_submitted", watched)
    for length, body in product((10, 10_000), (b"x", b"x\r\n\r\n" * 10_000)):
        address = b"(" + b"<" * length + b") z@b.c"
        content = b"From: alice@example.test\r\nTo: " + address + b"\r\n\r\n" + body
        assert (await check_mime_content(content)).content == content
    is_on_loop = [one is threading.current_thread() for one in asked_by]
    assert is_on_loop == [True, True, False, False]
