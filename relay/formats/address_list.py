"""Read an address list as mail programs do.

Entries end at commas and semicolons outside of quoted strings, comments, angle brackets and encoded
words; without a comma also after an address in angle brackets, if another one follows, and between
words that are all addresses. An address in angle brackets is the entry's; the other text is its
name. What is not an address stays a name. An opening quote, comment or bracket without its end is
text.
RFC 5322 3.4; 4.4 (routes and white space are dropped); RFC 2047 5; RFC 6532.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from enum import Enum, auto

from msgspec import Struct

_QUOTED = r'"(?:[^"\\]|\\.)*+"'
_TEXT = r'(?P<text>(?:[^"<>(,;:=@]|=(?!\?)|@(?!\[))++|@\[[\w:.-]*+\])'
_WORD = r"(?P<word>=\?[\w.:*+-]{1,60}\?[bBqQ]\?[^?]*+\?=)"
_TOKEN = re.compile(rf"{_TEXT}|{_WORD}|(?P<quoted>{_QUOTED})|(?P<other>.)", re.DOTALL | re.ASCII)
_UNQUOTED = re.compile(rf"{_TEXT}|{_WORD}|(?P<other>.)", re.DOTALL | re.ASCII)
_IN_COMMENT = re.compile(r"\\.|[()]", re.DOTALL)
_MARKS = re.compile("[@<>,;:]")
# Most entries: `Name <local@domain>`, or the address alone.
_USUAL_ADDRESS = r"[\w+-]++(?:\.[\w+-]++)*+@[\w-]++(?:\.[\w-]++)*+"
_USUAL = re.compile(
    r"""[ \t]*+(?:(?P<name>[\w .'-]*+|"[\w .'-]*+")[ \t]*+"""
    rf"<(?P<named>{_USUAL_ADDRESS})>|(?P<bare>{_USUAL_ADDRESS}))[ \t]*+",
    re.ASCII,
)
_SPACES = re.compile(r"\s+", re.ASCII)
_SPACED_DOT = re.compile(r"\s\.|\.\s", re.ASCII)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_LOCAL_PART = rf'(?:(?!""){_QUOTED}|[^\x00-\x20\x7f@<>(),:;"\[\]]++)'
_DOMAIN = r'@(?:\[[\w:.-]*+\]|[^\x00-\x20\x7f@<>(),:;"\[\]\\]++)'
_ADDRESS = re.compile(_LOCAL_PART + _DOMAIN, re.DOTALL | re.ASCII)
_UNQUALIFIED = re.compile(f"{_LOCAL_PART}(?:{_DOMAIN})?", re.DOTALL | re.ASCII)
_BEFORE_ADDRESS = re.compile(r'@[^:"]*+:|mailto:', re.IGNORECASE)  # a route; what a program pasted
_EMPTY = re.compile(r"<\s*+>")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")  # some readers drop them, or end there
# Outside of quotes a backslash is not an escape (RFC 5322 3.2.3), but some readers take it for one.
_STRAY_ESCAPE = re.compile(r"\\(?:\Z|[^A-Za-z0-9 ])")
_DOUBTFUL = re.compile(rf'[@<>\[\]",;:()]|{_STRAY_ESCAPE.pattern}')  # a name with two readings
_IN_WORD = re.compile(r'\([^()<>@,;:"\\]*\)')  # a comment for some, which hides nothing


class Entry(Struct, frozen=True):
    """An entry of a list: a name, still with its encoded words, and an address, "" if it has none.

    `is_plain`: every reader sees this address, and no other, in `text`. `in_group`: it is after a
    colon or before a semicolon.
    """

    name: str
    address: str
    text: str
    is_plain: bool
    in_group: bool = False


class AddressBudget(Struct):
    """What may still be read of the address fields of a stored message, of all together. Each entry
    takes time, and so does each token of a list in which an entry is not as usual.
    """

    octets: int = 64 * 1024
    entries: int = 1000
    tokens: int = 3000

    def beginning(self, value: str) -> str:
        """Return the whole entries at the beginning of a list that may be read."""
        if len(value) > self.octets:
            value = value[: max(value.rfind(mark, 0, self.octets) for mark in ",;") + 1]
        parts = value.split(",", self.entries)[: self.entries]
        self.octets -= len(value)
        self.entries -= len(parts)
        return ",".join(parts)


class _TokenKind(Enum):
    TEXT = auto()
    WORD = auto()
    QUOTED = auto()
    COMMENT = auto()
    ANGLE = auto()  # an address in angle brackets
    MARK = auto()  # a separator, or an opening without its end


class _AddressToken(Struct):
    kind: _TokenKind
    text: str
    address: str = ""  # of ANGLE
    is_exact: bool = True  # other readers see the same


_END = _AddressToken(_TokenKind.MARK, "")
_KINDS = {"text": _TokenKind.TEXT, "word": _TokenKind.WORD, "quoted": _TokenKind.QUOTED}
_NOT_TEXT = (_TokenKind.QUOTED, _TokenKind.COMMENT)


def address_entries(
    value: str, budget: AddressBudget | None = None, *, unqualified: bool = False
) -> Iterator[Entry]:
    """Yield the entries of an unfolded value; groups are flattened.

    With `unqualified`, a local part without a domain is an address too. Beyond `budget` no entries
    follow.
    """
    value = budget.beginning(value) if budget else value
    parts = value.split(",")
    usual = list(itertools.takewhile(bool, map(_USUAL.fullmatch, parts)))
    if len(usual) == len(parts):
        for found in filter(None, usual):
            name, address = (found["name"] or "").strip(' "'), found["named"] or found["bare"]
            yield Entry(name, address, found[0].strip(), is_plain=True)
        return
    pattern = _UNQUALIFIED if unqualified else _ADDRESS
    read = list(itertools.islice(_tokens(value), budget.tokens if budget else None))
    if budget:
        budget.tokens -= len(read)
    end = (_END,) if budget is None or budget.tokens else ()  # an entry that is cut is not whole
    tokens: list[_AddressToken] = []
    in_group = False
    for token in itertools.chain(_with_angles(read, pattern), end):
        if token.kind is not _TokenKind.MARK or token.text not in ",;:":
            tokens.append(token)
            continue
        is_grouped = in_group or token.text == ";"
        if token.text != ":" or not _is_group_name(tokens):
            several = _without_commas(tokens)
            is_plain = token.text != ":" and len(several) == 1
            for some in several:
                if entry := _entry(some, pattern, is_plain=is_plain, in_group=is_grouped):
                    yield entry
        tokens = []
        in_group = token.text == ":" or (in_group and token.text == ",")


def _without_commas(tokens: list[_AddressToken]) -> list[list[_AddressToken]]:
    """Return the tokens of each entry where commas are missing."""
    ends = [at for at, one in enumerate(tokens, 1) if one.address]
    if len(ends) > 1:
        ends.pop()
        places = zip([0, *ends], [*ends, len(tokens)], strict=True)
        return [tokens[start:end] for start, end in places]
    words = tokens[0].text.split() if len(tokens) == 1 else []
    if len(words) > 1 and all(map(_ADDRESS.fullmatch, words)):
        return [[_AddressToken(_TokenKind.TEXT, word)] for word in words]
    return [tokens]


def _tokens(value: str) -> Iterator[_AddressToken]:
    """Yield the tokens. An opening without its end is looked for once: no later one ends either."""
    position = 0
    pattern, may_close = _TOKEN, True
    has_address = False  # since the last separator
    while position < len(value):
        found = pattern.match(value, position)
        assert found  # any character is one
        start, position = position, found.end()
        kind = _KINDS.get(found.lastgroup or "", _TokenKind.MARK)
        is_exact = True
        if found[0] == "(" and may_close:
            end = _comment_end(value, start)
            is_exact = end > 0 or not _MARKS.search(value, start + 1)
            if end or is_exact or has_address:
                kind, position = _TokenKind.COMMENT, end or len(value)
            else:
                may_close = False
        elif found[0] == '"':
            pattern = _UNQUOTED
        elif found[0] in "=@":
            kind = _TokenKind.TEXT
        has_address = found[0] not in ",;:" and (
            has_address or (kind is _TokenKind.TEXT and "@" in found[0])
        )
        yield _AddressToken(kind, value[start:position], is_exact=is_exact)


def _comment_end(value: str, start: int) -> int:
    """Return the end of a comment, 0 without one."""
    depth = 0
    for found in _IN_COMMENT.finditer(value, start):
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        if not depth:
            return found.end()
    return 0


def _with_angles(
    tokens: list[_AddressToken], pattern: "re.Pattern[str]"
) -> Iterator[_AddressToken]:
    """Yield the tokens, with ANGLE for each address in angle brackets and what is in them."""
    ends: dict[int, int] = {}
    opened, is_route = -1, False
    for place, token in enumerate(tokens):
        if token.kind is not _TokenKind.MARK:
            continue
        match token.text:
            case "<":
                opened = place
                is_route = any(
                    one.text.lstrip()[:1] == "@" for one in tokens[place + 1 : place + 2]
                )
            case ">" if opened >= 0:
                ends[opened], opened = place, -1
            case "," if not is_route:
                opened = -1
            case ";":
                opened = -1
    place = 0
    while place < len(tokens):
        end = ends.get(place, place)
        if end > place:
            address, is_exact = _address(tokens[place + 1 : end], pattern)
            text = "".join([one.text for one in tokens[place : end + 1]])
            if not address:
                address, is_exact = _address_in(text[1:-1]), False
            yield _AddressToken(_TokenKind.ANGLE, text, address, is_exact)
        else:
            yield tokens[place]
        place = end + 1


def _address(tokens: Sequence[_AddressToken], pattern: "re.Pattern[str]") -> tuple[str, bool]:
    """Return the address that the tokens are, "" if none, and whether other readers see it."""
    pieces = []
    is_exact = all(one.kind is not _TokenKind.WORD for one in tokens)  # some readers decode it
    for is_quoted, some in itertools.groupby(tokens, lambda one: one.kind is _TokenKind.QUOTED):
        text = "".join([" " if one.kind is _TokenKind.COMMENT else one.text for one in some])
        is_exact &= is_quoted or not _SPACED_DOT.search(text)  # some readers end the domain there
        pieces.append(text if is_quoted else _joined_at_dots(text))
    address = "".join(pieces).strip(" ")
    if before := _BEFORE_ADDRESS.match(address):
        address, is_exact = address[before.end() :], False
    return (address, is_exact) if pattern.fullmatch(address) else ("", False)


def _joined_at_dots(text: str) -> str:
    text = _SPACES.sub(" ", text)
    for before, after in ((" .", "."), (". ", "."), (" @", "@"), ("@ ", "@")):
        text = text.replace(before, after)
    return text


def _entry(
    tokens: list[_AddressToken], pattern: "re.Pattern[str]", *, is_plain: bool, in_group: bool
) -> Entry | None:
    text = "".join([one.text for one in tokens]).strip()
    if not text:
        return None
    outside = [one for one in tokens if one.kind not in _NOT_TEXT]
    angle = next((one for one in reversed(outside) if one.address), None)
    if angle is not None:
        address = angle.address
        others = [one for one in tokens if one is not angle]
        rest = "".join(
            [
                _IN_WORD.sub("", one.text) if one.kind is _TokenKind.WORD else one.text
                for one in outside
                if one is not angle
            ]
        )
        after = tokens[tokens.index(angle) + 1 :]
        is_exact = all(one.kind is _TokenKind.COMMENT or not one.text.strip() for one in after)
        is_same = _joined_at_dots(rest).strip().lower() == address.lower()
        is_named_so = is_same and not any(one.kind is _TokenKind.QUOTED for one in others)
        is_exact &= is_named_so or not _DOUBTFUL.search(rest)
    else:
        address, is_exact = _address(tokens, pattern)
        if _SPACED_DOT.search(text.partition("@")[0]):
            address = ""  # "B. carl@c.test" is two words
        others = [one for one in tokens if one.kind is _TokenKind.COMMENT]
    if not address:
        others, is_exact = tokens, all(one.kind is _TokenKind.COMMENT for one in tokens)
        for place, one in enumerate(tokens):
            if one.kind is _TokenKind.TEXT and (found := _address_in(one.text)):
                address = found
                left = _AddressToken(
                    _TokenKind.TEXT, one.text.replace(f"[{found}]", "").replace(found, "", 1)
                )
                others = [*tokens[:place], left, *tokens[place + 1 :]]
                others = [other for other in others if other.kind is not _TokenKind.MARK]
                break
    is_exact &= all(one.is_exact for one in tokens) and not _CONTROL.search(text)
    is_exact &= address[:1] == '"' or "\\" not in address
    return Entry(_name(others), address, text, is_plain and is_exact, in_group)


def _is_group_name(tokens: list[_AddressToken]) -> bool:
    return not any(
        one.kind in (_TokenKind.MARK, _TokenKind.ANGLE) or not one.is_exact or "@" in one.text
        for one in tokens
    )


def _address_in(text: str) -> str:
    """Return the first word that is an address, "" if there is none."""
    words = (word.strip("[]") for word in text.split() if "@" in word)
    return next(filter(_ADDRESS.fullmatch, words), "")


def _name(tokens: list[_AddressToken]) -> str:
    """Return the text of the tokens; a comment without other text loses its parentheses."""
    tokens = [one for one in tokens if not _EMPTY.fullmatch(one.text)]
    shown = [one for one in tokens if one.text.strip()]
    if all(one.kind is _TokenKind.COMMENT for one in shown):
        return " ".join([_plain(one.text.removesuffix(")")[1:]).strip() for one in shown])
    return "".join(
        [_plain(one.text[1:-1]) if one.kind is _TokenKind.QUOTED else one.text for one in tokens]
    ).strip()


def _plain(text: str) -> str:
    return _ESCAPED.sub(r"\1", text)
