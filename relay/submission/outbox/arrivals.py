"""Drafts from MIME that arrives in blocks and is written directly to the draft's file.

For messages that are too large for memory (steps 1 and 2). The draft is visible only when it is
complete and synced. After discard(), or after a crash and the next start, nothing of it is left.
Methods raise StoreError's children. docs/design.md 1 and 3.
"""

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Self, TypeVar

from relay.base.files import FileOctets, write_all
from relay.formats.read_header import HEADER_OCTETS_MAX
from relay.store.mailbox.draft_files import ComposedDraft, DraftHead, draft_head
from relay.store.mailbox.errors import BeingSentError, OutcomeUnknownError
from relay.store.mailbox.folders import find_folder
from relay.store.mailbox.maildir import remove, retry_if_renamed
from relay.store.mailbox.message_file import open_octets
from relay.store.mailbox.message_state import without_content
from relay.store.mailbox.messages import Messages
from relay.store.mailbox.pending_submission import PendingSubmission, SendOptions
from relay.store.mailbox.stored_message import NO_PRECONDITION, Precondition, StoredMessage
from relay.store.mailbox.threads import ThreadPool
from relay.submission.outbox.on_disk import OutboxPart
from relay.submission.outbox.submit import Submissions, first_submission

_Result = TypeVar("_Result")
_BEGINNING_BYTES = HEADER_OCTETS_MAX + 4  # the largest header that may be sent, and the blank line


class ArrivingFile:
    """A draft's file while its MIME arrives. Blocking; one write at a time."""

    def __init__(self, path: Path, head: DraftHead) -> None:
        self.head = head
        self._path = path
        self._size = 0
        self._beginning = b""
        self._is_closed = False
        # The last write of an interrupted request may still run in its thread; discard() waits.
        self._lock = threading.Lock()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            self._append(head.block)
        except OSError:
            self.discard()
            raise

    def write(self, octets: bytes) -> None:
        """Append octets. Raises OSError."""
        with self._lock:
            if not self._is_closed:
                if len(self._beginning) < _BEGINNING_BYTES:
                    self._beginning += octets[: _BEGINNING_BYTES - len(self._beginning)]
                self._append(octets)

    def finish(self, store: Callable[[ComposedDraft], _Result]) -> _Result:
        """Call `store` with the complete draft, whose file is not synced, and close the file.

        After an error the file is removed.
        """
        try:
            result = store(
                self.head.arrived(FileOctets(self._path, 0, self._size), self._beginning)
            )
        except OutcomeUnknownError:
            self._close()  # the next start may need the file
            raise
        except BaseException:
            self.discard()
            raise
        self._close()
        return result

    def _close(self) -> bool:
        """Close the file; return whether it was open."""
        with self._lock:
            if self._is_closed:
                return False
            self._is_closed = True
            os.close(self._descriptor)
            return True

    def discard(self) -> None:
        """Remove the file; later writes do nothing."""
        if self._close():
            with suppress(OSError):
                remove(self._path)

    def _append(self, octets: bytes) -> None:
        write_all(self._descriptor, octets)
        self._size += len(octets)


class Arrival(Generic[_Result]):
    """A file that is received in blocks; one call at a time.

    A file that is not finished is discarded at the end of the `async with` block. write() appends
    octets. write() and finish() raise StoreUnavailableError.
    """

    def __init__(
        self,
        threads: ThreadPool,
        *,
        write: Callable[[bytes], None],
        finish: Callable[[], _Result],
        discard: Callable[[], None],
    ) -> None:
        """The functions are called in threads. After an error `finish` discards the file itself."""
        self.write = threads.in_thread(write)
        self._finish = threads.in_thread(finish)
        self._discard = discard
        self._is_finishing = False

    async def finish(self) -> _Result:
        """End the input and make it durable. A cancellation does not interrupt this."""
        self._is_finishing = True
        return await self._finish()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Remove the received part, unless finish() was called, even if cancelled."""
        if not self._is_finishing:
            await asyncio.get_running_loop().run_in_executor(None, self._discard)


@dataclass(kw_only=True, eq=False, repr=False)
class Arrivals(OutboxPart):
    """Drafts from MIME that is too large for memory.

    `expected_bytes` is the Content-Length. MIME that does not fit into the mailbox is rejected at
    the beginning. Each method raises NoSuchItemError, MailboxFullError, StoreUnavailableError;
    finish() raises the errors of Messages.create(), submit_new() and Messages.update().
    """

    submissions: Submissions  # ends an arrival that is sent
    messages: Messages  # ends an arrival that stays a draft

    async def submission(
        self, account: str, options: SendOptions, *, expected_bytes: int
    ) -> Arrival[PendingSubmission]:
        """submit_new() in blocks."""
        file = await self.threads.run(self._begin_submission, account, options, expected_bytes)

        def submit(draft: ComposedDraft) -> PendingSubmission:
            submission = self.submissions.submit_composed(draft)
            self.submissions.ready.offer(submission)
            return submission

        return self._arrival(file, submit)

    async def draft(
        self, account: str, folder_id: str, *, expected_bytes: int
    ) -> Arrival[StoredMessage]:
        """Messages.create() in blocks."""
        file = await self.threads.run(self._begin_draft, account, folder_id, expected_bytes)
        return self._arrival(file, lambda draft: self.messages.create_composed(draft, folder_id))

    async def replacement(
        self,
        account: str,
        message_id: str,
        *,
        expected_bytes: int,
        condition: Precondition = NO_PRECONDITION,
    ) -> Arrival[StoredMessage]:
        """New MIME for a draft. Also raises NotADraftError, BeingSentError, MessageChangedError.

        The condition is checked at the beginning and at the end.
        """
        file = await self.threads.run(
            self._begin_replacement, account, message_id, expected_bytes, condition=condition
        )

        def replace(draft: ComposedDraft) -> StoredMessage:
            with self.stripes.of(message_id):
                before = self.messages.draft(account, message_id, condition=condition)
                if before.located.generation != file.head.identity.generation - 1:
                    raise BeingSentError("The draft was changed while its MIME arrived.")
                flags = before.located.name.flags
                return self.messages.replace(before, draft, flags=flags, make=without_content)

        return self._arrival(file, replace)

    def _arrival(
        self, file: ArrivingFile, store: Callable[[ComposedDraft], _Result]
    ) -> Arrival[_Result]:
        return Arrival(
            self.threads, write=file.write, finish=lambda: file.finish(store), discard=file.discard
        )

    # -- in a thread

    def _begin_submission(
        self, account: str, options: SendOptions, expected_bytes: int
    ) -> ArrivingFile:
        self._check_room(account, expected_bytes)
        self.directory.make()
        identity = self.names.identity(account, options)
        path = self.directory.prepared_path(first_submission(identity), options.key)
        return ArrivingFile(Path(path), draft_head(identity))

    def _begin_draft(self, account: str, folder_id: str, expected_bytes: int) -> ArrivingFile:
        mailbox = self._check_room(account, expected_bytes)
        folder = find_folder(mailbox, folder_id)
        head = draft_head(self.names.identity(account))
        return ArrivingFile(folder.path / "tmp" / head.identity.base_name, head)

    @retry_if_renamed
    def _begin_replacement(
        self, account: str, message_id: str, expected_bytes: int, *, condition: Precondition
    ) -> ArrivingFile:
        before = self.messages.draft(account, message_id, condition=condition)
        located, names = before.located, self.names
        self._check_room(account, expected_bytes - located.path.stat().st_size, messages=0)
        stored = open_octets(located.path)
        head = draft_head(names.next_identity(account, located, stored))
        # Unique: two requests may write the same generation, and the first to finish wins.
        own_name = f"{head.identity.base_name}.{names.ids.new()}"
        return ArrivingFile(located.folder.path / "tmp" / own_name, head)

    def _check_room(self, account: str, expected_bytes: int, *, messages: int = 1) -> Path:
        """Reject a message that will not fit before it arrives; return the mailbox."""
        mailbox = self.folders.mailbox(account)
        self.old_files.clean(mailbox)
        quota, name = self.quota, self.names.ids.new()
        with quota.room_for(account, mailbox, expected_bytes, base_name=name, messages=messages):
            return mailbox
