"""Names of JSON properties match in any case; names that are data do not."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.base.accounts.account import Account
from relay.front_door.graph.action_parameters import parse_send_mail
from relay.front_door.graph.attachment_parser import read_upload
from relay.front_door.graph.json_values import read_json_object
from relay.front_door.graph.message_parser import parse_message
from relay.front_door.http.errors import ApiError
from tests.support.tables import each_row

ALICE = Account("alice@example.test")
TO = [{"emailAddress": {"address": "bob@example.test", "name": "Bob"}}]
INNER = {
    "@odata.type": "#microsoft.graph.message",
    "subject": "inner",
    "sentDateTime": "2026-12-01T08:00:00Z",
}
MESSAGE: dict[str, Any] = {
    "subject": "s",
    "body": {"contentType": "html", "content": "<p>x</p>"},
    "from": {"emailAddress": {"address": "alice@example.test"}},
    **dict.fromkeys(("toRecipients", "ccRecipients", "bccRecipients", "replyTo"), TO),
    "importance": "high",
    "sensitivity": "private",
    "categories": ["Red"],
    "isReadReceiptRequested": True,
    "isDeliveryReceiptRequested": True,
    "isRead": True,
    "inferenceClassification": "other",
    "internetMessageId": "<a@b.test>",
    "flag": {"flagStatus": "flagged", "dueDateTime": None},
    "internetMessageHeaders": [{"name": "X-Case", "value": "Kept"}],
    "singleValueExtendedProperties": [
        {"id": "String {00020329-0000-0000-C000-000000000046} Name Case", "value": "v"}
    ],
    "multiValueExtendedProperties": [
        {"id": "StringArray {00020329-0000-0000-C000-000000000046} Name Many", "value": ["v"]}
    ],
    "attachments": [
        {
            "@odata.type": "#microsoft.graph.fileAttachment",
            "name": "f",
            "contentType": "text/plain",
            "contentBytes": "eA==",
            "isInline": True,
            "contentId": "cid",
            "contentLocation": "l",
        },
        {"@odata.type": "#microsoft.graph.itemAttachment", "name": "i", "item": INNER},
    ],
    **dict.fromkeys(("id", "changeKey", "conversationId", "conversationIndex"), "x"),
    **dict.fromkeys(("parentFolderId", "webLink", "createdDateTime"), "x"),
    **dict.fromkeys(("lastModifiedDateTime", "receivedDateTime"), "x"),
    "hasAttachments": True,
    "isDraft": True,
    "bodyPreview": "x",
    "uniqueBody": None,
    "extensions": [],
}
UPLOAD = {
    "attachmentType": "file",
    "name": "f",
    "size": 5,
    "contentType": "text/plain",
    "isInline": True,
    "contentId": "cid",
}


def respelled(value: Any, spell: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {spell(name): respelled(inner, spell) for name, inner in value.items()}
    return [respelled(one, spell) for one in value] if isinstance(value, list) else value


def decoded(value: object) -> dict[str, Any]:
    return read_json_object(json.dumps(value).encode())


@given(st.randoms())
def test_any_case_is_the_same_message(random: Random) -> None:
    def spell(name: str) -> str:
        return str(random.choice((str.lower, str.upper, str.title, str))(name))

    without_flag = {name: value for name, value in MESSAGE.items() if name != "flag"}
    body = {"message": without_flag, "saveToSentItems": False}
    assert parse_send_mail(decoded(respelled(body, spell)), ALICE) == parse_send_mail(body, ALICE)
    assert parse_message(decoded(respelled(MESSAGE, spell)), ALICE) == parse_message(MESSAGE, ALICE)
    upload = read_upload(respelled(UPLOAD, spell), "attachmentItem")
    assert upload == read_upload(UPLOAD, "attachmentItem")


@each_row(
    "body, where",
    [
        ({"subject": "a", "Subject": "b"}, "Subject"),
        ({"Subject": "a", "subject": "b"}, "subject"),
        (
            {"toRecipients": [{"emailAddress": {"Address": "a@b.c", "address": "d@e.f"}}]},
            "toRecipients[0].emailAddress.address",
        ),
    ],
)
def test_two_names_that_differ_by_their_case_are_refused(body: Any, where: str) -> None:
    with pytest.raises(ApiError, match="each property once") as raised:
        parse_message(decoded(body), ALICE)
    assert raised.value.status == 400
    assert str(raised.value).startswith(where) or where in str(raised.value)


async def test_folders_and_settings(graph, on_disk) -> None:
    folder = await on_disk.http.post("/mailFolders", json={"DisplayName": "Bills"})
    assert (folder.status_code, folder.json()["displayName"]) == (201, "Bills")
    change = {"TimeZone": "UTC", "LANGUAGE": {"Locale": "de-DE"}}
    answer = await graph.http.patch("/v1.0/me/mailboxSettings", json=change)
    assert answer.status_code == 200, answer.text
    assert answer.json()["language"]["locale"] == "de-DE"
