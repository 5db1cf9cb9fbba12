"""Convert a draft to the message that is submitted: MIME, envelope, and what SMTP must know.

Pickup passes the stored file of a draft and submits the result. A file written from Graph's
properties is converted here, with multipart/alternative, related and mixed; MIME drafts by
relay.formats.convert_mime. Bcc and the private block are removed. The result has CRLF line ends,
lines of at most 998 octets, and Date and Message-ID. Attachments are spliced: their base64 is
copied, and in a large message it stays in the draft's file. The same file gives the same bytes: a
repeat after a crash submits the same message. ConversionError has a text for the DSN to the sender.
RFC 5321 2.3.1 (envelope and content); RFC 6531 (SMTPUTF8); RFC 6152 (8BITMIME); RFC 3461 4.1
(NOTIFY); RFC 2045; RFC 2046 5.1 (mixed, alternative); RFC 2387 (related); RFC 2392 (cid).
"""

import re
from collections.abc import Iterable, Sequence
from email.message import Message, MIMEPart
from email.policy import SMTP

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.address import AddressError, parse_odd_mailbox
from relay.base.message.content import (
    LARGE_BYTES,
    Content,
    LargeContent,
    Octets,
    as_bytes,
    as_octets,
    is_eight_bit,
    join_octets,
    memory_part,
)
from relay.base.message.conversation import own_message_id
from relay.base.message.header import Header, cleaned, header_section, with_crlf
from relay.base.message.properties import EmailAddress, MessageProperties
from relay.formats.convert_mime import RepairedMime, convert_mime
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
from relay.formats.structure import read_structure
from relay.formats.transfer_encoding import coded_text
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
    shown = content_ids(source) if block.attachments else frozenset()
    images = [one for one in block.attachments if one.inline and _identity(one) in shown]
    files = [one for one in block.attachments if one not in images]
    items = [stored.part(length + one.offset, one.length) for one in files if one.item]
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
            shown_parts = [file_part(one, inline=True) for one in images]
            root = _multipart("related", [root, *shown_parts], f"{boundary}_related")
        root = _multipart("alternative", [alternative, root], f"{boundary}_alternative")
    else:
        root = text_part("plain", text)
    if files:
        parts = [file_part(one, inline=False) for one in files]
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
    header = structure.message.fields()
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
    changes = [f"{each} made" for each in texts]
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
    named = (one for one in people if one.address)
    addressees = [one for name in _RECIPIENT_FIELDS for one in read_addresses(header, name)]
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
    found = _ORIGINATORS.findall(b"\n" + header.lower().replace(b"\0", b""))
    return () if len(found) == expected else _authors(header)


def _authors(header: bytes) -> tuple[str, ...]:
    found: list[str] = []
    for field in originators(Header.parse(cleaned(header))):
        found += [one.address for one in field.addresses]
        if field.unread or not field.addresses:
            found.append("")
    return tuple(found)


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
    found: dict[str, str] = {}
    for addressee in addressees:
        address = _checked(addressee.address)
        found.setdefault(address.lower(), address)
    return tuple(found.values())


def _checked(address: str) -> str:
    """Return the canonical address. Raises ConversionError."""
    try:
        return parse_odd_mailbox(address, smtputf8=True)
    except AddressError as error:
        raise ConversionError(f"The draft cannot be sent: {error}.") from None
