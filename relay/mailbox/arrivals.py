"""Drafts from MIME that arrives in blocks and is written directly to the draft's file.

For messages that are too large for memory (steps 1 and 2). No reader sees the draft before it is
complete and synced. After discard(), or after a crash and the next start, nothing of it is left.
Methods raise StoreError's children. docs/design.md 1 and 3.
"""

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from relay.files import FileOctets, write_all
from relay.mailbox.dependencies import StoreDependencies
from relay.mailbox.drafts import Drafts
from relay.mailbox.folders import find_folder
from relay.mailbox.maildir import remove, retry_if_renamed
from relay.mailbox.messages import ComposedDraft, DraftHead, draft_head, next_identity, open_octets
from relay.mailbox.stale_files import StaleFiles
from relay.mailbox.submissions.submit import SubmissionWriter, first_submission
from relay.mailbox.threads import RunInThread
from relay.mailbox.types import (
    NO_PRECONDITION,
    BeingSentError,
    PendingSubmission,
    Precondition,
    SendOptions,
    StoredMessage,
)
from relay.mime.read_header import HEADER_OCTETS_MAX

_Result = TypeVar("_Result")
_BEGINNING_BYTES = HEADER_OCTETS_MAX + 4  # the largest header that may be sent, and the blank line


class ArrivingFile:
    """A draft's file while its MIME arrives. Blocking; one write at a time."""

    def __init__(self, path: Path, head: DraftHead) -> None:
        self.head = head
        self._path = path
        self._size = 0
        self._beginning = b""
        self._is_discarded = False
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
            if not self._is_discarded:
                if len(self._beginning) < _BEGINNING_BYTES:
                    self._beginning += octets[: _BEGINNING_BYTES - len(self._beginning)]
                self._append(octets)

    def finished(self) -> ComposedDraft:
        """Return the complete draft. The file is not synced."""
        file = FileOctets(self._path, 0, self._size)
        return self.head.arrived(file, self._beginning)

    def close(self) -> None:
        """Close the file, which is now the draft's."""
        with self._lock:
            if not self._is_discarded:
                self._is_discarded = True
                os.close(self._descriptor)

    def discard(self) -> None:
        """Remove the file; later writes do nothing."""
        with self._lock:
            if not self._is_discarded:
                self._is_discarded = True
                os.close(self._descriptor)
                with suppress(OSError):
                    remove(self._path)

    def _append(self, octets: bytes) -> None:
        write_all(self._descriptor, octets)
        self._size += len(octets)


class FileArrival(Generic[_Result]):
    """Implements api.Arrival."""

    def __init__(
        self, file: ArrivingFile, finish: Callable[[ArrivingFile], _Result], *, run: RunInThread
    ) -> None:
        self._file = file
        self._finish = finish
        self._run = run
        self._is_finishing = False

    async def write(self, octets: bytes) -> None:
        """See api.Arrival."""
        await self._run(self._file.write, octets)

    async def finish(self) -> _Result:
        """See api.Arrival."""
        self._is_finishing = (
            True  # from here on it runs to its end, even if the caller is cancelled
        )
        return await self._run(self._finished)

    def discard(self) -> None:
        """See api.Arrival."""
        if not self._is_finishing:
            asyncio.get_running_loop().run_in_executor(None, self._file.discard)

    def _finished(self) -> _Result:
        try:
            result = self._finish(self._file)
        except BaseException:
            self._file.discard()
            raise
        self._file.close()
        return result


class FileArrivals:
    """Implements api.Arrivals."""

    def __init__(
        self,
        dependencies: StoreDependencies,
        stale_files: StaleFiles,
        *,
        writer: SubmissionWriter,
        drafts: Drafts,
        run: RunInThread,
        offer: Callable[[PendingSubmission], None],
    ) -> None:
        """`offer` hands a submission to pickup."""
        self._shared = dependencies
        self._stale_files = stale_files
        self._writer = writer
        self._drafts = drafts
        self._run = run
        self._offer = offer

    async def submission(
        self, account: str, options: SendOptions, *, expected_bytes: int
    ) -> FileArrival[PendingSubmission]:
        """See api.Arrivals."""
        file = await self._run(self._begin_submission, account, options, expected_bytes)

        def submitted(file: ArrivingFile) -> PendingSubmission:
            submission = self._writer.submit_composed(file.finished(), file.head.identity, options)
            self._offer(submission)
            return submission

        return FileArrival(file, submitted, run=self._run)

    async def draft(
        self, account: str, folder_id: str, *, expected_bytes: int
    ) -> FileArrival[StoredMessage]:
        """See api.Arrivals."""
        file = await self._run(self._begin_draft, account, folder_id, expected_bytes)

        def created(file: ArrivingFile) -> StoredMessage:
            mailbox = self._shared.folders.mailbox(account)
            folder = find_folder(mailbox, folder_id)
            return self._drafts.create_composed(file.finished(), mailbox, folder)

        return FileArrival(file, created, run=self._run)

    async def replacement(
        self,
        account: str,
        message_id: str,
        *,
        expected_bytes: int,
        condition: Precondition = NO_PRECONDITION,
    ) -> FileArrival[StoredMessage]:
        """See api.Arrivals."""
        file = await self._run(
            self._begin_replacement, account, message_id, expected_bytes, condition=condition
        )

        def replaced(file: ArrivingFile) -> StoredMessage:
            mailbox = self._shared.folders.mailbox(account)
            with self._shared.stripes.of(message_id):
                before = self._drafts.draft(mailbox, message_id, condition=condition)
                if before.located.generation != file.head.identity.generation - 1:
                    raise BeingSentError("The draft was changed while its MIME arrived.")
                draft = file.finished()
                return self._drafts.replace(before, draft, flags=before.located.name.flags)

        return FileArrival(file, replaced, run=self._run)

    # -- in a thread

    def _begin_submission(
        self, account: str, options: SendOptions, expected_bytes: int
    ) -> ArrivingFile:
        self._check_room(account, expected_bytes)
        self._shared.submissions.make()
        identity = self._shared.identity(account, options)
        path = self._shared.submissions.preparing / first_submission(identity)
        return ArrivingFile(path, draft_head(identity))

    def _begin_draft(self, account: str, folder_id: str, expected_bytes: int) -> ArrivingFile:
        mailbox = self._check_room(account, expected_bytes)
        folder = find_folder(mailbox, folder_id)
        head = draft_head(self._shared.identity(account))
        return ArrivingFile(folder.path / "tmp" / head.base_name, head)

    @retry_if_renamed
    def _begin_replacement(
        self, account: str, message_id: str, expected_bytes: int, *, condition: Precondition
    ) -> ArrivingFile:
        mailbox = self._shared.folders.mailbox(account)
        before = self._drafts.draft(mailbox, message_id, condition=condition)
        located = before.located
        self._check_room(account, expected_bytes - located.path.stat().st_size, messages=0)
        options = before.submission.options if before.submission else None
        identity = self._shared.identity(account, options)
        head = draft_head(next_identity(located, open_octets(located), identity))
        # Unique: two requests may write the same generation, and the first to finish wins.
        own_name = f"{head.base_name}.{self._shared.ids.new()}"
        return ArrivingFile(located.folder.path / "tmp" / own_name, head)

    def _check_room(self, account: str, expected_bytes: int, *, messages: int = 1) -> Path:
        """Reject a message that will not fit before it arrives; return the mailbox."""
        mailbox = self._shared.folders.mailbox(account)
        self._stale_files.clean(mailbox)
        quota, nothing = self._shared.quota, self._shared.ids.new()
        with quota.room_for(account, mailbox, expected_bytes, base_name=nothing, messages=messages):
            return mailbox
