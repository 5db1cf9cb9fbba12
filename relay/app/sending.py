"""Submit one message from the outside: by SMTP, or by Graph's sendMail.

On the path: in front of step 1, as any client.
Holds: speaks the public interfaces only.
Fails: RefusedError with the server's words; OSError when nobody answers.
Standards: RFC 5321; Graph's sendMail.
"""

import base64
import http.client
import mimetypes
import smtplib
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import msgspec

from relay.settings.tree import Address

_TIMEOUT_S = 30.0


class RefusedError(Exception):
    """The relay said no."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What to send; attachments are names with their bytes."""

    sender: str
    recipients: tuple[str, ...]
    subject: str
    text: str
    attachments: tuple[tuple[str, bytes], ...] = field(default=())


def read_attachments(paths: tuple[Path, ...]) -> tuple[tuple[str, bytes], ...]:
    """Read files. Raises OSError."""
    return tuple((path.name, path.read_bytes()) for path in paths)


def send_by_graph(address: Address, token: str, draft: Draft) -> str:
    """POST /me/sendMail with `token`; return the message's Graph id. Raises RefusedError,
    OSError.
    """
    message: dict[str, Any] = {
        "subject": draft.subject,
        "body": {"contentType": "text", "content": draft.text},
        "toRecipients": [{"emailAddress": {"address": one}} for one in draft.recipients],
        "attachments": [
            {
                "@odata.type": "#microsoft.graph.fileAttachment",
                "name": name,
                "contentType": _type_of(name),
                "contentBytes": base64.b64encode(content).decode(),
            }
            for name, content in draft.attachments
        ],
    }
    if draft.sender:
        message["from"] = {"emailAddress": {"address": draft.sender}}
    connection = http.client.HTTPConnection(address.host, address.port, timeout=_TIMEOUT_S)
    try:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        body = msgspec.json.encode({"message": message})
        connection.request("POST", "/v1.0/me/sendMail", body, headers)
        answer = connection.getresponse()
        told = answer.read()
    except http.client.HTTPException as error:
        raise RefusedError(f"{address} does not speak HTTP: {error}") from error
    finally:
        connection.close()
    if answer.status != http.client.ACCEPTED:
        raise RefusedError(f"{answer.status}: {_message_of(told)}")
    return answer.headers["x-relay-message-id"] or ""


def send_by_smtp(address: Address, draft: Draft) -> str:
    """Submit by SMTP; return the queue id. Raises RefusedError, OSError."""
    message = EmailMessage()
    message["From"] = draft.sender
    message["To"] = ", ".join(draft.recipients)
    message["Subject"] = draft.subject
    message.set_content(draft.text)
    for name, content in draft.attachments:
        kind, _, subtype = _type_of(name).partition("/")
        message.add_attachment(content, maintype=kind, subtype=subtype, filename=name)
    data = message.as_bytes(policy=message.policy.clone(linesep="\r\n"))
    try:
        with smtplib.SMTP(address.host, address.port, timeout=_TIMEOUT_S) as client:
            client.ehlo_or_helo_if_needed()
            _expect(client.mail(draft.sender))
            for recipient in draft.recipients:
                _expect(client.rcpt(recipient))
            reply = client.data(data)
            _expect(reply)
    except smtplib.SMTPException as error:
        raise RefusedError(str(error)) from error
    return reply[1].decode("utf-8", "replace").rpartition(" ")[2]


def _expect(reply: tuple[int, bytes]) -> None:
    code, text = reply
    if code // 100 != 2:
        raise RefusedError(f"{code} {text.decode('utf-8', 'replace')}")


def _type_of(name: str) -> str:
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


def _message_of(answer: bytes) -> str:
    try:
        return str(msgspec.json.decode(answer)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return answer[:200].decode("utf-8", "replace")
