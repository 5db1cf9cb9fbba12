"""/compose: what is written in a page goes the way of the Graph API; faults are at their fields."""

import re
from html import unescape
from typing import Any

from tests.unit.front_door.pages.conftest import PageReader, plain, submit

HTML = (
    b'From: "Ann \\"A\\" <b>" <ann@customer.example>\r\nTo: bob@example.test\r\n'
    b"Cc: carol@example.test\r\nSubject: Offer\r\nMessage-ID: <offer@customer.example>\r\n"
    b"Content-Type: text/html\r\n\r\n"
    b"<p>See <b>this</b></p>"
)
NO_FILE = [("attachments", ("", b""))]
SHOWN = "subject,conversationId,body,toRecipients,ccRecipients,from,internetMessageHeaders"


def field(page: str, name: str) -> str:
    """The value of a field as its browser has it."""
    (found,) = re.findall(rf'<input id="{name}"[^>]* value="([^"]*)"', page)
    return unescape(found)


async def compose(pages: PageReader, query: str = "", files: Any = NO_FILE, **typed: str) -> Any:
    given = {"csrf": await pages.csrf(), "from": "alice@example.test", "subject": "Hi", **typed}
    return await pages.http.post(f"/compose{query}", data=given, files=files)


async def inbox(pages: PageReader, user: str, query: str = "") -> list[dict[str, Any]]:
    await pages.relay.settle()
    path = f"/v1.0/me/mailFolders/inbox/messages?{query}"
    listed = await pages.get(path, headers={"authorization": f"Bearer {user}"})
    return list(listed.json()["value"])


async def test_what_is_written_arrives_and_can_be_forwarded(pages: PageReader) -> None:
    assert field(await pages.text("/compose"), "from") == "alice@example.test"
    image = bytes(range(256)) + b"\r\n--\r\n"
    files = [("attachments", ('a "b" %41.png', image)), ("attachments", ("ü.txt", b""))]
    typed = {"toRecipients": '"Ann, A" <ann@customer.example>; bob@example.test', "body": "A\r\nb"}
    answer = await compose(pages, files=files, bccRecipients="dan@example.test", **typed)
    assert answer.status_code == 303, plain(answer.text)
    (copy,) = await inbox(pages, "ann@customer.example", "$expand=attachments")
    assert copy["body"] == {"contentType": "text", "content": "A\r\nb"}
    assert copy["toRecipients"][0]["emailAddress"]["name"] == "Ann, A"
    shown = [(one["name"], one["size"]) for one in copy["attachments"]]
    assert shown == [('a "b" %41.png', len(image)), ("ü.txt", 0)]
    journey = (await pages.get(f"/relay/v1/{answer.headers['location']}")).json()
    assert {one["step"] for one in journey["steps"]} == {1, 2, 3, 4, 5, 6}
    states = [one["state"] for one in journey["recipients"]]
    assert states == ["captured", "delivered", "delivered"]
    query = f"?forward={journey['id']}"
    page = await pages.text(f"/compose{query}")
    assert 'Attached too: a "b" %41.png, ü.txt' in plain(page)
    typed = {"toRecipients": "eve@customer.example", "body": "<p>Look", "format": "html"}
    await compose(pages, query, **typed)
    (copy,) = await inbox(pages, "eve@customer.example", "$expand=attachments")
    assert [one["name"] for one in copy["attachments"]] == ['a "b" %41.png', "ü.txt"]
    assert copy["body"] == {"contentType": "html", "content": "<p>Look"}


async def test_a_reply_is_that_of_graph(pages: PageReader) -> None:
    await submit(pages, (["bob@example.test", "carol@example.test"], HTML))
    (row,) = (await pages.get("/relay/v1/messages")).json()["messages"]
    message = await pages.text(f"/messages/{row['id']}")
    query = f"?reply-all={row['id']}"
    assert f'href="../compose{query}" data-shortcut="a"' in message
    page = await pages.text(f"/compose{query}")
    names = ("from", "toRecipients", "ccRecipients", "subject")
    typed = {name: field(page, name) for name in names}
    assert typed["from"] == "bob@example.test"
    await compose(pages, query, body="Yes <i>", format="quote", **typed)
    (copy,) = await inbox(pages, "bob")
    path, bob = f"/v1.0/me/messages/{copy['id']}/replyAll", {"authorization": "Bearer bob"}
    await pages.http.post(path, json={"comment": "Yes <i>"}, headers=bob)
    found = await inbox(pages, "ann@customer.example", f"$select={SHOWN}")
    for one in found:
        fields = {each["name"]: each["value"] for each in one.pop("internetMessageHeaders")}
        assert fields["In-Reply-To"] == fields["References"] == "<offer@customer.example>"
        assert one["conversationId"] == copy["conversationId"]
        assert "<b>this</b>" in one["body"]["content"]
        del one["id"], one["@odata.etag"]
    assert len(found) == 2
    assert found[0] == found[1]
    answer = await compose(pages, query, toRecipients="x@y.example")  # from another mailbox
    assert answer.status_code == 303, plain(answer.text)


async def test_what_is_refused_leaves_nothing_but_what_was_typed(pages: PageReader) -> None:
    to = "toRecipients"
    for name, given, words in (
        (to, {to: "ann@customer.example, bob"}, "'bob' is no mail address:"),
        (to, {to: ""}, "To, cc and bcc are empty."),
        ("bccRecipients", {"bccRecipients": "a b@"}, "'a b@' is no mail address:"),
        (to, {to: "a@b.example," * 501}, "The message has 501 recipients"),
        ("from", {"from": "a@b.example, bob@example.test"}, "Found 'a@b.example, "),
        ("from", {"from": "alice"}, "'alice' is no mailbox of this relay."),
        ("subject", {"subject": "x" * 2001}, "Found"),
    ):
        typed: dict[str, Any] = {to: 'A "b" <c@d.example>', "subject": "<b>", "format": "html"}
        answer = await compose(pages, body="</textarea><script>x", **typed | given)
        shown = re.findall(r'class="field-fault" id="fault-(\w+)">([^<]*)<', answer.text)
        assert answer.status_code == 400
        assert [one[0] for one in shown] == [name]
        assert unescape(shown[0][1]).startswith(words)
        assert f'"fault-{name}' in answer.text
        for each in (to, "subject"):
            assert field(answer.text, each) == (typed | given)[each]
        assert "&lt;/textarea&gt;&lt;script&gt;x</textarea>" in answer.text
        assert '<option value="html" selected>' in answer.text
    for count, size, status in ((1, 13_000_000, 413), (40, 1, 400)):
        files = [("attachments", ("a", b"x" * size))] * count
        assert (await compose(pages, files=files, toRecipients="a@b.example")).status_code == status
    for token in ("", "forged"):  # a form of another site
        assert (await compose(pages, csrf=token, toRecipients="a@b.example")).status_code == 403
    for query, status in (("?reply=none", 404), ("?x=1", 400)):
        assert (await pages.get(f"/compose{query}")).status_code == status
    assert (await pages.get("/relay/v1/messages")).json()["messages"] == []
    path = "/v1.0/me/mailFolders/drafts/messages"
    drafts = await pages.get(path, headers={"authorization": "Bearer alice"})
    assert drafts.json()["value"] == []
