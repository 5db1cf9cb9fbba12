"""Submit one message as a client: by SMTP, or by Graph's sendMail.

A message that is rejected for one recipient is sent to none. Raises RejectedError with the text of
the server or of the fault in the draft (NotAllowedError, TryLaterError for these causes), and
OSError if nothing answers.
"""

import base64
import contextlib
import email.policy
import http.client
import mimetypes
import smtplib
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from relay.certificates import client_of_pair
from relay.message.address import AddressError, parse_mailbox
from relay.settings.tree import Address

_TIMEOUT_S = 30.0


class RejectedError(Exception):
    """The relay rejected the message, or would."""


class NotAllowedError(RejectedError):
    """The sender or the token is not allowed."""


class TryLaterError(RejectedError):
    """A temporary error."""


@dataclass(frozen=True, slots=True)
class DraftToSend:
    """The message to send. Attachments are (name, content); `sender` may be "" for Graph.

    With `html` only, that is the body; with both, they are alternatives, sent by Graph as MIME.
    """

    sender: str
    recipients: tuple[str, ...]
    subject: str
    text: str
    attachments: tuple[tuple[str, bytes], ...] = field(default=())
    html: str = ""

    @property
    def is_ascii(self) -> bool:
        """Whether all its addresses are ASCII."""
        return "".join((self.sender, *self.recipients)).isascii()

    def check(self) -> None:
        """Raise RejectedError for values that a message cannot contain."""
        for name, text in (("subject", self.subject), ("body", self.text), ("html", self.html)):
            if not _is_unicode(text):
                raise RejectedError(f"{name}: expected text in UTF-8")
        if "\n" in self.subject or "\r" in self.subject or "\0" in self.subject:
            raise RejectedError("subject: a line break or NUL is not allowed there")
        for name, _ in self.attachments:
            if not name.isprintable():
                raise RejectedError(f"attachment {name!a}: expected a name that can be shown")
        for one in (*self.recipients, *([self.sender] if self.sender else ())):
            try:
                parse_mailbox(one, smtputf8=True)
            except AddressError as error:
                raise RejectedError(f"{one!a} is not an address: {error}") from None


def send_by_graph(
    address: Address,
    draft: DraftToSend,
    *,
    token: str,
    certificate: Path | None = None,
    mailbox: str = "",
    key: str = "",
) -> str:
    """POST sendMail with `token`, from its own mailbox or `mailbox`; return the Graph id.

    With `certificate`, by HTTPS to the server that has it. The same message with the same `key` is
    sent once. Raises RejectedError, OSError.
    """
    draft.check()
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise RejectedError("token: expected ASCII without spaces")
    place = (address.host, address.port)
    connection = (
        http.client.HTTPConnection(*place, timeout=_TIMEOUT_S)
        if certificate is None
        else http.client.HTTPSConnection(
            *place, timeout=_TIMEOUT_S, context=client_of_pair(certificate)
        )
    )
    try:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        if draft.text and draft.html:
            headers["Content-Type"] = "text/plain"  # base64 of MIME
            body = base64.b64encode(_as_mime(draft, ascii_only=draft.is_ascii))
        else:
            body = msgspec.json.encode({"message": _as_graph(draft)})
        if key:
            headers["Idempotency-Key"] = key
        whose = f"users/{quote(mailbox)}" if mailbox else "me"
        connection.request("POST", f"/v1.0/{whose}/sendMail", body, headers)
        answer = connection.getresponse()
        body = answer.read()
    except http.client.HTTPException as error:
        raise TryLaterError(f"{address} does not speak HTTP: {error!r}") from error
    finally:
        connection.close()
    if answer.status == http.client.ACCEPTED:
        return answer.headers["x-relay-message-id"] or ""
    text = f"{answer.status}: {_message_of(body)}"
    if answer.status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
        raise NotAllowedError(text)
    if answer.status >= http.client.INTERNAL_SERVER_ERROR or answer.status == _TOO_MANY:
        raise TryLaterError(text)
    raise RejectedError(text)


def send_by_smtp(address: Address, draft: DraftToSend) -> str:
    """Submit by SMTP; return the queue id. Raises RejectedError, OSError."""
    draft.check()
    data = _as_mime(draft, ascii_only=draft.is_ascii)
    options = [f"size={len(data)}"] + ([] if draft.is_ascii else ["smtputf8", "body=8bitmime"])
    try:
        client = smtplib.SMTP(address.host, address.port, timeout=_TIMEOUT_S)
        try:
            client.ehlo_or_helo_if_needed()
            _expect(client.mail(draft.sender, options))
            for recipient in draft.recipients:
                _expect(client.rcpt(recipient))
            reply = client.data(data)
            _expect(reply)
        finally:  # the last reply is valid whatever happens afterwards
            with contextlib.suppress(OSError):
                client.quit()
    except smtplib.SMTPResponseException as error:
        raise _rejection(error.smtp_code, _bytes(error.smtp_error)) from error
    except smtplib.SMTPException as error:
        raise TryLaterError(str(error)) from error
    return reply[1].decode("utf-8", "replace").rpartition(" ")[2]


def _as_graph(draft: DraftToSend) -> dict[str, Any]:
    message: dict[str, Any] = {
        "subject": draft.subject,
        "body": {"contentType": "html", "content": draft.html}
        if draft.html
        else {"contentType": "text", "content": draft.text},
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
    return message


def _as_mime(draft: DraftToSend, *, ascii_only: bool) -> bytes:
    """Return the message; without `ascii_only` its header is UTF-8 (RFC 6532)."""
    message = EmailMessage(email.policy.SMTP if ascii_only else email.policy.SMTPUTF8)
    message["From"] = draft.sender
    message["To"] = ", ".join(draft.recipients)
    message["Subject"] = draft.subject
    if draft.text or not draft.html:
        message.set_content(draft.text)
    if draft.html:
        message.add_alternative(draft.html, subtype="html")
    for name, content in draft.attachments:
        kind, _, subtype = _type_of(name).partition("/")
        message.add_attachment(content, maintype=kind, subtype=subtype, filename=name)
    return message.as_bytes()


def _expect(reply: tuple[int, bytes]) -> None:
    if reply[0] // 100 != 2:
        raise _rejection(*reply)


def _rejection(code: int, text: bytes) -> RejectedError:
    reply = f"{code} {text.decode('utf-8', 'replace')}"
    return RejectedError(reply) if code // 100 == 5 else TryLaterError(reply)


def _bytes(text: bytes | str) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # command line arguments that are not UTF-8
        return False
    return True


def _type_of(name: str) -> str:
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


def _message_of(answer: bytes) -> str:
    try:
        return str(msgspec.json.decode(answer)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return answer[:200].decode("utf-8", "replace")


_TOO_MANY = 429
