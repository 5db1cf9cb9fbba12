"""A query of a mailbox: condition, sort order and page, as values.

Graph converts OData's options to them, and the index evaluates them. Texts are compared without
regard to case, as in Graph. See OData 4.01 URL conventions 5.1 ($filter, $orderby) and Graph's
$search on messages (KQL).
"""

from enum import StrEnum

from msgspec import Struct

from relay.formats.read_mime import WHOLE, ReadExtent
from relay.store.mailbox.changes import ChangeKind


class Property(StrEnum):
    """The properties for conditions and sort orders; the value is Graph's path."""

    RECEIVED = "receivedDateTime"  # times are microseconds
    SENT = "sentDateTime"
    CREATED = "createdDateTime"
    MODIFIED = "lastModifiedDateTime"
    SUBJECT = "subject"
    FROM_ADDRESS = "from/emailAddress/address"
    FROM_NAME = "from/emailAddress/name"
    SENDER_ADDRESS = "sender/emailAddress/address"
    SENDER_NAME = "sender/emailAddress/name"
    IS_READ = "isRead"
    IS_DRAFT = "isDraft"
    HAS_ATTACHMENTS = "hasAttachments"
    IMPORTANCE = "importance"  # low, normal, high: in this order
    FLAG = "flag/flagStatus"
    FLAG_START = "flag/startDateTime/dateTime"
    FLAG_DUE = "flag/dueDateTime/dateTime"
    FLAG_COMPLETED = "flag/completedDateTime/dateTime"
    CLASSIFICATION = "inferenceClassification"
    INTERNET_MESSAGE_ID = "internetMessageId"
    CONVERSATION_ID = "conversationId"
    PARENT_FOLDER = "parentFolderId"
    ID = "id"
    MESSAGE_CLASS = "String 0x001A"  # an extended property
    SIZE = "Integer 0x0E08"  # an extended property
    ARTICLE = "Integer 0x0E23"  # an extended property


class Collection(StrEnum):
    """The multi-valued properties of a message."""

    TO = "toRecipients"
    CC = "ccRecipients"
    BCC = "bccRecipients"
    REPLY_TO = "replyTo"
    CATEGORIES = "categories"


class ItemProperty(StrEnum):
    """The properties of an item of a Collection."""

    ADDRESS = "emailAddress/address"
    NAME = "emailAddress/name"
    ITSELF = ""  # a category, or a value of an extended property
    PROPERTY_ID = "id"  # of an extended property, of which a query names one
    VALUE = "value"  # of that property


class Operator(StrEnum):
    """OData's comparison operators and string functions."""

    EQ = "eq"
    NE = "ne"
    GT = "gt"
    GE = "ge"
    LT = "lt"
    LE = "le"
    STARTS_WITH = "startswith"
    ENDS_WITH = "endswith"
    CONTAINS = "contains"


class SearchIn(StrEnum):
    """The part of a message to search; the value is KQL's name, "" for all parts."""

    ANYWHERE = ""
    SUBJECT = "subject"
    BODY = "body"
    FROM = "from"
    TO = "to"
    CC = "cc"
    BCC = "bcc"
    RECIPIENTS = "recipients"
    PARTICIPANTS = "participants"
    ATTACHMENT = "attachment"


class Compare(Struct, frozen=True):
    """`property operator value`; times are integers, flags booleans, the rest texts.

    Times are compared in microseconds, though they are shown in seconds: a client that queries for
    messages after the last one shown must not miss another one of the same second.
    """

    property: Property
    operator: Operator
    value: str | int | bool


class AnyItem(Struct, frozen=True):
    """At least one item of `collection` matches `condition`, whose leaves are CompareItem."""

    collection: str  # a Collection, or the id of an extended property
    condition: "Condition"


class CompareItem(Struct, frozen=True):
    """`property operator value` of an item; only used within AnyItem."""

    property: ItemProperty
    operator: Operator
    value: str
    is_number: bool = False  # compared as a number


class HasWords(Struct, frozen=True):
    """The phrase `words` occurs; with `prefix` its last word may be the beginning of a word."""

    where: SearchIn
    words: str
    prefix: bool = False


class AllOf(Struct, frozen=True):
    """All conditions match; without conditions, every message matches."""

    conditions: tuple["Condition", ...]


class AnyOf(Struct, frozen=True):
    """At least one condition matches; without conditions, no message matches."""

    conditions: tuple["Condition", ...]


class Negation(Struct, frozen=True):
    """The condition does not match."""

    condition: "Condition"


Condition = Compare | AnyItem | CompareItem | HasWords | AllOf | AnyOf | Negation


class SortOrder(Struct, frozen=True):
    """One key of a sort order."""

    property: Property
    descending: bool = False


NEWEST_FIRST = (SortOrder(Property.RECEIVED, descending=True),)


PAGE_BYTES_MAX = 16 * 1024 * 1024


class MessageQuery(Struct, frozen=True):
    """Which messages, in which order, and which page of them."""

    folder_id: str = ""  # "": all folders
    condition: Condition | None = None  # None: all messages
    order: tuple[SortOrder, ...] = NEWEST_FIRST  # the first one decides
    skip: int = 0  # counted from `after`
    top: int = 10  # messages of the page at most
    after: str = ""  # the Page.next_after of the page before; "": from the beginning
    count: bool = False  # whether the total number is returned
    bytes_max: int = PAGE_BYTES_MAX  # of memory for the page, which has at least one message
    extent: ReadExtent = WHOLE  # what of each message is read


EVERY_CHANGE = frozenset(ChangeKind)


class DeltaQuery(Struct, frozen=True):
    """What changed in a folder after the position `after` of the change feed, on pages of `top`.

    `folder_id` "" means the whole mailbox. Only changes of these `kinds` are returned, and only
    messages received at `received_from_us` or later. `bytes_max` and `extent` are those of
    MessageQuery.
    """

    folder_id: str
    after: str
    top: int = 10
    kinds: frozenset[ChangeKind] = EVERY_CHANGE
    received_from_us: int = 0
    bytes_max: int = PAGE_BYTES_MAX
    extent: ReadExtent = WHOLE
