"""The grammar of $filter: a text becomes a tree that knows nothing of any resource.

On the path: messages and folders parse a clause here and resolve what comes out.
Holds: `or` binds weaker than `and`, that weaker than `not`; parentheses keep their grouping; depth
and the number of names and values are bounded.
Fails: ApiError 400 with the position, what was found and what was expected.
Standards: OData 4.01 URL conventions 5.1.1 (operators, precedence, lambda); names in any case.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

from relay.http.errors import ApiError, shown

CHARACTERS_MAX = 8192
_SECOND_US = 1_000_000
_AHEAD_H_MAX = 14  # of UTC, in any zone there is
_MINUTE_MAX = 59
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_TOKEN = re.compile(
    r"""(?P<time>\d{4}-\d\d-\d\d(?:[Tt]
        \d\d:\d\d(?::\d\d(?:\.\d{1,12})?)?(?:[Zz]|[+\-\ ]\d\d:\d\d)?
    )?)
    |(?P<number>-?\d{1,18})
    |(?P<text>'(?:[^']++|'')*+')
    |(?P<typed>[^\W\d][\w.]*+'(?:[^']++|'')*+')
    |(?P<name>[^\W\d]\w*+(?:[./]\w++)*+)
    |(?P<sign>[(),:])""",
    re.VERBOSE | re.ASCII,
)
_SPACE = re.compile(r"\s*+", re.ASCII)
_TIME = re.compile(
    r"(\d+)-(\d+)-(\d+)(?:[Tt](\d+):(\d+)(?::(\d+)(?:\.(\d+))?)?(?:[Zz]|([+\- ])(\d+):(\d+))?)?",
    re.ASCII,
)


class Kind(Enum):
    """What a token is; the value is its group's name."""

    TIME = "time"
    NUMBER = "number"
    TEXT = "text"  # 'text', with '' for a quote
    TYPED = "typed"  # microsoft.graph.importance'high'
    NAME = "name"  # a word, or a path with slashes
    SIGN = "sign"
    END = "end"


@dataclass(frozen=True, slots=True)
class Token:
    """One of them; `text` is as it was written."""

    kind: Kind
    text: str
    position: int

    @property
    def word(self) -> str:
        """A name in lower case, "" for what is none."""
        return self.text.lower() if self.kind is Kind.NAME else ""


class Tokens:
    """The tokens of one clause; `next` is the one that is to be read now."""

    def __init__(self, text: str, option: str) -> None:
        """`option` is the clause's name without the dollar sign."""
        self._text = text
        self._option = option
        if len(text) > CHARACTERS_MAX:
            message = f"${option}: found {len(text)} characters, expected at most {CHARACTERS_MAX}."
            raise ApiError(400, "BadRequest", message)
        self.next = self._token(0)

    def take(self) -> Token:
        """Return the next token and go on to the one behind it."""
        taken = self.next
        self.next = self._token(taken.position + len(taken.text))
        return taken

    def take_sign(self, sign: str) -> None:
        """Go past a sign that has to be there."""
        if not self.is_sign(sign):
            raise self.fault(f"'{sign}'")
        self.take()

    def is_sign(self, sign: str) -> bool:
        """Whether the next token is that sign."""
        return self.next.kind is Kind.SIGN and self.next.text == sign

    def fault(self, expected: str, at: Token | None = None) -> ApiError:
        """Return the refusal of a token (of the next one, if none is given)."""
        token = at or self.next
        found = shown(token.text) if token.text else "the end"
        message = f"position {token.position}: found {found}, expected {expected}"
        return clause_fault(self._option, message)

    def _token(self, start: int) -> Token:
        match = _SPACE.match(self._text, start)
        position = match.end() if match else start
        if position == len(self._text):
            return Token(Kind.END, "", position)
        found = _TOKEN.match(self._text, position)
        if found is None:
            rest = self._text[position:]
            expected = "its closing quote" if rest.startswith("'") else "a name, a value or a sign"
            raise self.fault(expected, Token(Kind.SIGN, rest, position))
        return Token(Kind(found.lastgroup), found[0], position)


def clause_fault(option: str, message: str) -> ApiError:
    """Return the refusal of a clause that makes no sense, with the words that Graph begins with."""
    return ApiError(400, "BadRequest", f"Invalid {option} clause: {message}.")


def text_of(token: Token) -> str:
    """Return what a text literal says, without its quotes and its type."""
    return token.text[token.text.index("'") + 1 : -1].replace("''", "'")


def time_of(token: Token) -> int | None:
    """Return a point in time in microseconds, None for a date that does not exist.

    A time without a zone, and the beginning of a date alone, are UTC's. A blank in the zone is a
    plus sign that the client did not encode.
    """
    match = _TIME.fullmatch(token.text)
    assert match is not None, "the scanner lets nothing else be a time"
    *numbers, fraction, sign, ahead_h, ahead_min = match.groups("0")
    year, month, day, hour, minute, second = map(int, numbers)
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
    if int(ahead_h) > _AHEAD_H_MAX or int(ahead_min) > _MINUTE_MAX:
        return None
    ahead_s = (int(ahead_h) * 60 + int(ahead_min)) * 60 * (-1 if sign == "-" else 1)
    since = moment - _EPOCH
    seconds = since.days * 86_400 + since.seconds - ahead_s
    return seconds * _SECOND_US + int(fraction[:6].ljust(6, "0"))


DEPTH_MAX = 32
TERMS_MAX = 200
_COMPARISONS = ("eq", "ne", "gt", "ge", "lt", "le")
_CONSTANTS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True, slots=True)
class Path:
    """A property, as from/emailAddress/address."""

    token: Token


@dataclass(frozen=True, slots=True)
class Literal:
    """A value; a time is one of microseconds, `is_time` then."""

    token: Token
    value: str | int | bool | None
    is_time: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A function; `name` is in lower case."""

    token: Token
    name: str
    arguments: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Lambda:
    """`path/any(variable: body)` or all; any() without a body asks whether there is an item."""

    token: Token
    path: str
    is_all: bool
    variable: str = ""
    body: "Expression | None" = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """`left operator right`; `operator` is a word."""

    operator: Token
    left: "Expression"
    right: "Expression"


@dataclass(frozen=True, slots=True)
class Not:
    """Not this."""

    part: "Expression"


@dataclass(frozen=True, slots=True)
class And:
    """All of them, two at least."""

    parts: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Or:
    """One of them, two at least."""

    parts: tuple["Expression", ...]


Expression = Path | Literal | Call | Lambda | Comparison | Not | And | Or


def parse_expression(text: str, option: str = "filter") -> Expression:
    """Read a clause. Raises ApiError 400."""
    return _Parser(Tokens(text, option), option).clause()


class _Parser:
    """Reads by recursive descent, one method for each level of precedence."""

    def __init__(self, tokens: Tokens, option: str) -> None:
        self._tokens = tokens
        self._option = option
        self._depth = 0
        self._terms = 0

    def clause(self) -> Expression:
        expression = self._either()
        if self._tokens.next.kind is not Kind.END:
            raise self._tokens.fault("'and', 'or' or the end")
        return expression

    def _either(self) -> Expression:
        parts = [self._both()]
        while self._tokens.next.word == "or":
            self._tokens.take()
            parts.append(self._both())
        return Or(tuple(parts)) if len(parts) > 1 else parts[0]

    def _both(self) -> Expression:
        parts = [self._negated()]
        while self._tokens.next.word == "and":
            self._tokens.take()
            parts.append(self._negated())
        return And(tuple(parts)) if len(parts) > 1 else parts[0]

    def _negated(self) -> Expression:
        if self._tokens.next.word != "not":
            return self._compared()
        self._enter()
        self._tokens.take()
        part = self._negated()
        self._depth -= 1
        return Not(part)

    def _compared(self) -> Expression:
        left = self._operand()
        if self._tokens.next.word not in _COMPARISONS:
            if self._tokens.next.kind is Kind.NAME and self._tokens.next.word not in ("and", "or"):
                raise self._tokens.fault(f"one of {', '.join(_COMPARISONS)}, and, or")
            return left
        operator = self._tokens.take()
        return Comparison(operator, left, self._operand())

    def _operand(self) -> Expression:
        token = self._tokens.next
        if self._tokens.is_sign("("):
            return self._grouped()
        if token.kind in (Kind.SIGN, Kind.END):
            raise self._tokens.fault("a property, a function or a value")
        self._count()
        self._tokens.take()
        match token.kind:
            case Kind.TEXT | Kind.TYPED:
                return Literal(token, text_of(token))
            case Kind.NUMBER:
                return Literal(token, int(token.text))
            case Kind.TIME:
                if (time_us := time_of(token)) is None:
                    raise self._tokens.fault("a date and time that exist", token)
                return Literal(token, time_us, is_time=True)
            case _:
                return self._named(token)

    def _named(self, token: Token) -> Expression:
        if self._tokens.is_sign("("):
            path, _, function = token.text.rpartition("/")
            if path and function.lower() in ("any", "all"):
                return self._lambda(token, path, is_all=function.lower() == "all")
            return self._call(token)
        if token.word in _CONSTANTS:
            return Literal(token, _CONSTANTS[token.word])
        return Path(token)

    def _grouped(self) -> Expression:
        self._enter()
        self._tokens.take_sign("(")
        expression = self._either()
        self._tokens.take_sign(")")
        self._depth -= 1
        return expression

    def _call(self, token: Token) -> Expression:
        self._enter()
        self._tokens.take_sign("(")
        arguments: list[Expression] = []
        while not self._tokens.is_sign(")"):
            if arguments:
                self._tokens.take_sign(",")
            arguments.append(self._either())
        self._tokens.take_sign(")")
        self._depth -= 1
        return Call(token, token.word, tuple(arguments))

    def _lambda(self, token: Token, path: str, *, is_all: bool) -> Expression:
        self._enter()
        self._tokens.take_sign("(")
        if self._tokens.is_sign(")") and not is_all:
            self._tokens.take()
            self._depth -= 1
            return Lambda(token, path, is_all)
        variable = self._tokens.next
        if variable.kind is not Kind.NAME or "/" in variable.text:
            raise self._tokens.fault("the name of a variable")
        self._tokens.take()
        self._tokens.take_sign(":")
        body = self._either()
        self._tokens.take_sign(")")
        self._depth -= 1
        return Lambda(token, path, is_all, variable.text, body)

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            message = f"position {self._tokens.next.position}: more than {DEPTH_MAX} levels"
            raise clause_fault(self._option, message)

    def _count(self) -> None:
        self._terms += 1
        if self._terms > TERMS_MAX:
            message = (
                f"position {self._tokens.next.position}: more than {TERMS_MAX} names and values"
            )
            raise clause_fault(self._option, message)
