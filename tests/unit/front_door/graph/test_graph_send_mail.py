"""sendMail: what is accepted and what is rejected; a rejected message writes nothing."""

import base64
from typing import Any

from relay.base.crashpoints import CrashPoint
from relay.base.message.header import FIELDS_MAX
from relay.store.mailbox.errors import MailboxFullError, StoreUnavailableError
from tests.support.graph_fakes import GraphInMemory, refused, to
from tests.support.tables import each_row

FILE = {
    "@odata.type": "#microsoft.graph.fileAttachment",
    "name": "Übersicht.txt",
    "contentType": "text/plain",
    "contentBytes": "aGVsbG8=",
}
ITEM = {"@odata.type": "#microsoft.graph.itemAttachment", "name": "m"}


async def test_answers_202_with_ids_and_no_body(graph: GraphInMemory) -> None:
    answer = await graph.send({"subject": "Hé", "toRecipients": to("carol@a.test")})
    pending, sent = graph.store.submitted[0]
    assert (answer.status_code, answer.content) == (202, b"")
    assert answer.headers["x-relay-message-id"] == pending.draft_id
    assert answer.headers["x-relay-submission-id"] == pending.submission_id
    assert answer.headers["x-relay-internet-message-id"] == sent.internet_message_id
    assert sent.internet_message_id.endswith("@relay.example.test>")
    assert graph.crash.points == [CrashPoint.REQUEST_ANSWERED]


PERSON = "message.toRecipients[1].emailAddress"
BAD_MESSAGES: list[tuple[dict[str, Any], int, str, str]] = [
    ({}, 400, "ErrorInvalidRecipients", "no recipients"),
    (
        {"toRecipients": to("a@b.test", "no address")},
        400,
        "ErrorInvalidRecipients",
        f"{PERSON}.address",
    ),
    ({"toRecipients": to("a@b.test", "")}, 400, "ErrorInvalidRecipients", f"{PERSON}.address"),
    (
        {"toRecipients": to("a@b.test", "a@b.test\r\nBcc: x@y.test")},
        400,
        "ErrorInvalidRequest",
        f"{PERSON}.address",
    ),
    ({"toRecipients": [*to("a@b.test"), {}]}, 400, "ErrorInvalidRecipients", PERSON),
    (
        {"toRecipients": [*to("a@b.test"), {"emailAddress": {"address": 7}}]},
        400,
        "RequestBodyRead",
        f"{PERSON}.address",
    ),
    ({"toRecipients": {"emailAddress": {}}}, 400, "RequestBodyRead", "message.toRecipients"),
    (
        {"toRecipients": to(*["a@b.test"] * 300), "ccRecipients": to(*["a@b.test"] * 201)},
        400,
        "ErrorInvalidRecipients",
        "501",
    ),
    (
        {"ccRecipients": [{"emailAddress": {"address": "a@b.test", "name": "x\ny"}}]},
        400,
        "ErrorInvalidRequest",
        "message.ccRecipients[0].emailAddress.name",
    ),
    ({"toRecipients": to(*["a@b.test"] * 501)}, 400, "ErrorInvalidRecipients", "501"),
    ({"toRecipients": [None]}, 400, "RequestBodyRead", "found null"),
    ({"subject": "a\r\nBcc: x@y.test"}, 400, "ErrorInvalidRequest", "message.subject"),
    ({"subject": "a\0"}, 400, "ErrorInvalidRequest", "message.subject"),
    ({"subject": "a\u2028b"}, 400, "ErrorInvalidRequest", "message.subject"),
    ({"subject": 3}, 400, "RequestBodyRead", "message.subject"),
    (
        {"body": {"contentType": "markdown", "content": ""}},
        400,
        "RequestBodyRead",
        "message.body.contentType",
    ),
    ({"body": {"content": "a\0b"}}, 400, "ErrorInvalidRequest", "message.body.content"),
    ({"body": "text"}, 400, "RequestBodyRead", "message.body"),
    ({"importance": "urgent"}, 400, "RequestBodyRead", "message.importance"),
    ({"internetMessageId": "<a b@c>"}, 400, "RequestBodyRead", "message.internetMessageId"),
    (
        {"internetMessageHeaders": [{"name": "Foo", "value": ""}]},
        400,
        "InvalidInternetMessageHeader",
        "'Foo'",
    ),
    (
        {"internetMessageHeaders": [{"name": "x-a:b", "value": ""}]},
        400,
        "InvalidInternetMessageHeader",
        "x-a:b",
    ),
    (
        {"internetMessageHeaders": [{"name": "x-a\n", "value": ""}]},
        400,
        "ErrorInvalidRequest",
        "internetMessageHeaders[0].name",
    ),
    (
        {"internetMessageHeaders": [{"name": "x-a", "value": "b\r\nc"}]},
        400,
        "ErrorInvalidRequest",
        "internetMessageHeaders[0].value",
    ),
    (
        {"internetMessageHeaders": [{"name": "X-Relay-A", "value": ""}]},
        400,
        "InvalidInternetMessageHeader",
        "internetMessageHeaders[0].name",
    ),
    (
        {"internetMessageHeaders": [{"name": f"x-{n}", "value": ""} for n in range(101)]},
        400,
        "ErrorInvalidRequest",
        "at most 100",
    ),
    (
        {"attachments": [FILE | {"contentBytes": "a*b="}]},
        400,
        "RequestBodyRead",
        "message.attachments[0].contentBytes",
    ),
    (
        {"attachments": [FILE | {"contentBytes": "aGVsbG8"}]},
        400,
        "RequestBodyRead",
        "message.attachments[0].contentBytes",
    ),
    (
        {"attachments": [{"@odata.type": FILE["@odata.type"], "name": "a.txt"}]},
        400,
        "ErrorRequiredPropertyMissing",
        "message.attachments[0].contentBytes",
    ),
    (
        {"attachments": [FILE | {"name": None}]},
        400,
        "ErrorRequiredPropertyMissing",
        "message.attachments[0].name",
    ),
    (
        {"attachments": [FILE | {"name": "a\rb"}]},
        400,
        "ErrorInvalidRequest",
        "message.attachments[0].name",
    ),
    (
        {"attachments": [FILE | {"contentType": "text/plain\r\nX: y"}]},
        400,
        "ErrorInvalidRequest",
        "message.attachments[0].contentType",
    ),
    (
        {"attachments": [FILE | {"contentType": "plain"}]},
        400,
        "RequestBodyRead",
        "message.attachments[0].contentType",
    ),
    (
        {"attachments": [FILE | {"contentId": "a b"}]},
        400,
        "RequestBodyRead",
        "message.attachments[0].contentId",
    ),
    ({"attachments": [ITEM]}, 400, "ErrorRequiredPropertyMissing", "message.attachments[0].item"),
    (
        {"attachments": [ITEM | {"item": {"@odata.type": "#microsoft.graph.event"}}]},
        501,
        "NotImplemented",
        "message.attachments[0].item.@odata.type",
    ),
    (
        {"attachments": [ITEM | {"item": {"subject": 1}}]},
        400,
        "RequestBodyRead",
        "message.attachments[0].item.subject",
    ),
    (
        {"attachments": [ITEM | {"item": {"sentDateTime": "x"}}]},
        400,
        "RequestBodyRead",
        "message.attachments[0].item.sentDateTime",
    ),
    (
        {"attachments": [{"@odata.type": "#microsoft.graph.referenceAttachment", "name": "m"}]},
        400,
        "ErrorRequiredPropertyMissing",
        "message.attachments[0].sourceUrl",
    ),
    ({"attachments": [FILE] * 251}, 400, "ErrorInvalidRequest", "message.attachments"),
    ({"isReadReceiptRequested": 1}, 400, "RequestBodyRead", "message.isReadReceiptRequested"),
    (
        {"isDeliveryReceiptRequested": "yes"},
        400,
        "RequestBodyRead",
        "message.isDeliveryReceiptRequested",
    ),
    ({"sensitivity": "secret"}, 400, "RequestBodyRead", "message.sensitivity"),
    (
        {"singleValueExtendedProperties": [{"id": "SystemTime 0x3FEF", "value": "x"}]},
        400,
        "RequestBodyRead",
        "message.singleValueExtendedProperties[0].value",
    ),
    (
        {"singleValueExtendedProperties": [{"id": "String 0x3FEF", "value": "x"}]},
        400,
        "RequestBodyRead",
        "message.singleValueExtendedProperties[0].id",
    ),
    (
        {"singleValueExtendedProperties": [{"value": "x"}]},
        400,
        "ErrorRequiredPropertyMissing",
        "message.singleValueExtendedProperties[0].id",
    ),
    (
        {"singleValueExtendedProperties": [{"id": "String 0x8001"}]},
        400,
        "ErrorRequiredPropertyMissing",
        "message.singleValueExtendedProperties[0].value",
    ),
    (
        {
            "singleValueExtendedProperties": [
                {"id": "String 0x8001", "value": "a"},
                {"id": "string 0x8001", "value": "b"},
            ]
        },
        400,
        "RequestBodyRead",
        "message.singleValueExtendedProperties[1].id",
    ),
    (
        {"singleValueExtendedProperties": [{"id": "String 0x8001", "value": "a"}] * 101},
        400,
        "ErrorInvalidRequest",
        "message.singleValueExtendedProperties",
    ),
    (
        {"singleValueExtendedProperties": [{"id": "String 0x8001", "value": "a" * 40_000}]},
        400,
        "ErrorInvalidRequest",
        "message.singleValueExtendedProperties[0].value",
    ),
    (
        {"singleValueExtendedProperties": [{"id": "String 0x1045", "value": "<a>\r\nBcc: x"}]},
        400,
        "ErrorInvalidRequest",
        "message.singleValueExtendedProperties[0].value",
    ),
    (
        {"singleValueExtendedProperties": [{"id": "Binary 0x71", "value": "AAAA"}]},
        400,
        "RequestBodyRead",
        "message.singleValueExtendedProperties[0].value",
    ),
    (
        {"singleValueExtendedProperties": [{"id": "Integer 0x36", "value": "4"}]},
        400,
        "RequestBodyRead",
        "message.singleValueExtendedProperties[0].value",
    ),
    (
        {"singleValueExtendedProperties": [{"id": "String 0x1042", "value": "no id"}]},
        400,
        "RequestBodyRead",
        "message.singleValueExtendedProperties[0].value",
    ),
    (
        {"multiValueExtendedProperties": [{"id": "String 0x8001", "value": ["a"]}]},
        400,
        "RequestBodyRead",
        "message.multiValueExtendedProperties[0].id",
    ),
    (
        {"multiValueExtendedProperties": [{"id": "StringArray 0x8001", "value": "a"}]},
        400,
        "RequestBodyRead",
        "message.multiValueExtendedProperties[0].value",
    ),
    ({"extensions": [{}]}, 501, "NotImplemented", "message.extensions"),
    ({"flag": {"flagStatus": "flagged"}}, 501, "NotImplemented", "message.flag.flagStatus"),
    ({"subject": "x", "Subject": "x"}, 400, "RequestBodyRead", "message.Subject"),
    ({"from": to("bob@example.test")[0]}, 403, "ErrorSendAsDenied", "from"),
    ({"sender": to("eve@a.test")[0]}, 403, "ErrorSendAsDenied", "sender"),
]


@each_row("message, status, code, named", BAD_MESSAGES)
async def test_a_bad_message_is_refused_by_name(
    graph: GraphInMemory, message: dict[str, Any], status: int, code: str, named: str
) -> None:
    if "toRecipients" not in message and message and "ccRecipients" not in message:
        message = {"toRecipients": to("c@a.test"), **message}
    answer = await graph.send(message)
    assert named in refused(answer, status, code)
    assert graph.store.written == 0


@each_row(
    "body, status, code",
    [
        (b"@@@@", 400, "ErrorMimeContentInvalidBase64String"),
        (b"!!!", 400, "ErrorMimeContentInvalidBase64String"),
        (b"", 400, "ErrorMimeContentInvalid"),
        (base64.b64encode(b"\x00\xff"), 400, "ErrorMimeContentInvalid"),
        (base64.b64encode(b"just text\r\n"), 400, "ErrorMimeContentInvalid"),
        (base64.b64encode(b"Subject: x\r\n\r\n"), 400, "ErrorInvalidRecipients"),
        (base64.b64encode(b"Bcc: a..b@c.test\r\n\r\n"), 400, "ErrorInvalidRecipients"),
        (base64.b64encode(b"To: " + b"a@b.test," * 501 + b"\n\n"), 400, "ErrorInvalidRecipients"),
        (base64.b64encode(b"To: nobody, a@b.test\r\n\r\n"), 400, "ErrorInvalidRecipients"),
        (base64.b64encode(b"To: a@b.test\r\nCc: c@\r\n\r\n"), 400, "ErrorInvalidRecipients"),
        (base64.b64encode(b"To: a@b.test\r\nBcc: \xfc@c.test\n\n"), 400, "ErrorInvalidRecipients"),
        (base64.b64encode(b"From: bob@example.test\nTo: a@b.test\n\n"), 403, "ErrorSendAsDenied"),
        (base64.b64encode(b"Sender: eve@a.test\nTo: a@b.test\n\n"), 403, "ErrorSendAsDenied"),
        (base64.b64encode(b"Resent-From: eve@a.test\nTo: a@b.test\n\n"), 403, "ErrorSendAsDenied"),
        (base64.b64encode(b"Resent-Sender: e@a.test\nTo: a@b.test\n\n"), 403, "ErrorSendAsDenied"),
        (
            base64.b64encode(b"From: alice@example.test, eve@a.test\nTo: a@b.test\n\n"),
            403,
            "ErrorSendAsDenied",
        ),
        (base64.b64encode(b"From: nobody\nTo: a@b.test\n\n"), 400, "ErrorMimeContentInvalid"),
        (
            base64.b64encode(b"To: a@b.test\n" + b"A:\n" * FIELDS_MAX + b"\n"),
            400,
            "ErrorMimeContentInvalid",
        ),
        (
            base64.b64encode(b"A:\r" * FIELDS_MAX + b"To: a@b.test\n\n"),
            400,
            "ErrorMimeContentInvalid",
        ),
    ],
)
async def test_bad_mime_is_refused(
    graph: GraphInMemory, body: bytes, status: int, code: str
) -> None:
    headers = {"content-type": "text/plain"}
    answer = await graph.http.post("/v1.0/me/sendMail", content=body, headers=headers)
    assert refused(answer, status, code)
    assert graph.store.written == 0


async def test_mime_may_have_as_many_header_fields_as_the_limit(graph: GraphInMemory) -> None:
    body = b"A:\n" * (FIELDS_MAX - 2) + b"a:\n b\nTo: a@b.test\n\n" + b"\n" * 10_000
    assert (await graph.send_mime(body)).status_code == 202


@each_row(
    "error, status, code, retry_after",
    [
        (MailboxFullError("The mailbox is full."), 507, "ErrorQuotaExceeded", None),
        (StoreUnavailableError("The disk is full."), 503, "ResourceUnhealthy", "10"),
        (RuntimeError("a secret path"), 500, "InternalServerError", None),
    ],
)
async def test_errors_of_the_store(
    graph: GraphInMemory, error: Exception, status: int, code: str, retry_after: str | None
) -> None:
    graph.store.refuse = error
    answer = await graph.send({"toRecipients": to("c@a.test")})
    message = refused(answer, status, code)
    assert answer.headers.get("retry-after") == retry_after
    assert "secret" not in message
    assert not graph.crash.points
