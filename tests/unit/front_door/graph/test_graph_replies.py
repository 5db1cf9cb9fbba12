"""reply, replyAll, forward and their drafts: recipients, threading, quote, attachments, bad input."""

import asyncio
import base64
import email
import email.policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from relay.formats import quoting
from tests.support.graph_fakes import QUOTA_BYTES, OnDisk, graph_on_disk, post_mime, refused, to
from tests.support.tables import each_row

SENDING = ("reply", "replyAll", "forward")
CREATING = ("createReply", "createReplyAll", "createForward")
ORIGINAL = b"""\
From: Bob <bob@example.test>
To: Alice <alice@example.test>, carol@a.test, ALIAS@example.test
Cc: dave@a.test, alice+tag@example.test, Carol@A.TEST
Subject: Re: Plans
Date: Fri, 20 Nov 2026 09:21:22 +0000
Message-ID: <second@a.test>
In-Reply-To: <first@a.test>
References: <zero@a.test> <first@a.test>

How about Monday?
"""
PNG = base64.b64encode(b"\x89PNG picture").decode()


@pytest.fixture
async def mail(tmp_path: Path):
    async with graph_on_disk(tmp_path / "mail", max_body=4 << 20) as made:
        yield made


def put(mail: OnDisk, content: bytes = ORIGINAL) -> None:
    """Put a message into alice's Inbox, as a delivery does."""
    inbox = mail.root / "example.test/alice/new"
    inbox.mkdir(parents=True, exist_ok=True)
    number = len(list(inbox.iterdir()))
    (inbox / f"1700000000.M{number}P1.h").write_bytes(content.replace(b"\n", b"\r\n"))


async def received(mail: OnDisk, content: bytes = ORIGINAL) -> str:
    """Return the path of a new message in alice's Inbox."""
    await mail.http.get("/mailFolders")
    before = {one["id"] for one in (await mail.http.get("/messages")).json()["value"]}
    put(mail, content)
    listed = (await mail.http.get("/mailFolders/inbox/messages")).json()["value"]
    (identifier,) = {one["id"] for one in listed} - before
    return f"/messages/{identifier}"


def addresses(people: list[dict[str, Any]]) -> list[str]:
    return [one["emailAddress"]["address"] for one in people]


@pytest.mark.parametrize(
    ("fields", "to", "cc"),
    [
        (b"From: info@s.test <real@c.test>\nTo: alice@example.test", ["real@c.test"], []),
        (b"From: Doe, J <j@c.test>\nTo: root, x@c.test <alice@example.test>", ["j@c.test"], []),
        (
            b"From: root\nSender: s@c.test\nReply-To: nobody\nCc: Al, b@c.test",
            ["s@c.test"],
            ["b@c.test"],
        ),
    ],
)
async def test_a_reply_to_all_goes_only_to_who_was_addressed(
    mail: OnDisk, fields: bytes, to: list[str], cc: list[str]
) -> None:
    path = await received(mail, fields + b"\nSubject: x\n\nx\n")
    made = (await mail.http.post(f"{path}/createReplyAll")).json()
    assert addresses(made["toRecipients"]) == to
    assert addresses(made["ccRecipients"]) == cc


async def draft_of(mail: OnDisk, path: str, action: str, body: Any = None, **options: Any) -> Any:
    """Call a create action and return the draft."""
    given = {} if body is None else {"json": body}
    answer = await mail.http.post(f"{path}/{action}", **given, **options)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"].endswith(answer.json()["id"])
    assert answer.json()["isDraft"] is True
    assert answer.json()["parentFolderId"] == "drafts"
    return answer.json()


async def mime_of(mail: OnDisk, identifier: str) -> EmailMessage:
    content = (await mail.http.get(f"/messages/{identifier}/$value")).content
    parsed = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(parsed, EmailMessage)
    return parsed


async def test_a_reply_has_recipient_subject_thread_and_quote(mail: OnDisk) -> None:
    path = await received(mail)
    original = (await mail.http.get(path)).json()
    draft = await draft_of(mail, path, "createReply", {"Comment": "Fine.\nA <b>"})
    assert addresses(draft["toRecipients"]) == ["bob@example.test"]
    assert (draft["ccRecipients"], draft["subject"]) == ([], "RE: Plans")
    assert draft["conversationId"] == original["conversationId"]
    assert draft["from"]["emailAddress"]["address"] == "alice@example.test"
    assert draft["body"]["contentType"] == "text"
    assert draft["body"]["content"].splitlines() == [
        "Fine.",
        "A <b>",
        "",
        "_" * 32,
        "From: Bob <bob@example.test>",
        "Sent: Friday, November 20, 2026 9:21 AM (UTC)",
        "To: Alice <alice@example.test>; carol@a.test; ALIAS@example.test",
        "Cc: dave@a.test; alice+tag@example.test; Carol@a.test",
        "Subject: Re: Plans",
        "",
        "How about Monday?",
    ]
    mime = await mime_of(mail, draft["id"])
    assert mime["in-reply-to"] == "<second@a.test>"
    assert mime["references"].split() == ["<zero@a.test>", "<first@a.test>", "<second@a.test>"]
    assert mime["thread-topic"] == "Plans"
    assert (await mail.http.get(path)).json() == original


@pytest.mark.parametrize(
    ("fields", "action", "expected_to", "expected_cc"),
    [
        (b"", "createReply", ["bob@example.test"], []),
        (b"", "createReplyAll", ["bob@example.test", "carol@a.test"], ["dave@a.test"]),
        (b"", "createForward", [], []),
        (b"Reply-To: list@a.test, x@a.test\n", "createReply", ["list@a.test", "x@a.test"], []),
        (
            b"Reply-To: LIST@a.test, list@a.test\n",
            "createReplyAll",
            ["LIST@a.test", "carol@a.test"],
            ["dave@a.test"],
        ),
        (b"Reply-To: nobody, broken@@a.test, <good@a.test.>\n", "createReply", ["good@a.test"], []),
        (b"Reply-To: dave@a.test\n", "createReplyAll", ["dave@a.test", "carol@a.test"], []),
    ],
)
async def test_recipients(
    mail: OnDisk, fields: bytes, action: str, expected_to: list[str], expected_cc: list[str]
) -> None:
    draft = await draft_of(mail, await received(mail, fields + ORIGINAL), action)
    assert addresses(draft["toRecipients"]) == expected_to
    assert addresses(draft["ccRecipients"]) == expected_cc
    assert draft["bccRecipients"] == []


@pytest.mark.parametrize(
    ("action", "recipients", "expected_to", "expected_cc"),
    [
        ("createReply", (["c@a.test", "alice@example.test"], ["d@a.test"]), ["c@a.test"], []),
        (
            "createReplyAll",
            (["c@a.test"], ["d@a.test", "alias@example.test"]),
            ["c@a.test"],
            ["d@a.test"],
        ),
        ("createReply", (["alice+me@example.test"], []), ["alice+me@example.test"], []),
        ("createReplyAll", (["alias@example.test"], []), ["alias@example.test"], []),
    ],
)
async def test_a_reply_to_an_own_message_goes_to_its_recipients(
    mail: OnDisk,
    action: str,
    recipients: tuple[list[str], list[str]],
    expected_to: list[str],
    expected_cc: list[str],
) -> None:
    own = {
        "subject": "mine",
        "toRecipients": to(*recipients[0]),
        "ccRecipients": to(*recipients[1]),
        "bccRecipients": to("hidden@a.test"),
        "replyTo": to("other@a.test"),
    }
    created = (await mail.http.post("/messages", json=own)).json()
    draft = await draft_of(mail, f"/messages/{created['id']}", action)
    assert addresses(draft["toRecipients"]) == expected_to
    assert addresses(draft["ccRecipients"]) == expected_cc
    assert draft["bccRecipients"] == []
    assert draft["conversationId"] == created["conversationId"]


HTML = (
    '<html><head><title>t</title><style>div{display:none}</style></head><body bgcolor="red">'
    '<p onclick="x()">Hi<br><img src="cid:pic%40me"></p><script>alert(1)</script></body></html>'
)


async def with_pictures(mail: OnDisk) -> str:
    """Return the path of a message with a shown picture, another inline one, a file, an item."""
    kind = "#microsoft.graph.fileAttachment"
    file = {"@odata.type": kind, "contentBytes": PNG}
    item = {"subject": "inner", "body": {"contentType": "text", "content": "x"}}
    message = {
        "subject": "Pictures",
        "body": {"contentType": "html", "content": HTML},
        "toRecipients": to("bob@example.test"),
        "attachments": [
            file | {"name": "pic.png", "isInline": True, "contentId": "pic@me"},
            file | {"name": "not-shown.png", "isInline": True, "contentId": "other@me"},
            file | {"name": "file.bin"},
            {"@odata.type": "#microsoft.graph.itemAttachment", "name": "inner", "item": item},
        ],
    }
    return f"/messages/{(await mail.http.post('/messages', json=message)).json()['id']}"


async def names_of(mail: OnDisk, identifier: str) -> dict[str, dict[str, Any]]:
    listed = (await mail.http.get(f"/messages/{identifier}/attachments")).json()["value"]
    assert len({one["id"] for one in listed}) == len(listed)
    return {one["name"]: one for one in listed}


@pytest.mark.parametrize("from_mime", [False, True])
async def test_a_reply_carries_the_shown_images_and_a_forward_everything(
    mail: OnDisk, from_mime: bool
) -> None:
    path = await with_pictures(mail)
    if from_mime:
        content = (await mail.http.get(f"{path}/$value")).content
        path = await received(mail, content.replace(b"\r\n", b"\n"))
    reply = await draft_of(mail, path, "createReply")
    carried = await names_of(mail, reply["id"])
    assert list(carried) == ["pic.png"]
    assert (carried["pic.png"]["isInline"], carried["pic.png"]["contentId"]) == (True, "pic@me")
    assert carried["pic.png"]["contentBytes"] == PNG
    mime = await mime_of(mail, reply["id"])
    related = next(part for part in mime.walk() if part.get_content_type() == "multipart/related")
    assert [part["content-id"] for part in related.iter_attachments()] == ["<pic@me>"]

    new = {"@odata.type": "#microsoft.graph.fileAttachment", "name": "new", "contentBytes": PNG}
    body = {"message": {"attachments": [new]}, "toRecipients": to("e@a.test")}
    forward = await draft_of(mail, path, "createForward", body)
    carried = await names_of(mail, forward["id"])
    assert set(carried) == {"new", "pic.png", "not-shown.png", "file.bin", "inner"}
    assert carried["file.bin"]["contentBytes"] == PNG
    assert carried["inner"]["@odata.type"] == "#microsoft.graph.itemAttachment"
    gone = await mail.http.delete(f"/messages/{forward['id']}/attachments/{carried['new']['id']}")
    assert gone.status_code == 204
    assert "new" not in await names_of(mail, forward["id"])


async def test_html_is_quoted_in_a_whole_document_without_what_could_run(mail: OnDisk) -> None:
    path = await with_pictures(mail)
    body = (await draft_of(mail, path, "createReply", {"comment": "1 < 2\n&  <i>"}))["body"]
    assert body["contentType"] == "html"
    html = body["content"]
    assert html.startswith("<html><head>")
    assert html.endswith("</body></html>")
    assert html.count("<body>") == 1
    assert "1 &lt; 2<br>\r\n&amp; &nbsp;&lt;i&gt;" in html
    assert "<b>Subject:</b> Pictures" in html
    assert "<b>To:</b> bob@example.test" in html
    assert '<div bgcolor="red"><p>Hi<br><img src="cid:pic%40me"></p></div></body>' in html
    assert not any(word in html for word in ("script", "onclick", "style>", "alert", "title"))


async def test_properties_of_the_message_replace_those_of_the_reply(mail: OnDisk) -> None:
    body = {
        "Message": {
            "@odata.type": "#microsoft.graph.message",
            "toRecipients": to("e@a.test"),
            "ccRecipients": to("f@a.test"),
            "subject": "other",
            "importance": "high",
            "isRead": False,
            "body": {"contentType": "HTML", "content": "<b>mine</b>"},
        }
    }
    draft = await draft_of(mail, await received(mail), "createReply", body)
    assert addresses(draft["toRecipients"]) == ["e@a.test"]
    assert addresses(draft["ccRecipients"]) == ["f@a.test"]
    assert (draft["subject"], draft["importance"], draft["isRead"]) == ("other", "high", False)
    assert draft["body"] == {"contentType": "html", "content": "<b>mine</b>"}
    assert (await mime_of(mail, draft["id"]))["in-reply-to"] == "<second@a.test>"


async def test_sent_is_in_the_preferred_time_zone_or_the_mailbox_s(mail: OnDisk) -> None:
    path = await received(mail)
    prefer = {"prefer": 'outlook.timezone="Pacific Standard Time"'}
    answer = await mail.http.post(f"{path}/createReply", headers=prefer)
    assert "Sent: Friday, November 20, 2026 1:21 AM (UTC-08:00)" in answer.json()["body"]["content"]
    assert answer.headers["preference-applied"] == 'outlook.timezone="Pacific Standard Time"'
    set_zone = await mail.http.patch("/mailboxSettings", json={"timeZone": "Asia/Calcutta"})
    assert set_zone.status_code == 200
    draft = await draft_of(mail, path, "createReply")
    assert "Sent: Friday, November 20, 2026 2:51 PM (UTC+05:30)" in draft["body"]["content"]
    bad = await mail.http.post(f"{path}/createReply", headers={"prefer": 'outlook.timezone="x"'})
    refused(bad, 400, "TimeZoneNotSupportedException")


TWO = {"comment": "c", "message": {"body": {"contentType": "text", "content": "b"}}}
BOTH = {"toRecipients": to("e@a.test"), "message": {"toRecipients": to("f@a.test")}}
FROM_BOB = {"from": to("bob@example.test")[0]}
BY_BOB = {"sender": to("bob@example.test")[0]}
# by status and code: the actions, the parameters, and what the refusal names
BAD: dict[tuple[int, str], list[tuple[str, Any, str]]] = {
    (400, "ErrorInvalidRequest"): [
        ("*", TWO, "comment and message.body"),
        ("*", {"comment": "a" * 1_048_577}, "comment: found 1048577"),
        ("*", {"comment": "a\0"}, "comment"),
        ("createForward", BOTH, "toRecipients and message.toRecipients"),
        ("forward", BOTH, "toRecipients and message.toRecipients"),
    ],
    (400, "RequestBodyRead"): [
        ("*", {"comment": 7}, "comment"),
        ("*", {"comment": "a", "Comment": "b"}, "Comment"),
        ("*", {"message": "text"}, "message"),
        ("*", {"saveToSentItems": True}, "saveToSentItems"),
        ("reply", {"toRecipients": to("a@b.test")}, "toRecipients"),
        ("forward", {"toRecipients": "a@b.test"}, "toRecipients"),
    ],
    (403, "ErrorSendAsDenied"): [
        ("reply", {"message": FROM_BOB}, "message.from"),
        ("replyAll", {"message": FROM_BOB}, "message.from"),
        ("forward", {"message": BY_BOB, "toRecipients": to("b@a.test")}, "message.sender"),
    ],
    (400, "ErrorInvalidRecipients"): [
        ("*", {"message": {"toRecipients": to("no address")}}, "message.toRecipients[0]"),
        ("*", {"message": {"toRecipients": to(*["a@b.test"] * 501)}}, "501"),
        (
            "forward",
            {"toRecipients": [], "message": {"ccRecipients": to("c@a.test")}},
            "toRecipients",
        ),
        ("reply", {"message": {"toRecipients": []}}, "no recipients"),
    ],
    (400, "UnableToDeserializePostBody"): [("*", [], "object")],
}


@each_row(
    "status, code, action, body, text",
    [(*refusal, *row) for refusal, rows in BAD.items() for row in rows],
)
async def test_bad_parameters_are_refused_and_nothing_is_written(
    mail: OnDisk, action: str, body: Any, status: int, code: str, text: str
) -> None:
    path = await received(mail)
    files = mail.files()
    for one in [*SENDING, *CREATING] if action == "*" else [action]:
        answer = await mail.http.post(f"{path}/{one}", json=body)
        assert text in refused(answer, status, code)
    assert mail.files() == files


# -- MIME


async def test_mime_is_the_whole_reply_and_gets_what_it_lacks(mail: OnDisk) -> None:
    path = await received(mail)
    answer = await post_mime(mail.http, f"{path}/createReplyAll", b"X-Own: 1\r\n\r\nMine.\r\n")
    assert answer.status_code == 201, answer.text
    draft = answer.json()
    assert addresses(draft["toRecipients"]) == ["bob@example.test", "carol@a.test"]
    assert addresses(draft["ccRecipients"]) == ["dave@a.test"]
    assert draft["subject"] == "RE: Plans"
    assert draft["body"]["content"] == "Mine.\r\n"
    original = (await mail.http.get(path)).json()
    assert draft["conversationId"] == original["conversationId"]
    mime = await mime_of(mail, draft["id"])
    assert (mime["x-own"], mime["in-reply-to"]) == ("1", "<second@a.test>")
    assert len(base64.b64decode(mime["thread-index"])) == 27


WHOLE = (
    b"To: e@a.test\r\nSubject: own\r\nReferences: <own@a.test>\r\n"
    b"Content-Type: application/pkcs7-mime\r\n\r\nAAAA\r\n"
)


@pytest.mark.parametrize("action", [*SENDING, *CREATING])
async def test_complete_mime_is_not_changed(mail: OnDisk, action: str) -> None:
    answer = await post_mime(mail.http, f"{await received(mail)}/{action}", WHOLE)
    assert answer.status_code == (201 if action in CREATING else 202), answer.text
    made = answer.headers.get("x-relay-message-id") or answer.json()["id"]
    assert (await mail.http.get(f"/messages/{made}/$value")).content == WHOLE


# -- limits


def many(number: int, size: int = 10) -> bytes:
    part = b"--b\nContent-Disposition: attachment; filename=x\n\n" + b"x" * size + b"\n"
    head = b"From: a@b.test\nContent-Type: multipart/mixed; boundary=b\n\n"
    return head + part * number + b"--b--\n"


@pytest.mark.parametrize(
    ("content", "text"), [(many(251), "251 attachments"), (many(2, 40_000), "at most 65536")]
)
@pytest.mark.parametrize("action", ["forward", "createForward"])
async def test_too_many_or_too_large_attachments_are_413(
    tmp_path: Path, action: str, content: bytes, text: str
) -> None:
    async with graph_on_disk(tmp_path / "mail", max_upload=65536) as mail:
        path = await received(mail, content)
        files = mail.files()
        answer = await mail.http.post(f"{path}/{action}", json={"toRecipients": to("e@a.test")})
        assert text in refused(answer, 413, "ErrorMessageSizeExceeded")
        assert mail.files() == files
        assert (await mail.http.post(f"{path}/createReply")).status_code == 201


@pytest.mark.parametrize("action", ["forward", "createForward"])
async def test_a_forward_that_does_not_fit_the_quota_is_507(on_disk: OnDisk, action: str) -> None:
    path = await received(on_disk, many(1, QUOTA_BYTES // 2))
    files = on_disk.files()
    answer = await on_disk.http.post(f"{path}/{action}", json={"toRecipients": to("e@a.test")})
    refused(answer, 507, "ErrorQuotaExceeded")
    assert on_disk.files() == files
    assert (await on_disk.http.post(f"{path}/reply")).status_code == 202


async def test_more_replies_at_a_time_than_are_composed_all_end(mail: OnDisk) -> None:
    path = await received(mail)
    bodies = [
        {"comment": str(number)} if number % 3 else {"message": {"attachments": [7]}}
        for number in range(16)
    ]
    paths = [path if number % 5 else f"/messages/{16 * '0'}" for number in range(len(bodies))]
    calls = [
        mail.http.post(f"{one}/reply", json=body) for one, body in zip(paths, bodies, strict=True)
    ]
    statuses = [answer.status_code for answer in await asyncio.gather(*calls)]
    expected = [
        400 if number % 3 == 0 else 404 if number % 5 == 0 else 202 for number in range(len(bodies))
    ]
    assert statuses == expected
    assert (await mail.http.post(f"{path}/reply")).status_code == 202


# -- damaged and large originals


@pytest.mark.parametrize(
    "content",
    [
        b"\n",
        b"no header at all",
        b"From: \xff\xfe <x@\xff>\nSubject: =?utf-8?q?a=0AFrom:=20b?=\n\n\xff\0x",
        b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\n",
        b"Content-Type: multipart/mixed\n\n--b\nContent-Type: image/png\n\nx",
        b"Content-Type: text/html; charset=nonsense\n\n<p>\xff<!--",
        b"From: a@b.test\nMessage-ID: broken\nReferences: <" + b"x" * 2000 + b"> <a> b\n\nx",
        b"From: a@b.test\nThread-Index: AAAA\nMessage-ID: <no-at>\n\nx",
    ],
)
async def test_damaged_originals_are_answered(mail: OnDisk, content: bytes) -> None:
    path = await received(mail, content)
    for action in CREATING:
        draft = await draft_of(mail, path, action, {"comment": "c"})
        assert "\n" not in draft["subject"]
        lines = draft["body"]["content"].splitlines()
        assert len([one for one in lines if one.startswith("From:")]) <= 1
        mime = await mime_of(mail, draft["id"])
        assert not mime.defects
        if b"Message-ID: <no-at>" in content:
            assert mime["in-reply-to"] == "<no-at>"
            assert draft["conversationId"] == (await mail.http.get(path)).json()["conversationId"]


QUOTED = 500_000


@pytest.mark.parametrize("kind", ["plain", "html"])
async def test_of_a_large_original_the_beginning_is_quoted(mail: OnDisk, kind: str, monkeypatch):
    monkeypatch.setattr(quoting, "QUOTE_CHARACTERS_MAX", QUOTED)
    line = b"<p>0123456789</p>" + b"x" * 930 + b"\n"
    head = f"From: a@b.test\nContent-Type: text/{kind}\n\n".encode()
    path = await received(mail, head + line * (QUOTED // len(line) + 50))
    body = {"toRecipients": to("e@a.test")}
    draft = await draft_of(mail, path, "createForward", body)
    content = draft["body"]["content"]
    assert QUOTED - 20_000 < len(content) < QUOTED + 10_000
    assert "[The rest of the original message is not quoted.]" in content[-200:]
