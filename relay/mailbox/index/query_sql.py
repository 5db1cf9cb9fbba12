"""Conditions and orders as SQL: what is asked of a mailbox, in a form that costs the page.

On the path: querying.py runs what comes out.
Holds: pure. Every value is bound, nothing of a caller's is in the text. What one
index or one list of words can find leads, the rest filters.
Fails: never.
Standards: relay.mailbox.query; SQLite FTS5 3 (full-text query syntax).
"""

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, assert_never

from relay.mailbox.index.rows import UIDS_A_MICROSECOND
from relay.mailbox.message_file import TIME_US_MAX
from relay.mailbox.query import (
    AllOf,
    AnyItem,
    Compare,
    CompareItem,
    Condition,
    HasWords,
    ItemProperty,
    Negated,
    OneOf,
    Operator,
    Order,
    Property,
    SearchIn,
)
from relay.mailbox.types import StalePositionError

KEY_CHARACTERS = 255
FACTS, WORDS = 1, 2  # what has to be read of the messages: the header's facts; the words as well
UID = "message.uid"
_LAST_LETTER = "\U0010ffff"
_PIECE_LETTERS = 3
_SLACK_US = 1024  # a full microsecond's messages have the uids of later ones
TIMES = {
    Property.RECEIVED: "received_us",
    Property.SENT: "sent_us",
    Property.CREATED: "created_us",
    Property.MODIFIED: "modified_us",
}
TEXTS = {
    Property.SUBJECT: "subject_key",
    Property.FROM_ADDRESS: "from_key",
    Property.FROM_NAME: "from_name_key",
    Property.SENDER_ADDRESS: "sender_key",
    Property.SENDER_NAME: "sender_name_key",
    Property.INTERNET_MESSAGE_ID: "internet_key",
    Property.CONVERSATION_ID: "conversation_key",
}
MARKS = {
    Property.IS_READ: "is_read",
    Property.IS_DRAFT: "is_draft",
    Property.HAS_ATTACHMENTS: "has_attachments",
    Property.IMPORTANCE: "importance",
    Property.FLAG: "is_flagged",
}
LEVELS = {
    **dict.fromkeys(TEXTS, FACTS),
    **dict.fromkeys(
        (Property.SENT, Property.CREATED, Property.MODIFIED, Property.IMPORTANCE), FACTS
    ),
    Property.HAS_ATTACHMENTS: WORDS,
}
_INDEXED = frozenset(
    (
        *(Property.SUBJECT, Property.FROM_ADDRESS),
        *(Property.INTERNET_MESSAGE_ID, Property.CONVERSATION_ID),
    )
)
_MARK = re.compile(r"\b(message\.is_read)\b")
_IN_PIECES = frozenset((Property.SUBJECT, Property.FROM_ADDRESS, Property.FROM_NAME))
RANKS = {"low": 0, "normal": 1, "high": 2}
_FLAGS = {"notflagged": 0, "flagged": 1}
_NO_RANK = -1  # of a word that is none of these: equal to nothing
_OPERATORS = {
    Operator.EQ: "=",
    Operator.NE: "<>",
    Operator.GT: ">",
    Operator.GE: ">=",
    Operator.LT: "<",
    Operator.LE: "<=",
}
_WORD_COLUMNS = {
    SearchIn.ANYWHERE: "",
    SearchIn.SUBJECT: "subject",
    SearchIn.BODY: "body",
    SearchIn.FROM: "sender",
    SearchIn.TO: "recipient",
    SearchIn.CC: "cc",
    SearchIn.BCC: "bcc",
    SearchIn.RECIPIENTS: "recipient cc bcc",
    SearchIn.PARTICIPANTS: "sender recipient cc bcc",
    SearchIn.ATTACHMENT: "attachment",
}


@dataclass(frozen=True, slots=True)
class Clause:
    """SQL with its values; `level` is what has to be read before."""

    sql: str
    values: tuple[Any, ...] = ()
    level: int = 0


@dataclass(frozen=True, slots=True)
class Lead:
    """What a query begins with: a table in front of the messages, and what is asked of it.

    `uid` is that table's name for a message's uid; `may_repeat`: it has a message more than once.
    """

    tables: str
    where: Clause
    uid: str = UID
    may_repeat: bool = False


@dataclass(frozen=True, slots=True)
class Compiled:
    """A condition: `lead` and `filter` together; `folder` is the one on the folder's number."""

    lead: Lead
    filter: Clause
    folder: str


EVERYTHING = Lead("message", Clause("1"))


def key_of(text: str) -> str:
    """Return a text's beginning as it is compared: without regard to case."""
    return text.encode("utf-8", "replace").decode().casefold()[:KEY_CHARACTERS]


def compiled(condition: Condition | None) -> Compiled:
    """Return what leads and what filters."""
    parts = list(_conjuncts(condition)) if condition is not None else []
    lead, led = _lead(parts)
    rest = [_clause(part) for part in parts if part not in led]
    found_by = {one.property for one in parts if isinstance(one, Compare) and _has_index(one)}
    # A plus keeps SQLite from using an index: of what finds few, not of what finds many.
    folder = "message.folder"
    if lead is not EVERYTHING or found_by - {Property.FROM_ADDRESS}:
        folder = "+message.folder"
    if lead is not EVERYTHING or found_by:
        rest = [replace(one, sql=_MARK.sub(r"+\1", one.sql)) for one in rest]
    return Compiled(lead, joined(rest, " AND ", "1"), f"{folder} = ?")


def _conjuncts(condition: Condition) -> Iterator[Condition]:
    if isinstance(condition, AllOf):
        for one in condition.conditions:
            yield from _conjuncts(one)
    else:
        yield condition


def _lead(parts: Sequence[Condition]) -> tuple[Lead, Sequence[Condition]]:
    """Choose what finds the fewest: words; then a value that has an index of its own.

    Returns the conditions that it fulfils as well.
    """
    words = [one for one in parts if _is_of_words(one)]
    if words:
        expression = " AND ".join(f"({_words_of(one)})" for one in words)
        where = Clause("word MATCH ?", (expression,), WORDS)
        lead = Lead("word CROSS JOIN message ON message.uid = word.rowid", where, "word.rowid")
        return lead, words
    for one in parts:
        if isinstance(one, AnyItem) and isinstance(one.condition, CompareItem):
            item = one.condition
            if item.operator is Operator.EQ and item.property is not ItemProperty.NAME:
                where = Clause(
                    "item.kind = ? AND item.address_key = ?",
                    (str(one.collection), key_of(item.value)),
                    FACTS,
                )
                tables = "item CROSS JOIN message ON message.uid = item.uid"
                return Lead(tables, where, "item.uid", may_repeat=True), [one]
    if not any(_has_index(one) for one in parts):
        for one in parts:
            if isinstance(one, Compare) and _has_pieces(one):
                column, quoted = TEXTS[one.property], _quoted(key_of(str(one.value)))
                where = Clause("piece MATCH ?", (f"{column} : {quoted}",), FACTS)
                tables = "piece CROSS JOIN message ON message.uid = piece.rowid"
                return Lead(tables, where, "piece.rowid"), ()
    return EVERYTHING, ()


def _has_index(condition: Condition) -> bool:
    """Whether an index finds the few messages that a condition is about."""
    if not isinstance(condition, Compare):
        return False
    if condition.operator is Operator.STARTS_WITH:
        return condition.property in _INDEXED and bool(condition.value)
    return condition.operator is Operator.EQ and condition.property in {*_INDEXED, Property.ID}


def _has_pieces(condition: Compare) -> bool:
    return (
        condition.operator is Operator.CONTAINS
        and condition.property in _IN_PIECES
        and len(key_of(str(condition.value))) >= _PIECE_LETTERS
        and "\0" not in str(condition.value)
    )


def _is_of_words(condition: Condition) -> bool:
    """Whether the list of words can answer a condition alone."""
    match condition:
        case HasWords():
            return True
        case AllOf(conditions) | OneOf(conditions):
            return bool(conditions) and all(map(_is_of_words, conditions))
        case _:
            return False


def _words_of(condition: Condition) -> str:
    """Return a condition of words in FTS5's language."""
    match condition:
        case HasWords(where, words, prefix):
            columns = _WORD_COLUMNS[where]
            field = f"{{{columns}}} : " if columns else ""
            return f"{field}{_quoted(words)}{' *' if prefix else ''}"
        case AllOf(conditions):
            return " AND ".join(f"({_words_of(one)})" for one in conditions)
        case OneOf(conditions):
            return " OR ".join(f"({_words_of(one)})" for one in conditions)
        case _:
            raise AssertionError(condition)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""').replace("\0", " ") + '"'


def _clause(condition: Condition) -> Clause:
    match condition:
        case Compare():
            return _compared(condition)
        case AnyItem(collection, inner):
            clause = _clause(inner)
            sql = (
                f"EXISTS (SELECT 1 FROM item AS one WHERE one.uid = {UID} AND one.kind = ?"
                f" AND ({clause.sql}))"
            )
            return Clause(sql, (str(collection), *clause.values), max(FACTS, clause.level))
        case CompareItem(item_property, operator, value):
            column = "name_key" if item_property is ItemProperty.NAME else "address_key"
            return _text_compared(f"one.{column}", operator, value)
        case HasWords():
            sql = f"{UID} IN (SELECT rowid FROM word WHERE word MATCH ?)"
            return Clause(sql, (_words_of(condition),), WORDS)
        case AllOf(conditions):
            return joined([_clause(one) for one in conditions], " AND ", "1")
        case OneOf(conditions):
            return joined([_clause(one) for one in conditions], " OR ", "0")
        case Negated(inner):
            clause = _clause(inner)
            return Clause(f"NOT ({clause.sql})", clause.values, clause.level)
        case _:
            assert_never(condition)


def _compared(condition: Compare) -> Clause:
    operator, value, level = condition.operator, condition.value, LEVELS.get(condition.property, 0)
    if condition.property in TIMES:
        time_us = min(max(int(value), 0), TIME_US_MAX)
        return _time_compared(TIMES[condition.property], operator, time_us, level=level)
    if condition.property is Property.PARENT_FOLDER:
        clause = _text_compared("id", operator, str(value))
        sql = f"message.folder IN (SELECT number FROM folder WHERE {clause.sql})"
        return Clause(sql, clause.values)
    if condition.property is Property.ID:
        return _text_compared("message.message_id", operator, str(value))
    if condition.property in TEXTS:
        column = f"message.{TEXTS[condition.property]}"
        clause = _text_compared(column, operator, str(value))
        return Clause(clause.sql, clause.values, level)
    number = _number(condition)
    sign = _OPERATORS.get(operator)
    if sign is None or (number == _NO_RANK and operator is not Operator.NE):
        return Clause("0", (), level)
    return Clause(f"message.{MARKS[condition.property]} {sign} ?", (number,), level)


def _number(condition: Compare) -> int:
    value = condition.value
    if isinstance(value, str):
        words = _FLAGS if condition.property is Property.FLAG else RANKS
        return words.get(value.lower(), _NO_RANK)
    return int(value)


def _text_compared(column: str, operator: Operator, value: str) -> Clause:
    key = key_of(value)
    match operator:
        case Operator.STARTS_WITH:
            return Clause(f"({column} >= ? AND {column} < ?)", (key, key + _LAST_LETTER))
        case Operator.ENDS_WITH:
            return Clause(f"substr({column}, -length(?)) = ?", (key, key)) if key else Clause("1")
        case Operator.CONTAINS:
            return Clause(f"instr({column}, ?) > 0", (key,)) if key else Clause("1")
        case _:
            return Clause(f"{column} {_OPERATORS[operator]} ?", (key,))


def _time_compared(column: str, operator: Operator, value_us: int, *, level: int) -> Clause:
    sign = _OPERATORS.get(operator)
    if sign is None:
        return Clause("0", (), level)
    sql = f"message.{column} {sign} ?"
    if column != "received_us" or operator is Operator.NE:
        return Clause(sql, (value_us,), level)
    # The uids are in the order of time, so the index needs to look no further than these.
    first, last = value_us * UIDS_A_MICROSECOND, (value_us + _SLACK_US) * UIDS_A_MICROSECOND
    bounds = {
        Operator.EQ: f"{UID} BETWEEN ? AND ?",
        Operator.GT: f"{UID} >= ?",
        Operator.GE: f"{UID} >= ?",
        Operator.LT: f"{UID} < ?",
        Operator.LE: f"{UID} < ?",
    }[operator]
    values = {Operator.EQ: (first, last), Operator.GT: (first,), Operator.GE: (first,)}
    return Clause(f"({bounds} AND {sql})", (*values.get(operator, (last,)), value_us), level)


def joined(clauses: Sequence[Clause], between: str, of_none: str) -> Clause:
    """Return clauses as one; `of_none` is what it is without any."""
    if not clauses:
        return Clause(of_none)
    return Clause(
        between.join(f"({one.sql})" for one in clauses),
        tuple(value for one in clauses for value in one.values),
        max(one.level for one in clauses),
    )


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
