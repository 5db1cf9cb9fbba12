"""The properties of messages, mail folders and users that $filter and $orderby accept.

The mailbox index evaluates conditions on messages; those on folders and users are evaluated here,
on the list of all of them. ErrorInvalidUrlQuery is the error for a property that cannot be sorted
by.
"""

import operator as compared_by
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, Generic, TypeVar

from relay.base.accounts.account import Account
from relay.base.message import extended_properties
from relay.base.message.address import lower_case, pattern_forms, with_a_labels
from relay.base.message.rest_id import read_rest_id
from relay.formats.read_mime import AttachedOctets
from relay.front_door.graph import errors
from relay.front_door.graph.extended_properties import COMPUTED, FOLDER_COMPUTED, MULTIPLE, SINGLE
from relay.front_door.graph.odata.expression import CHARACTERS_MAX, clause_error, parse_expression
from relay.front_door.graph.odata.filter import (
    CollectionField,
    FieldType,
    QueryField,
    Resource,
    Value,
    bind_filter,
)
from relay.front_door.graph.query_options import QueryOptions
from relay.front_door.graph.serializer import FOLDER_PROPERTIES, MESSAGE_PROPERTIES, USER_PROPERTIES
from relay.front_door.http.errors import quoted
from relay.store.mailbox.query import (
    AllOf,
    AnyItem,
    AnyOf,
    Collection,
    Compare,
    CompareItem,
    Condition,
    HasWords,
    ItemProperty,
    Negation,
    Operator,
    Property,
    SearchIn,
    SortOrder,
)
from relay.store.mailbox.stored_message import Folder

ORDER_KEYS_MAX = 5
_ORDER_KEY = re.compile(r"\s*+([\w/.]++)(?:\s++(asc|desc))?\s*+", re.ASCII | re.IGNORECASE)
_FLAG_DATES = (Property.FLAG_START, Property.FLAG_DUE, Property.FLAG_COMPLETED)
_CHOICES = {
    Property.IMPORTANCE: ("low", "normal", "high"),
    Property.FLAG: ("notFlagged", "flagged", "complete"),
    Property.CLASSIFICATION: ("focused", "other"),
}
_MESSAGE_TYPES = {
    **dict.fromkeys(
        (Property.RECEIVED, Property.SENT, Property.CREATED, Property.MODIFIED), FieldType.TIME
    ),
    **dict.fromkeys(_FLAG_DATES, FieldType.TIME_TEXT),
    **dict.fromkeys(
        (Property.IS_READ, Property.IS_DRAFT, Property.HAS_ATTACHMENTS), FieldType.BOOLEAN
    ),
    **dict.fromkeys((Property.SIZE, Property.ARTICLE), FieldType.NUMBER),
    **dict.fromkeys(_CHOICES, FieldType.CHOICE),
}
_WITHOUT_ORDER = (Property.FLAG, Property.CLASSIFICATION)
_ADDRESSES = (Property.FROM_ADDRESS, Property.SENDER_ADDRESS)
_IN_DOMAINS = (Operator.CONTAINS, Operator.ENDS_WITH)  # a text without an @ may be of a domain
_RECIPIENTS = (Collection.TO, Collection.CC, Collection.BCC, Collection.REPLY_TO)
_UNQUERYABLE = (
    *("attachments", "extensions", "singleValueExtendedProperties", "uniqueBody", "sensitivity"),
    *("multiValueExtendedProperties", "sender", "from", "flag", "body", "mentions"),
)
_BODY = "body/content"
_BODY_CHARACTERS_MAX = 255
# Extended properties that are other properties of the message, and those that the index has too.
_AS_PROPERTY = {
    "String 0x0037": Property.SUBJECT,
    "String 0x1035": Property.INTERNET_MESSAGE_ID,
    "Integer 0x0E08": Property.SIZE,
    "Long 0x0E08": Property.SIZE,
    extended_properties.DELIVERY_TIME: Property.RECEIVED,
    extended_properties.SUBMIT_TIME: Property.SENT,
    extended_properties.MESSAGE_CLASS: Property.MESSAGE_CLASS,
    extended_properties.FLAG_STATUS: Property.FLAG,
    extended_properties.ARTICLE_NUMBER: Property.ARTICLE,
}
_INDEXED = (extended_properties.IN_REPLY_TO_ID, extended_properties.INTERNET_REFERENCES)
_HEADERS = "String 0x007D"  # PidTagTransportMessageHeaders
# What contains(ep/value,'From: bob') looks at, by which DavMail searches (HeaderCondition).
_IN_HEADER: Mapping[str, Collection | tuple[Property, ...]] = {
    "from": (Property.FROM_ADDRESS, Property.FROM_NAME),
    "to": Collection.TO,
    "cc": Collection.CC,
    "subject": (Property.SUBJECT,),
    "message-id": (Property.INTERNET_MESSAGE_ID,),
}
_DECIMAL = ("ApplicationTime", "Currency", "Double", "Float")
_NUMBERS = (*_DECIMAL, "Integer", "Long", "Short")
_EQUALITY = (Operator.EQ, Operator.NE)
_ORDERED = (Operator.GT, Operator.GE, Operator.LT, Operator.LE)
_SECOND_US = 1_000_000
_unsupported = errors.FILTER_UNSUPPORTED
_BODY_HINT = 'to find words of the text, use $search="body:word"'


def message_condition(text: str) -> Condition:
    """Return the condition for a $filter on messages. Raises ApiError 400."""
    return bind_filter(parse_expression(text), _MESSAGE_RESOURCE)


def message_order(text: str) -> tuple[SortOrder, ...]:
    """Return the sort keys of an $orderby on messages. Raises ApiError 400."""
    return tuple(
        SortOrder(_MESSAGE_BY_NAME[name], descending=descending)
        for name, descending in order_keys(
            text, _MESSAGE_ORDER, frozenset(_message_property_names()), kind="message"
        )
    )


def order_keys(
    text: str, names: tuple[str, ...], known: frozenset[str] = frozenset(), *, kind: str
) -> list[tuple[str, bool]]:
    """Return the keys of an $orderby: a name of `names`, and whether it is descending.

    `known` are all properties of the type `kind`. All names are in lower case. Raises ApiError 400.
    """
    if len(text) > CHARACTERS_MAX:
        raise clause_error("orderby", f"found {len(text)} characters")
    keys: dict[str, bool] = {}
    for part in text.split(","):
        match = _ORDER_KEY.fullmatch(part)
        if match is None:
            actual = quoted(part.strip())
            raise clause_error("orderby", f"found {actual}, expected a property, and asc or desc")
        name = match[1].lower()
        if name not in names and name.partition("/")[0] in known:
            raise errors.ORDER_UNSUPPORTED(f"$orderby: cannot sort by {quoted(match[1])}.")
        if name not in names:
            detail = f"$orderby: found {quoted(match[1])}."
            raise errors.PROPERTY_UNKNOWN(detail, quoted(match[1]), kind)
        if name in keys:
            raise clause_error("orderby", f"{quoted(match[1])} is given twice")
        keys[name] = (match[2] or "").lower() == "desc"
    if len(keys) > ORDER_KEYS_MAX:
        raise clause_error("orderby", f"found {len(keys)} keys, expected at most {ORDER_KEYS_MAX}")
    return list(keys.items())


def _message_property_names() -> set[str]:
    return {name.lower() for name in (*MESSAGE_PROPERTIES, *_UNQUERYABLE)}


def _message_field(named: Property) -> QueryField[Condition]:
    def compare(operator: Operator, value: Value) -> Condition:
        if named in _ADDRESSES:
            return _by_address(partial(Compare, named, operator), operator, str(value))
        if named is Property.ID and operator in (Operator.EQ, Operator.NE):
            return _by_id(operator, str(value))
        return Compare(named, operator, value)

    kind, choices = _MESSAGE_TYPES.get(named, FieldType.TEXT), _CHOICES.get(named, ())
    return QueryField(named, kind, compare, choices, has_order=named not in _WITHOUT_ORDER)


def _by_id(operator: Operator, text: str) -> Condition:
    """Return the condition for an id; a restId names a message in one folder."""
    message_id, folder_id = read_rest_id(text)
    if not folder_id:
        return Compare(Property.ID, operator, text)
    within = Compare(Property.PARENT_FOLDER, Operator.EQ, folder_id)
    both = AllOf((Compare(Property.ID, Operator.EQ, message_id), within))
    return both if operator is Operator.EQ else Negation(both)


def _words_of_body(operator: Operator, value: Value) -> Condition:
    """Return the condition for words of the text: the index has only words. Raises ApiError 400."""
    words = str(value)
    is_text = len(words) <= _BODY_CHARACTERS_MAX and any(map(str.isalnum, words))
    if operator is not Operator.CONTAINS or not is_text:
        expected = f"contains({_BODY},'word') with at most {_BODY_CHARACTERS_MAX} characters"
        raise _unsupported(f"Found another condition of {_BODY}, expected {expected}.")
    return HasWords(SearchIn.BODY, words, prefix=True)


def _item_field(named: ItemProperty) -> QueryField[Condition]:
    def compare(operator: Operator, value: Value) -> Condition:
        assert isinstance(value, str), "the values of a text field are texts"
        if named is ItemProperty.ADDRESS:
            return _by_address(partial(CompareItem, named, operator), operator, value)
        return CompareItem(named, operator, value)

    return QueryField(named, FieldType.TEXT, compare, can_cast=named is ItemProperty.VALUE)


def _by_address(compared: Callable[[str], Condition], operator: Operator, value: str) -> Condition:
    """Return the condition for a text in addresses, which the index has with A-labels."""
    forms = pattern_forms(value) if operator in _IN_DOMAINS else (with_a_labels(value),)
    conditions = tuple(map(compared, forms))
    return conditions[0] if len(conditions) == 1 else AnyOf(conditions)


def _items(collection: Collection) -> CollectionField[Condition]:
    names: tuple[ItemProperty, ...] = (ItemProperty.ITSELF,)
    if collection in _RECIPIENTS:
        names = (ItemProperty.ADDRESS, ItemProperty.NAME)
    fields: Mapping[str, QueryField[Condition]] = {
        name.lower(): _item_field(name) for name in names
    }
    return CollectionField(fields, partial(AnyItem, collection))


def _extended_property(condition: Condition, *, name: str) -> Condition:
    """Return the condition for the value of an extended property. Raises ApiError 400."""
    parts = condition.conditions if isinstance(condition, AllOf) else (condition,)
    items = [part for part in parts if isinstance(part, CompareItem)]
    ids = [comparison for comparison in items if comparison.property is ItemProperty.PROPERTY_ID]
    values = [comparison for comparison in items if comparison.property is ItemProperty.VALUE]
    if len(items) < len(parts) or len(ids) != 1 or ids[0].operator is not Operator.EQ or not values:
        expected = f"{name}/any(ep:ep/id eq 'TYPE 0xTAG' and ep/value eq 'text')"
        raise _unsupported(f"found another condition of {name}, expected {expected}.")
    try:
        identity = extended_properties.canonical_id(ids[0].value, multiple=name == MULTIPLE)
    except extended_properties.ExtendedPropertyError as error:
        raise _unsupported(f"found the id {quoted(ids[0].value)}, {error}.") from None
    if identity == _HEADERS:
        conditions = tuple(map(_in_header, values))
    elif identity in _AS_PROPERTY:
        conditions = tuple(_as_property(identity, comparison) for comparison in values)
    elif identity in COMPUTED and identity not in _INDEXED:
        raise _unsupported(f"the property {quoted(identity)} cannot be filtered by.")
    else:
        conditions = tuple(_value_condition(identity, comparison) for comparison in values)
        if [(comparison.operator, comparison.value) for comparison in values] == [
            (Operator.EQ, "")
        ]:  # a property that is null too
            return AnyOf((AnyItem(identity, conditions[0]), Negation(AnyItem(identity, AllOf(())))))
        return AnyItem(identity, conditions[0] if len(conditions) == 1 else AllOf(conditions))
    return conditions[0] if len(conditions) == 1 else AllOf(conditions)


def _in_header(item: CompareItem) -> Condition:
    name, _, text = item.value.partition(": ")
    among = _IN_HEADER.get(name.lower() if item.operator is Operator.CONTAINS else "")
    if among is None:
        expected = "contains(ep/value,'NAME: text') of " + ", ".join(_IN_HEADER)
        raise _unsupported(f"found another condition of {_HEADERS}, expected {expected}.")
    if isinstance(among, tuple):
        return AnyOf(tuple(Compare(field, item.operator, text) for field in among))
    parts = (ItemProperty.ADDRESS, ItemProperty.NAME)
    return AnyItem(among, AnyOf(tuple(CompareItem(part, item.operator, text) for part in parts)))


def _as_property(identity: str, item: CompareItem) -> Condition:
    """Return the condition for an extended property that is another property of the message."""
    field = _message_field(_AS_PROPERTY[identity])
    if identity == extended_properties.FLAG_STATUS:
        number = _canonical(identity, item) if item.value else "0"
        return field.compare(
            item.operator, extended_properties.FLAG_STATUSES.get(number, "notFlagged")
        )
    if field.type is FieldType.TEXT:
        return field.compare(item.operator, item.value)
    if not item.value:  # compared with null
        return AllOf(()) if item.operator is Operator.NE else AnyOf(())
    value = _canonical(identity, item)
    if field.type is FieldType.NUMBER:
        return field.compare(item.operator, int(value))
    since = field.compare(Operator.GE, at_us := extended_properties.time_us(value))
    if item.operator not in (Operator.EQ, Operator.NE):
        return field.compare(item.operator, at_us)
    within = AllOf((since, field.compare(Operator.LT, at_us + _SECOND_US)))  # shown in seconds
    return within if item.operator is Operator.EQ else Negation(within)


def _value_condition(identity: str, item: CompareItem) -> Condition:
    """Return the condition for a stored value. Numbers, texts and times are in an order."""
    value, operator, is_number = item.value, item.operator, False
    if operator in (*_EQUALITY, *_ORDERED) and value:
        value = _canonical(identity, item)
        is_number = _kind(identity) in (_NUMBERS if operator in _ORDERED else _DECIMAL)
    return CompareItem(ItemProperty.ITSELF, operator, value, is_number)


def _kind(identity: str) -> str:
    return identity.partition(" ")[0].removesuffix("Array")


def _canonical(identity: str, item: CompareItem) -> str:
    """Return the value that a property is compared with, in its type. Raises ApiError 400."""
    kind, value = _kind(identity), item.value
    is_in_order = (
        kind in ("String", "SystemTime", *_NUMBERS) and identity != extended_properties.FLAG_STATUS
    )
    compared = (*_EQUALITY, *_ORDERED) if is_in_order else _EQUALITY
    if kind == "Binary":  # or base64url, as in binary'…' (OData 4.01 ABNF, binaryValue)
        value = value.replace("-", "+").replace("_", "/") + "=" * (-len(value) % 4)
    if item.operator not in compared:
        expected = ", ".join(compared)
        raise _unsupported(f"{identity}: found {item.operator}, expected one of {expected}.")
    try:
        return extended_properties.canonical_value(identity, value)
    except extended_properties.ExtendedPropertyError as error:
        raise _unsupported(f"{identity}: found {quoted(item.value)}, {error}.") from None


_MESSAGE_BY_NAME = {
    named.lower(): named
    for named in Property
    if named not in (Property.MESSAGE_CLASS, Property.SIZE, Property.ARTICLE)
}
_MESSAGE_ORDER = tuple(
    name
    for name, named in _MESSAGE_BY_NAME.items()
    if named not in (Property.CLASSIFICATION, *_FLAG_DATES)
)
_MESSAGE_RESOURCE: Resource[Condition] = Resource(
    kind="message",
    fields={
        **{name: _message_field(named) for name, named in _MESSAGE_BY_NAME.items()},
        _BODY: QueryField(_BODY, FieldType.TEXT, _words_of_body),
    },
    all_of=AllOf,
    one_of=AnyOf,
    negated=Negation,
    items={
        **{collection.lower(): _items(collection) for collection in Collection},
        **{
            name.lower(): CollectionField(
                {
                    name.lower(): _item_field(name)
                    for name in (ItemProperty.PROPERTY_ID, ItemProperty.VALUE)
                },
                partial(_extended_property, name=name),
                lists=(ItemProperty.VALUE,) if name == MULTIPLE else (),
            )
            for name in (SINGLE, MULTIPLE)
        },
    },
    known=frozenset(_message_property_names()),
    hints={
        "bodypreview": _BODY_HINT,
        "uniquebody": _BODY_HINT,
        "attachments": 'to find names of attachments, use $search="attachment:name"',
    },
)


_Record = TypeVar("_Record")
_Matches = Callable[[Any], bool]
_Fold = Callable[[Value], Value]
_FOLDER_NUMBERS = ("totalItemCount", "unreadItemCount", "childFolderCount", "sizeInBytes")
_FOLDER_TYPES = {
    **dict.fromkeys(("displayName", "id", "parentFolderId"), FieldType.TEXT),
    "isHidden": FieldType.BOOLEAN,
    **dict.fromkeys(_FOLDER_NUMBERS, FieldType.NUMBER),
}
_ATTACHMENT_TYPES = {
    **dict.fromkeys(("id", "name", "contentType"), FieldType.TEXT),
    "size": FieldType.NUMBER,
    "isInline": FieldType.BOOLEAN,
}
_OF_FACTS = {"contentType": "content_type", "isInline": "inline"}
_USER_TEXTS = ("id", "displayName", "mail", "mailNickname", "userPrincipalName", "userType")
_USER_TYPES = dict.fromkeys(_USER_TEXTS, FieldType.TEXT) | {"accountEnabled": FieldType.BOOLEAN}
_USER_COLLECTIONS = ("proxyAddresses", "otherMails")
_COMPARISONS: dict[Operator, Callable[..., bool]] = {
    Operator.EQ: compared_by.eq,
    Operator.NE: compared_by.ne,
    Operator.GT: compared_by.gt,
    Operator.GE: compared_by.ge,
    Operator.LT: compared_by.lt,
    Operator.LE: compared_by.le,
    Operator.STARTS_WITH: str.startswith,
    Operator.ENDS_WITH: str.endswith,
    Operator.CONTAINS: compared_by.contains,
}


@dataclass(frozen=True, slots=True)
class _RecordType(Generic[_Record]):
    """A resource whose records are all in memory: how to read and to filter each property."""

    readers: Mapping[str, Callable[[_Record], Any]]
    resource: Resource[_Matches]

    def selected(self, records: Sequence[_Record], options: QueryOptions) -> Sequence[_Record]:
        """Return the records that match $filter, sorted by $orderby. Raises ApiError 400."""
        if options.filter is not None:
            matches = bind_filter(parse_expression(options.filter), self.resource)
            records = [record for record in records if matches(record)]
        if options.orderby is not None:
            keys = order_keys(options.orderby, tuple(self.readers), kind=self.resource.kind)
            for name, descending in reversed(keys):
                records = sorted(records, key=self.readers[name], reverse=descending)
        return records


def _folded(value: Value) -> Value:
    return with_a_labels(value).casefold() if isinstance(value, str) else value


def _address_folded(address: Value) -> Value:
    """Return an address, or a part of one, as it is compared: ß is not ss."""
    return lower_case(with_a_labels(address)) if isinstance(address, str) else address


def _record_field(
    name: str, kind: FieldType, read: Callable[[_Record], Value], *, fold: _Fold
) -> QueryField[_Matches]:
    def compare(operator: Operator, value: Value) -> _Matches:
        holds, operand = _COMPARISONS[operator], fold(value)
        return lambda record: holds(read(record), operand)

    return QueryField(name, kind, compare)


def _addresses_field(read: Callable[[_Record], Sequence[str]]) -> CollectionField[_Matches]:
    """Return a collection of addresses. What its items are compared by are functions of an item."""

    def any_of(matches: _Matches) -> _Matches:
        return lambda record: any(matches(item) for item in read(record))

    item = _record_field("", FieldType.TEXT, _address_folded, fold=_address_folded)
    return CollectionField({"": item}, any_of)


def _value_of_folder(operator: Operator, value: Value) -> _Matches:
    holds, is_ordered = _COMPARISONS[operator], operator in _ORDERED

    def key(text: str) -> Value:
        return text.zfill(20) if is_ordered and text.isdecimal() else _folded(text)

    return lambda item: holds(key(item[1]), key(str(value)))


def _id_of_folder(operator: Operator, value: Value) -> _Matches:
    with suppress(extended_properties.ExtendedPropertyError):
        identity = extended_properties.canonical_id(str(value))
        if operator is Operator.EQ and identity in FOLDER_COMPUTED:
            return lambda item: item[0] == identity
    raise _unsupported(f"folders cannot be filtered by the property {quoted(str(value))}.")


def _any_of_folder(matches: _Matches) -> _Matches:
    def has_match(folder: Folder) -> bool:
        values = ((property_id, of(folder)) for property_id, of in FOLDER_COMPUTED.items())
        return any(map(matches, values))

    return has_match


_EXTENDED_OF_FOLDERS = {
    "id": QueryField("id", FieldType.TEXT, _id_of_folder),
    "value": QueryField("value", FieldType.TEXT, _value_of_folder, can_cast=True),
}


def _record_type(
    kind: str,
    types: Mapping[str, FieldType],
    properties: Mapping[str, Callable[[_Record], Any]],
    *,
    items: Mapping[str, CollectionField[_Matches]] = {},
    fold: _Fold = _folded,
) -> _RecordType[_Record]:
    """Return a type whose `types` can be filtered and sorted by, without regard to case, as `fold`
    has it, and `items`, the fields of collections, filtered by.
    """

    def reader(name: str) -> Callable[[_Record], Value]:
        read = properties[name]
        return lambda record: fold(read(record))

    readers = {name: reader(name) for name in types}
    resource = Resource(
        kind=kind,
        fields={
            name.lower(): _record_field(name, kind, readers[name], fold=fold)
            for name, kind in types.items()
        },
        all_of=lambda parts: lambda record: all(matches(record) for matches in parts),
        one_of=lambda parts: lambda record: any(matches(record) for matches in parts),
        negated=lambda part: lambda record: not part(record),
        items=items,
        known=frozenset(name.lower() for name in properties),
    )
    return _RecordType({name.lower(): read for name, read in readers.items()}, resource)


_FOLDERS = _record_type(
    "mailFolder",
    _FOLDER_TYPES,
    FOLDER_PROPERTIES,
    items={SINGLE.lower(): CollectionField(_EXTENDED_OF_FOLDERS, _any_of_folder)},
)
select_folders = _FOLDERS.selected
_ATTACHMENTS: _RecordType[AttachedOctets] = _record_type(
    "attachment",
    _ATTACHMENT_TYPES,
    {name: attrgetter(f"facts.{_OF_FACTS.get(name, name)}") for name in _ATTACHMENT_TYPES},
)
select_attachments = _ATTACHMENTS.selected
_USERS: _RecordType[Account] = _record_type(
    "user",
    _USER_TYPES,
    USER_PROPERTIES,
    items={name.lower(): _addresses_field(USER_PROPERTIES[name]) for name in _USER_COLLECTIONS},
    fold=_address_folded,
)
select_users = _USERS.selected
