"""The submissions that clients made with a key of their own (Idempotency-Key), for 24 hours.

A record is committed when everything of its submission is durable but its name in ready/ or
deferred/. From that commit on the submission exists: a start finishes it if a crash came before
the rename. A request with the same key therefore finds either the record, or no submission.

The records are in a SQLite file, made with the first of them. Blocking; methods raise StoreError's
children and OSError. docs/design.md 1.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

from relay.clock import Clock
from relay.mailbox.maildir import sync_directory
from relay.mailbox.types import (
    BeingSentError,
    KeyedSubmission,
    OutcomeUnknownError,
    PendingSubmission,
    StoreUnavailableError,
    TooManyKeysError,
)

_FILE_NAME = "keys.sqlite"
KEPT_S = 24 * 3600
KEYS_PER_ACCOUNT_MAX = 100_000
KEYS_MAX = 1_000_000
_BUSY_MS = 5000
_PRUNED_PER_RECORD = 4  # more than one, so that records never pile up
_LEFT_MAX = 10_000
_VERSION = 1
_SCHEMA = """
CREATE TABLE submission (
    slot BLOB PRIMARY KEY, account TEXT NOT NULL, fingerprint BLOB NOT NULL,
    submission_id TEXT NOT NULL, place TEXT NOT NULL, internet_message_id TEXT NOT NULL,
    preference_applied TEXT NOT NULL, at_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX submission_at ON submission (at_us);
CREATE TABLE commits (number INTEGER NOT NULL) STRICT;
INSERT INTO commits VALUES (0);
"""
_INSERT = """
INSERT INTO submission VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
"""
_FIND = """
SELECT fingerprint, submission_id, internet_message_id, preference_applied FROM submission
WHERE slot = ? AND at_us > ?
"""
_PRUNE = """
DELETE FROM submission
WHERE slot IN (SELECT slot FROM submission WHERE at_us <= ? ORDER BY at_us LIMIT ?)
RETURNING account
"""


@dataclass(eq=False, slots=True)
class _Commit:
    """Records that are committed together, and what became of them."""

    rows: list[Sequence[Any]] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)  # submissions whose key is taken
    error: Exception | None = None
    is_done: bool = False


class KeyedSubmissions:
    """The records in one file. Threads that record at the same time share a commit."""

    def __init__(self, root: Path, clock: Clock) -> None:
        directory = root / ".submissions"
        self._path = directory / _FILE_NAME
        self._preparing = directory / "preparing"
        self._clock = clock
        self._connection: apsw.Connection | None = None
        self._writing = threading.RLock()  # held by every use of the connection
        self._joining = threading.Lock()
        self._next = _Commit()
        self._counts: Counter[str] = Counter()
        self._left: dict[bytes, str] = {}  # slots whose submission and record could not be removed

    def find(self, account: str, slot: bytes) -> KeyedSubmission | None:
        """Return the submission that was made with a key.

        Raises TooManyKeysError if there is none and the account cannot have another one.
        """
        with self._writing, _translated():
            if self._connection is None and not self._path.exists():
                return None
            connection = self._opened()
            self._remove_left(slot)
            row = connection.execute(_FIND, (slot, self._expired_us())).fetchone()
            if row is not None:
                return KeyedSubmission(*row)
            if self._is_full(account):
                self._prune(connection, KEYS_MAX)
            if self._is_full(account):
                raise TooManyKeysError(
                    f"{account} has used {self._counts[account]} idempotency keys within 24 hours, "
                    f"and all accounts {self._counts.total()}; the maximum is "
                    f"{KEYS_PER_ACCOUNT_MAX} and {KEYS_MAX}."
                )
            return None

    def record(self, submission: PendingSubmission) -> None:
        """Record a submission with a key durably. Everything else of it is durable already.

        Raises BeingSentError if the key was used meanwhile, OutcomeUnknownError, OSError.
        """
        key = submission.options.key
        assert key is not None, "only submissions with a key are recorded"
        row = (
            key.slot,
            key.account,
            key.fingerprint(),
            submission.submission_id,
            f"{submission.path.parent.name}/{submission.path.name}",
            submission.internet_message_id,
            key.preference_applied(),
            self._clock.queue_us(),
        )
        with self._joining:
            mine = self._next
            mine.rows.append(row)
        with self._writing:
            if not mine.is_done:
                with self._joining:
                    self._next = _Commit()
                self._commit(mine)
        if mine.error is not None:
            self.withdraw(submission)  # the disk may have the record nevertheless
            raise mine.error
        if submission.submission_id in mine.refused:
            raise BeingSentError("Another request with this Idempotency-Key was just carried out.")

    def withdraw(self, submission: PendingSubmission) -> None:
        """Remove the record of a submission that failed, before the submission is removed.

        It always writes, so that nothing of a failed commit is left. Raises OutcomeUnknownError if
        the record may be left; then the submission must be left too.
        """
        key = submission.options.key
        if key is None:
            return
        with self._writing:
            try:
                with _translated():
                    self._remove(key.slot, submission.submission_id)
            except StoreUnavailableError as error:
                self._left[key.slot] = submission.submission_id
                raise OutcomeUnknownError(
                    f"The record of {submission.submission_id} could not be removed: {error} "
                    "Whether it will be sent is not known before the next start."
                ) from error

    def places(self, submission_ids: Iterable[str]) -> Mapping[str, str]:
        """Return the place, "ready/…" or "deferred/…", of each of these that is recorded."""
        wanted = set(submission_ids)
        if not wanted or not self._path.exists():
            return {}
        with self._writing, _translated():
            rows = self._opened().execute("SELECT submission_id, place FROM submission")
            return {identifier: place for identifier, place in rows if identifier in wanted}

    def clear(self) -> None:
        """Remove all records."""
        with self._writing, _translated():
            if self._path.exists():
                connection = self._opened()
                with connection:
                    connection.execute("DELETE FROM submission")
            self._counts.clear()
            self._left.clear()

    def close(self) -> None:
        """Close the file."""
        with self._writing:
            if self._connection is not None:
                with suppress(apsw.Error):
                    self._connection.close()
                self._connection = None

    def _commit(self, commit: _Commit) -> None:
        """Write the records in one transaction, and remove some that have expired."""
        made: Counter[str] = Counter()
        try:
            with _translated():
                connection = self._opened()
                with connection:
                    made.subtract(self._removed(connection, _PRUNED_PER_RECORD * len(commit.rows)))
                    for row in commit.rows:
                        connection.execute(
                            "DELETE FROM submission WHERE slot = ? AND at_us <= ?",
                            (row[0], self._expired_us()),
                        )
                        made[row[1]] -= connection.changes()
                        connection.execute(_INSERT, row)
                        if not connection.changes():
                            commit.refused.add(row[3])
                        made[row[1]] += connection.changes()
        except StoreUnavailableError as error:
            commit.error = error
        else:
            self._counts.update(made)
        commit.is_done = True

    def _remove(self, slot: bytes, submission_id: str) -> None:
        connection = self._opened()
        with connection:
            connection.execute("UPDATE commits SET number = number + 1")
            removed = _accounts(
                connection,
                "DELETE FROM submission WHERE slot = ? AND submission_id = ? RETURNING account",
                (slot, submission_id),
            )
        self._counts.subtract(removed)

    def _remove_left(self, slot: bytes) -> None:
        """Before a key is used again, remove what withdraw() could not remove.

        Above the maximum no other key is used before one of them is removed. A submission that has
        left preparing/ is being sent: its record stays.
        """
        slots = [slot] if slot in self._left else []
        if len(self._left) >= _LEFT_MAX:
            slots.append(next(iter(self._left)))
        for one in dict.fromkeys(slots):
            submission_id = self._left[one]
            if (self._preparing / submission_id).exists():
                self._remove(one, submission_id)
            del self._left[one]

    def _is_full(self, account: str) -> bool:
        counts = self._counts
        return counts[account] >= KEYS_PER_ACCOUNT_MAX or counts.total() >= KEYS_MAX

    def _prune(self, connection: apsw.Connection, limit: int) -> None:
        with connection:
            removed = self._removed(connection, limit)
        self._counts.subtract(removed)

    def _removed(self, connection: apsw.Connection, limit: int) -> Counter[str]:
        return _accounts(connection, _PRUNE, (self._expired_us(), limit))

    def _expired_us(self) -> int:
        return self._clock.confirmed_us() - KEPT_S * 1_000_000

    def _opened(self) -> apsw.Connection:
        """Return the connection; the file is durable in its directory."""
        if self._connection is None:
            self._path.touch(0o600)
            connection = apsw.Connection(str(self._path))
            try:
                _set_up(connection)
                sync_directory(self._path.parent)
                rows: Any = connection.execute(
                    "SELECT account, count(*) FROM submission GROUP BY 1"
                )
                self._counts = Counter(dict(rows))
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection


def _accounts(connection: apsw.Connection, sql: str, values: tuple[Any, ...]) -> Counter[str]:
    """Return the accounts of the rows that a statement removes, and how many of each."""
    return Counter(str(account) for (account,) in connection.execute(sql, values).fetchall())


def _set_up(connection: apsw.Connection) -> None:
    connection.set_busy_timeout(_BUSY_MS)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # a commit is durable when it returns
    if connection.execute("PRAGMA user_version").get == 0:
        with connection:
            connection.execute(_SCHEMA)
            connection.execute(f"PRAGMA user_version = {_VERSION}")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (apsw.Error, OSError) as error:
        raise StoreUnavailableError(f"The records of keys cannot be used: {error}.") from error
