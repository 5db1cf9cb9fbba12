"""Upload sessions: attachments that arrive in ranges, until they are complete or expire.

A range is durable when its response is sent: a client can continue after a restart. The id of the
attachment is chosen when the session is created: a repeated last range attaches it only once. Only
a digest of the token is stored. Bytes that are not received yet count toward the quota. Methods
raise StoreError's children and OSError. Graph's uploadSession resource type.
"""

import hashlib
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from relay.base.clock import wall_offset_us
from relay.base.files import FileOctets, write_all
from relay.formats.draft import AttachmentFacts, new_attachment
from relay.formats.transfer_encoding import base64_size
from relay.store.mailbox import errors
from relay.store.mailbox.attachments import Attachments
from relay.store.mailbox.folders import is_deleted
from relay.store.mailbox.maildir import (
    list_names,
    make_directory,
    remove,
    sync_descriptor,
    write_synced,
)
from relay.store.mailbox.store_part import in_thread
from relay.store.mailbox.stored_message import NO_PRECONDITION, Precondition
from relay.submission.outbox.arrivals import Arrival
from relay.submission.outbox.on_disk import OutboxPart

# limit of Graph: uploads of an account that are not complete; then 429
UPLOADS_MAX = 20
ATTACHED_MAX = (
    100  # complete uploads of a mailbox that are remembered; then the oldest is forgotten
)
EXPIRE_S = 86400.0
_ATTACHED_EXPIRE_S = 3600.0  # for clients that repeat the last range
_FACTS = ".json"


class Upload(Struct, frozen=True):
    """An upload session of an attachment: its size, and how many bytes were received. `caller` is
    the address of the account that created it.
    """

    account: str
    caller: str
    message_id: str
    attachment_id: str
    size: int
    received: int
    expires_us: int


class NewUpload(Struct, frozen=True):
    """An upload session and the token that authorizes its continuation."""

    token: str
    upload: Upload


class _Facts(Struct, frozen=True):
    """The file format of a session. `expires_us` is queue time."""

    account: str
    message_id: str
    attachment: AttachmentFacts
    expires_us: int
    is_attached: bool = False
    caller: str = ""  # "" is the account


_decoder = msgspec.json.Decoder(_Facts)


@dataclass(slots=True)
class _UploadSession:
    """A session. `kept` holds its quota reservation. Changes require `lock`."""

    digest: str  # of its token
    facts: _Facts
    kept: ExitStack
    received: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(kw_only=True, eq=False, repr=False)
class Uploads(OutboxPart):
    """The upload sessions of all mailboxes. clear() blocks.

    A session is two files: ID.json, and ID@N with the first N bytes and possibly more bytes of an
    interrupted range. ID is the token's digest.
    """

    attachments: Attachments  # gets the complete upload
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _sessions: dict[str, _UploadSession] | None = field(default=None, init=False)
    # by mailbox; the complete ones in the order of their completion
    _of_account: dict[str, dict[str, _UploadSession]] = field(default_factory=dict, init=False)

    @in_thread
    def create(
        self,
        account: str,
        message_id: str,
        attachment_facts: AttachmentFacts,
        *,
        caller: str,
        limit_bytes: int,
        condition: Precondition = NO_PRECONDITION,
    ) -> NewUpload:
        """Create a session for a draft, for the account `caller`.

        Raises TooManyUploadsError, NotADraftError for a draft in Deleted Items, and the errors of
        Attachments.check().
        """
        self._remove_abandoned(account)
        token = secrets.token_urlsafe()
        message = self.attachments.check(
            account,
            message_id,
            size_bytes=attachment_facts.size,
            limit_bytes=limit_bytes,
            condition=condition,
        )
        expires_us = self.clock.queue_us() + int(EXPIRE_S * 1_000_000)
        attachment = replace(attachment_facts, id=self.names.ids.new())
        facts = _Facts(account, message.id, attachment, expires_us, caller=caller)
        if self._is_abandoned(facts):
            raise errors.NotADraftError("A draft in Deleted Items takes no upload.")
        with self._all() as sessions:
            incomplete = self._incomplete(account)
            if len(incomplete) >= UPLOADS_MAX:
                first_us = min(session.facts.expires_us for session in incomplete)
                raise errors.TooManyUploadsError(
                    f"There are {len(incomplete)} incomplete uploads; finish or delete one first.",
                    retry_after_s=max(1, (first_us - self.clock.queue_us()) // 1_000_000),
                )
            session = _UploadSession(_digest(token), facts, self._reserved(facts))
            try:
                make_directory(self.directory.uploads)
                self._write(session)
            except OSError:
                session.kept.close()
                raise
            self._add(sessions, session)
            return NewUpload(token, self._shown(session))

    @in_thread
    def find(self, token: str) -> Upload:
        """Return a session that has not expired. Raises NoSuchItemError."""
        with self._all() as sessions:
            return self._shown(self._found(sessions, token))

    async def begin_range(self, token: str, start: int) -> Arrival[Upload]:
        """Begin a range at `start`, which must be the number of bytes received so far.

        Raises NoSuchItemError, UploadBusyError, StoreUnavailableError.
        """
        writer = await self.threads.run(self._begin_range, token, start)
        return Arrival(self.threads, write=writer.write, finish=writer.finish, discard=writer.abort)

    def _begin_range(self, token: str, start: int) -> "RangeWriter":
        session = self._locked(token)
        try:
            return RangeWriter(self, session, start)
        except BaseException:
            session.lock.release()
            raise

    @in_thread
    def attach(self, token: str, *, limit_bytes: int) -> Upload:
        """Attach a complete upload to its draft, once. Also raises UploadBusyError."""
        session = self._locked(token)
        try:
            if session.received < session.facts.attachment.size and not session.facts.is_attached:
                raise errors.UploadBusyError("The upload is not complete.")
            if not session.facts.is_attached:
                self._attach(session, limit_bytes)
            return self._shown(session)
        finally:
            session.lock.release()

    @in_thread
    def remove(self, token: str) -> None:
        """Remove a session. Raises NoSuchItemError, UploadBusyError."""
        session = self._locked(token)
        try:
            with self._all() as sessions:
                self._remove(sessions, session)
        finally:
            session.lock.release()

    @in_thread
    def remove_expired(self) -> None:
        """Remove sessions that have expired, and those of drafts that are sent or deleted."""
        with self._all() as sessions:
            self._end_expired(sessions, [*sessions.values()])
        self._remove_abandoned()

    def _remove_abandoned(self, account: str = "") -> None:
        """Remove the sessions of an account, or of all, whose draft is sent or deleted."""
        with self._all() as sessions:
            self._end_expired(sessions, [*self._of_account.get(account, {}).values()])
            accounts = [account] if account else [*self._of_account]
            incomplete = [session for name in accounts for session in self._incomplete(name)]
        # may read a mailbox
        abandoned = [session for session in incomplete if self._is_abandoned(session.facts)]
        with self._all() as sessions:
            for session in abandoned:
                if session.digest in sessions and session.lock.acquire(blocking=False):
                    self._remove(sessions, session)

    def _is_abandoned(self, facts: _Facts) -> bool:
        """Whether the mailbox says that the draft is sent or deleted; an error does not say so."""
        try:
            located = self.index.get(self.folders.mailbox(facts.account), facts.message_id)
        except errors.NoSuchItemError:
            return self.root.is_there()  # otherwise it may only be missing with the root
        except (errors.StoreError, OSError):
            return False
        return not located.is_draft or is_deleted(located.folder)

    def clear(self) -> None:
        """Remove all sessions."""
        with self._all() as sessions:
            for session in list(sessions.values()):
                self._remove(sessions, session)

    def _attach(self, session: _UploadSession, limit_bytes: int) -> None:
        facts, path = session.facts, self.content_path(session)
        octets = FileOctets(path, 0, facts.attachment.size)
        session.kept.close()  # the growth of the draft is counted instead
        try:
            self.attachments.add_part(
                facts.account,
                facts.message_id,
                new_attachment(facts.attachment, octets),
                limit_bytes=limit_bytes,
            )
        except BaseException:
            with suppress(errors.MailboxFullError):
                session.kept = self._reserved(facts)
            raise
        soon_us = self.clock.queue_us() + int(_ATTACHED_EXPIRE_S * 1_000_000)
        session.facts = replace(facts, is_attached=True, expires_us=min(soon_us, facts.expires_us))
        self._write(session)
        remove(path)
        with self._all() as sessions:
            own = self._of_account[facts.account]
            own[session.digest] = own.pop(session.digest)
            attached = [known for known in own.values() if known.facts.is_attached]
            for oldest in attached[:-ATTACHED_MAX]:
                if oldest.lock.acquire(blocking=False):
                    self._remove(sessions, oldest)

    def _incomplete(self, account: str) -> list[_UploadSession]:
        """Return the sessions of a mailbox that are not complete."""
        own = self._of_account.get(account, {}).values()
        return [session for session in own if not session.facts.is_attached]

    def _end_expired(
        self, sessions: dict[str, _UploadSession], suspects: Sequence[_UploadSession]
    ) -> None:
        """Remove those of `suspects` that have expired, but for a range that is being received."""
        now_us = self.clock.confirmed_us()
        for session in suspects:
            if session.facts.expires_us <= now_us and session.lock.acquire(blocking=False):
                self._remove(sessions, session)

    def _reserved(self, facts: _Facts) -> ExitStack:
        """Reserve quota for the bytes to come. Raises MailboxFullError."""
        kept = ExitStack()
        mailbox = self.folders.mailbox(facts.account)
        size_bytes = base64_size(facts.attachment.size)
        kept.enter_context(
            self.quota.room_for(
                facts.account,
                mailbox,
                size_bytes,
                base_name=f"upload {facts.attachment.id}",
                messages=0,
            )
        )
        return kept

    def _shown(self, session: _UploadSession) -> Upload:
        facts = session.facts
        return Upload(
            account=facts.account,
            caller=facts.caller or facts.account,
            message_id=facts.message_id,
            attachment_id=facts.attachment.id,
            size=facts.attachment.size,
            received=facts.attachment.size if facts.is_attached else session.received,
            expires_us=facts.expires_us + wall_offset_us(self.clock),
        )

    # -- on disk

    @contextmanager
    def _all(self) -> Iterator[dict[str, _UploadSession]]:
        """All sessions, under the lock of the set."""
        with self._lock:
            if self._sessions is None:
                loaded = sorted(self._loaded().values(), key=lambda s: s.facts.expires_us)
                self._sessions = {}
                for session in loaded:
                    self._add(self._sessions, session)
            yield self._sessions

    def content_path(self, session: _UploadSession) -> Path:
        """Return the file with the bytes that were received."""
        return self.directory.uploads / f"{session.digest}@{session.received}"

    def count_received(self, session: _UploadSession, received: int) -> Upload:
        """Record durably how many bytes were received; the bytes are on the disk already. Raises
        NoSuchItemError if the draft is sent or deleted: the session ends.
        """
        if self._is_abandoned(session.facts):
            with self._all() as sessions:
                self._remove(sessions, session)
            raise _unknown()
        before = self.content_path(session)
        before.rename(before.with_name(f"{session.digest}@{received}"))
        session.received = received
        self.syncs.sync(before.parent)
        return self._shown(session)

    def _found(self, sessions: dict[str, _UploadSession], token: str) -> _UploadSession:
        digest = _digest(token)
        if digest in sessions:
            self._end_expired(sessions, [sessions[digest]])
        if digest not in sessions:
            raise _unknown()
        return sessions[digest]

    def _locked(self, token: str) -> _UploadSession:
        """Return a session; its lock is acquired. Raises NoSuchItemError, UploadBusyError."""
        with self._all() as sessions:
            session = self._found(sessions, token)
            if session.lock.acquire(blocking=False):
                return session
        raise errors.UploadBusyError("A range of this upload is being received.")

    def _add(self, sessions: dict[str, _UploadSession], session: _UploadSession) -> None:
        sessions[session.digest] = session
        self._of_account.setdefault(session.facts.account, {})[session.digest] = session

    def _remove(self, sessions: dict[str, _UploadSession], session: _UploadSession) -> None:
        del sessions[session.digest]
        own = self._of_account[session.facts.account]
        del own[session.digest]
        if not own:
            del self._of_account[session.facts.account]
        session.kept.close()
        remove(self.content_path(session))
        remove(self.directory.uploads / (session.digest + _FACTS))

    def _write(self, session: _UploadSession) -> None:
        """Write a session's facts durably, replacing the file atomically."""
        written = self.directory.uploads / f"{session.digest}.new"
        remove(written)
        write_synced(written, msgspec.json.encode(session.facts))
        written.rename(self.directory.uploads / (session.digest + _FACTS))
        self.syncs.sync(self.directory.uploads)

    def _loaded(self) -> dict[str, _UploadSession]:
        """Load the sessions of an earlier process and remove files without a session."""
        received: dict[str, int] = {}
        names = list_names(self.directory.uploads)
        for name in names:
            digest, at, number = name.partition("@")
            if at and number.isdecimal():
                received[digest] = int(number)
        sessions: dict[str, _UploadSession] = {}
        for name in names:
            if name.endswith(_FACTS):
                digest = name.removesuffix(_FACTS)
                facts = _read(self.directory.uploads / name)
                if facts is not None and self._is_there(digest, received.get(digest, 0)):
                    kept = ExitStack()
                    if not facts.is_attached:
                        with suppress(errors.MailboxFullError, errors.NoSuchItemError):
                            kept = self._reserved(facts)
                    sessions[digest] = _UploadSession(digest, facts, kept, received.get(digest, 0))
        for name in names:
            digest = name.partition("@")[0].partition(".")[0]
            if digest not in sessions or name.endswith(".new"):
                remove(self.directory.uploads / name)
        return sessions

    def _is_there(self, digest: str, received: int) -> bool:
        """Whether the confirmed bytes of a session exist, so that it can continue."""
        with suppress(FileNotFoundError):
            return (self.directory.uploads / f"{digest}@{received}").stat().st_size >= received
        return received == 0


class RangeWriter:
    """One range that is being received. Blocking; abort() or finish() ends it."""

    def __init__(self, uploads: Uploads, session: _UploadSession, start: int) -> None:
        """Raises UploadBusyError if `start` is not the number of bytes received; OSError."""
        if start != session.received:
            raise errors.UploadBusyError("Another range of this upload has just arrived.")
        self._uploads, self._session = uploads, session
        self._size = start
        self._lock = threading.Lock()
        self._is_over = False
        path = uploads.content_path(session)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.lseek(self._descriptor, start, os.SEEK_SET)  # overwrites an aborted range

    def write(self, octets: bytes) -> None:
        """Append octets. Raises OSError."""
        with self._lock:
            if not self._is_over:
                write_all(self._descriptor, octets)
                self._size += len(octets)

    def finish(self) -> Upload:
        """Make the range durable and count it. After OSError it does not count. Raises
        NoSuchItemError.
        """
        with self._lock:
            try:
                sync_descriptor(self._descriptor)
                return self._uploads.count_received(self._session, self._size)
            finally:
                self._end()

    def abort(self) -> None:
        """Discard the range, unless it is finished."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            os.close(self._descriptor)
            self._session.lock.release()


def _unknown() -> errors.NoSuchItemError:
    return errors.NoSuchItemError("The upload session is unknown, or it has expired.")


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def _read(path: Path) -> _Facts | None:
    try:
        return _decoder.decode(path.read_bytes())
    except (OSError, ValueError):
        return None
