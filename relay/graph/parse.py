"""Graph's message and action parameters: from JSON to MessageProperties.

On the path: the handlers of sendMail, messages and PATCH hand the decoded body in.
Holds: what comes out is fit for a draft: addresses valid, header text on one line, base64 checked.
Fails: ApiError with the codes of Graph; every one names the JSON path. 501 for what exists in Graph
and cannot be honoured here; annotations and read-only properties are passed over.
Standards: Graph's message resource type; RFC 5322 3.6.4 (Message-ID).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from relay.accounts import Account
from relay.graph.attachments import read_attachments
from relay.graph.values import (
    a_boolean,
    an_array,
    an_object,
    body_text,
    header_text,
    is_annotation,
    missing,
    one_of,
    unknown_property,
    unsupported,
    wrong,
)
from relay.http.errors import ApiError, shown
from relay.message.address import AddressError, parse_mailbox
from relay.message.fields import MESSAGE_ID_CHARACTERS_MAX, is_message_id
from relay.message.properties import MessageProperties, Person

RECIPIENTS_MAX = 500
HEADERS_MAX = 5
_SUBJECT_CHARACTERS = 2000
_NAME_CHARACTERS = 320
_ADDRESS_CHARACTERS = 320
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
    "isDeliveryReceiptRequested": "delivery receipts are not supported; leave it out or false",
    "isReadReceiptRequested": "read receipts are not supported; leave it out or false",
    "singleValueExtendedProperties": "extended properties are not supported, nor deferred send",
    "multiValueExtendedProperties": "extended properties are not supported",
    "extensions": "open extensions are not supported",
}
_REFUSED_FLAGS = frozenset({"isDeliveryReceiptRequested", "isReadReceiptRequested"})
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
    """Read sendMail's parameters, whose names match in any case: Kiota sends `Message`."""
    given: dict[str, Any] = {}
    for name, value in body.items():
        folded = name.lower()
        if is_annotation(name):
            continue
        if folded not in ("message", "savetosentitems"):
            raise unknown_property(name, "microsoft.graph.sendMail")
        if folded in given:
            raise wrong(name, value, "each parameter once, whatever its case")
        given[folded] = value
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
    fields: dict[str, Any] = {}
    for name, item in given.items():
        where = prefix + name
        if name in _READERS:
            if patch and name in _CREATE_ONLY:
                raise wrong(where, item, "it only when the message is created")
            fields |= _READERS[name](item, where)
        elif name in _REFUSED:
            if _asks_for_something(item, where, flag=name in _REFUSED_FLAGS):
                raise unsupported(where, _REFUSED[name])
        elif name not in _MARKS and name not in _READ_ONLY and not is_annotation(name):
            raise unknown_property(where, _MESSAGE)
    check_recipients_count(MessageProperties(**fields))
    for name in ("from", "sender"):
        check_own(fields.get(_ORIGINATORS[name]), account, path=prefix + name)
    is_read = given.get("isRead")
    return ParsedMessage(
        fields=fields,
        is_read=None if is_read is None else a_boolean(is_read, f"{prefix}isRead"),
        flagged=_flagged(given.get("flag"), f"{prefix}flag"),
    )


def check_own(person: Person | None, account: Account, *, path: str) -> None:
    """Raise ErrorSendAsDenied unless mail from `person` is the account's own."""
    if person is not None and not account.owns(person.address):
        raise ApiError(
            403,
            "ErrorSendAsDenied",
            f"{path}: the account {account.address} does not have the right to send mail from "
            f"{shown(person.address)}.",
        )


def check_recipients_count(properties: MessageProperties) -> None:
    """Raise ErrorInvalidRecipients when a message has more recipients than Graph takes."""
    count = len(properties.to) + len(properties.cc) + len(properties.bcc)
    if count > RECIPIENTS_MAX:
        raise _too_many_recipients(count)


def check_has_recipients(properties: MessageProperties) -> None:
    """Raise ErrorInvalidRecipients when nobody would get the message."""
    if not (properties.to or properties.cc or properties.bcc):
        raise ApiError(
            400,
            "ErrorInvalidRecipients",
            "At least one recipient is not valid., A message can't be sent because it contains no "
            "recipients: toRecipients, ccRecipients and bccRecipients are empty.",
        )


def _asks_for_something(value: object, path: str, *, flag: bool) -> bool:
    if value is None:
        return False
    return a_boolean(value, path) if flag else bool(an_array(value, path))


def _people(value: object, path: str) -> tuple[Person, ...]:
    items = an_array(value, path)
    if len(items) > RECIPIENTS_MAX:
        raise _too_many_recipients(len(items))
    return tuple(_person(item, f"{path}[{index}]") for index, item in enumerate(items))


def _person(value: object, path: str) -> Person:
    given = an_object(value, path)
    _only(given, ("emailAddress",), path=path, resource="microsoft.graph.recipient")
    path = f"{path}.emailAddress"
    if given.get("emailAddress") is None:
        raise _invalid_recipient(f"{path} is missing")
    inner = an_object(given["emailAddress"], path)
    _only(inner, ("address", "name"), path=path, resource="microsoft.graph.emailAddress")
    name = header_text(inner.get("name"), f"{path}.name", longest=_NAME_CHARACTERS)
    path = f"{path}.address"
    text = header_text(inner.get("address"), path, longest=_ADDRESS_CHARACTERS).strip(" ")
    if not text:
        raise _invalid_recipient(f"{path} is missing or empty")
    try:
        return Person(address=parse_mailbox(text, smtputf8=True), name=name)
    except AddressError as error:
        raise _invalid_recipient(f"{path}: {shown(text)} is no mail address: {error}") from None


def _originator(value: object, path: str) -> Person | None:
    return None if value is None else _person(value, path)


def _too_many_recipients(count: int) -> ApiError:
    message = (
        f"The message has {count} recipients; the maximum in to, cc and bcc is {RECIPIENTS_MAX}."
    )
    return ApiError(400, "ErrorInvalidRecipients", message)


def _invalid_recipient(reason: str) -> ApiError:
    message = f"At least one recipient is not valid., {reason}."
    return ApiError(400, "ErrorInvalidRecipients", message)


def _only(given: Mapping[str, Any], known: tuple[str, ...], *, path: str, resource: str) -> None:
    for name in given:
        if name not in known and not is_annotation(name):
            raise unknown_property(f"{path}.{name}", resource)


def _body(value: object, path: str) -> dict[str, Any]:
    if value is None:
        return {"body_type": "text", "body": ""}
    given = an_object(value, path)
    _only(given, ("contentType", "content"), path=path, resource="microsoft.graph.itemBody")
    kind = given.get("contentType")
    return {
        "body_type": "text"
        if kind is None
        else one_of(kind, f"{path}.contentType", ("text", "html")),
        "body": body_text(given.get("content"), f"{path}.content"),
    }


def _importance(value: object, path: str) -> str:
    return "normal" if value is None else one_of(value, path, ("low", "normal", "high"))


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
    _only(given, ("name", "value"), path=path, resource=resource)
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
_MARKS = frozenset({"isRead", "flag"})
_READERS: Mapping[str, Callable[[object, str], dict[str, Any]]] = {
    "subject": _as("subject", _subject),
    "body": _body,
    "from": _as("from_", _originator),
    "sender": _as("sender", _originator),
    "toRecipients": _as("to", _people),
    "ccRecipients": _as("cc", _people),
    "bccRecipients": _as("bcc", _people),
    "replyTo": _as("reply_to", _people),
    "importance": _as("importance", _importance),
    "internetMessageId": _as("internet_message_id", _message_id),
    "internetMessageHeaders": _as("internet_message_headers", _headers),
    "attachments": _as("attachments", read_attachments),
    "categories": _as("categories", _categories),
}
