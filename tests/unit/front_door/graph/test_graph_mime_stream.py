"""Streamed MIME: it is stored unchanged, and a rejected body leaves no file."""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.front_door.graph.dependencies import STREAMED_BODIES_MAX
from relay.front_door.graph.mime_body import Base64Decoder
from relay.front_door.http.errors import ApiError
from tests.support.graph_fakes import OnDisk, refused

LIMIT = 8 << 20  # on_disk's max_upload
HEADER = b"To: c@a.test\r\nBcc: d@a.test\r\nSubject: large\r\nMessage-ID: <l@a.test>\r\n\r\n"
BOB = {"authorization": "Bearer bob", "content-type": "text/plain"}  # alice has a small quota
LARGE = HEADER + b"line\xff\r\n" * 170_000
CODED = base64.b64encode(LARGE)


async def pieces(body: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def send(
    on_disk: OnDisk, content: bytes, path: str = "/sendMail", **more: Any
) -> httpx.Response:
    body = base64.encodebytes(content)
    return await on_disk.http.post(path, content=body, headers=BOB | more)


async def nothing_is_left(on_disk: OnDisk) -> None:
    """The rest of the body is discarded after the response."""
    async with asyncio.timeout(120):
        while on_disk.files():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_sent_mime_is_on_disk_unchanged(on_disk: OnDisk, is_chunked: bool) -> None:
    body = base64.encodebytes(LARGE)
    content = pieces(body) if is_chunked else body
    answer = await on_disk.http.post("/sendMail", content=content, headers=BOB)
    assert (answer.status_code, answer.content) == (202, b"")
    assert answer.headers["x-relay-internet-message-id"] == "<l@a.test>"
    pending, draft = sorted(on_disk.files(), key=lambda path: path.parent.name != "ready")
    assert pending.samefile(draft)
    assert draft.read_bytes().endswith(LARGE)
    assert f",S={draft.stat().st_size}:2,DS" in draft.name
    assert pending.parent.name == "ready"
    shown = await on_disk.http.get(f"/messages/{answer.headers['x-relay-message-id']}", headers=BOB)
    assert (shown.json()["subject"], shown.json()["isDraft"]) == ("large", True)


async def test_a_draft_is_created_replaced_and_sent(on_disk: OnDisk) -> None:
    created = await send(on_disk, LARGE, "/mailFolders/archive/messages")
    assert created.status_code == 201, created.text
    one = f"/messages/{created.json()['id']}"
    assert created.json()["parentFolderId"] == "archive"
    value = await on_disk.http.get(f"{one}/$value", headers=BOB)
    assert value.content == LARGE
    assert value.headers["content-length"] == str(len(LARGE))
    other = LARGE.replace(b"large", b"other")
    coded = await on_disk.http.put(f"{one}/$value", content=base64.b64encode(other), headers=BOB)
    assert (coded.status_code, coded.json()["subject"]) == (200, "other")
    for kind in ("application/octet-stream", "message/rfc822"):
        raw = await on_disk.http.put(
            f"{one}/$value", content=LARGE, headers=BOB | {"content-type": kind}
        )
        assert (raw.status_code, raw.json()["subject"]) == (200, "large")
        assert raw.json()["id"] == created.json()["id"]
    assert (await on_disk.http.get(f"{one}/$value", headers=BOB)).content == LARGE
    assert len(on_disk.files()) == 1
    assert (await on_disk.http.post(f"{one}/send", headers=BOB)).status_code == 202
    put = await on_disk.http.put(f"{one}/$value", content=base64.b64encode(LARGE), headers=BOB)
    assert refused(put, 409, "ErrorIrresolvableConflict")


async def test_a_draft_that_was_changed_during_the_upload_is_not_replaced(on_disk: OnDisk) -> None:
    created = await send(on_disk, HEADER + b"old", "/messages")
    one = f"/messages/{created.json()['id']}"

    async def changing() -> AsyncIterator[bytes]:
        yield LARGE[:600_000]
        answer = await on_disk.http.patch(
            one, json={"subject": "quicker"}, headers={"authorization": BOB["authorization"]}
        )
        assert answer.status_code == 200
        yield LARGE[600_000:]

    headers = BOB | {"content-type": "application/octet-stream"}
    put = await on_disk.http.put(f"{one}/$value", content=changing(), headers=headers)
    assert refused(put, 409, "ErrorIrresolvableConflict")
    shown = (await on_disk.http.get(one, headers=BOB)).json()
    assert shown["subject"] == "quicker"
    async with asyncio.timeout(120):
        while len(on_disk.files()) > 1:
            await asyncio.sleep(0.01)


class GoneError(Exception):
    """Raised if the rest of a body is read."""


def refused_early(content: bytes) -> Callable[[], AsyncIterator[bytes]]:
    async def body() -> AsyncIterator[bytes]:
        yield base64.encodebytes(content)
        raise GoneError

    return body


FILLING = b"\r\n" + b"x" * 300_000


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"Subject: nobody\r\n" + FILLING, 400, "ErrorInvalidRecipients"),
        (b"To: nobody\r\n" + FILLING, 400, "ErrorInvalidRecipients"),
        (b"To: c@a.test\r\nFrom: eve@a.test\r\n" + FILLING, 403, "ErrorSendAsDenied"),
        (b"no header\r\n" + FILLING, 400, "ErrorMimeContentInvalid"),
        (b"To: c@a.test\r\nX-Long: " + b"y" * 300_000, 400, "ErrorMimeContentInvalid"),
    ],
)
async def test_a_bad_header_is_refused_before_the_rest_comes(
    on_disk: OnDisk, content: bytes, status: int, code: str
) -> None:
    with suppress(GoneError):  # the server reads past what it has refused; httpx tells us so
        answer = await on_disk.http.post("/sendMail", content=refused_early(content)(), headers=BOB)
        assert refused(answer, status, code)
    await nothing_is_left(on_disk)


@pytest.mark.parametrize(
    ("body", "status", "code", "named"),
    [
        (CODED + b"@", 400, "ErrorMimeContentInvalidBase64String", f"at byte {len(CODED)}"),
        (CODED[:-1], 400, "ErrorMimeContentInvalidBase64String", f"at byte {len(CODED) - 1}"),
        (base64.b64encode(HEADER + bytes(LIMIT)), 413, "RequestEntityTooLarge", str(LIMIT)),
    ],
    ids=["no base64", "cut short", "too large"],
)
async def test_a_bad_end_leaves_nothing(
    on_disk: OnDisk, body: bytes, status: int, code: str, named: str
) -> None:
    for content in (body, pieces(body)):
        answer = await on_disk.http.post("/sendMail", content=content, headers=BOB)
        assert named in refused(answer, status, code)
    await nothing_is_left(on_disk)


async def test_a_full_mailbox_refuses_before_and_after(on_disk: OnDisk) -> None:
    alice = {"content-type": "text/plain"}
    body = base64.b64encode(LARGE)
    for content in (body, pieces(body)):  # its length is known before, or not
        answer = await on_disk.http.post("/sendMail", content=content, headers=alice)
        assert refused(answer, 507, "ErrorQuotaExceeded")
    await nothing_is_left(on_disk)


async def test_streamed_bodies_of_one_account_leave_places_for_others(on_disk: OnDisk) -> None:
    begun, end = [], asyncio.Event()

    async def kept_back() -> AsyncIterator[bytes]:
        begun.append(None)
        yield CODED[:-4]
        await end.wait()
        yield CODED[-4:]

    alice = {"content-type": "text/plain"}
    slow = [
        asyncio.create_task(on_disk.http.post("/messages", content=kept_back(), headers=alice))
        for _ in range(STREAMED_BODIES_MAX)
    ]
    async with asyncio.timeout(120):
        while len(begun) < STREAMED_BODIES_MAX // 2:
            await asyncio.sleep(0.001)
    for _ in range(3):
        assert (await send(on_disk, LARGE)).status_code == 202
    assert len(begun) == STREAMED_BODIES_MAX // 2  # the others wait unread
    end.set()
    assert {(await one).status_code for one in slow} == {507}  # of its quota
    assert len(begun) == STREAMED_BODIES_MAX


@given(st.binary(max_size=300), st.integers(1, 40), st.booleans())
def test_base64_in_any_blocks(content: bytes, size: int, in_lines: bool) -> None:
    text = base64.encodebytes(content) if in_lines else base64.b64encode(content)
    decoder = Base64Decoder()
    found = b"".join(decoder.feed(text[at : at + size]) for at in range(0, len(text), size))
    decoder.close()
    assert found == content


@given(st.text("AB=+/ \n@\x0b", max_size=14).map(str.encode), st.integers(1, 5))
def test_only_base64_is_taken(text: bytes, size: int) -> None:
    """Like the strict mode of binascii, except for white space."""
    try:
        expected: bytes | None = binascii.a2b_base64(text.translate(None, b" \n"), strict_mode=True)
    except binascii.Error:
        expected = None
    decoder = Base64Decoder()
    try:
        found: bytes | None = b"".join(
            decoder.feed(text[at : at + size]) for at in range(0, len(text), size)
        )
        decoder.close()
    except ApiError:
        found = None
    assert found == expected
