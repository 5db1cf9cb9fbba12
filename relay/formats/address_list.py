"""Read an address list as mail programs do.

An entry ends at a comma or semicolon outside of quoted strings, comments, angle brackets and
encoded words. Where the comma is missing, it also ends after an address in angle brackets that
another address follows, and between words that are all addresses. An address in angle brackets is
the address of its entry; the other text is the name. Text that is not an address is a name. A
quote, comment or bracket that is opened but never closed is text. A dot at the end of a domain, the
root of the DNS, is left out.
RFC 5322 3.4; 4.4 (routes and white space are dropped); RFC 2047 5; RFC 6532.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from enum import Enum, auto

from msgspec import Struct

from relay.base.message.address import lower_case

_QUOTED = r'"(?>[^"\\]|\\.)*+"'
_TEXT = r'(?P<text>(?>[^"<>(,;:=@]|=(?!\?)|@(?!\[))++|@\[[\w:.-]*+\])'
_WORD = r"(?P<word>=\?[\w.:*+-]{1,60}\?[bBqQ]\?[^?]*+\?=)"
_TOKEN = re.compile(rf"{_TEXT}|{_WORD}|(?P<quoted>{_QUOTED})|(?P<other>.)", re.DOTALL | re.ASCII)
_UNQUOTED = re.compile(rf"{_TEXT}|{_WORD}|(?P<other>.)", re.DOTALL | re.ASCII)
_IN_COMMENT = re.compile(r"\\.|[()]", re.DOTALL)
_MARKS = re.compile("[@<>,;:]")
# Most entries: `Name <local@domain>`, or the address alone.
_USUAL_ADDRESS = r"[\w+-]++(?>\.[\w+-]++)*+@[\w-]++(?>\.[\w-]++)*+"
_USUAL = re.compile(
    r"""[ \t]*+(?:(?P<name>[\w .'-]*+|"[\w .'-]*+")[ \t]*+"""
    rf"<(?P<named>{_USUAL_ADDRESS})>|(?P<bare>{_USUAL_ADDRESS}))[ \t]*+",
    re.ASCII,
)
_SPACES = re.compile(r"\s+", re.ASCII)
_ROOT = re.compile(r"(?<=[^@.])\.\Z")
_SPACED_DOT = re.compile(r"\s\.|\.\s", re.ASCII)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_LOCAL_PART = rf'(?:(?!""){_QUOTED}|[^\x00-\x20\x7f@<>(),:;"\[\]]++)'
_DOMAIN = r'@(?:\[[\w:.-]*+\]|[^\x00-\x20\x7f@<>(),:;"\[\]\\]++)'
_ADDRESS = re.compile(_LOCAL_PART + _DOMAIN, re.DOTALL | re.ASCII)
_UNQUALIFIED = re.compile(f"{_LOCAL_PART}(?:{_DOMAIN})?", re.DOTALL | re.ASCII)
_BEFORE_ADDRESS = re.compile(r'@[^:"]*+:|mailto:', re.IGNORECASE)  # a route; a pasted link
_PASTED = re.compile(r"\[mailto:", re.IGNORECASE)
_EMPTY = re.compile(r"<\s*+>")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")  # some readers drop them, or end there
# Outside of quotes a backslash is not an escape (RFC 5322 3.2.3), but some readers take it for one.
_STRAY_ESCAPE = re.compile(r"\\(?:\Z|[^A-Za-z0-9 ])")
_DOUBTFUL = re.compile(rf'[@<>\[\]",;:()]|{_STRAY_ESCAPE.pattern}')  # a name with two readings
_IN_WORD = re.compile(r'\([^()<>@,;:"\\]*\)')  # a comment for some, which hides nothing


class Entry(Struct, frozen=True):
    """An entry of an address list.

    `name` still has its encoded words. `address` is "" if the entry has none. `is_plain` is true if
    every mail program reads exactly this address in `text`. `in_group` is true after a colon or
    before a semicolon.
    """

    name: str
    address: str
    text: str
    is_plain: bool
    in_group: bool = False


class AddressBudget(Struct):
    """How much may still be read of all address fields of a stored message together.

    Reading takes time for each entry, and in a list with an unusual entry for each token.
    """

    # limit: the address fields of a stored message that are read, together
    octets: int = 64 * 1024
    fields: int = 100
    # limit: entries of these fields
    entries: int = 1000
    tokens: int = 3000

    def beginning(self, value: str) -> str:
        """Return the beginning of a list that may be read: whole entries only."""
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
    is_exact: bool = True  # all mail programs read it in the same way


_END = _AddressToken(_TokenKind.MARK, "")
_KINDS = {"text": _TokenKind.TEXT, "word": _TokenKind.WORD, "quoted": _TokenKind.QUOTED}
_NOT_TEXT = (_TokenKind.QUOTED, _TokenKind.COMMENT)


def address_entries(
    value: str, budget: AddressBudget | None = None, *, unqualified: bool = False
) -> Iterator[Entry]:
    """Yield the entries of an unfolded value; groups are flattened.

    With `unqualified`, a local part without a domain is an address too. Entries beyond `budget`,
    which is for what is shown, are left out; there `Name <local>` has the address "local".
    """
    text = budget.beginning(value) if budget else value
    text = text if '"' in text else _PASTED.sub("[", text)  # it may be quoted
    parts = text.split(",")
    usual = list(itertools.takewhile(bool, map(_USUAL.fullmatch, parts)))
    if len(usual) == len(parts):
        for match in filter(None, usual):
            name, address = (match["name"] or "").strip(' "'), match["named"] or match["bare"]
            yield Entry(name, address, match[0].strip(), is_plain=True)
        return
    pattern = _UNQUALIFIED if unqualified else _ADDRESS
    read = list(itertools.islice(_tokens(text), budget.tokens if budget else None))
    if budget:
        budget.tokens -= len(read)
    end = (_END,) if budget is None or budget.tokens else ()  # an entry that is cut is not whole
    tokens: list[_AddressToken] = []
    in_group = is_after_group = False
    for token in itertools.chain(_with_angles(read, pattern), end):
        if token.kind is not _TokenKind.MARK or token.text not in ",;:":
            tokens.append(token)
            continue
        is_grouped = in_group or token.text == ";"
        is_comment = is_after_group and all(map(_is_comment, tokens))
        if not is_comment and (token.text != ":" or not _is_group_name(tokens)):
            several = _without_commas(tokens)
            is_plain = token.text != ":" and len(several) == 1
            for group in several:
                if budget:
                    _read_local_part(group)
                if entry := _entry(group, pattern, is_plain=is_plain, in_group=is_grouped):
                    yield entry
        tokens, is_after_group = [], token.text == ";"
        in_group = token.text == ":" or (in_group and token.text == ",")


def _read_local_part(tokens: list[_AddressToken]) -> None:
    """Take a local part alone in the only angle brackets of an entry for its address."""
    angles = [token for token in tokens if token.kind is _TokenKind.ANGLE]
    if len(angles) == 1 and not any("@" in token.text for token in tokens):
        local = angles[0].text[1:-1].strip()
        angles[0].address = local if _UNQUALIFIED.fullmatch(local) else ""


def _without_commas(tokens: list[_AddressToken]) -> list[list[_AddressToken]]:
    """Return the tokens of each entry where commas are missing."""
    ends = [at for at, token in enumerate(tokens, 1) if token.address]
    if len(ends) > 1:
        ends.pop()
        places = zip([0, *ends], [*ends, len(tokens)], strict=True)
        return [tokens[start:end] for start, end in places]
    words = tokens[0].text.split() if len(tokens) == 1 else []
    if len(words) > 1 and all(map(_ADDRESS.fullmatch, words)):
        return [[_AddressToken(_TokenKind.TEXT, word)] for word in words]
    return [tokens]


def _tokens(value: str) -> Iterator[_AddressToken]:
    """Yield the tokens.

    If a quote or comment is not closed, the search for an end is not repeated for later ones: they
    are not closed either.
    """
    position = 0
    pattern, may_close = _TOKEN, True
    has_address = False  # since the last separator
    while position < len(value):
        match = pattern.match(value, position)
        assert match  # any character is one
        start, position = position, match.end()
        kind = _KINDS.get(match.lastgroup or "", _TokenKind.MARK)
        is_exact = True
        if match[0] == "(" and may_close:
            end = _comment_end(value, start)
            is_exact = end > 0 or not _MARKS.search(value, start + 1)
            if end or is_exact or has_address:
                kind, position = _TokenKind.COMMENT, end or len(value)
            else:
                may_close = False
        elif match[0] == '"':
            pattern = _UNQUOTED
        elif match[0] in "=@":
            kind = _TokenKind.TEXT
        has_address = match[0] not in ",;:" and (
            has_address or (kind is _TokenKind.TEXT and "@" in match[0])
        )
        yield _AddressToken(kind, value[start:position], is_exact=is_exact)


def _comment_end(value: str, start: int) -> int:
    """Return the end of a comment, 0 without one."""
    depth = 0
    for match in _IN_COMMENT.finditer(value, start):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if not depth:
            return match.end()
    return 0


def _with_angles(
    tokens: list[_AddressToken], pattern: "re.Pattern[str]"
) -> Iterator[_AddressToken]:
    """Yield the tokens; an address in angle brackets becomes one token of kind ANGLE."""
    ends: dict[int, int] = {}
    opened, is_route = -1, False
    for place, token in enumerate(tokens):
        if token.kind is not _TokenKind.MARK:
            continue
        match token.text:
            case "<":
                opened = place
                is_route = any(
                    token.text.lstrip()[:1] == "@" for token in tokens[place + 1 : place + 2]
                )
            case ">" if opened >= 0:
                ends[opened], opened = place, -1
            case "," | ";" if token.text == ";" or not is_route:
                opened = -1
    place = 0
    while place < len(tokens):
        end = ends.get(place, place)
        if end > place:
            address, is_exact = _address(tokens[place + 1 : end], pattern)
            text = "".join([token.text for token in tokens[place : end + 1]])
            if not address:
                address, is_exact = _address_in(text[1:-1]), False
            yield _AddressToken(_TokenKind.ANGLE, text, address, is_exact)
        else:
            yield tokens[place]
        place = end + 1


def _address(tokens: Sequence[_AddressToken], pattern: "re.Pattern[str]") -> tuple[str, bool]:
    """Return the address that the tokens form ("" if none), and whether all programs read it."""
    if pattern is _ADDRESS and not any("@" in token.text for token in tokens):
        return "", False
    pieces = []
    is_exact = all(token.kind is not _TokenKind.WORD for token in tokens)  # some readers decode it
    for is_quoted, run in itertools.groupby(tokens, lambda token: token.kind is _TokenKind.QUOTED):
        text = "".join([" " if token.kind is _TokenKind.COMMENT else token.text for token in run])
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
    text = "".join([token.text for token in tokens]).strip()
    if not text:
        return None
    outside = [token for token in tokens if token.kind not in _NOT_TEXT]
    angle = next((token for token in reversed(outside) if token.address), None)
    if angle is not None:
        address = angle.address
        others = [token for token in tokens if token is not angle]
        rest = "".join(
            [
                _IN_WORD.sub("", token.text) if token.kind is _TokenKind.WORD else token.text
                for token in outside
                if token is not angle
            ]
        )
        after = tokens[tokens.index(angle) + 1 :]
        is_exact = all(
            token.kind is _TokenKind.COMMENT or not token.text.strip() for token in after
        )
        is_same = lower_case(_joined_at_dots(rest).strip()) == lower_case(address)
        is_named_so = is_same and not any(token.kind is _TokenKind.QUOTED for token in others)
        is_exact &= is_named_so or not _DOUBTFUL.search(rest)
    else:
        address, is_exact = _address(tokens, pattern)
        if _SPACED_DOT.search(text.partition("@")[0]):
            address = ""  # "B. carl@c.test" is two words
        others = [token for token in tokens if token.kind is _TokenKind.COMMENT]
    if not address:
        others, is_exact = tokens, all(token.kind is _TokenKind.COMMENT for token in tokens)
        for place, token in enumerate(tokens):
            if token.kind is _TokenKind.TEXT and (bare := _address_in(token.text)):
                address = bare
                left = _AddressToken(
                    _TokenKind.TEXT, token.text.replace(f"[{bare}]", "").replace(bare, "", 1)
                )
                others = [*tokens[:place], left, *tokens[place + 1 :]]
                others = [other for other in others if other.kind is not _TokenKind.MARK]
                break
    is_exact &= all(token.is_exact for token in tokens) and not _CONTROL.search(text)
    is_exact &= address[:1] == '"' or "\\" not in address
    address = _ROOT.sub("", address) if "@" in address else address
    return Entry(_name(others), address, text, is_plain and is_exact, in_group)


def _is_comment(token: _AddressToken) -> bool:
    return not token.text.strip() or (token.kind is _TokenKind.COMMENT and token.is_exact)


def _is_group_name(tokens: list[_AddressToken]) -> bool:
    return not any(
        token.kind in (_TokenKind.MARK, _TokenKind.ANGLE) or not token.is_exact or "@" in token.text
        for token in tokens
    )


def _address_in(text: str) -> str:
    """Return the first word that is an address, "" if there is none."""
    words = (word.strip("[]") for word in text.split() if "@" in word)
    return next(filter(_ADDRESS.fullmatch, words), "")


def _name(tokens: list[_AddressToken]) -> str:
    """Return the text of the tokens without comments; of comments alone, without parentheses."""
    tokens = [token for token in tokens if not _EMPTY.fullmatch(token.text)]
    visible = [token for token in tokens if token.text.strip()]
    if all(token.kind is _TokenKind.COMMENT for token in visible):
        return " ".join([_plain(token.text.removesuffix(")")[1:]).strip() for token in visible])
    return "".join(
        [
            _plain(token.text[1:-1]) if token.kind is _TokenKind.QUOTED else token.text
            for token in tokens
            if token.kind is not _TokenKind.COMMENT
        ]
    ).strip()


def _plain(text: str) -> str:
    return _ESCAPED.sub(r"\1", text)
