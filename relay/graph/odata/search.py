"""$search: the part of the keyword query language (MS-KQL 2) that finds messages.

Adjacent words must all match; NOT binds tighter than AND, AND tighter than OR. Depth, the number of
terms, of prefixes (word*), and the length of each are limited.
"""

import contextlib
import re
from datetime import UTC, datetime, timedelta

from msgspec import Struct

from relay.graph.odata.expression import CHARACTERS_MAX, clause_error
from relay.http.errors import ApiError, quoted
from relay.mailbox.query import (
    AllOf,
    AnyOf,
    Compare,
    Condition,
    HasWords,
    Negation,
    Operator,
    Property,
    SearchIn,
)
from relay.message.address import with_a_labels

DEPTH_MAX = 32
TERMS_MAX = 50
PREFIXES_MAX = 10
TERM_CHARACTERS_MAX = 255
_US = timedelta(microseconds=1)
_DAY_US = timedelta(days=1) // _US
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_SPACE = re.compile(r"\s*+")
_TOKEN = re.compile(r'"(?P<phrase>[^"]*+)"|(?P<sign>[()])|(?P<word>[^\s()"]++)')
_RESTRICTION = re.compile(r"(\w++)(:|<>|<=|>=|=|<|>)(.*)", re.DOTALL)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*+)"', re.DOTALL)
_ESCAPED = re.compile(r'\\(["\\])')
_DATE_FORMATS = (
    re.compile(r"(?P<year>\d{4})-(?P<month>\d\d?)-(?P<day>\d\d?)", re.ASCII),
    re.compile(r"(?P<month>\d\d?)/(?P<day>\d\d?)/(?P<year>\d{4})", re.ASCII),
)
_OPERATORS = ("AND", "OR", "NOT")
_UNSUPPORTED = ("NEAR", "ONEAR", "XRANK")

_TEXT_PROPERTIES = {str(place): place for place in SearchIn if place is not SearchIn.ANYWHERE}
_OF_ADDRESSES = frozenset(SearchIn) - {
    *(SearchIn.ANYWHERE, SearchIn.SUBJECT, SearchIn.BODY, SearchIn.ATTACHMENT)
}
_FLAGS = {
    "hasattachment": Property.HAS_ATTACHMENTS,
    "hasattachments": Property.HAS_ATTACHMENTS,
    "isread": Property.IS_READ,
}
_IMPORTANCES = {"low": "low", "normal": "normal", "medium": "normal", "high": "high"}
_DATES = {"received": Property.RECEIVED, "sent": Property.SENT}
_PROPERTIES = (*_TEXT_PROPERTIES, *_FLAGS, "importance", *_DATES)


def search_condition(value: str) -> Condition:
    """Return the condition for a $search.

    `value` is the query, or the query in double quotes with a backslash before inner quotes, as in
    Graph. Raises ApiError 400.
    """
    if len(value) > CHARACTERS_MAX:
        message = f"$search: found {len(value)} characters, expected at most {CHARACTERS_MAX}."
        raise ApiError(400, "BadRequest", message)
    query = value.strip()
    if quoted := _QUOTED.fullmatch(query):
        query = _ESCAPED.sub(r"\1", quoted[1])
    return _SearchParser(query).query()


class _SearchToken(Struct, frozen=True):
    """A word, a phrase in quotes, a parenthesis, or the end ("")."""

    text: str
    position: int
    end: int
    is_phrase: bool = False

    def is_operator(self, name: str) -> bool:
        """Return whether this is the given operator or sign."""
        return self.text == name and not self.is_phrase


class _SearchParser:
    """Recursive descent with one method for each level of precedence."""

    def __init__(self, query: str) -> None:
        self._query = query
        self._depth = 0
        self._terms = 0
        self._prefixes = 0
        self._next = self._token(0)

    def query(self) -> Condition:
        condition = self._or()
        if self._next.end > self._next.position:
            raise _error(self._next, "AND, OR or the end")
        if self._terms > TERMS_MAX:
            raise _limit_error(f"{self._terms} words and phrases", TERMS_MAX)
        if self._prefixes > PREFIXES_MAX:
            raise _limit_error(f"{self._prefixes} words and phrases that end in *", PREFIXES_MAX)
        return condition

    def _or(self) -> Condition:
        parts = [self._and()]
        while self._next.is_operator("OR"):
            self._advance()
            parts.append(self._and())
        return AnyOf(tuple(parts)) if len(parts) > 1 else parts[0]

    def _and(self) -> Condition:
        parts = [self._not()]
        while not self._is_at_end() and not self._next.is_operator("OR"):
            if self._next.is_operator("AND"):
                self._advance()
            parts.append(self._not())
        return AllOf(tuple(parts)) if len(parts) > 1 else parts[0]

    def _not(self) -> Condition:
        if not self._next.is_operator("NOT"):
            return self._term()
        self._enter()
        self._advance()
        condition = Negation(self._not())
        self._depth -= 1
        return condition

    def _term(self) -> Condition:
        token = self._next
        if self._is_at_end() or (token.text in _OPERATORS and not token.is_phrase):
            raise _error(token, "a word")
        self._advance()
        if token.is_operator("("):
            self._enter()
            condition = self._or()
            if not self._next.is_operator(")"):
                raise _error(self._next, "')'")
            self._advance()
            self._depth -= 1
            return condition
        self._terms += 1
        if token.is_phrase:
            return self._word_condition(token, SearchIn.ANYWHERE, token.text)
        if token.text in _UNSUPPORTED:
            raise _error(token, f"{', '.join(_OPERATORS)}, or the word in quotes")
        if restriction := _RESTRICTION.fullmatch(token.text):
            return self._property_restriction(token, restriction)
        return self._word_condition(token, SearchIn.ANYWHERE, token.text)

    def _property_restriction(self, token: _SearchToken, restriction: re.Match[str]) -> Condition:
        """Parse a property restriction: `property:` and a word or phrase."""
        name, operator, value = restriction[1].lower(), restriction[2], restriction[3]
        if name not in _PROPERTIES:
            known = ", ".join(_PROPERTIES)
            raise _error(token, f"one of {known}, or the text in quotes (with \\ before each)")
        if not value and self._next.is_phrase and self._next.position == token.end:
            value = self._next.text
            self._advance()
        if name in _DATES:
            return _date_condition(token, _DATES[name], operator=operator, value=value)
        if operator not in (":", "="):
            raise _error(token, f"{name}:word")
        if name in _FLAGS:
            if value.lower() not in ("true", "false"):
                raise _error(token, f"{name}:true or {name}:false")
            return Compare(_FLAGS[name], Operator.EQ, value.lower() == "true")
        if name == "importance":
            if value.lower() not in _IMPORTANCES:
                raise _error(token, "importance:low, importance:normal or importance:high")
            return Compare(Property.IMPORTANCE, Operator.EQ, _IMPORTANCES[value.lower()])
        return self._word_condition(token, _TEXT_PROPERTIES[name], value)

    def _word_condition(self, token: _SearchToken, where: SearchIn, value: str) -> Condition:
        """Return the condition for a word or phrase; a final * makes its last word a prefix."""
        words = value.removesuffix("*")
        if "*" in words:
            raise _error(token, "* at the end of a word only")
        if not any(character.isalnum() for character in words):
            raise _error(token, "a word with a letter or a digit in it")
        if len(value) > TERM_CHARACTERS_MAX:
            found = f"position {token.position}: found a word or phrase of {len(value)} characters"
            message = f"{found}, expected at most {TERM_CHARACTERS_MAX}"
            raise clause_error("search", message)
        self._prefixes += words != value
        # the index has both forms of an address, but that with A-labels in lower case always
        sought = with_a_labels(words) if where in _OF_ADDRESSES else words
        return HasWords(where, sought, prefix=words != value)

    def _is_at_end(self) -> bool:
        return self._next.end == self._next.position or self._next.is_operator(")")

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise _error(self._next, f"at most {DEPTH_MAX} levels")

    def _advance(self) -> None:
        self._next = self._token(self._next.end)

    def _token(self, start: int) -> _SearchToken:
        space = _SPACE.match(self._query, start)
        position = space.end() if space else start
        if position == len(self._query):
            return _SearchToken("", position, position)
        match = _TOKEN.match(self._query, position)
        if match is None:
            rest = self._query[position:]
            raise _error(_SearchToken(rest, position, len(self._query)), "its closing quote")
        if match["phrase"] is None:
            return _SearchToken(match[0], position, match.end())
        following = self._query[match.end() : match.end() + 1]
        token = _SearchToken(match["phrase"], position, match.end(), is_phrase=True)
        if following and following != ")" and not following.isspace():
            expected = 'a blank after the closing quote; a quote within quotes is \\"'
            raise _error(token, expected)
        return token


def _date_condition(
    token: _SearchToken, named: Property, *, operator: str, value: str
) -> Condition:
    """Return the condition for a day, or a range first..last; days are in UTC."""
    first, has_range, last = value.partition("..")
    begin_us = _day_start_us(token, first)
    end_us = (_day_start_us(token, last) if has_range else begin_us) + _DAY_US
    if operator not in (":", "=", "<>") and has_range:
        raise _error(token, "one day after < and >")
    since, before = Compare(named, Operator.GE, begin_us), Compare(named, Operator.LT, end_us)
    match operator:
        case "<":
            return Compare(named, Operator.LT, begin_us)
        case "<=":
            return before
        case ">":
            return Compare(named, Operator.GE, end_us)
        case ">=":
            return since
        case "<>":
            return Negation(AllOf((since, before)))
        case _:
            return AllOf((since, before))


def _day_start_us(token: _SearchToken, text: str) -> int:
    """Return the start of a day in microseconds."""
    for pattern in _DATE_FORMATS:
        if match := pattern.fullmatch(text):
            day = {name: int(number) for name, number in match.groupdict().items()}
            with contextlib.suppress(ValueError):
                return (datetime(**day, tzinfo=UTC) - _EPOCH) // _US
    raise _error(token, "a day: 2026-11-20 or 11/20/2026, or two with .. between them")


def _limit_error(found: str, maximum: int) -> ApiError:
    return clause_error("search", f"found {found}, expected at most {maximum}")


def _error(token: _SearchToken, expected: str) -> ApiError:
    found = quoted(token.text) if token.end > token.position else "the end"
    message = f"position {token.position}: found {found}, expected {expected}"
    return clause_error("search", message)
