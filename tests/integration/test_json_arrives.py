"""A message with every JSON property, sent to a host without ESMTP extensions."""

import base64
import email
import email.policy
from email.headerregistry import Address
from email.message import EmailMessage
from typing import Any

from relay.formats.read_mime import read_mime
from tests.support.graph_client import people
from tests.support.remotes import Remotes, received

NAME = "Отчёт, שלום 👩‍👩‍👧 e\u0301.txt"
INTERNET_HEADERS = "{00020386-0000-0000-C000-000000000046}"


def file(name: str, content: bytes, **more: Any) -> dict[str, Any]:
    coded = base64.b64encode(content).decode()
    kind = "#microsoft.graph.fileAttachment"
    return {"@odata.type": kind, "name": name, "contentBytes": coded, **more}


ITEM = {
    "@odata.type": "#microsoft.graph.itemAttachment",
    "name": "inner",
    "item": {
        "@odata.type": "#microsoft.graph.message",
        "subject": "inner ✓",
        "body": {"contentType": "text", "content": "größe\r\n.\r\nFrom me " + "y" * 2000},
        "bccRecipients": people("hidden@elsewhere.test"),
        "attachments": [file("in.bin", b"\0\r\n.\r\n")],
    },
}
HTML = "<p>.</p>\r\n.\r\nFrom me " + "x" * 2000 + " <img src='cid:pic%40me'>ü</p>"
MESSAGE = {
    "subject": "Betreff ✓ " + "lang " * 60 + "=?utf-8?Q?no?=",
    "body": {"contentType": "html", "content": HTML},
    "toRecipients": [{"emailAddress": {"name": 'Ü, "B"', "address": "x@plain.test"}}],
    "bccRecipients": people("hidden@plain.test"),
    "replyTo": [{"emailAddress": {"name": "日本", "address": "reply@bücher.test"}}],
    "importance": "high",
    "sensitivity": "confidential",
    "categories": ["Rot, grün", "青"],
    "isReadReceiptRequested": True,
    "internetMessageHeaders": [{"name": "x-long", "value": "z" * 3000 + " ü"}],
    "singleValueExtendedProperties": [
        {"id": "String 0x1042", "value": "<first@elsewhere.test>"},
        {"id": f"String {INTERNET_HEADERS} Name List-Id", "value": "<list.example.test>"},
    ],
    "attachments": [
        file(NAME, bytes(range(256))),
        file("pic.png", b"\x89PNG", contentType="image/png", isInline=True, contentId="pic@me"),
        ITEM,
    ],
}


def parsed(content: bytes) -> EmailMessage:
    message = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert not [part.defects for part in message.walk() if part.defects]
    return message


def test_every_json_property_arrives_at_a_host_without_extensions(remotes: Remotes, serve) -> None:
    plain = remotes.start("plain.test", extensions=())
    answer = serve(remotes).graph("POST", "/me/sendMail", {"message": MESSAGE})
    assert answer.status == 202, answer
    content = received(plain, "x@plain.test").content
    assert received(plain, "hidden@plain.test").content.isascii()
    assert content.isascii()
    assert b"hidden@" not in content
    assert max(map(len, content.split(b"\r\n"))) <= 998
    message = parsed(content)
    assert message["subject"] == MESSAGE["subject"]
    assert message["to"].addresses[0] == Address('Ü, "B"', "x", "plain.test")
    assert message["reply-to"].addresses[0] == Address("日本", "reply", "xn--bcher-kva.test")
    assert (message["importance"], message["sensitivity"]) == ("high", "Company-Confidential")
    assert read_mime(content).properties.categories == ("Rot, grün", "青")
    assert message["disposition-notification-to"].endswith("alice@example.test")
    assert message["x-long"] == "z" * 3000 + " ü"
    reported = (message["in-reply-to"], message["list-id"])
    assert reported == ("<first@elsewhere.test>", "<list.example.test>")
    assert body_of(message, "html") == HTML.replace("\r\n", "\n")
    assert "From me xxx" in body_of(message, "plain")
    named, item = message.iter_attachments()
    assert (named.get_filename(), named.get_content()) == (NAME, bytes(range(256)))
    picture = next(one for one in message.walk() if one["content-id"] == "<pic@me>")
    assert (picture.get_content_disposition(), picture.get_content()) == ("inline", b"\x89PNG")
    inner = item.get_content()
    assert (item.get_filename(), inner["subject"], inner["bcc"]) == ("inner", "inner ✓", None)
    assert body_of(inner, "plain") == ITEM["item"]["body"]["content"].replace("\r\n", "\n")
    (binary,) = inner.iter_attachments()
    assert binary.get_content() == b"\0\r\n.\r\n"


def body_of(message: EmailMessage, kind: str) -> str:
    body = message.get_body((kind,))
    assert body is not None
    return str(body.get_content()).replace("\r\n", "\n").rstrip("\n")
