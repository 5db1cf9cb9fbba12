"""Rejected HTTP requests: status and code, a message that names the field, and no file."""

import base64
import http.client
import json
from pathlib import Path
from typing import Any

from tests.integration.conftest import SharedRelay
from tests.support.graph_client import message
from tests.support.graph_client import message as valid
from tests.support.relay_process import RelayProcess, until
from tests.support.tables import each_row

FILE = {"@odata.type": "#microsoft.graph.fileAttachment", "name": "a.txt"}
TO: dict[str, Any] = {"to": ["c@a.test"]}


def files(relay: RelayProcess) -> set[Path]:
    """Every file of the mail store, once nothing is on its way any more."""
    until("no submission is pending", lambda: not relay.pending_submissions())
    return {path for path in (relay.folder / "mail").rglob("*") if path.is_file()}


@each_row(
    "properties, code, named",
    [
        (valid(), "ErrorInvalidRecipients", "recipient"),
        (valid(to=["c@a.test>\r\nRCPT TO:<x@b.test"]), "", "toRecipients[0]"),
        (valid(**TO, subject="a\r\nBcc: x@b.test"), "", "subject"),
        (valid(**TO, internetMessageHeaders=[{"name": "X-A", "value": "a\nBcc: b@b.test"}]), "", "internetMessageHeaders"),
        (valid(**TO, internetMessageHeaders=[{"name": "X-A: b\r\nX-B", "value": "a"}]), "", "internetMessageHeaders"),
        (valid(**TO, attachments=[FILE | {"contentBytes": "!!!"}]), "", "contentBytes"),
        (valid(**TO, attachments=[FILE | {"contentBytes": "YQ==", "name": "a\r\nX: b"}]), "", "name"),
        (valid(**TO, attachments=[FILE | {"contentBytes": "YQ==", "contentType": "a\r\nX: b"}]), "", "contentType"),
    ],
)  # fmt: skip
def test_an_invalid_message_is_rejected(
    relay: RelayProcess, properties: dict[str, Any], code: str, named: str
) -> None:
    before = files(relay)
    answer = relay.graph("POST", "/me/sendMail", {"message": properties})
    assert answer.status == 400, answer.body
    assert answer.code == code or not code
    assert named.lower() in answer.message.lower()
    assert answer.headers["request-id"]
    assert files(relay) == before


@each_row(
    "body, content_type, status, code",
    [
        (b"{", "application/json", 400, ""),
        (b'{"message": ' + b"[" * 5000, "application/json", 400, ""),
        (b"!!!", "text/plain", 400, "ErrorMimeContentInvalidBase64String"),
        (base64.b64encode(b"Subject: x\r\n\r\nx"), "text/plain", 400, "ErrorInvalidRecipients"),
        (b"{}", "application/xml", 415, ""),
    ],
)
def test_an_invalid_body_is_rejected(
    relay: RelayProcess, body: bytes, content_type: str, status: int, code: str
) -> None:
    before = files(relay)
    headers = {"Content-Type": content_type}
    answer = relay.graph("POST", "/me/sendMail", body, headers=headers)
    assert answer.status == status, answer.body
    assert answer.code == code or not code
    assert answer.message
    assert files(relay) == before


@each_row("authorization", ["", "Bearer wrong", "Basic YWxpY2U6YWxpY2U=", "Bearer "])
def test_an_invalid_token_is_rejected(relay: RelayProcess, authorization: str) -> None:
    body = json.dumps({"message": message(to=["c@a.test"])}).encode()
    headers = {"Content-Type": "application/json"}
    if authorization:
        headers["Authorization"] = authorization
    before = files(relay)
    answer = relay.request("POST", "/v1.0/me/sendMail", body, headers)
    assert (answer.status, answer.code) == (401, "InvalidAuthenticationToken")
    assert "Bearer" in answer.headers["WWW-Authenticate"]
    assert files(relay) == before


def test_a_body_over_the_limit_is_rejected(relay: RelayProcess) -> None:
    before = files(relay)
    connection = http.client.HTTPConnection(*relay.http, timeout=20)
    connection.putrequest("POST", "/v1.0/me/sendMail")
    connection.putheader("Authorization", "Bearer alice")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(36 * 2**20))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())["error"]["code"] == "RequestEntityTooLarge"
    connection.close()
    assert files(relay) == before


def test_the_relay_still_delivers(shared: SharedRelay) -> None:
    identity = shared.relay.send_mail(to=["well@a.test"], subject="well")
    shared.relay.until_final(identity)
    until("no submission is pending", lambda: not shared.relay.pending_submissions())
    assert shared.relay.faults() == []
    assert [one for one in shared.a.envelopes if "x@b.test" in one.addresses] == []
