"""Write header fields: text, people and parameters, in ASCII, folded, exact when decoded.

On the path: the draft form (step 1) and conversion (step 3) write their headers with it.
Holds: no value can end its field or start another; lines stay under 998, near 78 where they can.
Fails: never; what a field cannot hold (CR, LF, NUL) is replaced by a space.
Standards: RFC 5322 2.2.3, 3.3, 3.4; RFC 2047; RFC 2231; RFC 6532 for addresses only, RFC 6857.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import quote

from relay.message.properties import Person
from relay.mime.encodedwords import encode_text

CRLF = "\r\n"
MESSAGE_ID_CHARACTERS_MAX = 900  # a line has 998 octets, and an id cannot be folded
_FOLD_AT = 76
_LINE_MAX = 900  # under RFC 5322's 998, with room for what stands before
_SEGMENT_CHARACTERS = 60
_PHRASE_CHARACTERS = 64
_NAME_TAKEN = len("Reply-To: ")  # the longest field of people
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]+")
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_MESSAGE_ID = re.compile(r"<[!-;=?-~]+@[!-;=?-~]+>")
_FIELD_NAME = re.compile(r"[!-9;-~]{1,200}")
_TOKEN = re.compile(r"[A-Za-z0-9!#$&^_.+-]+")


def text_field(name: str, value: str) -> str:
    """Return an unstructured field: ASCII folded at spaces, anything else as encoded words.

    "" for a name that no field can have.
    """
    if _FIELD_NAME.fullmatch(name) is None:
        return ""
    value = _CONTROLS.sub(" ", value)
    if not _is_plain(value):
        return f"{name}: {_encoded_words(value, taken=len(name) + 2)}{CRLF}"
    if len(name) + len(value) < _FOLD_AT:
        return f"{name}: {value}{CRLF}"
    folded = _folded(value, used=len(name) + 2)
    if max(map(len, folded)) > _LINE_MAX:
        return f"{name}: {_encoded_words(value, taken=len(name) + 2)}{CRLF}"
    return f"{name}: {(CRLF).join(folded)}{CRLF}"


def raw_field(name: str, value: str) -> str:
    """Return a field whose value is ASCII with a syntax of its own, and folded if need be."""
    return f"{name}: {value}{CRLF}"


def people_field(name: str, people: Sequence[Person]) -> str:
    """Return an address list, one mailbox a line; "" when there is nobody."""
    if not people:
        return ""
    return f"{name}: {f',{CRLF} '.join(_mailbox(person) for person in people)}{CRLF}"


def phrases_field(name: str, phrases: Sequence[str]) -> str:
    """Return a list of phrases with commas between them (Keywords); "" when there is none."""
    written = [_phrase(phrase) for phrase in map(_one_line, phrases) if phrase]
    return f"{name}: {f',{CRLF} '.join(written)}{CRLF}" if written else ""


def ids_field(name: str, ids: Sequence[str]) -> str:
    """Return a list of message ids, one a line; "" when there is none that can be written."""
    written = [one for one in ids if is_message_id(one)]
    return f"{name}: {f'{CRLF} '.join(written)}{CRLF}" if written else ""


def parameter(name: str, value: str) -> str:
    """Return "; name=value" for a MIME field, RFC 2231 encoded where it must be."""
    value = _CONTROLS.sub(" ", value)
    if _TOKEN.fullmatch(value) and len(value) <= _SEGMENT_CHARACTERS:
        return f";{CRLF} {name}={value}"
    # Many readers take "=?" for an encoded word here as well.
    if value.isascii() and len(value) <= _SEGMENT_CHARACTERS and "=?" not in value:
        return f";{CRLF} {name}={_quoted(value)}"
    segments = list(_percent_segments(value))
    if len(segments) == 1:
        return f";{CRLF} {name}*=utf-8''{segments[0]}"
    written = [
        f";{CRLF} {name}*{number}*={segment}"
        for number, segment in enumerate([f"utf-8''{segments[0]}", *segments[1:]])
    ]
    return "".join(written)


def is_message_id(text: str) -> bool:
    """Whether `text` can stand in a Message-ID field, angle brackets and all."""
    return len(text) <= MESSAGE_ID_CHARACTERS_MAX and _MESSAGE_ID.fullmatch(text) is not None


def ascii_address(address: str) -> str:
    """Return the address with its domain in A-labels; the local part stays as it is."""
    if address.isascii():
        return address
    local_part, _, domain = address.rpartition("@")
    try:
        return f"{local_part}@{domain.encode('idna').decode()}"
    except UnicodeError:
        return address


def _is_plain(value: str) -> bool:
    return value.isascii() and "=?" not in value and value == value.strip()


def _folded(value: str, *, used: int) -> list[str]:
    """Break before white space so that removing the breaks gives the value again."""
    lines: list[str] = []
    line = ""
    for piece in re.findall(r"[ \t]*[^ \t]+", value):
        if line and used + len(line) + len(piece) > _FOLD_AT:
            lines.append(line)
            line, used = piece, 0
        else:
            line += piece
    return [*lines, line]


def _encoded_words(value: str, *, taken: int) -> str:
    return f"{CRLF} ".join(encode_text(value, taken=taken))


def without_smtputf8(person: Person) -> Person:
    """Return the person as 7 bits can name them: without an address, where that is beyond ASCII.

    people_field() writes that as a group of nobody (RFC 6857 3.1.8), which readers show.
    """
    if ascii_address(person.address).isascii():
        return person
    return Person("", f"{person.name} {person.address}".strip())


def _mailbox(person: Person) -> str:
    address = _CONTROLS.sub("", ascii_address(person.address))
    name = _one_line(person.name)
    if name and not address:
        return f"{_phrase(name)}:;"
    if not name:
        return address
    if _needs_words(name):
        return f"{_encoded_words(name, taken=_NAME_TAKEN)}{CRLF} <{address}>"
    return f"{name if _ATOMS.fullmatch(name) else _quoted(name)} <{address}>"


def _phrase(text: str) -> str:
    if _needs_words(text):
        return _encoded_words(text, taken=_NAME_TAKEN)
    return text if _ATOMS.fullmatch(text) else _quoted(text)


def _needs_words(phrase: str) -> bool:
    return not phrase.isascii() or "=?" in phrase or len(phrase) > _PHRASE_CHARACTERS


def _one_line(text: str) -> str:
    return _CONTROLS.sub(" ", text).strip()


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _percent_segments(value: str) -> Iterator[str]:
    return _gathered(quote(one.encode("utf-8", "replace"), safe="") for one in value)


def _gathered(pieces: Iterable[str]) -> Iterator[str]:
    segment = ""
    for piece in pieces:
        if len(segment) + len(piece) > _SEGMENT_CHARACTERS:
            yield segment
            segment = ""
        segment += piece
    yield segment
