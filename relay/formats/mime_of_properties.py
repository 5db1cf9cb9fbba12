"""Write the MIME of a draft whose content are Graph's properties.

The structure is mixed(alternative(text, related(html, images)), files), with only the levels that
are needed. Attachments are spliced: their base64 is copied, and in a large message it stays in the
draft's file. The same file gives the same bytes: a repeat after a crash submits the same message.

RFC 2045; RFC 2046 5.1 (mixed, alternative); RFC 2387 (related); RFC 2392 (cid).
"""

from collections.abc import Iterable, Sequence
from email.message import MIMEPart
from email.policy import SMTP

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message import content as contents
from relay.base.message.header import with_crlf
from relay.formats import draft
from relay.formats.html_text import html_to_text
from relay.formats.html_tokens import content_ids
from relay.formats.transfer_encoding import coded_text
from relay.formats.write_header import CRLF, address_list_field, header_fields, raw_field

_CRLF = CRLF.encode()
_BOUNDARY_CHARACTERS = 40  # of the draft's name
# relay.formats.write_header folds the fields; `email` must not fold them again.
_POLICY = SMTP.clone(refold_source="none", utf8=True, max_line_length=None)


def mime_of_properties(
    stored: contents.Octets, block: draft.PrivateBlock, length: int, *, keep_bcc: bool
) -> tuple[contents.Content, Sequence[str]]:
    """Return the MIME of a draft, and the type and transfer encoding of each text part.

    `length` is the size of the private block in octets. Bcc is removed unless `keep_bcc` is true,
    which is for the draft's owner.
    """
    properties, body = block.properties, block.body
    assert properties is not None
    assert body is not None  # read_private_block() takes no other block
    text = draft.part_octets(stored.read(length + body.offset, body.length), body)
    tree = _tree(stored, block, length=length, text=text)
    fields = header_fields(
        properties, message_id=block.origin.message_id, date_us=block.origin.modified_us
    )
    bcc = address_list_field("Bcc", properties.bcc) if keep_bcc else ""
    top, _, rest = _written(tree).partition(b"\r\n\r\n")
    header = f"{bcc}{fields}".encode() + top + b"\r\n"
    pieces: list[bytes | contents.Octets] = [b"\r\n"]
    for leaf in tree.leaves:
        before, _, rest = rest.partition(leaf.mark.encode())
        pieces += [before, leaf.content]
    pieces.append(rest)
    if not contents.as_bytes(rest or tree.leaves[-1].content).endswith(b"\r\n"):
        pieces.append(b"\r\n")
    if stored.size <= contents.LARGE_BYTES:
        return b"".join((header, *map(contents.as_bytes, pieces))), tree.texts
    eight_bit = any(part.eight_bit for part in block.attachments)
    return contents.LargeContent(
        header, contents.join_octets(pieces).pieces, eight_bit=eight_bit
    ), tree.texts


class _Leaf(Struct, frozen=True):
    """A leaf of the tree. `mark` is a placeholder for its octets, which `email` would copy."""

    fields: Sequence[tuple[str, str]]
    content: bytes | contents.Octets
    mark: str


class _Tree(Struct, frozen=True):
    """The structure with placeholders, and the leaves in the order of the placeholders.

    `texts` are the text parts, each with its transfer encoding.
    """

    root: MIMEPart
    leaves: Sequence[_Leaf]
    texts: Sequence[str]


def _tree(stored: contents.Octets, block: draft.PrivateBlock, *, length: int, text: bytes) -> _Tree:
    body_type = block.properties.body_type.lower() if block.properties else "text"
    source = text.decode("utf-8", "replace") if body_type == "html" else ""
    ids = content_ids(source) if block.attachments else frozenset()
    images = [image for image in block.attachments if image.inline and _identity(image) in ids]
    files = [file for file in block.attachments if file not in images]
    items = [stored.part(length + file.offset, file.length) for file in files if file.item]
    # All boundaries begin with this. No encoded text contains "=_".
    boundary = draft.free_boundary(block.origin.base_name[:_BOUNDARY_CHARACTERS], items)
    leaves: list[_Leaf] = []
    texts: list[str] = []

    def leaf(fields: Sequence[tuple[str, str]], content: bytes | contents.Octets) -> MIMEPart:
        leaves.append(_Leaf(fields, content, f"{boundary}_bytes_of_{len(leaves)}_"))
        return _part(leaves[-1])

    def text_part(subtype: str, content: bytes) -> MIMEPart:
        coded = coded_text(with_crlf(content))
        texts.append(f"text/{subtype} ({coded.charset}, {coded.encoding})")
        return leaf(coded.fields(subtype), coded.content)

    def file_part(part: draft.StoredPart, *, inline: bool) -> MIMEPart:
        fields = draft.attachment_fields(replace(part, inline=inline and part.inline))
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
        # a name that is the Content-ID is none to save the file by
        parts = [file_part(file, inline=file.name == _identity(file)) for file in files]
        root = _multipart("mixed", [root, *parts], f"{boundary}_mixed")
        if any(file.eight_bit for file in files):
            root.set_raw("Content-Transfer-Encoding", "8bit")  # RFC 2045 6.4
    return _Tree(root, leaves, texts)


def _written(tree: _Tree) -> bytes:
    """Return the tree with its placeholders. A single part needs no `email` generator."""
    if len(tree.leaves) > 1:
        return tree.root.as_bytes()
    [leaf] = tree.leaves
    return f"{''.join(raw_field(*field) for field in leaf.fields)}{CRLF}{leaf.mark}".encode()


def _identity(part: draft.StoredPart) -> str:
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
