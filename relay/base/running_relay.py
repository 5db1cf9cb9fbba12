"""Clients of a running relay: the control socket, Graph's sendMail, SMTP. All calls block.

ControlClient speaks HTTP on the Unix socket run/control.sock, whose file mode grants an operator's
rights. Each function sends a message. If a recipient is rejected, the message is sent to none; only
send_content() can continue. The functions raise RejectedError, or its subclasses NotAllowedError
and TryLaterError, with the text of the server or of the fault in the draft, and OSError if nothing
answers.
"""

import base64
import contextlib
import email.policy
import http.client
import mimetypes
import smtplib
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from relay.base.certificates import client_of_pair
from relay.base.message.address import AddressError, ascii_address, parse_mailbox
from relay.base.message.envelope import KEY_PARAMETER
from relay.base.message.extended_properties import DEFERRED_SEND_TIME
from relay.base.socket_address import Address

T = TypeVar("T")
_TIMEOUT_S = 30.0
_TOO_MANY = 429
_ANSWER_BYTES_MAX = 64 * 1024 * 1024
_BLOCK_BYTES = 256 * 1024


class ControlUnavailableError(Exception):
    """No daemon answers on the control socket."""


class ControlForbiddenError(ControlUnavailableError):
    """The control socket does not admit this user."""


class ControlError(Exception):
    """The daemon returned an error: HTTP `status` and the `code` of the error envelope."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class ControlResponse(Generic[T]):
    """The JSON of a response, and its header fields."""

    value: T
    headers: http.client.HTTPMessage

    @property
    def time_us(self) -> int | None:
        """The relay's time, to the second: its clock may be ahead of the machine's."""
        date = self.headers["date"]
        return int(parsedate_to_datetime(date).timestamp()) * 1_000_000 if date else None


class ControlClient:
    """A blocking client of the control socket at `path`; `timeout_s` limits each read and write."""

    sudo_user: ClassVar[str] = ""  # SUDO_USER of a command

    def __init__(self, path: Path, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._path = path
        self._timeout_s = timeout_s

    def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return the JSON object at `/relay/v1` + `path`.

        Raises ControlUnavailableError, ControlForbiddenError, ControlError.
        """
        return self.get_response(path, query, kind=dict[str, Any]).value

    def get_response(
        self, path: str, query: Mapping[str, str] | None = None, *, kind: type[T]
    ) -> ControlResponse[T]:
        """Like get(), with the header fields, for JSON of any `kind`."""
        return self._request("GET", _with(path, query), kind=kind)

    def post(self, path: str, value: Any) -> dict[str, Any]:
        """Post `value` as JSON and return the JSON object of the response. Raises as get() does."""
        body = msgspec.json.encode(value)
        return self._request("POST", path, body, kind=dict[str, Any]).value

    def post_message(self, path: str, query: Mapping[str, str], content: bytes) -> dict[str, Any]:
        """Post a message and return the JSON object of the response. Raises as get() does."""
        return self._request(
            "POST", _with(path, query), content, kind=dict[str, Any], body_type="message/rfc822"
        ).value

    def download(self, path: str) -> Iterator[bytes]:
        """Yield the octets of the response at `/relay/v1` + `path`. Raises as get() does."""
        with self._answer("GET", path) as answer:
            while block := answer.read(_BLOCK_BYTES):
                yield block
            if answer.length:
                raise http.client.IncompleteRead(b"", answer.length)

    def delete(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Delete what is at `/relay/v1` + `path`; return the JSON object. Raises as get() does."""
        return self._request("DELETE", _with(path, query), kind=dict[str, Any]).value

    def ready(self) -> str:
        """Return the text of /readyz. Raises ControlError with it if the relay is not ready."""
        with self._answer("GET", "/readyz", below="") as answer:
            return answer.read(_ANSWER_BYTES_MAX).decode().strip()

    def _request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        kind: type[T],
        body_type: str = "application/json",
    ) -> ControlResponse[T]:
        with self._answer(method, path, body, body_type=body_type) as answer:
            value = msgspec.json.decode(answer.read(_ANSWER_BYTES_MAX), type=kind)
            return ControlResponse(value, answer.headers)

    @contextlib.contextmanager
    def _answer(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        body_type: str = "application/json",
        below: str = "/relay/v1",
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request, and pass its response to the with block.

        Raises the errors of get(), also in place of errors of the block.
        """
        connection = _UnixConnection(self._path, self._timeout_s)
        try:
            # for the log: the kernel says only that the client is root
            user = quote(self.sudo_user, errors="surrogateescape")
            headers = {"content-type": body_type, "x-relay-sudo-user": user}
            connection.request(method, below + path, body, headers)
            answer = connection.getresponse()
            if answer.status >= http.client.BAD_REQUEST:
                raise _control_error(answer.status, answer.read(_ANSWER_BYTES_MAX))
            yield answer
        except FileNotFoundError:
            text = f"no relay is running: there is no {self._path}"
            raise ControlUnavailableError(text) from None
        except ConnectionRefusedError:
            text = f"no relay is running: nothing listens on {self._path}"
            raise ControlUnavailableError(text) from None
        except PermissionError:
            text = f"{self._path}: permission denied; run it as the relay's user or as root"
            raise ControlForbiddenError(text) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            text = f"the relay on {self._path} did not answer: {error or type(error).__name__}"
            raise ControlUnavailableError(text) from None
        finally:
            connection.close()


def _with(path: str, query: Mapping[str, str] | None) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _control_error(status: int, content: bytes) -> ControlError:
    """Return the error of a response in JSON, or in plain text, as that of /readyz."""
    value = msgspec.json.decode(content) if content.startswith(b"{") else {}
    fault = value.get("error", {}) if value else {"message": content.decode().strip()}
    message = str(fault.get("message", "no reason given"))
    return ControlError(status, str(fault.get("code", "")), message)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the Unix socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def path_of(key: str) -> str:
    """Return the URL path of the message named `key`."""
    return "/messages/" + quote(key, safe="")


class RejectedError(Exception):
    """The relay rejected the message, or would."""


class NotAllowedError(RejectedError):
    """The sender or the token is not allowed."""


class TryLaterError(RejectedError):
    """A temporary error."""


class AwayError(TryLaterError):
    """The relay does not accept the message now for all recipients, and accepted no part of it.

    A recipient was refused for now; or the reply was 421, or had a status X.3.Z of the mail system
    (RFC 5321 3.8, RFC 3463 3.4), or there was none: before the content, or with a key.
    """


@dataclass(frozen=True, slots=True)
class DraftToSend:
    """The message to send. Attachments are (name, content); `sender` may be "" for Graph.

    `text` and `html` are alternatives if both are set, which Graph gets as MIME. `send_at` is the
    time at which Graph sends it, RFC 3339, "" for immediately; SMTP and MIME do not support it.
    """

    sender: str
    recipients: tuple[str, ...]
    subject: str
    text: str
    attachments: tuple[tuple[str, bytes], ...] = field(default=())
    html: str = ""
    send_at: str = ""

    @property
    def is_ascii(self) -> bool:
        """Whether all its addresses are ASCII, with A-labels."""
        return "".join(map(ascii_address, (self.sender, *self.recipients))).isascii()

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
        for address in (*self.recipients, *([self.sender] if self.sender else ())):
            try:
                parse_mailbox(address, smtputf8=True)
            except AddressError as error:
                raise RejectedError(f"{address!a} is not an address: {error}") from None


def send_by_graph(
    address: Address,
    draft: DraftToSend,
    *,
    token: str,
    certificates: Sequence[Path] = (),
    mailbox: str = "",
    key: str = "",
) -> str:
    """POST sendMail with `token`; return the Graph id. Raises RejectedError, OSError.

    The message is sent from `mailbox`, or from the mailbox of the token if it is "". With
    `certificates` HTTPS is used, and the server must have one of them. The same message with the
    same `key` is sent once.
    """
    draft.check()
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise RejectedError("token: expected ASCII without spaces")
    place = (address.host, address.port)
    connection = (
        http.client.HTTPSConnection(
            *place, timeout=_TIMEOUT_S, context=client_of_pair(*certificates)
        )
        if certificates
        else http.client.HTTPConnection(*place, timeout=_TIMEOUT_S)
    )
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    if draft.text and draft.html:
        headers["Content-Type"] = "text/plain"  # base64 of MIME
        body = base64.b64encode(_as_mime(draft, ascii_only=draft.is_ascii))
    else:
        body = msgspec.json.encode({"message": _as_graph(draft)})
    if key:
        headers["Idempotency-Key"] = key
    whose = f"users/{quote(mailbox)}" if mailbox else "me"
    try:
        target = f"/v1.0/{whose}/sendMail"
        answer, content = _exchange(connection, "POST", target, headers=headers, body=body)
    except http.client.HTTPException as error:
        raise TryLaterError(f"{address} does not speak HTTP: {error!r}") from error
    if answer.status == http.client.ACCEPTED:
        return answer.headers["x-relay-message-id"] or ""
    text = f"{answer.status}: {_message_of(content)}"
    if answer.status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
        raise NotAllowedError(text)
    if answer.status >= http.client.INTERNAL_SERVER_ERROR or answer.status == _TOO_MANY:
        raise TryLaterError(text)
    raise RejectedError(text)


def _exchange(
    connection: http.client.HTTPConnection,
    method: str,
    target: str,
    *,
    headers: dict[str, str],
    body: bytes | None = None,
) -> tuple[http.client.HTTPResponse, bytes]:
    """Return a response and its content; close the connection."""
    try:
        connection.request(method, target, body, headers)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def read_by_graph(address: Address, graph_id: str, *, token: str) -> bytes:
    """Return the MIME of a message in the mailbox of an account. Raises LookupError, OSError."""
    return _ask_mailbox(address, "GET", f"{quote(graph_id)}/$value", token=token)


def mark_read_by_graph(address: Address, graph_id: str, *, token: str) -> None:
    """Mark a message in the mailbox of an account as read. Raises LookupError, OSError."""
    _ask_mailbox(address, "PATCH", quote(graph_id), token=token, body=b'{"isRead": true}')


def _ask_mailbox(
    address: Address, method: str, path: str, *, token: str, body: bytes | None = None
) -> bytes:
    """Return the response about a message. Raises LookupError, OSError."""
    connection = http.client.HTTPConnection(address.host, address.port, timeout=_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    target = f"/v1.0/me/messages/{path}"
    try:
        answer, content = _exchange(connection, method, target, headers=headers, body=body)
    except http.client.HTTPException as error:
        raise OSError(f"{address} does not speak HTTP: {error!r}") from error
    if answer.status != http.client.OK:
        raise LookupError("the mailbox does not have the message any more")
    return content


def send_by_smtp(address: Address, draft: DraftToSend) -> str:
    """Submit by SMTP; return the queue id. Raises RejectedError, OSError."""
    draft.check()
    data = _as_mime(draft, ascii_only=draft.is_ascii)
    return send_content(address, data, sender=draft.sender, recipients=draft.recipients)


class _LocalSmtp(smtplib.LMTP):
    """An SMTP client of a Unix socket, which smtplib supports only for LMTP."""

    ehlo_msg = "ehlo"


def send_content(
    address: Address,
    data: bytes,
    *,
    sender: str,
    recipients: Sequence[str],
    notify: str = "",
    dsn: Mapping[str, str] | None = None,
    key: str = "",
    refused: list[str] | None = None,
) -> str:
    """Submit a content with CRLF by SMTP; return the queue id. Raises RejectedError, OSError.

    `notify` is the value of NOTIFY, `dsn` has those of RET and ENVID (RFC 3461), "" for none. With
    `refused` it is sent if at least one recipient is accepted; permanent rejections of others are
    added to the list. A relay that offers KEY_PARAMETER gets the `key`; then AwayError also means
    that it may have accepted the message, and takes it with this key once.
    """
    sender, *recipients = map(ascii_address, (sender, *recipients))
    needs_utf8 = not "".join((sender, *recipients)).isascii()
    lost: type[TryLaterError] = AwayError  # what a connection that ends too early means
    try:
        # smtplib asks the name servers for the name of this machine, which may not answer
        here = "localhost" if address.is_loopback else None
        if address.path:
            client: smtplib.SMTP = _LocalSmtp(address.path, local_hostname=here, timeout=_TIMEOUT_S)
        else:
            client = smtplib.SMTP(address.host, address.port, here, timeout=_TIMEOUT_S)
        try:
            client.ehlo_or_helo_if_needed()
            options = [f"size={len(data)}"] if client.has_extn("size") else []
            options += ["smtputf8"] if needs_utf8 else []
            options += ["body=8bitmime"] if needs_utf8 or not data.isascii() else []
            given = dsn if dsn and client.has_extn("dsn") else {}
            options += [f"{name}={value}" for name, value in given.items() if value]
            is_keyed = bool(key) and client.has_extn(KEY_PARAMETER)
            options += [f"{KEY_PARAMETER}={key}"] if is_keyed else []
            _expect(client.mail(sender, options))
            notify_options = [f"notify={notify}"] if notify and client.has_extn("dsn") else []
            for recipient in recipients:
                try:
                    _expect(client.rcpt(recipient, notify_options))
                except TryLaterError as error:  # such as a full mailbox: nobody would try again
                    raise AwayError(str(error)) from None
                except RejectedError as error:
                    if refused is None or len(refused) == len(recipients) - 1:
                        raise
                    refused.append(str(error))
            lost = AwayError if is_keyed else TryLaterError
            reply = client.data(data)
            if reply[0] // 100 == 4 and not is_keyed:
                raise TryLaterError(_text(*reply))
            _expect(reply)
        finally:  # the last reply is valid whatever happens afterwards
            with contextlib.suppress(OSError):
                client.quit()
    except smtplib.SMTPResponseException as error:
        raise _rejection(error.smtp_code, _bytes(error.smtp_error)) from error
    except smtplib.SMTPException as error:
        raise lost(str(error)) from error
    return reply[1].decode("utf-8", "replace").rpartition(" ")[2]


def _as_graph(draft: DraftToSend) -> dict[str, Any]:
    message: dict[str, Any] = {
        "subject": draft.subject,
        "body": {"contentType": "html", "content": draft.html}
        if draft.html
        else {"contentType": "text", "content": draft.text},
        "toRecipients": [{"emailAddress": {"address": address}} for address in draft.recipients],
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
    if draft.send_at:
        due = {"id": DEFERRED_SEND_TIME, "value": draft.send_at}
        message["singleValueExtendedProperties"] = [due]
    return message


def _as_mime(draft: DraftToSend, *, ascii_only: bool) -> bytes:
    """Return the message; without `ascii_only` its header is UTF-8 (RFC 6532)."""
    message = EmailMessage(email.policy.SMTP if ascii_only else email.policy.SMTPUTF8)
    message["From"] = ascii_address(draft.sender)
    message["To"] = ", ".join(map(ascii_address, draft.recipients))
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
    reply = _text(code, text)
    if code // 100 == 5:
        return RejectedError(reply)
    return AwayError(reply) if code == 421 or text.startswith(b"4.3.") else TryLaterError(reply)


def _text(code: int, text: bytes) -> str:
    return f"{code} {text.decode('utf-8', 'replace')}"


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
    """Return the message of an error, with the detail that it may have."""
    try:
        error = msgspec.json.decode(answer)["error"]
        return f"{error['message']} {error.get('innerError', {}).get('detail', '')}".rstrip()
    except (ValueError, KeyError, TypeError, AttributeError):
        return answer[:200].decode("utf-8", "replace")
