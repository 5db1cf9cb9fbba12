"""The attachments of stored messages: open them, add them to drafts, remove them.

No attachment is held in memory. A changed draft is a new file, and the old one is removed. Methods
raise StoreError's children and OSError. Graph's attachment resource type.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress

from relay.mailbox.dependencies import StoreDependencies
from relay.mailbox.draft_files import (
    ComposedDraft,
    DraftIdentity,
    with_attachment,
    without_attachment,
)
from relay.mailbox.maildir import retry_if_renamed
from relay.mailbox.message_file import (
    MessageFile,
    attachment_ids,
    loaded,
    open_octets,
    stored_attachment,
)
from relay.mailbox.messages import Messages
from relay.mailbox.types import (
    NO_PRECONDITION,
    AttachmentsTooLargeError,
    NoSuchItemError,
    NotADraftError,
    OpenAttachment,
    OpenedMessage,
    Precondition,
    StoredMessage,
    StoreUnavailableError,
)
from relay.mime.draft import DraftAttachment
from relay.mime.edit_draft import NotEditableError
from relay.mime.read_mime import read_attachments

ATTACHMENTS_MAX = 250


class _IsThereError(Exception):
    """The attachment to add already exists."""


class Attachments:
    """Reads and changes attachments. Blocking: the store calls it in its threads."""

    def __init__(self, dependencies: StoreDependencies, messages: Messages) -> None:
        self._shared = dependencies
        self._messages = messages

    @retry_if_renamed
    def opened(self, account: str, message_id: str, *, folder_id: str = "") -> OpenedMessage:
        """Return a message and its attachments, readable as long as the result is referenced.

        Raises NoSuchItemError.
        """
        mailbox = self._shared.folders.mailbox(account)
        located = self._shared.index.get(mailbox, message_id, folder_id=folder_id)
        octets = open_octets(located)
        found = tuple(
            OpenAttachment(stored_attachment(one.facts, number), one.octets, one.encoding)
            for number, one in enumerate(read_attachments(octets))
        )
        return OpenedMessage(loaded(located), found, octets)

    def open_if_there(
        self, account: str, message_id: str, *, folder_id: str = ""
    ) -> OpenedMessage | None:
        """Return what opened() does, None if the message was removed. Raises OSError."""
        try:
            return self.opened(account, message_id, folder_id=folder_id)
        except NoSuchItemError:
            return None
        except StoreUnavailableError as error:
            raise OSError(str(error)) from error

    def add(
        self,
        account: str,
        message_id: str,
        new: DraftAttachment,
        *,
        limit_bytes: int,
        condition: Precondition = NO_PRECONDITION,
    ) -> StoredMessage:
        """Add an attachment to a draft; one with an id that the draft has changes nothing."""

        def make(located: MessageFile, identity: DraftIdentity) -> ComposedDraft:
            stored = open_octets(located)
            kept = read_attachments(stored)
            if new.part.id in attachment_ids(kept):
                raise _IsThereError
            check_sizes([*(one.facts.size for one in kept), new.part.size], limit_bytes)
            return with_attachment(located, stored, identity, new=new)

        with suppress(_IsThereError):
            return self._changed(account, message_id, make, condition=condition)
        return self.opened(account, message_id).message

    def remove(
        self,
        account: str,
        message_id: str,
        attachment_id: str,
        *,
        condition: Precondition = NO_PRECONDITION,
    ) -> StoredMessage:
        """Remove an attachment from a draft."""

        def make(located: MessageFile, identity: DraftIdentity) -> ComposedDraft:
            stored = open_octets(located)
            ids = attachment_ids(read_attachments(stored))
            if attachment_id not in ids:
                raise no_such_attachment(attachment_id)
            number = ids.index(attachment_id)
            return without_attachment(located, stored, identity, number=number)

        return self._changed(account, message_id, make, condition=condition)

    def check(
        self,
        account: str,
        message_id: str,
        *,
        size_bytes: int,
        limit_bytes: int,
        condition: Precondition = NO_PRECONDITION,
    ) -> StoredMessage:
        """Return the draft if an attachment of this size can be added.

        Raises what add() raises.
        """
        mailbox = self._shared.folders.mailbox(account)
        message = loaded(self._messages.draft(mailbox, message_id, condition=condition).located)
        check_sizes([*(one.size for one in message.attachments), size_bytes], limit_bytes)
        return message

    def _changed(
        self,
        account: str,
        message_id: str,
        make: Callable[[MessageFile, DraftIdentity], ComposedDraft],
        *,
        condition: Precondition,
    ) -> StoredMessage:
        try:
            return self._messages.change(account, message_id, make, condition=condition)
        except NotEditableError as error:
            raise NotADraftError(str(error)) from None


def found_attachment(attachments: Sequence[OpenAttachment], attachment_id: str) -> OpenAttachment:
    """Return the attachment with this id. Raises NoSuchItemError."""
    for one in attachments:
        if one.attachment.id == attachment_id:
            return one
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
