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
    attachment = {
        "@odata.type": "#microsoft.graph.fileAttachment",
        "contentType": "text/plain",
        "isInline": True,
        "name": "a.txt",
        "contentBytes": "aGVsbG8=",
        "contentId": "cid1",
    }
    message = {
        "@odata.type": "#microsoft.graph.message",
        "attachments": [attachment],
        "body": {"content": "<b>x</b>", "contentType": "html"},
        "importance": "high",
        "internetMessageHeaders": [{"name": "x-a", "value": "1"}],
        "subject": "H\u00e9",
        "toRecipients": [{"emailAddress": {"address": address}}],
    }
    return {"Message": message, "SaveToSentItems": False}


def camel_case(address: str, **more: Any) -> dict[str, Any]:
    """The body of sendMail as O365 sends it."""
    message = {
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
    return {"message": message}


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
