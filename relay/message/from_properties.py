"""Turn a draft's properties into the MIME that is submitted, or that its owner reads.

On the path: convert hands in a note that was written from JSON.
Holds: attachments' base64 is copied, never coded anew; lines end in CRLF and have at most 998
octets. The same note gives the same bytes.
Fails: ConversionError, with a text for the report to the sender.
Standards: RFC 5322; RFC 2045, 2046, 2387 (related); RFC 6532 where a local part needs it.
"""

import re
from base64 import b64encode
from binascii import b2a_qp
from collections.abc import Iterable
from dataclasses import dataclass
from email.message import MIMEPart
from email.policy import SMTP

from relay.message.content import Content, Octets
from relay.message.converted import ConversionError
from relay.message.draft import (
    DraftOrigin,
    PrivateBlock,
    attachment_fields,
    base64_lines,
    has_line_over,
    header_fields,
    part_bytes,
)
from relay.message.fields import CRLF, people_field
from relay.message.from_mime import with_crlf
from relay.message.properties import MessageProperties

_BODY_LINE_BYTES = 78
_ASCII = bytes(range(128))
_NO_LETTER = re.compile(r"[^A-Za-z0-9]")
_QUOTED_PRINTABLE_SHARE = 6  # base64 is shorter when more than one byte in six needs "=XX"
# Fields are written by relay.message.fields; `email` must not fold them again.
_POLICY = SMTP.clone(refold_source="none", utf8=True, max_line_length=None)


def from_properties(note: Octets, block: PrivateBlock, length: int, *, keep_bcc: bool) -> Content:
    """Return the MIME of a draft whose private block has `length` octets; Bcc only for its owner.

    Raises ConversionError.
    """
    raw = note.read(0, note.size)
    properties, body_part = block.properties, block.body
    if properties is None or body_part is None:
        raise ConversionError("The draft's private block does not say where its body is.")
    html = properties.body_type.lower() == "html"
    inline = [one for one in block.attachments if one.inline and html]
    attached = [one for one in block.attachments if not (one.inline and html)]
    text = _coded(with_crlf(part_bytes(raw, length, body_part)))
    fields = [
        [("Content-Type", f"text/{'html' if html else 'plain'}; charset={text.charset}"),
         ("Content-Transfer-Encoding", text.encoding)],
        *map(attachment_fields, (*inline, *attached)),
    ]  # fmt: skip
    contents = [text.content]
    for part in (*inline, *attached):
        start = length + part.offset
        contents.append(raw[start : start + part.length])
    boundary = f"=_{_NO_LETTER.sub('_', block.origin.base_name)[:40]}"
    marks = [f"{boundary}_bytes_of_{number}_" for number in range(len(contents))]
    root, *files = map(_part, fields, marks)
    if inline:
        root = _multipart("related", [root, *files[: len(inline)]], f"{boundary}_related")
    if attached:
        root = _multipart("mixed", [root, *files[len(inline) :]], f"{boundary}_mixed")
    pieces = [_header(properties, block.origin, keep_bcc=keep_bcc).encode()]
    rest = root.as_bytes()
    for mark, content in zip(marks, contents, strict=True):
        before, _, rest = rest.partition(mark.encode())
        pieces += [before, content]
    pieces.append(rest)
    if not (rest or text.content).endswith(b"\r\n"):
        pieces.append(b"\r\n")
    return b"".join(pieces)


def _header(properties: MessageProperties, origin: DraftOrigin, *, keep_bcc: bool) -> str:
    fields = header_fields(properties, message_id=origin.message_id, date_us=origin.modified_us)
    return (people_field("Bcc", properties.bcc) if keep_bcc else "") + fields


@dataclass(frozen=True, slots=True)
class _Coded:
    """A text as it is transferred, in 7 bits."""

    charset: str
    encoding: str
    content: bytes


def _coded(text: bytes) -> _Coded:
    """Leave a text as it is, or code it: quoted-printable or base64, whichever is shorter.

    Neither coding can make a "=_", so only text as it is could hold a boundary: that is coded.
    """
    charset = "us-ascii" if text.isascii() else "utf-8"
    plain = text.isascii() and b"\0" not in text and b"=_" not in text
    if plain and not has_line_over(text, _BODY_LINE_BYTES + len("\r")):
        return _Coded(charset, "7bit", text)
    if len(text.translate(None, _ASCII)) * _QUOTED_PRINTABLE_SHARE > len(text):
        return _Coded(charset, "base64", base64_lines(b64encode(text)))
    return _Coded(charset, "quoted-printable", with_crlf(b2a_qp(text, istext=True)))


def _multipart(subtype: str, parts: list[MIMEPart], boundary: str) -> MIMEPart:
    root_type = '; type="text/html"' if subtype == "related" else ""
    whole = MIMEPart(policy=_POLICY)
    whole.set_raw("Content-Type", f'multipart/{subtype}{root_type};{CRLF} boundary="{boundary}"')
    for part in parts:
        whole.attach(part)
    return whole


def _part(fields: Iterable[tuple[str, str]], mark: str) -> MIMEPart:
    """Build a part with a mark where its bytes will be put: `email` would copy them many times."""
    part = MIMEPart(policy=_POLICY)
    for name, value in fields:
        part.set_raw(name, value)
    part.set_payload(mark)
    return part
