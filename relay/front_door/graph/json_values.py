"""Values of a JSON body: decoding, type checks with the path in the error, and action parameters.

Names of properties match in any case, as in Exchange: programs send "Message" and "ToRecipients".

Text for a header field contains no control character, line separator or lone surrogate (RFC 5322
2.2). Errors are ApiError 400 with the path, what was found and what was expected.
"""

import codecs
import re
import sys
from collections.abc import Callable, Collection, Mapping
from functools import partial
from itertools import islice
from typing import Any

import msgspec

from relay.base.message.address import AddressError, parse_odd_mailbox
from relay.base.message.extended_properties import ExtendedPropertyError, canonical_value, time_us
from relay.base.message.properties import EmailAddress, MessageProperties
from relay.front_door.graph import errors
from relay.front_door.graph.item_ids import folder_id_of
from relay.front_door.http.errors import ApiError, quoted

Reader = Callable[[Any, str], Any]  # of a value that is not null and is at a path
# of an action, by name in lower case: Graph's spelling, and the function that reads it
Parameters = Mapping[str, tuple[str, Reader]]

# limit of Graph: recipients of a message
RECIPIENTS_MAX = 500  # of a message: To, Cc and Bcc together
_NAME_CHARACTERS = 320
_ADDRESS_CHARACTERS = 320
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_FORBIDDEN_IN_BODY = re.compile("[\x00\ud800-\udfff]")

# of attachments of every kind, of files, and of references
COMMON_PROPERTIES = "id lastModifiedDateTime name contentType size isInline"
FILE_PROPERTIES = "contentBytes contentId contentLocation"
# The properties of Graph's types; after a colon the type of the value, if it is a resource.
PROPERTIES_OF_TYPES = {
    "parameters": "message:message toRecipients:recipient attachmentItem:attachmentItem",
    "message": (
        "id changeKey conversationId conversationIndex parentFolderId webLink createdDateTime "
        "lastModifiedDateTime receivedDateTime sentDateTime hasAttachments isDraft bodyPreview "
        "uniqueBody:itemBody body:itemBody subject categories importance inferenceClassification "
        "internetMessageId isDeliveryReceiptRequested isRead isReadReceiptRequested sensitivity "
        "from:recipient sender:recipient toRecipients:recipient ccRecipients:recipient "
        "bccRecipients:recipient replyTo:recipient flag:followupFlag attachments:attachment "
        "internetMessageHeaders:internetMessageHeader extensions "
        "singleValueExtendedProperties:singleValueLegacyExtendedProperty "
        "multiValueExtendedProperties:multiValueLegacyExtendedProperty"
    ),
    "itemBody": "contentType content",
    "recipient": "emailAddress:emailAddress",
    "emailAddress": "name address",
    "followupFlag": (
        "flagStatus startDateTime:dateTimeTimeZone dueDateTime:dateTimeTimeZone "
        "completedDateTime:dateTimeTimeZone"
    ),
    "dateTimeTimeZone": "dateTime timeZone",
    "internetMessageHeader": "name value",
    "singleValueLegacyExtendedProperty": "id value",
    "multiValueLegacyExtendedProperty": "id value",
    "attachment": COMMON_PROPERTIES,
    "fileAttachment": f"{COMMON_PROPERTIES} {FILE_PROPERTIES}",
    "itemAttachment": f"{COMMON_PROPERTIES} item:message",
    "attachmentItem": "attachmentType name size contentType isInline contentId",
    "mailFolder": (
        "id displayName parentFolderId childFolderCount unreadItemCount totalItemCount isHidden "
        "sizeInBytes wellKnownName singleValueExtendedProperties:singleValueLegacyExtendedProperty "
        "multiValueExtendedProperties:multiValueLegacyExtendedProperty"
    ),
    "outlookCategory": "id displayName color",
    "mailboxSettings": (
        "archiveFolder timeZone delegateMeetingMessageDeliveryOptions dateFormat timeFormat "
        "userPurpose automaticRepliesSetting:automaticRepliesSetting language:localeInfo "
        "workingHours:workingHours"
    ),
    "automaticRepliesSetting": (
        "status externalAudience scheduledStartDateTime:dateTimeTimeZone "
        "scheduledEndDateTime:dateTimeTimeZone internalReplyMessage externalReplyMessage"
    ),
    "localeInfo": "locale displayName",
    "workingHours": "daysOfWeek startTime endTime timeZone",
}
_OF_SUBSCRIPTIONS = (
    "changeType clientState expirationDateTime includeResourceData latestSupportedTlsVersion "
    "lifecycleNotificationUrl notificationUrl resource"
)
_PROPERTIES = (
    *("@odata.type", "bias", *_OF_SUBSCRIPTIONS.split()),
    *(
        word.partition(":")[0]
        for kind, names in PROPERTIES_OF_TYPES.items()
        for word in names.split()
        if kind != "parameters"
    ),
)
_KNOWN = frozenset(_PROPERTIES)
_BY_LOWER_CASE = {name.lower(): name for name in _PROPERTIES}
# Small values take many times their size in memory; the largest messages have a few thousand.
_VALUES_MAX = 100_000
_STRING_OR_SIGN = re.compile(rb'"(?>[^"\\]++|\\.)*+"?|[\[{,]', re.DOTALL)


def invalid_value(path: str, actual: object, expected: str, *, kind: str = "") -> ApiError:
    """Return the 400 for a value of the wrong type or form; `kind`: OData's type, if it has one."""
    detail = f"{path}: found {quoted(actual)}, expected {expected}."
    if not kind:
        return errors.BODY_INVALID(detail)
    literal = quoted(actual if isinstance(actual, str) else quoted(actual))
    return errors.LITERAL_INVALID(detail, literal, f"Edm.{kind}")


def missing_property(path: str) -> ApiError:
    """Return the 400 for a required property that is missing."""
    return errors.PROPERTY_MISSING(f"{path} is missing.")


def unsupported(path: str, what: str) -> ApiError:
    """Return the 501 for a value that Graph accepts and Relay does not support."""
    return errors.NOT_IMPLEMENTED(f"{path}: {what}.")


def read_json_object(body: bytes) -> dict[str, Any]:
    """Decode a body that must be a JSON object.

    Raises ApiError 400 UnableToDeserializePostBody.
    """
    body = body.removeprefix(codecs.BOM_UTF8)
    check_number_of_values(body)
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:
        reason = str(error) if body.strip() else "it is empty"
    else:
        if isinstance(value, dict):
            return value if value.keys() <= _KNOWN else _renamed(value, "")
        reason = f"expected an object, found {quoted(value)}"
    raise _unreadable(reason)


def check_number_of_values(body: bytes) -> None:
    """Raise ApiError 400 for JSON whose values would take many times its size in memory."""
    if _has_too_many_values(body):
        raise _unreadable(f"it has more than {_VALUES_MAX} values")


def _has_too_many_values(body: bytes) -> bool:
    """Count the signs that begin a value: first all signs, then only those outside of strings."""
    if sum(map(body.count, (b",", b"[", b"{"))) <= _VALUES_MAX:
        return False
    signs = (match for match in _STRING_OR_SIGN.finditer(body) if match.end() - match.start() == 1)
    return next(islice(signs, _VALUES_MAX, None), None) is not None


def _unreadable(reason: str) -> ApiError:
    return errors.UNREADABLE(f"The request body cannot be read as JSON: {reason}.")


def read_object(value: object, path: str) -> dict[str, Any]:
    """Check that a value is an object."""
    if not isinstance(value, dict):
        raise invalid_value(path, value, "an object")
    return value if value.keys() <= _KNOWN else _renamed(value, f"{path}.")


def _renamed(resource: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return an object whose properties have Graph's names.

    Raises ApiError 400 for two names that differ only in case.
    """
    renamed: dict[str, Any] = {}
    for name, value in resource.items():
        known = _BY_LOWER_CASE.get(name.lower(), name)
        if known in renamed:
            raise invalid_value(prefix + name, value, "each property once, whatever its case")
        renamed[known] = value
    return renamed


def is_same_json(received: object, stored: object) -> bool:
    """Return whether a client sends back the value that it was given.

    The case of names, annotations, and properties that are null do not count.
    """
    if isinstance(received, dict) and isinstance(stored, dict):
        sent, known = _without_nulls(received), _without_nulls(stored)
        return sent.keys() == known.keys() and all(
            is_same_json(value, known[name]) for name, value in sent.items()
        )
    if isinstance(received, list) and isinstance(stored, list):
        return len(received) == len(stored) and all(map(is_same_json, received, stored))
    return type(received) is type(stored) and received == stored  # 1 is not true


def _without_nulls(value: Mapping[str, Any]) -> dict[str, Any]:
    pairs = value.items()
    return {
        name.lower(): child
        for name, child in pairs
        if child is not None and not is_annotation(name)
    }


def read_array(value: object, path: str, *, most: int | None = None) -> list[Any]:
    """Check that a value is an array of at most `most` items; null is an empty array."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise invalid_value(path, value, "an array")
    if most is not None and len(value) > most:
        raise errors.INVALID_REQUEST(f"{path}: found {len(value)} items, expected at most {most}.")
    return value


def read_string(value: object, path: str) -> str:
    """Check that a value is a string; null is an empty string."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise invalid_value(path, value, "a string", kind="String")
    return value


def read_boolean(value: object, path: str) -> bool:
    """Read true or false, also as a string, as in Graph's own examples."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise invalid_value(path, value, "true or false", kind="Boolean")


def read_time_us(value: object, path: str) -> int:
    """Return a DateTimeOffset in microseconds since 1970."""
    try:
        return time_us(canonical_value("SystemTime", read_string(value, path)))
    except ExtendedPropertyError:
        expected = "a time such as 2026-12-01T08:00:00Z"
        raise invalid_value(path, value, expected, kind="DateTimeOffset") from None


def one_of(value: object, path: str, choices: tuple[str, ...]) -> str:
    """Return the choice that a string names, in any case."""
    text = read_string(value, path).lower()
    for choice in choices:
        if choice.lower() == text:
            return choice
    expected = f"expected one of {', '.join(choices)}"
    raise errors.VALUE_UNKNOWN(f"{path}: found {quoted(value)}, {expected}.", quoted(value))


def read_header_text(value: object, path: str, *, longest: int) -> str:
    """Read a string for a header field: one line without control characters."""
    text = read_string(value, path)
    if match := _FORBIDDEN.search(text):
        raise _forbidden(path, match, "; control characters and line breaks are not allowed here.")
    return check_length(text, path, longest)


def check_length(text: str, path: str, longest: int) -> str:
    """Return a text that has at most `longest` characters."""
    if len(text) > longest:
        limit = f"found {len(text)} characters, expected at most {longest}"
        raise errors.INVALID_REQUEST(f"{path}: {limit}.")
    return text


def read_body_text(value: object, path: str, *, longest: int = sys.maxsize) -> str:
    """Read a string for a message body: no NUL and no lone surrogate."""
    text = check_length(read_string(value, path), path, longest)
    if text.isascii() and "\0" not in text:
        return text  # most texts; the search takes 100 ms for 30 MB
    if match := _FORBIDDEN_IN_BODY.search(text):
        raise _forbidden(path, match, ", which a message cannot contain.")
    return text


def read_body(value: object, path: str) -> tuple[str, str]:
    """Read a body: its type, text or html, and its text."""
    body = read_object(value, path)
    kind = body.get("contentType")
    return (
        "text" if kind is None else one_of(kind, f"{path}.contentType", ("text", "html")),
        read_body_text(body.get("content"), f"{path}.content"),
    )


def _forbidden(path: str, match: re.Match[str], reason: str) -> ApiError:
    place = f"the character U+{ord(match[0]):04X} at position {match.start()}"
    return errors.INVALID_REQUEST(f"{path}: found {place}{reason}")


def read_recipients(value: object, path: str) -> tuple[EmailAddress, ...]:
    """Read an array of recipients. Raises ApiError."""
    items = read_array(value, path)
    _check_count(len(items))
    return tuple(read_recipient(item, f"{path}[{index}]") for index, item in enumerate(items))


def read_recipient(value: object, path: str) -> EmailAddress:
    """Read a recipient, or an originator. Raises ApiError."""
    recipient = read_object(value, path)
    path = f"{path}.emailAddress"
    if recipient.get("emailAddress") is None:
        raise errors.INVALID_RECIPIENTS(f"{path} is missing.")
    inner = read_object(recipient["emailAddress"], path)
    name = read_header_text(inner.get("name"), f"{path}.name", longest=_NAME_CHARACTERS)
    path = f"{path}.address"
    text = read_header_text(inner.get("address"), path, longest=_ADDRESS_CHARACTERS).strip(" ")
    if not text:
        raise errors.INVALID_RECIPIENTS(f"{path} is missing or empty.")
    try:
        return EmailAddress(address=parse_odd_mailbox(text, smtputf8=True), name=name)
    except AddressError as error:
        detail = f"{path}: {quoted(text)} is no mail address: {error}."
        raise errors.RECIPIENT_UNRESOLVED(detail, quoted(text)) from None


def check_recipients_count(properties: MessageProperties) -> None:
    """The limit of recipients per message: raise ErrorInvalidRecipients beyond 500."""
    _check_count(len(properties.to) + len(properties.cc) + len(properties.bcc))


def _check_count(count: int) -> None:
    if count > RECIPIENTS_MAX:
        message = f"The message has {count} recipients; the maximum in to, cc and bcc is"
        raise errors.INVALID_RECIPIENTS(f"{message} {RECIPIENTS_MAX}.")


def is_annotation(name: str) -> bool:
    """Return whether a property name is an OData annotation, which is ignored."""
    return "@" in name


_DESTINATION = {"destinationid": ("destinationId", partial(read_header_text, longest=512))}


def read_parameters(
    body: Mapping[str, Any], known: Parameters, action: str, *, needed: Collection[str] = ()
) -> dict[str, Any]:
    """Return the parameters of an action by name in lower case; names match in any case.

    A parameter that is null counts as absent.

    Raises ApiError 400 for an unknown or repeated parameter, and for a missing one in `needed`.
    """
    parameters: dict[str, Any] = {}
    for name, value in body.items():
        if is_annotation(name):
            continue
        folded = name.lower()
        if folded not in known:
            detail = f"{quoted(name)} is not a parameter of {action}: {', '.join(known)}."
            raise errors.PARAMETER_UNKNOWN(detail, quoted(name), action)
        if folded in parameters:
            raise invalid_value(name, value, "each parameter once, whatever its case")
        spelled, read = known[folded]
        parameters[folded] = None if value is None else read(value, spelled)
    if missing := [known[required][0] for required in needed if parameters.get(required) is None]:
        names = ", ".join(name[:1].upper() + name[1:] for name in missing)
        raise errors.PARAMETERS_MISSING(f"{', '.join(missing)}: found none.", action, names)
    return parameters


def destination_id(body: Mapping[str, Any], action: str) -> str:
    """Return destinationId of move and copy: a folder's id or well-known name."""
    parameters = read_parameters(body, _DESTINATION, action, needed=_DESTINATION)
    return folder_id_of(parameters["destinationid"])
