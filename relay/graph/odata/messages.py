"""$filter and $orderby of messages: a table of what can be asked for, and by which type.

On the path: list_messages hands the options' texts in; the mailbox's index answers what comes out.
Holds: every Property of relay.mailbox.query can be asked for and sorted by, under Graph's name.
Fails: ApiError 400, see resolve; ErrorInvalidUrlQuery for an order that is none.
Standards: Graph's message resource type; OData 4.01 URL conventions 5.1.1, 5.1.5 ($orderby).
"""

import re
from collections.abc import Mapping
from functools import partial

from relay.graph.odata.expression import parse_expression
from relay.graph.odata.resolve import Field, Items, Resource, Type, Value, resolve
from relay.graph.odata.tokens import CHARACTERS_MAX, clause_fault
from relay.graph.show import MESSAGE_PROPERTIES
from relay.http.errors import ApiError, shown
from relay.mailbox.query import (
    AllOf,
    AnyItem,
    Collection,
    Compare,
    CompareItem,
    Condition,
    ItemProperty,
    Negated,
    OneOf,
    Operator,
    Order,
    Property,
)

ORDER_KEYS_MAX = 5
_ORDER_KEY = re.compile(r"\s*+([\w/.]++)(?:\s++(asc|desc))?\s*+", re.ASCII | re.IGNORECASE)
_TYPES = {
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
    return resolve(parse_expression(text), _MESSAGE)


def message_order(text: str) -> tuple[Order, ...]:
    """Return the keys of an $orderby on messages. Raises ApiError 400."""
    return tuple(
        Order(_BY_NAME[name], descending=descending)
        for name, descending in order_keys(text, tuple(_BY_NAME), frozenset(_known()))
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


def _known() -> set[str]:
    return {name.lower() for name in (*MESSAGE_PROPERTIES, *_OTHERS)}


def _field(named: Property) -> Field[Condition]:
    def compare(operator: Operator, value: Value) -> Condition:
        return Compare(named, operator, value)

    choices = {Property.IMPORTANCE: _IMPORTANCES, Property.FLAG: _FLAGS}.get(named, ())
    kind = _TYPES.get(named, Type.TEXT)
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


_BY_NAME = {named.lower(): named for named in Property}
_MESSAGE: Resource[Condition] = Resource(
    type_name="microsoft.graph.message",
    fields={named.lower(): _field(named) for named in Property},
    all_of=AllOf,
    one_of=OneOf,
    negated=Negated,
    items={collection.lower(): _items(collection) for collection in Collection},
    known=frozenset(_known()),
    hints={
        "body": _BODY_HINT,
        "bodypreview": _BODY_HINT,
        "uniquebody": _BODY_HINT,
        "attachments": 'to find names of attachments, ask $search="attachment:name"',
    },
)
