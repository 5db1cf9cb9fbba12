"""The records of keys that Relay 0.2.0 left: rows of `.submissions/keys.sqlite`, read over once.

Those that may still be used become files (idempotency.py). When these are durable, the old file
goes: a crash before that leaves it to the next start, which writes the same files. With it a
submission becomes ready whose key was recorded when the process died, before it had its place.
"""

import hashlib
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import apsw

from relay.base.clock import Clock
from relay.base.files import fsync_path, sync_disk
from relay.mailbox.types import StoreUnavailableError
from relay.outbox.idempotency import KeyedSubmission, KeyedSubmissions
from relay.outbox.on_disk import SubmissionDirectory

_FILE = "keys.sqlite"
_BELONGING = ("-shm", "-wal", ".last-commit", "")  # the file last: without it nothing is read
_KEPT_US = 86_400_000_000
# `is_removed`: the request failed, and its submission was being removed.
_ROWS = (
    "SELECT account, slot, at_us, is_removed, fingerprint, submission_id, place,"
    " internet_message_id, preference_applied FROM submission WHERE at_us > ? ORDER BY at_us"
)


def read_old_keys(directory: SubmissionDirectory, keyed: KeyedSubmissions, clock: Clock) -> None:
    """Read over what 0.2.0 left, if there is any. Raises OSError, StoreUnavailableError."""
    folder = directory.ready.parent
    if not (file := folder / _FILE).exists():
        return
    for account, slot, at_us, is_removed, *values in _rows(file, clock):
        record = KeyedSubmission(*values)
        name = f"{hashlib.sha256(account.encode()).hexdigest()[:16]}-{slot.hex()}"
        if is_removed and directory.find_submission(record.submission_id) is None:
            continue
        keyed.write_old(name, record, at_us=at_us)
        with suppress(FileNotFoundError):
            prepared = directory.preparing / record.submission_id
            prepared.rename(f"{prepared}@{name}")
    sync_disk(folder)
    for ending in _BELONGING:
        (folder / f"{_FILE}{ending}").unlink(missing_ok=True)
    fsync_path(folder)
    keyed.forget()


def _rows(file: Path, clock: Clock) -> Iterator[Any]:
    try:
        with closing(apsw.Connection(str(file))) as connection:
            found = connection.execute("PRAGMA quick_check(1)").get
            if found != "ok":  # before the first row is written
                raise apsw.CorruptError(found)
            if connection.pragma("user_version"):  # else it has no tables yet
                yield from connection.execute(_ROWS, (clock.confirmed_us() - _KEPT_US,))
    except apsw.Error as error:
        raise StoreUnavailableError(
            f"the keys in {file} of Relay 0.2.0 cannot be read: {error}; without this file they are"
            " unknown, and a repeat of their requests is carried out again"
        ) from error
