"""A message as a draft of Microsoft Graph in JSON, and its files: for more MIME than Graph takes.

Exchange makes other MIME of it. What that would destroy, or what programs read in several ways, is
not converted (NotConverted): signed, encrypted and damaged messages, reports, calendars, several
texts. An attached message is a file: only its octets count. The body is the HTML, else the text;
a file is inline if the HTML shows it: Outlook hides others that are inline. The content has no
signature of our own keys (relay.delivery.content_cache): a DKIM-Signature in it is of others.
Graph v1.0: message, fileAttachment, attachmentItem; MS-OXPROPS 2 (0x1039, 0x1042).
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from email.message import Message

from msgspec import Struct, json

from relay.base.message.content import Content, Octets, octets_of, size_of
from relay.base.message.extended_properties import IN_REPLY_TO_ID, INTERNET_REFERENCES
from relay.base.message.header import Header
from relay.base.message.properties import EmailAddress, MessageProperties
from relay.base.phrases import words_in
from relay.formats.content_fields import written_filename
from relay.formats.encoded_words import printable
from relay.formats.graph_copy import graph_copy
from relay.formats.html_tokens import content_ids
from relay.formats.read_header import fields_of_header, read_addresses, read_properties_of_header
from relay.formats.read_mime import AttachedOctets, ReadParts, read_parts
from relay.formats.structure import UNLABELLED_OCTETS, WHOLE_MESSAGES
from relay.formats.transfer_encoding import UUENCODE, decoded_blocks, whole_base64_size

_MIME_OCTETS_MAX = 150 * 1024 * 1024
_JSON_OCTETS_MAX = 3 * 1024 * 1024
_X_FIELDS_MAX = 5
_X_FIELD_CHARACTERS_MAX = 900
_FILES_MAX = 250
_NAME_CHARACTERS_MAX = 255
_OF_MESSAGES = ".eml"
_NOT_CARRIED_MAX = 30
_NOT_CARRIED_CHARACTERS_MAX = 60
_SHAPES = words_in(
    "multipart/signed multipart/encrypted multipart/report text/calendar"
    " application/ms-tnef application/vnd.ms-tnef"
    " application/pgp application/pgp-encrypted application/pgp-signature"
)
_SHAPES_BEGIN = ("application/pkcs7-", "application/x-pkcs7-", "message/")
_NAMES = words_in("smime.p7m smime.p7s winmail.dat")  # what it is, whatever its type
_TEXTS = ("text/plain", "text/html")
_REPLACED = "\ufffd".encode()
# Their content is in the draft, is made again by Exchange, or is the way until here.
_CARRIED = words_in(
    "from sender reply-to to cc bcc subject importance priority x-priority x-msmail-priority"
    " message-id in-reply-to references mime-version content-type content-disposition"
    " content-transfer-encoding content-id received return-path"
)


class NotConverted(ValueError):  # noqa: N818 - a decision about the message, not an error
    """The message would not be the same. The text names its shape, and what takes it."""

    def __init__(self, shape: str) -> None:
        super().__init__(f"{shape} is not converted for Graph; a fallback takes it as it is")


class DraftFile(Struct, frozen=True):
    """A file of a draft: `size` is that of its decoded octets; `content_id` is "" unless inline."""

    name: str
    content_type: str
    size: int
    content_id: str
    octets: Octets
    encoding: str

    def blocks(self, size: int) -> Iterator[bytes]:
        """Yield the decoded octets in pieces of `size`; the last may be shorter.

        Reading blocks; raises OSError.
        """
        held = bytearray()
        for block in decoded_blocks(self.octets, self.encoding):
            held += block
            while len(held) >= size:
                yield bytes(held[:size])
                del held[:size]
        if held:
            yield bytes(held)


class GraphDraft(Struct, frozen=True):
    """The JSON of POST messages, and the files in their order.

    `left_out` is that of GraphCopy; `not_carried` names fields and parts that the draft lacks.
    """

    message: bytes
    files: tuple[DraftFile, ...]
    left_out: tuple[str, ...]
    not_carried: tuple[str, ...]


def graph_draft(
    content: Content, recipients: Sequence[str], *, message_id: str, signed: bool
) -> GraphDraft:
    """Return the draft for these recipients, with this Message-ID; `signed`: signatures of others
    do not matter. Reading blocks. Raises NotConverted; OSError.
    """
    if size_of(content) > _MIME_OCTETS_MAX:
        raise NotConverted(f"a message of more than {_MIME_OCTETS_MAX} octets")
    octets = octets_of(content)
    parts = read_parts(octets)
    for shape in _shapes(octets, parts, signed=signed):
        raise NotConverted(shape)
    copy = graph_copy(content, recipients, message_id=message_id)
    fields = fields_of_header(Header.of(copy.content))
    read = read_properties_of_header(fields)
    x_fields = _x_fields(read)
    properties = _properties(read, fields, x_fields)
    if _REPLACED in json.encode(properties):
        raise NotConverted("a header field that is not in its charset")
    html, text = parts.bodies.html, parts.bodies.text or ""
    body = {"contentType": "text" if html is None else "html", "content": html or text}
    written = json.encode({**properties, "body": body})
    if len(written) > _JSON_OCTETS_MAX:
        raise NotConverted(f"a text of more than {_JSON_OCTETS_MAX} octets")
    shown_ids = content_ids(html or "")
    attachments = [attached for attached in parts.attachments if not _is_text(attached)]
    files = tuple([_file(attached, shown_ids) for attached in attachments])
    return GraphDraft(written, files, copy.left_out, _not_carried(parts, x_fields))


def _shapes(octets: Octets, parts: ReadParts, *, signed: bool) -> Iterator[str]:
    """Yield why a message is not converted."""
    for entity in parts.structure.entities:
        kind = entity.content_type
        is_whole = entity.is_forwarded or kind in WHOLE_MESSAGES
        if not is_whole and (kind in _SHAPES or kind.startswith(_SHAPES_BEGIN)):
            yield kind
    if not signed and "dkim-signature" in map(str.lower, parts.structure.message.fields.keys()):
        yield "a message with the DKIM-Signature of another"
    for defect in parts.defects:
        if defect != UNLABELLED_OCTETS:  # nothing is lost if the text is in its charset
            yield f"damaged MIME ({defect})"
    leaves = parts.leaves
    for leaf in filter(None, (leaves.html, leaves.text, *leaves.attached)):
        kind, encoding = leaf.entity.content_type, leaf.entity.encoding
        if leaf.above == "multipart/alternative" and kind not in _TEXTS:
            yield f"multipart/alternative with {kind}"
        if encoding in UUENCODE or (
            encoding == "base64" and whole_base64_size(leaf.body(octets)) is None
        ):
            yield f"a part in damaged or unusual {encoding}"
    for leaf, attached in zip(leaves.attached, parts.attachments, strict=True):
        name = written_filename(leaf.fields)
        if _is_text(attached):  # what is blank, some programs write after a file
            if any(map(bytes.strip, decoded_blocks(attached.octets, attached.encoding))):
                yield "a message with several texts"
        elif not attached.facts.size:
            yield "an empty file"
        if name.lower() in _NAMES:
            yield f"a file {name}"
        if printable(name) != name.strip() or "\ufffd" in name or len(name) > _NAME_CHARACTERS_MAX:
            yield "a file whose name is too long, damaged or has controls"
    if len(leaves.attached) > _FILES_MAX:
        yield f"a message with more than {_FILES_MAX} files"
    if not _are_alternatives(parts):
        yield "a message with several texts"
    texts = [text or "" for text in (parts.bodies.html, parts.bodies.text)]
    if any("\0" in text for text in texts):
        yield "a text with a NUL"
    if any("-----BEGIN PGP " in text for text in texts):
        yield "a text with PGP"


def _is_text(attached: AttachedOctets) -> bool:
    """Whether mail programs show a part as text below the body."""
    is_shown = attached.disposition != "attachment" and not attached.is_named
    return is_shown and attached.facts.content_type in _TEXTS


def _are_alternatives(parts: ReadParts) -> bool:
    """Whether the HTML replaces the text, if there are both."""
    html, text = parts.leaves.html, parts.leaves.text
    if html is None or text is None:
        return True
    above = parts.structure.entities[text.entity.parent]
    return text.above == "multipart/alternative" and html.entity in parts.structure.within(above)


def _properties(
    read: MessageProperties, fields: "Message[str, str]", x_fields: Sequence[tuple[str, str]]
) -> dict[str, object]:
    """Return the message without its body; all recipients of the fields are read."""
    ids = ((IN_REPLY_TO_ID, read.in_reply_to), (INTERNET_REFERENCES, " ".join(read.references)))
    properties = {
        "importance": read.importance,
        "internetMessageId": read.internet_message_id,
        "from": next(_people([read.from_]), None),
        "sender": next(_people([read.sender]), None),
        "replyTo": [*_people(read.reply_to)],
        "toRecipients": [*_people(read_addresses(fields, "To"))],
        "ccRecipients": [*_people(read_addresses(fields, "Cc"))],
        "bccRecipients": [*_people(read_addresses(fields, "Bcc"))],
        "internetMessageHeaders": [{"name": name, "value": value} for name, value in x_fields],
        "singleValueExtendedProperties": [
            {"id": key, "value": value} for key, value in ids if value
        ],
    }
    return {"subject": read.subject} | {key: value for key, value in properties.items() if value}


def _people(people: Iterable[EmailAddress | None]) -> Iterator[dict[str, dict[str, str]]]:
    for person in people:
        if person and person.address:
            yield {"emailAddress": {"address": person.address, "name": person.name}}


def _x_fields(read: MessageProperties) -> list[tuple[str, str]]:
    """Return the first fields that Graph takes, each name once."""
    chosen: dict[str, tuple[str, str]] = {}
    for name, text in read.internet_message_headers:
        key, value = name.lower(), printable(text)
        is_short = len(name) + len(value) <= _X_FIELD_CHARACTERS_MAX
        is_taken = key.startswith("x-") and key not in _CARRIED and is_short
        if is_taken and value and "\ufffd" not in value:
            chosen.setdefault(key, (name, value))
    return list(chosen.values())[:_X_FIELDS_MAX]


def _file(attached: AttachedOctets, shown_ids: Collection[str]) -> DraftFile:
    facts = attached.facts
    name, content_id = facts.name, facts.content_id if facts.content_id in shown_ids else ""
    if facts.item and not name.lower().endswith(_OF_MESSAGES):  # the name may be the Subject
        name = name[: _NAME_CHARACTERS_MAX - len(_OF_MESSAGES)] + _OF_MESSAGES
    kind = facts.content_type
    return DraftFile(name, kind, facts.size, content_id, attached.octets, attached.encoding)


def _not_carried(parts: ReadParts, x_fields: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Name the fields and parts that the draft lacks, each once and clipped."""
    kept = {*_CARRIED, *(name.lower() for name, _ in x_fields)}
    lost: dict[str, str] = {}
    for entity in parts.structure.entities:
        for name in () if entity.is_forwarded else entity.fields:
            key = name.lower()
            if key not in kept and (not entity.number or key.startswith("content-")):
                lost.setdefault(key, name[:_NOT_CARRIED_CHARACTERS_MAX])
    if parts.leaves.html and parts.leaves.text:
        lost[""] = "the text beside the HTML"
    names = list(lost.values())
    more = len(names) - _NOT_CARRIED_MAX
    return (*names[:_NOT_CARRIED_MAX], *([f"{more} more"] if more > 0 else ()))
