"""Drafts and folders: create, show, list, change, send, delete."""

import base64
from typing import Any

from tests.support.graph_fakes import WatchedGraph, refused, to

ALICE = {"emailAddress": {"name": "alice@example.test", "address": "alice@example.test"}}
DRAFT = {
    "subject": "Größe",
    "body": {"contentType": "Text", "content": "line one\r\n  line two"},
    "toRecipients": [{"emailAddress": {"name": "Carol", "address": "carol@a.test"}}],
    "bccRecipients": to("dave@a.test"),
    "internetMessageId": "<d1@a.test>",
}


async def create(
    graph: WatchedGraph, path: str = "/v1.0/me/messages", **more: Any
) -> dict[str, Any]:
    answer = await graph.http.post(path, json=DRAFT | more)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def test_a_draft_shows_all_its_properties(graph: WatchedGraph) -> None:
    shown = await create(graph)
    assert shown.pop("@odata.context").startswith("http://relay.test:8025/v1.0/$metadata#")
    assert base64.b64decode(shown.pop("conversationIndex"))
    conversation, key = shown.pop("conversationId"), shown.pop("changeKey")
    now = "2023-11-14T22:13:20Z"
    assert shown == {
        "@odata.etag": f'W/"{key}"',
        "id": shown["id"],
        "createdDateTime": now,
        "lastModifiedDateTime": now,
        "categories": [],
        "receivedDateTime": now,
        "sentDateTime": now,
        "hasAttachments": False,
        "internetMessageId": "<d1@a.test>",
        "subject": "Größe",
        "bodyPreview": "line one line two",
        "importance": "normal",
        "parentFolderId": "drafts",
        "isDeliveryReceiptRequested": False,
        "isReadReceiptRequested": False,
        "isRead": True,
        "isDraft": True,
        "inferenceClassification": "focused",
        "body": {"contentType": "text", "content": "line one\r\n  line two"},
        "from": ALICE,
        "sender": ALICE,
        "toRecipients": [{"emailAddress": {"name": "Carol", "address": "carol@a.test"}}],
        "ccRecipients": [],
        "bccRecipients": [{"emailAddress": {"name": "dave@a.test", "address": "dave@a.test"}}],
        "replyTo": [],
        "flag": {"flagStatus": "notFlagged"},
    }
    again = (await graph.http.get(f"/v1.0/me/messages/{shown['id']}")).json()
    assert again["conversationId"] == conversation


async def test_a_draft_may_lack_recipients_but_is_not_sent_so(graph: WatchedGraph) -> None:
    shown = await create(graph, toRecipients=[], bccRecipients=None)
    answer = await graph.http.post(f"/v1.0/me/messages/{shown['id']}/send")
    assert refused(answer, 400, "ErrorInvalidRecipients")
    assert not graph.store.submitted
