"""Attachments of messages over HTTP, with a mail store on disk."""

import base64
import email
import email.policy
from email.message import EmailMessage
from typing import Any

import httpx
import pytest

from tests.support.graph_fakes import OnDisk, post_mime, refused, to

PDF = {
    "@odata.type": "#microsoft.graph.fileAttachment",
    "name": "Übersicht.pdf",
    "contentType": "application/pdf",
    "contentBytes": base64.b64encode(b"%PDF" + bytes(range(256))).decode(),
}
TEXT = PDF | {"name": "b.txt", "contentType": "text/plain", "contentBytes": "aGVsbG8="}
ITEM = {
    "@odata.type": "#microsoft.graph.itemAttachment",
    "name": "inner",
    "item": {
        "@odata.type": "#microsoft.graph.message",
        "subject": "inside",
        "body": {"contentType": "text", "content": "inner text"},
        "toRecipients": to("c@a.test"),
    },
}
MIME = (
    b"From: alice@example.test\r\nTo: c@a.test\r\nSubject: mime\r\nX-Odd: kept\r\n"
    b"Content-Type: multipart/mixed; boundary=q\r\n\r\n"
    b"--q\r\nContent-Type: text/html\r\n\r\n<p>text</p>\r\n"
    b"--q\r\nContent-Type: image/png; name=a.png\r\nContent-Transfer-Encoding: base64\r\n\r\nAAEC\r\nAwQ=\r\n"
    b"--q\r\nContent-Type: text/csv; name=b.csv\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\na=3Db=\r\nc\r\n"
    b"--q\r\nContent-Type: message/rfc822\r\n\r\nFrom: d@a.test\r\nSubject: forwarded\r\n\r\nold\r\n"
    b"--q--\r\n"
)
CONTENTS = {"a.png": b"\0\1\2\3\4", "b.csv": b"a=bc"}


async def draft(on_disk: OnDisk, *attachments: dict[str, Any], **more: Any) -> str:
    body = {"subject": "s", "toRecipients": to("c@a.test"), "attachments": attachments, **more}
    answer = await on_disk.http.post("/messages", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def mime_draft(on_disk: OnDisk, content: bytes = MIME) -> str:
    answer = await post_mime(on_disk.http, "/messages", content)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def listed(on_disk: OnDisk, message_id: str, **query: Any) -> list[dict[str, Any]]:
    answer = await on_disk.http.get(f"/messages/{message_id}/attachments", params=query)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["value"])


async def parsed(on_disk: OnDisk, message_id: str) -> EmailMessage:
    value = await on_disk.http.get(f"/messages/{message_id}/$value")
    found = email.message_from_bytes(value.content, policy=email.policy.default)
    assert isinstance(found, EmailMessage)
    return found


async def test_attachments_are_shown_as_graph_shows_them(on_disk: OnDisk) -> None:
    message_id = await draft(on_disk, PDF, TEXT | {"isInline": True, "contentId": "c1"}, ITEM)
    pdf, text, item = await listed(on_disk, message_id)
    assert {**pdf, **PDF} == pdf
    assert (pdf["size"], pdf["isInline"], pdf["contentId"]) == (260, False, None)
    assert (text["isInline"], text["contentId"], text["contentBytes"]) == (True, "c1", "aGVsbG8=")
    assert (item["@odata.type"], item["name"]) == (ITEM["@odata.type"], "inner")
    assert "contentBytes" not in item
    one = f"/messages/{message_id}/attachments/{pdf['id']}"
    shown = (await on_disk.http.get(one)).json()
    assert {name: value for name, value in shown.items() if name != "@odata.context"} == pdf
    value = await on_disk.http.get(f"{one}/$value")
    assert value.content == base64.b64decode(str(PDF["contentBytes"]))
    assert value.headers["content-type"] == "application/pdf"
    inner = (
        await on_disk.http.get(f"/messages/{message_id}/attachments/{item['id']}/$value")
    ).content
    assert b"Subject: inside\r\n" in inner
    assert inner.endswith(b"inner text\r\n")


async def test_attachments_of_mime_are_read_where_they_lie(on_disk: OnDisk) -> None:
    message_id = await mime_draft(on_disk)
    found = {one["name"]: one for one in await listed(on_disk, message_id)}
    assert list(found) == [*CONTENTS, "forwarded"]
    for name, content in CONTENTS.items():
        assert base64.b64decode(found[name]["contentBytes"]) == content
        value = await on_disk.http.get(
            f"/messages/{message_id}/attachments/{found[name]['id']}/$value"
        )
        assert value.content == content
    item = f"/messages/{message_id}/attachments/{found['forwarded']['id']}"
    assert (await on_disk.http.get(f"{item}/$value")).content.startswith(b"From: d@a.test\r\n")


def attaching(content: bytes) -> bytes:
    return b"Subject: outer\r\nContent-Type: message/rfc822\r\n\r\n" + content


async def with_item(on_disk: OnDisk, content: bytes, prefer: str = "") -> dict[str, Any]:
    """Return the JSON of the item that is attached to a new draft."""
    item = f"/messages/{await mime_draft(on_disk, attaching(content))}/attachments/0"
    query = {"$expand": "microsoft.graph.itemattachment/item", "$select": "name"}
    answer = await on_disk.http.get(item, params=query, headers={"prefer": prefer})
    return dict(answer.json()["item"])


@pytest.mark.parametrize("prefer", ["", 'outlook.body-content-type="text", relay.strict'])
async def test_an_attached_message_is_shown_as_a_stored_one(on_disk: OnDisk, prefer: str) -> None:
    def kept(resource: dict[str, Any]) -> dict[str, Any]:
        """What does not depend on where it is stored."""
        own = ("changeKey", "parentFolderId", "isDraft", "item", "attachments")
        own += ("@odata.context", "@odata.etag", "lastModifiedDateTime")
        return {name: value for name, value in resource.items() if name not in own}

    mime = (
        b"Date: Mon, 5 Jan 2015 10:11:12 +0100\r\nMessage-ID: <1@a.test>\r\nImportance: high\r\n"
        b"Disposition-Notification-To: d@a.test\r\nKeywords: Red\r\n" + MIME
    )
    stored = f"/messages/{await mime_draft(on_disk, mime)}?$expand=attachments"
    top = (await on_disk.http.get(stored, headers={"prefer": prefer})).json()
    shown = await with_item(on_disk, mime, prefer)
    date = shown["lastModifiedDateTime"]
    top |= {"id": "", "@odata.type": "#microsoft.graph.message"}
    top |= {"createdDateTime": date, "receivedDateTime": date}  # of its Date
    assert kept(top) == kept(shown)
    assert [*map(kept, top["attachments"])] == [*map(kept, shown["attachments"])]
    forwarded = shown["attachments"][-1]["item"]
    assert (forwarded["subject"], forwarded["body"]["content"]) == ("forwarded", "old")
    assert forwarded["sentDateTime"] == date == "2015-01-05T09:11:12Z"  # it has no Date


async def test_attached_messages_are_shown_to_a_depth_and_a_size(on_disk: OnDisk) -> None:
    on_disk.http.headers["authorization"] = "Bearer bob"  # without alice's small quota
    for text, levels in ((b"", 30), ((b"x" * 76 + b"\r\n") * 100_000, 5)):
        content = b"\r\n" + text
        for _ in range(levels + 1):
            content = attaching(content)
        shown = {"item": await with_item(on_disk, content)}
        for _ in range(levels):
            [shown] = shown["item"]["attachments"]
        assert "item" not in shown
    many = b"\r\n--q\r\nContent-Type: message/rfc822\r\n\r\nTo: c@a.test\r\n" * 31
    shown = await with_item(on_disk, b"Content-Type: multipart/mixed; boundary=q\r\n" + many)
    assert len([one for one in shown["attachments"] if "item" in one]) == 31


async def test_a_link_is_not_attached_and_one_of_an_older_relay_is_a_file(on_disk: OnDisk) -> None:
    uris = b"# referenceAttachment\r\n# providerType: other\r\nhttps://a.test/x\r\n"
    content = (
        b"Content-Type: text/uri-list; name=r\r\nContent-Disposition: attachment\r\n\r\n" + uris
    )
    message_id = await mime_draft(on_disk, b"To: c@a.test\r\nMIME-Version: 1.0\r\n" + content)
    [shown] = await listed(on_disk, message_id)
    assert (shown["@odata.type"], shown["contentType"]) == (PDF["@odata.type"], "text/uri-list")
    assert base64.b64decode(shown["contentBytes"]) == uris
    link = {"@odata.type": "#microsoft.graph.referenceAttachment", "sourceUrl": "https://a.test/"}
    answer = await on_disk.http.post(f"/messages/{message_id}/attachments", json=link)
    refused(answer, 501, "NotImplemented")


async def test_options_of_the_list(on_disk: OnDisk) -> None:
    message_id = await draft(on_disk, PDF, TEXT, ITEM)
    names = [one["name"] for one in await listed(on_disk, message_id)]
    assert await listed(on_disk, message_id, **{"$select": "name,size"}) == [
        {key: one[key] for key in ("@odata.type", "@odata.mediaContentType", "id", "name", "size")}
        for one in await listed(on_disk, message_id)
    ]
    url: str | None = f"/messages/{message_id}/attachments?$top=2&$count=true"
    paged = []
    while url:
        answer = (await on_disk.http.get(url)).json()
        assert answer["@odata.count"] == 3
        paged += [one["name"] for one in answer["value"]]
        url = (
            answer.get("@odata.nextLink", "").replace("https://mail.example.test", "http://h")
            or None
        )
    assert paged == names
    cast = {"$select": "id,microsoft.graph.fileAttachment/contentBytes"}
    assert (await listed(on_disk, message_id, **cast))[1]["contentBytes"] == "aGVsbG8="
    bad = await on_disk.http.get(f"/messages/{message_id}/attachments?$select=colour")
    assert "colour" in refused(bad, 400, "BadRequest")


@pytest.mark.parametrize("make", [draft, mime_draft])
async def test_adding_and_removing_keeps_the_others_and_their_ids(
    on_disk: OnDisk, make: Any
) -> None:
    message_id = await (make(on_disk, TEXT, PDF) if make is draft else make(on_disk))
    before = await listed(on_disk, message_id)
    added = await on_disk.http.post(
        f"/messages/{message_id}/attachments", json=PDF | {"name": "new"}
    )
    assert added.status_code == 201
    told = added.json()
    assert (told["name"], told["contentBytes"]) == ("new", PDF["contentBytes"])
    path = httpx.URL(added.headers["location"]).path
    assert (await on_disk.http.get(f"http://h{path}")).json()["id"] == told["id"]
    first = before[0]["id"]
    gone = await on_disk.http.delete(f"/messages/{message_id}/attachments/{first}")
    assert (gone.status_code, gone.content) == (204, b"")
    after = await listed(on_disk, message_id)
    ids = {one["id"]: one.get("contentBytes") for one in after}
    assert ids == {one["id"]: one.get("contentBytes") for one in [*before[1:], told]}
    again = await on_disk.http.delete(f"/messages/{message_id}/attachments/{first}")
    assert refused(again, 404, "ErrorItemNotFound")
    changed = await on_disk.http.patch(f"/messages/{message_id}", json={"subject": "later"})
    assert changed.json()["subject"] == "later"
    assert {one["id"] for one in await listed(on_disk, message_id)} == set(ids)
    whole = await parsed(on_disk, message_id)
    assert [one.get_filename() for one in whole.iter_attachments()][-1] == "new"
    assert len([path for path in on_disk.files() if path.parent.name == "cur"]) == 1


def stored_mime(on_disk: OnDisk) -> bytes:
    """Return the MIME of the only draft as it is in its file, after the private block."""
    [path] = [one for one in on_disk.files() if one.parent.parent.name == ".Drafts"]
    content = path.read_bytes()
    return content[int(content[len("X-Relay-Draft: 1 ") :][:10]) :]


async def test_a_mime_draft_stays_as_it_was_around_an_attachment(on_disk: OnDisk) -> None:
    content = MIME.replace(b"To: c@a.test", b'To:\tc@a.test,\r\n  "x" <d@a.test>') + b"epilogue\r\n"
    message_id = await mime_draft(on_disk, content)
    before = (await on_disk.http.get(f"/messages/{message_id}")).json()
    path = f"/messages/{message_id}/attachments"
    added = await on_disk.http.post(path, json=PDF)
    assert added.status_code == 201
    start, _, end = content.rpartition(b"--q--")
    made = stored_mime(on_disk)
    assert made.startswith(start + b"--q\r\nContent-Type: application/pdf;")
    assert made.endswith(b"\r\n--q--" + end)
    after = (await on_disk.http.get(f"/messages/{message_id}")).json()
    for name in ("subject", "body", "toRecipients", "from", "internetMessageId", "createdDateTime"):
        assert after[name] == before[name], name
    assert (await on_disk.http.delete(f"{path}/{added.json()['id']}")).status_code == 204
    assert stored_mime(on_disk) == content


async def test_ids_of_mime_attachments_last_through_every_change(on_disk: OnDisk) -> None:
    message_id = await mime_draft(on_disk)
    path = f"/messages/{message_id}/attachments"

    async def names() -> dict[str, str]:
        return {one["id"]: one["name"] for one in await listed(on_disk, message_id)}

    assert await names() == {"0": "a.png", "1": "b.csv", "2": "forwarded"}
    image = PDF | {"name": "i.png", "isInline": True, "contentId": "i"}
    first = (await on_disk.http.post(path, json=image)).json()["id"]
    second = (await on_disk.http.post(path, json=TEXT)).json()["id"]
    assert [one["name"] for one in await listed(on_disk, message_id)] == [
        *("i.png", "a.png", "b.csv", "forwarded", "b.txt")
    ]
    had = {"0": "a.png", "1": "b.csv", "2": "forwarded", first: "i.png", second: "b.txt"}
    assert await names() == had
    assert (await on_disk.http.delete(f"{path}/1")).status_code == 204
    body = {"contentType": "text", "content": "new"}
    changed = await on_disk.http.patch(f"/messages/{message_id}", json={"body": body})
    assert changed.json()["body"]["content"] == "new"
    del had["1"]
    assert await names() == had
    assert refused(await on_disk.http.delete(f"{path}/1"), 404, "ErrorItemNotFound")
    assert (await on_disk.http.post(f"/messages/{message_id}/send")).status_code == 202
    assert await names() == had


SIGNED = (
    b"To: c@a.test\r\nContent-Type: multipart/signed; boundary=s; protocol=x/y\r\n\r\n"
    b"--s\r\nContent-Type: text/plain\r\n\r\ntext\r\n--s\r\nContent-Type: x/y; name=sig\r\n\r\nSIG\r\n--s--\r\n"
)


ENCRYPTED = (
    b"To: c@a.test\r\nContent-Type: application/pkcs7-mime; name=smime.p7m\r\n"
    b"Content-Transfer-Encoding: base64\r\n\r\nAAAA\r\n"
)


@pytest.mark.parametrize("content", [SIGNED, ENCRYPTED], ids=["signed", "encrypted"])
@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_signed_mime_is_not_changed(on_disk: OnDisk, content: bytes, method: str) -> None:
    message_id = await mime_draft(on_disk, content)
    [signature] = await listed(on_disk, message_id)
    path = f"/messages/{message_id}/attachments" + (
        f"/{signature['id']}" if method == "DELETE" else ""
    )
    answer = await on_disk.http.request(method, path, json=TEXT)
    assert "signed" in refused(answer, 400, "ErrorInvalidRequest")
    assert (await on_disk.http.get(f"/messages/{message_id}/$value")).content == content


async def test_only_drafts_that_are_not_being_sent_change(on_disk: OnDisk) -> None:
    message_id = await draft(on_disk, TEXT)
    [file] = [path for path in on_disk.files() if path.parent.name == "cur"]
    assert (await on_disk.http.post(f"/messages/{message_id}/send")).status_code == 202
    one = f"/messages/{message_id}/attachments"
    assert refused(await on_disk.http.post(one, json=PDF), 409, "ErrorIrresolvableConflict")
    assert refused(await on_disk.http.delete(f"{one}/0"), 409, "ErrorIrresolvableConflict")
    assert len(await listed(on_disk, message_id)) == 1
    received = on_disk.root / "example.test/alice/cur/1700000000.M1P1.other:2,S"
    received.write_bytes(file.read_bytes())
    [other] = (await on_disk.http.get("/mailFolders/inbox/messages")).json()["value"]
    one = f"/messages/{other['id']}/attachments"
    assert refused(await on_disk.http.post(one, json=PDF), 400, "ErrorInvalidRequest")
    assert refused(await on_disk.http.get(f"{one}/77"), 404, "ErrorItemNotFound")
    sent = f"/mailFolders/sentitems/messages/{other['id']}/attachments"
    assert refused(await on_disk.http.get(sent), 404, "ErrorItemNotFound")


async def test_a_full_mailbox_takes_no_attachment(on_disk: OnDisk) -> None:
    message_id = await draft(on_disk, TEXT)
    before = on_disk.files()
    large = PDF | {"contentBytes": base64.b64encode(bytes(60_000)).decode()}
    answer = await on_disk.http.post(f"/messages/{message_id}/attachments", json=large)
    assert refused(answer, 507, "ErrorQuotaExceeded")
    assert on_disk.files() == before
