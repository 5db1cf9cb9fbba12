"""Graph's application with the mail store on disk: responses match the files."""

import email
import email.policy
from email.message import EmailMessage

import pytest

from tests.support.graph_fakes import OnDisk, post_mime, refused, to

FILE = {
    "@odata.type": "#microsoft.graph.fileAttachment",
    "name": "Übersicht.txt",
    "contentType": "text/plain",
    "contentBytes": "aGVsbG8=",
}


async def test_a_draft_lives_its_life(on_disk: OnDisk) -> None:
    http = on_disk.http
    draft = {
        "subject": "Größe & Maß",
        "body": {"contentType": "HTML", "content": "<p>a</p>\n.\n"},
        "toRecipients": [{"emailAddress": {"address": "c@a.test", "name": "Ca, Rol"}}],
        "bccRecipients": to("d@a.test"),
        "internetMessageHeaders": [{"name": "X-Tag", "value": "ä"}],
        "internetMessageId": "<mine@a.test>",
        "attachments": [FILE],
        "importance": "high",
    }
    created = await http.post("/messages", json=draft)
    assert created.status_code == 201, created.text
    shown = created.json()
    one = f"/messages/{shown['id']}"
    assert created.headers["location"].startswith("https://mail.example.test/v1.0/users/")
    assert shown["subject"] == draft["subject"]
    assert shown["body"] == {"contentType": "html", "content": "<p>a</p>\n.\n"}
    assert shown["bccRecipients"][0]["emailAddress"]["address"] == "d@a.test"
    assert shown["from"]["emailAddress"]["address"] == "alice@example.test"
    assert (shown["internetMessageId"], shown["hasAttachments"]) == ("<mine@a.test>", True)

    assert "internetMessageHeaders" not in (await http.get(one)).json()
    headers = (await http.get(f"{one}?$select=internetMessageHeaders")).json()
    assert headers["internetMessageHeaders"] == draft["internetMessageHeaders"]

    changed = (await http.patch(one, json={"subject": "new", "isRead": False})).json()
    assert (changed["subject"], changed["isRead"], changed["hasAttachments"]) == (
        "new",
        False,
        True,
    )
    assert changed["changeKey"] != shown["changeKey"]
    assert {**changed, "isRead": True}["body"] == shown["body"]
    listed = (await http.get("/mailFolders/Drafts/messages")).json()["value"]
    assert [one["id"] for one in listed] == [shown["id"]]

    value = await http.get(f"{one}/$value")
    assert value.headers["content-type"] == "text/plain"
    parsed = email.message_from_bytes(value.content, policy=email.policy.default)
    assert isinstance(parsed, EmailMessage)
    assert (parsed["subject"], parsed["x-tag"]) == ("new", "ä")
    assert [part.get_filename() for part in parsed.iter_attachments()] == ["Übersicht.txt"]

    sent = await http.post(f"{one}/send")
    assert (sent.status_code, sent.headers["x-relay-message-id"]) == (202, shown["id"])
    for method, path in (("PATCH", one), ("DELETE", one), ("POST", f"{one}/send")):
        answer = await http.request(method, path, json={"subject": "too late"})
        assert refused(answer, 409, "ErrorIrresolvableConflict")


async def test_mime_is_on_the_disk_as_it_came(on_disk: OnDisk) -> None:
    content = b"to:  c@a.test\r\nBCC: d@a.test\r\nSubject: odd\r\n\r\n.\r\n\xff"
    answer = await post_mime(on_disk.http, "/sendMail", content)
    assert answer.status_code == 202
    drafts = [path for path in on_disk.files() if path.parent.parent.name == ".Drafts"]
    assert len(drafts) == 1
    assert drafts[0].read_bytes().endswith(content)


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"To: c@a.test, nobody\n\nx", 400, "ErrorInvalidRecipients"),
        (b"From: eve@a.test\nTo: c@a.test\n\nx", 403, "ErrorSendAsDenied"),
        (b"From: eve\nTo: c@a.test\n\nx", 400, "ErrorMimeContentInvalid"),
        (b"To: c@a.test\nX-A: " + b"a" * 200_000 + b"\n\nx", 400, "ErrorMimeContentInvalid"),
    ],
)
async def test_a_draft_of_a_mail_client_is_checked_when_it_is_sent(
    on_disk: OnDisk, content: bytes, status: int, code: str
) -> None:
    shown = (await on_disk.http.post("/messages", json={"subject": "x"})).json()
    [draft] = on_disk.files()
    draft.unlink()
    draft.with_name("1700000000.M1P1.client:2,DS").write_bytes(content)
    [foreign] = (await on_disk.http.get("/mailFolders/drafts/messages")).json()["value"]
    assert foreign["id"] != shown["id"]
    answer = await on_disk.http.post(f"/messages/{foreign['id']}/send")
    assert refused(answer, status, code)


async def test_mime_without_an_author_is_from_the_owner_wherever_it_is_shown(
    on_disk: OnDisk,
) -> None:
    http = on_disk.http
    content = b"Subject: mine\r\nTo: c@a.test\r\n\r\nbody\r\n"
    made = await post_mime(http, "/messages", content)
    one = f"/messages/{made.json()['id']}"
    owner = {"emailAddress": {"name": "alice@example.test", "address": "alice@example.test"}}
    for query in (
        {"$search": '"from:alice"'},
        {"$filter": "from/emailAddress/address eq 'alice@example.test'"},
        {"$filter": "sender/emailAddress/address eq 'alice@example.test'"},
        {"$filter": f"sentDateTime eq {made.json()['createdDateTime']}"},
    ):
        [shown] = (await http.get("/messages", params=query)).json()["value"]
        assert (shown["from"], shown["sender"]) == (owner, owner)
        assert shown["sentDateTime"] == shown["createdDateTime"]
    assert (await http.get(f"{one}/$value")).content == content
    changed = await http.patch(one, json={"subject": "yours"})
    assert changed.json()["from"] == owner
    value = (await http.get(f"{one}/$value")).content
    assert value == content.replace(b"mine", b"yours")
