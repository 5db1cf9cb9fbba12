"""The content of a message: from the spool, a recipient's mailbox, or the sender's mailbox.

It is found without a copy of its own: the spool has it while a recipient is not final; then a local
recipient's mailbox may have it, the sender's Sent Items or Drafts, or a report that returns it.
"""

import asyncio
from collections.abc import Callable

from relay.api.message_copies import MessageCopies
from relay.journeys.document import Journey
from relay.journeys.events import Step
from relay.journeys.journey import Journeys
from relay.journeys.message_list import ListedRecipient, MessageSummary
from relay.journeys.spool_history import SpoolHistory
from relay.mailbox.messages import Messages
from relay.mailbox.types import NoSuchItemError, StoredMessage
from relay.message.content import Content, edit_header, octets_of
from relay.message.header import BCC_FIELDS, ParsedContent
from relay.mime.headers import without_delivery_fields
from relay.mime.read_report import returned_message

_REPORTS_MAX = 3  # to read for the message that they return


class MessageSources:
    """Finds the content of messages."""

    def __init__(
        self,
        journeys: Journeys,
        spool: SpoolHistory,
        mailboxes: Messages,
        *,
        mailbox_for: Callable[[str], str | None],
        received: Callable[[str], bytes | None] | None = None,
    ) -> None:
        """`mailbox_for` returns the mailbox of a local recipient, or None. In a development relay,
        `received` returns what a simulated host has received of a queue id; there, mail for other
        domains is copied into mailboxes as well.
        """
        self._journeys = journeys
        self._spool = spool
        self._mailboxes = mailboxes
        self._received = received
        self.copies = MessageCopies(
            mailboxes, mailbox_for=mailbox_for, keeps_captured=received is not None
        )

    async def find(self, journey: Journey, *, reader: str | None) -> Content | None:
        """Return the MIME of a message; None if no copy is left. Raises SpoolError.

        It has no Bcc, unless it is from the mailbox of `reader`.
        """
        if queue_id := journey.id:
            content = await self._transported(queue_id)
            if content is not None:
                return content
        if submission_id := journey.submission_id:
            content = await self._of_sender(submission_id, reader=reader)
            if content is not None:
                return content
        return await self._returned(journey)

    async def of_row(self, row: MessageSummary) -> Content | None:
        """Return the MIME of a message of the list, as find()."""
        content = await self._transported(row.id) if row.id else None
        if content is None and row.submission_id:
            content = await self._of_sender(row.submission_id, reader=None)
        if content is None and row.id:
            journey = await self._journeys.journey(row.id, account=None)
            content = await self._returned(journey) if journey else None
        return content

    async def _transported(self, queue_id: str) -> Content | None:
        """Return the content as the queue, a recipient, or a simulated host has it."""
        kept = await self._spool.read_message(queue_id)
        if kept.content is not None:
            return kept.content
        recipients = [ListedRecipient(*each) for each in kept.recipients]
        for mailbox, copy_id in self.copies.places(queue_id, recipients):
            if (copy := await self._in_mailbox(mailbox, copy_id)) is not None:
                return edit_header(copy, without_delivery_fields)
        return self._received(queue_id) if self._received is not None else None

    async def _returned(self, journey: Journey) -> Content | None:
        """Return the content as a report to the sender returns it in whole."""
        reports = [
            name
            for step in journey.steps
            if step.step == Step.REPORT and (name := step.detail.get("report_id"))
        ]
        for name in reports[:_REPORTS_MAX]:
            report = await self._transported(name)
            if report is not None:
                returned = await asyncio.to_thread(returned_message, octets_of(report))
                if returned is not None:
                    return returned
        return None

    async def original(self, journey: Journey) -> tuple[str, StoredMessage] | None:
        """Return the sender's draft or copy and its mailbox; None if it is gone, or by SMTP."""
        if not (submission_id := journey.submission_id):
            return None
        mailbox = await self._journeys.mailbox_of(submission_id)
        try:
            found = await self._mailboxes.get(mailbox, submission_id.partition(".")[0])
        except NoSuchItemError:
            return None
        return mailbox, found

    async def _of_sender(self, submission_id: str, *, reader: str | None) -> Content | None:
        mailbox = await self._journeys.mailbox_of(submission_id)
        draft_id = submission_id.partition(".")[0]
        original = await self._in_mailbox(mailbox, draft_id) if mailbox else None
        if original is None or mailbox == reader:
            return original
        parsed = ParsedContent.of(original)
        return ParsedContent(parsed.header.remove(BCC_FIELDS), parsed.rest).joined()

    async def _in_mailbox(self, mailbox: str, message_id: str) -> Content | None:
        try:
            return await self._mailboxes.mime(mailbox, message_id)
        except NoSuchItemError:
            return None
