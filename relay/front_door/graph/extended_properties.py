"""Extended properties in a message's JSON (singleValue and multiValue), and $expand.

Property ids have one canonical spelling. A property that Relay acts on must have a valid value.
$expand returns only the properties that it names; attachments too.
"""

import re
from base64 import b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

from relay.base.message.conversation import is_index, message_ids
from relay.base.message.extended_properties import (
    ARTICLE_NUMBER,
    CONVERSATION_INDEX,
    DELIVERY_TIME,
    FLAG_STATUS,
    HAS_ATTACHMENTS,
    IN_REPLY_TO_ID,
    INTERNET_REFERENCES,
    MESSAGE_CLASS,
    MESSAGE_FLAGS,
    READ,
    RECORD_KEY,
    SENSITIVITY,
    SUBMIT_TIME,
    UNSENT,
    ExtendedPropertyError,
    canonical_id,
    canonical_value,
    class_of,
    merged,
)
from relay.base.message.properties import ExtendedProperty
from relay.front_door.graph import errors
from relay.front_door.graph.json_values import (
    check_length,
    invalid_value,
    missing_property,
    read_array,
    read_object,
    read_string,
)
from relay.front_door.graph.query_options import TOP_MAX, QueryOptions, parse_options
from relay.front_door.graph.serializer import graph_date
from relay.front_door.http.errors import ApiError, bad_request, quoted
from relay.store.mailbox.stored_message import Folder, StoredMessage

SINGLE, MULTIPLE = "singleValueExtendedProperties", "multiValueExtendedProperties"
EXTENDED_MAX = 100
VALUES_MAX = 100
VALUE_CHARACTERS_MAX = 32 * 1024
_SENSITIVITIES = {"0": "normal", "1": "personal", "2": "private", "3": "confidential"}


def read_extended(message: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the fields of MessageProperties from a message's extended properties.

    A null value means no values: a PATCH removes the property. Raises ApiError.
    """
    properties = [
        *_read(message.get(SINGLE), prefix + SINGLE, multiple=False),
        *_read(message.get(MULTIPLE), prefix + MULTIPLE, multiple=True),
    ]
    if not properties:
        return {}
    fields: dict[str, Any] = {"extended": tuple(properties)}
    for number, extended in enumerate(properties):
        if not extended.multiple and extended.id in _FIELDS:
            path = f"{prefix}{SINGLE}[{number}].value"
            fields |= _FIELDS[extended.id](extended.values[0] if extended.values else "", path)
    return fields


def _read(value: object, path: str, *, multiple: bool) -> list[ExtendedProperty]:
    items = read_array(value, path, most=EXTENDED_MAX)
    properties = [
        _property(item, f"{path}[{at}]", multiple=multiple) for at, item in enumerate(items)
    ]
    by_id: dict[str, int] = {}
    for number, extended in enumerate(properties):
        if by_id.setdefault(extended.id.lower(), number) != number:
            raise invalid_value(f"{path}[{number}].id", extended.id, "each property once")
    return properties


def _property(value: object, path: str, *, multiple: bool) -> ExtendedProperty:
    resource = read_object(value, path)
    property_id = read_string(resource.get("id"), f"{path}.id")
    if not property_id:
        raise missing_property(f"{path}.id")
    try:
        identity = canonical_id(property_id, multiple=multiple)
    except ExtendedPropertyError as error:
        raise _property_error(f"{path}.id", property_id, error) from None
    if "value" not in resource:
        raise missing_property(f"{path}.value")
    value, path = resource["value"], f"{path}.value"
    if value is None:
        return ExtendedProperty(identity, (), multiple)
    values = read_array(value, path, most=VALUES_MAX) if multiple else [value]
    read = tuple(_value(identity, raw, path) for raw in values)
    return ExtendedProperty(identity, read, multiple)


def _value(identity: str, value: object, path: str) -> str:
    if isinstance(value, str):
        check_length(value, path, VALUE_CHARACTERS_MAX)
    try:
        return canonical_value(identity, value)
    except ExtendedPropertyError as error:
        raise _property_error(path, value, error) from None


def _property_error(path: str, actual: object, error: ExtendedPropertyError) -> ApiError:
    text = str(error)
    if text.startswith("expected "):
        return invalid_value(path, actual, text.removeprefix("expected "))
    return errors.INVALID_REQUEST(f"{path}: {text}.")


# -- the properties that are fields of a message


def _sensitivity(value: str, path: str) -> dict[str, Any]:
    if value and value not in _SENSITIVITIES:
        raise invalid_value(
            path, value, "0 (normal), 1 (personal), 2 (private) or 3 (confidential)"
        )
    return {"sensitivity": _SENSITIVITIES.get(value, "normal")}


def _conversation_index(value: str, path: str) -> dict[str, Any]:
    if value and not is_index(value):
        raise invalid_value(path, value, "base64 of 22 bytes, and 5 more for each reply")
    return {"conversation_index": value}


def _message_ids(value: str, path: str) -> tuple[str, ...]:
    ids = message_ids(value)
    if value.strip() and not ids:
        raise invalid_value(path, value, "ids such as <unique@example.com>, with spaces between")
    return ids


_FIELDS: Mapping[str, Callable[[str, str], dict[str, Any]]] = {
    SENSITIVITY: _sensitivity,
    CONVERSATION_INDEX: _conversation_index,
    INTERNET_REFERENCES: lambda value, path: {"references": _message_ids(value, path)},
    IN_REPLY_TO_ID: lambda value, path: {"in_reply_to": next(iter(_message_ids(value, path)), "")},
}


# -- shown


def _flags(message: StoredMessage) -> str:
    flags = message.is_read * READ | message.is_draft * UNSENT
    has_files = any(not attachment.inline for attachment in message.attachments)
    return str(flags | has_files * HAS_ATTACHMENTS)


def _display_to(message: StoredMessage) -> str:
    names = (recipient.name or recipient.address for recipient in message.properties.to)
    return "; ".join(names)


# Properties that Relay computes from a message (MS-OXPROPS 2); "": the message has no value.
COMPUTED: Mapping[str, Callable[[StoredMessage], str]] = {
    "String 0x007D": lambda message: message.header.decode("utf-8", "replace"),
    "String 0x0037": lambda message: message.properties.subject,
    "String 0x0E04": _display_to,
    "String 0x1035": lambda message: message.properties.internet_message_id,
    "Integer 0x0E08": lambda message: str(message.size),
    "Long 0x0E08": lambda message: str(message.size),
    IN_REPLY_TO_ID: lambda message: message.properties.in_reply_to,
    INTERNET_REFERENCES: lambda message: " ".join(message.properties.references),
    CONVERSATION_INDEX: lambda message: message.properties.conversation_index,
    DELIVERY_TIME: lambda message: graph_date(message.received_us),
    SUBMIT_TIME: lambda message: graph_date(message.sent_us),
    MESSAGE_FLAGS: _flags,
    FLAG_STATUS: lambda message: {"complete": "1", "flagged": "2"}.get(message.flag.status, ""),
    ARTICLE_NUMBER: lambda message: str(message.article or ""),
    RECORD_KEY: lambda message: b64encode(message.id.encode()).decode(),
    "String 0x10F3": lambda message: f"{message.properties.subject or 'No Subject'}.EML",
}
FOLDER_COMPUTED: Mapping[str, Callable[[Folder], str]] = {
    "Integer 0x0E08": lambda folder: str(folder.size_bytes),  # PidTagMessageSize
    "Long 0x0E08": lambda folder: str(folder.size_bytes),  # PidTagMessageSizeExtended
    "String 0x3001": lambda folder: folder.display_name,
    "Integer 0x3602": lambda folder: str(folder.total),  # PidTagContentCount
    "Integer 0x3603": lambda folder: str(folder.unread),  # PidTagContentUnreadCount
    "String 0x3613": lambda _: "IPF.Note",  # PidTagContainerClass
    "Boolean 0x10F4": lambda _: "false",  # PidTagAttributeHidden
}


def shown_id(identity: str) -> str:
    """Return a canonical id as Graph shows it and DavMail compares it: `Integer 0xe08`, GUIDs in
    lower case.
    """
    kind, _, tag = identity.partition(" ")
    tag, sign, name = tag.partition(" Name ")
    tag = _ZEROS.sub("0x", tag.lower()).replace("} id ", "} Id ")
    return f"{kind} {tag}{sign}{name}"


def extended_properties_json(
    properties: Sequence[ExtendedProperty], selected: Sequence[str], *, multiple: bool
) -> list[dict[str, Any]]:
    """Return the JSON of the properties with the given canonical ids."""
    ids = {property_id.lower() for property_id in selected}
    return [
        {
            "id": shown_id(extended.id),
            "value": list(extended.values) if multiple else extended.values[0],
        }
        for extended in properties
        if extended.multiple is multiple and extended.values and extended.id.lower() in ids
    ]


_IDS_MAX = 100
_PIECE = re.compile(r"'(?>[^']|'')*+'|[(),;']|[^(),;']++")
_DEPTHS = {"(": 1, ")": -1}
_OF_LISTS = ("select", "filter", "orderby", "top", "skip", "expand")
_ZEROS = re.compile("0x0+(?=.)")
_TERM = re.compile(r"\s*+(?:\w+/)?id\s++eq\s++'((?>[^']|'')*+)'\s*+(or\b|$)", re.IGNORECASE)
ATTACHMENTS, CHILD_FOLDERS = "attachments", "childFolders"
_NAMES = {name.lower(): name for name in (SINGLE, MULTIPLE, ATTACHMENTS, CHILD_FOLDERS)}


class ExpandOptions(Struct, frozen=True):
    """The canonical ids of the properties to return.

    `attachments` and `children` are None if these are not expanded, else the options for them.
    """

    single: tuple[str, ...] = ()
    multiple: tuple[str, ...] = ()
    attachments: QueryOptions | None = None
    children: QueryOptions | None = None

    def to_json(self, message: StoredMessage) -> dict[str, Any]:
        """Return the expanded properties of a message, to be added to its JSON."""
        extended = shown_extended(message, self.single)
        resource = {
            SINGLE: extended_properties_json(extended, self.single, multiple=False),
            MULTIPLE: extended_properties_json(extended, self.multiple, multiple=True),
        }
        return {name: value for name, value in resource.items() if value}


def shown_extended(message: StoredMessage, ids: Iterable[str]) -> tuple[ExtendedProperty, ...]:
    """Return the extended properties that clients see: the stored ones, the message class, and the
    computed ones among `ids`. In a draft, a value that its author set comes before a computed one.
    """
    stored = message.properties.extended
    values = {known: COMPUTED[known](message) for known in ids if known in COMPUTED}
    values[MESSAGE_CLASS] = class_of(stored, message.message_class)
    computed = [ExtendedProperty(known, (value,)) for known, value in values.items() if value]
    return merged(computed, stored) if message.is_draft else merged(stored, computed)


def parse_expand(
    text: str | None, *, of_attachments: Collection[str] = (), of_folders: Collection[str] = ()
) -> ExpandOptions:
    """Read an $expand such as `singleValueExtendedProperties($filter=id eq 'String 0x1045')`.

    `of_attachments` and `of_folders` are the properties of the items of attachments and of
    childFolders; lists without them cannot be expanded. Raises ApiError 400.
    """
    properties = {ATTACHMENTS: of_attachments, CHILD_FOLDERS: of_folders}
    ids: dict[str, tuple[str, ...]] = {}
    lists: dict[str, QueryOptions] = {}
    for part in () if text is None else _split(text, ","):
        written, opening, rest = part.strip().partition("(")
        name = _NAMES.get(written.strip().lower(), "")
        if not properties.get(name, name) or (opening and not rest.endswith(")")):
            raise bad_request(f"$expand: {quoted(part)} cannot be expanded here, {_EXPECTED}.")
        if name in ids or name in lists:
            raise bad_request(f"$expand: {name} is given twice.")
        pairs = [option.partition("=")[::2] for option in _split(rest[:-1], ";")]
        options = [(option.strip(), value.strip()) for option, value in pairs]
        if name == ATTACHMENTS:
            allowed, known = _OF_LISTS[:-1], of_attachments
            lists[name] = parse_options(
                options, allowed, known, kind="attachment", page_size=TOP_MAX
            )
        elif name == CHILD_FOLDERS:
            lists[name] = parse_options(options, _OF_LISTS, of_folders, kind="mailFolder")
        elif (filter_ := parse_options(options, ("filter",)).filter) is None:
            raise bad_request(f"$expand: {name} needs a $filter, {_EXPECTED}.")
        else:
            ids[name] = _ids(filter_, multiple=name == MULTIPLE)
    return ExpandOptions(
        ids.get(SINGLE, ()), ids.get(MULTIPLE, ()), lists.get(ATTACHMENTS), lists.get(CHILD_FOLDERS)
    )


def _split(text: str, separator: str) -> Iterator[str]:
    """Yield the parts between separators that are not in parentheses or quotes."""
    depth, part = 0, ""
    for piece in _PIECE.findall(text):
        depth += _DEPTHS.get(piece, 0)
        if piece == separator and not depth:
            yield part
            part = ""
        else:
            part += piece
    yield part


def _ids(text: str, *, multiple: bool) -> tuple[str, ...]:
    ids: list[str] = []
    position, is_more = 0, True
    while is_more:
        match = _TERM.match(text, position)
        if match is None or len(ids) == _IDS_MAX:
            raise bad_request(f"$expand: found the $filter {quoted(text)}, {_EXPECTED}.")
        try:
            ids.append(canonical_id(match[1].replace("''", "'"), multiple=multiple))
        except ExtendedPropertyError as error:
            raise bad_request(f"$expand: found the id {quoted(match[1])}, {error}.") from None
        position, is_more = match.end(), bool(match[2])
    return tuple(ids)


_EXPECTED = f"expected {SINGLE}($filter=id eq 'TYPE 0xTAG'), with 'or' between several"
