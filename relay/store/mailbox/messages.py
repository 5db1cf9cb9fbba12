"""Messages: create, read, change, move, copy and delete them.

No file is rewritten in place: a change of a draft writes a new file and then removes the old one. A
moved message keeps its id and its file, and no file is replaced. What changes of other messages is
their state (message_state.py), which is stored separately. Methods raise StoreError's children, the
blocking ones OSError too; after an error nothing is half-written. See Maildir and Graph's message.
"""

import os
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from msgspec.structs import replace

from relay.base.crashpoints import CrashPoint
from relay.base.message.content import Content, MemoryOctets, Octets, join_octets, memory_part
from relay.base.message.extended_properties import RECORDED, MessageRecord
from relay.base.message.properties import ExtendedProperty, MessageProperties
from relay.formats.convert import render
from relay.formats.draft import DraftAttachment
from relay.formats.read_mime import ReadExtent, read_message
from relay.store.mailbox import maildir
from relay.store.mailbox.draft_files import (
    Before,
    ComposedDraft,
    DraftIdentity,
    compose,
    in_folder,
    next_generation,
)
from relay.store.mailbox.errors import (
    NoSuchItemError,
    NotADraftError,
    StateTooLargeError,
    StoreError,
)
from relay.store.mailbox.folders import find_folder, is_deleted
from relay.store.mailbox.message_file import (
    FLAGGED,
    NEW_DRAFT,
    SEEN,
    MessageFile,
    load,
    loaded,
    open_octets,
    parse_name,
    with_flags,
)
from relay.store.mailbox.message_state import (
    NO_STATE,
    STATE_BYTES_MAX,
    MessageState,
    changed_state,
    content_of,
    encode_state,
    without_content,
)
from relay.store.mailbox.pending_submission import PendingSubmission, SendOptions
from relay.store.mailbox.store_part import StorePart, in_thread
from relay.store.mailbox.stored_message import (
    NO_PRECONDITION,
    Folder,
    MessageChange,
    Precondition,
    StoredMessage,
    WellKnown,
)

_LOOKS_MAX = 10  # for a file that is renamed meanwhile


_MakeState = Callable[[MessageState], MessageState]


class ScheduledDrafts(Protocol):
    """What the outbox does when a draft changes: it sends some drafts at a later time.

    Called under the draft's lock. Raises OSError, and BeingSentError if the draft is being sent.
    """

    def scheduled_submission(
        self, message_id: str, located: MessageFile
    ) -> PendingSubmission | None:
        """Return the scheduled send of a message, as its draft is; None if it durably has none."""

    def changed(
        self, draft: Before, before: Sequence[ExtendedProperty], after: Sequence[ExtendedProperty]
    ) -> Before:
        """Return the draft with the options that it has after a change of extended properties."""

    def prepare(self, submission: PendingSubmission | None, *, due_us: int = 0) -> None:
        """Prepare for a change of the draft, durably; `due_us` is its time then."""

    def follow(
        self, submission: PendingSubmission | None, file: Path | None, *, reason: str = ""
    ) -> None:
        """The draft is `file` now, durably; None: it was taken out of Drafts, for this reason."""


# Sends the read receipts of messages of an account, by their ids, that were marked as read; True:
# the client said that a receipt is to be sent. Returns whether one was sent. Raises SpoolError if
# one is wanted and cannot be sent. See relay/delivery/reports.
ReadListener = Callable[[str, Sequence[str], bool], Awaitable[bool]]


async def ignore_read(_account: str, _message_ids: Sequence[str], _is_wanted: bool, /) -> bool:
    """Send no receipt."""
    return False


def _same(state: MessageState) -> MessageState:
    return state


@dataclass(kw_only=True, eq=False, repr=False)
class Messages(StorePart):
    """The messages of all mailboxes. `account` is the canonical address of a mailbox.

    The coroutines are for the HTTP API; the other methods block, for the store's other parts. A
    `condition` is checked under the message's lock. If it is not met, NoSuchItemError or
    MessageChangedError is raised.
    """

    scheduled: ScheduledDrafts  # a change of a draft cancels or changes its send
    on_read: ReadListener = ignore_read  # awaited by those who mark messages as read
    # called in any thread with a message whose state is other than before
    on_state: Callable[[MessageFile], None] = lambda _message: None

    @in_thread
    def create(
        self,
        account: str,
        content: MessageProperties | bytes,
        *,
        folder_id: str = "drafts",
        kept: Sequence[DraftAttachment] = (),
    ) -> StoredMessage:
        """Write a draft (properties, or MIME kept byte for byte).

        `kept` are attachments of another message that follow those of the properties.

        Raises MailboxFullError, StoreUnavailableError, NoSuchItemError.
        """
        draft = compose(content, self.names.identity(account), kept)
        return self.create_composed(draft, folder_id)

    @in_thread
    def record(
        self, account: str, properties: MessageProperties, record: MessageRecord, *, folder_id: str
    ) -> StoredMessage:
        """Write a message that is not a draft. (In Drafts it is one, as every message there.)

        Its state has what MIME cannot hold. Raises what create() raises, and StateTooLargeError.
        """
        identity = self.names.of_record(account, record)
        written = compose(properties, identity).content
        body = () if isinstance(written, bytes) else written.body
        draft = ComposedDraft(identity, render(join_octets([memory_part(written), *body])))
        mailbox = self.folders.mailbox(account)
        self.old_files.clean(mailbox)
        folder = find_folder(mailbox, folder_id)
        kept = tuple(field for field in properties.extended if field.id not in RECORDED)
        state = self._state_maker(
            {"extended": kept or None, "delivery_receipt": properties.delivery_receipt or None}
        )(NO_STATE)
        size_bytes = draft.size + len(encode_state(state))
        with self.quota.room_for(account, mailbox, size_bytes, base_name=identity.base_name):
            if state != NO_STATE:
                self.index.states(mailbox).write({identity.message_id: state})
            located = self._write(
                mailbox,
                draft,
                folder,
                flags=SEEN if record.is_read else "",
                written_us=identity.created_us,
            )
        return loaded(replace(located, state=state, state_ids=(identity.message_id,)))

    def create_composed(self, draft: ComposedDraft, folder_id: str) -> StoredMessage:
        """Write a new draft. If its file is already written, it is in the folder's tmp/."""
        account = draft.identity.account
        mailbox = self.folders.mailbox(account)
        self.old_files.clean(mailbox)
        folder = find_folder(mailbox, folder_id)
        with self.quota.room_for(account, mailbox, draft.size, base_name=draft.identity.base_name):
            located = self._write(mailbox, draft, folder, flags=NEW_DRAFT)
        return self._written(mailbox, draft, located)

    @in_thread
    @maildir.retry_if_renamed
    def get(self, account: str, message_id: str, *, folder_id: str = "") -> StoredMessage:
        """Return a message, in any folder or only in `folder_id`. Raises NoSuchItemError."""
        mailbox = self.folders.mailbox(account)
        return loaded(self.index.get(mailbox, message_id, folder_id=folder_id))

    @in_thread
    def read_flags(self, account: str, message_ids: Sequence[str]) -> Mapping[str, bool]:
        """Return by id whether messages are read. Messages that are not in the mailbox are left
        out.
        """
        mailbox = self.folders.directory(account)
        return self.index.read_flags(mailbox, message_ids) if mailbox.is_dir() else {}

    @in_thread
    def mark(self, account: str, message_ids: Sequence[str], *, is_read: bool) -> Sequence[str]:
        """Mark messages as read or unread, durably. Return the ids of those that are in the
        mailbox.
        """
        mailbox = self.folders.mailbox(account)
        files = self.index.find_all(mailbox, message_ids)
        changed: set[Path] = set()
        for located in files:
            if (SEEN in located.name.flags) != is_read:
                changed |= self._marked(mailbox, located, is_read=is_read)
        for directory in changed:
            self.syncs.sync(directory)
        return [located.message_id for located in files]

    @in_thread
    def categories(
        self, account: str, new: Mapping[str, Sequence[str] | None], *, is_first: bool = False
    ) -> Mapping[str, Sequence[str]]:
        """Set the categories of messages, durably, and return those that they have then, by id.

        `new` has the new categories by message id; None only reads them. Messages that are not in
        the mailbox are left out. Drafts stay as they are, and with `is_first` also messages that
        a client has categorized.
        """
        mailbox, read = self.folders.directory(account), dict[str, Sequence[str]]()
        for located in self.index.find_all(mailbox, list(new)) if mailbox.is_dir() else ():
            values, is_set = new[located.message_id], located.state.categories is not None
            with self.stripes.of(located.message_id), suppress(NoSuchItemError, FileNotFoundError):
                if values is None or located.is_draft or (is_first and is_set):
                    values = loaded(located, ReadExtent(has_body=False)).properties.categories
                else:
                    make = self._state_maker({"categories": tuple(values)})
                    self.index.change_state(mailbox, located, make)
                read[located.message_id] = values
        return read

    def _marked(self, mailbox: Path, file: MessageFile, *, is_read: bool) -> set[Path]:
        """Mark a message that may be renamed or gone; return the directories that were changed."""
        located: MessageFile | None = file
        with self.stripes.of(file.message_id):
            for _ in range(_LOOKS_MAX):
                if located is None:
                    break
                with suppress(FileNotFoundError):
                    change = {"add" if is_read else "remove": SEEN}
                    flags = with_flags(located.name.flags, **change)
                    changed = self._flagged(located, flags)
                    located.path.rename(changed.path)
                    return {located.directory, changed.directory}
                located = self.index.find(mailbox, file.message_id)
        return set()

    @maildir.retry_if_renamed
    def _shown(self, mailbox: Path, located: MessageFile) -> StoredMessage:
        """Load a message that was just written, even if it was renamed or moved since."""
        with suppress(FileNotFoundError):
            return loaded(located)
        return loaded(self.index.get(mailbox, located.message_id))

    @in_thread
    @maildir.retry_if_renamed
    def mime(self, account: str, message_id: str) -> Content:
        """Return `$value`: MIME without the private block (a JSON draft is converted), Bcc kept.

        A large message is read from a file that stays open while the content is referenced.
        Raises NoSuchItemError.
        """
        mailbox = self.folders.inbox(account)
        return render(open_octets(self.index.get(mailbox, message_id).path))

    @in_thread
    @maildir.retry_if_renamed
    def as_delivered(self, account: str, message_ids: Collection[str]) -> Mapping[str, Content]:
        """Return mime() of messages, by id, if they are still where delivery has put them.

        The index of the mailbox is not asked, because it would have to read the messages first.
        """
        new = self.folders.inbox(account) / "new"
        names = {
            name.partition(".R")[2].partition("_")[0]: name for name in maildir.list_names(new)
        }
        return {
            message_id: render(open_octets(new / names[message_id]))
            for message_id in names.keys() & message_ids
        }

    @in_thread
    @maildir.retry_if_renamed
    def update(
        self,
        account: str,
        message_id: str,
        change: MessageChange,
        *,
        condition: Precondition = NO_PRECONDITION,
    ) -> StoredMessage:
        """PATCH. Properties without attachments keep the existing attachments.

        Raises NoSuchItemError, NotADraftError, BeingSentError, MailboxFullError,
        StoreUnavailableError.
        """
        with self.stripes.of(message_id):
            before = self._found(account, message_id, condition)
            located = before.located
            flags = located.name.flags
            for flag, is_set in {SEEN: change.is_read, FLAGGED: change.flagged}.items():
                if is_set is not None:
                    flags = with_flags(flags, **{"add" if is_set else "remove": flag})
            if change.properties is not None and not located.is_draft:
                raise NotADraftError("Only a draft's content can be changed.")
            make = self._state_maker(change.state)
            if change.properties is None:
                changed = self._with_flags(before, flags, make)
                return self._shown(before.mailbox, changed)
            stored = open_octets(located.path)
            if before.submission is not None:
                extended = read_message(stored).properties.extended
                before = self.scheduled.changed(before, extended, change.properties.extended)
            identity = self.names.next_identity(account, located, stored, options=before.options)
            draft = next_generation(stored, identity, change=change.properties)
            return self.replace(
                before, draft, flags=flags, make=lambda state: without_content(make(state))
            )

    @in_thread
    def is_scheduled(self, account: str, message_id: str) -> bool:
        """Whether a change of this message changes what is sent. Raises what update() raises."""
        return self._found(account, message_id, NO_PRECONDITION).submission is not None

    def _state_maker(self, values: Mapping[str, Any]) -> _MakeState:
        """Return a function that changes values of a state, and raises StateTooLargeError."""
        now_us = self.clock.time_us()

        def make(before: MessageState) -> MessageState:
            state = changed_state(before, values, now_us=now_us)
            size_bytes = len(encode_state(state))
            if size_bytes > STATE_BYTES_MAX and state is not before:
                raise StateTooLargeError(
                    f"The categories, extended properties and other properties of the message take "
                    f"{size_bytes} bytes; a message that is no draft may have {STATE_BYTES_MAX}."
                )
            return state

        return make

    def _change_state(
        self, mailbox: Path, located: MessageFile, make: _MakeState, *, undo: maildir.Undo
    ) -> MessageState:
        """Change a message's state, durably; add to `undo` what restores it."""
        state, before = self.index.change_state(mailbox, located, make)
        undo.append(partial(self.index.states(mailbox).restore, before))
        self.on_state(located)
        return state

    @maildir.retry_if_renamed
    def change(
        self,
        account: str,
        message_id: str,
        make: Callable[[Octets, DraftIdentity], ComposedDraft],
        *,
        condition: Precondition = NO_PRECONDITION,
    ) -> StoredMessage:
        """Replace a draft by what `make` composes from its file and its next identity.

        Raises NoSuchItemError, NotADraftError, BeingSentError, MessageChangedError,
        MailboxFullError, and what `make` raises.
        """
        with self.stripes.of(message_id):
            before = self.draft(account, message_id, condition=condition)
            located, stored = before.located, open_octets(before.located.path)
            identity = self.names.next_identity(account, located, stored, options=before.options)
            return self.replace(before, make(stored, identity), flags=located.name.flags)

    def draft(
        self, account: str, message_id: str, *, condition: Precondition = NO_PRECONDITION
    ) -> Before:
        """Find a draft that can be changed.

        Raises NoSuchItemError, NotADraftError, BeingSentError, MessageChangedError.
        """
        before = self._found(account, message_id, condition)
        if not before.located.is_draft:
            raise NotADraftError("Only a draft's content can be changed.")
        return before

    def _found(self, account: str, message_id: str, condition: Precondition) -> Before:
        mailbox = self.folders.mailbox(account)
        self.old_files.clean(mailbox)
        located = self.index.get_if(mailbox, message_id, condition)
        submission = self.scheduled.scheduled_submission(message_id, located)
        options = submission.options if submission else SendOptions()
        return Before(account, mailbox, located, submission, options)

    def replace(
        self, before: Before, draft: ComposedDraft, *, flags: str, make: _MakeState = _same
    ) -> StoredMessage:
        """Write a draft's next generation. The caller holds the message's lock.

        If its file is already written, it is in the tmp/ of the draft's folder. `make` changes the
        draft's state. Raises BeingSentError.
        """
        mailbox, located = before.mailbox, before.located
        state = make(located.state)
        # Until the new file is there, the state keeps the values that it has: a crash loses none.
        content = content_of(located.state)
        growth = draft.size - located.path.stat().st_size
        growth += len(encode_state(state)) - len(encode_state(located.state))
        with (
            self.quota.room_for(
                before.account, mailbox, growth, base_name=draft.identity.base_name, messages=0
            ),
            maildir.undone_after_errors() as undo,
        ):

            def on_written() -> None:
                if replace(state, **content) != located.state:
                    self._change_state(
                        mailbox,
                        located,
                        lambda message: replace(make(message), **content),
                        undo=undo,
                    )
                self.scheduled.prepare(before.submission, due_us=before.options.scheduled_us)

            changed = self._write(
                mailbox,
                draft,
                located.folder,
                flags=flags,
                replaced=located.path,
                on_written=on_written,
            )
            if content:
                undo.append(partial(self._take_back, mailbox, changed, located.path))
                self.index.states(mailbox).write(dict.fromkeys(located.state_ids, state))
        with suppress(OSError):  # the change is durable: the index, or a start, completes it
            maildir.remove(located.path)
        self.scheduled.follow(before.submission, changed.path)
        return self._written(mailbox, draft, replace(changed, state=state))

    def _take_back(self, mailbox: Path, changed: MessageFile, replaced: Path | None) -> None:
        """Remove a draft's new file, durably: a scheduled send is of the draft that is there.

        It stays if the index has found it and therefore removed the file before it: raises OSError.
        """
        with self.index.no_update(mailbox):
            if replaced is not None:
                replaced.stat()
            maildir.remove(changed.path)
        maildir.sync_directory(changed.directory)

    def _write(
        self,
        mailbox: Path,
        draft: ComposedDraft,
        folder: Folder,
        *,
        flags: str,
        replaced: Path | None = None,
        on_written: Callable[[], None] = lambda: None,
        written_us: int | None = None,
    ) -> MessageFile:
        """Write a draft's file durably: tmp, fsync, link, fsync of the directory. `written_us` is
        its modification time, None is now.

        `on_written` is called before the file is linked to its final name.
        """
        directory = folder.path / "cur"
        temporary = draft.written or folder.path / "tmp" / draft.identity.base_name
        name = parse_name(f"{draft.name_with_size}:2,{with_flags(flags)}")
        assert name is not None
        located = MessageFile(folder, directory, name, name.message_id, name.generation)
        try:
            with maildir.undone_after_errors() as undo:
                descriptor = draft.write(temporary)
                if written_us is not None:
                    os.utime(descriptor, ns=(written_us * 1000, written_us * 1000))
                maildir.finish_content(descriptor)
                on_written()
                maildir.place(temporary, located.path)
                undo.append(partial(self._take_back, mailbox, located, replaced))
                self.crash.reached(CrashPoint.DRAFT_REPLACED)
                self.syncs.sync(directory)
        finally:
            with suppress(OSError):  # a stale file
                maildir.remove(temporary)
        return located

    def _written(self, mailbox: Path, draft: ComposedDraft, located: MessageFile) -> StoredMessage:
        """Return the message just written, which a mail client may have renamed since."""
        if isinstance(draft.content, bytes):
            stored = MemoryOctets(draft.content)
            return load(located, stored, mtime_us=self.clock.time_us())
        return self._shown(mailbox, located)

    def _with_flags(self, before: Before, flags: str, make: _MakeState) -> MessageFile:
        """Give a message flags, durably, and another state. A file in new/ moves to cur/.

        Raises MailboxFullError, StoreUnavailableError.
        """
        mailbox, located = before.mailbox, before.located
        state = make(located.state)
        is_other_state = state != located.state
        growth = len(encode_state(state)) - len(encode_state(located.state))
        name = f"state of {located.message_id}"
        # A flag that is complete is set before F goes: a crash in between loses no task.
        is_first = FLAGGED in located.name.flags and FLAGGED not in flags
        with (
            self.quota.room_for(before.account, mailbox, growth, base_name=name, messages=0),
            maildir.undone_after_errors() as undo,
        ):
            changed = located
            if is_other_state and is_first:
                state = self._change_state(mailbox, located, make, undo=undo)
            if flags != located.name.flags or located.directory.name != "cur":
                changed = self._flagged(located, flags)
                self._rename(located, changed, undo=undo)
            if is_other_state and not is_first:
                state = self._change_state(mailbox, changed, make, undo=undo)
        return replace(changed, state=state)

    def _flagged(self, located: MessageFile, flags: str) -> MessageFile:
        name = parse_name(f"{located.name.name_with_size}:2,{with_flags(flags)}")
        assert name is not None
        return replace(located, directory=located.folder.path / "cur", name=name)

    @in_thread
    @maildir.retry_if_renamed
    def move(
        self,
        account: str,
        message_id: str,
        destination_id: str,
        *,
        condition: Precondition = NO_PRECONDITION,
    ) -> StoredMessage:
        """Move a message to another folder. Its id does not change.

        Raises NoSuchItemError, BeingSentError, StoreUnavailableError.
        """
        mailbox = self.folders.mailbox(account)
        with self.stripes.of(message_id):
            located = self.index.get_if(mailbox, message_id, condition)
            destination = self._destination(mailbox, destination_id)
            if destination.path == located.folder.path:
                return loaded(located)
            submission = self.scheduled.scheduled_submission(message_id, located)
            self.scheduled.prepare(submission)
            with maildir.undone_after_errors() as undo:
                moved = self._moved(located, destination, undo=undo)
            self.scheduled.follow(submission, None, reason="the draft was moved")
            return loaded(moved)

    @in_thread
    @maildir.retry_if_renamed
    def delete(
        self,
        account: str,
        message_id: str,
        *,
        condition: Precondition = NO_PRECONDITION,
        permanently: bool = False,
    ) -> None:
        """Move a message to Deleted Items. If it is already there or in a subfolder, or
        `permanently`, remove it.

        Raises NoSuchItemError, BeingSentError.
        """
        mailbox = self.folders.mailbox(account)
        with self.stripes.of(message_id):
            located = self.index.get_if(mailbox, message_id, condition)
            submission = self.scheduled.scheduled_submission(message_id, located)
            is_removed = permanently or is_deleted(located.folder)
            self.scheduled.prepare(submission)
            with maildir.undone_after_errors() as undo:
                if not is_removed:
                    deleted = self._destination(mailbox, WellKnown.DELETED_ITEMS)
                    self._moved(located, deleted, undo=undo)
                elif submission is not None:  # a stale file in tmp/; an error undoes the rename
                    removed = replace(located, directory=located.folder.path / "tmp")
                    self._rename(located, removed, undo=undo)
                else:
                    maildir.remove(located.path)
                    undo.append(located.path.stat)  # it fails: nothing brings the message back
                    self.syncs.sync(located.directory)
            self.scheduled.follow(submission, None, reason="the draft was deleted")
            if is_removed and submission is not None:
                with suppress(OSError):
                    maildir.remove(removed.path)
            if is_removed and located.state != NO_STATE:
                with suppress(StoreError):  # otherwise it is removed after 30 days
                    self.index.states(mailbox).remove(located.state_ids)

    @in_thread
    @maildir.retry_if_renamed
    def copy(
        self,
        account: str,
        message_id: str,
        destination_id: str,
        *,
        condition: Precondition = NO_PRECONDITION,
    ) -> StoredMessage:
        """Copy a message to a folder. The copy has a new id.

        Raises NoSuchItemError, MailboxFullError, StoreUnavailableError.
        """
        mailbox = self.folders.mailbox(account)
        self.old_files.clean(mailbox)
        located = self.index.get_if(mailbox, message_id, condition)
        destination = self._destination(mailbox, destination_id)
        size_bytes, base_name = located.path.stat().st_size, self.names.of_copy(located.name)
        copy = in_folder(located, destination, f"{base_name},S={size_bytes}")
        message_id = copy.name.message_id
        copy = replace(
            copy, message_id=message_id, generation=1, received_us=0, state_ids=(message_id,)
        )
        size_bytes += len(encode_state(copy.state))
        with self.quota.room_for(account, mailbox, size_bytes, base_name=base_name):
            if copy.state != NO_STATE:
                self.index.states(mailbox).write({copy.message_id: copy.state})
            self._link(located, copy)
        return loaded(copy)

    def _link(self, located: MessageFile, copy: MessageFile) -> None:
        try:
            maildir.place(located.path, copy.path)
            self.syncs.sync(copy.directory)
        except OSError:
            with suppress(OSError):
                maildir.remove(copy.path)
            raise

    def _moved(
        self, located: MessageFile, destination: Folder, *, undo: maildir.Undo
    ) -> MessageFile:
        """Rename a message's file into another folder.

        After an error it stays: a client repeats the request, and a repeated DELETE would delete
        permanently.
        """
        moved = in_folder(located, destination, located.name.name_elsewhere)
        self._rename(located, moved, undo=undo)
        return moved

    def _rename(self, located: MessageFile, changed: MessageFile, *, undo: maildir.Undo) -> None:
        """Rename a file, durably; add to `undo` what renames it back."""
        maildir.rename(located.path, changed.path)
        undo.append(partial(self._rename_back, located, changed))
        for directory in dict.fromkeys((changed.directory, located.directory)):
            self.syncs.sync(directory)

    def _rename_back(self, located: MessageFile, changed: MessageFile) -> None:
        maildir.rename(changed.path, located.path)
        maildir.sync_directory(located.directory)

    def _destination(self, mailbox: Path, folder_id: str) -> Folder:
        folder = find_folder(mailbox, folder_id)
        if folder.well_known is not None:
            self.folders.recreate(mailbox, folder.well_known)
        return folder
