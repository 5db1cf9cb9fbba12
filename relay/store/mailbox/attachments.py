"""The attachments of stored messages: open them, add them to drafts, remove them.

No attachment is held in memory. A changed draft is a new file, and the old one is removed. Methods
raise StoreError's children and OSError. Graph's attachment resource type.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from relay.base.message.content import Octets
from relay.base.message.properties import Attachment
from relay.formats.draft import DraftAttachment, draft_attachment
from relay.formats.read_mime import WHOLE, AttachedOctets, ReadExtent
from relay.store.mailbox import draft_files, stored_message
from relay.store.mailbox.errors import (
    AttachmentsTooLargeError,
    NoSuchItemError,
    StoreUnavailableError,
)
from relay.store.mailbox.maildir import retry_if_renamed
from relay.store.mailbox.message_file import attachments_of, loaded, open_octets
from relay.store.mailbox.messages import Messages
from relay.store.mailbox.store_part import StorePart, in_thread

# limit of Graph: attachments of a message
ATTACHMENTS_MAX = 250


class _IsThereError(Exception):
    """The attachment to add already exists."""


@dataclass(kw_only=True, eq=False, repr=False)
class Attachments(StorePart):
    """The attachments of messages. open_if_there(), add_part() and check() block.

    `limit_bytes` applies to all attachments of a draft together. Methods that add or remove one
    raise NoSuchItemError, NotADraftError, BeingSentError, MessageChangedError,
    AttachmentsTooLargeError, MailboxFullError, StoreUnavailableError.
    """

    messages: Messages

    @in_thread
    def opened(
        self, account: str, message_id: str, *, folder_id: str = ""
    ) -> stored_message.OpenedMessage:
        """Return a message and its attachments, readable as long as the result is referenced.

        Raises NoSuchItemError.
        """
        return self._opened(account, message_id, folder_id)

    @retry_if_renamed
    def _opened(
        self, account: str, message_id: str, folder_id: str = "", *, extent: ReadExtent = WHOLE
    ) -> stored_message.OpenedMessage:
        mailbox = self.folders.mailbox(account)
        located = self.index.get(mailbox, message_id, folder_id=folder_id)
        octets = open_octets(located.path)
        return stored_message.OpenedMessage(loaded(located, extent), attachments_of(octets), octets)

    def open_if_there(
        self, account: str, message_id: str, *, folder_id: str = "", extent: ReadExtent
    ) -> stored_message.OpenedMessage | None:
        """Return what opened() does, None if the message was removed. Blocks; raises OSError."""
        try:
            return self._opened(account, message_id, folder_id, extent=extent)
        except NoSuchItemError:
            return None
        except StoreUnavailableError as error:
            raise OSError(str(error)) from error

    @in_thread
    def add(
        self,
        account: str,
        message_id: str,
        attachment: Attachment,
        *,
        limit_bytes: int,
        condition: stored_message.Precondition = stored_message.NO_PRECONDITION,
    ) -> str:
        """Add an attachment to a draft; return its id."""
        new = draft_attachment(attachment, identity=self.names.ids.new())
        self.add_part(account, message_id, new, limit_bytes=limit_bytes, condition=condition)
        return new.part.id

    def add_part(
        self,
        account: str,
        message_id: str,
        new: DraftAttachment,
        *,
        limit_bytes: int,
        condition: stored_message.Precondition = stored_message.NO_PRECONDITION,
    ) -> None:
        """Add an attachment to a draft; one with an id that the draft has changes nothing."""

        def make(stored: Octets, identity: draft_files.DraftIdentity) -> draft_files.ComposedDraft:
            kept = [attachment.facts for attachment in attachments_of(stored)]
            if any(facts.id == new.part.id for facts in kept):
                raise _IsThereError
            check_sizes([*(facts.size for facts in kept), new.part.size], limit_bytes)
            return draft_files.with_attachment(stored, identity, new=new)

        with suppress(_IsThereError):
            self.messages.change(account, message_id, make, condition=condition)

    @in_thread
    def remove(
        self,
        account: str,
        message_id: str,
        attachment_id: str,
        *,
        condition: stored_message.Precondition = stored_message.NO_PRECONDITION,
    ) -> None:
        """Remove an attachment from a draft."""

        def make(stored: Octets, identity: draft_files.DraftIdentity) -> draft_files.ComposedDraft:
            ids = [attachment.facts.id for attachment in attachments_of(stored)]
            if attachment_id not in ids:
                raise no_such_attachment(attachment_id)
            number = ids.index(attachment_id)
            return draft_files.without_attachment(stored, identity, number=number)

        self.messages.change(account, message_id, make, condition=condition)

    def check(
        self,
        account: str,
        message_id: str,
        *,
        size_bytes: int,
        limit_bytes: int,
        condition: stored_message.Precondition = stored_message.NO_PRECONDITION,
    ) -> stored_message.StoredMessage:
        """Return the draft if an attachment of this size can be added.

        Raises what add() raises.
        """
        message = loaded(self.messages.draft(account, message_id, condition=condition).located)
        check_sizes([*(facts.size for facts in message.attachments), size_bytes], limit_bytes)
        return message


def found_attachment(attachments: Sequence[AttachedOctets], attachment_id: str) -> AttachedOctets:
    """Return the attachment with this id. Raises NoSuchItemError."""
    for attachment in attachments:
        if attachment.facts.id == attachment_id:
            return attachment
    raise no_such_attachment(attachment_id)


def no_such_attachment(attachment_id: str) -> NoSuchItemError:
    """Return the error for an unknown attachment id."""
    return NoSuchItemError(f"The message has no attachment {attachment_id!r}.")


def check_sizes(sizes: Sequence[int], limit_bytes: int) -> None:
    """Raise AttachmentsTooLargeError if a message cannot have attachments of these sizes."""
    if sum(sizes) > limit_bytes:
        raise AttachmentsTooLargeError(
            f"The message exceeds the maximum supported size: its attachments would have "
            f"{sum(sizes)} bytes, expected at most {limit_bytes}."
        )
    if len(sizes) > ATTACHMENTS_MAX:
        raise AttachmentsTooLargeError(
            f"The message would have {len(sizes)} attachments, expected at most {ATTACHMENTS_MAX}."
        )
