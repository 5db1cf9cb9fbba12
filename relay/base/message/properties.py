"""The values of Graph's message resource: what requests are parsed into and conversion reads.

Graph makes MessageProperties from JSON, the draft's file stores them, pickup converts them to MIME.
Graph has checked the JSON: only the body may have CR, LF or NUL, and addresses are valid. The field
names of these classes are part of the file format of drafts (relay.formats.draft).
"""

from msgspec import Struct


class EmailAddress(Struct, frozen=True):
    """Graph's emailAddress: display name ("" if none) and address."""

    address: str
    name: str = ""


class Attachment(Struct, frozen=True):
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


class ExtendedProperty(Struct, frozen=True):
    """Graph's singleValue- or multiValueLegacyExtendedProperty.

    `id` is canonical (relay.base.message.extended_properties): "SystemTime 0x3FEF",
    "String {00020329-0000-0000-C000-000000000046} Name Keywords". A single value has one `values`.
    """

    id: str
    values: tuple[str, ...]
    multiple: bool = False


class MessageProperties(Struct, frozen=True):
    """The writable properties of Graph's message."""

    subject: str = ""  # decoded
    body_type: str = "text"  # text or html
    body: str = ""  # its text
    from_: EmailAddress | None = None  # None until the mail store sets the owner of the mailbox
    sender: EmailAddress | None = None  # None until the mail store sets the owner of the mailbox
    to: tuple[EmailAddress, ...] = ()  # in their order
    cc: tuple[EmailAddress, ...] = ()  # in their order
    bcc: tuple[EmailAddress, ...] = ()  # in their order
    reply_to: tuple[EmailAddress, ...] = ()  # in their order
    importance: str = "normal"  # low, normal or high
    internet_message_id: str = ""  # Message-ID, with its angle brackets
    # further header fields: names and values
    internet_message_headers: tuple[tuple[str, str], ...] = ()
    attachments: tuple[Attachment, ...] = ()  # with their content
    categories: tuple[str, ...] = ()  # names
    sensitivity: str = "normal"  # normal, personal, private or confidential
    read_receipt: bool = False  # Disposition-Notification-To is requested
    delivery_receipt: bool = False  # a DSN on delivery is requested
    in_reply_to: str = ""  # a Message-ID, with its angle brackets
    references: tuple[str, ...] = ()  # Message-IDs, with their angle brackets
    conversation_index: str = ""  # base64
    extended: tuple[ExtendedProperty, ...] = ()  # singleValueExtendedProperties
