"""Find the names of all attachments in a message, without parsing the attachments themselves.

For the attachment_name condition, once per content. Nested messages are included, and every name
that a mail program might show: from Content-Disposition and Content-Type, RFC 2231 and RFC 2047
encodings, duplicate parameters. Where programs differ in the type of a part, the parts of every
reading are found. relay.mime.structure reads the message, in linear time and in blocks.

Raises TooManyPartsError for a message beyond its bounds, so that a part cannot be hidden among a
thousand others; OSError (UnreadableError) for a large body that cannot be read.

RFC 2045 5, RFC 2046 5.1, RFC 2183 2.3, RFC 2231, RFC 2047.
"""

import re
import unicodedata
from collections.abc import Iterator
from email.message import Message
from email.utils import collapse_rfc2231_value
from itertools import product

from relay.message.content import octets_in_blocks
from relay.message.header import Header, ParsedContent
from relay.mime.encoded_words import decode_words
from relay.mime.structure import LooseReading, structure_of

FIELD_OCTETS_MAX = 8 * 1024  # of Content-Type or Content-Disposition
PARAMETERS_MAX = 100  # of one field: the stdlib's parser is quadratic in them
NAME_CHARACTERS_MAX = 255  # the last ones, with the file extension
_FIELDS = (b"content-type", b"content-disposition")
_READINGS = [LooseReading(*one) for one in product((False, True), (True, False), (True, False))]
_HINTS = (b"multipart", b"message/", b"name")  # without any of them, there is no attachment
_NAMES = ("name", "filename")
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError)  # what the email package raises
_loose_name = re.compile(r"name[*0-9]*\s*=\s*(\"[^\"]*\"|[^;\s]+)", re.IGNORECASE)
_separators = re.compile(r"[/\\]")


class TooManyPartsError(Exception):
    """The message has more parts, nesting or part headers than real mail has."""


def attachment_names(content: ParsedContent) -> tuple[str, ...]:
    """Return the normalised names in the order of the parts.

    Raises TooManyPartsError; OSError for a large body that cannot be read.
    """
    if not may_have_attachments(content):
        return ()
    names, is_ambiguous = _read(content, _READINGS[0])
    for reading in _READINGS[1:] if is_ambiguous else ():
        names += [each for each in _read(content, reading)[0] if each not in names]
    return tuple(names)


def may_have_attachments(content: ParsedContent) -> bool:
    """Return whether the header leaves room for attachments: without reading the body."""
    header = content.header.octets.lower()
    return any(hint in header for hint in _HINTS)


def normalised(name: str) -> str:
    """Return a name as the receiving system uses it, folded for comparison.

    Only the last component of a path; no control or invisible characters, which could hide an
    extension; no trailing dots or blanks, which Windows removes; NFKC (full-width forms as ASCII).
    """
    plain = unicodedata.normalize("NFKC", name)
    shown = "".join(each for each in plain if unicodedata.category(each)[0] != "C")
    last = _separators.split(shown)[-1].rstrip(" .") or shown
    return last[-NAME_CHARACTERS_MAX:].casefold()


def _read(content: ParsedContent, reading: LooseReading) -> tuple[list[str], bool]:
    """Return the names, and whether another reading may find other parts."""
    structure = structure_of(_blocks(content), reading)
    if not structure.is_complete:
        raise TooManyPartsError("; ".join(structure.defects))
    names: list[str] = []
    is_ambiguous = False
    for entity in structure.entities:
        header = Header.parse(entity.header)
        if header.fields and not header.fields[-1][0]:
            is_ambiguous = True
        for name, octets in header.fields:
            if name not in _FIELDS:
                continue
            value = octets.partition(b":")[2]
            if len(value) > FIELD_OCTETS_MAX or value.count(b";") > PARAMETERS_MAX:
                raise TooManyPartsError(
                    f"a field of more than {FIELD_OCTETS_MAX} octets or {PARAMETERS_MAX} parameters"
                )
            if b"name" in value.lower():
                names += _names(name, value)
            if name == b"content-type" and (b"(" in value or header.count("Content-Type") > 1):
                is_ambiguous = True
    return names, is_ambiguous


def _blocks(content: ParsedContent) -> Iterator[bytes]:
    yield content.header.octets
    if isinstance(content.rest, bytes):
        yield content.rest
    else:
        yield from octets_in_blocks(content.rest.body)


def _names(field: bytes, value: bytes) -> list[str]:
    """Return all names in one field: of two, programs differ in which one they use."""
    title = field.decode("ascii")
    try:
        parameters = _message(title, value).get_params(header=title) or []
        found = [_decoded(text) for name, text in parameters if name.lower() in _NAMES]
    except _DAMAGE:
        found = [each.strip('"') for each in _loose_name.findall(value.decode("latin-1"))]
    return [normalised(each) for each in found]


def _decoded(name: str | tuple[str | None, str | None, str]) -> str:
    """Decode a parameter: RFC 2231 (a tuple), else raw UTF-8 and encoded words."""
    if isinstance(name, tuple):
        return collapse_rfc2231_value(name)
    return decode_words(name.encode("latin-1"))


def _message(name: str, value: bytes) -> Message:
    """Return a message with this one field, each octet a character, for its parameters."""
    message = Message()
    message[name] = value.decode("latin-1").replace("\r", "").replace("\n", "").strip()
    return message
