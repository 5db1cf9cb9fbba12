"""From the JSON of message resources to MessageProperties.

The result is fit for a draft: addresses are valid, and header text is on one line. Every ApiError
names the JSON path. Annotations and read-only properties are ignored; a part of Graph that is not
supported is a 501.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from relay.base.accounts.account import Account
from relay.base.message.extended_properties import FLAG_STATUS, FLAG_STATUSES, merged
from relay.base.message.properties import Attachment, EmailAddress, MessageProperties
from relay.base.phrases import words_in
from relay.formats.draft import write_message
from relay.formats.read_header import DATE_US_MIN
from relay.formats.write_header import MESSAGE_ID_CHARACTERS_MAX, is_message_id
from relay.front_door.graph import errors, json_values
from relay.front_door.graph.attachment_parser import read_attachment
from relay.front_door.graph.extended_properties import MULTIPLE, SINGLE, read_extended
from relay.front_door.graph.follow_up_flags import read_flag
from relay.front_door.http.errors import quoted
from relay.store.mailbox.attachments import ATTACHMENTS_MAX

HEADERS_MAX = 100
ITEMS_DEPTH_MAX = 10
_SUBJECT_CHARACTERS = 2000
_LINE_BREAKS = re.compile(r"[\r\n\t]+")
_HEADER_NAME_CHARACTERS = 76
_HEADER_CHARACTERS = 8000
_CATEGORIES_MAX = 100
_CATEGORY_CHARACTERS = 255
_HEADER_NAME = re.compile(r"[!-9;-~]+")
_MESSAGE = "microsoft.graph.message"
_CLASSIFICATION = "inferenceClassification"


class ParsedMessage(Struct, frozen=True):
    """A parsed message: the fields of MessageProperties and FollowUpFlag that the JSON has, and
    state that is not in a message's content.
    """

    fields: Mapping[str, Any]
    flag: Mapping[str, Any] = {}
    is_read: bool | None = None
    is_other: bool | None = None

    @property
    def properties(self) -> MessageProperties:
        """A message with only these fields."""
        return MessageProperties(**self.fields)


def draft_only(resource: Mapping[str, Any]) -> list[str]:
    """Return the names of properties that may change only while a message is a draft."""
    return [name for name in resource if name in _READERS and name not in _OF_ANY_MESSAGE]


def comparable(resource: Mapping[str, Any]) -> list[str]:
    """Return the names of properties that are shown exactly as they were written.

    isRead is not among them: setting it again affects read receipts.
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
        is_read=None if is_read is None else json_values.read_boolean(is_read, f"{prefix}isRead"),
        flag={} if flag is None else read_flag(flag, f"{prefix}flag", is_new=not patch),
        is_other=None
        if kind is None
        else json_values.one_of(kind, prefix + _CLASSIFICATION, ("focused", "other")) == "other",
    )


def _with_flag(resource: Mapping[str, Any], fields: dict[str, Any]) -> Mapping[str, Any]:
    """Move the flag status from an extended property to the message's `flag`; return the
    message.
    """
    extended = fields.get("extended", ())
    for at, current in enumerate(extended):
        if current.id == FLAG_STATUS:
            status = FLAG_STATUSES.get("".join(current.values), "notFlagged")
            fields["extended"] = (*extended[:at], replace(current, values=()), *extended[at + 1 :])
            flag = json_values.read_object(resource.get("flag") or {}, "flag")
            return {**resource, "flag": {**flag, "flagStatus": status}}
    return resource


def _sender_on_behalf(fields: Mapping[str, Any], account: Account) -> dict[str, Any]:
    """Return the `sender` field if the JSON has only `from`.

    It is the account if `from` is another address that the account may use (send on behalf), else
    None.

    If `sender` is given as well, the message is sent as that address, not on behalf.
    """
    author = fields.get("from_")
    if author is None or fields.get("sender") is not None:
        return {}
    is_other = not account.owns(author.address) and account.may_send_as(author.address)
    return {"sender": EmailAddress(account.address) if is_other else None}


def _fields(resource: Mapping[str, Any], prefix: str, *, patch: bool) -> dict[str, Any]:
    """Return the fields of MessageProperties in a message's JSON."""
    kind = json_values.read_string(resource.get("@odata.type"), f"{prefix}@odata.type")
    if kind and kind.lower().removeprefix("#") != _MESSAGE:
        raise json_values.unsupported(f"{prefix}@odata.type", "expected #microsoft.graph.message")
    fields: dict[str, Any] = {}
    for name, item in resource.items():
        where = prefix + name
        if name in _READERS:
            if patch and name in {"attachments", "internetMessageHeaders"}:
                raise json_values.invalid_value(where, item, "it only when the message is created")
            field, read = _READERS[name]
            fields[field] = getattr(_NO_PROPERTIES, field) if item is None else read(item, where)
        elif name == "extensions" and json_values.read_array(item, where):
            raise json_values.unsupported(where, "open extensions are not supported")
    if "body" in fields:
        fields["body_type"], fields["body"] = fields["body"] or ("text", "")
    return fields | read_extended(resource, prefix) if _EXTENDED & resource.keys() else fields


def read_item(value: object, path: str) -> bytes:
    """Return the MIME of an itemAttachment's message. It may have any author, and its own dates."""
    if path.count(".item") > ITEMS_DEPTH_MAX:
        raise json_values.invalid_value(
            path, value, f"at most {ITEMS_DEPTH_MAX} messages within each other"
        )
    resource = json_values.read_object(value, path)
    fields = _fields(resource, f"{path}.", patch=False)
    fields["extended"] = merged((), fields.get("extended", ()))
    sent = resource.get("sentDateTime") or resource.get("receivedDateTime")
    sent_us = None if sent is None else json_values.read_time_us(sent, f"{path}.sentDateTime")
    date_us = sent_us if sent_us is None or sent_us >= DATE_US_MIN else None
    return write_message(MessageProperties(**fields), mark="item", date_us=date_us)


def _subject(subject: object, path: str) -> str:
    text = _LINE_BREAKS.sub(" ", json_values.read_string(subject, path))
    return json_values.read_header_text(text, path, longest=_SUBJECT_CHARACTERS)


def _message_id(value: object, path: str) -> str:
    text = json_values.read_header_text(value, path, longest=MESSAGE_ID_CHARACTERS_MAX).strip(" ")
    if text and not is_message_id(text):
        raise json_values.invalid_value(path, text, "an id such as <unique@example.com>")
    return text


def _headers(value: object, path: str) -> tuple[tuple[str, str], ...]:
    items = json_values.read_array(value, path, most=HEADERS_MAX)
    return tuple(_header(item, f"{path}[{index}]") for index, item in enumerate(items))


def _header(value: object, path: str) -> tuple[str, str]:
    header = json_values.read_object(value, path)
    name = json_values.read_header_text(
        header.get("name"), f"{path}.name", longest=_HEADER_NAME_CHARACTERS
    )
    content = json_values.read_header_text(
        header.get("value"), f"{path}.value", longest=_HEADER_CHARACTERS
    )
    if not name:
        raise json_values.missing_property(f"{path}.name")
    if not name.lower().startswith("x-") or not _HEADER_NAME.fullmatch(name):
        expected = "x- and visible ASCII characters without a colon"
        detail = f"{path}.name: found {quoted(name)}, expected {expected}."
        raise errors.HEADER_INVALID(detail, quoted(name))
    if name.lower().startswith("x-relay-"):
        text = f"{path}.name: headers that start with 'X-Relay-' are this relay's own."
        raise errors.HEADER_RESERVED(text)
    return name, content


def _categories(value: object, path: str) -> tuple[str, ...]:
    items = json_values.read_array(value, path, most=_CATEGORIES_MAX)
    names = (read_category(item, f"{path}[{index}]") for index, item in enumerate(items))
    return tuple(name for name in names if name)


def read_category(value: object, path: str) -> str:
    """Read the name of a category, without blanks at its ends: Keywords cannot have them."""
    return json_values.read_header_text(value, path, longest=_CATEGORY_CHARACTERS).strip()


def _attachments(value: object, path: str) -> tuple[Attachment, ...]:
    items = json_values.read_array(value, path, most=ATTACHMENTS_MAX)
    return tuple(
        read_attachment(item, f"{path}[{index}]", read_item=read_item)
        for index, item in enumerate(items)
    )


# -- the table of properties


# What may change of any message; the rest only while it is a draft.
_OF_ANY_MESSAGE = {_CLASSIFICATION, SINGLE, MULTIPLE}.union(
    words_in("isRead flag categories importance isReadReceiptRequested isDeliveryReceiptRequested")
)
# The field of MessageProperties, and how it is read; null is the field's default.
_READERS: Mapping[str, tuple[str, json_values.Reader]] = {
    "subject": ("subject", _subject),
    "body": ("body", json_values.read_body),  # and its type
    "from": ("from_", json_values.read_recipient),
    "sender": ("sender", json_values.read_recipient),
    "toRecipients": ("to", json_values.read_recipients),
    "ccRecipients": ("cc", json_values.read_recipients),
    "bccRecipients": ("bcc", json_values.read_recipients),
    "replyTo": ("reply_to", json_values.read_recipients),
    "importance": ("importance", partial(json_values.one_of, choices=("low", "normal", "high"))),
    "sensitivity": (
        "sensitivity",
        partial(json_values.one_of, choices=("normal", "personal", "private", "confidential")),
    ),
    "isReadReceiptRequested": ("read_receipt", json_values.read_boolean),
    "isDeliveryReceiptRequested": ("delivery_receipt", json_values.read_boolean),
    "internetMessageId": ("internet_message_id", _message_id),
    "internetMessageHeaders": ("internet_message_headers", _headers),
    "attachments": ("attachments", _attachments),
    "categories": ("categories", _categories),
}
_NO_PROPERTIES = MessageProperties()
_EXTENDED = frozenset((SINGLE, MULTIPLE))
_COMPARABLE = frozenset((*_READERS, "flag", _CLASSIFICATION)) - {"attachments"}
