"""$search: the part of the keyword query language (MS-KQL 2) that finds messages.

Adjacent words must all match; NOT binds tighter than AND, AND tighter than OR. Words and phrases of
punctuation alone are left out, unless a property is before them; a query of nothing else finds
nothing. Depth, the number of terms, of prefixes (word*), and the length of each are limited. Days
begin in UTC, weeks on Sunday.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from msgspec import Struct

from relay.base.message.address import with_a_labels
from relay.front_door.graph.odata.expression import (
    CHARACTERS_MAX,
    Token,
    TokenKind,
    clause_error,
    time_of,
)
from relay.front_door.http.errors import ApiError, bad_request, quoted
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
)

DEPTH_MAX = 32
TERMS_MAX = 50
PREFIXES_MAX = 10
TERM_CHARACTERS_MAX = 255
_US = timedelta(microseconds=1)
_SECOND_US = 1_000_000
_DAY_US = timedelta(days=1) // _US
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_SPACE = re.compile(r"\s*+")
_TOKEN = re.compile(r'"(?P<phrase>[^"]*+)"|(?P<sign>[()])|(?P<word>[^\s()"]++)')
_RESTRICTION = re.compile(r"(\w++)(:|<>|<=|>=|=|<|>)(.*)", re.DOTALL)
_QUOTED = re.compile(r'"((?>[^"\\]|\\.)*+)"', re.DOTALL)
_ESCAPED = re.compile(r'\\(["\\])')
_DATE_FORMATS = (
    re.compile(r"(?P<year>\d{4})-(?P<month>\d\d?)-(?P<day>\d\d?)", re.ASCII),
    re.compile(r"(?P<month>\d\d?)/(?P<day>\d\d?)/(?P<year>\d{4})", re.ASCII),
)
_MOMENT = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d(?P<second>:\d\d(?:\.\d{1,12})?)?(?:Z|[+-]\d\d:\d\d)?",
    re.ASCII | re.IGNORECASE,
)
_OPERATORS = ("AND", "OR", "NOT")
_UNSUPPORTED = ("NEAR", "ONEAR", "XRANK")
_AROUND_CHARACTERS = 20  # of a query, before and after the place of an error

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
_PROPERTIES = (*_TEXT_PROPERTIES, *_FLAGS, "importance", *_DATES, "size", "kind", "category")
_BOOLEANS = {"true": True, "yes": True, "false": False, "no": False}
_MAIL = "email"
_KINDS = (
    *(_MAIL, "contacts", "docs", "faxes", "im", "journals", "meetings", "microsoftteams", "notes"),
    *("posts", "rssfeeds", "tasks", "voicemail"),
)
_SIZE_MAX = 10**15
_SIGNS = {
    "<": Operator.LT,
    "<=": Operator.LE,
    ">": Operator.GT,
    ">=": Operator.GE,
    "<>": Operator.NE,
}


def search_condition(value: str, *, now_us: int) -> Condition:
    """Return the condition for a $search; `now_us` is the present time.

    `value` is the query, or the query in double quotes with a backslash before inner quotes, as in
    Graph. Raises ApiError 400.
    """
    query = value.strip() if len(value) <= CHARACTERS_MAX else value
    if quoted := _QUOTED.fullmatch(query):
        query = _ESCAPED.sub(r"\1", quoted[1])
    return keyword_condition(query, now_us=now_us)


def keyword_condition(query: str, *, now_us: int) -> Condition:
    """Return the condition for a query. Raises ApiError 400."""
    if len(query) > CHARACTERS_MAX:
        actual = f"found {len(query)} characters, expected at most {CHARACTERS_MAX}"
        raise clause_error("search", actual)
    return _SearchParser(query, now_us).query()


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

    def __init__(self, query: str, now_us: int) -> None:
        self._query = query
        self._now_us = now_us
        self._within = ""  # the property before the parentheses, "" if none
        self._depth = 0
        self._terms = 0
        self._prefixes = 0
        self._next = self._token(0)

    def query(self) -> Condition:
        condition = self._or()
        if self._next.end > self._next.position:
            raise self._error(self._next, "AND, OR or the end")
        if self._terms > TERMS_MAX:
            raise _limit_error(f"{self._terms} words and phrases", TERMS_MAX)
        if self._prefixes > PREFIXES_MAX:
            raise _limit_error(f"{self._prefixes} words and phrases that end in *", PREFIXES_MAX)
        return condition or AnyOf(())

    def _or(self) -> Condition | None:
        """Parse conditions with OR between them; None if all of them are left out."""
        parts = [self._and()]
        while self._next.is_operator("OR"):
            self._advance()
            parts.append(self._and())
        return _joined(AnyOf, parts)

    def _and(self) -> Condition | None:
        parts = [self._not()]
        while not self._is_at_end() and not self._next.is_operator("OR"):
            if self._next.is_operator("AND"):
                self._advance()
            parts.append(self._not())
        return _joined(AllOf, parts)

    def _not(self) -> Condition | None:
        if not self._next.is_operator("NOT"):
            return self._term()
        self._enter()
        self._advance()
        condition = self._not()
        self._depth -= 1
        return condition and Negation(condition)

    def _term(self) -> Condition | None:
        token = self._next
        if self._is_at_end() or (token.text in _OPERATORS and not token.is_phrase):
            raise self._error(token, "a word")
        self._advance()
        if token.is_operator("("):
            self._enter()
            condition = self._or()
            if not self._next.is_operator(")"):
                raise self._error(self._next, "')'")
            self._advance()
            self._depth -= 1
            return condition
        self._terms += 1
        if not token.is_phrase:
            if token.text in _UNSUPPORTED:
                raise self._error(token, f"{', '.join(_OPERATORS)}, or the word in quotes")
            restriction = _RESTRICTION.fullmatch(token.text)
            if restriction and (restriction[3] or restriction[1].lower() in _PROPERTIES):
                restricted = self._property_restriction(token, restriction)
                if restricted is None:
                    raise self._error(token, "a word with a letter or a digit in it")
                return restricted
        if self._within:
            return self._compared(token, self._within, operator=":", value=token.text)
        return self._word_condition(token, SearchIn.ANYWHERE, token.text)

    def _property_restriction(
        self, token: _SearchToken, restriction: re.Match[str]
    ) -> Condition | None:
        """Parse a property restriction: `property:` and a word or phrase."""
        name, operator, value = restriction[1].lower(), restriction[2], restriction[3]
        if name not in _PROPERTIES:
            known = ", ".join(_PROPERTIES)
            raise self._error(token, f"one of {known}, or the text in quotes (with \\ before each)")
        is_adjacent = not value and self._next.position == token.end
        if is_adjacent and self._next.is_operator("(") and operator in (":", "="):
            self._terms -= 1
            within, self._within = self._within, name
            condition = self._term()
            self._within = within
            return condition
        if is_adjacent and self._next.is_phrase:
            value = self._next.text
            self._advance()
        elif name in _DATES and f"{value} {self._next.text}".lower() in _PERIODS:
            value = f"{value} {self._next.text}"
            self._advance()
        return self._compared(token, name, operator=operator, value=value)

    def _compared(
        self, token: _SearchToken, name: str, *, operator: str, value: str
    ) -> Condition | None:
        """Return the condition for a property and a value of it."""
        lower = value.lower()
        if name in _DATES:
            return self._date_condition(token, _DATES[name], operator=operator, value=lower)
        if name == "size":
            return self._size_condition(token, operator=operator, value=value)
        if operator not in (":", "="):
            raise self._error(token, f"{name}:word")
        if name in _FLAGS:
            if lower not in _BOOLEANS:
                raise self._error(token, f"{name}:true or {name}:false, yes or no")
            return Compare(_FLAGS[name], Operator.EQ, _BOOLEANS[lower])
        if name == "importance":
            if lower not in _IMPORTANCES:
                raise self._error(token, "importance:low, importance:normal or importance:high")
            return Compare(Property.IMPORTANCE, Operator.EQ, _IMPORTANCES[lower])
        if name == "kind":
            if lower not in _KINDS:
                raise self._error(token, f"one of {', '.join(_KINDS)}")
            return AllOf(()) if lower == _MAIL else AnyOf(())
        if name == "category":
            compared = Operator.EQ if operator == "=" else Operator.CONTAINS
            if not (category := value.removesuffix("*")):
                raise self._error(token, "the name of a category")
            item = CompareItem(ItemProperty.ITSELF, compared, category)
            return AnyItem(Collection.CATEGORIES, item)
        return self._word_condition(token, _TEXT_PROPERTIES[name], value)

    def _size_condition(self, token: _SearchToken, *, operator: str, value: str) -> Condition:
        """Return the condition for a size in bytes, or a range first..last."""
        first, has_range, last = value.partition("..")
        sizes = [
            int(text)
            if text.isascii() and text.isdigit() and len(text) < len(str(_SIZE_MAX))
            else None
            for text in (first, last or first)
        ]
        low, high = sizes
        if low is None or high is None or (has_range and (not last or operator in _SIGNS)):
            raise self._error(token, "a number of bytes, or two with .. between: size:1..500000")
        if operator in _SIGNS:
            return Compare(Property.SIZE, _SIGNS[operator], low)
        within = (
            Compare(Property.SIZE, Operator.GE, low),
            Compare(Property.SIZE, Operator.LE, high),
        )
        return AllOf(within)

    def _word_condition(self, token: _SearchToken, where: SearchIn, value: str) -> Condition | None:
        """Return the condition for a word or phrase; a final * makes its last word a prefix.

        None for punctuation.
        """
        words = value.removesuffix("*")
        if len(value) > TERM_CHARACTERS_MAX:
            detail = f"position {token.position}: found a word or phrase of {len(value)} characters"
            raise clause_error("search", f"{detail}, expected at most {TERM_CHARACTERS_MAX}")
        if not any(map(str.isalnum, words)):
            return None
        if "*" in words:
            raise self._error(token, "* at the end of a word only")
        self._prefixes += words != value
        # the index has both forms of an address; the form with A-labels is always in lower case
        sought = with_a_labels(words) if where in _OF_ADDRESSES else words
        return HasWords(where, sought, prefix=words != value)

    def _is_at_end(self) -> bool:
        return self._next.end == self._next.position or self._next.is_operator(")")

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise self._error(self._next, f"at most {DEPTH_MAX} levels")

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
            raise self._error(_SearchToken(rest, position, len(self._query)), "its closing quote")
        if match["phrase"] is None:
            return _SearchToken(match[0], position, match.end())
        following = self._query[match.end() : match.end() + 1]
        token = _SearchToken(match["phrase"], position, match.end(), is_phrase=True)
        if following and following != ")" and not following.isspace():
            expected = 'a blank after the closing quote; a quote within quotes is \\"'
            raise self._error(token, expected)
        return token

    def _date_condition(
        self, token: _SearchToken, named: Property, *, operator: str, value: str
    ) -> Condition:
        """Return the condition for a day, a time, a period (today), or a range first..last."""
        first, has_range, last = value.partition("..")
        begin_us, end_us = self._interval_us(token, first)
        if has_range:
            _, end_us = self._interval_us(token, last)
        if operator not in (":", "=", "<>") and has_range:
            raise self._error(token, "one day after < and >")
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

    def _interval_us(self, token: _SearchToken, text: str) -> tuple[int, int]:
        """Return the begin and the end of a day, a minute, a second or a period."""
        if period := _PERIODS.get(text):
            return period(_EPOCH + timedelta(microseconds=self._now_us))
        if moment := _MOMENT.fullmatch(text):
            begin_us = time_of(Token(TokenKind.TIME, text, token.position))
            if begin_us is not None:
                return begin_us, begin_us + (1 if moment["second"] else 60) * _SECOND_US
        for pattern in _DATE_FORMATS:
            if match := pattern.fullmatch(text):
                day = {name: int(number) for name, number in match.groupdict().items()}
                with suppress(ValueError):
                    begin_us = (datetime(**day, tzinfo=UTC) - _EPOCH) // _US
                    return begin_us, begin_us + _DAY_US
        raise self._error(
            token,
            "a day: 2026-11-20 or 11/20/2026, a time: 2026-11-20T08:00:00Z, two of these with .. "
            f"between them, or one of {', '.join(_PERIODS)}",
        )

    def _error(self, token: _SearchToken, expected: str) -> ApiError:
        at = token.position
        actual = quoted(token.text) if token.end > at else "the end"
        message = f"Syntax error: position {at}: found {actual}, expected {expected}"
        if around := self._query[max(0, at - _AROUND_CHARACTERS) : at + _AROUND_CHARACTERS].strip():
            message += f"; it is in {quoted(around)}"
        return bad_request(f"{message}.")


def _joined(kind: type[AllOf | AnyOf], parts: Sequence[Condition | None]) -> Condition | None:
    """Return one condition of those that are not left out, None if all are."""
    left = tuple(part for part in parts if part is not None)
    return kind(left) if len(left) > 1 else next(iter(left), None)


def _days(first: datetime, days: int = 1) -> tuple[int, int]:
    begin_us = (datetime(first.year, first.month, first.day, tzinfo=UTC) - _EPOCH) // _US
    return begin_us, begin_us + days * _DAY_US


def _week(now: datetime, weeks: int) -> tuple[int, int]:
    return _days(now - timedelta(days=now.isoweekday() % 7 - 7 * weeks), 7)


def _months(now: datetime, first: int, count: int) -> tuple[int, int]:
    """Return `count` months, the first of which is the month `first` of the year."""
    begin, end = (
        datetime(now.year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
        for month in (first, first + count)
    )
    return (begin - _EPOCH) // _US, (end - _EPOCH) // _US


# MS-KQL 2.1.9; months count from 0
_PERIODS: Mapping[str, Callable[[datetime], tuple[int, int]]] = {
    "today": _days,
    "yesterday": lambda now: _days(now - timedelta(days=1)),
    "this week": lambda now: _week(now, 0),
    "last week": lambda now: _week(now, -1),
    "this month": lambda now: _months(now, now.month - 1, 1),
    "last month": lambda now: _months(now, now.month - 2, 1),
    "this year": lambda now: _months(now, 0, 12),
    "last year": lambda now: _months(now, -12, 12),
}


def _limit_error(actual: str, maximum: int) -> ApiError:
    return clause_error("search", f"found {actual}, expected at most {maximum}")
