"""The submissions that clients made with a key of their own (Idempotency-Key), for 24 hours.

A record is committed when everything of its submission is durable but its name in ready/ or
deferred/. From that commit on the submission exists, whatever fails after it: a start makes it
ready, and settle_keys() of UnfinishedSubmissions does so each second while the process runs. Until
then it is open: pickup does not begin it, and a repeat gets 503. A request with the
same key therefore finds either the record, or no submission.

Blocking; methods raise StoreError's children and OSError. docs/design.md 1.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import apsw

from relay.base.clock import Clock
from relay.mailbox.types import (
    BeingSentError,
    KeyedSubmission,
    PendingSubmission,
    StoreUnavailableError,
    TooManyKeysError,
)
from relay.outbox.idempotency_file import KeysFile, keys_file

KEPT_S = 24 * 3600
KEYS_PER_ACCOUNT_MAX = 100_000
KEYS_MAX = 1_000_000
_PRUNED_PER_RECORD = 4  # more than one, so that records never pile up
_OPEN_MAX = 10_000
_INSERT = """
INSERT INTO submission (
    slot, account, fingerprint, submission_id, place, internet_message_id, preference_applied, at_us
) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
"""
_FIND = """
SELECT fingerprint, submission_id, internet_message_id, preference_applied FROM submission
WHERE slot = ? AND at_us > ?
"""
_PRUNE = """
DELETE FROM submission WHERE slot IN (
    SELECT slot FROM submission WHERE at_us <= ? ORDER BY at_us LIMIT ?
)
RETURNING account
"""
_REMOVE_EXPIRED = "DELETE FROM submission WHERE slot = ? AND at_us <= ? RETURNING account"


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
        self._clock = clock
        self._file = KeysFile(keys_file(root), on_opened=self._read)
        self._writing = threading.RLock()  # held by every use of the file
        self._joining = threading.Lock()
        self._next = _Commit()
        self._counts: Counter[str] = Counter()
        self._open: dict[str, PendingSubmission] = {}  # not recorded or not ready: the disk failed

    @property
    def damage(self) -> str:
        """What is wrong with the records, "" for nothing."""
        return self._file.damage

    @property
    def commits(self) -> int:
        """The number of commits of the file since it was made; 0 before it is opened."""
        return self._file.commits

    def newest_us(self) -> int:
        """Return the queue time of the newest record, 0 without one."""
        with self._writing:
            if not self._file.exists():
                return 0
            with self._file.reading() as connection:
                return int(connection.execute("SELECT max(at_us) FROM submission").get or 0)

    @property
    def has_open(self) -> bool:
        """Whether the disk failed while a submission was recorded or made ready."""
        return bool(self._open)

    def find(self, account: str, slot: bytes) -> KeyedSubmission | None:
        """Return the submission that was made with a key.

        Raises TooManyKeysError if there is none and the account cannot have another one;
        StoreUnavailableError while the submission is open.
        """
        with self._writing:
            if not self._file.exists():
                return None
            with self._file.reading() as connection:
                self._check_open(slot)
                row = connection.execute(_FIND, (slot, self._expired_us())).fetchone()
            if row is not None:
                return KeyedSubmission(*row)
            if self._is_full(account):
                with self._file.transaction() as connection:
                    pruned = self._pruned(connection, KEYS_MAX)
                self._counts.subtract(pruned)
            if self._is_full(account):
                raise TooManyKeysError(
                    f"{account} has used {self._counts[account]} idempotency keys within 24 hours, "
                    f"and all accounts {self._counts.total()}; the maximum is "
                    f"{KEYS_PER_ACCOUNT_MAX} and {KEYS_MAX}."
                )
            return None

    def record(self, submission: PendingSubmission) -> None:
        """Record a submission with a key durably. Everything else of it is durable already.

        Raises BeingSentError if the key was used meanwhile: then nothing of it is recorded. After
        StoreUnavailableError the disk may have the record: call leave_open().
        """
        row = self._row(submission)
        with self._joining:
            mine = self._next
            mine.rows.append(row)
        with self._writing:
            if not mine.is_done:
                with self._joining:
                    self._next = _Commit()
                self._commit(mine)
        if mine.error is not None:
            raise mine.error
        if submission.submission_id in mine.refused:
            raise BeingSentError("Another request with this Idempotency-Key was just carried out.")

    def leave_open(self, submission: PendingSubmission) -> None:
        """Note a submission that may exist, and has to be recorded and made ready."""
        with self._writing:
            self._open[submission.submission_id] = submission

    def is_open(self, submission_id: str) -> bool:
        """Whether a submission has to be recorded and made ready, before pickup begins it."""
        return submission_id in self._open

    def has_open_of(self, draft_id: str) -> bool:
        """Whether a submission of a draft is open."""
        if not self._open:  # as usual: no commit is waited for
            return False
        with self._writing:
            return any(one.draft_id == draft_id for one in self._open.values())

    def open_submissions(self, limit: int) -> list[PendingSubmission]:
        """Return submissions that are open."""
        with self._writing:
            return list(islice(self._open.values(), limit))

    def record_again(self, submission: PendingSubmission) -> None:
        """Record an open submission: from then on it exists, whatever the disk has."""
        made: Counter[str] = Counter()
        with self._writing:
            with self._file.transaction() as connection:
                self._write(connection, self._row(submission), made=made)
            self._counts.update(made)

    def settled(self, submission_id: str) -> None:
        """Allow pickup to begin a submission, and its key to be used."""
        with self._writing:
            self._open.pop(submission_id, None)

    def read_file(self) -> None:
        """Open the file of the records, if there is one."""
        with self._writing:
            if self._file.exists():
                self._file.opened()

    # -- all records

    def places(self, submission_ids: Iterable[str]) -> Mapping[str, str]:
        """Return the place, "ready/…" or "deferred/…", of each of these that is recorded."""
        wanted = set(submission_ids)
        with self._writing:
            if not wanted or not self._file.exists():
                return {}
            with self._file.reading() as connection:
                rows = connection.execute("SELECT submission_id, place FROM submission")
                return {identifier: place for identifier, place in rows if identifier in wanted}

    def clear(self) -> None:
        """Remove all records."""
        with self._writing:
            if self._file.exists():
                with self._file.transaction() as connection:
                    connection.execute("DELETE FROM submission")
            self._counts.clear()
            self._open.clear()

    def abandon(self) -> None:
        """Close the file of a mail root that is missing; the next use opens what is there then.

        As at a start, what is there decides about submissions that are open.
        """
        with self._writing:
            self._file.abandon()
            self._open.clear()

    def close(self) -> None:
        """Close the file."""
        with self._writing:
            self._file.close()

    def _row(self, submission: PendingSubmission) -> Sequence[Any]:
        key = submission.options.key
        assert key is not None, "only submissions with a key are recorded"
        return (
            key.slot,
            key.account,
            key.fingerprint(),
            submission.submission_id,
            f"{submission.path.parent.name}/{submission.path.name}",
            submission.internet_message_id,
            key.preference_applied(),
            self._clock.queue_us(),
        )

    def _commit(self, commit: _Commit) -> None:
        """Write the records in one transaction, and remove some that have expired."""
        made: Counter[str] = Counter()
        try:
            with self._file.transaction() as connection:
                made.subtract(self._pruned(connection, _PRUNED_PER_RECORD * len(commit.rows)))
                for row in commit.rows:
                    if self._write(connection, row, made=made) == 0:
                        commit.refused.add(row[3])
        except StoreUnavailableError as error:
            commit.error = error
        else:
            self._counts.update(made)
        commit.is_done = True

    def _write(self, connection: apsw.Connection, row: Sequence[Any], *, made: Counter[str]) -> int:
        """Write one record; an expired one of the same key goes. Return the number of rows."""
        made.subtract(_accounts(connection, _REMOVE_EXPIRED, (row[0], self._expired_us())))
        connection.execute(_INSERT, row)
        made[row[1]] += connection.changes()
        return connection.changes()

    def _check_open(self, slot: bytes) -> None:
        opened = self._open
        if len(opened) >= _OPEN_MAX or any(_slot_of(one) == slot for one in opened.values()):
            raise StoreUnavailableError(
                "The disk failed during a request with an Idempotency-Key, whose message will be "
                "sent: repeat the request later."
            )

    def _is_full(self, account: str) -> bool:
        counts = self._counts
        return counts[account] >= KEYS_PER_ACCOUNT_MAX or counts.total() >= KEYS_MAX

    def _pruned(self, connection: apsw.Connection, limit: int) -> Counter[str]:
        return _accounts(connection, _PRUNE, (self._expired_us(), limit))

    def _expired_us(self) -> int:
        return self._clock.confirmed_us() - KEPT_S * 1_000_000

    def _read(self, connection: apsw.Connection) -> None:
        """Read what is kept in memory when the file is opened."""
        counts: Iterator[Any] = connection.execute(
            "SELECT account, count(*) FROM submission GROUP BY 1"
        )
        self._counts = Counter(dict(counts))


def _slot_of(submission: PendingSubmission) -> bytes:
    assert submission.options.key is not None
    return submission.options.key.slot


def _accounts(connection: apsw.Connection, sql: str, values: tuple[Any, ...]) -> Counter[str]:
    """Return the accounts of the rows that a statement removes, and how many of each."""
    return Counter(str(account) for (account,) in connection.execute(sql, values).fetchall())
