"""The content of a message: from the spool, a recipient's mailbox, or the sender's mailbox.

No additional copy is kept. The spool has the content while a recipient is not final. Later, a local
recipient's mailbox may have it, or the sender's Sent Items or Drafts, or a report that returns it.
Delivery derives the id of a copy from the queue id and the number of the recipient, so that copies
are found without a search. A development relay keeps copies of captured mail as well.

A content never changes. Its beginning is read once, when its row is first listed, and a few values
of the latest messages are kept in memory. A message that cannot be read has no values.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from msgspec import Struct
from msgspec.structs import replace

from relay.base.bounded_dict import BoundedDict
from relay.base.message.address import own_mailbox
from relay.base.message.content import Content, Octets, edit_header, octets_of
from relay.base.message.header import BCC_FIELDS, ParsedContent
from relay.base.message.lifecycle import RecipientState
from relay.base.message.properties import EmailAddress
from relay.formats.headers import without_delivery_fields
from relay.formats.html_text import preview
from relay.formats.read_mime import ReadMessage, read_mime, read_parts
from relay.formats.read_report import returned_message
from relay.store.journeys.document import Journey
from relay.store.journeys.journey import Journeys
from relay.store.journeys.list_places import ListPlaces
from relay.store.journeys.message_list import (
    IndexFailedError,
    ListedRecipient,
    MessagePreview,
    MessageSummary,
    TextIndex,
)
from relay.store.journeys.spool_history import SpoolHistory
from relay.store.mailbox.errors import NoSuchItemError, StoreError
from relay.store.mailbox.message_file import delivered_id
from relay.store.mailbox.messages import Messages
from relay.store.mailbox.stored_message import StoredMessage
from relay.store.spool.types import SpoolError

_KEPT = (  # the states in which a development relay has a copy
    RecipientState.CAPTURED,
    RecipientState.RELAYED,
    RecipientState.CANCELLED,
    RecipientState.EXPIRED,
)
_AT_ONCE = 8  # mailboxes that are changed at once: each change waits for the disk
_Copy = tuple[str, str]  # mailbox and id
_REPORTS_MAX = 3  # reports that are read for the message that they return
KEPT_MAX = 5000  # of at most 3 KB each
READ_OCTETS_MAX = 128 * 1024
_HEADER_OCTETS = 16 * 1024
_NAME_CHARACTERS_MAX = 100
ADDRESS_CHARACTERS_MAX = 320


@dataclass(eq=False, repr=False)
class MessageCopies:
    """Finds and changes copies. Raises StoreError."""

    mailboxes: Messages
    mailbox_for: Callable[[str], str | None]  # of a local recipient
    keeps_captured: bool

    async def unread(
        self, rows: Sequence[MessageSummary], *, mailbox: str | None, index: TextIndex | None = None
    ) -> dict[str, bool]:
        """Return by message name whether a received copy is unread, in one mailbox or in any.

        Mailboxes are read for copies that `index` does not know.
        """
        by_name: dict[str, bool] = {}
        by_mailbox = self._by_mailbox(rows, mailbox)
        known = await index.flags(by_mailbox) if index is not None and by_mailbox else {}
        for place, names in by_mailbox.items():
            flags = {copy_id: known[copy_id] for copy_id in names if copy_id in known}
            if others := [copy_id for copy_id in names if copy_id not in known]:
                flags |= await self.mailboxes.read_flags(place, others)
            for copy_id, is_read in flags.items():
                name = names[copy_id]
                by_name[name] = by_name.get(name, False) or not is_read
        return by_name

    def has_copies(self, row: MessageSummary) -> bool:
        """Whether delivery has put copies of a message into mailboxes."""
        is_done = row.state in (RecipientState.CAPTURED, RecipientState.DELIVERED)
        return is_done and bool(row.id and self.places(row.id, row.recipients))

    async def sent_from(self, rows: Sequence[MessageSummary], mailbox: str) -> Collection[str]:
        """Return the names of the messages whose sender's copy is in a mailbox."""
        names = {row.submission_id.partition(".")[0]: row.name for row in rows if row.submission_id}
        flags = await self.mailboxes.read_flags(mailbox, list(names)) if names else {}
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
            marked = await self.mailboxes.mark(place, list(names), is_read=is_read)
            if is_read and marked and sends_receipts:
                await self.mailboxes.on_read(place, marked, False)
            return {names[copy_id] for copy_id in marked}

        marked_names: set[str] = set()
        for at in range(0, len(places), _AT_ONCE):
            batch = places[at : at + _AT_ONCE]
            marked_names.update(*await asyncio.gather(*(mark_in(*place) for place in batch)))
        return marked_names

    async def categories(
        self,
        rows: Sequence[MessageSummary],
        chosen: Mapping[str, Sequence[str]],
        *,
        is_first: bool = False,
    ) -> dict[str, set[str]]:
        """Set the categories in `chosen` by message name, and return the categories of all copies.

        Messages without a copy are left out; see Messages.categories().
        """
        by_name: dict[str, set[str]] = {}
        for place, names in self._by_mailbox(rows, None, with_sent=True).items():
            asked = {copy_id: chosen.get(name) for copy_id, name in names.items()}
            read = await self.mailboxes.categories(place, asked, is_first=is_first)
            for copy_id, categories in read.items():
                by_name.setdefault(names[copy_id], set()).update(categories)
        return by_name

    def _by_mailbox(
        self, rows: Sequence[MessageSummary], mailbox: str | None, *, with_sent: bool = False
    ) -> dict[str, dict[str, str]]:
        """Return the names of the messages by the ids of their copies, by mailbox."""
        by_mailbox: dict[str, dict[str, str]] = defaultdict(dict)
        for row in rows:
            for place, copy_id in self.places(row.id, row.recipients) if row.id else ():
                if mailbox in (None, place):
                    by_mailbox[place][copy_id] = row.name
            if with_sent and row.submission_id and row.login:
                by_mailbox[row.login][row.submission_id.partition(".")[0]] = row.name
        return by_mailbox

    async def as_delivered(self, rows: Sequence[MessageSummary]) -> dict[str, Content]:
        """Return the MIME of messages, by name, if a copy is still where delivery has put it.

        The copies in one mailbox are read together.
        """
        contents: dict[str, Content] = {}
        for place, names in self._by_mailbox(rows, None).items():
            for copy_id, copy in (await self.mailboxes.as_delivered(place, list(names))).items():
                contents[names[copy_id]] = edit_header(copy, without_delivery_fields)
        return contents

    async def remove_one(self, mailbox: str, message_id: str) -> None:
        """Remove a message from a mailbox if it is there. Raises BeingSentError."""
        if await self.mailboxes.read_flags(mailbox, [message_id]):
            try:
                await self.mailboxes.delete(mailbox, message_id, permanently=True)
            except NoSuchItemError:
                return

    def places(self, queue_id: str, recipients: Sequence[ListedRecipient]) -> list[_Copy]:
        """Return mailbox and id of the copies that these recipients may have."""
        return [
            (place, delivered_id(f"{queue_id}-{recipient.number}"))
            for recipient in recipients
            if (place := self._place(recipient))
        ]

    def _place(self, recipient: ListedRecipient) -> str | None:
        if recipient.state == RecipientState.DELIVERED:
            return self.mailbox_for(recipient.address)
        is_kept = self.keeps_captured and recipient.state in _KEPT
        return own_mailbox(recipient.address) if is_kept else None


@dataclass(eq=False, repr=False)
class MessageSources:
    """Finds the content of messages.

    In a development relay, `received` returns what a simulated host has received of a queue id;
    there, mail for other domains is copied into mailboxes as well.
    """

    journeys: Journeys
    spool: SpoolHistory
    mailboxes: Messages
    mailbox_for: Callable[[str], str | None]  # of a local recipient
    received: Callable[[str], bytes | None] | None = None

    def __post_init__(self) -> None:
        self.copies = MessageCopies(
            self.mailboxes, mailbox_for=self.mailbox_for, keeps_captured=self.received is not None
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
            journey = await self.journeys.journey(row.id, account=None)
            content = await self._returned(journey) if journey else None
        return content

    async def _transported(self, queue_id: str) -> Content | None:
        """Return the content as the queue, a recipient, or a simulated host has it."""
        kept = await self.spool.read_message(queue_id)
        if kept.content is not None:
            return kept.content
        recipients = [ListedRecipient(*fields) for fields in kept.recipients]
        for mailbox, copy_id in self.copies.places(queue_id, recipients):
            if (copy := await self._in_mailbox(mailbox, copy_id)) is not None:
                return edit_header(copy, without_delivery_fields)
        return self.received(queue_id) if self.received is not None else None

    async def _returned(self, journey: Journey) -> Content | None:
        """Return the content as a report to the sender returns it in whole."""
        for name in journey.reports[:_REPORTS_MAX]:
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
        mailbox = await self.journeys.mailbox_of(submission_id)
        try:
            message = await self.mailboxes.get(mailbox, submission_id.partition(".")[0])
        except NoSuchItemError:
            return None
        return mailbox, message

    async def _of_sender(self, submission_id: str, *, reader: str | None) -> Content | None:
        mailbox = await self.journeys.mailbox_of(submission_id)
        draft_id = submission_id.partition(".")[0]
        original = await self._in_mailbox(mailbox, draft_id) if mailbox else None
        if original is None or mailbox == reader:
            return original
        parsed = ParsedContent.of(original)
        return ParsedContent(parsed.header.remove(BCC_FIELDS), parsed.rest).joined()

    async def _in_mailbox(self, mailbox: str, message_id: str) -> Content | None:
        try:
            return await self.mailboxes.mime(mailbox, message_id)
        except NoSuchItemError:
            return None


NO_PREVIEW = MessagePreview()


class RowFacts(Struct, frozen=True):
    """What a row shows that is not in the history of its message."""

    is_received: bool  # a copy can be marked as read or unread
    is_unread: bool  # one of these copies is unread
    is_removed: bool  # another program has removed what delivery has put into mailboxes
    preview: MessagePreview
    shows_text: bool  # of the preview


class MessagePreviews:
    """The previews of messages that were listed lately."""

    def __init__(self, sources: MessageSources, places: ListPlaces) -> None:
        self._sources = sources
        self.places = places
        self._kept = BoundedDict[str, MessagePreview](KEPT_MAX)  # by queue id

    async def of_rows(self, rows: Sequence[MessageSummary]) -> dict[str, MessagePreview]:
        """Return the previews by the names of the rows; those that cannot be read are left out."""
        previews: dict[str, MessagePreview] = {}
        if self.places.index is not None:
            missing = [row.id for row in rows if row.id and row.id not in self._kept]
            with contextlib.suppress(IndexFailedError):
                for queue_id, preview in (await self.places.index.previews(missing)).items():
                    self._kept[queue_id] = preview
        for row in rows:
            kept = self._kept.get(row.name)
            if kept is not None:
                self._kept.move_to_end(row.name)
                previews[row.name] = kept
                continue
            with contextlib.suppress(SpoolError, StoreError, OSError):
                previews[row.name] = await self._read(row)
        return previews

    async def _read(self, row: MessageSummary) -> MessagePreview:
        content = await self._sources.of_row(row)
        if content is None:
            read = NO_PREVIEW
        else:
            read = await asyncio.to_thread(read_preview, octets_of(content))
        if row.id:  # before that, a scheduled draft can be changed
            self._kept[row.id] = read
        return read


def read_preview(octets: Octets) -> MessagePreview:
    """Read the beginning of a MIME message. Blocks; raises OSError.

    An attachment after that is not seen; multipart/mixed then counts as one.
    """
    beginning = octets.part(0, min(octets.size, READ_OCTETS_MAX))
    read = preview_of(read_mime(beginning), beginning)
    is_attached = read.has_attachments
    if not is_attached and octets.size > READ_OCTETS_MAX:
        header = octets.read(0, _HEADER_OCTETS).partition(b"\r\n\r\n")[0]
        is_attached = b"multipart/mixed" in header.lower()
    return replace(read, has_attachments=is_attached)


def preview_of(read: ReadMessage, beginning: Octets) -> MessagePreview:
    """Return the preview of the beginning of a message. Blocks; raises OSError."""
    author = read.properties.from_
    text = preview(read.properties.body, read.properties.body_type)
    if not text:  # of HTML that begins with a long style sheet
        text = preview(read_parts(beginning).bodies.text or "", "text")
    to = next(
        (recipient for recipient in read.properties.to + read.properties.cc if recipient.address),
        EmailAddress(""),
    )
    return MessagePreview(
        author.name[:_NAME_CHARACTERS_MAX] if author else "",
        to.name[:_NAME_CHARACTERS_MAX],
        to.address[:ADDRESS_CHARACTERS_MAX],
        any(not attachment.inline for attachment in read.attachments),
        text,
    )
