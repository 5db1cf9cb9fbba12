"""Remove one message of a development relay: from the queue, the history, and all mailboxes.

A service keeps its history; a person who tries programs out removes what is done with.
"""

import asyncio

from relay.api.message_copies import MessageCopies
from relay.app.daemon import Daemon
from relay.journeys.document import Journey
from relay.journeys.submission_log import SubmissionFacts
from relay.mailbox.types import BeingSentError
from relay.spool.queue_commands import Operation, QueueCommand
from relay.spool.types import Selector

_WHO = "development"


class MessageRemoval:
    """Removes messages of a daemon."""

    def __init__(self, daemon: Daemon, copies: MessageCopies) -> None:
        self._daemon = daemon
        self._copies = copies

    async def run(self, journey: Journey) -> bool:
        """See DevelopmentControls.remove_message()."""
        daemon, queue_id = self._daemon, journey.id
        try:
            if queue_id is None and not await self._end_submission(journey):
                return False
        except BeingSentError:
            return False
        if queue_id is not None:
            if not journey.is_final:  # delivery gives up what waits in its memory
                selector = Selector(ids=(queue_id,))
                await daemon.spool.queue_admin.execute(
                    QueueCommand(Operation.CANCEL, selector, _WHO)
                )
            recipients = await daemon.spool.maintenance.remove(queue_id)
            if recipients is None:
                return False
            await self._copies.remove(queue_id, recipients)
            if journey.submission_id:
                await self._remove_original(journey)
        await self._withdraw(journey)
        daemon.changes.notify()
        return True

    async def _end_submission(self, journey: Journey) -> bool:
        """Remove the draft of a submission, which cancels it; False while it is in step 3."""
        await self._remove_original(journey)
        found = await self._daemon.journeys.journey(journey.key, account=None)
        return found is not None and found.id is None and found.is_final

    async def _remove_original(self, journey: Journey) -> None:
        """Remove the sender's copy: a draft, or what is in Sent Items. Raises BeingSentError."""
        mailbox = await self._daemon.journeys.mailbox_of(journey.submission_id or "")
        if mailbox:
            await self._copies.remove_one(mailbox, journey.graph_id or "")

    async def _withdraw(self, journey: Journey) -> None:
        """Remove steps 1 to 4 from all answers."""
        if submission_id := journey.submission_id:
            account = await self._daemon.journeys.mailbox_of(submission_id)
            facts = SubmissionFacts(submission_id, journey.graph_id or "", account, journey.sender)
            await asyncio.to_thread(self._daemon.store_log.withdraw, facts)
