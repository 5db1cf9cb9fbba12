"""The format of the files of drafts: compose them, and their next generations.

A draft's id, Message-ID and Date are assigned once and kept in every generation. Of a large file
only the requested parts are in memory. Reading blocks; raises OSError. See Graph's message.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from relay.base.clock import Clock, Ids
from relay.base.files import FileOctets
from relay.base.message import content as contents
from relay.base.message.address import own_mailbox
from relay.base.message.conversation import new_index, thread_of
from relay.base.message.extended_properties import MessageRecord
from relay.base.message.header import header_end, header_section
from relay.base.message.properties import EmailAddress, MessageProperties
from relay.formats import draft as drafts
from relay.formats.edit_attachments import add_part, remove_part
from relay.formats.edit_draft import NotEditableError, changed_mime
from relay.formats.read_header import parse_header, read_properties_of_header
from relay.formats.read_mime import read_message
from relay.formats.write_header import is_message_id
from relay.store.journeys.submission_log import SubmissionFacts
from relay.store.mailbox import message_file
from relay.store.mailbox.errors import NotADraftError
from relay.store.mailbox.keywords import convert_keywords
from relay.store.mailbox.maildir import AnyPath, open_written, write_file
from relay.store.mailbox.pending_submission import PendingSubmission, SendOptions
from relay.store.mailbox.stored_message import Folder


class DraftIdentity(Struct, frozen=True):
    """What stays the same from one generation of a draft to the next; times in µs."""

    account: str  # the address of the mailbox
    message_id: str  # the Graph id
    hostname: str  # of its Message-ID
    created_us: int  # wall clock time
    modified_us: int  # wall clock time
    generation: int = 1  # counts the files of the draft
    internet_message_id: str = ""  # with its angle brackets; "": made of the id
    options: SendOptions = SendOptions()  # of its submission

    @property
    def base_name(self) -> str:
        """The base name of the draft's file."""
        return message_file.make_base_name(
            self.message_id, self.generation, time_us=self.created_us, hostname=self.hostname
        )


class NewNames(Struct, frozen=True):
    """Gives new messages their ids and the names of their files."""

    clock: Clock
    ids: Ids
    hostname: str

    def identity(self, account: str, options: SendOptions | None = None) -> DraftIdentity:
        """Return the identity of a new draft, or of one submitted with these options."""
        now_us = self.clock.time_us()
        return DraftIdentity(
            account=account,
            message_id=self.ids.new(),
            hostname=self.hostname,
            created_us=now_us,
            modified_us=now_us,
            options=options or SendOptions(),
        )

    def of_record(self, account: str, record: MessageRecord) -> DraftIdentity:
        """Return the identity of a message that is not a draft.

        Its id is not a clock id, so that its times are those of the record.
        """
        identity = self.identity(account)
        received_us = identity.created_us if record.received_us is None else record.received_us
        return replace(
            identity,
            message_id=message_file.delivered_id(identity.message_id),
            created_us=min(max(received_us, 0), message_file.TIME_US_MAX),
            modified_us=received_us if record.sent_us is None else record.sent_us,
        )

    def next_identity(
        self,
        account: str,
        located: message_file.MessageFile,
        stored: contents.Octets,
        *,
        options: SendOptions | None = None,
    ) -> DraftIdentity:
        """Return the identity of the next generation of the draft in `stored`, or of one submitted
        with these options. Reading blocks; raises OSError.
        """
        identity = self.identity(account, options)
        block, _ = drafts.read_private_block(stored)
        stored_id = block.origin.message_id if block else ""
        return replace(
            identity,
            message_id=located.message_id,
            generation=located.generation + 1,
            created_us=block.origin.created_us if block else identity.created_us,
            internet_message_id=stored_id or read_message(stored).properties.internet_message_id,
        )

    def of_copy(self, name: message_file.MessageName) -> str:
        """Return a base name for a copy. It has no clock id, so that the copy keeps its time of
        receipt.
        """
        copy_id, time_us = message_file.delivered_id(self.ids.new()), name.seconds * 1_000_000
        return message_file.make_base_name(copy_id, 1, time_us=time_us, hostname=self.hostname)


class ComposedDraft(Struct, frozen=True):
    """A draft's file.

    `properties` are the source of the content, None for MIME. `written` is the path of a file that
    exists already but is not synced; None if it must still be written.
    """

    identity: DraftIdentity
    content: contents.Content
    properties: MessageProperties | None = None
    written: Path | None = None

    @property
    def size(self) -> int:
        """The file's size."""
        return contents.size_of(self.content)

    @property
    def name_with_size(self) -> str:
        """The file's name without its flags."""
        return f"{self.identity.base_name},S={self.size}"

    def write(self, path: AnyPath) -> int:
        """Write the file, unless it is already written; return its descriptor, not synced."""
        return open_written(path) if self.written else write_file(path, self.content)


def compose(
    content: MessageProperties | bytes | contents.Octets,
    identity: DraftIdentity,
    kept: Sequence[drafts.DraftAttachment] = (),
    *,
    mime_properties: drafts.MimeDraftProperties | None = None,
) -> ComposedDraft:
    """Compose the file of a draft from properties, with attachments of another file, or from MIME.

    `mime_properties` has the properties that MIME cannot hold. Reading blocks; raises OSError.
    """
    message_id = identity.internet_message_id
    if isinstance(content, MessageProperties):
        origin = _origin(identity, content.internet_message_id or message_id)
        properties = _owned(content, origin)
        written = drafts.draft_content(properties, origin, kept)
        return ComposedDraft(identity, written, properties)
    origin = _origin(identity, message_id)
    written = _after_block(drafts.mime_draft_block(origin, mime_properties), content)
    return ComposedDraft(identity, written)


class DraftHead(Struct, frozen=True):
    """The beginning of the file of a draft whose MIME is still being received."""

    identity: DraftIdentity
    block: bytes

    def arrived(self, file: FileOctets, beginning: bytes) -> ComposedDraft:
        """Return the draft that was written to `file`.

        `beginning` is the beginning of its MIME, with the whole header.
        """
        header = self.block + beginning[: header_end(beginning).header]
        body = file.part(len(header), file.size - len(header))
        content = contents.LargeContent(header, (body,), eight_bit=True)
        return ComposedDraft(self.identity, content, written=file.path)


def draft_head(identity: DraftIdentity) -> DraftHead:
    """Return the beginning of a draft whose MIME is still being received."""
    origin = _origin(identity, identity.internet_message_id)
    return DraftHead(identity, drafts.mime_draft_block(origin))


def _origin(identity: DraftIdentity, message_id: str) -> drafts.DraftOrigin:
    """Return the private block's values; `message_id` is the Message-ID if it is valid."""
    return drafts.DraftOrigin(
        account=identity.account,
        base_name=identity.base_name,
        message_id=message_id
        if is_message_id(message_id)
        else f"<{identity.message_id}@{identity.hostname}>",
        created_us=identity.created_us,
        modified_us=identity.modified_us,
        save_to_sent_items=identity.options.save_to_sent_items,
        sent_folder=identity.options.sent_folder,
        on_behalf_of=identity.options.on_behalf_of,
        scheduled_us=identity.options.scheduled_us,
    )


def _after_block(block: bytes, content: bytes | contents.Octets) -> contents.Content:
    """Return the file of a draft from MIME, which may be large."""
    if isinstance(content, bytes):
        return block + content
    if content.size <= contents.LARGE_BYTES:
        return block + content.read(0, content.size)
    end = header_end(content.read(0, contents.LARGE_BYTES)).header
    header, body = content.read(0, end), content.part(end, content.size - end)
    return contents.LargeContent(block + header, (body,), eight_bit=True)


def facts_of(draft: ComposedDraft, submission_id: str) -> SubmissionFacts:
    """Return what is logged about a draft that was just composed."""
    if draft.properties is None:
        return submission_facts(contents.memory_part(draft.content), submission_id)
    account = draft.identity.account
    return _facts(draft.properties, submission_id, account=account, message_id="")


def submission_facts(head: bytes, submission_id: str) -> SubmissionFacts:
    """Return what is logged about a submitted draft.

    `head` is its file, or at least the private block and the header.
    """
    block = drafts.read_block(head)
    if block is not None and block.properties is not None:
        properties = block.properties
    else:
        length = drafts.private_block_length(head) if block else 0
        fields = parse_header(header_section(head[length:]))
        properties = read_properties_of_header(fields, is_stored=False)
    account = block.origin.account if block else ""
    message_id = block.origin.message_id if block else ""
    return _facts(properties, submission_id, account=account, message_id=message_id)


def _facts(
    properties: MessageProperties, submission_id: str, *, account: str, message_id: str
) -> SubmissionFacts:
    """Return what is logged. `message_id` is used if the message has no Message-ID."""
    recipients = (*properties.to, *properties.cc, *properties.bcc)
    return SubmissionFacts(
        submission_id=submission_id,
        graph_id=submission_id.partition(".")[0],
        account=account,
        sender=(properties.from_ and properties.from_.address) or account,
        message_id=properties.internet_message_id or message_id,
        subject=properties.subject,
        recipients=tuple(
            dict.fromkeys(recipient.address for recipient in recipients if recipient.address)
        ),
    )


@contextmanager
def _not_editable_errors() -> Iterator[None]:
    """Convert NotEditableError to NotADraftError."""
    try:
        yield
    except NotEditableError as error:
        raise NotADraftError(str(error)) from None


@_not_editable_errors()
def next_generation(
    stored: contents.Octets, identity: DraftIdentity, *, change: MessageProperties | None
) -> ComposedDraft:
    """Compose a draft's next generation, changed by `change` or unchanged, with its attachments.

    MIME stays MIME. Reading blocks; raises NotADraftError for a change of a signed body, and
    OSError.
    """
    block, length = drafts.read_private_block(stored)
    if block is not None and block.properties is not None:
        properties = change or read_message(stored).properties
        return compose(properties, identity, drafts.stored_attachments(stored))
    content: contents.Octets = stored.part(length, stored.size - length)
    if change is None:
        return compose(content, identity, mime_properties=block.beside if block else None)
    before = drafts.with_defaults(read_message(stored).properties, block)
    content = changed_mime(content, before, change)
    mime_properties = drafts.MimeDraftProperties(
        change.delivery_receipt,
        change.extended,
        block.beside.attachment_ids if block and block.beside else (),
    )
    return compose(content, identity, mime_properties=mime_properties)


@_not_editable_errors()
def with_attachment(
    stored: contents.Octets, identity: DraftIdentity, *, new: drafts.DraftAttachment
) -> ComposedDraft:
    """Compose a draft's next generation with one more attachment. Like next_generation()."""
    block, length = drafts.read_private_block(stored)
    if block is not None and block.properties is not None:
        kept = drafts.stored_attachments(stored)
        return compose(read_message(stored).properties, identity, (*kept, new))
    added = add_part(stored.part(length, stored.size - length), new)
    ids = [attachment.facts.id for attachment in message_file.attachments_of(stored)]
    ids.insert(added.number, new.part.id)
    return compose(added.content, identity, mime_properties=_with_ids(block, ids))


@_not_editable_errors()
def without_attachment(
    stored: contents.Octets, identity: DraftIdentity, *, number: int
) -> ComposedDraft:
    """Compose a draft's next generation without the attachment of this index. Like
    next_generation().
    """
    block, length = drafts.read_private_block(stored)
    if block is not None and block.properties is not None:
        rest = list(drafts.stored_attachments(stored))
        del rest[number]
        return compose(read_message(stored).properties, identity, rest)
    content = remove_part(stored.part(length, stored.size - length), number)
    ids = [attachment.facts.id for attachment in message_file.attachments_of(stored)]
    del ids[number]
    return compose(content, identity, mime_properties=_with_ids(block, ids))


def _with_ids(block: drafts.PrivateBlock | None, ids: Sequence[str]) -> drafts.MimeDraftProperties:
    properties = block.beside if block and block.beside else drafts.MimeDraftProperties()
    return replace(properties, attachment_ids=tuple(ids))


def _owned(properties: MessageProperties, origin: drafts.DraftOrigin) -> MessageProperties:
    """Set From and Sender where the draft has none.

    Without From, the owner of the mailbox becomes both. If the draft is sent on behalf of From,
    Sender is the owner. Otherwise a missing Sender is decided when the draft is sent.
    """
    sender = properties.sender
    owner = own_mailbox(origin.on_behalf_of)
    if owner and properties.from_ and own_mailbox(properties.from_.address) == owner:
        sender = sender or EmailAddress(origin.account)
    from_ = properties.from_ or sender or EmailAddress(origin.account)
    return replace(
        properties,
        from_=from_,
        sender=sender or (None if properties.from_ else from_),
        internet_message_id=origin.message_id,
        conversation_index=properties.conversation_index or _new_index(properties, origin),
    )


def _new_index(properties: MessageProperties, origin: drafts.DraftOrigin) -> str:
    thread = thread_of(
        origin.message_id, in_reply_to=properties.in_reply_to, references=properties.references
    )
    return new_index(thread, time_us=origin.created_us)


class Before(Struct, frozen=True):
    """A message before a change: its file, and its submission if it is a scheduled send.

    `options` are those of the submission after the change, without a time if that cancels it.
    """

    account: str
    mailbox: Path
    located: message_file.MessageFile
    submission: PendingSubmission | None
    options: SendOptions


def in_folder(
    located: message_file.MessageFile, folder: Folder, base: str
) -> message_file.MessageFile:
    """Return the file of a message after a move to `folder` under a base name."""
    flags = convert_keywords(located.name.flags, located.folder.path, folder.path)
    name = message_file.parse_name(f"{base}:2,{flags}")
    assert name is not None
    return replace(located, folder=folder, directory=folder.path / "cur", name=name)
