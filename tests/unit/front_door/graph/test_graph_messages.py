"""Drafts and folders: create, show, list, change, send, delete."""

from typing import Any

import pytest

from relay.store.mailbox.types import BeingSentError, NotADraftError
from tests.support.graph_fakes import GraphInMemory, post_mime, refused, to

DRAFT = {
    "subject": "Größe",
    "body": {"contentType": "Text", "content": "line one\r\n  line two"},
    "toRecipients": [{"emailAddress": {"name": "Carol", "address": "carol@a.test"}}],
    "bccRecipients": to("dave@a.test"),
    "internetMessageId": "<d1@a.test>",
}
INLINE = {"name": "a.png", "contentBytes": "aGVsbG8=", "isInline": True}


async def create(
    graph: GraphInMemory, path: str = "/v1.0/me/messages", **more: Any
) -> dict[str, Any]:
    answer = await graph.http.post(path, json=DRAFT | more)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def test_a_draft_shows_all_its_properties(graph: GraphInMemory) -> None:
    shown = await create(graph)
    assert shown.pop("@odata.context").startswith("http://relay.test:8025/v1.0/$metadata#")
    conversation = shown.pop("conversationId")
    now = "2023-11-14T22:13:20Z"
    assert shown == {
        "@odata.etag": 'W/"key1"',
        "id": graph.store.stored["alice@example.test"][0].id,
        "createdDateTime": now,
        "lastModifiedDateTime": now,
        "changeKey": "key1",
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
        "toRecipients": [{"emailAddress": {"name": "Carol", "address": "carol@a.test"}}],
        "ccRecipients": [],
        "bccRecipients": [{"emailAddress": {"name": "dave@a.test", "address": "dave@a.test"}}],
        "replyTo": [],
        "flag": {"flagStatus": "notFlagged"},
    }
    again = (await graph.http.get(f"/v1.0/me/messages/{shown['id']}")).json()
    assert again["conversationId"] == conversation


@pytest.mark.parametrize(("inline", "counted"), [(True, False), (False, True)])
async def test_inline_attachments_do_not_count(
    graph: GraphInMemory, inline: bool, counted: bool
) -> None:
    shown = await create(graph, attachments=[INLINE | {"isInline": inline}])
    assert shown["hasAttachments"] is counted


async def test_a_draft_may_lack_recipients_but_is_not_sent_so(graph: GraphInMemory) -> None:
    shown = await create(graph, toRecipients=[], bccRecipients=None)
    answer = await graph.http.post(f"/v1.0/me/messages/{shown['id']}/send")
    assert refused(answer, 400, "ErrorInvalidRecipients")
    assert not graph.store.submitted


async def test_marks_given_at_creation(graph: GraphInMemory) -> None:
    shown = await create(graph, isRead=False, flag={"flagStatus": "Flagged"})
    assert (shown["isRead"], shown["flag"]) == (False, {"flagStatus": "flagged"})


async def test_a_draft_of_mime(graph: GraphInMemory) -> None:
    content = b"Subject: no recipients yet\r\n\r\n"
    answer = await post_mime(graph.http, "/v1.0/me/messages", content)
    assert (answer.status_code, answer.json()["isDraft"]) == (201, True)


@pytest.mark.parametrize("folder", ["drafts", "Drafts", "archive"])
async def test_a_draft_in_a_folder(graph: GraphInMemory, folder: str) -> None:
    path = f"/v1.0/me/mailFolders/{folder}/messages"
    shown = await create(graph, path)
    assert shown["parentFolderId"] == folder.lower()
    assert (await graph.http.get(f"{path}/{shown['id']}")).status_code == 200
    other = f"/v1.0/me/mailFolders/inbox/messages/{shown['id']}"
    for method in ("GET", "DELETE"):
        assert refused(await graph.http.request(method, other), 404, "ErrorItemNotFound")
    assert (await graph.http.get(f"{path}/{shown['id']}/$value")).content.startswith(b"Subject")


async def test_patch_changes_only_the_given_properties(graph: GraphInMemory) -> None:
    shown = await create(graph)
    change = {"@odata.type": "#microsoft.graph.message", "subject": "new", "isRead": False}
    answer = await graph.http.patch(f"/v1.0/me/messages/{shown['id']}", json=change)
    changed = answer.json()
    assert (changed["subject"], changed["isRead"]) == ("new", False)
    assert changed["body"] == shown["body"]
    assert changed["toRecipients"] == shown["toRecipients"]


@pytest.mark.parametrize(
    ("change", "status", "code", "named"),
    [
        ({"attachments": [INLINE]}, 400, "RequestBodyRead", "attachments"),
        (
            {"internetMessageHeaders": [{"name": "x-a", "value": "b"}]},
            *(400, "RequestBodyRead", "internetMessageHeaders"),
        ),
        ({"toRecipients": to("x")}, 400, "ErrorInvalidRecipients", "toRecipients[0]"),
        ({"isRead": "maybe"}, 400, "RequestBodyRead", "isRead"),
        ({"flag": {"flagStatus": "done"}}, 400, "RequestBodyRead", "flag.flagStatus"),
        ({"ccRecipients": to(*["a@b.test"] * 499)}, 400, "ErrorInvalidRecipients", "501"),
    ],
)
async def test_a_bad_patch_changes_nothing(
    graph: GraphInMemory, change: dict[str, Any], status: int, code: str, named: str
) -> None:
    shown = await create(graph)
    answer = await graph.http.patch(f"/v1.0/me/messages/{shown['id']}", json=change)
    assert named in refused(answer, status, code)
    assert graph.store.written == 1


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BeingSentError("The draft is being sent."), 409, "ErrorIrresolvableConflict"),
        (NotADraftError("It is not a draft."), 400, "ErrorInvalidRequest"),
    ],
)
@pytest.mark.parametrize("method", ["PATCH", "DELETE", "POST"])
async def test_the_store_says_no(
    graph: GraphInMemory, error: Exception, status: int, code: str, method: str
) -> None:
    shown = await create(graph)
    graph.store.refuse = error
    path = f"/v1.0/me/messages/{shown['id']}" + ("/send" if method == "POST" else "")
    body = {"subject": "x"} if method == "PATCH" else None
    answer = await graph.http.request(method, path, json=body)
    assert refused(answer, status, code) == str(error)


async def test_send_and_delete(graph: GraphInMemory) -> None:
    shown = await create(graph)
    path = f"/v1.0/me/messages/{shown['id']}"
    sent = await graph.http.post(f"{path}/microsoft.graph.send", content=b"")
    assert (sent.status_code, sent.content) == (202, b"")
    assert sent.headers["x-relay-message-id"] == shown["id"]
    assert sent.headers["x-relay-internet-message-id"] == "<d1@a.test>"
    deleted = await graph.http.delete(path)
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert refused(await graph.http.get(path), 404, "ErrorItemNotFound")


async def test_another_accounts_message_is_unknown(graph: GraphInMemory) -> None:
    shown = await create(graph)
    headers = {"authorization": "Bearer bob"}
    for method in ("GET", "PATCH", "DELETE"):
        path = f"/v1.0/me/messages/{shown['id']}"
        answer = await graph.http.request(method, path, json={"subject": "x"}, headers=headers)
        assert refused(answer, 404, "ErrorItemNotFound")


async def test_folders(graph: GraphInMemory) -> None:
    page = (await graph.http.get("/v1.0/me/mailFolders?$top=2")).json()
    assert [one["id"] for one in page["value"]] == ["inbox", "drafts"]
    rest = (await graph.http.get(page["@odata.nextLink"])).json()
    assert rest["value"][0]["id"] == "sentitems"
    one = (await graph.http.get("/v1.0/me/mailFolders/SentItems")).json()
    one.pop("@odata.context")
    assert one == {
        "id": "sentitems",
        "displayName": "Sent_Items",
        "parentFolderId": "msgfolderroot",
        "childFolderCount": 0,
        "unreadItemCount": 0,
        "totalItemCount": 0,
        "isHidden": False,
    }


async def test_properties_without_a_value_can_be_selected(graph: GraphInMemory) -> None:
    created = (await graph.http.post("/v1.0/me/messages", json={"subject": "x"})).json()
    query = "$select=subject,webLink,conversationIndex"
    shown = (await graph.http.get(f"/v1.0/me/messages/{created['id']}?{query}")).json()
    assert {name for name in shown if "@" not in name} == {"id", "subject"}
