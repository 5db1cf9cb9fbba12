"""A message as Mailpit's API shows it: the JSON of lists and of one message, its header, its HTML.

Nothing is null where a client expects a list or a text. HTML is not cleaned: who serves it forbids
that it runs. Reading blocks; raises OSError.
"""

import hashlib
import re
from collections.abc import Sequence
from html import unescape
from typing import Any
from urllib.parse import unquote

from msgspec import Struct

from relay.base.clock import id_time_us, rfc3339
from relay.journeys.message_list import MessageSummary
from relay.message.address import own_mailbox
from relay.message.content import Octets
from relay.message.header import Header, cleaned
from relay.mime.html_text import preview
from relay.mime.read_header import (
    date_us_of,
    parse_header,
    read_addresses,
    read_text,
    read_token,
)
from relay.mime.read_mime import AttachedOctets, ReadParts, read_parts
from relay.mime.transfer_encoding import decoded_blocks

_CID = re.compile(r"\bcid:([^\s\"'<>()]++)", re.IGNORECASE)  # RFC 2392
_ADDRESSES = {"From": "from", "To": "to", "Cc": "cc", "Bcc": "bcc", "ReplyTo": "reply-to"}


class ListedMail(Struct, frozen=True):
    """What is known of a message without its content."""

    row: MessageSummary
    login: str  # "" for none
    recipients: Sequence[str]  # all of the envelope


def summary_of(mail: ListedMail, octets: Octets) -> dict[str, Any]:
    """Return a row of a list, without Read."""
    parts = read_parts(octets)
    kind = "text" if parts.bodies.html is None else "html"
    return _common(mail, parts) | {
        "Created": _received(mail.row),
        "Attachments": sum(map(_is_attachment, parts.attachments)),
        "Snippet": preview(parts.bodies.html or parts.bodies.text or "", kind),
    }


def message_of(mail: ListedMail, octets: Octets) -> dict[str, Any]:
    """Return one message, which counts as read from now on."""
    parts = read_parts(octets)
    fields, common = parse_header(parts.header), _common(mail, parts)
    date_us = date_us_of(fields)
    unsubscribe = read_token(fields, "list-unsubscribe")
    listed = [(_part(number, one), one) for number, one in enumerate(parts.attachments, 1)]
    return common | {
        "Read": True,  # mailpit-api-client 1.0.0 raises KeyError without it
        "ReturnPath": mail.row.sender or common["From"]["Address"],
        "Date": _received(mail.row) if date_us is None else rfc3339(date_us),
        "ListUnsubscribe": {
            "Header": unsubscribe,
            "Links": [one.strip(" <>") for one in unsubscribe.split(",") if one.strip(" <>")],
            "Errors": "",
            "HeaderPost": read_token(fields, "list-unsubscribe-post"),
        },
        "Text": parts.bodies.text or "",
        "HTML": parts.bodies.html or "",
        "Attachments": [shown for shown, one in listed if _is_attachment(one)],
        "Inline": [
            shown for shown, one in listed
            if not _is_attachment(one) and (one.is_named or one.facts.content_id)
        ],
    }  # fmt: skip


def header_fields(octets: Octets) -> dict[str, list[str]]:
    """Return the values of each field by its name, unfolded and not decoded, in Go's spelling."""
    found: dict[str, list[str]] = {}
    for name, field in Header.parse(cleaned(read_parts(octets).header)).fields:
        if name:
            shown = "-".join(one.capitalize() for one in name.decode("latin-1").split("-"))
            value = b" ".join(field.partition(b":")[2].split()).decode("utf-8", "replace")
            found.setdefault(shown, []).append(value)
    return dict(sorted(found.items()))


def part_of(part_id: str, octets: Octets) -> AttachedOctets | None:
    """Return the part with this PartID, None if there is none."""
    numbered = {str(number): one for number, one in enumerate(read_parts(octets).attachments, 1)}
    return numbered.get(part_id)


def text_of(octets: Octets) -> str:
    """Return the text part, "" if there is none."""
    return read_parts(octets).bodies.text or ""


def html_of(queue_id: str, octets: Octets) -> str:
    """Return the HTML part, "" if there is none. URLs of its parts stand for their Content-IDs."""
    parts = read_parts(octets)
    numbers = {one.facts.content_id: number for number, one in enumerate(parts.attachments, 1)}

    def url(found: re.Match[str]) -> str:
        number = numbers.get(unquote(unescape(found[1])))
        return f"/api/v1/message/{queue_id}/part/{number}" if number else found[0]

    return _CID.sub(url, parts.bodies.html or "")


def _common(mail: ListedMail, parts: ReadParts) -> dict[str, Any]:
    row, fields = mail.row, parse_header(parts.header)
    people = {
        shown: [{"Name": one.name, "Address": one.address} for one in read_addresses(fields, name)]
        for shown, name in _ADDRESSES.items()
    }
    named = {own_mailbox(one["Address"]) for key in ("To", "Cc", "Bcc") for one in people[key]}
    hidden = [one for one in mail.recipients if own_mailbox(one) not in named]
    people["Bcc"] += [{"Name": "", "Address": one} for one in hidden]
    author = (*people["From"], {"Name": "", "Address": row.sender})[0]
    return people | {
        "ID": row.name, "MessageID": row.message_id.strip("<>"), "From": author,
        "Subject": read_text(fields, "subject"), "Username": mail.login, "Tags": [],
        "Size": row.size_bytes,
    }  # fmt: skip


def _received(row: MessageSummary) -> str:
    return rfc3339(id_time_us(row.name) or row.position.at_us)


def _is_attachment(one: AttachedOctets) -> bool:
    is_listed = one.is_named or bool(one.facts.content_id)
    return is_listed and one.disposition == "attachment"


def _part(number: int, one: AttachedOctets) -> dict[str, Any]:
    facts, digests = one.facts, [hashlib.new(name) for name in ("md5", "sha1", "sha256")]
    for block in decoded_blocks(one.octets, one.encoding):
        for digest in digests:
            digest.update(block)
    return {
        "PartID": str(number), "FileName": facts.name, "ContentType": facts.content_type,
        "ContentID": facts.content_id, "Size": facts.size,
        "Checksums": {digest.name.upper(): digest.hexdigest() for digest in digests},
    }  # fmt: skip
