"""What a mailbox owes the sender of a message: a read receipt that it asked for (RFC 8098), or an
automatic reply (RFC 3834).

Local delivery finds out what is owed for what it delivers; the spool keeps it until that is sent,
or no longer owed.
"""

from enum import StrEnum

from msgspec import Struct

# The queue id of the message, and the number of the recipient; that of a reply is negative.
ReceiptKey = tuple[str, int]


class ReceiptKind(StrEnum):
    """What a notification says; also the name in events and metrics."""

    READ = "read"
    NOT_READ = "notread"  # it was deleted unread


class ReceiptRequest(Struct, frozen=True):
    """What a notification says of the message, and where it goes.

    The spool stores it as JSON.
    """

    mailbox: str  # the canonical address of the account that owes it
    to: str  # the sender, who asked
    recipient: str  # the address to which the message was sent
    orcpt: str = ""  # as in ForwardPath
    message_id: str = ""  # of the header, with angle brackets
    subject: str = ""  # decoded
    thread: str = ""  # header lines that put the notification into the conversation
    account: str = ""  # that owns the trace of the message
    is_trusted: bool = False  # the client that sent it had logged in, or is in a listed network
    accept_language: str = ""  # of the header: what the sender reads
    requiretls: bool = False  # the message was sent with REQUIRETLS


class OwedReceipt(Struct, frozen=True):
    """A receipt that may be due: one for each copy in a mailbox."""

    key: ReceiptKey  # of the recipient
    mailbox: str  # that owes it
    copy_id: str  # of the message in the mailbox
    folder: str  # where it was seen last: a directory in the mailbox; "": the Inbox
    owed_us: int  # when it was delivered, in queue time
    to: str  # as in ReceiptRequest
    is_trusted: bool  # as in ReceiptRequest
    is_sent: bool = False  # the notification is; the copy is not marked yet

    @property
    def submission_key(self) -> str:
        """The submission key of its notification: the spool accepts a second one not again."""
        message_id, number = self.key
        return f"{'receipt' if number > 0 else 'reply'} {message_id}-{abs(number)}"
