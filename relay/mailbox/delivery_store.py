"""What ingress and delivery need of the mail store: step 6, and the quota check at RCPT.

The simulated worlds of the tests have a store of their own.
"""

from typing import Protocol

from relay.mailbox.types import DeliveryResult, Room, WellKnown
from relay.message.content import Content


class DeliveryStore(Protocol):
    """Mailboxes that take mail. `account` is the canonical address of one, in lower case."""

    async def room(self, account: str, size: int) -> Room:
        """Whether a message of `size` bytes fits the quota: for RCPT."""
        ...

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
        so it is also searched by its content, which takes longer.
        Raises MailboxFullError, ContentUnreadableError, StoreUnavailableError.
        """
        ...
