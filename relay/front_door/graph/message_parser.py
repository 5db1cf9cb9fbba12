"""From the JSON of message and attachment resources to MessageProperties and Attachment.

The result is fit for a draft: addresses are valid, header text is on one line, base64 is checked.
Every ApiError names the JSON path. Annotations and read-only properties are ignored; a part of
Graph that is not supported is a 501.

A referenceAttachment is a link to a file elsewhere. In MIME it is a list of URIs (RFC 2483 5) with
one URI. What a list cannot hold is in its comments, whose first line marks it, so that other lists
of URIs stay files. Any mail program shows the file, and its text is readable.
"""

import binascii
import re
from binascii import b2a_base64
from collections.abc import Mapping
from functools import partial
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from relay.base.accounts.account import Account
from relay.base.message.extended_properties import FLAG_STATUS, FLAG_STATUSES, merged
from relay.base.message.properties import Attachment, EmailAddress, MessageProperties
from relay.formats.draft import AttachmentFacts, write_message
from relay.formats.read_header import DATE_US_MIN
from relay.formats.write_header import MESSAGE_ID_CHARACTERS_MAX, is_message_id
from relay.front_door.graph import errors
from relay.front_door.graph.extended_properties import MULTIPLE, SINGLE, read_extended
from relay.front_door.graph.follow_up_flags import read_flag
from relay.front_door.graph.json_values import (
    Parameters,
    Reader,
    invalid_value,
    missing_property,
    one_of,
    read_array,
    read_body,
    read_body_text,
    read_boolean,
    read_header_text,
    read_object,
    read_parameters,
    read_recipient,
    read_recipients,
    read_string,
    read_time_us,
    unsupported,
)
from relay.front_door.http.errors import quoted
from relay.store.mailbox.attachments import ATTACHMENTS_MAX

REFERENCE_TYPE = "text/uri-list"
REFERENCE_BYTES_MAX = 32 * 1024  # a longer list is a file
_PROVIDERS = ("other", "oneDriveBusiness", "oneDriveConsumer", "dropbox")
_PERMISSIONS = (
    *("other", "view", "edit", "anonymousView", "anonymousEdit"),
    *("organizationView", "organizationEdit"),
)
_MARK = "# referenceAttachment"
_COMMENT = re.compile(r"# (\w+): (\S+)")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}:[!-~]{1,4000}")
_NAME_CHARACTERS = 255
_TYPE_CHARACTERS = 255
_CONTENT_ID_CHARACTERS = 255

_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+"  # noqa: S105 - the grammar's token, not a secret
_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN}(\s*;[\x20-\x7e]*)?")
_CONTENT_ID = re.compile(r"[^\s<>]+")
_WHITE_SPACE = b" \t\r\n"
_BASE64_BLOCK_BYTES = 1 << 20  # a multiple of four
_UPLOAD_TYPES = ("file", "item", "reference")
_ITEM = "microsoft.graph.itemattachment"
_REFERENCE = "microsoft.graph.referenceattachment"
_ATTACHMENT_KINDS = {
    "microsoft.graph.fileattachment": "microsoft.graph.fileAttachment",
    _ITEM: "microsoft.graph.itemAttachment",
    _REFERENCE: "microsoft.graph.referenceAttachment",
}

HEADERS_MAX = 100
ITEMS_DEPTH_MAX = 10
COMMENT_CHARACTERS_MAX = 1024 * 1024
_SUBJECT_CHARACTERS = 2000
_HEADER_NAME_CHARACTERS = 76
_HEADER_CHARACTERS = 8000
_CATEGORIES_MAX = 100
_CATEGORY_CHARACTERS = 255

_HEADER_NAME = re.compile(r"[!-9;-~]+")
_MESSAGE = "microsoft.graph.message"

_CLASSIFICATION = "inferenceClassification"
_NOT_FLAGGED = "notFlagged"
_CREATE_ONLY = frozenset({"attachments", "internetMessageHeaders"})


class Reference(Struct, frozen=True):
    """The link; `provider` is of _PROVIDERS, `permission` of _PERMISSIONS. "" is not given."""

    url: str
    provider: str = "other"
    permission: str = "other"
    is_folder: bool = False
    preview_url: str = ""
    thumbnail_url: str = ""


def read_reference_attachment(resource: Mapping[str, Any], name: str, path: str) -> Attachment:
    """Return the attachment that holds a link. Raises ApiError 400."""
    if resource.get("sourceUrl") is None:
        raise missing_property(f"{path}.sourceUrl")
    content = _write_reference(
        Reference(
            url=_uri(resource, "sourceUrl", path),
            provider=_choice(resource, "providerType", path, choices=_PROVIDERS),
            permission=_choice(resource, "permission", path, choices=_PERMISSIONS),
            is_folder=read_boolean(resource.get("isFolder") or False, f"{path}.isFolder"),
            preview_url=_uri(resource, "previewUrl", path),
            thumbnail_url=_uri(resource, "thumbnailUrl", path),
        )
    )
    return Attachment(name, REFERENCE_TYPE, b2a_base64(content, newline=False), len(content))


def reference_json(reference: Reference) -> dict[str, Any]:
    """Return the properties that only a referenceAttachment has."""
    return {
        "sourceUrl": reference.url,
        "providerType": reference.provider,
        "permission": reference.permission,
        "isFolder": reference.is_folder,
        "previewUrl": reference.preview_url or None,
        "thumbnailUrl": reference.thumbnail_url or None,
    }


def _uri(resource: Mapping[str, Any], name: str, path: str) -> str:
    text = read_string(resource.get(name), f"{path}.{name}")
    if resource.get(name) is not None and not _is_uri(text):
        expected = "a URL such as https://example.com/file, in ASCII and without spaces"
        raise invalid_value(f"{path}.{name}", text, expected)
    return text


def _choice(resource: Mapping[str, Any], name: str, path: str, *, choices: tuple[str, ...]) -> str:
    if resource.get(name) is None:
        return "other"
    return one_of(resource[name], f"{path}.{name}", choices)


# -- in MIME


def _is_uri(text: str) -> bool:
    """Return whether a text is a URI: a scheme, and visible ASCII characters."""
    return _URI.fullmatch(text) is not None


def _write_reference(reference: Reference) -> bytes:
    """Return the list of URIs."""
    comments = {
        "providerType": reference.provider,
        "permission": reference.permission,
        "isFolder": "true" if reference.is_folder else "",
        "previewUrl": reference.preview_url,
        "thumbnailUrl": reference.thumbnail_url,
    }
    lines = [_MARK, *(f"# {name}: {value}" for name, value in comments.items() if value)]
    return "".join(f"{line}\r\n" for line in (*lines, reference.url)).encode("ascii")


def read_reference(content: bytes) -> Reference | None:
    """Return the link in a list of URIs that _write_reference() made, else None."""
    lines = content.decode("ascii", "replace").splitlines()
    if len(content) > REFERENCE_BYTES_MAX or lines[:1] != [_MARK]:
        return None
    comments = {match[1]: match[2] for line in lines if (match := _COMMENT.fullmatch(line))}
    urls = [line for line in lines if line and not line.startswith("#")]
    if len(urls) != 1 or not _is_uri(urls[0]):
        return None
    provider, permission = comments.get("providerType", ""), comments.get("permission", "")
    return Reference(
        url=urls[0],
        provider=provider if provider in _PROVIDERS else "other",
        permission=permission if permission in _PERMISSIONS else "other",
        is_folder=comments.get("isFolder") == "true",
        preview_url=comments.get("previewUrl", ""),
        thumbnail_url=comments.get("thumbnailUrl", ""),
    )


class ParsedMessage(Struct, frozen=True):
    """A parsed message: the given fields of MessageProperties and of FollowUpFlag, and what is not
    in a message's content.
    """

    fields: Mapping[str, Any]
    flag: Mapping[str, Any] = {}
    is_read: bool | None = None
    is_other: bool | None = None

    @property
    def properties(self) -> MessageProperties:
        """A message of only these fields."""
        return MessageProperties(**self.fields)


def parse_send_mail(body: Mapping[str, Any], account: Account) -> tuple[MessageProperties, bool]:
    """Read sendMail's parameters: the message, and whether it is saved to Sent Items."""
    parameters = read_parameters(body, _OF_SEND_MAIL, "sendMail", needed=("message",))
    parsed = parse_message(parameters["message"], account, path="message")
    if parsed.flag.get("status", _NOT_FLAGGED) != _NOT_FLAGGED:
        raise unsupported("message.flag.flagStatus", "sendMail does not support flags")
    return parsed.properties, parameters.get("savetosentitems") is not False


class AnswerParameters(Struct, frozen=True):
    """The parameters of an action that replies or forwards. `has_body`: the message has one, which
    replaces the comment and the quote.
    """

    message: ParsedMessage
    comment: str
    has_body: bool


def parse_answer(
    body: Mapping[str, Any], account: Account, *, action: str, is_forward: bool
) -> AnswerParameters:
    """Read the parameters of reply, forward and the like; all are optional."""
    known = _OF_FORWARD if is_forward else _OF_REPLY
    parameters = read_parameters(body, known, action)
    comment = parameters.get("comment") or ""
    if len(comment) > COMMENT_CHARACTERS_MAX:
        expected = f"expected at most {COMMENT_CHARACTERS_MAX}; use message.body"
        raise errors.INVALID_REQUEST(f"comment: found {len(comment)} characters, {expected}.")
    fields = parameters.get("message") or {}
    fields = {name: value for name, value in fields.items() if name != "body" or value is not None}
    has_body = "body" in fields
    if comment and has_body:
        raise errors.INVALID_REQUEST("comment and message.body: found both.")
    parsed = parse_message(fields, account, path="message")
    to = parameters.get("torecipients")
    if to and parsed.fields.get("to"):
        raise errors.INVALID_REQUEST("toRecipients and message.toRecipients: found both.")
    if to:
        parsed = replace(parsed, fields={**parsed.fields, "to": to})
    return AnswerParameters(parsed, comment, has_body)


def draft_only(resource: Mapping[str, Any]) -> list[str]:
    """Return the given properties that may change only while a message is a draft."""
    return [name for name in resource if name in _READERS and name not in _OF_ANY_MESSAGE]


def comparable(resource: Mapping[str, Any]) -> list[str]:
    """Return the given properties whose values a message shows as they are written.

    isRead is none of them: that it is set has an effect on receipts.
    """
    return [name for name in resource if name in _COMPARABLE]


def parse_message(
    resource: Mapping[str, Any], account: Account, *, path: str = "", patch: bool = False
) -> ParsedMessage:
    """Read a message; with `patch` only properties that PATCH may change.

    Raises ApiError. Anyone may be in from and sender: the right is checked when it is sent.
    """
    prefix = f"{path}." if path else ""
    fields = _fields(resource, prefix, patch=patch)
    resource = resource if path else _with_flag(resource, fields)
    if not patch and "extended" in fields:
        fields["extended"] = merged((), fields["extended"])
    fields |= _sender_on_behalf(fields, account)
    flag, is_read = resource.get("flag"), resource.get("isRead")
    kind = resource.get(_CLASSIFICATION)
    return ParsedMessage(
        fields=fields,
        is_read=None if is_read is None else read_boolean(is_read, f"{prefix}isRead"),
        flag={} if flag is None else read_flag(flag, f"{prefix}flag", is_new=not patch),
        is_other=None
        if kind is None
        else one_of(kind, prefix + _CLASSIFICATION, ("focused", "other")) == "other",
    )


def _with_flag(resource: Mapping[str, Any], fields: dict[str, Any]) -> Mapping[str, Any]:
    """Return a message whose flag is that of the extended property, which is taken out."""
    extended = fields.get("extended", ())
    for at, current in enumerate(extended):
        if current.id == FLAG_STATUS:
            status = FLAG_STATUSES.get("".join(current.values), "notFlagged")
            fields["extended"] = (*extended[:at], replace(current, values=()), *extended[at + 1 :])
            flag = read_object(resource.get("flag") or {}, "flag")
            return {**resource, "flag": {**flag, "flagStatus": status}}
    return resource


def _sender_on_behalf(fields: Mapping[str, Any], account: Account) -> dict[str, Any]:
    """Return the `sender` field if only `from` is given: the account if `from` is another address
    that it may use (send on behalf), else None.

    If `sender` is given as well, the message is sent as that address, not on behalf.
    """
    author = fields.get("from_")
    if author is None or fields.get("sender") is not None:
        return {}
    is_other = not account.owns(author.address) and account.may_send_as(author.address)
    return {"sender": EmailAddress(account.address) if is_other else None}


def _fields(resource: Mapping[str, Any], prefix: str, *, patch: bool) -> dict[str, Any]:
    """Return the fields of MessageProperties in a message's JSON."""
    kind = read_string(resource.get("@odata.type"), f"{prefix}@odata.type")
    if kind and kind.lower().removeprefix("#") != _MESSAGE:
        raise unsupported(f"{prefix}@odata.type", "expected #microsoft.graph.message")
    fields: dict[str, Any] = {}
    for name, item in resource.items():
        where = prefix + name
        if name in _READERS:
            if patch and name in _CREATE_ONLY:
                raise invalid_value(where, item, "it only when the message is created")
            field, read = _READERS[name]
            fields[field] = getattr(_NO_PROPERTIES, field) if item is None else read(item, where)
        elif name == "extensions" and read_array(item, where):
            raise unsupported(where, "open extensions are not supported")
    if "body" in fields:
        fields["body_type"], fields["body"] = fields["body"] or ("text", "")
    return fields | read_extended(resource, prefix) if _EXTENDED & resource.keys() else fields


def read_item(value: object, path: str) -> bytes:
    """Return the MIME of an itemAttachment's message. It may have any author, and its own dates."""
    if path.count(".item") > ITEMS_DEPTH_MAX:
        raise invalid_value(path, value, f"at most {ITEMS_DEPTH_MAX} messages within each other")
    resource = read_object(value, path)
    fields = _fields(resource, f"{path}.", patch=False)
    fields["extended"] = merged((), fields.get("extended", ()))
    sent = resource.get("sentDateTime") or resource.get("receivedDateTime")
    sent_us = None if sent is None else read_time_us(sent, f"{path}.sentDateTime")
    date_us = sent_us if sent_us is None or sent_us >= DATE_US_MIN else None
    return write_message(MessageProperties(**fields), mark="item", date_us=date_us)


def _message_id(value: object, path: str) -> str:
    text = read_header_text(value, path, longest=MESSAGE_ID_CHARACTERS_MAX).strip(" ")
    if text and not is_message_id(text):
        raise invalid_value(path, text, "an id such as <unique@example.com>")
    return text


def _headers(value: object, path: str) -> tuple[tuple[str, str], ...]:
    items = read_array(value, path, most=HEADERS_MAX)
    return tuple(_header(item, f"{path}[{index}]") for index, item in enumerate(items))


def _header(value: object, path: str) -> tuple[str, str]:
    header = read_object(value, path)
    name = read_header_text(header.get("name"), f"{path}.name", longest=_HEADER_NAME_CHARACTERS)
    content = read_header_text(header.get("value"), f"{path}.value", longest=_HEADER_CHARACTERS)
    if not name:
        raise missing_property(f"{path}.name")
    if not name.lower().startswith("x-") or not _HEADER_NAME.fullmatch(name):
        expected = "x- and visible ASCII characters without a colon"
        detail = f"{path}.name: found {quoted(name)}, expected {expected}."
        raise errors.HEADER_INVALID(detail, quoted(name))
    if name.lower().startswith("x-relay-"):
        text = f"{path}.name: headers that start with 'X-Relay-' are this relay's own."
        raise errors.HEADER_RESERVED(text)
    return name, content


def _categories(value: object, path: str) -> tuple[str, ...]:
    items = read_array(value, path, most=_CATEGORIES_MAX)
    names = (read_category(item, f"{path}[{index}]") for index, item in enumerate(items))
    return tuple(name for name in names if name)


def read_category(value: object, path: str) -> str:
    """Read the name of a category, without blanks at its ends: Keywords cannot have them."""
    return read_header_text(value, path, longest=_CATEGORY_CHARACTERS).strip()


# -- attachments


def _attachments(value: object, path: str) -> tuple[Attachment, ...]:
    items = read_array(value, path, most=ATTACHMENTS_MAX)
    return tuple(_attachment(item, f"{path}[{index}]") for index, item in enumerate(items))


def read_attachment(value: object) -> Attachment:
    """Read an attachment that is the body of a request. Raises ApiError."""
    return _attachment(value, "attachment")


def read_upload(value: object, path: str) -> AttachmentFacts:
    """Read the attachmentItem of createUploadSession. Raises ApiError."""
    resource = read_object(value, path)
    kind = resource.get("attachmentType")
    if kind is not None and one_of(kind, f"{path}.attachmentType", _UPLOAD_TYPES) != "file":
        raise unsupported(f"{path}.attachmentType", "only files can be uploaded")
    name = read_header_text(resource.get("name"), f"{path}.name", longest=_NAME_CHARACTERS)
    if not name:
        raise missing_property(f"{path}.name")
    return AttachmentFacts(
        name=name,
        content_type=_content_type(resource, path),
        size=_size(resource.get("size"), f"{path}.size"),
        inline=read_boolean(resource.get("isInline") or False, f"{path}.isInline"),
        content_id=_content_id(resource, path),
    )


def _size(value: object, path: str) -> int:
    if value is None:
        raise missing_property(path)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise invalid_value(path, value, "a number of bytes, at least 1", kind="Int64")
    return value


def _attachment(value: object, path: str) -> Attachment:
    resource = read_object(value, path)
    kind = read_string(resource.get("@odata.type"), f"{path}.@odata.type").lower().removeprefix("#")
    if kind not in ("", *_ATTACHMENT_KINDS):
        expected = ", ".join(f"#{type_name}" for type_name in _ATTACHMENT_KINDS.values())
        raise invalid_value(f"{path}.@odata.type", resource["@odata.type"], f"one of {expected}")
    name = read_header_text(resource.get("name"), f"{path}.name", longest=_NAME_CHARACTERS)
    if not name:
        raise missing_property(f"{path}.name")
    inline = read_boolean(resource.get("isInline") or False, f"{path}.isInline")
    if kind == _REFERENCE:
        return read_reference_attachment(resource, name, path)
    if kind == _ITEM:
        if resource.get("item") is None:
            raise missing_property(f"{path}.item")
        message = read_item(resource["item"], f"{path}.item")
        content = binascii.b2a_base64(message, newline=False)
        return Attachment(name, "message/rfc822", content, len(message), inline=inline, item=True)
    content = _content(resource, path)
    return Attachment(
        name=name,
        content_type=_content_type(resource, path),
        content=content,
        size=len(content) // 4 * 3 - content[-2:].count(b"="),
        inline=inline,
        content_id=_content_id(resource, path),
    )


def _content(resource: dict[str, Any], path: str) -> bytes:
    """Return contentBytes in base64. Kiota's TypeScript SDK omits it if it is given a Buffer."""
    path = f"{path}.contentBytes"
    if resource.get("contentBytes") is None:
        raise missing_property(path)
    text = read_string(resource["contentBytes"], path)
    try:
        content = text.encode("ascii")
        if any(map(content.__contains__, (b" ", b"\t", b"\r", b"\n"))):
            content = content.translate(None, _WHITE_SPACE)
        _check_base64(content)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise invalid_value(path, text, f"base64 ({_reason(error)})", kind="Binary") from None
    return content


def _check_base64(content: bytes) -> None:
    """Raise binascii.Error unless the content is base64; decode only a block at a time."""
    if 0 <= content.find(b"=") < len(content) - 2:
        raise binascii.Error("Excess data after padding")
    for start in range(0, len(content), _BASE64_BLOCK_BYTES):
        block = memoryview(content)[start : start + _BASE64_BLOCK_BYTES]
        binascii.a2b_base64(block, strict_mode=True)


def _reason(error: Exception) -> str:
    return "it has other characters" if isinstance(error, UnicodeEncodeError) else str(error)


def _content_type(resource: dict[str, Any], path: str) -> str:
    path = f"{path}.contentType"
    text = read_header_text(resource.get("contentType"), path, longest=_TYPE_CHARACTERS).strip()
    if not text:
        return "application/octet-stream"
    if not _TYPE.fullmatch(text) or text.lower().startswith("multipart/"):
        raise invalid_value(path, text, "a media type of one part, such as application/pdf")
    return text


def _content_id(resource: dict[str, Any], path: str) -> str:
    path = f"{path}.contentId"
    text = read_header_text(resource.get("contentId"), path, longest=_CONTENT_ID_CHARACTERS)
    if text.startswith("<") and text.endswith(">"):
        text = text[1:-1]
    if text and not (_CONTENT_ID.fullmatch(text) and text.isascii()):
        raise invalid_value(path, text, "an id of visible ASCII characters without < and >")
    return text


# -- the table of properties


# What may change of any message; the rest only while it is a draft.
_OF_ANY_MESSAGE = frozenset(
    (
        *("isRead", "flag", "categories", "importance", _CLASSIFICATION, SINGLE, MULTIPLE),
        *("isReadReceiptRequested", "isDeliveryReceiptRequested"),
    )
)
# The field of MessageProperties, and how it is read; null is the field's default.
_READERS: Mapping[str, tuple[str, Reader]] = {
    "subject": ("subject", partial(read_header_text, longest=_SUBJECT_CHARACTERS)),
    "body": ("body", read_body),  # and its type
    "from": ("from_", read_recipient),
    "sender": ("sender", read_recipient),
    "toRecipients": ("to", read_recipients),
    "ccRecipients": ("cc", read_recipients),
    "bccRecipients": ("bcc", read_recipients),
    "replyTo": ("reply_to", read_recipients),
    "importance": ("importance", partial(one_of, choices=("low", "normal", "high"))),
    "sensitivity": (
        "sensitivity",
        partial(one_of, choices=("normal", "personal", "private", "confidential")),
    ),
    "isReadReceiptRequested": ("read_receipt", read_boolean),
    "isDeliveryReceiptRequested": ("delivery_receipt", read_boolean),
    "internetMessageId": ("internet_message_id", _message_id),
    "internetMessageHeaders": ("internet_message_headers", _headers),
    "attachments": ("attachments", _attachments),
    "categories": ("categories", _categories),
}
_NO_PROPERTIES = MessageProperties()
_EXTENDED = frozenset((SINGLE, MULTIPLE))
_OF_SEND_MAIL: Parameters = {
    "message": ("message", read_object),
    "savetosentitems": ("saveToSentItems", read_boolean),
}
_OF_REPLY: Parameters = {
    "comment": ("comment", read_body_text),
    "message": ("message", read_object),
}
_OF_FORWARD: Parameters = {**_OF_REPLY, "torecipients": ("toRecipients", read_recipients)}
_COMPARABLE = frozenset((*_READERS, "flag", _CLASSIFICATION)) - {"attachments"}
