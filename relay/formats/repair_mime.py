"""Repair MIME content so that SMTP can carry it.

A MIME draft is sent as it is, octet for octet, except that Bcc is removed, missing fields are added
and `defects` lists what was repaired. Signed and encrypted entities are not changed. Octets between
two repairs are copied; of a large message only the headers are in memory. The result has CRLF line
ends and lines of at most 998 octets. Damage never raises; OSError where the content cannot be read.

RFC 5322 2.1.1 (line lengths), 3.6 (fields); RFC 2045 6.4 (what may be encoded); RFC 1847 2.1
(signed parts stay).
"""

from msgspec import Struct

from relay.base.message.address import own_mailbox
from relay.base.message.content import (
    LARGE_BYTES,
    Content,
    LargeContent,
    Octets,
    contains,
    join_octets,
    read_all,
)
from relay.base.message.header import BCC_FIELDS, MBOX_LINES, Header, cleaned
from relay.base.message.properties import EmailAddress
from relay.formats.draft import DraftOrigin
from relay.formats.encode_for_host import with_short_lines
from relay.formats.headers import date_field
from relay.formats.read_header import read_addresses
from relay.formats.structure import IDENTITY, LINE_OCTETS_MAX, BodyStatistics, Entity, Structure
from relay.formats.transfer_encoding import (
    LINE_MAX,
    Base64Coding,
    CrlfCoding,
    QuotedPrintableCoding,
    RewrappedBase64,
    RewrappedQuotedPrintable,
    base64_size,
    has_line_over,
    recode,
)
from relay.formats.write_header import CRLF, address_list_field, raw_field

_CRLF = CRLF.encode()
_ENCODING = "Content-Transfer-Encoding"
_LONG_LINE = f"a line of more than {LINE_OCTETS_MAX} octets"


class RepairedMime(Struct, frozen=True):
    """A MIME message that SMTP can carry."""

    content: Content
    defects: tuple[str, ...]  # damage and repairs, each as a short text
    sender: EmailAddress | None  # that was added as Sender
    changes: tuple[str, ...]  # fields that were added and removed


def repair_mime(content: Octets, structure: Structure, origin: DraftOrigin) -> RepairedMime:
    """Return MIME content in a form that SMTP can carry. Reading blocks; raises OSError."""
    return _MimeRepair(content, structure, origin).sent()


def _sender_for(message: Entity, origin: DraftOrigin) -> EmailAddress | None:
    """Return the account if the message is from another address and has no Sender, else None."""
    if not origin.on_behalf_of or message.fields.get("sender") is not None:
        return None
    authors = (own_mailbox(author.address) for author in read_addresses(message.fields, "from"))
    return EmailAddress(origin.account) if own_mailbox(origin.on_behalf_of) in authors else None


class _RecodedBody(Struct, frozen=True):
    """The encoded body of a leaf, and its transfer encoding."""

    octets: Octets
    encoding: str


class _MimeRepair:
    """The repair of one message: `_pieces` are the finished part of its body, up to `_place`."""

    def __init__(self, content: Octets, structure: Structure, origin: DraftOrigin) -> None:
        self._content = content
        self._structure = structure
        self._origin = origin
        self._sender = _sender_for(structure.message, origin)
        self._is_clean = all(map(_is_clean, self._structure.entities))
        self._defects = dict.fromkeys(self._structure.defects)
        self._changes: list[str] = []
        self._place = self._structure.message.body_start
        self._pieces: list[bytes | Octets] = [_CRLF]

    def sent(self) -> RepairedMime:
        """Return the repaired message: the octets between two repairs are copied."""
        message = self._structure.message
        header, eight_bit = b"", False
        for entity in self._structure.entities:
            body = self._body(entity)
            fields = self._fields(entity, body.encoding if body else "")
            if entity is message:
                header = self._message_header(fields, is_encoded=body is not None).octets
            else:
                self._put_header(entity, fields.octets, body)
                eight_bit = eight_bit or not entity.header.isascii()
            if body is not None:
                self._put(entity.body_start, entity.end, body.octets)
            else:
                eight_bit = eight_bit or entity.body.eight_bit
        self._copy_to(self._structure.size)
        whole = join_octets(self._pieces)
        if whole.read(max(whole.size - len(_CRLF), 0), len(_CRLF)) != _CRLF:
            whole = join_octets([whole, _CRLF])
        content = LargeContent(header, whole.pieces, eight_bit=eight_bit)
        return RepairedMime(
            content if self._content.size > LARGE_BYTES else read_all(content),
            tuple(self._defects),
            self._sender,
            tuple(self._changes),
        )

    # -- output

    def _put(self, start: int, end: int, replacement: bytes | Octets) -> None:
        """Copy up to `start`; replace the octets from there to `end`."""
        self._copy_to(start)
        self._pieces.append(replacement)
        self._place = end

    def _put_header(self, entity: Entity, header: bytes, body: _RecodedBody | None) -> None:
        if body is not None and not entity.blank:
            header += _CRLF
        elif not entity.header.endswith((b"\r", b"\n")):
            header = header.removesuffix(_CRLF)  # its last line end belongs to the next delimiter
        if header != entity.header:
            self._put(entity.start, entity.start + len(entity.header), header)

    def _copy_to(self, end: int) -> None:
        if end > self._place:
            octets = self._content.part(self._place, end - self._place)
            self._pieces.append(octets if self._is_clean else recode(octets, CrlfCoding()))
            self._place = end

    # -- headers

    def _message_header(self, header: Header, *, is_encoded: bool) -> Header:
        """Return the header of the message without Bcc, and with missing fields added."""
        name, line = header.fields[0] if header.fields else (b"", b"")
        if not name and line.startswith(MBOX_LINES):
            self._defects["the line before the header was removed"] = None
            header = Header(header.fields[1:])
        missing: dict[str, str] = {}
        if "From" not in header:
            missing["From"] = address_list_field("From", [EmailAddress(self._origin.account)])
        if self._sender is not None:
            missing["Sender"] = address_list_field("Sender", [self._sender])
        if "Date" not in header:
            missing["Date"] = raw_field("Date", date_field(self._origin.modified_us))
        if "Message-ID" not in header:
            missing["Message-ID"] = raw_field("Message-ID", self._origin.message_id)
        if is_encoded and "MIME-Version" not in header:
            missing["MIME-Version"] = raw_field("MIME-Version", "1.0")
        self._changes += [f"{name} added" for name in missing]
        self._changes += [f"{name} removed" for name in BCC_FIELDS if name in header]
        return header.remove(BCC_FIELDS).append("".join(missing.values()).encode())

    def _fields(self, entity: Entity, encoding: str) -> Header:
        """Return the fields of an entity with long lines folded.

        A Content-Transfer-Encoding is set unless `encoding` is "".
        """
        header = Header.parse(cleaned(entity.header))
        if not entity.protected:
            header = Header(tuple([(name, self._folded(line)) for name, line in header.fields]))
        if not encoding:
            return header
        return header.set(_ENCODING, raw_field(_ENCODING, encoding).encode())

    def _folded(self, field: bytes) -> bytes:
        """Fold lines that are too long."""
        if not has_line_over(field, LINE_MAX):
            return field
        self._defects[f"{_LONG_LINE} in a header"] = None
        return with_short_lines(field)

    # -- bodies

    def _body(self, entity: Entity) -> _RecodedBody | None:
        """Return the repaired body, None if the body does not change."""
        statistics = entity.body
        octets = self._content.part(entity.body_start, entity.end - entity.body_start)
        is_binary = entity.encoding == "binary" and not statistics.has_crlf_only
        is_long = statistics.long_line and (statistics.has_crlf_only or _has_long_line(octets))
        if not is_long and not statistics.nul and not is_binary:
            return None
        if not entity.is_leaf or entity.protected or not _can_be_coded(entity):
            if is_long:
                self._defects[f"{_LONG_LINE} in {entity.content_type}, left as it is"] = None
            return None
        body = self._coded(entity, octets, is_binary=is_binary)
        if body is not None:
            why = _LONG_LINE if is_long else "a NUL" if statistics.nul else "binary lines"
            self._defects[f"{why} in {entity.content_type}, encoded again"] = None
        return body

    def _coded(self, entity: Entity, octets: Octets, *, is_binary: bool) -> _RecodedBody | None:
        if entity.encoding == "base64":
            return _RecodedBody(recode(octets, RewrappedBase64()), "base64")
        has_crlf = entity.body.has_crlf_only and not entity.body.nul
        if entity.encoding == "quoted-printable":
            text = octets if has_crlf else recode(octets, CrlfCoding())
            quoted = recode(text, RewrappedQuotedPrintable())
            return None if self._has_boundary(quoted) else _RecodedBody(quoted, "quoted-printable")
        text = octets if is_binary or has_crlf else recode(octets, CrlfCoding(keeps_nul=True))
        if not is_binary and not entity.body.nul:
            quoted = recode(text, QuotedPrintableCoding())
            if quoted.size <= base64_size(text.size) and not self._has_boundary(quoted):
                return _RecodedBody(quoted, "quoted-printable")
        return _RecodedBody(recode(text, Base64Coding()), "base64")

    def _has_boundary(self, octets: Octets) -> bool:
        """Return whether a break in a long line has produced a delimiter."""
        boundaries = {entity.boundary for entity in self._structure.entities if entity.boundary}
        return any(contains(octets, b"\n--" + boundary) for boundary in boundaries)


def _is_clean(entity: Entity) -> bool:
    """Return whether SMTP can carry the entity, apart from the lengths of its lines."""
    return (
        entity.body.has_crlf_only
        and not entity.body.nul
        and entity.blank in (b"", _CRLF)
        and cleaned(entity.header) in (entity.header, entity.header + _CRLF)
    )


def _can_be_coded(entity: Entity) -> bool:
    """Return whether the entity may be encoded: multiparts and messages may not (RFC 2045 6.4)."""
    if entity.encoding in IDENTITY:
        return not entity.content_type.startswith(("multipart/", "message/"))
    return entity.encoding in ("base64", "quoted-printable")


def _has_long_line(octets: Octets) -> bool:
    """Return whether a line is too long after its line ends become CRLF."""
    return BodyStatistics.of(recode(octets, CrlfCoding(keeps_nul=True))).long_line
