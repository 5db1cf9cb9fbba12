"""sendMail: what is accepted and what is rejected; a rejected message writes nothing."""

from typing import Any

from relay.base.crashpoints import CrashPoint
from relay.base.message.header import FIELDS_MAX
from relay.store.mailbox.errors import MailboxFullError, StoreUnavailableError
from tests.support.graph_fakes import WatchedGraph, refused, to
from tests.support.tables import each_row

FILE = {
    "@odata.type": "#microsoft.graph.fileAttachment",
    "name": "Übersicht.txt",
    "contentType": "text/plain",
    "contentBytes": "aGVsbG8=",
}
ITEM = {"@odata.type": "#microsoft.graph.itemAttachment", "name": "m"}
LINK = {"@odata.type": "#microsoft.graph.referenceAttachment", "sourceUrl": "https://a.test/"}


async def test_answers_202_with_ids_and_no_body(graph: WatchedGraph) -> None:
    answer = await graph.send({"subject": "Hé", "toRecipients": to("carol@a.test")})
    pending, sent = graph.store.submitted[0]
    assert (answer.status_code, answer.content) == (202, b"")
    assert answer.headers["x-relay-message-id"] == pending.draft_id
    assert answer.headers["x-relay-submission-id"] == pending.submission_id
    assert answer.headers["x-relay-internet-message-id"] == sent.internet_message_id
    assert sent.internet_message_id.endswith("@relay.example.test>")
    assert graph.crash.points == [CrashPoint.REQUEST_ANSWERED]


async def test_line_breaks_in_a_subject_become_one_blank(graph: WatchedGraph) -> None:
    body = {"subject": "H\r\n\té\nBcc: x@y.test", "toRecipients": to("c@a.test")}
    assert (await graph.send(body | file(contentId="a b"))).status_code == 202
    sent = graph.store.submitted[0][1]
    assert (sent.subject, sent.attachments[0].content_id) == ("H é Bcc: x@y.test", "a b")


async def test_mime_may_begin_with_empty_lines(graph: WatchedGraph) -> None:
    assert (await graph.send_mime(b"\r\n\nTo: a@b.test\r\n\r\nx")).status_code == 202
    assert (await graph.send_mime(b"\r\nhello\r\n")).status_code == 400


PERSON = "message.toRecipients[1].emailAddress"
ATTACHED = "message.attachments[0]"
EXTENDED = "message.singleValueExtendedProperties[0]"


def file(**changes: object) -> dict[str, Any]:
    return {"attachments": [FILE | changes]}


def item(**fields: object) -> dict[str, Any]:
    return {"attachments": [ITEM | {"item": fields}]}


def header(name: str, value: str = "") -> dict[str, Any]:
    return {"internetMessageHeaders": [{"name": name, "value": value}]}


def extended(**fields: object) -> dict[str, Any]:
    return {"singleValueExtendedProperties": [fields]}


# by status and code: the message, and what the refusal names
BAD_MESSAGES: dict[tuple[int, str], list[tuple[dict[str, Any], str]]] = {
    (400, "ErrorInvalidRecipients"): [
        ({"toRecipients": to("a@b.test", "")}, f"{PERSON}.address"),
        ({"toRecipients": [*to("a@b.test"), {}]}, PERSON),
        ({"toRecipients": to(*["a@b.test"] * 300), "ccRecipients": to(*["a@b.test"] * 201)}, "501"),
    ],
    (400, "ErrorInvalidRequest"): [
        ({"toRecipients": to("a@b.test", "a@b.test\r\nBcc: x@y.test")}, f"{PERSON}.address"),
        (
            {"ccRecipients": [{"emailAddress": {"address": "a@b.test", "name": "x\ny"}}]},
            "message.ccRecipients[0].emailAddress.name",
        ),
        ({"subject": "a\x0bBcc: x@y.test"}, "message.subject"),
        ({"subject": "a\u2028b"}, "message.subject"),
        (header("x-a\n"), "internetMessageHeaders[0].name"),
        (header("x-a", "b\r\nc"), "internetMessageHeaders[0].value"),
        (
            {"internetMessageHeaders": [{"name": f"x-{n}", "value": ""} for n in range(101)]},
            "at most 100",
        ),
        (file(contentType="text/plain\r\nX: y"), f"{ATTACHED}.contentType"),
        ({"attachments": [FILE] * 251}, "message.attachments"),
        (
            {"singleValueExtendedProperties": [{"id": "String 0x8001", "value": "a"}] * 101},
            "message.singleValueExtendedProperties",
        ),
        (extended(id="String 0x8001", value="a" * 40_000), f"{EXTENDED}.value"),
        (extended(id="String 0x1045", value="<a>\r\nBcc: x"), f"{EXTENDED}.value"),
    ],
    (400, "RequestBodyRead"): [
        (
            {"toRecipients": [*to("a@b.test"), {"emailAddress": {"address": 7}}]},
            f"{PERSON}.address",
        ),
        ({"toRecipients": {"emailAddress": {}}}, "message.toRecipients"),
        ({"internetMessageId": "<a b@c>"}, "message.internetMessageId"),
        (file(contentBytes="aGVsbG8"), f"{ATTACHED}.contentBytes"),
        (file(contentType="plain"), f"{ATTACHED}.contentType"),
        (file(contentId="a<b"), f"{ATTACHED}.contentId"),
        (item(subject=1), f"{ATTACHED}.item.subject"),
        (item(sentDateTime="x"), f"{ATTACHED}.item.sentDateTime"),
        ({"sensitivity": "secret"}, "message.sensitivity"),
        (extended(id="String 0x3FEF", value="x"), f"{EXTENDED}.id"),
        (
            {
                "singleValueExtendedProperties": [
                    {"id": "String 0x8001", "value": "a"},
                    {"id": "string 0x8001", "value": "b"},
                ]
            },
            "message.singleValueExtendedProperties[1].id",
        ),
        (extended(id="Binary 0x71", value="AAAA"), f"{EXTENDED}.value"),
        (extended(id="Integer 0x36", value="4"), f"{EXTENDED}.value"),
        (extended(id="String 0x1042", value="no id"), f"{EXTENDED}.value"),
        (
            {"multiValueExtendedProperties": [{"id": "StringArray 0x8001", "value": "a"}]},
            "message.multiValueExtendedProperties[0].value",
        ),
        ({"subject": "x", "Subject": "x"}, "message.Subject"),
    ],
    (400, "InvalidInternetMessageHeader"): [
        (header("Foo"), "'Foo'"),
        (header("x-a:b"), "x-a:b"),
        (header("X-Relay-A"), "internetMessageHeaders[0].name"),
    ],
    (400, "ErrorRequiredPropertyMissing"): [
        ({"attachments": [ITEM]}, f"{ATTACHED}.item"),
        (extended(value="x"), f"{EXTENDED}.id"),
        (extended(id="String 0x8001"), f"{EXTENDED}.value"),
    ],
    (501, "NotImplemented"): [
        (item(**{"@odata.type": "#microsoft.graph.event"}), f"{ATTACHED}.item.@odata.type"),
        ({"attachments": [LINK]}, f"{ATTACHED}.@odata.type"),
        ({"extensions": [{}]}, "message.extensions"),
        ({"flag": {"flagStatus": "flagged"}}, "message.flag.flagStatus"),
    ],
    (403, "ErrorSendAsDenied"): [
        ({"from": to("bob@example.test")[0]}, "from"),
        ({"sender": to("eve@a.test")[0]}, "sender"),
    ],
}


@each_row(
    "message, status, code, named",
    [
        (message, status, code, named)
        for (status, code), rows in BAD_MESSAGES.items()
        for message, named in rows
    ],
)
async def test_a_bad_message_is_refused_by_name(
    graph: WatchedGraph, message: dict[str, Any], status: int, code: str, named: str
) -> None:
    if "toRecipients" not in message and "ccRecipients" not in message:
        message = {"toRecipients": to("c@a.test"), **message}
    answer = await graph.send(message)
    assert named in refused(answer, status, code)
    assert graph.store.written == 0


AUTHORS = b"From: alice@example.test, eve@a.test\nTo: a@b.test\n\n"


@each_row(
    "content, status, code",
    [
        (b"just text\r\n", 400, "ErrorMimeContentInvalid"),
        (b"Subject: x\r\n\r\n", 400, "ErrorInvalidRecipients"),
        (b"To: " + b"a@b.test," * 501 + b"\n\n", 400, "ErrorInvalidRecipients"),
        (b"To: a@b.test\r\nBcc: \xfc@c.test\n\n", 400, "ErrorInvalidRecipients"),
        (b"From: bob@example.test\nTo: a@b.test\n\n", 403, "ErrorSendAsDenied"),
        (b"Sender: eve@a.test\nTo: a@b.test\n\n", 403, "ErrorSendAsDenied"),
        (b"Resent-From: eve@a.test\nTo: a@b.test\n\n", 403, "ErrorSendAsDenied"),
        (AUTHORS, 403, "ErrorSendAsDenied"),
        (b"From: nobody\nTo: a@b.test\n\n", 400, "ErrorMimeContentInvalid"),
        (b"To: a@b.test\n" + b"A:\n" * FIELDS_MAX + b"\n", 400, "ErrorMimeContentInvalid"),
    ],
)
async def test_bad_mime_is_refused(
    graph: WatchedGraph, content: bytes, status: int, code: str
) -> None:
    assert refused(await graph.send_mime(content), status, code)
    assert graph.store.written == 0


async def test_mime_may_have_as_many_header_fields_as_the_limit(graph: WatchedGraph) -> None:
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
    graph: WatchedGraph, error: Exception, status: int, code: str, retry_after: str | None
) -> None:
    graph.store.refuse = error
    answer = await graph.send({"toRecipients": to("c@a.test")})
    message = refused(answer, status, code)
    assert answer.headers.get("retry-after") == retry_after
    assert "secret" not in message
    assert not graph.crash.points
