"""The words, signs and literals of an OData expression, each with its place in the text.

On the path: expression reads a clause through a Tokens; every refusal is made by it.
Holds: a text's tokens are read one by one, in time linear in its length.
Fails: ApiError 400 that names the option, the position, what was found and what was expected.
Standards: OData 4.01 ABNF (primitive literals, names); positions count characters from 0.
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
