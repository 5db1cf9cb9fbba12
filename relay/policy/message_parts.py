"""Find the parts of a message, with their names and types, without parsing what is in them.

For the conditions on attachments and on the body, once per content. Nested messages are included,
and every name that a mail program might show: from Content-Disposition and Content-Type, RFC 2231
and RFC 2047 encodings, duplicate parameters. Where programs differ in the type of a part, the parts
of every reading are found. relay.mime.structure reads the message, in linear time and in blocks.

Raises TooManyPartsError for a message beyond its bounds, so that a part cannot be hidden among a
thousand others; OSError (UnreadableError) for a large body that cannot be read.

attachments() also finds the types of what is attached: of a part only as many octets are decoded as
its type needs. Base64 is decoded as lenient programs do: octets that are not base64 do not count,
nor does padding before the end. relay/mime/file_types.py has the types.

RFC 2045 5 and 6, RFC 2046 5.1, RFC 2183 2.3, RFC 2231, RFC 2047.
"""

import re
from binascii import a2b_base64
from collections.abc import Callable, Iterator, Sequence
from email.message import Message
from email.utils import collapse_rfc2231_value
from functools import cache
from itertools import product

from msgspec import Struct

from relay.message.content import Octets, octets_in_blocks, octets_of
from relay.message.header import Header, ParsedContent
from relay.mime.encoded_words import decode_words
from relay.mime.file_types import OTHER_NAMES, file_types
from relay.mime.read_header import PARAMETERS_MAX, parse_header
from relay.mime.structure import Entity, LooseReading, structure_of
from relay.mime.transfer_encoding import decoded_blocks
from relay.policy.folding import folded

FIELD_OCTETS_MAX = 8 * 1024  # of Content-Type or Content-Disposition
# Of a message that is read in several ways: its content fields together. Real ones have some kB.
FIELDS_OCTETS_MAX = 256 * 1024
NAME_CHARACTERS_MAX = 255  # the last ones, with the file extension
_FIELDS = ("Content-Type", "Content-Disposition")
_READINGS = [LooseReading(*one) for one in product((False, True), (True, False), (True, False))]
_SHOWN = ("text/", "multipart/", "message/")  # unless it has a name, or is to be attached
_BODIES = ("text/plain", "text/html")
_NAMES = ("name", "filename")
_CODED = ("base64", "quoted-printable", "")  # "": any other encoding, the octets are as they are
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError)  # what the email package raises
_loose_name = re.compile(r"name[*0-9]*\s*=\s*(\"[^\"]*\"|[^;\s]+)", re.IGNORECASE)
_separators = re.compile(r"[/\\]")


class TooManyPartsError(Exception):
    """The message has more parts, nesting or part headers than real mail has."""


class MessagePart(Struct, frozen=True):
    """An entity of a message as a mail program may read it (RFC 2045 2.4)."""

    header: bytes  # the original octets
    start: int  # of the body, from the first octet of the message
    end: int  # of the body
    content_type: str  # as declared, in lower case without parameters; text/plain without any
    encodings: tuple[str, ...]  # each of _CODED at most once; programs differ in which one they use
    disposition: str  # in lower case without parameters, "" if there is none
    names: tuple[str, ...]  # normalised
    is_leaf: bool  # it contains no other entity
    is_forwarded: bool  # it is in an attached message

    @property
    def is_body(self) -> bool:
        """Whether mail programs show it as text of the message itself."""
        # a multipart without parts is shown as text
        is_text = self.content_type in _BODIES or self.content_type.startswith("multipart/")
        return is_text and self.is_leaf and self._is_inline and not self.is_forwarded

    @property
    def is_attachment(self) -> bool:
        """Whether mail programs offer it as a file."""
        if self.names or not self.is_leaf:
            return bool(self.names)
        return not self._is_inline or not self.content_type.startswith(_SHOWN)

    @property
    def _is_inline(self) -> bool:
        return self.disposition in ("", "inline")  # another one is an attachment (RFC 2183 2.8)


def message_parts(
    content: ParsedContent, between_parts: Callable[[], None] = lambda: None
) -> tuple[MessagePart, ...]:
    """Return all parts of all readings, in the order of the message for each reading.

    `between_parts` is called between blocks, parts and readings: what it raises ends the call.
    Raises TooManyPartsError; OSError for a large body that cannot be read.
    """
    reader = _PartReader(content, between_parts)
    found, is_ambiguous = reader.read(_READINGS[0])
    parts = dict.fromkeys(found)
    for reading in _READINGS[1:] if is_ambiguous else ():
        parts |= dict.fromkeys(reader.read(reading, is_one_of_several=True)[0])
    return tuple(parts)


def may_have_attachments(content: ParsedContent) -> bool:
    """Return whether the header leaves room for attachments: without reading the body."""
    header = content.header
    return "Content-Disposition" in header or any(
        value[:4].lower() != b"text" or b"name" in value.lower()
        for value in header.values("Content-Type")
    )


def normalised(name: str) -> str:
    """Return a name as the receiving system uses it, folded for comparison.

    Only the last component of a path; no control or invisible characters, which could hide an
    extension; no trailing dots or blanks, which Windows removes; NFKC (full-width forms as ASCII).
    """
    shown = folded(name)
    last = _separators.split(shown)[-1].rstrip(" .") or shown
    return last[-NAME_CHARACTERS_MAX:].casefold()


class _PartHeader(Struct, frozen=True):
    """What the header of a part says, in every reading of the message."""

    is_ambiguous: bool  # another reading may find other parts
    has_several: bool  # it has a content field twice
    size: int  # of the content fields, in octets
    disposition: str
    names: tuple[str, ...]
    encodings: tuple[str, ...]  # without the first


def _part_header(octets: bytes) -> _PartHeader:
    header = Header.parse(octets)
    names: list[str] = []
    for field in _FIELDS:
        for value in header.values(field):
            if len(value) > FIELD_OCTETS_MAX or value.count(b";") > PARAMETERS_MAX:
                raise TooManyPartsError(
                    f"a field of more than {FIELD_OCTETS_MAX} octets or {PARAMETERS_MAX} parameters"
                )
            if b"name" in value.lower():
                names += _names(field, value)
    types = header.values("Content-Type")
    sizes = [(name, len(each)) for name, each in header.fields if name.startswith(b"content-")]
    return _PartHeader(
        is_ambiguous=len(types) > 1
        or any(b"(" in each for each in types)
        or (bool(header.fields) and not header.fields[-1][0]),
        has_several=len(dict(sizes)) < len(sizes),
        size=sum([size for _, size in sizes]),
        disposition=_first_word(header.first("Content-Disposition") or b""),
        names=tuple(names),
        encodings=tuple(
            _first_word(each) for each in header.values("Content-Transfer-Encoding")[1:]
        ),
    )


class _PartReader:
    """Reads a message in several ways, but each header only once."""

    def __init__(self, content: ParsedContent, between_parts: Callable[[], None]) -> None:
        self._content = content
        self._between_parts = between_parts
        self._header_of = cache(_part_header)
        self._fields_of = cache(parse_header)

    def read(
        self, reading: LooseReading, *, is_one_of_several: bool = False
    ) -> tuple[list[MessagePart], bool]:
        """Return the parts, and whether another reading may find others."""
        structure = structure_of(self._blocks(), reading, self._fields_of)
        if not structure.is_complete:
            raise TooManyPartsError("; ".join(structure.defects))
        parts: list[MessagePart] = []
        is_ambiguous, is_several, size = False, is_one_of_several, 0
        for entity in structure.entities:
            self._between_parts()
            header = self._header_of(entity.header)
            is_ambiguous |= header.is_ambiguous
            is_several |= header.is_ambiguous or header.has_several
            size += header.size
            if is_several and size > FIELDS_OCTETS_MAX:
                raise TooManyPartsError(
                    f"more than {FIELDS_OCTETS_MAX} octets of content fields that programs read in"
                    " several ways"
                )
            parts.append(_part(entity, header))
        return parts, is_ambiguous

    def _blocks(self) -> Iterator[bytes]:
        yield self._content.header.octets
        rest = self._content.rest
        for block in [rest] if isinstance(rest, bytes) else octets_in_blocks(rest.body):
            self._between_parts()
            yield block


def _part(entity: Entity, header: _PartHeader) -> MessagePart:
    encodings = [each if each in _CODED else "" for each in (entity.encoding, *header.encodings)]
    kind = (entity.content_type.split(maxsplit=1) or [""])[0]
    return MessagePart(
        header=entity.header,
        start=entity.body_start,
        end=entity.end,
        content_type=kind if "/" in kind else "text/plain",  # RFC 2045 5.2
        encodings=tuple(dict.fromkeys(encodings)),  # the body is decoded once for each
        disposition=header.disposition,
        names=header.names,
        is_leaf=entity.is_leaf,
        is_forwarded=entity.is_forwarded,
    )


def _first_word(value: bytes) -> str:
    return value.decode("latin-1").partition(";")[0].strip().lower()


def _names(title: str, value: bytes) -> list[str]:
    """Return all names in one field: of two, programs differ in which one they use."""
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


_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NOT_BASE64 = bytes(set(range(256)) - set(_BASE64))
_BLOCK_OCTETS = 16 * 1024


class AttachedFile(Struct, frozen=True):
    """A file in a message: its normalised names, and its types in lower case."""

    names: tuple[str, ...]
    types: tuple[str, ...]


def attachments(
    content: ParsedContent,
    parts: Sequence[MessagePart],
    between_parts: Callable[[], None] = lambda: None,
) -> tuple[AttachedFile, ...]:
    """Return the attachments among the parts of a content.

    Reading blocks; raises OSError for a large body that cannot be read.
    """
    octets, found = octets_of(content.joined()), []
    for each in parts:
        between_parts()
        if each.is_attachment:
            found.append(_attachment(octets, each))
    return tuple(found)


def _attachment(octets: Octets, part: MessagePart) -> AttachedFile:
    declared = part.content_type
    types = [declared, OTHER_NAMES.get(declared, declared)]
    for encoding in part.encodings if part.is_leaf else ():
        body = octets.part(part.start, part.end - part.start)
        is_base64 = encoding == "base64"
        types += file_types(_from_base64(body) if is_base64 else decoded_blocks(body, encoding))
    return AttachedFile(part.names, tuple(dict.fromkeys(types)))


def _from_base64(octets: Octets) -> Iterator[bytes]:
    held = b""
    for block in octets_in_blocks([octets], _BLOCK_OCTETS):
        held += block.translate(None, _NOT_BASE64)
        end = len(held) // 4 * 4
        yield a2b_base64(held[:end])
        held = held[end:]
    if len(held) > 1:
        yield a2b_base64(held + b"=" * (4 - len(held)))
