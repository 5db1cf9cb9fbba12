"""The durable queue: its values and Protocols (types, engine), and the engines that store it.

The SMTP server commits a message to the spool before it replies 250 (step 5). Delivery claims due
entries, attempts them and records the result (step 6). It touches only its own files. The spool
keeps the invariants 1, 3, 7 and 9 of docs/design.md.

open() and storage() choose the engine, SQLite's or PostgreSQL's, by the scheme of `spool.url`. An
engine is imported on first use: a process that needs only the values loads no engine, and an engine
does not load the library of the other.

What callers see:

- `types`: messages, entries, claims, results, errors (also of the disk)
- `queue_commands`: retry, hold, release, cancel, reroute: in which state each is possible, and the
  state after it
- `usage`: stores the counts of mail that accounts send, and reads those of other nodes
- `engine`: what every engine does, and what each adds (SpoolEngine); its stored form for commands
  (SpoolStorage); kinds of faults of verify

The engines:

- `shared`: what both engines do alike, and the SQL that both databases understand
- `sqlite`: the engine on SQLite: its writer, its files, verify
- `postgres`: the engine on PostgreSQL, which several nodes share

Elsewhere: which state may follow which: `relay/base/message/lifecycle.py`; when an entry is due
again: `relay/delivery/retry.py`; which claims are fetched: `relay/delivery/queue_scanner.py`;
whether the result of an ended claim (lease, epoch) still counts: `transactions` of each engine.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relay.base.clock import Clock
    from relay.base.crashpoints import CrashPoints
    from relay.base.observe.metrics import Metrics
    from relay.base.settings.tree import Settings
    from relay.store.spool.engine import SpoolEngine, SpoolStorage


def open(  # noqa: A001 - called as spool.open()
    settings: "Settings",
    *,
    clock: "Clock",
    crash: "CrashPoints",
    metrics: "Metrics",
    delivers_captured: bool = False,
    holds_store: bool = True,
    alone: bool = False,
) -> "SpoolEngine":
    """Open the spool, create it, or migrate it, and resume `clock` from it.

    Captured mail is captured when it is accepted; with `delivers_captured` it is queued like other
    mail, and captured by an attempt. Without `holds_store` another node of the spool has the mail
    root of `mailboxes.store`, and claims all local mail. With `alone` the caller is in a block of
    SpoolStorage.restored(), which keeps all other nodes away. Only the holder of the owner lock may
    call it. Raises SpoolError.
    """
    if not settings.spool.is_file:
        from relay.store.spool.postgres import require_driver  # noqa: PLC0415 - see above
        from relay.store.spool.types import SpoolFormatError  # noqa: PLC0415

        require_driver()
        if text := left_behind(settings):
            raise SpoolFormatError(text)
        from relay.store.spool.postgres.spool import open_engine as open_on_server  # noqa: PLC0415

        engine: SpoolEngine = open_on_server(
            settings,
            clock=clock,
            crash=crash,
            metrics=metrics,
            delivers_captured=delivers_captured,
            holds_store=holds_store,
            alone=alone,
        )
    else:
        from relay.store.spool.sqlite.spool import open_engine  # noqa: PLC0415 - see above

        engine = open_engine(
            settings, clock=clock, crash=crash, metrics=metrics, delivers_captured=delivers_captured
        )
    engine.suppression.settings = settings.suppression
    return engine


def load_engine(settings: "Settings") -> None:
    """Load the engine's modules and schema, for a process that gives up the rights to read them."""
    import relay.store.spool.sqlite.spool  # noqa: PLC0415 - see above
    import relay.store.spool.sqlite.storage  # noqa: PLC0415
    from relay.store.spool.sqlite import migrate  # noqa: PLC0415

    migrate.schema()
    migrate.migrations()
    if not settings.spool.is_file:
        from relay.store.spool.postgres import require_driver  # noqa: PLC0415

        require_driver()
        import relay.store.spool.postgres.backup  # noqa: PLC0415
        import relay.store.spool.postgres.spool  # noqa: PLC0415
        import relay.store.spool.postgres.storage  # noqa: F401, PLC0415
        from relay.store.spool.postgres.tables import statement  # noqa: PLC0415

        statement("commit.sql")
        statement("schema.sql")


def storage(
    settings: "Settings", *, as_owner: Callable[[], AbstractContextManager[None]] = nullcontext
) -> "SpoolStorage":
    """Return the stored form of the spool; nothing is opened. `as_owner` returns a context in which
    the process has the user of the service: it connects to a server as this user. Raises
    SpoolFormatError.
    """
    if not settings.spool.is_file:
        from relay.store.spool.postgres import require_driver  # noqa: PLC0415 - see above

        require_driver()
        from relay.store.spool.postgres.storage import PostgresStorage  # noqa: PLC0415

        return PostgresStorage(
            settings.spool.url,
            store=settings.mailboxes.store,
            domains=settings.account_domains,
            as_owner=as_owner,
        )
    from relay.store.spool.sqlite.storage import SqliteStorage  # noqa: PLC0415 - see above

    return SqliteStorage(settings.spool_file)


def left_behind(settings: "Settings") -> str:
    """Return why a queue on a server cannot be used: entries still wait in a file of state_dir.
    Return "" if no entries wait there. Raises SpoolError.
    """
    if settings.spool.is_file or not settings.spool_file.exists():
        return ""
    from relay.store.spool.sqlite.storage import count_waiting  # noqa: PLC0415 - see above

    if not (count := count_waiting(settings.spool_file)):
        return ""
    noun = "entry" if count == 1 else "entries"
    return (
        f"spool.url: {settings.spool_file} has {count} {noun} that no relay would deliver:"
        f' deliver them first, with spool.url = "sqlite:{settings.spool_file.name}"'
    )
