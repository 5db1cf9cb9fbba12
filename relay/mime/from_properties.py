"""Turn a draft's properties into the MIME that is submitted, or that its owner reads.

On the path: convert hands in a note that was written from JSON.
Holds: attachments are spliced: their base64 is copied, never coded anew, and stays in the note's
file where the message is large; lines end in CRLF and have at most 998 octets. The same note gives
the same bytes.
Fails: ConversionError, with a text for the report to the sender.
Standards: RFC 2045; RFC 2046 5.1 (mixed, alternative); RFC 2387 (related); RFC 2392 (cid).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from email.message import MIMEPart
from email.policy import SMTP
from urllib.parse import unquote

from relay.message.content import (
    LARGE_BYTES,
    Content,
    LargeContent,
    MemoryOctets,
    Octets,
    octets_in_blocks,
)
from relay.mime.converted import ConversionError
from relay.mime.draft import (
    Part,
    PrivateBlock,
    attachment_fields,
    part_octets,
)
from relay.mime.fields import CRLF, people_field, raw_field
from relay.mime.htmltext import text_of_html, unescaped
from relay.mime.propertyfields import header_fields
from relay.mime.section import with_crlf
from relay.mime.textcoding import coded_text

_NO_LETTER = re.compile(r"[^A-Za-z0-9]")
_CID = re.compile(r"cid:([^\"'\s<>()]+)", re.IGNORECASE)
# Fields are written by relay.mime.fields; `email` must not fold them again.
_POLICY = SMTP.clone(refold_source="none", utf8=True, max_line_length=None)


def from_properties(note: Octets, block: PrivateBlock, length: int, *, keep_bcc: bool) -> Content:
    """Return the MIME of a draft whose private block has `length` octets; Bcc only for its owner.

    Reading blocks. Raises ConversionError, and OSError where the note cannot be read.
    """
    properties, body = block.properties, block.body
    if properties is None or body is None:
        raise ConversionError("The draft's private block does not say where its body is.")
    text = part_octets(note.read(length + body.offset, body.length), body)
    tree = _tree(note, block, length=length, text=text)
    fields = header_fields(
        properties, message_id=block.origin.message_id, date_us=block.origin.modified_us
    )
    bcc = people_field("Bcc", properties.bcc) if keep_bcc else ""
    top, _, rest = _written(tree).partition(b"\r\n\r\n")
    header = f"{bcc}{fields}".encode() + top + b"\r\n"
    pieces: list[bytes | Octets] = [b"\r\n"]
    for leaf in tree.leaves:
        before, _, rest = rest.partition(leaf.mark.encode())
        pieces += [before, leaf.content]
    pieces.append(rest)
    if not _in_memory(rest or tree.leaves[-1].content).endswith(b"\r\n"):
        pieces.append(b"\r\n")
    if note.size <= LARGE_BYTES:
        return b"".join((header, *map(_in_memory, pieces)))
    eight_bit = any(part.eight_bit for part in block.attachments)
    body_pieces = tuple(_octets(one) for one in pieces if one)
    return LargeContent(header, body_pieces, eight_bit=eight_bit)


def _in_memory(piece: bytes | Octets) -> bytes:
    return piece if isinstance(piece, bytes) else piece.read(0, piece.size)


def _octets(piece: bytes | Octets) -> Octets:
    return MemoryOctets(piece) if isinstance(piece, bytes) else piece


# -- structure: mixed(alternative(text, related(html, images)), files), as much of it as is needed


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A part without parts; `mark` stands in the tree for its bytes: `email` would copy them."""

    fields: Sequence[tuple[str, str]]
    content: bytes | Octets
    mark: str


@dataclass(frozen=True, slots=True)
class _Tree:
    """The structure with its marks, and the leaves in the order of those."""

    root: MIMEPart
    leaves: Sequence[_Leaf]


def _tree(note: Octets, block: PrivateBlock, *, length: int, text: bytes) -> _Tree:
    body_type = block.properties.body_type.lower() if block.properties else "text"
    source = text.decode("utf-8", "replace") if body_type == "html" else ""
    shown = _cids(source) if block.attachments else frozenset()
    images = [one for one in block.attachments if one.inline and _identity(one) in shown]
    files = [one for one in block.attachments if one not in images]
    items = [note.part(length + one.offset, one.length) for one in files if one.item]
    boundary = _boundary(block.origin.base_name, items)
    leaves: list[_Leaf] = []

    def leaf(fields: Sequence[tuple[str, str]], content: bytes | Octets) -> MIMEPart:
        mark = f"{boundary}_bytes_of_{len(leaves)}_"
        leaves.append(_Leaf(fields, content, mark))
        return _part(fields, mark)

    def text_leaf(subtype: str, content: bytes) -> MIMEPart:
        coded = coded_text(with_crlf(content))
        content_type = f"text/{subtype}; charset={coded.charset}"
        fields = (("Content-Type", content_type), ("Content-Transfer-Encoding", coded.encoding))
        return leaf(fields, coded.content)

    def file_leaf(part: Part, *, inline: bool) -> MIMEPart:
        fields = attachment_fields(replace(part, inline=inline))
        return leaf(fields, note.part(length + part.offset, part.length))

    if body_type == "html":
        alternative = text_leaf("plain", text_of_html(source).encode("utf-8", "replace"))
        root = text_leaf("html", text)
        if images:
            shown_parts = [file_leaf(one, inline=True) for one in images]
            root = _multipart("related", [root, *shown_parts], f"{boundary}_related")
        root = _multipart("alternative", [alternative, root], f"{boundary}_alternative")
    else:
        root = text_leaf("plain", text)
    if files:
        parts = [file_leaf(one, inline=False) for one in files]
        root = _multipart("mixed", [root, *parts], f"{boundary}_mixed")
    return _Tree(root, leaves)


def _written(tree: _Tree) -> bytes:
    """Return the tree with its marks. One part needs no generator, which parses what it writes."""
    if len(tree.leaves) > 1:
        return tree.root.as_bytes()
    [leaf] = tree.leaves
    return f"{''.join(raw_field(*field) for field in leaf.fields)}{CRLF}{leaf.mark}".encode()


def _cids(source: str) -> frozenset[str]:
    """Return the content ids that html shows: in srcset, a comma behind one is not its own."""
    found = _CID.findall(source)
    ids = (*found, *(one.rstrip(",") for one in found))
    return frozenset(unquote(unescaped(one)) for one in ids)


def _identity(part: Part) -> str:
    return part.content_id.strip("<> ")


def _boundary(base_name: str, items: Iterable[Octets]) -> str:
    """Return what all boundaries begin with: no text that is not coded has a "=_" in it, and no
    attached message this.
    """
    boundary = f"=_{_NO_LETTER.sub('_', base_name)[:40]}"
    for item in items:
        while _occurs(boundary.encode(), item):
            boundary += "_"
    return boundary


def _occurs(wanted: bytes, octets: Octets) -> bool:
    end = b""
    for block in octets_in_blocks([octets]):
        if wanted in end + block:
            return True
        end = block[-len(wanted) :]
    return False


def _multipart(subtype: str, parts: Iterable[MIMEPart], boundary: str) -> MIMEPart:
    root_type = '; type="text/html"' if subtype == "related" else ""
    whole = MIMEPart(policy=_POLICY)
    whole.set_raw("Content-Type", f'multipart/{subtype}{root_type};{CRLF} boundary="{boundary}"')
    for part in parts:
        whole.attach(part)
    return whole


def _part(fields: Iterable[tuple[str, str]], mark: str) -> MIMEPart:
    part = MIMEPart(policy=_POLICY)
    for name, value in fields:
        part.set_raw(name, value)
    part.set_payload(mark)
    return part
