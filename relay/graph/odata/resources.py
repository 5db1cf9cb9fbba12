"""$filter and $orderby of messages: a table of what can be asked for, and by which type.

On the path: list_messages hands the options' texts in; the mailbox's index answers what comes out.
Holds: every Property of relay.mailbox.query can be asked for and sorted by, under Graph's name.
Fails: ApiError 400, see resolve; ErrorInvalidUrlQuery for an order that is none.
Standards: Graph's message resource type; OData 4.01 URL conventions 5.1.1, 5.1.5 ($orderby).
"""

import operator as compared_by
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from relay.graph.odata.expression import CHARACTERS_MAX, clause_fault, parse_expression
from relay.graph.odata.filter import Field, Items, Resource, Type, Value, resolve
from relay.graph.serializer import FOLDER_PROPERTIES, MESSAGE_PROPERTIES
from relay.http.errors import ApiError, shown
from relay.mailbox.query import (
    AllOf,
    AnyItem,
    AnyOf,
    Collection,
    Compare,
    CompareItem,
    Condition,
    ItemProperty,
    Negation,
    Operator,
    Property,
    SortOrder,
)
from relay.mailbox.types import Folder

ORDER_KEYS_MAX = 5
_ORDER_KEY = re.compile(r"\s*+([\w/.]++)(?:\s++(asc|desc))?\s*+", re.ASCII | re.IGNORECASE)
_MESSAGE_TYPES = {
    Property.RECEIVED: Type.TIME,
    Property.SENT: Type.TIME,
    Property.CREATED: Type.TIME,
    Property.MODIFIED: Type.TIME,
    Property.IS_READ: Type.BOOLEAN,
    Property.IS_DRAFT: Type.BOOLEAN,
    Property.HAS_ATTACHMENTS: Type.BOOLEAN,
    Property.IMPORTANCE: Type.CHOICE,
    Property.FLAG: Type.CHOICE,
}
_IMPORTANCES = ("low", "normal", "high")
_FLAGS = ("notFlagged", "flagged", "complete")
_PEOPLE = (Collection.TO, Collection.CC, Collection.BCC, Collection.REPLY_TO)
_OTHERS = (
    *("attachments", "extensions", "singleValueExtendedProperties", "uniqueBody", "sensitivity"),
    *("multiValueExtendedProperties", "sender", "from", "flag", "body", "mentions"),
)
_BODY_HINT = 'to find words of the text, ask $search="body:word"'


def message_condition(text: str) -> Condition:
    """Return the condition that a $filter on messages means. Raises ApiError 400."""
    return resolve(parse_expression(text), _MESSAGE_RESOURCE)


def message_order(text: str) -> tuple[SortOrder, ...]:
    """Return the keys of an $orderby on messages. Raises ApiError 400."""
    return tuple(
        SortOrder(_MESSAGE_BY_NAME[name], descending=descending)
        for name, descending in order_keys(
            text, tuple(_MESSAGE_BY_NAME), frozenset(_message_property_names())
        )
    )


def order_keys(
    text: str, names: tuple[str, ...], known: frozenset[str] = frozenset()
) -> list[tuple[str, bool]]:
    """Return an $orderby's keys: the name, one of `names` (in lower case), and whether it descends.

    `known` are properties that exist, in lower case. Raises ApiError 400.
    """
    if len(text) > CHARACTERS_MAX:
        raise clause_fault("orderby", f"found {len(text)} characters")
    keys: dict[str, bool] = {}
    for part in text.split(","):
        match = _ORDER_KEY.fullmatch(part)
        if match is None:
            found = shown(part.strip())
            raise clause_fault("orderby", f"found {found}, expected a property, and asc or desc")
        name = match[1].lower()
        if name not in names and name.partition("/")[0] in known:
            message = f"$orderby: cannot sort by {shown(match[1])}."
            raise ApiError(400, "ErrorInvalidUrlQuery", message)
        if name not in names:
            raise clause_fault("orderby", f"Could not find a property named {shown(match[1])}")
        if name in keys:
            raise clause_fault("orderby", f"{shown(match[1])} is there twice")
        keys[name] = (match[2] or "").lower() == "desc"
    if len(keys) > ORDER_KEYS_MAX:
        raise clause_fault("orderby", f"found {len(keys)} keys, expected at most {ORDER_KEYS_MAX}")
    return list(keys.items())


def _message_property_names() -> set[str]:
    return {name.lower() for name in (*MESSAGE_PROPERTIES, *_OTHERS)}


def _message_field(named: Property) -> Field[Condition]:
    def compare(operator: Operator, value: Value) -> Condition:
        return Compare(named, operator, value)

    choices = {Property.IMPORTANCE: _IMPORTANCES, Property.FLAG: _FLAGS}.get(named, ())
    kind = _MESSAGE_TYPES.get(named, Type.TEXT)
    return Field(named, kind, compare, choices, has_order=named is not Property.FLAG)


def _item_field(named: ItemProperty) -> Field[Condition]:
    def compare(operator: Operator, value: Value) -> Condition:
        assert isinstance(value, str), "a text's values are texts"
        return CompareItem(named, operator, value)

    return Field(named, Type.TEXT, compare)


def _items(collection: Collection) -> Items[Condition]:
    names: tuple[ItemProperty, ...] = (ItemProperty.ITSELF,)
    if collection in _PEOPLE:
        names = (ItemProperty.ADDRESS, ItemProperty.NAME)
    fields: Mapping[str, Field[Condition]] = {name.lower(): _item_field(name) for name in names}
    return Items(fields, partial(AnyItem, collection))


_MESSAGE_BY_NAME = {named.lower(): named for named in Property}
_MESSAGE_RESOURCE: Resource[Condition] = Resource(
    type_name="microsoft.graph.message",
    fields={named.lower(): _message_field(named) for named in Property},
    all_of=AllOf,
    one_of=AnyOf,
    negated=Negation,
    items={collection.lower(): _items(collection) for collection in Collection},
    known=frozenset(_message_property_names()),
    hints={
        "body": _BODY_HINT,
        "bodypreview": _BODY_HINT,
        "uniquebody": _BODY_HINT,
        "attachments": 'to find names of attachments, ask $search="attachment:name"',
    },
)


_Matches = Callable[[Folder], bool]
_FOLDER_TYPES = {
    "displayName": Type.TEXT,
    "id": Type.TEXT,
    "parentFolderId": Type.TEXT,
    "isHidden": Type.BOOLEAN,
    "totalItemCount": Type.NUMBER,
    "unreadItemCount": Type.NUMBER,
    "childFolderCount": Type.NUMBER,
    "sizeInBytes": Type.NUMBER,
}
_FOLDER_BY_NAME = {name.lower(): name for name in _FOLDER_TYPES}
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


def select_folders(
    folders: Sequence[Folder], *, filter_: str | None, orderby: str | None
) -> Sequence[Folder]:
    """Return the folders that a $filter and an $orderby mean. Raises ApiError 400."""
    if filter_ is not None:
        matches = resolve(parse_expression(filter_), _FOLDER_RESOURCE)
        folders = [folder for folder in folders if matches(folder)]
    if orderby is not None:
        for name, descending in reversed(order_keys(orderby, tuple(_FOLDER_BY_NAME))):
            read = _folder_reader(_FOLDER_BY_NAME[name])
            folders = sorted(folders, key=read, reverse=descending)
    return folders


def _folder_reader(name: str) -> Callable[[Folder], Value]:
    """Return what reads a property as it is shown, for comparison without regard to case."""
    read = FOLDER_PROPERTIES[name]
    return lambda folder: _folded(read(folder))


def _folded(value: Value) -> Value:
    return value.casefold() if isinstance(value, str) else value


def _folder_field(name: str, kind: Type) -> Field[_Matches]:
    read = _folder_reader(name)

    def compare(operator: Operator, value: Value) -> _Matches:
        holds, wanted = _COMPARISONS[operator], _folded(value)
        return lambda folder: holds(read(folder), wanted)

    return Field(name, kind, compare)


def _all_match(parts: tuple[_Matches, ...]) -> _Matches:
    return lambda folder: all(matches(folder) for matches in parts)


def _any_matches(parts: tuple[_Matches, ...]) -> _Matches:
    return lambda folder: any(matches(folder) for matches in parts)


def _not_matching(part: _Matches) -> _Matches:
    return lambda folder: not part(folder)


_FOLDER_RESOURCE: Resource[_Matches] = Resource(
    type_name="microsoft.graph.mailFolder",
    fields={name.lower(): _folder_field(name, kind) for name, kind in _FOLDER_TYPES.items()},
    all_of=_all_match,
    one_of=_any_matches,
    negated=_not_matching,
    known=frozenset(name.lower() for name in FOLDER_PROPERTIES),
)
