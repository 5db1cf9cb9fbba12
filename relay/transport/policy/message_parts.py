"""Find the parts of a message, with their names and types, without parsing their contents.

The conditions on attachments and on the body need them, once per content. Parts of nested messages
are included, and every name that a mail program might show
(relay.transport.policy.attachment_names). Where programs differ in the type or the boundary of a
part, the parts of every reading are found. So are the parts of encoded multiparts and messages, and
uuencoded files in a text. relay.formats.structure reads the message, in linear time and in blocks.

Raises TooManyPartsError for a message with too many parts, so that no part can be hidden among a
thousand others; OSError (UnreadableError) for a large body that cannot be read.

A name that ends in .com need not be that of a file: it may be the subject of a forwarded message,
or the Content-ID of a picture in the text. AttachedFile.compared has another ending for these.

attachments() also finds the types of attachments. Only as many octets of a part are decoded as its
type needs. Base64 is decoded as lenient programs do: other octets are ignored, and so is padding
before the end. relay/formats/file_types.py has the types.

RFC 2045 5 and 6, RFC 2046 5.1, RFC 2183 2.3, RFC 2231, RFC 2047.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from email.message import Message
from functools import cache
from itertools import chain, islice, pairwise, product

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.content import (
    LARGE_BYTES,
    MemoryOctets,
    Octets,
    blocks,
    join_octets,
    octets_in_blocks,
    octets_of,
)
from relay.base.message.header import Header, ParsedContent, cleaned
from relay.formats.content_fields import content_field
from relay.formats.file_types import OTHER_NAMES, file_types
from relay.formats.read_header import fields_of_header
from relay.formats.read_mime import ENCODINGS_MAX
from relay.formats.structure import ENTITIES_MAX, IDENTITY, Entity, LooseReading, structure_of
from relay.formats.transfer_encoding import (
    BASE64_IN_ONE_PIECE,
    UUENCODE,
    Coding,
    decoded_blocks,
    decoded_octets,
    uuencoded_files,
)
from relay.transport.policy.attachment_names import boundaries_in, names_in, normalised

PARAMETERS_MAX = 100  # of a content field
FIELD_OCTETS_MAX = 8 * 1024  # of Content-Type or Content-Disposition
# Of all content fields in a message that is read in several ways. Real messages have some kB.
FIELDS_OCTETS_MAX = 256 * 1024
_FIELDS = ("Content-Type", "Content-Disposition")
_READINGS = [LooseReading(*flags) for flags in product((False, True), (True, False))]
_READINGS += [LooseReading(outermost=is_outermost, exact=True) for is_outermost in (False, True)]
_READINGS += [LooseReading(outermost=True)]
_SHOWN = ("text/", "multipart/", "message/")  # unless it has a name, or is to be attached
# Shown as files: what they contain is in other messages, or elsewhere (RFC 2046 5.2.2 and 5.2.3).
_INCOMPLETE = ("message/partial", "message/external-body")
_BODIES = ("text/plain", "text/html")
_CODED = ("base64", "quoted-printable")
_UUENCODED = "uuencode"
_MESSAGE = re.compile(r"message/(?!delivery-status\Z)")  # delivery-status has several headers
# The types whose names need be no file names, if all programs read them in the same way.
_NAMED_OTHERWISE = re.compile(
    rb"(?:message/(?:rfc822|global)|image/(?:png|jpeg|gif|webp))[ \t]*+(?:;|\Z)", re.IGNORECASE
)
_PROGRAM = ".com"  # the only file extension that is the end of a domain, too
# A header to its end, without a line that is no field; MZ begins a program.
_WHOLE_HEADER = re.compile(
    rb"(?!MZ)(?>[!-9;-~]++[ \t]*+:[^\r\n\0]*+"
    rb"(?>(?>\r\n|[\r\n])[ \t][^\r\n\0]*+)*+(?>\r\n|[\r\n]))++(?=[\r\n]|\Z)"
)
_OF_A_MESSAGE = re.compile(rb"^(?:from|date)[ \t]*+:", re.IGNORECASE | re.MULTILINE)
_HEADER_READ_OCTETS = 64 * 1024  # of an attached message
_MORE_IN_TYPE = re.compile(rb"(?!text/|multipart/)|.*(?:name|=\?|\()", re.IGNORECASE | re.DOTALL)
# A "content-" that begins no field, or the field of a text without a name.
_NO_FILE = re.compile(
    rb"content-(?:(?<=[!-~]content-)|(?<=[!-~] content-)|(?<=\ncontent-)"
    rb"(?:type: text/(?:plain|html)(?>; ?(?:charset|format)=\"?[\w-]++\"?)*+"
    rb"|transfer-encoding: [78]bit)\r\n(?=\r\n|[!-9;-~]++:))"
)
_TEXTS_OCTETS_MAX, _TEXTS_MAX = 65536, 100  # more must not be read on the event loop
_NO_BOUNDARY = re.compile(rb"^--(?=[ \t]*\r?$)", re.MULTILINE)
_ANY_BOUNDARY = b"--=_any"
_BLANKS = b" \t"  # before the first field of a part, which some programs read
_NO_BREAK = re.compile(rb"^(?>\xc2?\xa0)*+([!-9;-~]++)(?>\xc2?\xa0)*+(?=[ \t]*+:)", re.MULTILINE)
# How often the size of the message may be read again, decoded or with another boundary.
_READ_AGAIN_MAX = 8


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
    source: Octets | None = None  # where the positions count, if not in the message
    compared: tuple[str, ...] = ()  # `names` as AttachedFile.compared

    def body(self, content: Octets) -> Octets:
        """Return its body, as it is stored in the content or in an encoded part of it."""
        return (self.source or content).part(self.start, self.end - self.start)

    @property
    def is_body(self) -> bool:
        """Whether mail programs show it as text of the message itself."""
        # a multipart without parts is shown as text
        is_text = self.content_type in _BODIES or self.content_type.startswith("multipart/")
        return is_text and self.is_leaf and self._is_inline and not self.is_forwarded

    @property
    def is_attachment(self) -> bool:
        """Whether mail programs offer it as a file."""
        if self.content_type in _INCOMPLETE:
            return True
        if self.names or not self.is_leaf:
            return bool(self.names)
        return not self._is_inline or not self.content_type.startswith(_SHOWN)

    @property
    def _is_inline(self) -> bool:
        return self.disposition in ("", "inline")  # another one is an attachment (RFC 2183 2.8)


def message_parts(
    content: ParsedContent,
    between_parts: Callable[[], None] = lambda: None,
    *,
    by_graph: bool = False,
) -> tuple[MessagePart, ...]:
    """Return all parts of all readings, in the order of the message for each reading.

    `between_parts` is called between blocks, parts and readings: what it raises ends the call. An
    item in a message by Graph is a message without From and Date, too.
    Raises TooManyPartsError; OSError for a large body that cannot be read.
    """
    reader = _PartReader(content, between_parts, by_graph=by_graph)
    first_parts, is_ambiguous = reader.read(_READINGS[0])
    parts = dict.fromkeys(first_parts)
    for reading in _READINGS[1:] if is_ambiguous else ():
        parts |= dict.fromkeys(reader.read(reading, is_one_of_several=True)[0])
    return tuple(parts)


def may_have_attachments(content: ParsedContent) -> bool:
    """Return whether there may be attachments, without reading a large body or decoding one."""
    header, rest = content.header, content.rest
    encodings = map(bytes.lower, header.values("Content-Transfer-Encoding"))
    return (
        "Content-Disposition" in header
        or "Content-Location" in header
        or any(map(_MORE_IN_TYPE.match, header.values("Content-Type")))
        or "" in header  # lines that some programs take for fields
        or not isinstance(rest, bytes)
        or b"begin" in rest
        or any(encoding.decode("latin-1") not in IDENTITY for encoding in encodings)
        or (b"\n--" in rest and not _has_only_texts(rest))
    )


def _has_only_texts(body: bytes) -> bool:
    """Return whether all parts are texts without a name, in every reading.

    Each `Content-` field in the body must be one that such a text has.
    """
    if len(body) > _TEXTS_OCTETS_MAX or body.count(b"\n--") > _TEXTS_MAX or b"\0" in body:
        return False
    lower = body.lower()
    return len(_NO_FILE.findall(lower)) == lower.count(b"content-")


class _PartHeader(Struct, frozen=True):
    """What the header of a part says, in every reading of the message."""

    is_ambiguous: bool  # another reading may find other parts
    has_several: bool  # a content field is there twice, or programs read names in several ways
    size: int  # of the content fields, in octets
    disposition: str  # of the first field, "" if there is none
    names: tuple[str, ...]  # normalised, each once
    no_files: frozenset[str]  # of the names, those that are no file names if the body fits
    encodings: tuple[str, ...]  # without the first
    boundaries: tuple[bytes, ...]  # first the usual one, which may be b""


def _as_read(header: bytes) -> bytes:
    """Return a header without the blanks that some programs remove around names of fields."""
    header = header.lstrip(_BLANKS)
    return _NO_BREAK.sub(rb"\1", header) if b"\xa0" in header else header


def _parsed(octets: bytes) -> tuple[Header, "Message[str, str]"]:
    """Return the header in which names are read, and the fields for type, boundary and encoding."""
    section = _as_read(octets)
    header, clean = Header.parse(section), cleaned(section)
    return header, fields_of_header(header if clean == section else Header.parse(clean))


def _part_header(header: Header) -> _PartHeader:
    after = {previous[0]: line for previous, (name, line) in pairwise(header.fields) if not name}
    forms: dict[str, set[str]] = {}  # of each name, those that are in the fields
    is_plain = True
    for field in _FIELDS:
        values = header.values(field)
        if values and (line := after.get(field.lower().encode())):  # a fold without a blank
            values.append(values[-1] + b" " + line.strip())
        for value in values:
            if len(value) > FIELD_OCTETS_MAX or value.count(b";") > PARAMETERS_MAX:
                raise TooManyPartsError(
                    f"a field of more than {FIELD_OCTETS_MAX} octets or {PARAMETERS_MAX} parameters"
                )
            field_names, is_alike = names_in(value)
            for name in field_names:
                forms.setdefault(normalised(name), set()).add(name)
            is_plain &= is_alike
    for value in header.values("Content-Location"):
        if b":" not in value:  # no URL, whose host may look like a file name
            location = value.decode("utf-8", "replace")
            forms.setdefault(normalised(location), set()).add(location)
    types = header.values("Content-Type")
    sizes = [(name, len(octets)) for name, octets in header.fields if name.startswith(b"content-")]
    return _PartHeader(
        is_ambiguous=len(types) > 1 or (bool(header.fields) and not header.fields[-1][0]),
        has_several=len(dict(sizes)) < len(sizes) or not is_plain,
        size=sum([size for _, size in sizes]),
        disposition=_first_word(header.first("Content-Disposition") or b""),
        names=tuple(forms),
        no_files=frozenset(_no_files(header, forms)),
        encodings=tuple(
            _first_word(encoding) for encoding in header.values("Content-Transfer-Encoding")[1:]
        ),
        boundaries=tuple(
            dict.fromkeys(
                chain.from_iterable(
                    boundaries_in(content_type) for content_type in types if b"=" in content_type
                )
            )
        ),
    )


def _no_files(header: Header, forms: Mapping[str, set[str]]) -> Iterator[str]:
    """Yield the names that are a subject, or the only Content-ID, by the header."""
    names = [name for name in forms if name.endswith(_PROGRAM)]
    types = header.values("Content-Type") if names and "" not in header else []
    if len(types) != 1 or not _NAMED_OTHERWISE.match(types[0]):
        return
    if types[0][:1].lower() == b"m":
        encodings = map(_first_word, header.values("Content-Transfer-Encoding"))
        yield from names if IDENTITY.issuperset(encodings) else ()
        return
    ids, dispositions = header.values("Content-ID"), header.values("Content-Disposition")
    if len(ids) == 1 and [*map(_first_word, dispositions)] in ([], ["inline"]):
        identity = ids[0].removeprefix(b"<").removesuffix(b">").decode("utf-8", "surrogateescape")
        yield from [name for name in names if "@" in name and forms[name] == {identity}]


class _Inside(Struct, frozen=True):
    """Octets that are read as a message; `source` is None for the message itself."""

    source: Octets | None
    is_forwarded: bool = False
    encodings: int = 0  # how many encodings are around it
    is_multipart: bool = False  # a part that is read again with another boundary


class _PartReader:
    """Reads a message in several ways, but each header only once."""

    def __init__(
        self, content: ParsedContent, between_parts: Callable[[], None], *, by_graph: bool
    ) -> None:
        self._content = content.joined()
        self._by_graph = by_graph
        self._between_parts = between_parts
        parsed = cache(_parsed)
        self._fields_of = lambda octets: parsed(octets)[1]
        self._header_of = cache(lambda octets: _part_header(parsed(octets)[0]))
        self._octets = octets_of(self._content)
        self._left = 0

    def read(
        self, reading: LooseReading, *, is_one_of_several: bool = False
    ) -> tuple[list[MessagePart], bool]:
        """Return the parts, and whether another reading may find others."""
        parts: list[MessagePart] = []
        is_ambiguous, is_several, size = False, is_one_of_several, 0
        self._left = _READ_AGAIN_MAX * self._octets.size
        waiting = [_Inside(None)]
        for inside in waiting:
            structure = structure_of(self._blocks(inside.source), reading, self._fields_of)
            if not structure.is_complete:
                raise TooManyPartsError("; ".join(structure.defects))
            is_ambiguous |= structure.is_ambiguous
            is_several |= structure.is_ambiguous
            for entity in structure.entities:
                self._between_parts()
                header = self._header_of(entity.header)
                is_ambiguous |= header.is_ambiguous
                is_several |= header.is_ambiguous or header.has_several
                size += header.size
                if is_several and size > FIELDS_OCTETS_MAX:
                    raise TooManyPartsError(
                        f"more than {FIELDS_OCTETS_MAX} octets of content fields that programs"
                        " read in several ways"
                    )
                part = _part(entity, header, inside)
                if header.no_files and self._fits(part):
                    part = replace(part, compared=_compared(part, header.no_files))
                parts.append(part)
                waiting += self._insides(entity, part, inside)
                if len(parts) > 2 * ENTITIES_MAX or len(waiting) > ENTITIES_MAX:
                    raise TooManyPartsError(f"more than {ENTITIES_MAX} parts inside others")
        return parts, is_ambiguous

    def _blocks(self, source: Octets | None) -> Iterator[bytes]:
        for block in blocks(self._content) if source is None else octets_in_blocks([source]):
            self._between_parts()
            yield block

    def _insides(self, entity: Entity, part: MessagePart, over: _Inside) -> Iterator[_Inside]:
        """Yield what the structure does not show: encoded parts, and parts by other boundaries."""
        if over.is_multipart and not entity.number:
            return
        boundaries = self._header_of(entity.header).boundaries
        is_message = _MESSAGE.match(entity.content_type) is not None
        is_multipart = entity.content_type.startswith("multipart/")
        if not is_message and not is_multipart and not any(boundaries):
            return
        looked_for = entity.boundary or b"".join(boundaries[:1] if is_multipart else ())
        for encoding in part.encodings:
            if encoding and over.encodings >= ENCODINGS_MAX:
                raise TooManyPartsError(f"more than {ENCODINGS_MAX} encodings inside each other")
            if is_message:
                if encoding or not entity.is_message:
                    source = self._again(part, encoding)
                    yield _Inside(source, True, over.encodings + bool(encoding))
                continue
            others = [
                boundary
                for boundary in boundaries
                if boundary and (encoding or boundary != looked_for)
            ]
            if is_multipart and not any(boundaries):
                others = [b""]
            for boundary in others:
                body = self._again(part, encoding)
                if not boundary and body.size <= LARGE_BYTES:
                    body = MemoryOctets(_NO_BOUNDARY.sub(_ANY_BOUNDARY, body.read(0, body.size)))
                source = join_octets([_header(entity, boundary or _ANY_BOUNDARY[2:]), body])
                yield _Inside(source, part.is_forwarded, over.encodings + 1, is_multipart=True)

    def _fits(self, part: MessagePart) -> bool:
        """Return whether the body is the message, or the picture, that the header says."""
        if part.content_type.startswith("message/"):
            header = _WHOLE_HEADER.match(part.body(self._octets).read(0, _HEADER_READ_OCTETS))
            return bool(header and (self._by_graph or _OF_A_MESSAGE.search(header[0])))
        read = [
            decoded_blocks(*coded, octets=_BLOCK_OCTETS) for coded in decodings(self._octets, part)
        ]
        return bool(read) and all(part.content_type in file_types(blocks) for blocks in read)

    def _again(self, part: MessagePart, encoding: str) -> Octets:
        """Return a body to be read again, decoded. Raises TooManyPartsError."""
        body = part.body(self._octets)
        self._left -= body.size
        if self._left < 0:
            raise TooManyPartsError("its parts are in too many encodings or boundaries")
        return decoded_octets(body, encoding)


def with_files_in_texts(
    content: ParsedContent,
    parts: Sequence[MessagePart],
    between_parts: Callable[[], None] = lambda: None,
) -> tuple[MessagePart, ...]:
    """Return the parts, and the uuencoded files in those that are plain text or not encoded.

    Reading blocks; raises OSError for a large body that cannot be read.
    """
    octets, all_parts = octets_of(content.joined()), list(parts)
    for part in parts:
        is_text = part.content_type == "text/plain" or part.content_type.startswith("multipart/")
        for encoding in part.encodings if part.is_leaf else ():
            if is_text or encoding not in _CODED:
                between_parts()
                all_parts += _files_in_text(octets, part, encoding)
    return tuple(all_parts)


def _files_in_text(octets: Octets, part: MessagePart, encoding: str) -> Iterator[MessagePart]:
    body, coding = part.body(octets), encoding if encoding in _CODED else ""
    files = list(islice(uuencoded_files(decoded_blocks(body, coding)), ENTITIES_MAX + 1))
    if len(files) > ENTITIES_MAX:
        raise TooManyPartsError(f"more than {ENTITIES_MAX} files in a text")
    source = decoded_octets(body, coding) if files else body
    for start, end, name in files:
        yield replace(
            part,
            start=start,
            end=end,
            content_type="application/octet-stream",
            encodings=(_UUENCODED,),
            disposition="attachment",
            names=(normalised(name.decode("utf-8", "replace")),),
            source=source,
            compared=(),
        )


def _header(entity: Entity, boundary: bytes) -> bytes:
    """Return a header that makes a reader use this boundary for a multipart."""
    quoted = boundary.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    kind = b"digest" if entity.content_type == "multipart/digest" else b"mixed"
    return b'Content-Type: multipart/%b; boundary="%b"\r\n\r\n' % (kind, quoted)


def _part(entity: Entity, header: _PartHeader, inside: _Inside) -> MessagePart:
    encodings = chain.from_iterable(map(_known_encodings, (entity.encoding, *header.encodings)))
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
        is_forwarded=entity.is_forwarded or inside.is_forwarded,
        source=inside.source,
    )


def _compared(part: MessagePart, no_files: frozenset[str]) -> tuple[str, ...]:
    kind, _, subtype = part.content_type.partition("/")
    ending = "eml" if kind == "message" else subtype
    return tuple([f"{name}.{ending}" if name in no_files else name for name in part.names])


def _known_encodings(name: str) -> Sequence[str]:
    """Return the encodings that programs may read in a name; "" is one that changes nothing."""
    known = name if name in _CODED else ""
    if name in UUENCODE:
        known = _UUENCODED
    return (known, *(encoding for encoding in _CODED if encoding in name))  # x-base64


def _first_word(value: bytes) -> str:
    return content_field(value.decode("latin-1")).value


_BLOCK_OCTETS = 4096  # the first block has what most types need


class AttachedFile(Struct, frozen=True):
    """A file in a message: its normalised names, and its types in lower case.

    `compared` has for each name the one whose ending is compared; () if all are the names.
    """

    names: tuple[str, ...]
    types: tuple[str, ...]
    compared: tuple[str, ...] = ()


def names_of(file: AttachedFile | MessagePart) -> Iterator[tuple[str, str]]:
    """Return each name with the one whose ending is compared."""
    return zip(file.names, file.compared or file.names, strict=True)


def attachments(
    content: ParsedContent,
    parts: Sequence[MessagePart],
    between_parts: Callable[[], None] = lambda: None,
) -> tuple[AttachedFile, ...]:
    """Return the attachments among the parts of a content.

    Reading blocks; raises OSError for a large body that cannot be read.
    """
    octets, files = octets_of(content.joined()), []
    for part in parts:
        between_parts()
        if part.is_attachment:
            files.append(_attachment(octets, part))
    return tuple(files)


def _attachment(octets: Octets, part: MessagePart) -> AttachedFile:
    declared = part.content_type
    types = [declared, OTHER_NAMES.get(declared, declared)]
    for body, coding in decodings(octets, part):
        types += file_types(decoded_blocks(body, coding, octets=_BLOCK_OCTETS))
    return AttachedFile(part.names, tuple(dict.fromkeys(types)), part.compared)


def decodings(octets: Octets, part: MessagePart) -> Iterator[tuple[Octets, str | Coding]]:
    """Yield the ways in which programs decode a part: its body, and how."""
    for encoding in part.encodings if part.is_leaf else ():
        body = part.body(octets)
        if (
            encoding == "base64"
        ):  # first without padding in between, then each piece, as programs do
            yield body, BASE64_IN_ONE_PIECE
        if encoding != "base64" or b"=" in body.read(0, 4 * _BLOCK_OCTETS).rstrip(b"=\r\n\t "):
            yield body, encoding
