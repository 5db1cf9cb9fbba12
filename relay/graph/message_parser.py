"""Graph's message and action parameters: from JSON to MessageProperties.

On the path: the handlers of sendMail, messages and PATCH hand the decoded body in.
Holds: what comes out is fit for a draft: addresses valid, header text on one line, base64 checked.
Fails: ApiError with the codes of Graph; every one names the JSON path. 501 for what exists in Graph
and cannot be honoured here; annotations and read-only properties are passed over.
Standards: Graph's message resource type; RFC 5322 3.6.4 (Message-ID).
"""

import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from relay.accounts import Account
from relay.graph.extended_properties import MULTIPLE, SINGLE, read_extended
from relay.graph.json_values import (
    a_boolean,
    a_text,
    a_time_us,
    an_array,
    an_object,
    body_text,
    header_text,
    is_annotation,
    missing,
    one_of,
    only_known,
    read_parameters,
    unknown_property,
    unsupported,
    wrong,
)
from relay.graph.recipients import (
    check_own,
    check_recipients_count,
    on_behalf,
    read_originator,
    read_people,
)
from relay.http.errors import ApiError, shown
from relay.mailbox.attachments import ATTACHMENTS_MAX
from relay.message.extended import merged
from relay.message.properties import Attachment, MessageProperties
from relay.mime.draft import write_message
from relay.mime.fields import MESSAGE_ID_CHARACTERS_MAX, is_message_id
from relay.mime.mimeread import AttachmentFacts

_NAME_CHARACTERS = 255
_TYPE_CHARACTERS = 255
_CONTENT_ID_CHARACTERS = 255

_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+"  # noqa: S105 - the grammar's token, not a secret
_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN}(\s*;[\x20-\x7e]*)?")
_CONTENT_ID = re.compile(r"[^\s<>]+")
_WHITE_SPACE = b" \t\r\n"
_CHECKED_AT_ONCE = 1 << 20  # a whole number of groups of four
_OF_ANY = ("name", "contentType", "isInline", "id", "size", "lastModifiedDateTime")
_OF_FILE = ("contentBytes", "contentId", "contentLocation")
_OF_ITEM = ("item",)
_OF_UPLOAD = ("attachmentType", "name", "size", "contentType", "isInline", "contentId")
_UPLOAD_TYPES = ("file", "item", "reference")
_NUMBER = re.compile(r"\d{1,18}", re.ASCII)
_FILE = "microsoft.graph.fileattachment"
_ITEM = "microsoft.graph.itemattachment"


def read_attachments(
    value: object, path: str, *, read_item: Callable[[object, str], bytes]
) -> tuple[Attachment, ...]:
    """Read the array at `path`; `read_item` makes a message of an itemAttachment's item.

    Raises ApiError.
    """
    items = an_array(value, path, most=ATTACHMENTS_MAX)
    return tuple(
        _attachment(item, f"{path}[{index}]", read_item) for index, item in enumerate(items)
    )


def read_attachment(value: object, *, read_item: Callable[[object, str], bytes]) -> Attachment:
    """Read an attachment that is a request's body. Raises ApiError."""
    return _attachment(value, "attachment", read_item)


def read_upload(value: object, path: str) -> AttachmentFacts:
    """Read what createUploadSession says of a file that is to come. Raises ApiError."""
    given = an_object(value, path)
    only_known(given, _OF_UPLOAD, path=path, resource="microsoft.graph.attachmentItem")
    kind = given.get("attachmentType")
    if kind is not None and one_of(kind, f"{path}.attachmentType", _UPLOAD_TYPES) != "file":
        raise unsupported(f"{path}.attachmentType", "only files can be uploaded")
    name = header_text(given.get("name"), f"{path}.name", longest=_NAME_CHARACTERS)
    if not name:
        raise missing(f"{path}.name")
    return AttachmentFacts(
        name=name,
        content_type=_content_type(given, path),
        size=_size(given.get("size"), f"{path}.size"),
        inline=a_boolean(given.get("isInline") or False, f"{path}.isInline"),
        content_id=_content_id(given, path),
    )


def _size(value: object, path: str) -> int:
    """Read an Int64, which OData writes as a string as well."""
    if value is None:
        raise missing(path)
    number = int(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise wrong(path, value, "a number of bytes, at least 1")
    return number


def _attachment(value: object, path: str, read_item: Callable[[object, str], bytes]) -> Attachment:
    given = an_object(value, path)
    kind = a_text(given.get("@odata.type"), f"{path}.@odata.type").lower().removeprefix("#")
    if kind not in ("", _FILE, _ITEM):
        raise unsupported(
            f"{path}.@odata.type",
            "only #microsoft.graph.fileAttachment and #microsoft.graph.itemAttachment can be sent; "
            "put a link into the body",
        )
    is_item = kind == _ITEM
    resource = "microsoft.graph.itemAttachment" if is_item else "microsoft.graph.fileAttachment"
    only_known(
        given, (*_OF_ANY, *(_OF_ITEM if is_item else _OF_FILE)), path=path, resource=resource
    )
    name = header_text(given.get("name"), f"{path}.name", longest=_NAME_CHARACTERS)
    if not name:
        raise missing(f"{path}.name")
    inline = a_boolean(given.get("isInline") or False, f"{path}.isInline")
    if is_item:
        if given.get("item") is None:
            raise missing(f"{path}.item")
        message = read_item(given["item"], f"{path}.item")
        content = binascii.b2a_base64(message, newline=False)
        return Attachment(name, "message/rfc822", content, len(message), inline=inline, item=True)
    content = _content(given, path)
    return Attachment(
        name=name,
        content_type=_content_type(given, path),
        content=content,
        size=len(content) // 4 * 3 - content[-2:].count(b"="),
        inline=inline,
        content_id=_content_id(given, path),
    )


def _content(given: dict[str, Any], path: str) -> bytes:
    """Return the base64 text; what Kiota's TypeScript SDK makes of a Buffer has none at all."""
    path = f"{path}.contentBytes"
    if given.get("contentBytes") is None:
        raise missing(path)
    text = a_text(given["contentBytes"], path)
    try:
        content = text.encode("ascii")
        if any(map(content.__contains__, (b" ", b"\t", b"\r", b"\n"))):
            content = content.translate(None, _WHITE_SPACE)
        _check_base64(content)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise wrong(path, text, f"base64 ({_reason(error)})") from None
    return content


def _check_base64(content: bytes) -> None:
    """Raise binascii.Error unless it is base64, which is decoded piece by piece only."""
    if 0 <= content.find(b"=") < len(content) - 2:
        raise binascii.Error("Excess data after padding")
    for start in range(0, len(content), _CHECKED_AT_ONCE):
        block = memoryview(content)[start : start + _CHECKED_AT_ONCE]
        binascii.a2b_base64(block, strict_mode=True)


def _reason(error: Exception) -> str:
    return "it has other characters" if isinstance(error, UnicodeEncodeError) else str(error)


def _content_type(given: dict[str, Any], path: str) -> str:
    path = f"{path}.contentType"
    text = header_text(given.get("contentType"), path, longest=_TYPE_CHARACTERS).strip()
    if not text:
        return "application/octet-stream"
    if not _TYPE.fullmatch(text) or text.lower().startswith("multipart/"):
        raise wrong(path, text, "a media type of one part, such as application/pdf")
    return text


def _content_id(given: dict[str, Any], path: str) -> str:
    path = f"{path}.contentId"
    text = header_text(given.get("contentId"), path, longest=_CONTENT_ID_CHARACTERS)
    if text.startswith("<") and text.endswith(">"):
        text = text[1:-1]
    if text and not (_CONTENT_ID.fullmatch(text) and text.isascii()):
        raise wrong(path, text, "an id of visible ASCII characters without < and >")
    return text


HEADERS_MAX = 5
ITEMS_DEPTH_MAX = 10
_SUBJECT_CHARACTERS = 2000
_HEADER_NAME_CHARACTERS = 76
_HEADER_CHARACTERS = 8000
_CATEGORIES_MAX = 100
_CATEGORY_CHARACTERS = 255

_HEADER_NAME = re.compile(r"[!-9;-~]+")
_MESSAGE = "microsoft.graph.message"

# What clients send back as they got it. It is the server's to say, so it is passed over.
_READ_ONLY = frozenset(
    {
        "id",
        "changeKey",
        "conversationId",
        "conversationIndex",
        "parentFolderId",
        "webLink",
        "createdDateTime",
        "lastModifiedDateTime",
        "receivedDateTime",
        "sentDateTime",
        "hasAttachments",
        "isDraft",
        "bodyPreview",
        "uniqueBody",
        "inferenceClassification",
    }
)
# What asks for something that is not done here: fine when false, empty or null.
_REFUSED = {
    "extensions": "open extensions are not supported",
}
_CREATE_ONLY = frozenset({"attachments", "internetMessageHeaders"})


@dataclass(frozen=True, slots=True)
class ParsedMessage:
    """What a message's JSON said: `fields` of MessageProperties that were given, and the marks."""

    fields: Mapping[str, Any]
    is_read: bool | None = None
    flagged: bool | None = None

    @property
    def properties(self) -> MessageProperties:
        """The message that these fields make on their own."""
        return MessageProperties(**self.fields)


@dataclass(frozen=True, slots=True)
class SendMail:
    """sendMail's parameters."""

    message: ParsedMessage
    save_to_sent_items: bool


def parse_send_mail(body: Mapping[str, Any], account: Account) -> SendMail:
    """Read sendMail's parameters."""
    given = read_parameters(body, ("message", "savetosentitems"), "microsoft.graph.sendMail")
    if given.get("message") is None:
        raise missing("message")
    save = given.get("savetosentitems")
    parsed = parse_message(given["message"], account, path="message")
    if parsed.flagged:
        raise unsupported("message.flag.flagStatus", "a message that is sent at once has no flag")
    return SendMail(
        message=parsed,
        save_to_sent_items=True if save is None else a_boolean(save, "saveToSentItems"),
    )


def parse_message(
    value: object, account: Account, *, path: str = "", patch: bool = False
) -> ParsedMessage:
    """Read a message; with `patch` only what may be changed afterwards.

    Raises ApiError; 403 ErrorSendAsDenied when it is from somebody else's address.
    """
    given = an_object(value, path or "the request body")
    prefix = f"{path}." if path else ""
    fields = _fields(given, prefix, patch=patch)
    if not patch and "extended" in fields:
        fields["extended"] = merged((), fields["extended"])
    check_recipients_count(MessageProperties(**fields))
    for name in ("from", "sender"):
        check_own(fields.get(_ORIGINATORS[name]), account, path=prefix + name)
    fields |= on_behalf(fields, account)
    is_read = given.get("isRead")
    return ParsedMessage(
        fields=fields,
        is_read=None if is_read is None else a_boolean(is_read, f"{prefix}isRead"),
        flagged=_flagged(given.get("flag"), f"{prefix}flag"),
    )


def _fields(given: Mapping[str, Any], prefix: str, *, patch: bool) -> dict[str, Any]:
    """Return the fields of MessageProperties that a message's JSON gives."""
    fields: dict[str, Any] = {}
    for name, item in given.items():
        where = prefix + name
        if name in _READERS:
            if patch and name in _CREATE_ONLY:
                raise wrong(where, item, "it only when the message is created")
            fields |= _READERS[name](item, where)
        elif name in _REFUSED:
            if an_array(item, where):
                raise unsupported(where, _REFUSED[name])
        elif name not in _ELSEWHERE and name not in _READ_ONLY and not is_annotation(name):
            raise unknown_property(where, _MESSAGE)
    return fields | read_extended(given, prefix)


def read_item(value: object, path: str) -> bytes:
    """Return the message that is attached to another as it will be sent: it is nobody's draft, so
    it may be from anybody, and has its own times.
    """
    if path.count(".item") > ITEMS_DEPTH_MAX:
        raise wrong(path, value, f"at most {ITEMS_DEPTH_MAX} messages within each other")
    given = an_object(value, path)
    kind = a_text(given.get("@odata.type"), f"{path}.@odata.type")
    if kind and kind.lower().removeprefix("#") != _MESSAGE:
        raise unsupported(f"{path}.@odata.type", "only #microsoft.graph.message can be attached")
    fields = _fields(given, f"{path}.", patch=False)
    fields["extended"] = merged((), fields.get("extended", ()))
    sent = given.get("sentDateTime") or given.get("receivedDateTime")
    date_us = 0 if sent is None else a_time_us(sent, f"{path}.sentDateTime")
    return write_message(MessageProperties(**fields), mark="item", date_us=date_us)


def _attachments(value: object, path: str) -> tuple[Attachment, ...]:
    return read_attachments(value, path, read_item=read_item)


def _body(value: object, path: str) -> dict[str, Any]:
    if value is None:
        return {"body_type": "text", "body": ""}
    given = an_object(value, path)
    only_known(given, ("contentType", "content"), path=path, resource="microsoft.graph.itemBody")
    kind = given.get("contentType")
    return {
        "body_type": "text"
        if kind is None
        else one_of(kind, f"{path}.contentType", ("text", "html")),
        "body": body_text(given.get("content"), f"{path}.content"),
    }


def _importance(value: object, path: str) -> str:
    return "normal" if value is None else one_of(value, path, ("low", "normal", "high"))


def _sensitivity(value: object, path: str) -> str:
    kinds = ("normal", "personal", "private", "confidential")
    return "normal" if value is None else one_of(value, path, kinds)


def _flag(value: object, path: str) -> bool:
    return False if value is None else a_boolean(value, path)


def _message_id(value: object, path: str) -> str:
    text = header_text(value, path, longest=MESSAGE_ID_CHARACTERS_MAX).strip(" ")
    if text and not is_message_id(text):
        raise wrong(path, text, "an id such as <unique@example.com>")
    return text


def _headers(value: object, path: str) -> tuple[tuple[str, str], ...]:
    items = an_array(value, path)
    if len(items) > HEADERS_MAX:
        message = (
            f"{path}: found {len(items)} headers; the number of headers must be <= {HEADERS_MAX}."
        )
        raise ApiError(400, "InvalidInternetMessageHeaderCollection", message)
    return tuple(_header(item, f"{path}[{index}]") for index, item in enumerate(items))


def _header(value: object, path: str) -> tuple[str, str]:
    given = an_object(value, path)
    resource = "microsoft.graph.internetMessageHeader"
    only_known(given, ("name", "value"), path=path, resource=resource)
    name = header_text(given.get("name"), f"{path}.name", longest=_HEADER_NAME_CHARACTERS)
    content = header_text(given.get("value"), f"{path}.value", longest=_HEADER_CHARACTERS)
    if not name:
        raise missing(f"{path}.name")
    if not name.lower().startswith("x-") or not _HEADER_NAME.fullmatch(name):
        raise ApiError(
            400,
            "InvalidInternetMessageHeader",
            f"{path}.name: The internet message header name {shown(name)} should start with 'x-' "
            "or 'X-' and have visible ASCII characters only, without a colon.",
        )
    if name.lower().startswith("x-relay-"):
        message = f"{path}.name: headers that start with 'X-Relay-' are this relay's own."
        raise ApiError(400, "InvalidInternetMessageHeader", message)
    return name, content


def _categories(value: object, path: str) -> tuple[str, ...]:
    items = an_array(value, path, most=_CATEGORIES_MAX)
    return tuple(
        header_text(item, f"{path}[{index}]", longest=_CATEGORY_CHARACTERS)
        for index, item in enumerate(items)
    )


def _subject(value: object, path: str) -> str:
    return header_text(value, path, longest=_SUBJECT_CHARACTERS)


def _flagged(value: object, path: str) -> bool | None:
    """Read followupFlag: a Maildir knows flagged and not flagged, and no dates."""
    if value is None:
        return None
    given = an_object(value, path)
    for name, item in given.items():
        if name in ("startDateTime", "dueDateTime", "completedDateTime"):
            if item is not None:
                raise unsupported(f"{path}.{name}", "flags have no dates here")
        elif name != "flagStatus" and not is_annotation(name):
            raise unknown_property(f"{path}.{name}", "microsoft.graph.followupFlag")
    status = given.get("flagStatus")
    if status is None:
        return None
    if one_of(status, f"{path}.flagStatus", ("notflagged", "flagged", "complete")) == "complete":
        raise unsupported(f"{path}.flagStatus", "a flag cannot be complete here; use notFlagged")
    return str(status).lower() == "flagged"


def _as(field: str, read: Callable[[object, str], Any]) -> Callable[[object, str], dict[str, Any]]:
    return lambda value, path: {field: read(value, path)}


_ORIGINATORS = {"from": "from_", "sender": "sender"}
_ELSEWHERE = frozenset({"isRead", "flag", SINGLE, MULTIPLE})
_READERS: Mapping[str, Callable[[object, str], dict[str, Any]]] = {
    "subject": _as("subject", _subject),
    "body": _body,
    "from": _as("from_", read_originator),
    "sender": _as("sender", read_originator),
    "toRecipients": _as("to", read_people),
    "ccRecipients": _as("cc", read_people),
    "bccRecipients": _as("bcc", read_people),
    "replyTo": _as("reply_to", read_people),
    "importance": _as("importance", _importance),
    "sensitivity": _as("sensitivity", _sensitivity),
    "isReadReceiptRequested": _as("read_receipt", _flag),
    "isDeliveryReceiptRequested": _as("delivery_receipt", _flag),
    "internetMessageId": _as("internet_message_id", _message_id),
    "internetMessageHeaders": _as("internet_message_headers", _headers),
    "attachments": _as("attachments", _attachments),
    "categories": _as("categories", _categories),
}
