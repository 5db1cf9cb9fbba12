"""The values of Graph's message resource: what requests are parsed into and conversion reads.

Graph makes MessageProperties from JSON, the draft's file stores them, pickup converts them to MIME.
Only the body may have CR, LF or NUL; addresses are valid: graph checks the JSON. The field names of
these classes are part of the file format of drafts (relay.mime.draft).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EmailAddress:
    """Graph's emailAddress: display name ("" if none) and address."""

    address: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Attachment:
    """Graph's fileAttachment. `content` is the client's base64, valid and without white space.

    `size` is the number of decoded bytes. With `item` it is Graph's itemAttachment: the decoded
    content is a whole message (message/rfc822).
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

    `id` is canonical (relay.message.extended_properties): "SystemTime 0x3FEF",
    "String {00020329-0000-0000-C000-000000000046} Name Keywords". A single value has one `values`.
    """

    id: str
    values: tuple[str, ...]
    multiple: bool = False


@dataclass(frozen=True, slots=True)
class MessageProperties:
    """The writable properties of Graph's message. `body_type` is "text" or "html"; `importance`
    low, normal or high; `sensitivity` normal, personal, private or confidential.

    `sender` and `from_` are None until the mailbox store sets the mailbox's owner. `references` and
    `in_reply_to` are Message-IDs with their angle brackets; `conversation_index` is base64.
    """

    subject: str = ""
    body_type: str = "text"
    body: str = ""
    from_: EmailAddress | None = None
    sender: EmailAddress | None = None
    to: tuple[EmailAddress, ...] = ()
    cc: tuple[EmailAddress, ...] = ()
    bcc: tuple[EmailAddress, ...] = ()
    reply_to: tuple[EmailAddress, ...] = ()
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
