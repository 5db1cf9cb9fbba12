"""Graph's application with the mail store on disk: responses match the files."""

import pytest

from tests.support.graph_fakes import OnDisk, post_mime, refused


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
