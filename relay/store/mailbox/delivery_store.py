"""What local delivery and RCPT need of mailboxes."""

from enum import Enum
from typing import Protocol

from relay.base.message.content import Content
from relay.store.mailbox.stored_message import WellKnown
from relay.store.mailbox.usage import Room


class DeliveryResult(Enum):
    """The result of a local delivery."""

    DELIVERED = "delivered"
    ALREADY_THERE = "already there"


class DeliveryStore(Protocol):
    """Mailboxes that take mail. `account` is the canonical address of one, in lower case.

    The simulated worlds of the tests have another implementation.
    """

    async def room(self, account: str, size: int) -> Room:
        """Whether a message of `size` bytes fits the quota: for RCPT."""

    async def deliver(
        self,
        account: str,
        *,
        unique: str,
        content: Content,
        folder: WellKnown = WellKnown.INBOX,
        over_quota: bool = False,
        is_repeat: bool = False,
    ) -> DeliveryResult:
        """Deliver a message to a folder under a name made from `unique`.

        Repeating a delivery changes nothing. `unique` begins with a clock id (a queue id), whose
        time is part of the file name. `over_quota` allows reports to exceed the quota, within a
        bound. `is_repeat`: the message may have been delivered and then renamed by a mail client,
        so it is looked for in all folders, which takes longer.
        Raises MailboxFullError, ContentUnreadableError, StoreUnavailableError.
        """
