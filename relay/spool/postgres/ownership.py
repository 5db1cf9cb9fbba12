"""Who owns the spool: one node, by an advisory lock of its write connection.

The lock ends with the session, so that what does not own the spool cannot write. Each owner is an
incarnation with a number; `owner` has the last one, with the session of its write connection. A
session that was lost may still be committing: its successor ends it first, and waits until it has
gone. So what the successor then reads is what became of the last commit.
"""

from msgspec import Struct

from relay.clock import rfc3339
from relay.observe.logs import get_logger
from relay.spool.postgres.rows import statement
from relay.spool.postgres.tables import ConnectionTables
from relay.spool.types import SpoolFormatError, SpoolInUseError, SpoolUnavailableError

SCHEMA = 1
# Of this application: "relay" and the number of the lock, as a 64-bit key.
_LOCK = 0x72656C6179_000001
_MIGRATION_LOCK = 0x72656C6179_000002
_END_MS = 5000
_SESSION = (
    "SELECT pid, CAST(backend_start AS text),"
    " (SELECT CAST(system_identifier AS text) FROM pg_control_system())"
    " FROM pg_stat_activity WHERE pid = pg_backend_pid()"
)
_END = (
    "SELECT pg_terminate_backend(pid, ?) FROM pg_stat_activity"
    " WHERE pid = ? AND CAST(backend_start AS text) = ? AND usename = current_user"
    " AND pid <> pg_backend_pid()"
    " AND (SELECT CAST(system_identifier AS text) FROM pg_control_system()) = ?"
)
# One transaction creates all tables of a schema.
_ALWAYS = frozenset(
    {"message", "content", "body", "entry", "recipient", "event", "migration", "owner"}
)
_THERE = (
    "SELECT CAST(tablename AS text) FROM pg_tables"
    " WHERE schemaname = current_schema() AND tablename = ANY(?)"
)
_MAY_CREATE = (
    "SELECT CAST(current_schema() AS text), CAST(current_user AS text),"
    " coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)"
)
_MAY_NOT_CHANGE = (
    "SELECT CAST(c.relname AS text) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE n.nspname = current_schema() AND c.relname = ANY(?) AND NOT"
    " (SELECT bool_and(has_table_privilege(c.oid, one))"
    " FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS one) ORDER BY 1"
)
_log = get_logger("spool")


class ServerSession(Struct, frozen=True):
    """The server's process for a connection."""

    pid: int
    begun: str
    system: str  # the identifier of the cluster


class Owner(Struct, frozen=True):
    """A row of `owner`."""

    incarnation: int
    home: str  # the id of its state_dir: a node's name may be that of several
    node: str
    since_us: int
    session: ServerSession


def read_owner(tables: ConnectionTables) -> Owner | None:
    """Return the last owner, None before the first."""
    row = tables.fetch_one(
        "SELECT incarnation, home, node, since_us, pid, begun, system FROM owner"
    )
    if row is None:
        return None
    incarnation, home, node, since_us, *session = row
    return Owner(incarnation, home, node, since_us, ServerSession(*session))


def session_of(tables: ConnectionTables) -> ServerSession:
    """Return the session of this connection."""
    row = tables.fetch_one(_SESSION)
    return ServerSession(row[0], row[1], row[2])


def end_session(tables: ConnectionTables, session: ServerSession) -> None:
    """End a session that may be left of a lost connection, and wait until it has gone.

    Raises SpoolUnavailableError if it has not gone in time.
    """
    values = (_END_MS, session.pid, session.begun, session.system)
    ended = tables.fetch_one(_END, values)
    if ended is not None and not ended[0]:
        raise SpoolUnavailableError(f"the server has not ended its process {session.pid} in time")


def take(tables: ConnectionTables, *, home: str, node: str, now_us: int) -> Owner:
    """Become the owner. Raises SpoolInUseError."""
    before = read_owner(tables)
    if before is not None and before.home == home:
        end_session(tables, before.session)
    if not _lock(tables):
        holder = read_owner(tables)
        raise _in_use(holder)
    incarnation = 1 if before is None else before.incarnation + 1
    owner = Owner(incarnation, home, node, now_us, session_of(tables))
    write_owner(tables, owner)
    return owner


def take_again(tables: ConnectionTables, own: Owner) -> Owner:
    """Go on as the owner on a new connection, after the old one was lost.

    Raises SpoolInUseError where another node, or a later start of this one, owns the spool.
    """
    _check_is(tables, own)
    end_session(tables, own.session)
    if not _lock(tables):
        raise _in_use(read_owner(tables))
    _check_is(tables, own)
    owner = Owner(own.incarnation, own.home, own.node, own.since_us, session_of(tables))
    write_owner(tables, owner)  # one more commit: what was read before is durable now as well
    return owner


def write_owner(tables: ConnectionTables, owner: Owner) -> None:
    """Replace the row, durably."""
    session = owner.session
    tables.execute(
        "INSERT INTO owner VALUES (1, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
        " incarnation = excluded.incarnation, home = excluded.home, node = excluded.node,"
        " since_us = excluded.since_us,"
        " pid = excluded.pid, begun = excluded.begun, system = excluded.system",
        (
            owner.incarnation,
            owner.home,
            owner.node,
            owner.since_us,
            session.pid,
            session.begun,
            session.system,
        ),
    )


def bring_to_schema(tables: ConnectionTables, *, now_us: int) -> None:
    """Create the tables if there are none. Raises SpoolFormatError, as schema_version()."""
    tables.execute("SELECT pg_advisory_lock(?)", (_MIGRATION_LOCK,))  # an error ends the session
    if schema_version(tables) == 0:
        script = statement("schema.sql")
        record = f"INSERT INTO migration VALUES ({SCHEMA}, {int(now_us)});"
        tables.wait(tables.connection.execute(f"BEGIN;\n{script}\n{record}\nCOMMIT;"))
    tables.execute("SELECT pg_advisory_unlock(?)", (_MIGRATION_LOCK,))


def tables_there(tables: ConnectionTables) -> frozenset[str]:
    """Return which tables of a spool there are, perhaps those of another program."""
    rows = tables.fetch(_THERE, (sorted(_ALWAYS),))
    return frozenset(name for (name,) in rows)


def schema_version(tables: ConnectionTables) -> int:
    """Return the version of the schema, 0 without tables. Raises SpoolFormatError for a newer one,
    and for tables that are not Relay's.
    """
    if not (there := tables_there(tables)):
        return 0
    if there != _ALWAYS:
        raise SpoolFormatError(
            f"the database has a table {min(there)} that is not Relay's: use one of its own"
        )
    (version,) = tables.fetch_one("SELECT coalesce(max(version), 0) FROM migration")
    if version > SCHEMA:
        raise SpoolFormatError(
            f"the spool has schema {version}, of a newer Relay; this one knows {SCHEMA}"
        )
    return int(version)


def missing_rights(tables: ConnectionTables) -> list[str]:
    """Return which rights the role lacks for an owner: a sentence for each."""
    schema, user, may_create = tables.fetch_one(_MAY_CREATE)
    if not (there := tables_there(tables)):
        if may_create:
            return []
        where = f"in the schema {schema}" if schema else "in any schema of its search_path"
        return [f"the role {user} may not create tables {where}: the database's owner may"]
    return [
        f"the role {user} may not change the table {name}: the database's owner may"
        for (name,) in tables.fetch(_MAY_NOT_CHANGE, (sorted(there),))
    ]


def _lock(tables: ConnectionTables) -> bool:
    return bool(tables.fetch_one("SELECT pg_try_advisory_lock(?)", (_LOCK,))[0])


def _check_is(tables: ConnectionTables, own: Owner) -> None:
    found = read_owner(tables)
    if found is None or found.incarnation != own.incarnation or found.home != own.home:
        raise _in_use(found)


def _in_use(holder: Owner | None) -> SpoolInUseError:
    who = "another node"
    if holder is not None:
        who = f"node {holder.node} since {rfc3339(holder.since_us)}"
    return SpoolInUseError(
        f"the spool is in use by {who}; several nodes on one spool are not supported yet"
    )
