"""Orders and pages: where the next page begins, as a text that its reader need not understand.

On the path: querying.py asks for rows behind the last one that was seen.
Holds: pure. A page begins behind values, not behind a count: mail that comes in shifts nothing.
Fails: StalePositionError for a text that no page of this order has given away.
Standards: OData 4.01 11.2.6.7 (server-driven paging).
"""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from relay.mailbox.index.conditions import (
    LEVELS,
    MARKS,
    TEXTS,
    TIMES,
    UID,
    Clause,
    joined,
)
from relay.mailbox.query import Order, Property
from relay.mailbox.types import StalePositionError

_TOKEN_CHARACTERS_MAX = 8192
_NUMBER_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class SortKey:
    """A key of an order as an expression; `is_text`, or a number."""

    sql: str
    descending: bool
    is_text: bool = False
    level: int = 0


def sort_keys(orders: Sequence[Order]) -> tuple[SortKey, ...]:
    """Return an order's keys; the uid, which is in the order of time, ends it."""
    keys = []
    for order in orders:
        if order.property is Property.RECEIVED and order is orders[-1]:
            break
        column = f"message.{_COLUMNS[order.property]}"
        if order.property is Property.PARENT_FOLDER:
            column = f"(SELECT id FROM folder WHERE number = {column})"
        level = LEVELS.get(order.property, 0)
        keys.append(SortKey(column, order.descending, order.property in _TEXTS, level))
    descending = orders[-1].descending if orders else True
    return (*keys, SortKey(UID, descending))


def beyond(keys: Sequence[SortKey], values: Sequence[Any]) -> Clause:
    """Return the condition that a row comes behind the one whose keys have these values."""
    if len({key.descending for key in keys}) == 1:
        sign = "<" if keys[0].descending else ">"
        columns = ", ".join(key.sql for key in keys)
        return Clause(f"({columns}) {sign} ({', '.join('?' * len(keys))})", tuple(values))
    clauses = []
    for number, key in enumerate(keys):
        same = [Clause(f"{one.sql} = ?", (values[at],)) for at, one in enumerate(keys[:number])]
        sign = "<" if key.descending else ">"
        further = Clause(f"{key.sql} {sign} ?", (values[number],))
        clauses.append(joined([*same, further], " AND ", "1"))
    return joined(clauses, " OR ", "0")


def written_token(keys: Sequence[SortKey], values: Sequence[Any]) -> str:
    """Return where the page behind a row with these values begins."""
    text = json.dumps([_shape(keys), *values], separators=(",", ":"))
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_token(keys: Sequence[SortKey], token: str) -> tuple[Any, ...]:
    """Return the values of a token.

    Raises StalePositionError.
    """
    if len(token) > _TOKEN_CHARACTERS_MAX:
        raise _stale()
    try:
        octets = urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
        shape, *values = json.loads(octets)
    except (ValueError, TypeError, RecursionError):
        raise _stale() from None
    if shape != _shape(keys) or len(values) != len(keys):
        raise _stale()
    for key, value in zip(keys, values, strict=True):
        is_number = type(value) is int and abs(value) <= _NUMBER_MAX
        if not (_is_text(value) if key.is_text else is_number):
            raise _stale()
    return tuple(values)


def _is_text(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:  # half of a character, that no key has
        return False


def _shape(keys: Sequence[SortKey]) -> str:
    """What tells one order from another."""
    return ",".join(f"{'-' if key.descending else ''}{key.sql}" for key in keys)


def _stale() -> StalePositionError:
    return StalePositionError("The page's token is none of this query; begin with the first page.")


_TEXTS = frozenset((*TEXTS, Property.PARENT_FOLDER, Property.ID))
_COLUMNS = {
    **TIMES,
    **TEXTS,
    **MARKS,
    Property.PARENT_FOLDER: "folder",
    Property.ID: "message_id",
}
