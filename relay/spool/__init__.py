"""The durable queue: its values and Protocols (types, engine), and the engines that store it.

The SMTP server commits a message to the spool before it replies 250 (step 5). Delivery claims due
entries, attempts them and settles the result (step 6). It touches only its own files. The spool
keeps the invariants 1, 3, 7 and 9 of docs/design.md.

`engine` says what an engine must do; open() and storage() return one. The only one is SQLite, and
`spool.url` accepts no other scheme. It is imported on first use, so that a process that needs only
the values does not load it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relay.clock import Clock
    from relay.crashpoints import CrashPoints
    from relay.observe.metrics import Metrics
    from relay.settings.tree import Settings
    from relay.spool.engine import SpoolEngine, SpoolStorage


def open(  # noqa: A001 - called as spool.open()
    settings: "Settings",
    *,
    clock: "Clock",
    crash: "CrashPoints",
    metrics: "Metrics",
    delivers_captured: bool = False,
) -> "SpoolEngine":
    """Open the spool, create it, or migrate it, and resume `clock` from it.

    With `delivers_captured` captured mail is queued like other mail, and is captured once an
    attempt has that outcome; otherwise when it is accepted.
    Only the holder of the owner lock may call it. Raises SpoolError.
    """
    from relay.spool.sqlite.spool import open_engine  # noqa: PLC0415 - see above

    return open_engine(
        settings, clock=clock, crash=crash, metrics=metrics, delivers_captured=delivers_captured
    )


def load_engine() -> None:
    """Load the engine's modules and schema, for a process that gives up the rights to read them."""
    import relay.spool.sqlite.spool  # noqa: PLC0415 - see above
    import relay.spool.sqlite.storage  # noqa: F401, PLC0415
    from relay.spool.sqlite import migrate  # noqa: PLC0415

    migrate.schema()
    migrate.migrations()


def storage(settings: "Settings") -> "SpoolStorage":
    """Return the stored form of the spool; nothing is opened."""
    from relay.spool.sqlite.storage import SqliteStorage  # noqa: PLC0415 - see above

    return SqliteStorage(settings.spool_file)
