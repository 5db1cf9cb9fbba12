"""Drafts with another's From, which do not leave, and messages that are created as no drafts."""

import base64
from typing import Any

import httpx
import pytest

from relay.formats.convert import convert
from tests.support.graph_fakes import OnDisk, post_mime, refused, to
from tests.support.tables import each_row

CAROL = "carol@other.test"
FROM_CAROL = {
    "subject": "x",
    "from": to(CAROL)[0],
    "toRecipients": to("bob@example.test"),
    "body": {"content": "hello"},
}
MIME = f"From: {CAROL}\r\nTo: bob@example.test\r\nSubject: x\r\n\r\nhello\r\n".encode()
LATER = [{"id": "SystemTime 0x3FEF", "value": "2100-01-01T00:00:00Z"}]


async def made(answer: httpx.Response, status: int = 201) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


async def draft_of(http: httpx.AsyncClient, way: str) -> dict[str, Any]:
    """Make a draft from carol in one of the ways in which drafts are made."""
    own = await made(
        await http.post("/messages", json={"subject": "x", "toRecipients": to("b@a.test")})
    )
    path = f"/messages/{own['id']}"
    match way:
        case "json":
            return await made(await http.post("/messages", json=FROM_CAROL))
        case "folder":
            return await made(await http.post("/mailFolders/archive/messages", json=FROM_CAROL))
        case "mime":
            return await made(await post_mime(http, "/messages", MIME))
        case "mime in a folder":
            return await made(await post_mime(http, "/mailFolders/archive/messages", MIME))
        case "streamed mime":
            return await made(await post_mime(http, "/messages", MIME + b"x\r\n" * 600_000))
        case "patch":
            return await made(await http.patch(path, json={"from": FROM_CAROL["from"]}), 200)
        case "sender":
            return await made(await http.patch(path, json={"sender": FROM_CAROL["from"]}), 200)
        case "put":
            return await made(
                await http.put(
                    f"{path}/$value",
                    content=base64.b64encode(MIME),
                    headers={"content-type": "text/plain"},
                ),
                200,
            )
        case "copy":
            first = await draft_of(http, "json")
            answer = await http.post(
                f"/messages/{first['id']}/copy", json={"destinationId": "drafts"}
            )
            return await made(answer)
        case "createReply":
            body = {"message": {"from": FROM_CAROL["from"], "toRecipients": to("b@a.test")}}
            return await made(await http.post(f"{path}/createReply", json=body))
        case "createForward in mime":
            return await made(await post_mime(http, f"{path}/createForward", MIME))
        case _:
            raise AssertionError(way)


WAYS = (
    "json",
    "folder",
    "mime",
    "mime in a folder",
    "streamed mime",
    "patch",
    "sender",
    "put",
    "copy",
    "createReply",
    "createForward in mime",
)


@pytest.mark.parametrize("way", WAYS)
async def test_a_draft_may_have_anothers_from_and_is_not_sent(on_disk: OnDisk, way: str) -> None:
    http = on_disk.http
    http.headers["authorization"] = "Bearer bob"  # without alice's small quota
    shown = await draft_of(http, way)
    author = shown["sender" if way == "sender" else "from"]["emailAddress"]["address"]
    assert (author, shown["isDraft"]) == (CAROL, True)
    answer = await http.post(f"/messages/{shown['id']}/send")
    assert CAROL in refused(answer, 403, "ErrorSendAsDenied")
    assert not [path for path in on_disk.files() if path.parent.name in ("ready", "preparing")]


async def test_a_mime_draft_of_who_resends_it_is_not_sent(on_disk: OnDisk) -> None:
    mime = f"Resent-From: {CAROL}\r\n".encode() + MIME.replace(
        CAROL.encode(), b"alice@example.test"
    )
    shown = await made(await post_mime(on_disk.http, "/messages", mime))
    answer = await on_disk.http.post(f"/messages/{shown['id']}/send")
    assert "Resent-From" in refused(answer, 403, "ErrorSendAsDenied")


@pytest.mark.parametrize("action", ["reply", "replyAll", "forward", "sendMail"])
async def test_nothing_is_sent_at_once_with_anothers_from(on_disk: OnDisk, action: str) -> None:
    own = await made(await on_disk.http.post("/messages", json={"subject": "x"}))
    path = "/sendMail" if action == "sendMail" else f"/messages/{own['id']}/{action}"
    for field in ("from", "sender"):
        message = {field: to(CAROL)[0], "toRecipients": to("bob@example.test")}
        answer = await on_disk.http.post(path, json={"message": message})
        assert f"message.{field}" in refused(answer, 403, "ErrorSendAsDenied")
    refused(await post_mime(on_disk.http, path, MIME), 403, "ErrorSendAsDenied")


async def test_a_scheduled_draft_gets_no_from_that_may_not_be_used(on_disk: OnDisk) -> None:
    message = {"toRecipients": to("bob@example.test"), "singleValueExtendedProperties": LATER}
    shown = await made(await on_disk.http.post("/messages", json=message))
    path = f"/messages/{shown['id']}"
    assert (await on_disk.http.post(f"{path}/send")).status_code == 202
    for field in ("from", "sender"):
        answer = await on_disk.http.patch(path, json={field: to(CAROL)[0]})
        refused(answer, 403, "ErrorSendAsDenied")
    assert (await on_disk.http.get(path)).json()["from"] == shown["from"]


async def test_new_mime_of_a_scheduled_draft_ends_its_send(on_disk: OnDisk) -> None:
    """It has no send time. Otherwise anything could be sent that nobody checked."""
    message = {"toRecipients": to("bob@example.test"), "singleValueExtendedProperties": LATER}
    shown = await made(await on_disk.http.post("/messages", json=message))
    path = f"/messages/{shown['id']}"
    assert (await on_disk.http.post(f"{path}/send")).status_code == 202
    text = {"content-type": "message/rfc822"}
    assert (await on_disk.http.put(f"{path}/$value", content=MIME, headers=text)).is_success
    assert [*(on_disk.root / ".submissions/deferred").iterdir()] == []


async def test_a_draft_has_no_more_recipients_than_a_message(on_disk: OnDisk) -> None:
    many = {"toRecipients": to(*["a@b.test"] * 300), "ccRecipients": to(*["c@b.test"] * 201)}
    answer = await on_disk.http.post("/messages", json=many)
    assert "501" in refused(answer, 400, "ErrorInvalidRecipients")
    mime = b"To: " + b"a@b.test, " * 300 + b"\r\nCc: " + b"c@b.test, " * 201 + b"\r\n\r\n"
    refused(await post_mime(on_disk.http, "/messages", mime), 400, "ErrorInvalidRecipients")
    draft = await made(await on_disk.http.post("/messages", json={}))
    text = {"content-type": "message/rfc822"}
    answer = await on_disk.http.put(f"/messages/{draft['id']}/$value", content=mime, headers=text)
    refused(answer, 400, "ErrorInvalidRecipients")


@each_row(
    "content, authors",
    [
        (MIME, {CAROL}),
        (MIME.replace(b"To:", b"Sender: eve@other.test\r\nTo:"), {CAROL, "eve@other.test"}),
        (b"Resent-From: eve@other.test\r\n" + MIME, {CAROL, "eve@other.test"}),
        (b"From: nobody\r\n" + MIME, {CAROL, ""}),
        (b"Sender\r\n : eve@other.test\r\n" + MIME, {CAROL, "eve@other.test", ""}),
    ],
)
def test_what_leaves_says_who_its_authors_are(content: bytes, authors: set[str]) -> None:
    assert {*convert(content, now_us=0, hostname="h").authors} == authors


# -- messages that are no drafts


def recorded(flags: int, **message: Any) -> dict[str, Any]:
    times = {
        "SystemTime 0xE06": "2019-05-04T03:02:01Z",
        "SystemTime 0x0039": "2019-05-04T03:00:00Z",
    }
    properties = {"Integer 0x0E07": str(flags), **times}
    extended = [{"id": name, "value": value} for name, value in properties.items()]
    return FROM_CAROL | {"singleValueExtendedProperties": extended} | message


@pytest.mark.parametrize(
    ("flags", "message", "is_read"),
    [
        (0, {}, False),
        (1, {}, True),
        (4, {}, False),
        (1, {"isRead": False}, False),
        (0, {"isRead": True}, True),
    ],
)
async def test_a_message_without_the_unsent_bit_is_no_draft(
    on_disk: OnDisk, flags: int, message: dict[str, Any], is_read: bool
) -> None:
    body = recorded(flags, **message)
    shown = await made(await on_disk.http.post("/mailFolders/inbox/messages", json=body))
    again = (await on_disk.http.get(f"/messages/{shown['id']}")).json()
    for one in (shown, again):
        assert (one["isDraft"], one["isRead"]) == (False, is_read)
        assert one["receivedDateTime"] == "2019-05-04T03:02:01Z"
        assert one["sentDateTime"] == "2019-05-04T03:00:00Z"
        assert one["from"] == one["sender"] == {"emailAddress": {"name": CAROL, "address": CAROL}}
    refused(
        await on_disk.http.patch(f"/messages/{shown['id']}", json={"subject": "y"}),
        400,
        "ErrorInvalidPropertySet",
    )
    refused(await on_disk.http.post(f"/messages/{shown['id']}/send"), 400, "ErrorInvalidRequest")
    query = {"$filter": "receivedDateTime lt 2019-06-01T00:00:00Z"}
    found = (await on_disk.http.get("/mailFolders/inbox/messages", params=query)).json()["value"]
    assert [one["id"] for one in found] == [shown["id"]]


async def test_it_keeps_all_that_its_json_says(on_disk: OnDisk) -> None:
    file = {
        "@odata.type": "#microsoft.graph.fileAttachment",
        "name": "a.bin",
        "contentBytes": "aGVsbG8=",
    }
    body = recorded(
        1,
        body={"contentType": "html", "content": "<b>hello</b>"},
        attachments=[file],
        categories=["Red"],
        importance="high",
        bccRecipients=to("d@a.test"),
        flag={"flagStatus": "flagged"},
        internetMessageId="<one@other.test>",
        internetMessageHeaders=[{"name": "x-a", "value": "b"}],
    )
    own = {"id": "String {00020329-0000-0000-c000-000000000046} Name Number", "value": "7"}
    body["singleValueExtendedProperties"].append(own)
    shown = await made(await on_disk.http.post("/mailFolders/archive/messages", json=body))
    expand = f"attachments,singleValueExtendedProperties($filter=id eq '{own['id']}')"
    shown = (await on_disk.http.get(f"/messages/{shown['id']}", params={"$expand": expand})).json()
    assert {name: shown[name] for name in ("categories", "importance", "internetMessageId")} == {
        "categories": ["Red"],
        "importance": "high",
        "internetMessageId": "<one@other.test>",
    }
    assert shown["singleValueExtendedProperties"] == [own]
    assert (shown["flag"]["flagStatus"], shown["hasAttachments"]) == ("flagged", True)
    assert shown["attachments"][0]["contentBytes"] == "aGVsbG8="
    assert shown["bccRecipients"][0]["emailAddress"]["address"] == "d@a.test"
    mime = (await on_disk.http.get(f"/messages/{shown['id']}/$value")).content
    assert mime.startswith(b"Bcc: d@a.test\r\n")
    assert b"X-Relay-" not in mime
    assert b"Date: Sat, 04 May 2019 03:00:00" in mime
    assert b"x-a: b\r\n" in mime


async def test_in_drafts_it_is_a_draft_until_it_is_moved(on_disk: OnDisk) -> None:
    shown = await made(await on_disk.http.post("/messages", json=recorded(1)))
    assert shown["isDraft"] is True
    answer = await on_disk.http.post(
        f"/messages/{shown['id']}/move", json={"destinationId": "inbox"}
    )
    moved = await made(answer)
    assert (moved["isDraft"], moved["isRead"]) == (False, True)
    assert moved["receivedDateTime"] == "2019-05-04T03:02:01Z"
