"""The grammar of $filter: a tokenizer and a parser, which know nothing of any resource.

`or` binds weaker than `and`, that weaker than `not`. Depth and the number of names and values are
limited. Positions in errors count characters from 0. OData 4.01 URL conventions 5.1.1 and ABNF.
"""

import re
from enum import Enum

from msgspec import Struct

from relay.base.clock import time_us_of
from relay.front_door.graph import errors
from relay.front_door.http.errors import ApiError, bad_request, quoted

CHARACTERS_MAX = 8192

_TOKEN = re.compile(
    r"""(?P<guid>[\dA-Fa-f]{8}(?:-[\dA-Fa-f]{4}){3}-[\dA-Fa-f]{12})
    |(?P<time>\d{4}-\d\d-\d\d(?:[Tt]
        \d\d:\d\d(?::\d\d(?:\.\d{1,12})?)?(?:[Zz]|[+\-\ ]\d\d:\d\d)?
    )?)
    |(?P<number>-?\d{1,18}(?:\.\d{1,18})?)
    |(?P<text>'(?>[^']++|'')*+')
    |(?P<typed>[^\W\d][\w.]*+'(?>[^']++|'')*+')
    |(?P<name>[^\W\d]\w*+(?>[./]\w++)*+)
    |(?P<sign>[(),:])""",
    re.VERBOSE | re.ASCII,
)
_SPACE = re.compile(r"\s*+", re.ASCII)


class TokenKind(Enum):
    """The kind of a token; the value is the name of its group in the pattern."""

    TIME = "time"
    GUID = "guid"
    NUMBER = "number"
    TEXT = "text"  # 'text', with '' for a quote
    TYPED = "typed"  # microsoft.graph.importance'high'
    NAME = "name"  # a word, or a path with slashes
    SIGN = "sign"
    END = "end"


class Token(Struct, frozen=True):
    """A token; `text` is its source text."""

    kind: TokenKind
    text: str
    position: int

    @property
    def word(self) -> str:
        """A name in lower case, "" for other tokens."""
        return self.text.lower() if self.kind is TokenKind.NAME else ""


class Tokenizer:
    """Reads the tokens of one clause; `next` is the next token."""

    def __init__(self, text: str) -> None:
        self._text = text
        if len(text) > CHARACTERS_MAX:
            raise bad_request(
                f"$filter: found {len(text)} characters, expected at most {CHARACTERS_MAX}."
            )
        self.next = self._token(0)

    def take(self) -> Token:
        """Return the next token and advance."""
        taken = self.next
        self.next = self._token(taken.position + len(taken.text))
        return taken

    def take_sign(self, sign: str) -> None:
        """Advance past a required sign. Raises ApiError 400."""
        if not self.is_sign(sign):
            raise self.error(f"'{sign}'")
        self.take()

    def is_sign(self, sign: str) -> bool:
        """Return whether the next token is this sign."""
        return self.next.kind is TokenKind.SIGN and self.next.text == sign

    def error(self, expected: str, at: Token | None = None) -> ApiError:
        """Return the 400 for a token, by default the next one."""
        token = at or self.next
        actual = quoted(token.text) if token.text else "the end"
        detail = f"position {token.position}: found {actual}, expected {expected}."
        return errors.FILTER_SYNTAX(detail, str(token.position), quoted(self._text))

    def _token(self, start: int) -> Token:
        match = _SPACE.match(self._text, start)
        position = match.end() if match else start
        if position == len(self._text):
            return Token(TokenKind.END, "", position)
        token_match = _TOKEN.match(self._text, position)
        if token_match is None:
            rest = self._text[position:]
            expected = "its closing quote" if rest.startswith("'") else "a name, a value or a sign"
            raise self.error(expected, Token(TokenKind.SIGN, rest, position))
        return Token(TokenKind(token_match.lastgroup), token_match[0], position)


def clause_error(option: str, message: str) -> ApiError:
    """Return the 400 for an invalid clause; the text begins as Graph's."""
    return bad_request(f"Invalid {option} clause: {message}.")


def text_of(token: Token) -> str:
    """Return the value of a text literal, without quotes and type."""
    return token.text[token.text.index("'") + 1 : -1].replace("''", "'")


def time_of(token: Token) -> int | None:
    """Return a time literal in microseconds since 1970, None for a date that does not exist.

    Without a zone it is UTC; a date alone is its start. A blank in the zone is a plus sign that the
    client did not encode.
    """
    try:
        return time_us_of(token.text.upper().replace(" ", "+"))
    except ValueError:
        return None


DEPTH_MAX = 32
TERMS_MAX = 200
_COMPARISONS = ("eq", "ne", "gt", "ge", "lt", "le")
_CONSTANTS = {"true": True, "false": False, "null": None}


class Path(Struct, frozen=True):
    """A property such as from/emailAddress/address."""

    token: Token


class Literal(Struct, frozen=True):
    """A value; a time is in microseconds, with `is_time`."""

    token: Token
    value: str | int | float | bool | None
    is_time: bool = False


class FunctionCall(Struct, frozen=True):
    """A function call; `name` is in lower case."""

    token: Token
    name: str
    arguments: tuple["Expression", ...]


class Lambda(Struct, frozen=True):
    """`path/any(variable: body)` or all; any() without a body is true if there is an item."""

    token: Token
    path: str
    is_all: bool
    variable: str = ""
    body: "Expression | None" = None


class Comparison(Struct, frozen=True):
    """`left operator right`."""

    operator: Token
    left: "Expression"
    right: "Expression"


class Not(Struct, frozen=True):
    """The negation of `part`."""

    part: "Expression"


class And(Struct, frozen=True):
    """All of at least two parts."""

    parts: tuple["Expression", ...]


class Or(Struct, frozen=True):
    """One of at least two parts."""

    parts: tuple["Expression", ...]


Expression = Path | Literal | FunctionCall | Lambda | Comparison | Not | And | Or


def parse_expression(text: str) -> Expression:
    """Parse a $filter. Raises ApiError 400."""
    return _ExpressionParser(Tokenizer(text)).clause()


class _ExpressionParser:
    """Recursive descent with one method for each level of precedence."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._depth = 0
        self._terms = 0

    def clause(self) -> Expression:
        expression = self._or()
        if self._tokenizer.next.kind is not TokenKind.END:
            raise self._tokenizer.error("'and', 'or' or the end")
        return expression

    def _or(self) -> Expression:
        parts = [self._and()]
        while self._tokenizer.next.word == "or":
            self._tokenizer.take()
            parts.append(self._and())
        return Or(tuple(parts)) if len(parts) > 1 else parts[0]

    def _and(self) -> Expression:
        parts = [self._not()]
        while self._tokenizer.next.word == "and":
            self._tokenizer.take()
            parts.append(self._not())
        return And(tuple(parts)) if len(parts) > 1 else parts[0]

    def _not(self) -> Expression:
        if self._tokenizer.next.word != "not":
            return self._comparison()
        self._enter()
        self._tokenizer.take()
        part = self._not()
        self._depth -= 1
        return Not(part)

    def _comparison(self) -> Expression:
        left = self._primary()
        word = self._tokenizer.next.word
        if word == "in":
            return self._membership(left)
        if word not in _COMPARISONS:
            if word not in ("", "and", "or"):
                raise self._tokenizer.error(f"one of {', '.join(_COMPARISONS)}, in, and, or")
            return left
        operator = self._tokenizer.take()
        return Comparison(operator, left, self._primary())

    def _membership(self, left: Expression) -> Expression:
        """Read `in (value, …)` as comparisons with eq, joined by or."""
        equals = Token(TokenKind.NAME, "eq", self._tokenizer.take().position)
        self._tokenizer.take_sign("(")
        parts = [Comparison(equals, left, self._primary())]
        while self._tokenizer.is_sign(","):
            self._tokenizer.take()
            parts.append(Comparison(equals, left, self._primary()))
        self._tokenizer.take_sign(")")
        return Or(tuple(parts)) if len(parts) > 1 else parts[0]

    def _primary(self) -> Expression:
        token = self._tokenizer.next
        if self._tokenizer.is_sign("("):
            return self._parentheses()
        if token.kind in (TokenKind.SIGN, TokenKind.END):
            raise self._tokenizer.error("a property, a function or a value")
        self._count_term()
        self._tokenizer.take()
        match token.kind:
            case TokenKind.TEXT | TokenKind.TYPED:
                return Literal(token, text_of(token))
            case TokenKind.GUID:
                return Literal(token, token.text)
            case TokenKind.NUMBER:
                return Literal(token, (float if "." in token.text else int)(token.text))
            case TokenKind.TIME:
                if (time_us := time_of(token)) is None:
                    raise self._tokenizer.error("a date and time that exist", token)
                return Literal(token, time_us, is_time=True)
            case _:
                return self._name(token)

    def _name(self, token: Token) -> Expression:
        if self._tokenizer.is_sign("("):
            path, _, function = token.text.rpartition("/")
            if path and function.lower() in ("any", "all"):
                return self._lambda(token, path, is_all=function.lower() == "all")
            return self._call(token)
        if token.word in _CONSTANTS:
            return Literal(token, _CONSTANTS[token.word])
        return Path(token)

    def _parentheses(self) -> Expression:
        self._enter()
        self._tokenizer.take_sign("(")
        expression = self._or()
        self._tokenizer.take_sign(")")
        self._depth -= 1
        return expression

    def _call(self, token: Token) -> Expression:
        self._enter()
        self._tokenizer.take_sign("(")
        arguments: list[Expression] = []
        while not self._tokenizer.is_sign(")"):
            if arguments:
                self._tokenizer.take_sign(",")
            arguments.append(self._or())
        self._tokenizer.take_sign(")")
        self._depth -= 1
        return FunctionCall(token, token.word, tuple(arguments))

    def _lambda(self, token: Token, path: str, *, is_all: bool) -> Expression:
        self._enter()
        self._tokenizer.take_sign("(")
        if self._tokenizer.is_sign(")") and not is_all:
            self._tokenizer.take()
            self._depth -= 1
            return Lambda(token, path, is_all)
        variable = self._tokenizer.next
        if variable.kind is not TokenKind.NAME or "/" in variable.text:
            raise self._tokenizer.error("the name of a variable")
        self._tokenizer.take()
        self._tokenizer.take_sign(":")
        body = self._or()
        self._tokenizer.take_sign(")")
        self._depth -= 1
        return Lambda(token, path, is_all, variable.text, body)

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            message = f"position {self._tokenizer.next.position}: more than {DEPTH_MAX} levels"
            raise clause_error("filter", message)

    def _count_term(self) -> None:
        self._terms += 1
        if self._terms > TERMS_MAX:
            message = (
                f"position {self._tokenizer.next.position}: more than {TERMS_MAX} names and values"
            )
            raise clause_error("filter", message)
