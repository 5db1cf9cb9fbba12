"""A message as Graph's properties: what the front door parses and what conversion turns into MIME.

On the path: graph makes it from JSON, the draft form stores it, pickup converts it.
Holds: no field has CR, LF or NUL in it except body content; addresses are valid.
Fails: never; graph checks the JSON before it makes one.
Standards: Graph's message resource type.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Person:
    """Graph's emailAddress: display name ("" if none) and address."""

    address: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Attachment:
    """Graph's fileAttachment; `content` is base64 text as the client gave it, already checked,
    without white space.

    `size` is the number of decoded bytes. With `item` it is Graph's itemAttachment: what is decoded
    is a whole message (message/rfc822).
    """

    name: str
    content_type: str
    content: bytes
    size: int
    inline: bool = False
    content_id: str = ""
    item: bool = False


@dataclass(frozen=True, slots=True)
class ExtendedProperty:
    """Graph's singleValue- or multiValueLegacyExtendedProperty.

    `id` is canonical (relay.message.extended): "SystemTime 0x3FEF",
    "String {00020329-0000-0000-C000-000000000046} Name Keywords". A single value has one `values`.
    """

    id: str
    values: tuple[str, ...]
    multiple: bool = False


@dataclass(frozen=True, slots=True)
class MessageProperties:
    """Graph's message, the writable part. `body_type` is "text" or "html"; `importance` low,
    normal or high; `sensitivity` normal, personal, private or confidential.

    `sender` and `from_` are None until the store fills in the mailbox's owner. `references` and
    `in_reply_to` are Message-IDs with their angle brackets; `conversation_index` is base64.
    """

    subject: str = ""
    body_type: str = "text"
    body: str = ""
    from_: Person | None = None
    sender: Person | None = None
    to: tuple[Person, ...] = ()
    cc: tuple[Person, ...] = ()
    bcc: tuple[Person, ...] = ()
    reply_to: tuple[Person, ...] = ()
    importance: str = "normal"
    internet_message_id: str = ""
    internet_message_headers: tuple[tuple[str, str], ...] = ()
    attachments: tuple[Attachment, ...] = ()
    categories: tuple[str, ...] = ()
    sensitivity: str = "normal"
    read_receipt: bool = False
    delivery_receipt: bool = False
    in_reply_to: str = ""
    references: tuple[str, ...] = ()
    conversation_index: str = ""
    extended: tuple[ExtendedProperty, ...] = ()
