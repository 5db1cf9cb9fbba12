"""Extended properties of Graph: their ids, their values by type, and those that Relay acts on.

Graph parses and shows them, formats write drafts with them and convert these, and the mailbox room
reads the options for a submission. An id has one canonical spelling; a value must fit the type in
its id. ExtendedPropertyError says what was found and what was expected.
Graph's singleValueLegacyExtendedProperty; MS-OXPROPS 2; MS-OXOMSG 2.2.3 (deferred send).
"""

import math
import re
from base64 import b64decode
from binascii import Error as BinasciiError
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from uuid import UUID

from msgspec import Struct

from relay.base.message.properties import ExtendedProperty

DEFERRED_SEND_TIME = "SystemTime 0x3FEF"
DEFERRED_DELIVERY_TIME = "SystemTime 0x000F"
DEFERRED_SEND_NUMBER = "Integer 0x3FEB"
DEFERRED_SEND_UNITS = "Integer 0x3FEC"
DELETE_AFTER_SUBMIT = "Boolean 0x0E01"
SENT_MAIL_ENTRY_ID = "Binary 0x0E0A"
SENSITIVITY = "Integer 0x0036"
CONVERSATION_INDEX = "Binary 0x0071"
INTERNET_REFERENCES = "String 0x1039"
IN_REPLY_TO_ID = "String 0x1042"
MESSAGE_CLASS = "String 0x001A"
MESSAGE_FLAGS = "Integer 0x0E07"
DELIVERY_TIME = "SystemTime 0x0E06"
SUBMIT_TIME = "SystemTime 0x0039"
FLAG_STATUS = "Integer 0x1090"
RECORD_KEY = "Binary 0x0FF9"
ARTICLE_NUMBER = "Integer 0x0E23"
RECORDED = frozenset((MESSAGE_FLAGS, DELIVERY_TIME, SUBMIT_TIME))  # as MessageRecord
# MS-OXCMSG 2.2.1.6, PidTagMessageFlags
READ, UNSENT, HAS_ATTACHMENTS = 0x01, 0x08, 0x10
# MS-OXOFLAG 2.2.1.1, PidTagFlagStatus; a message without a flag does not have the property
FLAG_STATUSES = {"1": "complete", "2": "flagged"}
SUPPORTED = frozenset(
    (
        *(DEFERRED_SEND_TIME, DEFERRED_DELIVERY_TIME, DEFERRED_SEND_NUMBER, DEFERRED_SEND_UNITS),
        *(DELETE_AFTER_SUBMIT, SENT_MAIL_ENTRY_ID, SENSITIVITY),
        *(CONVERSATION_INDEX, INTERNET_REFERENCES, IN_REPLY_TO_ID),
        *("String 0x1043", "String 0x1044", "String 0x1045"),
    )
)

_TIME_OF_SENDING = frozenset(
    (DEFERRED_SEND_TIME, DEFERRED_DELIVERY_TIME, DEFERRED_SEND_NUMBER, DEFERRED_SEND_UNITS)
)
_INTERNET_HEADERS = "{00020386-0000-0000-C000-000000000046} Name "
_LIST_FIELDS = {
    "String 0x1043": "List-Help",
    "String 0x1044": "List-Subscribe",
    "String 0x1045": "List-Unsubscribe",
}
_FIELD_NAME = re.compile(r"[!-9;-~]{1,76}")
_FIELD_CHARACTERS_MAX = 8000
# The relay writes other fields itself, or they could change the recipients or the structure.
_FIELDS = frozenset(("auto-submitted", "precedence", "organization", "comments", "feedback-id"))
_NOT_IN_A_FIELD = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NOT_IN_TEXT = re.compile("[\x00\ud800-\udfff]")

_ID_CHARACTERS_MAX = 512
_ID = re.compile(
    r"(?P<type>[A-Za-z]+) +"
    r"(?:(?P<tag>0x[0-9A-Fa-f]{1,8})"
    r"|\{?(?P<set>[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})\}? +"
    r"(?:[Nn][Aa][Mm][Ee] +(?P<name>\S.*)|[Ii][Dd] +(?P<lid>0x[0-9A-Fa-f]{1,8}|\d{1,10})))"
)
_TAG_MAX = 0xFFFF
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS = (timedelta(minutes=1), timedelta(hours=1), timedelta(days=1), timedelta(weeks=1))
_SEND_NUMBER_MAX = 999
_DIGITS_MAX = 20


class ExtendedPropertyError(ValueError):
    """The id or the value is invalid. The text is for the user."""


class RequestedSendOptions(Struct, frozen=True):
    """What the extended properties of a draft request for its sending.

    `sent_folders` are spellings of one folder's id, to be tried in order; () is Sent Items.
    `scheduled_us` is the time of a scheduled send, 0 to send at once.
    """

    delete_after_submit: bool = False
    sent_folders: tuple[str, ...] = ()
    scheduled_us: int = 0


class MessageRecord(Struct, frozen=True):
    """How to create a message that is no draft. Times are in µs, None if not set."""

    is_read: bool
    received_us: int | None
    sent_us: int | None


# -- ids and values


def class_of(extended: Sequence[ExtendedProperty], computed: str) -> str:
    """Return the message class that a client has set, else `computed`."""
    return _single_values(extended).get(MESSAGE_CLASS, computed)


def canonical_id(text: str, *, multiple: bool = False) -> str:
    """Return the canonical spelling of a property's id.

    With `multiple` the type must be an array, otherwise a single value.
    Raises ExtendedPropertyError.
    """
    match = _ID.fullmatch(text.strip()) if len(text) <= _ID_CHARACTERS_MAX else None
    if match is None or _NOT_IN_A_FIELD.search(text):
        raise ExtendedPropertyError(
            "expected an id such as 'SystemTime 0x3FEF', 'String {GUID} Name Color' or "
            "'Integer {GUID} Id 0x8113'"
        )
    kind = _type(match["type"], multiple=multiple)
    if match["tag"]:
        tag = int(match["tag"], 16)
        if not 0 < tag <= _TAG_MAX:
            raise ExtendedPropertyError("expected a tag from 0x0001 to 0xFFFF")
        return _of_its_type(f"{kind} 0x{tag:04X}", tag)
    within = f"{kind} {{{match['set'].upper()}}}"
    if match["name"]:
        return f"{within} Name {match['name'].strip()}"
    return f"{within} Id 0x{int(match['lid'], 0 if 'x' in match['lid'].lower() else 10):04X}"


def canonical_value(identity: str, value: object) -> str:
    """Return one value in the canonical form of the type in the id; for arrays, one element.

    JSON numbers and booleans are accepted as well as their strings.
    Raises ExtendedPropertyError.
    """
    kind = identity.partition(" ")[0].removesuffix("Array")
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, str | int | float):
        text = str(value)
    else:
        raise ExtendedPropertyError("expected a string")
    if identity == SENT_MAIL_ENTRY_ID:  # Graph's folder ids use another base64 alphabet
        return _line(text)
    made = _VALUES[kind](text)
    if field := _field_of(identity):
        _check_field(field, made)
    elif identity in (INTERNET_REFERENCES, IN_REPLY_TO_ID):
        _line(made)
    return made


def merged(
    before: Sequence[ExtendedProperty], changes: Sequence[ExtendedProperty]
) -> tuple[ExtendedProperty, ...]:
    """Return `before` updated with `changes`; a property without values is removed."""
    by_id = {(extended.id.lower(), extended.multiple): extended for extended in (*before, *changes)}
    return tuple(extended for extended in by_id.values() if extended.values)


# -- the properties that Relay acts on


def requested_send_options(
    extended: Sequence[ExtendedProperty], *, now_us: int
) -> RequestedSendOptions:
    """Return the options for sending and filing; `now_us` is the time of submission."""
    values = _single_values(extended)
    return RequestedSendOptions(
        delete_after_submit=values.get(DELETE_AFTER_SUBMIT) == "true",
        sent_folders=_folder_ids(values.get(SENT_MAIL_ENTRY_ID, "")),
        scheduled_us=_scheduled_us(values, now_us),
    )


def message_record(extended: Sequence[ExtendedProperty]) -> MessageRecord | None:
    """Return the record of a new message whose message flags lack the unsent bit.

    None for a draft.
    """
    values = _single_values(extended)
    flags = int(values.get(MESSAGE_FLAGS, UNSENT))
    if flags & UNSENT:
        return None
    received, sent = (
        time_us(values[tag]) if tag in values else None for tag in (DELIVERY_TIME, SUBMIT_TIME)
    )
    return MessageRecord(bool(flags & READ), received, sent)


def sets_send_time(extended: Sequence[ExtendedProperty]) -> bool:
    """Return whether a property sets or removes the time of a scheduled send."""
    return any(prop.id in _TIME_OF_SENDING for prop in extended)


def extended_header_fields(extended: Sequence[ExtendedProperty]) -> tuple[tuple[str, str], ...]:
    """Return (name, value) of the header fields that the properties define."""
    return tuple(
        (field, prop.values[0])
        for prop in extended
        if prop.values and not prop.multiple and (field := _field_of(prop.id))
    )


def time_us(text: str) -> int:
    """Return a canonical SystemTime in microseconds since 1970; earlier times are negative."""
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1)


def _single_values(extended: Sequence[ExtendedProperty]) -> dict[str, str]:
    return {prop.id: prop.values[0] for prop in extended if prop.values and not prop.multiple}


def _scheduled_us(values: Mapping[str, str], now_us: int) -> int:
    """Return the scheduled time. Number and units, if both are set, override it (MS-OXOMSG)."""
    number, units = values.get(DEFERRED_SEND_NUMBER, ""), values.get(DEFERRED_SEND_UNITS, "")
    if number and units and int(number) <= _SEND_NUMBER_MAX and int(units) in range(len(_UNITS)):
        return now_us + max(0, int(number)) * (_UNITS[int(units)] // timedelta(microseconds=1))
    due = values.get(DEFERRED_SEND_TIME) or values.get(DEFERRED_DELIVERY_TIME)
    return max(0, time_us(due)) if due else 0


def _folder_ids(value: str) -> tuple[str, ...]:
    """Return the value and its base64 decoding: MAPI clients send the folder id in base64."""
    if not value:
        return ()
    with suppress(ValueError, BinasciiError):
        decoded = b64decode(value, validate=True).decode("ascii")
        if decoded.isprintable() and decoded:
            return (value, decoded)
    return (value,)


def _field_of(identity: str) -> str:
    """Return the header field that the property is written as, "" if none."""
    if field := _LIST_FIELDS.get(identity):
        return field
    kind, _, rest = identity.partition(" ")
    if kind != "String" or not rest.startswith(_INTERNET_HEADERS):
        return ""
    name = rest.removeprefix(_INTERNET_HEADERS)
    lower = name.lower()
    return name if lower.startswith(("x-", "list-")) or lower in _FIELDS else ""


def _check_field(name: str, value: str) -> None:
    if not _FIELD_NAME.fullmatch(name):
        raise ExtendedPropertyError("expected a header's name: visible ASCII without a colon")
    if name.lower().startswith("x-relay-"):
        raise ExtendedPropertyError("headers that start with 'X-Relay-' are reserved")
    _line(value)


def _line(text: str) -> str:
    """Return the text if it is allowed in a header field. Raises ExtendedPropertyError."""
    if match := _NOT_IN_A_FIELD.search(text):
        raise ExtendedPropertyError(
            f"found the character U+{ord(match[0]):04X}; control characters and line breaks are "
            "not allowed here"
        )
    if len(text) > _FIELD_CHARACTERS_MAX:
        raise ExtendedPropertyError(
            f"found {len(text)} characters, expected at most {_FIELD_CHARACTERS_MAX}"
        )
    return text


def _type(text: str, *, multiple: bool) -> str:
    kind = _TYPES.get(text.lower())
    if kind is None or kind.endswith("Array") != multiple:
        known = ", ".join(name for name in _TYPES.values() if name.endswith("Array") == multiple)
        raise ExtendedPropertyError(f"expected one of the types {known}")
    return kind


def _of_its_type(identity: str, tag: int) -> str:
    """Return a property's id; raise ExtendedPropertyError if a supported one has a wrong type."""
    expected = _TYPE_OF_TAG.get(tag)
    if expected and identity != expected:
        raise ExtendedPropertyError(f"expected '{expected}': the property has that type")
    return identity


# -- the values, by type


def _text(text: str) -> str:
    if match := _NOT_IN_TEXT.search(text):
        raise ExtendedPropertyError(
            f"found the character U+{ord(match[0]):04X}, which is not allowed in mail"
        )
    return text


def _boolean(text: str) -> str:
    if text.lower() not in ("true", "false"):
        raise ExtendedPropertyError("expected true or false")
    return text.lower()


def _whole(bits: int) -> Callable[[str], str]:
    def read(text: str) -> str:
        limit = 1 << (bits - 1)
        with suppress(ValueError):
            if len(text) <= _DIGITS_MAX and -limit <= int(text) < limit:
                return str(int(text))
        raise ExtendedPropertyError(f"expected a whole number of {bits} bits")

    return read


def _real(text: str) -> str:
    with suppress(ValueError):
        if math.isfinite(float(text)):
            return text.strip()
    raise ExtendedPropertyError("expected a number")


def _currency(text: str) -> str:
    with suppress(InvalidOperation):
        if Decimal(text).is_finite():
            return text.strip()
    raise ExtendedPropertyError("expected a decimal number")


def _binary(text: str) -> str:
    try:
        b64decode(text, validate=True)
    except (BinasciiError, ValueError) as error:
        raise ExtendedPropertyError(f"expected base64 ({error})") from None
    return text


def _guid(text: str) -> str:
    with suppress(ValueError):
        return str(UUID(text))
    raise ExtendedPropertyError("expected a GUID")


def _time(text: str) -> str:
    with suppress(ValueError, OverflowError):
        at = datetime.fromisoformat(text.strip())
        at = (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
        return at.isoformat().replace("+00:00", "Z")
    raise ExtendedPropertyError("expected a time such as 2026-12-01T08:00:00Z")


_VALUES: Mapping[str, Callable[[str], str]] = {
    "ApplicationTime": _real,
    "Binary": _binary,
    "Boolean": _boolean,
    "CLSID": _guid,
    "Currency": _currency,
    "Double": _real,
    "Float": _real,
    "Integer": _whole(32),
    "Long": _whole(64),
    "Short": _whole(16),
    "String": _text,
    "SystemTime": _time,
}
_TYPES = {
    name.lower(): name
    for kind in _VALUES
    for name in (kind, f"{kind}Array")
    if name != "BooleanArray"
}
_TYPE_OF_TAG = {int(identity.partition(" ")[2], 16): identity for identity in SUPPORTED}
