"""Convert a draft to the message that is submitted: MIME, envelope, and what SMTP must know.

Pickup passes the stored file of a draft and submits the result. A file written from Graph's
properties is converted with multipart/alternative, related and mixed. Attachments are spliced:
their base64 is copied, and in a large message it stays in the draft's file. Bcc and the private
block are removed. The result has CRLF line ends, lines of at most 998 octets, and Date and
Message-ID. The same file gives the same bytes: a repeat after a crash submits the same message.
ConversionError has a text for the DSN to the sender.

A MIME draft stays as it is, octet for octet, but for this and for the repairs listed in `defects`.
Signed and encrypted entities are not changed. Of a large message only the headers are in memory.
Damage never raises; OSError where the content cannot be read.

RFC 5321 2.3.1 (envelope and content); RFC 6531 (SMTPUTF8); RFC 6152 (8BITMIME); RFC 3461 4.1
(NOTIFY); RFC 2045; RFC 2046 5.1 (mixed, alternative); RFC 2387 (related); RFC 2392 (cid); RFC 5322
2.1.1 (line lengths), 3.6; RFC 1847 2.1 (signed parts stay).
"""

import re
from collections.abc import Iterable, Sequence
from email.message import Message, MIMEPart
from email.policy import SMTP

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.address import AddressError, own_mailbox, parse_odd_mailbox
from relay.base.message.content import (
    LARGE_BYTES,
    Content,
    LargeContent,
    Octets,
    as_bytes,
    as_octets,
    contains,
    is_eight_bit,
    join_octets,
    memory_part,
    read_all,
)
from relay.base.message.conversation import own_message_id
from relay.base.message.header import (
    BCC_FIELDS,
    MBOX_LINES,
    Header,
    cleaned,
    header_section,
    with_crlf,
)
from relay.base.message.properties import EmailAddress, MessageProperties
from relay.formats.draft import (
    FIRST_FIELD_BYTES,
    DraftOrigin,
    PrivateBlock,
    StoredPart,
    attachment_fields,
    free_boundary,
    part_octets,
    private_block_length,
    read_private_block,
)
from relay.formats.encode_for_host import with_short_lines
from relay.formats.headers import date_field
from relay.formats.html_text import html_to_text
from relay.formats.html_tokens import content_ids
from relay.formats.read_header import (
    check_header,
    first_person,
    originators,
    read_addresses,
    read_text,
    read_token,
    unreadable_addresses,
)
from relay.formats.structure import (
    IDENTITY,
    LINE_OCTETS_MAX,
    BodyStatistics,
    Entity,
    Structure,
    read_structure,
)
from relay.formats.transfer_encoding import (
    LINE_MAX,
    Base64Coding,
    CrlfCoding,
    QuotedPrintableCoding,
    RewrappedBase64,
    RewrappedQuotedPrintable,
    base64_size,
    coded_text,
    has_line_over,
    recode,
)
from relay.formats.write_header import (
    CRLF,
    address_list_field,
    explicit_sender,
    header_fields,
    raw_field,
)


class ConversionError(Exception):
    """The draft cannot be converted to a message that can be sent. The text says why."""


class ConvertedMessage(Struct, frozen=True):
    """The message to submit."""

    content: Content  # as it is sent
    originator: str  # the reverse-path: the address in Sender, else From
    # the addresses in From and Sender, and of who resends it; "": a field of these has none
    authors: tuple[str, ...]
    recipients: tuple[str, ...]  # of To, Cc and Bcc
    smtputf8: bool  # it needs SMTPUTF8 (RFC 6531)
    eight_bit: bool  # it needs 8BITMIME (RFC 6152)
    message_id: str  # with its angle brackets
    subject: str  # decoded, for the journey
    defects: tuple[str, ...] = ()  # damage in MIME and repairs, each as a short text
    notify_success: bool = False  # the sender requested a DSN on delivery too
    changes: tuple[str, ...] = ()  # what the conversion made, added and removed, for the journey
    from_mime: bool = False  # the draft was MIME


_CRLF = CRLF.encode()
_ENCODING = "Content-Transfer-Encoding"
_COMPOSITE = ("multipart/", "message/")
_LONG_LINE = f"a line of more than {LINE_OCTETS_MAX} octets"


class RepairedMime(Struct, frozen=True):
    """The content that is sent, the damage and repairs, the Sender that was added, and the fields
    that were added and removed.
    """

    content: Content
    defects: tuple[str, ...]
    sender: EmailAddress | None
    changes: tuple[str, ...]


def convert_mime(content: Octets, structure: Structure, origin: DraftOrigin) -> RepairedMime:
    """Return MIME content in a form that SMTP can carry. Reading blocks; raises OSError."""
    return _MimeRepair(content, structure, origin).sent()


def _sender_for(message: Entity, origin: DraftOrigin) -> EmailAddress | None:
    """Return the account if the message is from another address and has no Sender, else None."""
    if not origin.on_behalf_of or (header := message.fields).get("sender") is not None:
        return None
    authors = (own_mailbox(author.address) for author in read_addresses(header, "from"))
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

    def _put(self, start: int, end: int, instead: bytes | Octets) -> None:
        """Copy up to `start`; replace the octets from there to `end`."""
        self._copy_to(start)
        self._pieces.append(instead)
        self._place = end

    def _put_header(self, entity: Entity, header: bytes, body: _RecodedBody | None) -> None:
        if body is not None and not entity.blank:
            header += _CRLF
        elif not entity.header.endswith((b"\r", b"\n")):
            header = header.removesuffix(_CRLF)  # its last line end is that of the next delimiter
        if header != entity.header:
            self._put(entity.start, entity.start + len(entity.header), header)

    def _copy_to(self, end: int) -> None:
        if end > self._place:
            octets = self._content.part(self._place, end - self._place)
            self._pieces.append(octets if self._is_clean else recode(octets, CrlfCoding()))
            self._place = end

    # -- headers

    def _message_header(self, header: Header, *, is_encoded: bool) -> Header:
        """Return the header of the message without Bcc and with the fields that it lacked."""
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
        """Return the fields of an entity, long lines folded, with `encoding` unless it is ""."""
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
        """Return the repaired body, None if it can stay."""
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
        return not entity.content_type.startswith(_COMPOSITE)
    return entity.encoding in ("base64", "quoted-printable")


def _has_long_line(octets: Octets) -> bool:
    """Return whether a line is too long after its line ends become CRLF."""
    return BodyStatistics.of(recode(octets, CrlfCoding(keeps_nul=True))).long_line


_ORIGINATORS = re.compile(rb"[\r\n](?:resent-)?(?:from|sender)\s*:")
_BOUNDARY_CHARACTERS = 40  # of the draft's name
# relay.formats.write_header folds the fields; `email` must not fold them again.
_POLICY = SMTP.clone(refold_source="none", utf8=True, max_line_length=None)


def _made_of_properties(
    stored: Octets, block: PrivateBlock, length: int, *, keep_bcc: bool
) -> tuple[Content, Sequence[str]]:
    """Return the MIME of a draft whose private block has `length` octets, and the types of its text
    parts with their transfer encodings.

    Bcc is removed unless `keep_bcc`, which is for its owner.
    """
    properties, body = block.properties, block.body
    assert properties is not None
    assert body is not None  # read_private_block() takes no other block
    text = part_octets(stored.read(length + body.offset, body.length), body)
    tree = _tree(stored, block, length=length, text=text)
    fields = header_fields(
        properties, message_id=block.origin.message_id, date_us=block.origin.modified_us
    )
    bcc = address_list_field("Bcc", properties.bcc) if keep_bcc else ""
    top, _, rest = _written(tree).partition(b"\r\n\r\n")
    header = f"{bcc}{fields}".encode() + top + b"\r\n"
    pieces: list[bytes | Octets] = [b"\r\n"]
    for leaf in tree.leaves:
        before, _, rest = rest.partition(leaf.mark.encode())
        pieces += [before, leaf.content]
    pieces.append(rest)
    if not as_bytes(rest or tree.leaves[-1].content).endswith(b"\r\n"):
        pieces.append(b"\r\n")
    if stored.size <= LARGE_BYTES:
        return b"".join((header, *map(as_bytes, pieces))), tree.texts
    eight_bit = any(part.eight_bit for part in block.attachments)
    return LargeContent(header, join_octets(pieces).pieces, eight_bit=eight_bit), tree.texts


# -- structure: mixed(alternative(text, related(html, images)), files), only the levels needed


class _Leaf(Struct, frozen=True):
    """A leaf. `mark` is a placeholder for its octets in the tree: `email` would copy them."""

    fields: Sequence[tuple[str, str]]
    content: bytes | Octets
    mark: str


class _Tree(Struct, frozen=True):
    """The structure with placeholders, and the leaves in the order of the placeholders.

    `texts` are the text parts, each with its transfer encoding.
    """

    root: MIMEPart
    leaves: Sequence[_Leaf]
    texts: Sequence[str]


def _tree(stored: Octets, block: PrivateBlock, *, length: int, text: bytes) -> _Tree:
    body_type = block.properties.body_type.lower() if block.properties else "text"
    source = text.decode("utf-8", "replace") if body_type == "html" else ""
    ids = content_ids(source) if block.attachments else frozenset()
    images = [image for image in block.attachments if image.inline and _identity(image) in ids]
    files = [file for file in block.attachments if file not in images]
    items = [stored.part(length + file.offset, file.length) for file in files if file.item]
    # What all boundaries begin with: no encoded text has "=_".
    boundary = free_boundary(block.origin.base_name[:_BOUNDARY_CHARACTERS], items)
    leaves: list[_Leaf] = []
    texts: list[str] = []

    def leaf(fields: Sequence[tuple[str, str]], content: bytes | Octets) -> MIMEPart:
        leaves.append(_Leaf(fields, content, f"{boundary}_bytes_of_{len(leaves)}_"))
        return _part(leaves[-1])

    def text_part(subtype: str, content: bytes) -> MIMEPart:
        coded = coded_text(with_crlf(content))
        texts.append(f"text/{subtype} ({coded.charset}, {coded.encoding})")
        return leaf(coded.fields(subtype), coded.content)

    def file_part(part: StoredPart, *, inline: bool) -> MIMEPart:
        fields = attachment_fields(replace(part, inline=inline))
        return leaf(fields, stored.part(length + part.offset, part.length))

    if body_type == "html":
        alternative = text_part("plain", html_to_text(source).encode("utf-8", "replace"))
        root = text_part("html", text)
        if images:
            shown_parts = [file_part(image, inline=True) for image in images]
            root = _multipart("related", [root, *shown_parts], f"{boundary}_related")
        root = _multipart("alternative", [alternative, root], f"{boundary}_alternative")
    else:
        root = text_part("plain", text)
    if files:
        parts = [file_part(file, inline=False) for file in files]
        root = _multipart("mixed", [root, *parts], f"{boundary}_mixed")
    return _Tree(root, leaves, texts)


def _written(tree: _Tree) -> bytes:
    """Return the tree with its placeholders. A single part needs no `email` generator."""
    if len(tree.leaves) > 1:
        return tree.root.as_bytes()
    [leaf] = tree.leaves
    return f"{''.join(raw_field(*field) for field in leaf.fields)}{CRLF}{leaf.mark}".encode()


def _identity(part: StoredPart) -> str:
    return part.content_id.strip("<> ")


def _multipart(subtype: str, parts: Iterable[MIMEPart], boundary: str) -> MIMEPart:
    root_type = '; type="text/html"' if subtype == "related" else ""
    whole = MIMEPart(policy=_POLICY)
    whole.set_raw("Content-Type", f'multipart/{subtype}{root_type};{CRLF} boundary="{boundary}"')
    for part in parts:
        whole.attach(part)
    return whole


def _part(leaf: _Leaf) -> MIMEPart:
    part = MIMEPart(policy=_POLICY)
    for name, value in leaf.fields:
        part.set_raw(name, value)
    part.set_payload(leaf.mark)
    return part


_RECIPIENT_FIELDS = ("To", "Cc", "Bcc")


def convert(stored: bytes | Octets, *, now_us: int, hostname: str) -> ConvertedMessage:
    """Return the message to submit, with the recipients in To, Cc and Bcc, each once.

    A content larger than relay.base.message.content.LARGE_BYTES is not copied into memory. `now_us`
    and `hostname` are used only for a message without a block that lacks Date or Message-ID.
    Reading blocks. Raises ConversionError, and OSError where the file cannot be read.
    """
    octets = as_octets(stored)
    block, length = read_private_block(octets)
    if block is not None and block.properties is not None:
        return _of_properties(octets, block, length)
    if block is None and private_block_length(octets.read(0, FIRST_FIELD_BYTES)):
        raise ConversionError("The draft's file is damaged.")
    content = octets.part(length, octets.size - length)
    structure = read_structure(content)
    if reason := check_header(structure.message.header, structure.message.blank):
        raise ConversionError(f"The draft cannot be sent: {reason}.")
    header = structure.message.fields
    origin = block.origin if block else _origin_without_block(header, now_us, hostname)
    made = _of_mime(header, convert_mime(content, structure, origin), origin)
    wants_receipt = block is not None and block.beside is not None and block.beside.delivery_receipt
    return replace(made, notify_success=True) if wants_receipt else made


def render(raw: bytes | Octets) -> Content:
    """Return a stored file as MIME for its owner: without the block, with Bcc. Raises OSError."""
    stored = as_octets(raw)
    block, length = read_private_block(stored)
    if block is not None and block.properties is not None:
        return _made_of_properties(stored, block, length, keep_bcc=True)[0]
    content = stored.part(length, stored.size - length)
    if content.size <= LARGE_BYTES:
        return content.read(0, content.size)
    # this header is not edited, and its line ends may be of any kind
    return LargeContent(b"", (content,), eight_bit=True)


def _of_properties(stored: Octets, block: PrivateBlock, length: int) -> ConvertedMessage:
    properties, origin = block.properties, block.origin
    assert properties is not None
    author = properties.from_ or EmailAddress(origin.account)
    _checked(author.address)
    sender = explicit_sender(properties) or author
    envelope = _envelope(sender, (*properties.to, *properties.cc, *properties.bcc))
    content, texts = _made_of_properties(stored, block, length, keep_bcc=False)
    header = header_section(memory_part(content))
    return ConvertedMessage(
        content=content,
        originator=envelope.originator,
        authors=_authors_made(header, properties) or (author.address, sender.address),
        recipients=envelope.recipients,
        # an address in another field, such as Reply-To, may need it
        smtputf8=envelope.smtputf8 or not header.isascii(),
        eight_bit=is_eight_bit(content),
        message_id=origin.message_id,
        subject=properties.subject,
        notify_success=properties.delivery_receipt,
        changes=_changes(block, texts),
    )


def _changes(block: PrivateBlock, texts: Sequence[str]) -> tuple[str, ...]:
    """Return what the conversion of properties made and left out."""
    changes = [f"{field} made" for field in texts]
    if len(texts) > 1:
        changes[0] += " from the HTML"
    if block.attachments:
        changes.append(f"attachments: {len(block.attachments)}")
    if block.properties is not None and block.properties.bcc:
        changes.append("Bcc removed")
    return tuple(changes)


def _of_mime(
    header: "Message[str, str]",
    sent: RepairedMime,
    origin: DraftOrigin,
) -> ConvertedMessage:
    for name in _RECIPIENT_FIELDS:
        if unread := unreadable_addresses(header, name):
            raise ConversionError(f"The draft cannot be sent: {name} has {unread[:100]!r}.")
    added = filter(None, [sent.sender])
    people = (*added, *read_addresses(header, "sender"), *read_addresses(header, "from"))
    named = (person for person in people if person.address)
    addressees = [person for name in _RECIPIENT_FIELDS for person in read_addresses(header, name)]
    envelope = _envelope(next(iter(named), EmailAddress(origin.account)), addressees)
    return ConvertedMessage(
        content=sent.content,
        originator=envelope.originator,
        authors=_authors(header_section(memory_part(sent.content))),
        recipients=envelope.recipients,
        smtputf8=envelope.smtputf8,
        eight_bit=is_eight_bit(sent.content),
        message_id=own_message_id(read_token(header, "message-id")) or origin.message_id,
        subject=read_text(header, "subject"),
        defects=sent.defects,
        changes=sent.changes,
        from_mime=True,
    )


def _authors_made(header: bytes, properties: MessageProperties) -> tuple[str, ...]:
    """Return the authors of a message that was made of properties, () if its `from_` and `sender`
    are the only ones. A mail client may have written the draft: then its block may hold anything.
    """
    expected = sum(map(bool, (properties.from_, explicit_sender(properties))))
    names = _ORIGINATORS.findall(b"\n" + header.lower().replace(b"\0", b""))
    return () if len(names) == expected else _authors(header)


def _authors(header: bytes) -> tuple[str, ...]:
    authors: list[str] = []
    for field in originators(Header.parse(cleaned(header))):
        authors += [author.address for author in field.addresses]
        if field.unread or not field.addresses:
            authors.append("")
    return tuple(authors)


def _origin_without_block(header: "Message[str, str]", now_us: int, hostname: str) -> DraftOrigin:
    author = first_person(read_addresses(header, "from"))
    account = author.address if author else ""
    return DraftOrigin(account, "", f"<{now_us}@{hostname}>", now_us, now_us)


class _Envelope(Struct, frozen=True):
    originator: str
    recipients: tuple[str, ...]
    smtputf8: bool


def _envelope(author: EmailAddress, addressees: Iterable[EmailAddress]) -> _Envelope:
    """Return the envelope, addresses in canonical form. Raises ConversionError."""
    originator = author.address and _checked(author.address)
    recipients = _each_once(addressees)
    if not recipients:
        raise ConversionError("The message has no recipients: To, Cc and Bcc are empty.")
    smtputf8 = not all(map(str.isascii, (originator, *recipients)))
    return _Envelope(originator, recipients, smtputf8)


def _each_once(addressees: Iterable[EmailAddress]) -> tuple[str, ...]:
    """Return the addresses in canonical form, each once, in their order."""
    unique: dict[str, str] = {}
    for addressee in addressees:
        address = _checked(addressee.address)
        unique.setdefault(address.lower(), address)
    return tuple(unique.values())


def _checked(address: str) -> str:
    """Return the canonical address. Raises ConversionError."""
    try:
        return parse_odd_mailbox(address, smtputf8=True)
    except AddressError as error:
        raise ConversionError(f"The draft cannot be sent: {error}.") from None
