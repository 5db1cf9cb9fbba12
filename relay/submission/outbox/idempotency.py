"""The submissions that clients made with an Idempotency-Key, kept for a day.

The record of a key is a small file, `.submissions/keys/HOUR/SLOT`; HOUR is in queue time. It is
written when the submission is durable except for its name in ready/ or deferred/. From then on the
submission exists, even if a later operation fails: UnfinishedSubmissions makes it ready at a start,
or when a failing disk works again. Until then pickup does not start it, and a repeat gets 503. A
request with the same key therefore finds either the record, or no submission. The directory of an
hour is removed as a whole, 24 hours after its end.

Blocking; methods raise StoreError's children, or OSError where noted. docs/design.md 1.
"""

import hashlib
import os
import shutil
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from relay.base.clock import Clock
from relay.base.files import rewrite_file
from relay.base.observe.logs import get_logger
from relay.store.mailbox import maildir
from relay.store.mailbox.errors import BeingSentError, StoreUnavailableError
from relay.store.mailbox.pending_submission import PendingSubmission, SubmissionKey
from relay.submission.outbox.on_disk import PreparedFile

KEPT_HOURS = 24  # after the end of the hour in which a key was used
# limit of Graph: keys of an account in 24 hours; then 503
KEYS_PER_ACCOUNT_MAX = 100_000
KEYS = "keys"
_HOUR_US = 3_600_000_000
_PART = ".part"
_log = get_logger("outbox")


class KeyedSubmission(Struct, frozen=True):
    """The record of a key: the hash of the request, the submission, its place, the response."""

    fingerprint: bytes
    submission_id: str
    place: str  # "ready/…" or "deferred/…"
    internet_message_id: str
    preference_applied: str


_decoder = msgspec.json.Decoder(KeyedSubmission)


def slot_of(account: str, mailbox: str, key: str) -> str:
    """Return the file name of the record of a key; it begins with a hash of the account."""
    text = f"{account}\0{mailbox}\0{key}"
    owner, whole = (hashlib.sha256(part.encode()).hexdigest() for part in (account, text))
    return f"{owner[:16]}-{whole}"


def _owner_of(slot: str) -> str:
    return slot.partition("-")[0]


class KeyedSubmissions:
    """The records under one mail root."""

    def __init__(self, submissions: Path, clock: Clock, syncs: maildir.DirectorySync) -> None:
        """`submissions` is the directory `.submissions`."""
        self._keys = submissions / KEYS
        self._clock = clock
        self._syncs = syncs
        self._stripes = maildir.Stripes()  # of slots
        self._lock = threading.Lock()
        # the number of records by hour and account; None before the directories were listed
        self._hours: Mapping[int, Counter[str]] | None = None
        self._made_hour = -1

    @property
    def has_expired(self) -> bool:
        """Whether remove_expired() has work, or was not called yet."""
        hours = self._hours
        return hours is None or any(map(self._is_expired, hours))

    def find(self, account: str, slot: str) -> KeyedSubmission | None:
        """Return the submission that was made with a key.

        Raises StoreUnavailableError if there is none and the account has too many records.
        """
        with self._stripes.of(slot), maildir.storage_errors():
            if (path := self._find(slot)) is not None:
                return _read(path)
            owner, hours = _owner_of(slot), self._listed().items()
            used = sum(counts[owner] for hour, counts in hours if not self._is_expired(hour))
        if used >= KEYS_PER_ACCOUNT_MAX:
            raise StoreUnavailableError(
                f"{account} has used {used} idempotency keys within {KEPT_HOURS} hours; the "
                f"maximum is {KEYS_PER_ACCOUNT_MAX}."
            )
        return None

    def record(self, submission: PendingSubmission) -> None:
        """Record a submission with a key durably. All other files of it must be durable already.

        Raises BeingSentError if the key was used meanwhile: then it is not recorded. After
        StoreUnavailableError the disk may have the record.
        """
        key, own = submission.options.key, submission.submission_id
        assert key is not None, "only submissions with a key are recorded"
        with self._stripes.of(key.slot), maildir.storage_errors():
            path = self._find(key.slot, hours=2)
            if path is not None and _read(path).submission_id != own:
                raise BeingSentError(
                    "Another request with this Idempotency-Key was just carried out."
                )
            self._write(submission, key)

    def place_of(self, prepared: PreparedFile) -> str:
        """Return the place, "ready/…" or "deferred/…", that is recorded for a file in preparing/.

        "" if there is no record. The file was left by a dead process or a failed request. The
        record is durable afterwards. Raises OSError.
        """
        path = self._find(prepared.slot) if prepared.slot else None
        if path is None:
            return ""
        record = _read(path)
        if record.submission_id != prepared.submission_id:
            return ""
        rewrite_file(path)  # the sync of the record may have failed
        self._syncs.sync(path.parent)
        return record.place

    # -- all records

    def remove_expired(self) -> None:
        """Remove the hours whose time is over. Raises OSError."""
        expired = [hour for hour in self._listed() if self._is_expired(hour)]
        for hour in expired:
            with suppress(FileNotFoundError):
                shutil.rmtree(self._keys / str(hour))
        with self._lock:
            hours = self._hours or {}
            self._hours = {hour: hours[hour] for hour in hours if hour not in expired}

    def clear(self) -> None:
        """Remove all records. Raises OSError."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self._keys)
        self.forget()

    def forget(self) -> None:
        """Forget the records of a mail root that is missing."""
        with self._lock:
            self._hours, self._made_hour = None, -1

    def _is_expired(self, hour: int) -> bool:
        return (hour + 1 + KEPT_HOURS) * _HOUR_US <= self._clock.confirmed_us()

    def _listed(self) -> Mapping[int, Counter[str]]:
        """Return the number of records by hour and account; the first time, list them."""
        with self._lock:
            if self._hours is None:
                hours = {}
                for name in filter(str.isdecimal, maildir.list_names(self._keys)):
                    hours[int(name)] = Counter(
                        map(_owner_of, maildir.list_names(self._keys / name))
                    )
                self._hours = hours
            return self._hours

    def _newest_hours(self) -> list[int]:
        return sorted((hour for hour in self._listed() if not self._is_expired(hour)), reverse=True)

    def _find(self, slot: str, *, hours: int | None = None) -> Path | None:
        """Return the file of a record; search the newest `hours`, or all. Raises OSError."""
        for hour in self._newest_hours()[:hours]:
            path = f"{self._keys}/{hour}/{slot}"
            with suppress(FileNotFoundError):
                os.stat(path)  # noqa: PTH116 - quick for many hours; only one error means missing
                return Path(path)
        return None

    def _write(self, submission: PendingSubmission, key: SubmissionKey) -> None:
        """Write a record durably. After OSError it may exist or not."""
        hour = self._clock.queue_us() // _HOUR_US
        if self._made_hour != hour:
            self._make_hour(hour)
        place = self._keys / str(hour)
        record = KeyedSubmission(
            fingerprint=key.fingerprint(),
            submission_id=submission.submission_id,
            place=f"{submission.path.parent.name}/{submission.path.name}",
            internet_message_id=submission.internet_message_id,
            preference_applied=key.preference_applied(),
        )
        path, octets = place / key.slot, msgspec.json.encode(record)
        part = path.with_suffix(_PART)
        try:
            maildir.finish_content(_written(part, octets))
            part.rename(path)
            self._syncs.sync(place)
        except FileNotFoundError:  # an operator has removed the directory
            self._made_hour = -1
            raise
        counts = self._listed()[hour]
        with self._lock:
            counts[_owner_of(key.slot)] += 1

    def _make_hour(self, hour: int) -> None:
        for directory in (self._keys, self._keys / str(hour)):
            directory.mkdir(0o700, exist_ok=True)
            self._syncs.sync(directory.parent)  # also one that a dead process has made
        self._listed()
        with self._lock:
            self._hours = {hour: Counter(), **(self._hours or {})}
        self._made_hour = hour


def _written(part: Path, octets: bytes) -> int:
    """Write a file, or overwrite one that was left by a failure; return its descriptor."""
    try:
        return maildir.write_file(part, octets)
    except FileExistsError:
        maildir.remove(part)
        return maildir.write_file(part, octets)


def _read(path: Path) -> KeyedSubmission:
    try:
        return _decoder.decode(path.read_bytes())
    except ValueError as error:
        event = "damaged record of an Idempotency-Key"
        _log.repeated("error", event, file=str(path), error=str(error))
        raise StoreUnavailableError(f"{path} is not the record of a key: {error}.") from error
