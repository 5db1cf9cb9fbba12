"""What can be asked of a mailbox: conditions, order and page, as values.

On the path: graph makes them of OData's options; the index answers them.
Holds: pure; a condition is a tree of these values and nothing else, so that it is matched
exhaustively; texts are compared without regard to case, as Graph does.
Fails: never.
Standards: OData 4.01 URL conventions 5.1 ($filter, $orderby); Graph's $search on messages (KQL).
"""

from dataclasses import dataclass
from enum import StrEnum


class Property(StrEnum):
    """A message's properties that conditions and orders may name; the value is Graph's path."""

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
    INTERNET_MESSAGE_ID = "internetMessageId"
    CONVERSATION_ID = "conversationId"
    PARENT_FOLDER = "parentFolderId"
    ID = "id"


class Collection(StrEnum):
    """A message's properties of which there may be several."""

    TO = "toRecipients"
    CC = "ccRecipients"
    BCC = "bccRecipients"
    REPLY_TO = "replyTo"
    CATEGORIES = "categories"


class ItemProperty(StrEnum):
    """What an item of a Collection is asked by."""

    ADDRESS = "emailAddress/address"
    NAME = "emailAddress/name"
    ITSELF = ""  # a category


class Operator(StrEnum):
    """OData's comparisons and its functions on texts."""

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
    """Where a word of a search may stand; the value is KQL's name, "" for anywhere."""

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


@dataclass(frozen=True, slots=True)
class Compare:
    """`property operator value`; times are integers, flags booleans, the rest texts.

    Times are compared to the microsecond, though they are shown to the second: who asks for what is
    later than the last one that was shown must not miss what came in the same second.
    """

    property: Property
    operator: Operator
    value: str | int | bool


@dataclass(frozen=True, slots=True)
class AnyItem:
    """Some item of `collection` fulfils `condition`, whose leaves are CompareItem alone."""

    collection: Collection
    condition: "Condition"


@dataclass(frozen=True, slots=True)
class CompareItem:
    """`property operator value` of the item that an AnyItem asks about; it stands nowhere else."""

    property: ItemProperty
    operator: Operator
    value: str


@dataclass(frozen=True, slots=True)
class HasWords:
    """`words` stand next to each other; the last one may go on where `prefix`."""

    where: SearchIn
    words: str
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every one of them; of none, everything."""

    conditions: tuple["Condition", ...]


@dataclass(frozen=True, slots=True)
class OneOf:
    """At least one of them; of none, nothing."""

    conditions: tuple["Condition", ...]


@dataclass(frozen=True, slots=True)
class Negated:
    """Not this."""

    condition: "Condition"


Condition = Compare | AnyItem | CompareItem | HasWords | AllOf | OneOf | Negated


@dataclass(frozen=True, slots=True)
class Order:
    """One key of an order."""

    property: Property
    descending: bool = False


NEWEST_FIRST = (Order(Property.RECEIVED, descending=True),)


@dataclass(frozen=True, slots=True)
class MessageQuery:
    """Which messages, in which order, and which page of them.

    `folder_id` "" means all folders. A page begins behind `after`, what Page.next_after said of the
    page before; `skip` then counts from there. `count` asks for how many there are in all.
    """

    folder_id: str = ""
    condition: Condition | None = None
    order: tuple[Order, ...] = NEWEST_FIRST
    skip: int = 0
    top: int = 10
    after: str = ""
    count: bool = False
