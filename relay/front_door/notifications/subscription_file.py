"""Subscriptions, and the file that keeps them: `subscriptions` in `.submissions` of the mail root.

A subscription belongs to a mailbox, so the file is in the mail root: the node that has the mail
root has its subscriptions. A backup does not contain the file. Each subscription has a position in
the change feed of its mailbox; notifications that were sent are not kept.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw
import msgspec
from msgspec import Struct

from relay.base.files import fsync_path
from relay.base.observe.logs import get_logger

_VERSION = 1
_SCHEMA = "CREATE TABLE subscription (id TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
_REMOVE = "DELETE FROM subscription WHERE id = ?"
_SAVE = "INSERT OR REPLACE INTO subscription VALUES (?, ?)"

_log = get_logger("notifications")


class Subscription(Struct, frozen=True):
    """A subscription: its receiver, and the changes that are sent to it.

    The comments have the names of Graph's subscription resource.
    """

    id: str  # a GUID
    creator: str  # the account whose token created it
    is_application: bool  # created with a token of the client, without a user
    mailbox: str  # whose messages these are
    folder_id: str  # "": all folders
    resource: str  # as the client wrote it
    change_types: tuple[str, ...]  # created, updated, deleted
    url: str  # notificationUrl
    lifecycle_url: str  # lifecycleNotificationUrl, "" for none
    client_state: str  # a secret: neither logged nor shown
    tls_version: str  # latestSupportedTlsVersion, which is only shown
    expires_us: int  # wall time
    position: str  # in the mailbox's change feed: earlier changes were sent
    failing_since_us: int = 0  # since when the receiver is down, in queue time; 0: it is up
    lifecycle_event: str = ""  # missed or subscriptionRemoved, still to be sent
    lifecycle_since_us: int = 0  # when that happened, queue time
    has_immutable_ids: bool = True  # False: an id names a message and its folder
    credentials: bytes = b""  # of the creator, at that time; b"": of a relay before 0.6


class SubscriptionFile:
    """The file. Blocking; one thread at a time uses it. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: apsw.Connection | None = None

    def open(self) -> list[Subscription]:
        """Return all subscriptions. A damaged file is renamed, and its subscriptions are lost."""
        try:
            return self._open()
        except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError, ValueError) as error:
            _log.error("subscriptions are lost", file=str(self._path), reason=str(error))
            self.close()
            for suffix in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    old = self._path.with_name(self._path.name + suffix)
                    old.rename(old.with_name(f"damaged-{old.name}"))
            return self._open()

    def _open(self) -> list[Subscription]:
        try:
            self._path.touch(0o600)
            self._connection = connection = apsw.Connection(str(self._path))
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            if not connection.pragma("user_version"):
                with connection:
                    connection.execute(f"{_SCHEMA}; PRAGMA user_version = {_VERSION}")
            fsync_path(self._path.parent)
            rows: list[Any] = connection.execute("SELECT value FROM subscription").fetchall()
            return [msgspec.msgpack.decode(value, type=Subscription) for (value,) in rows]
        except (apsw.FullError, apsw.IOError, apsw.CantOpenError, apsw.ReadOnlyError) as error:
            raise OSError(str(error)) from error

    def save(self, subscription: Subscription, *, durable: bool) -> None:
        """Store a subscription.

        Unless it is `durable`, a loss of power may restore its earlier state: then notifications
        are sent again.
        """
        self._write(
            _SAVE, [(subscription.id, msgspec.msgpack.encode(subscription))], durable=durable
        )

    def remove(self, ids: Sequence[str]) -> None:
        """Remove subscriptions, durably."""
        self._write(_REMOVE, [(subscription_id,) for subscription_id in ids], durable=True)

    def _write(self, sql: str, rows: Sequence[tuple[str | bytes, ...]], *, durable: bool) -> None:
        connection = self._connection
        if connection is None:
            raise OSError("the subscriptions are not open")
        try:
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            with connection:
                connection.executemany(sql, rows)
        except apsw.Error as error:
            raise OSError(str(error)) from error

    def close(self) -> None:
        """Close the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(apsw.Error):
                connection.close()
