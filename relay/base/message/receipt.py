"""A read receipt that a mailbox owes the sender of a message, who requested it (RFC 8098).

Local delivery determines it for each message; the spool keeps it until it is sent, or not owed any
more.
"""

from enum import StrEnum

from msgspec import Struct

# The queue id of the message, and the number of the recipient.
ReceiptKey = tuple[str, int]


class ReceiptKind(StrEnum):
    """The kind of a notification; also the name in events and metrics."""

    READ = "read"
    NOT_READ = "notread"  # it was deleted unread


class ReceiptRequest(Struct, frozen=True):
    """What a notification contains about the message, and its recipient.

    The spool stores it as JSON.
    """

    mailbox: str  # the canonical address of the account that owes it
    to: str  # the sender, who requested it
    recipient: str  # the address to which the message was sent
    orcpt: str = ""  # as in ForwardPath
    message_id: str = ""  # of the header, with angle brackets
    subject: str = ""  # decoded
    thread: str = ""  # header lines that put the notification into the conversation
    account: str = ""  # that owns the trace of the message
    is_trusted: bool = False  # the sending client logged in or is in a listed network
    accept_language: str = ""  # of the header: the languages of the sender
    requiretls: bool = False  # the message was sent with REQUIRETLS


class OwedReceipt(Struct, frozen=True):
    """A receipt that may be due: one for each copy in a mailbox."""

    key: ReceiptKey  # of the recipient
    mailbox: str  # that owes it
    copy_id: str  # of the message in the mailbox
    folder: str  # in which the copy was last seen: a directory in the mailbox; "": the Inbox
    owed_us: int  # when it was delivered, in queue time
    to: str  # as in ReceiptRequest
    is_trusted: bool  # as in ReceiptRequest
    is_sent: bool = False  # the notification is sent, but the copy is not marked yet

    @property
    def submission_key(self) -> str:
        """The submission key of the notification: the spool accepts each key once."""
        message_id, number = self.key
        return f"receipt {message_id}-{number}"
