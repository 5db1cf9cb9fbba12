"""Requests as the large client libraries send them, octet for octet, without these libraries.

Captured from msgraph-sdk 1.65 for Python, O365 2.1 and @microsoft/microsoft-graph-client 3.0, and from
programs that say graph.microsoft.com: Office365-REST-Python-Client 3.3, django-msgraphbackend 5.2,
Apprise 2.2, mailsuite 2.3 and @pnp/graph 4.21. Numbers are those of the checks.
"""

import base64
import json
from email import message_from_bytes, policy
from typing import Any

import pytest

from tests.clients.conftest import ServedRelay, User
from tests.support.graph_client import Answer
from tests.support.relay_process import until
from tests.support.tables import each_row

KIOTA = {
    "accept": "application/json",
    "content-type": "application/json",
    "User-Agent": "python-httpx/0.28.1 kiota-python/1.16.0",
    "Accept-Encoding": "gzip, deflate",
}
O365 = {"Content-Type": "application/json", "Accept": "*/*", "User-Agent": "python-requests/2.34.2"}
JAVASCRIPT = {
    "Content-Type": "application/json",
    "SdkVersion": "graph-js/3.0.7 (featureUsage=7)",
    "client-request-id": "8e1f5e2c-6a3d-4a34-9d2b-2a8c6c1f5b11",
}
_ODATA = "application/json;odata.metadata=minimal;odata.streaming=False;IEEE754Compatible=False"
OFFICE365 = {"Content-Type": _ODATA, "Accept": _ODATA, "User-Agent": "python-requests/2.34.2"}
PNP = {"Content-Type": "application/json", "SdkVersion": "PnPCoreJS/4.21.0"}


class Client:
    """Sends recorded requests with a user's token."""

    def __init__(self, served: ServedRelay, user: User) -> None:
        self.user = user
        self._relay = served.relay

    def send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        sent = {"authorization": f"Bearer {self.user.name}"} | dict(headers or KIOTA)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        return self._relay.request(method, path, body, sent)

    def draft(self, **properties: Any) -> str:
        """The id of a new draft to the user's sink."""
        to = [{"emailAddress": {"address": self.user.sink}}]
        answer = self.send("POST", "/v1.0/me/messages", {"toRecipients": to, **properties})
        assert answer.status == 201, answer.body
        return str(answer.json()["id"])

    def received(self) -> str:
        """The id of a message that the user has sent to the user's own address."""
        to, body = self.user.address, {"contentType": "text", "content": "text"}
        message = camel_case(to, body=body, subject="Report")["message"]
        body = {"message": message, "saveToSentItems": False}
        assert self.send("POST", "/v1.0/me/sendMail", body).status == 202
        [found] = until("it is received", lambda: self.user.messages("inbox"))
        return str(found["id"])


@pytest.fixture
def client(served: ServedRelay, user: User) -> Client:
    return Client(served, user)


def pascal_case(address: str) -> dict[str, Any]:
    """The body of sendMail as msgraph-sdk for Python sends it."""
    return {
        "Message": {
            "@odata.type": "#microsoft.graph.message",
            "attachments": [
                {
                    "@odata.type": "#microsoft.graph.fileAttachment",
                    "contentType": "text/plain",
                    "isInline": True,
                    "name": "a.txt",
                    "contentBytes": "aGVsbG8=",
                    "contentId": "cid1",
                }
            ],
            "body": {"content": "<b>x</b>", "contentType": "html"},
            "importance": "high",
            "internetMessageHeaders": [{"name": "x-a", "value": "1"}],
            "subject": "H\u00e9",
            "toRecipients": [{"emailAddress": {"address": address}}],
        },
        "SaveToSentItems": False,
    }


def camel_case(address: str, **more: Any) -> dict[str, Any]:
    """The body of sendMail as O365 sends it."""
    return {
        "message": {
            "subject": "H\u00e9",
            "body": {"contentType": "HTML", "content": "<b>x</b>"},
            "importance": "normal",
            "flag": {"flagStatus": "notFlagged"},
            "isReadReceiptRequested": False,
            "isDeliveryReceiptRequested": False,
            "toRecipients": [{"emailAddress": {"address": address}}],
            "ccRecipients": [],
            "bccRecipients": [],
            "replyTo": [],
            **more,
        }
    }


@pytest.mark.parametrize("form", ["msgraph-sdk", "O365", "JavaScript"])
def test_02_send_mail_in_each_spelling(client: Client, form: str) -> None:
    user = client.user
    path, headers = "/v1.0/me/sendMail", KIOTA
    if form == "msgraph-sdk":
        body = pascal_case(user.sink)
    elif form == "O365":
        path, headers = f"/v1.0/users/{user.address}/sendMail", O365
        body = camel_case(user.sink) | {"saveToSentItems": False}
    else:
        headers = JAVASCRIPT
        body = camel_case(user.sink) | {"saveToSentItems": "false"}
    answer = client.send("POST", path, body, headers)
    assert (answer.status, answer.body) == (202, b"")
    if form == "JavaScript":
        assert answer.headers["client-request-id"] == JAVASCRIPT["client-request-id"]
    content = message_from_bytes(user.arrived().content, policy=policy.default)
    assert content["subject"] == "Hé"
    assert user.messages("sentitems") == []


def test_11_upload_as_msgraph_core_does_it(client: Client) -> None:
    """Closed ranges, a first chunk of 5 MiB and then one octet more, and a last range sent again."""
    data = bytes(range(256)) * (45 << 10)
    message, size, chunk = client.draft(subject="upload"), len(data), 5 << 20
    item = {"attachmentType": "file", "name": "b.bin", "size": size}
    path = f"/v1.0/me/messages/{message}/attachments/createUploadSession"
    created = client.send("POST", path, {"AttachmentItem": item}).json()
    assert created["expirationDateTime"].endswith("Z")
    url = "/" + created["uploadUrl"].split("/", 3)[3]

    def put(first: int, last: int, content: bytes) -> Answer:
        headers = {
            "Content-Range": f"bytes {first}-{last}/{size}",
            "Content-Type": "application/octet-stream",
            "Content-Length": str(len(content)),
        }
        return client.send("PUT", url, content, headers)

    first, last = 0, chunk - 1
    while (answer := put(first, last, data[first : last + 1])).status == 200:
        (expected,) = answer.json()["nextExpectedRanges"]
        first, end = map(int, expected.split("-"))
        assert (first, end) == (last + 1, size - 1)
        last = min(first + chunk, size - 1)
    assert answer.status == 201
    location = answer.headers["location"]
    assert put(first, last, b"").status == 201
    assert "/attachments('" in location
    assert client.send("POST", f"/v1.0/me/messages/{message}/send", b"", {}).status == 202
    content = message_from_bytes(client.user.arrived().content, policy=policy.default)
    (attachment,) = content.iter_attachments()
    assert attachment.get_content() == data


@pytest.mark.parametrize("spelling", ["depends_on", "dependsOn"])
def test_22_batch(client: Client, spelling: str) -> None:
    """msgraph-core writes depends_on, and always writes it; its ids are UUIDs."""
    first, second = "7a6c1d9e-0b0f-4f43-9d1a-4b3c2f1e0d9c", "1f0e9d8c-7b6a-4950-8473-62514f3e2d1c"
    headers = {"accept": "application/json", "content-type": "application/json"}

    def batch(url: str) -> dict[str, int]:
        item = {"id": first, "method": "GET", "url": url, spelling: [], "headers": headers}
        body = pascal_case(client.user.sink)
        send = {"id": second, "method": "POST", "url": "/me/sendMail", "body": body}
        requests = [item, send | {spelling: [first], "headers": headers}]
        answer = client.send("POST", "/v1.0/$batch", {"requests": requests})
        assert answer.status == 200, answer.body
        return {one["id"]: one["status"] for one in answer.json()["responses"]}

    assert batch("/me/messages/unknown") == {first: 404, second: 424}
    assert batch("/me") == {first: 200, second: 202}
    client.user.arrived()


@each_row(
    "query",
    [
        "%24top=2&%24select=subject&%24orderby=subject",
        "$top=2&$select=subject&$orderby=subject",
        "$orderby=subject&$select=subject&$top=2",
    ],
)
def test_23_query_options_of_each_client(client: Client, query: str) -> None:
    while len(client.user.messages("drafts")) < 3:
        client.draft(subject=f"page {len(client.user.messages('drafts'))}")
    page = client.send("GET", f"/v1.0/me/messages?{query}").json()
    link = page["@odata.nextLink"]
    assert link.startswith("http://127.0.0.1:")
    rest = client.send("GET", "/" + link.split("/", 3)[3]).json()["value"]
    subjects = [one["subject"] for one in page["value"] + rest]
    assert subjects == ["page 0", "page 1", "page 2"]


def test_23_filter_with_plus_for_space(client: Client) -> None:
    client.send("POST", "/v1.0/me/mailFolders", {"displayName": "Foo"})
    path = f"/v1.0/users/{client.user.address}/mailFolders"
    found = client.send("GET", f"{path}?%24filter=displayName+eq+%27Foo%27&%24top=999", None, O365)
    assert [one["displayName"] for one in found.json()["value"]] == ["Foo"]


@each_row(
    "path",
    [
        "/v1.0//me/sendMail",
        "/V1.0/Me/SendMail",
        "/v1.0/me/microsoft.graph.sendMail",
        "/v1.0/Me/Microsoft.Graph.SENDMAIL",
        "//v1.0///me//sendMail/",
    ],
)
def test_28_spellings_of_paths(client: Client, path: str) -> None:
    to = f"{path.count('/')}{len(path)}-{client.user.sink}"
    assert client.send("POST", path, pascal_case(to)).status == 202
    client.user.arrived(to)


def test_28_draft_in_the_folder_drafts(client: Client) -> None:
    """O365 spells the well-known name with a capital, and sends a draft without a body."""
    user = client.user
    message = camel_case(user.sink)["message"]
    folder = f"/v1.0/users/{user.address}/mailFolders/Drafts/messages"
    draft = client.send("POST", folder, message, O365).json()
    path = f"/v1.0/users/{user.address}/messages/{draft['id']}"
    assert client.send("PATCH", path, {"subject": "second"}, O365).json()["subject"] == "second"
    answer = client.send("POST", f"{path}/send", b"", {"Content-Length": "0"})
    assert (answer.status, answer.body) == (202, b"")
    user.arrived()


def test_26_replies_as_msgraph_sdk_sends_them(client: Client) -> None:
    """Kiota writes parameters in Pascal case, and an empty object for a draft without any."""
    user, original = client.user, client.draft(subject="RE: Plans")
    to = [{"emailAddress": {"address": user.sink}}]
    path = f"/v1.0/me/messages/{original}"
    for action, subject, recipients in (
        ("createReply", "RE: Plans", to),
        ("createReplyAll", "RE: Plans", to),
        ("createForward", "FW: Plans", []),
    ):
        answer = client.send("POST", f"{path}/{action}", {})
        assert answer.status == 201, answer.body
        draft = answer.json()
        found = [one["emailAddress"]["address"] for one in draft["toRecipients"]]
        assert found == [one["emailAddress"]["address"] for one in recipients]
        assert (draft["subject"], draft["isDraft"]) == (subject, True)
        base64.b64decode(draft["conversationIndex"], validate=True)
    message = {
        "@odata.type": "#microsoft.graph.message",
        "ccRecipients": [{"emailAddress": {"address": f"cc-{user.sink}"}}],
    }
    for action, body in (
        ("reply", {"Comment": "c", "Message": message}),
        ("forward", {"Comment": "c", "ToRecipients": to}),
    ):
        answer = client.send("POST", f"{path}/microsoft.graph.{action}", body)
        assert (answer.status, answer.body) == (202, b"")
    user.arrived(f"cc-{user.sink}")
    body = {"Comment": "c", "Message": {"body": {"content": "b", "contentType": "html"}}}
    answer = client.send("POST", f"{path}/reply", body)
    assert (answer.status, answer.code) == (400, "ErrorInvalidRequest")


def test_26_replies_as_o365_sends_them(client: Client) -> None:
    """No body, the time zone by its Windows name, and then the whole body in a PATCH."""
    html = {"contentType": "html", "content": "<p>first</p>"}
    original = client.draft(subject="Plans", body=html)
    path = f"/v1.0/users/{client.user.address}/messages"
    prefer = {"Prefer": 'outlook.timezone="India Standard Time"', "Content-Length": "0"}
    answer = client.send("POST", f"{path}/{original}/createReply", b"", prefer)
    assert answer.status == 201, answer.body
    draft = answer.json()
    before, body, rest = draft["body"]["content"].partition("<body>")
    assert (before.startswith("<html>"), body) == (True, "<body>")
    assert "(UTC+05:30)" in rest
    changed = {"body": {"contentType": "HTML", "content": f"{before}{body}<b>mine</b>{rest}"}}
    assert client.send("PATCH", f"{path}/{draft['id']}", changed, O365).status == 200
    sent = client.send("POST", f"{path}/{draft['id']}/send", b"", {"Content-Length": "0"})
    assert (sent.status, sent.body) == (202, b"")
    content = message_from_bytes(client.user.arrived().content, policy=policy.default)
    assert "<b>mine</b>" in content.get_body(("html",)).get_content()
    assert content["in-reply-to"] == content["references"]


def test_programs_that_send_json(client: Client) -> None:
    """Apprise writes a Boolean as a string; Office365-REST-Python-Client a type for each object."""
    user, file = client.user, {"name": "report.txt", "contentBytes": "aGVsbG8="}
    file["@odata.type"] = "#microsoft.graph.fileAttachment"
    to = {"toRecipients": [{"emailAddress": {"address": user.sink}}]}
    path = f"/v1.0/users/{user.address}"
    sender = {"emailAddress": {"address": user.address, "name": "Apprise"}}
    html = {"contentType": "HTML", "content": "<b>x</b>"}
    body = {
        "message": {"subject": "Report", "body": html, "from": sender, "attachments": [file]} | to
    }
    answer = client.send(
        "POST", f"{path}/sendMail", body | {"saveToSentItems": "false"}, {"User-Agent": "Apprise"}
    )
    assert (answer.status, answer.body) == (202, b"")
    content = message_from_bytes(user.arrived().content, policy=policy.default)
    assert content["from"] == f"Apprise <{user.address}>"
    text = {"content": "x", "contentType": "text", "@odata.type": "#microsoft.graph.ItemBody"}
    draft = {"subject": "s", "body": text, "attachments": [file]} | to
    draft["@odata.type"] = "#microsoft.graph.Message"
    created = client.send("POST", f"{path}/messages", draft, OFFICE365)
    assert created.status == 201, created.body
    found = f"{path}/messages/{created.json()['id']}"
    assert (
        client.send("GET", f"{found}/attachments", None, OFFICE365).json()["value"][0]["size"] == 5
    )
    assert client.send("POST", f"{found}/send", b"", OFFICE365).status == 202
    at_once = {"message": draft, "saveToSentItems": True}
    assert client.send("POST", f"{path}/sendmail", at_once, OFFICE365).status == 202


def test_office365_changes_what_it_has_read(client: Client) -> None:
    """It sends each list that it has read with a change, and a path within the folder."""
    one = client.received()
    path = f"/v1.0/users/{client.user.address}/mailFolders/inbox/messages"
    query = "$filter=subject%20eq%20'Report'%20and%20isRead%20eq%20false&$top=5"
    [message] = client.send("GET", f"{path}?{query}", None, OFFICE365).json()["value"]
    assert message["id"] == one
    lists = ("toRecipients", "ccRecipients", "bccRecipients", "replyTo")
    change = {"categories": ["done"], "isRead": True, **{name: message[name] for name in lists}}
    change["@odata.type"] = "#microsoft.graph.Message"
    changed = client.send("PATCH", f"{path}/{one}", change, OFFICE365)
    assert (changed.status, changed.json()["categories"]) == (200, ["done"])
    moved = client.send("POST", f"{path}/{one}/move", {"DestinationId": "archive"}, OFFICE365)
    assert (moved.status, moved.json()["parentFolderId"]) == (201, "archive")


def test_django_finds_the_user_and_sends_mime(client: Client) -> None:
    address = client.user.address
    query = (
        f"%24filter=proxyAddresses%2Fany%28x%3Ax+eq+%27smtp%3A{address.replace('@', '%40')}%27%29"
    )
    users = client.send("GET", f"/v1.0/users?{query}&%24select=id", None, {"Connection": "close"})
    [found] = users.json()["value"]
    mime = f"Subject: s\nFrom: {address}\nTo: {client.user.sink}\n\nx".encode()
    path, headers = f"/v1.0/users/{found['id']}/sendMail", {"Content-Type": "text/plain"}
    assert client.send("POST", path, base64.b64encode(mime), headers).status == 202
    assert b"Subject: s\r\n" in client.user.arrived().content


def test_mailsuite_files_into_a_child_folder(client: Client) -> None:
    """Its URLs have two slashes after the version."""
    one, mailbox = client.received(), f"/v1.0//users/{client.user.address.replace('@', '%40')}"
    query = "%24filter=displayName%20eq%20%27Inbox%27"
    [folder] = client.send("GET", f"{mailbox}/mailFolders?{query}").json()["value"]
    query = "%24filter=receivedDateTime%20ge%202020-01-01T00%3A00%3A00Z&%24select=id&%24top=100"
    path = f"{mailbox}/mailFolders/{folder['id']}/messages?{query}"
    assert [each["id"] for each in client.send("GET", path).json()["value"]] == [one]
    change = {"@odata.type": "#microsoft.graph.message", "isRead": True}
    assert client.send("PATCH", f"{mailbox}/messages/{one}", change).status == 200
    children = f"{mailbox}/mailFolders/archive/childFolders"
    assert client.send("POST", children, {"displayName": "Reports"}).status == 201
    query = "%24filter=displayName%20eq%20%27Reports%27"
    [child] = client.send("GET", f"{children}?{query}").json()["value"]
    moved = client.send("POST", f"{mailbox}/messages/{one}/move", {"DestinationId": child["id"]})
    assert (moved.status, moved.json()["isRead"]) == (201, True)


def test_pnp_works_through_an_inbox(client: Client) -> None:
    """It writes its queries as forms do, and a Content-Type without content."""
    one, mailbox = client.received(), f"/v1.0/users/{client.user.address}"
    query = "%24filter=isRead+eq+false+and+subject+eq+%27Report%27&%24top=5&%24select=id%2Csubject"
    page = client.send("GET", f"{mailbox}/mailFolders/inbox/messages?{query}", None, PNP).json()
    assert [(each["id"], each["subject"]) for each in page["value"]] == [(one, "Report")]
    path = f"{mailbox}/messages/{one}"
    assert client.send("GET", f"{path}/attachments", None, PNP).json()["value"] == []
    change = {"isRead": True, "categories": ["done"]}
    assert client.send("PATCH", path, change, PNP).status == 200
    assert client.send("POST", f"{path}/reply", {"comment": "Thanks."}, PNP).status == 202
    assert client.send("POST", f"{path}/move", {"destinationId": "archive"}, PNP).status == 201
