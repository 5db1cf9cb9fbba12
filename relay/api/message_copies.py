"""The copies of a message in mailboxes: whether they are read, and their removal.

Delivery derives the id of a copy from the queue id and the number of the recipient, so that copies
are found without a search. A development relay keeps copies of captured mail as well.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

from relay.journeys.message_list import ListedRecipient, MessageSummary
from relay.mailbox.message_file import delivered_id
from relay.mailbox.messages import Messages
from relay.mailbox.types import NoSuchItemError
from relay.message.address import own_mailbox
from relay.message.lifecycle import RecipientState

_KEPT = (  # the states in which a development relay has a copy
    RecipientState.CAPTURED,
    RecipientState.RELAYED,
    RecipientState.CANCELLED,
    RecipientState.EXPIRED,
)
_AT_ONCE = 8  # mailboxes that are marked, since each waits for the disk
_Copy = tuple[str, str]  # mailbox and id


class MessageCopies:
    """Finds and changes copies. Raises StoreError."""

    def __init__(
        self,
        mailboxes: Messages,
        *,
        mailbox_for: Callable[[str], str | None],
        keeps_captured: bool,
    ) -> None:
        """`mailbox_for` returns the mailbox of a local recipient, or None."""
        self._mailboxes = mailboxes
        self._mailbox_for = mailbox_for
        self._keeps_captured = keeps_captured

    async def unread(
        self, rows: Sequence[MessageSummary], *, mailbox: str | None
    ) -> dict[str, bool]:
        """Return whether a copy is unread, by the names of the messages with a copy that was
        received, in one mailbox or in any.
        """
        found: dict[str, bool] = {}
        for place, names in self._by_mailbox(rows, mailbox).items():
            flags = await self._mailboxes.read_flags(place, list(names))
            for copy_id, is_read in flags.items():
                name = names[copy_id]
                found[name] = found.get(name, False) or not is_read
        return found

    async def sent_from(self, rows: Sequence[MessageSummary], mailbox: str) -> Collection[str]:
        """Return the names of the messages whose sender's copy is in a mailbox."""
        names = {one.submission_id.partition(".")[0]: one.name for one in rows if one.submission_id}
        flags = await self._mailboxes.read_flags(mailbox, list(names)) if names else {}
        return {names[draft_id] for draft_id in flags}

    async def mark(
        self,
        rows: Sequence[MessageSummary],
        *,
        is_read: bool,
        mailbox: str | None,
        sends_receipts: bool = True,
    ) -> set[str]:
        """Mark the copies in one mailbox or in all; return the names of the messages with any. A
        message that is read may send its receipt, as if its recipient had opened it.
        """
        places = list(self._by_mailbox(rows, mailbox).items())

        async def mark_in(place: str, names: Mapping[str, str]) -> set[str]:
            marked = await self._mailboxes.mark(place, list(names), is_read=is_read)
            if is_read and marked and sends_receipts:
                await self._mailboxes.on_read(place, marked)
            return {names[copy_id] for copy_id in marked}

        found: set[str] = set()
        for at in range(0, len(places), _AT_ONCE):
            few = places[at : at + _AT_ONCE]
            found.update(*await asyncio.gather(*(mark_in(*one) for one in few)))
        return found

    def _by_mailbox(
        self, rows: Sequence[MessageSummary], mailbox: str | None
    ) -> dict[str, dict[str, str]]:
        """Return the names of the messages by the ids of their copies, by mailbox."""
        wanted: dict[str, dict[str, str]] = defaultdict(dict)
        for row in rows:
            for place, copy_id in self._copies(row, mailbox):
                wanted[place][copy_id] = row.name
        return wanted

    async def remove(self, queue_id: str, recipients: Sequence[ListedRecipient]) -> None:
        """Remove the copies of all these recipients."""
        for place, copy_id in self.places(queue_id, recipients):
            await self.remove_one(place, copy_id)

    async def remove_one(self, mailbox: str, message_id: str) -> None:
        """Remove a message from a mailbox if it is there. Raises BeingSentError."""
        if await self._mailboxes.read_flags(mailbox, [message_id]):
            try:
                await self._mailboxes.delete(mailbox, message_id, permanently=True)
            except NoSuchItemError:
                return

    def places(self, queue_id: str, recipients: Sequence[ListedRecipient]) -> list[_Copy]:
        """Return mailbox and id of the copies that these recipients may have."""
        return [
            (place, delivered_id(f"{queue_id}-{one.number}"))
            for one in recipients
            if (place := self._place(one))
        ]

    def _copies(self, row: MessageSummary, mailbox: str | None) -> list[_Copy]:
        found = self.places(row.id, row.recipients) if row.id else []
        return [one for one in found if mailbox in (None, one[0])]

    def _place(self, recipient: ListedRecipient) -> str | None:
        if recipient.state == RecipientState.DELIVERED:
            return self._mailbox_for(recipient.address)
        is_kept = self._keeps_captured and recipient.state in _KEPT
        return own_mailbox(recipient.address) if is_kept else None
