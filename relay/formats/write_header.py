"""Write header fields: text, address lists, parameters, and the whole header of Graph's properties.

Drafts and conversion use it. No value can end its field or start another: CR, LF and NUL become a
space. Lines have at most 998 characters, usually at most 78. The output is ASCII
except for local parts of addresses. header_fields() writes no Bcc.
RFC 5322 2.2.3, 3.3, 3.4, 3.6; RFC 2047; RFC 2231; RFC 6532 (addresses only); RFC 6857; RFC 4021
(Importance, Sensitivity); RFC 8098 2.1; MS-OXCMAIL 2.1.3.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import quote

from relay.base.message.address import ascii_address, own_mailbox
from relay.base.message.conversation import message_ids, topic_of
from relay.base.message.extended_properties import extended_header_fields
from relay.base.message.properties import EmailAddress, MessageProperties
from relay.formats.encoded_words import encode_text
from relay.formats.headers import LINE_OCTETS_MAX, LINE_OCTETS_WANTED, date_field, folded

CRLF = "\r\n"
MESSAGE_ID_CHARACTERS_MAX = 900  # a line has 998 octets, and an id cannot be folded
_SEGMENT_CHARACTERS = 60
_PHRASE_CHARACTERS = 64
_NAME_TAKEN = len("Reply-To: ")  # the longest name of an address field
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]+")
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_MESSAGE_ID = re.compile(r"<[!-;=?-~]+@[!-;=?-~]+>")
_FIELD_NAME = re.compile(r"[!-9;-~]{1,200}")
_TOKEN = re.compile(r"[A-Za-z0-9!#$&^_.+-]+")
_PRIORITIES = {"low": "5 (Lowest)", "high": "1 (Highest)"}
_SENSITIVITIES = {
    "personal": "Personal",
    "private": "Private",
    "confidential": "Company-Confidential",
}


def text_field(name: str, value: str) -> str:
    """Return an unstructured field: ASCII folded at spaces, other text as encoded words.

    "" for an invalid field name.
    """
    if _FIELD_NAME.fullmatch(name) is None:
        return ""
    value = _CONTROLS.sub(" ", value)
    if not (value.isascii() and "=?" not in value and value == value.strip()):
        return f"{name}: {_encoded_words(value, taken=len(name) + 2)}{CRLF}"
    if len(name) + len(value) < LINE_OCTETS_WANTED - 1:
        return f"{name}: {value}{CRLF}"
    lines = folded(name, value)
    if max(map(len, lines)) > LINE_OCTETS_MAX:
        return f"{name}: {_encoded_words(value, taken=len(name) + 2)}{CRLF}"
    return CRLF.join((*lines, ""))


def raw_field(name: str, value: str) -> str:
    """Return a field; the value must be ASCII, structured, and folded if necessary."""
    return f"{name}: {value}{CRLF}"


def address_list_field(name: str, addresses: Sequence[EmailAddress]) -> str:
    """Return an address list, one mailbox per line; "" for an empty list."""
    if not addresses:
        return ""
    return f"{name}: {f',{CRLF} '.join(_mailbox(address) for address in addresses)}{CRLF}"


def phrases_field(name: str, phrases: Sequence[str]) -> str:
    """Return a comma-separated list of phrases (Keywords); "" for an empty list."""
    written = [_phrase(phrase) for phrase in map(_one_line, phrases) if phrase]
    return f"{name}: {f',{CRLF} '.join(written)}{CRLF}" if written else ""


def ids_field(name: str, ids: Sequence[str]) -> str:
    """Return a list of message ids, one per line; "" if none is in angle brackets.

    Ids of other messages may lack an @: they are kept, so that a reply joins the conversation.
    """
    written = [
        message_id
        for message_id in ids
        if len(message_id) <= MESSAGE_ID_CHARACTERS_MAX and message_ids(message_id) == (message_id,)
    ]
    return f"{name}: {f'{CRLF} '.join(written)}{CRLF}" if written else ""


def parameter(name: str, value: str) -> str:
    """Return "; name=value" for a MIME field, RFC 2231 encoded if necessary."""
    value = _CONTROLS.sub(" ", value)
    if _TOKEN.fullmatch(value) and len(value) <= _SEGMENT_CHARACTERS:
        return f";{CRLF} {name}={value}"
    # Many programs read "=?" as an encoded word here too.
    if value.isascii() and len(value) <= _SEGMENT_CHARACTERS and "=?" not in value:
        return f";{CRLF} {name}={_quoted(value)}"
    segments = list(
        _gathered(quote(character.encode("utf-8", "replace"), safe="") for character in value)
    )
    if len(segments) == 1:
        return f";{CRLF} {name}*=utf-8''{segments[0]}"
    written = [
        f";{CRLF} {name}*{number}*={segment}"
        for number, segment in enumerate([f"utf-8''{segments[0]}", *segments[1:]])
    ]
    return "".join(written)


def is_message_id(text: str) -> bool:
    """Return whether `text` is valid in a Message-ID field, with its angle brackets."""
    return len(text) <= MESSAGE_ID_CHARACTERS_MAX and _MESSAGE_ID.fullmatch(text) is not None


def _encoded_words(value: str, *, taken: int) -> str:
    return f"{CRLF} ".join(encode_text(value, taken=taken))


def without_smtputf8(person: EmailAddress) -> EmailAddress:
    """Return the address for a header in 7 bits: if it is not ASCII, it becomes a display name.

    address_list_field() writes it as an empty group (RFC 6857 3.1.8), which readers show.
    """
    if ascii_address(person.address).isascii():
        return person
    return EmailAddress("", f"{person.name} {person.address}".strip())


def _mailbox(person: EmailAddress) -> str:
    address = _CONTROLS.sub("", ascii_address(person.address))
    name = _one_line(person.name)
    if name and not address:
        return f"{_phrase(name)}:;"
    if not name:
        return address
    return f"{_phrase(name)}{CRLF if _needs_words(name) else ''} <{address}>"


def _phrase(text: str) -> str:
    if _needs_words(text):
        return _encoded_words(text, taken=_NAME_TAKEN)
    return text if _ATOMS.fullmatch(text) else _quoted(text)


def _needs_words(phrase: str) -> bool:
    return not phrase.isascii() or "=?" in phrase or len(phrase) > _PHRASE_CHARACTERS


def _one_line(text: str) -> str:
    return _CONTROLS.sub(" ", text).strip()


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _gathered(pieces: Iterable[str]) -> Iterator[str]:
    segment = ""
    for piece in pieces:
        if len(segment) + len(piece) > _SEGMENT_CHARACTERS:
            yield segment
            segment = ""
        segment += piece
    yield segment


def header_fields(
    properties: MessageProperties, *, message_id: str, date_us: int | None = None
) -> str:
    """Return all fields except Bcc and those of the body; "" and None omit Message-ID and Date."""
    addresses = (
        address_list_field("From", [properties.from_] if properties.from_ else []),
        address_list_field("Sender", list(filter(None, [explicit_sender(properties)]))),
        address_list_field("Reply-To", properties.reply_to),
        address_list_field("To", properties.to),
        address_list_field("Cc", properties.cc),
    )
    return "".join(
        (
            *addresses,
            text_field("Subject", properties.subject) if properties.subject else "",
            "" if date_us is None else raw_field("Date", date_field(date_us)),
            raw_field("Message-ID", message_id) if message_id else "",
            *_conversation_fields(properties),
            *_option_fields(properties),
            phrases_field("Keywords", properties.categories),
            *_other_fields(properties),
            f"MIME-Version: 1.0{CRLF}",
        )
    )


def explicit_sender(properties: MessageProperties) -> EmailAddress | None:
    """Return the Sender, None if it is the same address as From."""
    sender, author = properties.sender, properties.from_
    is_author = sender and author and own_mailbox(sender.address) == own_mailbox(author.address)
    return None if is_author else sender


def _conversation_fields(properties: MessageProperties) -> tuple[str, ...]:
    index = properties.conversation_index
    topic = topic_of(properties.subject) if index else ""
    return (
        ids_field("In-Reply-To", (properties.in_reply_to,) if properties.in_reply_to else ()),
        ids_field("References", properties.references),
        text_field("Thread-Topic", topic) if topic else "",
        raw_field("Thread-Index", _folded_index(index)) if index else "",
    )


def _folded_index(index: str) -> str:
    """Fold base64: readers of base64 skip white space."""
    pieces = [index[start : start + 60] for start in range(0, len(index), 60)]
    return f"{CRLF} ".join(pieces)


def _option_fields(properties: MessageProperties) -> tuple[str, ...]:
    priority = _PRIORITIES.get(properties.importance)
    sensitivity = _SENSITIVITIES.get(properties.sensitivity)
    receipt_to = explicit_sender(properties) or properties.from_
    return (
        f"Importance: {properties.importance}{CRLF}" if priority else "",
        f"X-Priority: {priority}{CRLF}" if priority else "",
        f"Sensitivity: {sensitivity}{CRLF}" if sensitivity else "",
        address_list_field(
            "Disposition-Notification-To",
            [receipt_to] if receipt_to and properties.read_receipt else [],
        ),
    )


def _other_fields(properties: MessageProperties) -> Iterator[str]:
    """Yield internetMessageHeaders and the fields of extended properties, each name once.

    MS-OXCMAIL 2.1.3.1, arbitrary headers.
    """
    written = {"x-priority"} if properties.importance in _PRIORITIES else set()
    for name, value in properties.internet_message_headers:
        if name.lower() not in written:
            yield text_field(name, value)
    written |= {name.lower() for name, _ in properties.internet_message_headers}
    for name, value in extended_header_fields(properties.extended):
        if name.lower() not in written:
            yield text_field(name, value)
            written.add(name.lower())
