"""Remove one message of a development relay: from the queue, the history, and all mailboxes.

A service keeps its history; a person who tries programs out removes what is done with.
"""

import asyncio

from relay.api.message_copies import MessageCopies
from relay.app.daemon import Daemon
from relay.journeys.document import Journey
from relay.journeys.submission_log import SubmissionFacts
from relay.mailbox.types import BeingSentError
from relay.spool.engine import DevelopmentSpool
from relay.spool.queue_commands import Operation, QueueCommand
from relay.spool.types import Selector

_WHO = "development"


def development_spool(daemon: Daemon) -> DevelopmentSpool:
    """Return what only a development relay does with its spool."""
    spool = daemon.base.spool.development
    assert spool is not None  # its engine has it
    return spool


async def remove_message(daemon: Daemon, copies: MessageCopies, journey: Journey) -> bool:
    """See DevelopmentControls.remove_message()."""
    queue_id = journey.id
    try:
        if queue_id is None and not await _end_submission(daemon, copies, journey):
            return False
    except BeingSentError:
        return False
    if queue_id is not None:
        if not journey.is_final:  # delivery gives up what waits in its memory
            selector = Selector(ids=(queue_id,))
            await daemon.base.spool.queue_admin.execute(
                QueueCommand(Operation.CANCEL, selector, _WHO)
            )
        recipients = await development_spool(daemon).remove(queue_id)
        if recipients is None:
            return False
        await copies.remove(queue_id, recipients)
        if journey.submission_id:
            await _remove_original(daemon, copies, journey)
    await _withdraw(daemon, journey)
    daemon.base.changes.notify()
    return True


async def _end_submission(daemon: Daemon, copies: MessageCopies, journey: Journey) -> bool:
    """Remove the draft of a submission, which cancels it; False while it is in step 3."""
    await _remove_original(daemon, copies, journey)
    found = await daemon.base.journeys.journey(journey.key, account=None)
    return found is not None and found.id is None and found.is_final


async def _remove_original(daemon: Daemon, copies: MessageCopies, journey: Journey) -> None:
    """Remove the sender's copy: a draft, or what is in Sent Items. Raises BeingSentError."""
    mailbox = await daemon.base.journeys.mailbox_of(journey.submission_id or "")
    if mailbox:
        await copies.remove_one(mailbox, journey.graph_id or "")


async def _withdraw(daemon: Daemon, journey: Journey) -> None:
    """Remove steps 1 to 4 from all answers."""
    if submission_id := journey.submission_id:
        account = await daemon.base.journeys.mailbox_of(submission_id)
        facts = SubmissionFacts(submission_id, journey.graph_id or "", account, journey.sender)
        await asyncio.to_thread(daemon.base.store_log.withdraw, facts)
