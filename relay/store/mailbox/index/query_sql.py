"""Compile conditions, sort orders and page tokens to SQL.

Pure: every value is bound, and no text of a client is part of the SQL. The condition that one SQL
index or the full-text index can answer drives the query; the rest filters its rows. A page begins
after the key values of a row, not after a count, so that new mail does not shift pages (OData 4.01
11.2.6.7, server-driven paging; SQLite FTS5 3, full-text query syntax). Raises StalePositionError
for a token that no page of the same order returned.
"""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from typing import Any, assert_never

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from relay.store.mailbox.errors import StalePositionError
from relay.store.mailbox.index.database import marks
from relay.store.mailbox.index.rows import FLAG_STATUSES, UIDS_PER_US
from relay.store.mailbox.message_file import TIME_US_MAX
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

KEY_CHARACTERS = 255
HEADER_LEVEL = 1  # the message's header is read
TEXT_LEVEL = 2  # its text is read too
UID = "message.uid"
ARTICLE = "message.article"
_LAST_LETTER = "\U0010ffff"
_TRIGRAM_LETTERS = 3
_SLACK_US = 1024  # uids of a full microsecond continue in later ones


class _Kind(Enum):
    TIME = auto()
    TEXT = auto()
    NUMBER = auto()


class _Column(Struct, frozen=True):
    """The column of a property, and the content level at which it has a value."""

    name: str
    kind: _Kind
    level: int = 0


_COLUMNS = {
    Property.RECEIVED: _Column("received_us", _Kind.TIME),
    Property.SENT: _Column("sent_us", _Kind.TIME, HEADER_LEVEL),
    Property.CREATED: _Column("created_us", _Kind.TIME, HEADER_LEVEL),
    Property.MODIFIED: _Column("modified_us", _Kind.TIME, HEADER_LEVEL),
    Property.FLAG_START: _Column("flag_start_us", _Kind.TIME),
    Property.FLAG_DUE: _Column("flag_due_us", _Kind.TIME),
    Property.FLAG_COMPLETED: _Column("flag_completed_us", _Kind.TIME),
    Property.SUBJECT: _Column("subject_key", _Kind.TEXT, HEADER_LEVEL),
    Property.FROM_ADDRESS: _Column("from_key", _Kind.TEXT, HEADER_LEVEL),
    Property.FROM_NAME: _Column("from_name_key", _Kind.TEXT, HEADER_LEVEL),
    Property.SENDER_ADDRESS: _Column("sender_key", _Kind.TEXT, HEADER_LEVEL),
    Property.SENDER_NAME: _Column("sender_name_key", _Kind.TEXT, HEADER_LEVEL),
    Property.INTERNET_MESSAGE_ID: _Column("internet_key", _Kind.TEXT, HEADER_LEVEL),
    Property.CONVERSATION_ID: _Column("conversation_key", _Kind.TEXT, HEADER_LEVEL),
    Property.MESSAGE_CLASS: _Column("class_key", _Kind.TEXT, HEADER_LEVEL),
    Property.SIZE: _Column("size_bytes + message.added_bytes", _Kind.NUMBER, TEXT_LEVEL),
    Property.ARTICLE: _Column("article", _Kind.NUMBER),
    Property.PARENT_FOLDER: _Column("folder", _Kind.TEXT),  # its number stands for its id
    Property.ID: _Column("message_id", _Kind.TEXT),
    Property.IS_READ: _Column("is_read", _Kind.NUMBER),
    Property.IS_DRAFT: _Column("is_draft", _Kind.NUMBER),
    Property.HAS_ATTACHMENTS: _Column("has_attachments", _Kind.NUMBER, TEXT_LEVEL),
    Property.IMPORTANCE: _Column("importance", _Kind.NUMBER, HEADER_LEVEL),
    Property.FLAG: _Column("flag_status", _Kind.NUMBER),
    Property.CLASSIFICATION: _Column("is_other", _Kind.NUMBER),
}
_INDEXED = frozenset(
    (
        *(Property.SUBJECT, Property.FROM_ADDRESS),
        *(Property.INTERNET_MESSAGE_ID, Property.CONVERSATION_ID),
    )
)
_MARK = re.compile(r"\b(message\.is_read)\b")
_TRIGRAM_PROPERTIES = frozenset((Property.SUBJECT, Property.FROM_ADDRESS, Property.FROM_NAME))
RANKS = {"low": 0, "normal": 1, "high": 2}
_CLASSIFICATIONS = {"focused": 0, "other": 1}
_NO_RANK = -1  # of an unknown value: no message has it
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


class Clause(Struct, frozen=True):
    """SQL with its values; `level` is the content level that it needs."""

    sql: str
    values: tuple[Any, ...] = ()
    level: int = 0


class DrivingTable(Struct, frozen=True):
    """The table that drives a query (the outer loop of the join), and its condition.

    `uid` is the column of that table with a message's uid. With `may_repeat`, the table may have
    several rows of a message.
    """

    tables: str
    where: Clause
    uid: str = UID
    may_repeat: bool = False


class CompiledCondition(Struct, frozen=True):
    """A compiled condition: `lead` and `filter` must match; `folder` tests the folder's number."""

    lead: DrivingTable
    filter: Clause
    folder: str


ALL_MESSAGES = DrivingTable("message", Clause("1"))


def search_key(text: str) -> str:
    """Return the first 255 characters of a text, case-folded, as they are compared."""
    return text.encode("utf-8", "replace").decode().casefold()[:KEY_CHARACTERS]


def _item_kind(collection: str) -> str:
    return str(collection) if isinstance(collection, Collection) else extended_kind(collection)


def extended_kind(identity: str) -> str:
    """Return the `kind` of the items that are values of an extended property."""
    return identity.lower()


def compile_condition(condition: Condition | None) -> CompiledCondition:
    """Return a condition as SQL."""
    parts = list(_conjuncts(condition)) if condition is not None else []
    lead, led = _choose_driving_table(parts)
    rest = [_clause(part) for part in parts if part not in led]
    found_by = {part.property for part in parts if isinstance(part, Compare) and _has_index(part)}
    # A unary plus keeps SQLite from using an index that finds many rows.
    folder = "message.folder"
    if lead is not ALL_MESSAGES or found_by - {Property.FROM_ADDRESS}:
        folder = "+message.folder"
    if lead is not ALL_MESSAGES or found_by:
        rest = [replace(clause, sql=_MARK.sub(r"+\1", clause.sql)) for clause in rest]
    return CompiledCondition(lead, join_clauses(rest, " AND ", "1"), f"{folder} = ?")


def _conjuncts(condition: Condition) -> Iterator[Condition]:
    if isinstance(condition, AllOf):
        for part in condition.conditions:
            yield from _conjuncts(part)
    else:
        yield condition


def _choose_driving_table(parts: Sequence[Condition]) -> tuple[DrivingTable, Sequence[Condition]]:
    """Choose the table that finds the fewest rows: full text, then an indexed value.

    Return it, and the conditions that it covers.
    """
    words = [part for part in parts if _is_fulltext(part)]
    if words:
        expression = " AND ".join(f"({_fts_expression(part)})" for part in words)
        where = Clause("fulltext MATCH ?", (expression,), TEXT_LEVEL)
        lead = DrivingTable(
            "fulltext CROSS JOIN message ON message.uid = fulltext.rowid", where, "fulltext.rowid"
        )
        return lead, words
    for part in parts:
        if isinstance(part, AnyItem) and isinstance(part.condition, CompareItem):
            item = part.condition
            is_text = item.property is not ItemProperty.NAME and not item.is_number
            if item.operator is Operator.EQ and is_text:
                where = Clause(
                    "item.kind = ? AND item.address_key = ?",
                    (_item_kind(part.collection), search_key(item.value)),
                    HEADER_LEVEL,
                )
                tables = "item CROSS JOIN message ON message.uid = item.uid"
                return DrivingTable(tables, where, "item.uid", may_repeat=True), [part]
    if not any(_has_index(part) for part in parts):
        for part in parts:
            if isinstance(part, Compare) and _can_use_trigrams(part):
                text = _fts_string(search_key(str(part.value)))
                expression = f"{_COLUMNS[part.property].name} : {text}"
                where = Clause("trigram MATCH ?", (expression,), HEADER_LEVEL)
                tables = "trigram CROSS JOIN message ON message.uid = trigram.rowid"
                return DrivingTable(tables, where, "trigram.rowid"), ()
    return ALL_MESSAGES, ()


def _has_index(condition: Condition) -> bool:
    """Return whether an SQL index finds the few messages that match."""
    if not isinstance(condition, Compare):
        return False
    if condition.operator is Operator.STARTS_WITH:
        return condition.property in _INDEXED and bool(condition.value)
    return condition.operator is Operator.EQ and condition.property in {*_INDEXED, Property.ID}


def _can_use_trigrams(condition: Compare) -> bool:
    return (
        condition.operator is Operator.CONTAINS
        and condition.property in _TRIGRAM_PROPERTIES
        and len(search_key(str(condition.value))) >= _TRIGRAM_LETTERS
        and "\0" not in str(condition.value)
    )


def _is_fulltext(condition: Condition) -> bool:
    """Return whether the full-text index alone can evaluate a condition."""
    match condition:
        case HasWords():
            return True
        case AllOf(conditions) | AnyOf(conditions):
            return bool(conditions) and all(map(_is_fulltext, conditions))
        case _:
            return False


def _fts_expression(condition: Condition) -> str:
    """Return a full-text condition in FTS5's query syntax."""
    match condition:
        case HasWords(where, words, prefix):
            return f"{_fts_columns(where)}{_fts_string(words)}{' *' if prefix else ''}"
        case AllOf(conditions):
            return " AND ".join(f"({_fts_expression(part)})" for part in conditions)
        case AnyOf(conditions):
            return " OR ".join(f"({_fts_expression(part)})" for part in conditions)
        case _:
            raise AssertionError(condition)


def _fts_columns(where: SearchIn) -> str:
    columns = _WORD_COLUMNS[where]
    return f"{{{columns}}} : " if columns else ""


def words_expression(words: str) -> str:
    """Return the full-text query of a phrase whose last word may be the beginning of a word."""
    return _fts_expression(HasWords(SearchIn.ANYWHERE, words, prefix=True))


def _fts_string(text: str) -> str:
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
            return Clause(
                sql, (_item_kind(collection), *clause.values), max(HEADER_LEVEL, clause.level)
            )
        case CompareItem(_, operator, value, True):
            sign, number = _OPERATORS[operator], "CAST(one.address_key AS NUMERIC)"
            return Clause(f"{number} {sign} CAST(? AS NUMERIC)", (value,))
        case CompareItem(item_property, operator, value):
            column = "name_key" if item_property is ItemProperty.NAME else "address_key"
            return _text_compared(f"one.{column}", operator, value)
        case HasWords():
            sql = f"{UID} IN (SELECT rowid FROM fulltext WHERE fulltext MATCH ?)"
            return Clause(sql, (_fts_expression(condition),), TEXT_LEVEL)
        case AllOf(conditions):
            return join_clauses([_clause(part) for part in conditions], " AND ", "1")
        case AnyOf(conditions):
            return join_clauses([_clause(part) for part in conditions], " OR ", "0")
        case Negation(inner):
            clause = _clause(inner)
            return Clause(f"NOT ({clause.sql})", clause.values, clause.level)
        case _:
            assert_never(condition)


def _compared(condition: Compare) -> Clause:
    operator, value, column = condition.operator, condition.value, _COLUMNS[condition.property]
    if condition.property is Property.PARENT_FOLDER:
        clause = _text_compared("id", operator, str(value))
        sql = f"message.folder IN (SELECT number FROM folder WHERE {clause.sql})"
        return Clause(sql, clause.values)
    match column.kind:
        case _Kind.TIME:
            return _time_compared(column, operator, int(value))
        case _Kind.TEXT:
            clause = _text_compared(f"message.{column.name}", operator, str(value))
            return Clause(clause.sql, clause.values, column.level)
        case _Kind.NUMBER:
            number, sign = _number(condition), _OPERATORS.get(operator)
            if sign is None or (number == _NO_RANK and operator is not Operator.NE):
                return Clause("0", (), column.level)
            return Clause(f"message.{column.name} {sign} ?", (number,), column.level)
        case _:
            assert_never(column.kind)


def _number(condition: Compare) -> int:
    value = condition.value
    if isinstance(value, str):
        words = {Property.FLAG: FLAG_STATUSES, Property.CLASSIFICATION: _CLASSIFICATIONS}
        return words.get(condition.property, RANKS).get(value.lower(), _NO_RANK)
    return int(value)


def _text_compared(column: str, operator: Operator, value: str) -> Clause:
    key = search_key(value)
    match operator:
        case Operator.STARTS_WITH:
            return Clause(f"({column} >= ? AND {column} < ?)", (key, key + _LAST_LETTER))
        case Operator.ENDS_WITH:
            return Clause(f"substr({column}, -length(?)) = ?", (key, key)) if key else Clause("1")
        case Operator.CONTAINS:
            return Clause(f"instr({column}, ?) > 0", (key,)) if key else Clause("1")
        case _:
            return Clause(f"{column} {_OPERATORS[operator]} ?", (key,))


def _time_compared(column: _Column, operator: Operator, value_us: int) -> Clause:
    sign, name, level = _OPERATORS.get(operator), column.name, column.level
    if sign is None:
        return Clause("0", (), level)
    if name == "received_us":  # the bounds below fit into SQLite's integers
        value_us = min(max(value_us, -1), TIME_US_MAX + 1)
    sql = f"message.{name} {sign} ?"
    if name.startswith("flag_"):  # no date is unequal to every date
        sql = f"coalesce({sql}, {int(operator is Operator.NE)})"
    if name != "received_us" or operator is Operator.NE:
        return Clause(sql, (value_us,), level)
    # The uids are in the order of time, so these bounds limit the scan.
    first, last = value_us * UIDS_PER_US, (value_us + _SLACK_US) * UIDS_PER_US
    bounds = {
        Operator.EQ: f"{UID} BETWEEN ? AND ?",
        Operator.GT: f"{UID} >= ?",
        Operator.GE: f"{UID} >= ?",
        Operator.LT: f"{UID} < ?",
        Operator.LE: f"{UID} < ?",
    }[operator]
    values = {Operator.EQ: (first, last), Operator.GT: (first,), Operator.GE: (first,)}
    return Clause(f"({bounds} AND {sql})", (*values.get(operator, (last,)), value_us), level)


def join_clauses(clauses: Sequence[Clause], separator: str, empty: str) -> Clause:
    """Join clauses with `separator`; `empty` is the result without clauses."""
    if not clauses:
        return Clause(empty)
    return Clause(
        separator.join(f"({clause.sql})" for clause in clauses),
        tuple(value for clause in clauses for value in clause.values),
        max(clause.level for clause in clauses),
    )


_TOKEN_CHARACTERS_MAX = 8192
_NUMBER_MAX = (1 << 63) - 1


class SortKey(Struct, frozen=True):
    """A sort key as an SQL expression; `is_text` is False for numbers."""

    sql: str
    descending: bool
    is_text: bool = False
    level: int = 0


def sort_keys(orders: Sequence[SortOrder]) -> tuple[SortKey, ...]:
    """Return the keys of an order; the last is the uid, which is in the order of time."""
    keys = []
    for order in orders:
        if order.property is Property.RECEIVED and order is orders[-1]:
            break
        column = _COLUMNS[order.property]
        sql = f"message.{column.name}"
        if order.property is Property.PARENT_FOLDER:
            sql = f"(SELECT id FROM folder WHERE number = {sql})"
        keys.append(SortKey(sql, order.descending, column.kind is _Kind.TEXT, column.level))
    descending = orders[-1].descending if orders else True
    return (*keys, SortKey(UID, descending))


def after_row(keys: Sequence[SortKey], values: Sequence[Any]) -> Clause:
    """Return the condition for rows after the row whose keys have these values."""
    if len({key.descending for key in keys}) == 1:
        sign = "<" if keys[0].descending else ">"
        columns = ", ".join(key.sql for key in keys)
        return Clause(f"({columns}) {sign} ({marks(keys)})", tuple(values))
    clauses = []
    for number, key in enumerate(keys):
        same = [Clause(f"{key.sql} = ?", (values[at],)) for at, key in enumerate(keys[:number])]
        sign = "<" if key.descending else ">"
        further = Clause(f"{key.sql} {sign} ?", (values[number],))
        clauses.append(join_clauses([*same, further], " AND ", "1"))
    return join_clauses(clauses, " OR ", "0")


def make_page_token(keys: Sequence[SortKey], values: Sequence[Any]) -> str:
    """Return the token of the page that begins after a row with these values."""
    octets = msgspec.json.encode([_shape(keys), *values])
    return urlsafe_b64encode(octets).decode().rstrip("=")


def read_page_token(keys: Sequence[SortKey], token: str) -> tuple[Any, ...]:
    """Return the values of a page token. Raises StalePositionError."""
    if len(token) > _TOKEN_CHARACTERS_MAX:
        raise _stale()
    try:
        octets = urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
        shape, *values = msgspec.json.decode(octets, type=list[str | int])
    except ValueError:
        raise _stale() from None
    if shape != _shape(keys) or len(values) != len(keys):
        raise _stale()
    for key, value in zip(keys, values, strict=True):
        is_number = isinstance(value, int) and abs(value) <= _NUMBER_MAX
        if not (isinstance(value, str) if key.is_text else is_number):
            raise _stale()
    return tuple(values)


def _shape(keys: Sequence[SortKey]) -> str:
    """Return a text that identifies an order."""
    return ",".join(f"{'-' if key.descending else ''}{key.sql}" for key in keys)


def _stale() -> StalePositionError:
    return StalePositionError("The page token is not one of this query; start with the first page.")
