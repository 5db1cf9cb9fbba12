"""Find every file name that a mail program may read in a field of a part, for rules on names.

Programs differ in how they read comments, quotes, escapes, sections, folding, encoded words and
missing semicolons. The names of relay.formats.content_fields come first. If a field has any of
these, what follows each `name=` is also read in the other ways. A name that no program shows does
no harm. Time is linear in the length of a field: each reading ends where the next name begins.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import chain, product
from urllib.parse import unquote_to_bytes

from relay.formats.charsets import decode_octets
from relay.formats.content_fields import ContentField, content_field
from relay.formats.encoded_words import text_of_words
from relay.transport.policy.folding import folded, without_case

NAME_CHARACTERS_MAX = 255  # the last ones, with the file extension
_NAMES = ("name", "filename")
# A field that all programs read in the same way, unless it has a parameter twice.
_PLAIN = re.compile(
    r"\s*[\w.+/-]++\s*(?>;\s*(?:(?:[\w-]++(?:\*[0-9])?=(?:[\w.+-]++|\"[^\"\\%\0]*+\"))"
    r"|[\w-]++(?:\*[0-9])?\*=[\w.+/%'-]++)?)*+",
    re.ASCII,
)
_NAME = re.compile(r"(?:file)?name[\s\"'0-9]{0,20}+(?:\*[^=;]{0,20}+)?=", re.IGNORECASE)
_SECTION = re.compile(r"\*\s*([0-9]{1,4})")
_QUOTED = re.compile(r'\s*"((?>[^"\\]|\\.?)*+)', re.DOTALL)
_ENDS = tuple(
    map(re.compile, (r"[;\r\n\0]", r'["\'(),;\s]', r'["(),;\s]', r'["(),;\s/:<>@?=\[\]]'))
)
_COMMENT = re.compile(r"\([^()]*\)")
_NOT_TEXT = str.maketrans("", "", '"\\\r\n\t;<>')
_CODED = re.compile(r"=\?|%")
_ENCODINGS_MAX = 4  # layers of encodings of a name
_NESTED_MAX = 10  # comments inside each other
_BOUNDARY = re.compile(r"boundary[\s\"'*0-9]{0,20}=", re.IGNORECASE)
_ESCAPED = re.compile(r'[^";]*+')  # unchanged, as by programs that keep a backslash
_PLAIN_BOUNDARY = re.compile(r'\s*(?:"[^"\\]*+"|[^"\\\s();]++)\s*(?:;|\Z)')
_ENDING = re.compile(r"[\0\r\n]")  # a program may end a name there
_TRAILING = " ./\\\"'<>|*?:"
_STREAM = "::$"  # before the type of a stream of a file: v.exe::$DATA is v.exe
_separators = re.compile(r"[/\\]")


def names_in(value: bytes) -> tuple[list[str], bool]:
    """Return all names in the unfolded value of Content-Type or Content-Disposition, as they are;
    and whether all programs read the same names.
    """
    if b"name" not in value.lower() and b"=?" not in value:
        return [], True
    text = value.decode("utf-8", "surrogateescape")
    field = content_field(text)
    names = list(_of(field))
    names += _decoded(filter(_CODED.search, names))
    keys = [key for key, _ in field.parameters]
    sections = [_number(key) for key in keys if "*" in key]
    is_plain = len(set(keys)) == len(keys) and sections == list(range(len(sections)))
    is_plain = is_plain and bool(_PLAIN.fullmatch(text))
    if not is_plain:
        names += filter(None, _decoded(_others(text)))
    names += [_ENDING.split(name, 1)[0] for name in names if _ENDING.search(name)]
    return names, is_plain


def boundaries_in(field: bytes) -> list[bytes]:
    """Return all boundaries that a program may read in a Content-Type, first the usual one, which
    may be b"".
    """
    if b"boundary" not in field.lower() and b"(" not in field:
        return []
    usual = content_field(field.decode("ascii", "surrogateescape")).raw("boundary").rstrip()
    text, boundaries = field.decode("utf-8", "surrogateescape"), list[str]()
    places = list(_BOUNDARY.finditer(text))
    is_plain = field.isascii() and len(places) == 1 and b"=?" not in field
    if not is_plain or not _PLAIN_BOUNDARY.match(text, places[0].end()):
        for reading in (text, _without_comments(text), _words(text)):
            boundaries += content_field(reading, has_comments=False).all("boundary")
            pieces = list(_loose(reading, _BOUNDARY))
            boundaries += [*_decoded(pieces), *filter(_ESCAPED.fullmatch, pieces)]
    boundaries = [usual, *filter(None, map(str.strip, boundaries))]
    return [boundary.encode("utf-8", "surrogateescape") for boundary in dict.fromkeys(boundaries)]


def normalised(name: str) -> str:
    """Return a name as the receiving system uses it, folded for comparison.

    Of a path only the last component is left. Removed are control and invisible characters, which
    could hide an extension; quotes and brackets around the name; the stream of a file; and trailing
    dots and blanks, which Windows removes. The name is in NFKC (full-width forms as ASCII).
    """
    visible = folded(name)
    last = _separators.split(visible.rstrip(_TRAILING))[-1]
    last = last.partition(_STREAM)[0].rstrip(_TRAILING) or last or visible
    return without_case(last[-NAME_CHARACTERS_MAX:])


def _of(field: ContentField) -> Iterator[str]:
    return chain.from_iterable(map(field.all, _NAMES))


def _others(text: str) -> Iterator[str]:
    texts = [text]
    if "=?" in text:
        texts.append(_words(text))
    if "(" in text:
        texts += [_without_comments(form) for form in texts]
    for form in texts:
        yield from _of(content_field(form))
        yield from _of(content_field(form, has_comments=False))
        yield from _loose(form)


def _without_comments(text: str) -> str:
    before = ""
    for _ in range(_NESTED_MAX):
        if before == text:
            break
        before, text = text, _COMMENT.sub("", text)
    return text


def _loose(text: str, names: re.Pattern[str] = _NAME) -> Iterator[str]:
    """Yield what follows each `name=`, and the sections of a name joined."""
    places = list(names.finditer(text))
    ends = [*(match.start() for match in places[1:]), len(text)]
    pieces = [
        (_number(match[0]), text[match.end() : end])
        for match, end in zip(places, ends, strict=False)
    ]
    for piece in dict.fromkeys(piece for _, piece in pieces):
        yield from _values(piece.lstrip())
        yield from _values(piece.lstrip("\"' \t"))
        if "\\" in piece or piece.count('"') % 2:  # the next parameters may be in quotes
            yield piece
    if all(number < 0 for number, _ in pieces):
        return
    for ordered, end in product((pieces, sorted(pieces, key=lambda pair: pair[0])), _ENDS):
        yield "".join(end.split(piece.strip(), 1)[0] for _, piece in ordered)


def _number(name: str) -> int:
    section = _SECTION.search(name)
    return int(section[1]) if section else name.count("*") - 1


def _values(piece: str) -> Iterator[str]:
    for end in _ENDS:
        yield end.split(piece, 1)[0]
    if quoted := _QUOTED.match(piece):
        yield quoted[1]


def _decoded(texts: Iterable[str]) -> list[str]:
    """Return the texts without quotes, and what they encode, also in several layers."""
    decoded: dict[str, None] = {}
    for _ in range(_ENCODINGS_MAX):
        bare = dict.fromkeys(text.translate(_NOT_TEXT).strip() for text in texts)
        new = [text for text in bare if text not in decoded]
        decoded |= bare
        octets = [text.encode("utf-8", "surrogateescape") for text in new if _CODED.search(text)]
        texts = [
            *(text_of_words(coded) for coded in octets if b"=?" in coded),
            *(_unquoted(coded) for coded in octets if b"%" in coded),
        ]
        if not texts:
            break
    return list(decoded)


def _words(text: str) -> str:
    return text_of_words(text.encode("utf-8", "surrogateescape"))


def _unquoted(text: bytes) -> str:
    *charset, octets = text.split(b"'", 2)
    label = b"".join(charset[:1]).decode("latin-1")
    return decode_octets(unquote_to_bytes(octets), label, fallback="")[0]
