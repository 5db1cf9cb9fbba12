"""Every property of a message's JSON: stored in the draft, returned, and present in the sent MIME."""

import base64
import email
import email.policy
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

import httpx
import pytest

from relay.base.accounts.account import Account
from relay.base.message.content import read_all
from relay.formats.convert import ConvertedMessage, convert
from tests.support.accounts import TokenAccounts
from tests.support.drafts import read_attachments
from tests.support.graph_fakes import graph_on_disk, post_mime, refused, to
from tests.support.tables import each_row

ALICE = Account(
    "alice@example.test",
    aliases=("alias@example.test",),
    send_as=("office@example.test", "*@shared.test"),
)
HEADERS = "{00020386-0000-0000-C000-000000000046}"
FILE = {
    "@odata.type": "#microsoft.graph.fileAttachment",
    "name": "Übersicht 2026.txt",
    "contentType": "text/plain",
    "contentBytes": base64.b64encode("größe".encode()).decode(),
}


@dataclass
class Mailbox:
    http: httpx.AsyncClient
    root: Path

    async def draft(self, **message: object) -> dict:
        answer = await self.http.post("messages", json=message)
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def get(self, identity: str, **options: str) -> dict:
        answer = await self.http.get(f"messages/{identity}", params=options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def patch(self, identity: str, **message: object) -> dict:
        answer = await self.http.patch(f"messages/{identity}", json=message)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def raw(self) -> bytes:
        """Return the file of the only draft."""
        (path,) = (self.root / "example.test/alice/.Drafts/cur").iterdir()
        return path.read_bytes()

    def converted(self) -> ConvertedMessage:
        return convert(self.raw(), now_us=0, hostname="h")

    def sent(self) -> EmailMessage:
        content = read_all(self.converted().content)
        assert max(map(len, content.split(b"\r\n"))) <= 998
        message = email.message_from_bytes(content, policy=email.policy.default)
        assert not [part.defects for part in message.walk() if part.defects]
        assert isinstance(message, EmailMessage)
        return message


@pytest.fixture
async def mailbox(tmp_path: Path) -> AsyncIterator[Mailbox]:
    accounts = TokenAccounts({"alice": ALICE})
    async with graph_on_disk(tmp_path / "mail", accounts=accounts, max_body=8 << 20) as made:
        yield Mailbox(made.http, made.root)


def single(*properties: tuple[str, object]) -> list[dict[str, object]]:
    return [{"id": identity, "value": value} for identity, value in properties]


async def test_a_conversation_has_an_index_from_its_first_moment(mailbox: Mailbox) -> None:
    made = await mailbox.draft(subject="one", toRecipients=to("bob@example.test"))
    index = base64.b64decode(made["conversationIndex"], validate=True)
    assert (len(index), index[0]) == (22, 1)
    assert index[6:].hex() == made["conversationId"]
    changed = await mailbox.patch(made["id"], subject="AW: two")
    assert changed["conversationIndex"] == made["conversationIndex"]
    sent = mailbox.sent()
    assert sent["thread-index"] == made["conversationIndex"]
    assert sent["thread-topic"] == "two"


async def test_some_extended_properties_are_header_fields(mailbox: Mailbox) -> None:
    await mailbox.draft(
        toRecipients=to("bob@example.test"),
        internetMessageHeaders=[{"name": "X-Own", "value": "first"}],
        singleValueExtendedProperties=single(
            ("String 0x1045", "<https://example.test/u?id=1>"),
            (f"String {HEADERS} Name X-Campaign", "Größe"),
            (f"String {HEADERS} Name x-own", "second"),
            (f"String {HEADERS} Name Bcc", "hidden@example.test"),
            ("Integer 0x0036", "3"),
        ),
    )
    sent = mailbox.sent()
    assert sent["list-unsubscribe"] == "<https://example.test/u?id=1>"
    assert sent["x-campaign"] == "Größe"
    assert sent.get_all("x-own") == ["first"]
    assert sent["bcc"] is None
    assert sent["sensitivity"] == "Company-Confidential"


@pytest.mark.parametrize(
    ("given", "from_", "sender", "reverse_path"),
    [
        ({"from": "alias@example.test"}, "alias@example.test", None, "alias@example.test"),
        (
            {"from": "office@example.test"},
            "office@example.test",
            "alice@example.test",
            "alice@example.test",
        ),
        ({"from": "x@shared.test"}, "x@shared.test", "alice@example.test", "alice@example.test"),
        (
            {"from": "office@example.test", "sender": "office@example.test"},
            "office@example.test",
            None,
            "office@example.test",
        ),
        (
            {"from": "office@example.test", "sender": "x@shared.test"},
            "office@example.test",
            "x@shared.test",
            "x@shared.test",
        ),
        ({"sender": "office@example.test"}, "office@example.test", None, "office@example.test"),
    ],
)
async def test_send_on_behalf_sets_sender(
    mailbox: Mailbox, given: dict, from_: str, sender: str | None, reverse_path: str
) -> None:
    people = {name: to(address)[0] for name, address in given.items()}
    made = await mailbox.draft(**people, toRecipients=to("bob@example.test"))
    sent = mailbox.sent()
    assert (sent["from"], sent["sender"]) == (from_, sender)
    assert mailbox.converted().originator == reverse_path
    await mailbox.patch(made["id"], **{"from": to("alice@example.test")[0]})
    sent = mailbox.sent()
    assert (sent["from"], sent["sender"]) == ("alice@example.test", None)


@each_row("address", ["bob@example.test", "x@notshared.test", "x@a.shared.test"])
async def test_send_as_rejects_an_address_that_is_not_listed(
    mailbox: Mailbox, address: str
) -> None:
    for message in ({"from": to(address)[0]}, {"sender": to(address)[0]}):
        message |= {"toRecipients": to("bob@example.test")}
        answer = await mailbox.http.post("sendMail", json={"message": message})
        assert "send_as" in refused(answer, 403, "ErrorSendAsDenied")
    mime = f"From: {address}\r\nTo: bob@example.test\r\n\r\nx".encode()
    answer = await post_mime(mailbox.http, "sendMail", mime)
    assert "send_as" in refused(answer, 403, "ErrorSendAsDenied")


@each_row(
    "header",
    [
        "From: <@bank.test:alice@example.test>",
        "From: CEO of the Bank\r\nFrom: alice@example.test",
        "From: alice@example.test\r\nSender: (ceo@bank.test)",
        "From\r\n : alice@example.test",
        "From: " + "alice@example.test, " * 300,
    ],
)
async def test_an_author_that_cannot_be_read_is_refused(mailbox: Mailbox, header: str) -> None:
    mime = f"{header}\r\nTo: bob@example.test\r\n\r\nx".encode()
    answer = await post_mime(mailbox.http, "sendMail", mime)
    assert "has no address" in refused(answer, 400, "ErrorMimeContentInvalid")


OFFICE, ADDED = "From: office@example.test\r\n", "Sender: alice@example.test\r\n"


@pytest.mark.parametrize(
    ("header", "added", "reverse_path"),
    [
        (OFFICE, ADDED, "alice@example.test"),
        ("From: Alice <alice@example.test>,\r\n x@shared.test\r\n", ADDED, "alice@example.test"),
        (OFFICE + "sender: office@example.test\r\n", "", "office@example.test"),
        (OFFICE + "Sender: alias@example.test\r\n", "", "alias@example.test"),
        ("From: alias@example.test\r\n", "", "alias@example.test"),
        ("From: ALICE@example.test\r\n", "", "ALICE@example.test"),
    ],
)
@pytest.mark.parametrize(
    ("path", "size"), [("sendMail", 1_100_000), ("messages", 10), ("messages", 1_100_000)]
)
async def test_mime_on_behalf_gets_the_sender_that_it_lacks(
    mailbox: Mailbox, header: str, added: str, reverse_path: str, *, path: str, size: int
) -> None:
    rest = "To: b@b.test\r\nDate: Mon, 2 Jan 2006 15:04:05 -0700\r\nMessage-ID: <x@y>\r\n"
    body = "\r\n" + "x" * 68 + "\r\n" + "more text\r\n" * (size // 11)
    answer = await post_mime(mailbox.http, path, (header + rest + body).encode())
    if path == "messages":
        answer = await mailbox.http.post(f"messages/{answer.json()['id']}/send")
    assert answer.status_code == 202, answer.text
    (pending,) = (mailbox.root / ".submissions/ready").iterdir()
    made = convert(pending.read_bytes(), now_us=0, hostname="h")
    assert read_all(made.content).decode() == header + rest + added + body
    assert made.originator == reverse_path


@pytest.mark.parametrize(
    ("header", "sender"),
    [
        (OFFICE, "alice@example.test"),
        (OFFICE + "Sender: office@example.test\r\n", "office@example.test"),
        (OFFICE + "Sender: alias@example.test\r\n", "alias@example.test"),
        ("From: alias@example.test\r\n", None),
    ],
)
@pytest.mark.parametrize("when", ["at once", "later", "changed later"])
async def test_mime_on_behalf_that_gets_an_attachment_keeps_it(
    mailbox: Mailbox, header: str, sender: str | None, *, when: str
) -> None:
    mime = f"{header}To: b@b.test\r\n\r\nhi\r\n".encode()
    made = (await post_mime(mailbox.http, "messages", mime)).json()
    path = f"messages/{made['id']}"
    if when == "changed later":
        due = {"id": "SystemTime 0x3FEF", "value": "2099-01-01T00:00:00Z"}
        await mailbox.patch(made["id"], singleValueExtendedProperties=[due])
        assert (await mailbox.http.post(f"{path}/send")).status_code == 202
    answer = await mailbox.http.post(f"{path}/attachments", json=FILE)
    assert answer.status_code == 201, answer.text
    if when == "later":
        await mailbox.patch(made["id"], subject="changed")
    if when != "changed later":
        assert (await mailbox.http.post(f"{path}/send")).status_code == 202
    where = "deferred" if when == "changed later" else "ready"
    (pending,) = (mailbox.root / ".submissions" / where).iterdir()
    made = convert(pending.read_bytes(), now_us=0, hostname="h")
    sent = email.message_from_bytes(read_all(made.content))
    assert sent["sender"] == sender
    assert made.originator == (sender or sent["from"])
    assert len(sent.get_payload()) == 2


def attached(name: str, message: dict) -> dict:
    return {"@odata.type": "#microsoft.graph.itemAttachment", "name": name, "item": message}


async def test_a_message_can_be_attached_to_a_message(mailbox: Mailbox) -> None:
    third = {"@odata.type": "#microsoft.graph.message", "subject": "third"}
    item = {
        "@odata.type": "#microsoft.graph.message",
        "id": "AAMk",
        "subject": "Zweite ✓",
        "from": to("stranger@elsewhere.test")[0],
        "toRecipients": to("alice@example.test"),
        "bccRecipients": to("hidden@example.test"),
        "body": {"contentType": "html", "content": "<p>Maß</p>"},
        "sentDateTime": "2026-11-19T10:00:00Z",
        "internetMessageId": "<second@elsewhere.test>",
        "attachments": [FILE, attached("innermost", third)],
    }
    outer = attached("Zweite", item) | {"@odata.type": "#microsoft.graph.ItemAttachment"}
    made = await mailbox.draft(
        subject="first", toRecipients=to("bob@example.test"), attachments=[outer, FILE]
    )
    assert made["hasAttachments"] is True
    (kept, _) = read_attachments(mailbox.raw())
    assert (kept.item, kept.content_type, kept.name) == (True, "message/rfc822", "Zweite")
    assert mailbox.converted().eight_bit is False
    for change in ({}, {"subject": "changed", "importance": "low"}):
        if change:
            await mailbox.patch(made["id"], **change)
        inner, file = list(mailbox.sent().iter_attachments())
        assert (inner.get_content_type(), inner["content-transfer-encoding"]) == (
            "message/rfc822",
            "7bit",
        )
        assert file.get_payload(decode=True).decode() == "größe"
        second = inner.get_content()
        assert second["subject"] == "Zweite ✓"
        assert second["from"] == "stranger@elsewhere.test"
        assert second["message-id"] == "<second@elsewhere.test>"
        assert second["date"].datetime.isoformat() == "2026-11-19T10:00:00+00:00"
        assert second["bcc"] is None
        assert second.get_body().get_content().strip() == "<p>Maß</p>"
        text, third = list(second.iter_attachments())
        assert text.get_filename() == "Übersicht 2026.txt"
        assert text.get_payload(decode=True).decode() == "größe"
        assert third.get_content()["subject"] == "third"


async def test_an_attached_message_is_ascii_whatever_addresses_it_has(mailbox: Mailbox) -> None:
    """A message/rfc822 part is 7bit or 8bit only, and recipients may not support SMTPUTF8."""
    item = {
        "@odata.type": "#microsoft.graph.message",
        "from": {"emailAddress": {"address": "用户@elsewhere.test", "name": "Li, Ö"}},
        "sender": to("delivery@elsewhere.test")[0],
        "toRecipients": to("bob@bücher.test", "δοκιμή@b.test"),
        "isReadReceiptRequested": True,
        "isDeliveryReceiptRequested": False,
        "body": {"contentType": "text", "content": "x"},
    }
    await mailbox.draft(toRecipients=to("bob@example.test"), attachments=[attached("m", item)])
    made = mailbox.converted()
    assert (read_all(made.content).isascii(), made.smtputf8, made.eight_bit) == (True, False, False)
    (part,) = mailbox.sent().iter_attachments()
    inner = part.get_content()
    assert str(inner["from"]) == '"Li, Ö 用户@elsewhere.test":;'
    assert inner["sender"] == "delivery@elsewhere.test"
    assert [str(one) for one in inner["to"].groups] == [
        "bob@xn--bcher-kva.test",
        '"δοκιμή@b.test":;',
    ]
    assert inner["disposition-notification-to"] == "delivery@elsewhere.test"


async def test_messages_within_messages_have_an_end(mailbox: Mailbox) -> None:
    message: dict = {"subject": "innermost"}
    for _ in range(12):
        message = {"attachments": [attached("m", message)]}
    answer = await mailbox.http.post("messages", json=message)
    assert "at most 10 messages" in refused(answer, 400, "RequestBodyRead")


@each_row(
    "content",
    [
        "A" * ((1 << 20) - 2) + "==" + "QUJD",
        "A" * ((1 << 20) - 1) + "=" + "QUJD" * 3,
        "A" * (1 << 20) + "QUJ",
        "A" * (1 << 20) + "QU=D",
        "=",
    ],
)
async def test_all_of_the_base64_is_checked(mailbox: Mailbox, content: str) -> None:
    answer = await mailbox.http.post(
        "messages", json={"attachments": [FILE | {"contentBytes": content}]}
    )
    told = refused(answer, 400, "RequestBodyRead")
    assert "'Edm.Binary'. attachments[0].contentBytes: found" in told


async def test_base64_may_be_in_lines(mailbox: Mailbox) -> None:
    content = base64.encodebytes(bytes(range(256)) * 9000).decode()
    await mailbox.draft(attachments=[FILE | {"contentBytes": content}])
    (kept,) = read_attachments(mailbox.raw())
    assert base64.b64decode(kept.content) == bytes(range(256)) * 9000
