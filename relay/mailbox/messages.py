"""Create, read, query and change messages.

A file is never rewritten in place: a change writes a new file and then removes the old one. Methods
raise StoreError's children and OSError; after an error nothing is half-written.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from relay.crashpoints import CrashPoint
from relay.mailbox.dependencies import StoreDependencies
from relay.mailbox.draft_files import ComposedDraft, DraftIdentity, compose, next_generation
from relay.mailbox.folders import find_folder
from relay.mailbox.maildir import (
    named_in_order,
    open_written,
    place,
    remove,
    retry_if_renamed,
    write_file,
)
from relay.mailbox.message_file import (
    FLAGGED,
    NEW_DRAFT,
    OTHER,
    SEEN,
    MessageFile,
    load,
    loaded,
    open_octets,
    parse_name,
    with_flags,
)
from relay.mailbox.query import DeltaQuery, MessageQuery
from relay.mailbox.stale_files import StaleFiles
from relay.mailbox.threads import QueryTimeLimit
from relay.mailbox.types import (
    NO_PRECONDITION,
    DeltaPage,
    Folder,
    MessageChange,
    MessageDelta,
    NoSuchItemError,
    NotADraftError,
    Page,
    PendingSubmission,
    Precondition,
    StoredMessage,
)
from relay.message.content import Content, MemoryOctets, memory_part
from relay.message.properties import MessageProperties
from relay.mime.convert import render
from relay.mime.draft import DraftAttachment
from relay.mime.read_mime import read_message


@dataclass(frozen=True, slots=True)
class Before:
    """A draft before a change: its file, and its submission if it is a scheduled send."""

    mailbox: Path
    located: MessageFile
    submission: PendingSubmission | None


class Messages:
    """Reads and changes messages. Blocking: the store calls it in its threads."""

    def __init__(self, dependencies: StoreDependencies, stale_files: StaleFiles) -> None:
        self._shared = dependencies
        self._stale_files = stale_files

    def create(
        self,
        account: str,
        content: MessageProperties | bytes,
        *,
        folder_id: str = "drafts",
        kept: Sequence[DraftAttachment] = (),
    ) -> StoredMessage:
        """See MailStore.create_draft()."""
        mailbox = self._shared.folders.mailbox(account)
        self._stale_files.clean(mailbox)
        folder = find_folder(mailbox, folder_id)
        return self.create_composed(
            compose(content, self._shared.identity(account), kept), mailbox, folder
        )

    def create_composed(self, draft: ComposedDraft, mailbox: Path, folder: Folder) -> StoredMessage:
        """Write a new draft. If its file is already written, it is in the folder's tmp/."""
        account = draft.account
        with self._shared.quota.room_for(account, mailbox, draft.size, base_name=draft.base_name):
            located = self._write(draft, folder, flags=NEW_DRAFT)
        return self._written(located, draft)

    @retry_if_renamed
    def get(self, account: str, message_id: str, *, folder_id: str = "") -> StoredMessage:
        """See MailStore.get()."""
        mailbox = self._shared.folders.mailbox(account)
        return loaded(self._shared.index.get(mailbox, message_id, folder_id=folder_id))

    def query(self, account: str, query: MessageQuery, limit: QueryTimeLimit | None = None) -> Page:
        """See MailStore.query_messages(). A page also ends early when the time limit is reached."""
        limit = limit or QueryTimeLimit(self._shared.clock)
        limit.check()
        mailbox = self._shared.folders.mailbox(account)
        found = self._shared.index.query(mailbox, query, limit)
        messages: list[StoredMessage] = []
        positions: list[str] = []
        left_bytes, next_after = query.bytes_max, ""
        for hit in found.hits:
            if messages and (left_bytes <= 0 or limit.is_over()):
                break
            next_after = hit.position
            if (message := self._listed(mailbox, hit.located, query.folder_id)) is not None:
                messages.append(message)
                positions.append(next_after)
                left_bytes -= message.memory_bytes
        else:
            next_after = next_after if found.more else ""
        return Page(tuple(messages), found.total, next_after, tuple(positions))

    def delta(self, account: str, query: DeltaQuery, limit: QueryTimeLimit) -> DeltaPage:
        """See MailStore.message_delta(). A page ends early for the same reasons as in query()."""
        limit.check()
        mailbox = self._shared.folders.mailbox(account)
        found = self._shared.index.delta(mailbox, query, limit)
        changed: list[MessageDelta] = []
        left_bytes = query.bytes_max
        for one in found.changed:
            if changed and (left_bytes <= 0 or limit.is_over()):
                return DeltaPage(tuple(changed), one.position, more=True)
            message = None
            if one.located is not None:
                message = self._listed(mailbox, one.located, query.folder_id)
                if message is None:  # the feed has a later change of it
                    continue
                left_bytes -= message.memory_bytes
            changed.append(MessageDelta(one.message_id, one.kind, one.position, message))
        return DeltaPage(tuple(changed), found.position, found.more)

    def _listed(self, mailbox: Path, located: MessageFile, folder_id: str) -> StoredMessage | None:
        """Load a message of a listing, None if it was removed in the meantime."""
        with suppress(FileNotFoundError):
            return loaded(located)
        with suppress(FileNotFoundError, NoSuchItemError):  # renamed in the meantime
            return loaded(self._shared.index.get(mailbox, located.message_id, folder_id=folder_id))
        return None

    @retry_if_renamed
    def _shown(self, located: MessageFile) -> StoredMessage:
        """Load a message that was just written, even if it was renamed or moved since."""
        with suppress(FileNotFoundError):
            return loaded(located)
        mailbox = located.folder.path.parent
        return loaded(self._shared.index.get(mailbox, located.message_id))

    @retry_if_renamed
    def mime(self, account: str, message_id: str) -> Content:
        """See MailStore.mime()."""
        mailbox = self._shared.folders.mailbox(account)
        return render(open_octets(self._shared.index.get(mailbox, message_id)))

    @retry_if_renamed
    def update(
        self,
        account: str,
        message_id: str,
        change: MessageChange,
        *,
        condition: Precondition = NO_PRECONDITION,
    ) -> StoredMessage:
        """See MailStore.update()."""
        mailbox = self._shared.folders.mailbox(account)
        with self._shared.stripes.of(message_id):
            located = self._shared.found(mailbox, message_id, condition)
            submission = self._shared.scheduled.scheduled_submission(message_id, located)
            flags = located.name.flags
            for flag, wanted in (
                *((SEEN, change.is_read), (FLAGGED, change.flagged)),
                (OTHER, change.is_other),
            ):
                if wanted is not None:
                    flags = with_flags(flags, **{"add" if wanted else "remove": flag})
            if change.properties is None:
                return loaded(self._with_flags(located, flags))
            if not located.is_draft:
                raise NotADraftError("Only a draft's content can be changed.")
            self._stale_files.clean(mailbox)
            stored = open_octets(located)
            if submission is not None:
                before = read_message(stored).properties
                submission = self._shared.scheduled.changed(
                    submission, before.extended, change.properties.extended
                )
            identity = self._shared.identity(account, submission.options if submission else None)
            draft = next_generation(located, stored, identity, change=change.properties)
            return self.replace(Before(mailbox, located, submission), draft, flags=flags)

    @retry_if_renamed
    def change(
        self,
        account: str,
        message_id: str,
        make: Callable[[MessageFile, DraftIdentity], ComposedDraft],
        *,
        condition: Precondition = NO_PRECONDITION,
    ) -> StoredMessage:
        """Replace a draft by what `make` composes from its file and its next identity.

        Raises NoSuchItemError, NotADraftError, BeingSentError, MessageChangedError,
        MailboxFullError, and what `make` raises.
        """
        mailbox = self._shared.folders.mailbox(account)
        self._stale_files.clean(mailbox)
        with self._shared.stripes.of(message_id):
            before = self.draft(mailbox, message_id, condition=condition)
            submission, located = before.submission, before.located
            draft = make(
                located, self._shared.identity(account, submission.options if submission else None)
            )
            return self.replace(before, draft, flags=located.name.flags)

    def draft(
        self, mailbox: Path, message_id: str, *, condition: Precondition = NO_PRECONDITION
    ) -> Before:
        """Find a draft that can be changed.

        Raises NoSuchItemError, NotADraftError, BeingSentError, MessageChangedError.
        """
        located = self._shared.found(mailbox, message_id, condition)
        submission = self._shared.scheduled.scheduled_submission(message_id, located)
        if not located.is_draft:
            raise NotADraftError("Only a draft's content can be changed.")
        return Before(mailbox, located, submission)

    def replace(self, before: Before, draft: ComposedDraft, *, flags: str) -> StoredMessage:
        """Write a draft's next generation. The caller holds the message's lock.

        If its file is already written, it is in the tmp/ of the draft's folder.
        """
        located, submission = before.located, before.submission
        growth = draft.size - located.path.stat().st_size
        quota = self._shared.quota
        with quota.room_for(
            draft.account, before.mailbox, growth, base_name=draft.base_name, messages=0
        ):
            if submission is None:
                changed = self._write(draft, located.folder, flags=flags)
            else:
                changed = self._write_scheduled(draft, located, submission, flags=flags)
        remove(located.path)
        if submission is not None:
            self._shared.scheduled.finish_replace(submission)
        return self._written(changed, draft)

    def _write_scheduled(
        self,
        draft: ComposedDraft,
        before: MessageFile,
        submission: PendingSubmission,
        *,
        flags: str,
    ) -> MessageFile:
        """Rewrite the draft of a scheduled send: first its submission becomes the new file.

        Raises BeingSentError.
        """

        def replace_submission(temporary: Path) -> None:
            self._shared.scheduled.replace(submission, temporary, memory_part(draft.content))

        try:
            return self._write(draft, before.folder, flags=flags, on_written=replace_submission)
        except OSError:
            with suppress(OSError):
                self._shared.scheduled.undo_replace(submission, before.path)
            raise

    def _write(
        self,
        draft: ComposedDraft,
        folder: Folder,
        *,
        flags: str,
        on_written: Callable[[Path], None] = lambda _path: None,
    ) -> MessageFile:
        """Write a draft's file durably: tmp, fsync, link, fsync of the directory.

        `on_written` is called with the file before it is linked to its final name, and may create
        other links to it.
        """
        directory = folder.path / "cur"
        temporary = draft.written or folder.path / "tmp" / draft.base_name
        name = parse_name(f"{draft.name_with_size}:2,{with_flags(flags)}")
        assert name is not None
        located = MessageFile(folder, directory, name, name.message_id, name.generation)
        try:
            if draft.written:
                descriptor = open_written(temporary)
            else:
                descriptor = write_file(temporary, draft.content)
            with named_in_order(descriptor):
                on_written(temporary)
                place(temporary, located.path)
                self._shared.crash.reached(CrashPoint.DRAFT_REPLACED)
            self._shared.syncs.sync(directory)
        except OSError:
            self._shared.root.remove(located.path)
            raise
        finally:
            remove(temporary)
        return located

    def _written(self, located: MessageFile, draft: ComposedDraft) -> StoredMessage:
        """Return the message just written, which a mail client may have renamed since."""
        if isinstance(draft.content, bytes):
            stored = MemoryOctets(draft.content)
            return load(located, stored, mtime_us=self._shared.clock.time_us())
        return self._shown(located)

    def _with_flags(self, located: MessageFile, flags: str) -> MessageFile:
        """Rename a file to have these flags. A file in new/ moves to cur/."""
        if flags == located.name.flags and located.directory.name == "cur":
            return located
        name = parse_name(f"{located.name.name_with_size}:2,{with_flags(flags)}")
        assert name is not None
        changed = replace(located, directory=located.folder.path / "cur", name=name)
        located.path.rename(changed.path)
        for directory in {located.directory, changed.directory}:
            self._shared.syncs.sync(directory)
        return changed
