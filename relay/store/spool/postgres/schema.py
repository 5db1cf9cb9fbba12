"""The tables of the spool: which there are, of which schema, and whether the role may use them."""

import asyncpg

from relay.base.observe.logs import get_logger
from relay.store.spool.postgres.tables import ConnectionTables, statement
from relay.store.spool.shared import suppression
from relay.store.spool.shared.columns import schema_difference
from relay.store.spool.types import SpoolFormatError, SpoolInUseError

_log = get_logger("spool")
SCHEMA = 4
_OF_0_2_0 = 1
_MIGRATION_LOCK = 0x72656C6179_000002  # "relay" and the number of the lock, as a 64-bit key
_TO_SCHEMA = {  # what leads to a schema from the one before it
    2: "ALTER TABLE recipient RENAME COLUMN owed TO owed_report;"
    ' CREATE TABLE standing_hold (domain text COLLATE "C" PRIMARY KEY, reason text COLLATE "C"'
    " NOT NULL, since_us bigint NOT NULL, until_us bigint);",
    3: 'CREATE TABLE usage (account text COLLATE "C" NOT NULL, node text COLLATE "C" NOT NULL,'
    ' changed_us bigint NOT NULL, counts text COLLATE "C" NOT NULL, PRIMARY KEY (account, node))'
    " WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);"
    " CREATE INDEX usage_changed ON usage (changed_us);",
    4: "ALTER TABLE recipient ADD COLUMN remote_id text COLLATE \"C\" NOT NULL DEFAULT '';"
    " CREATE INDEX recipient_remote_id ON recipient (remote_id) WHERE remote_id <> '';",
}
# A node that works on the tables.
_AT_WORK = (
    "SELECT n.name FROM node n JOIN pg_stat_activity a ON a.pid = n.pid"
    " AND CAST(a.backend_start AS text) = n.begun WHERE n.state = 'alive' LIMIT 1"
)
_COLUMNS = (
    "SELECT CAST(c.relname AS text), CAST(a.attname AS text) FROM pg_attribute a"
    " JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p') AND a.attnum > 0"
    " AND NOT a.attisdropped"
)
# One transaction creates all tables of a schema.
_ALWAYS = frozenset(
    {"message", "content", "body", "entry", "recipient", "event", "schema_version", "node"}
)
_THERE = (
    "SELECT CAST(tablename AS text) FROM pg_tables"
    " WHERE schemaname = current_schema() AND tablename = ANY(?)"
)
_HAS_SUPPRESSED = (
    "SELECT 1 FROM pg_tables WHERE schemaname = current_schema() AND tablename = 'suppressed'"
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


def bring_to_schema(tables: ConnectionTables, *, now_us: int) -> None:
    """Create the tables if there are none, or add what those of an older schema lack. Raises
    SpoolFormatError, as check_schema(); SpoolInUseError while a node needs tables of 0.2.0.
    """
    tables.execute("SELECT pg_advisory_lock(?)", (_MIGRATION_LOCK,))  # an error ends the session
    version = schema_version(tables)
    if version == _OF_0_2_0 and (at_work := tables.fetch_one(_AT_WORK)) is not None:
        raise SpoolInUseError(
            f"the node {at_work[0]} of Relay 0.2.0 works on the spool, whose tables change: stop it"
        )
    if version < SCHEMA:
        missing = [_TO_SCHEMA[to] for to in range(version + 1, SCHEMA + 1)] if version else ()
        script = "\n".join(missing) or statement("schema.sql")
        row = f"INSERT INTO schema_version VALUES ({SCHEMA}, {int(now_us)}) ON CONFLICT DO NOTHING;"
        tables.wait(tables.connection.execute(f"BEGIN;\n{script}\n{row}\nCOMMIT;"))
    check_schema(tables)
    if tables.fetch_one(_HAS_SUPPRESSED) is None and tables.fetch_one(_MAY_CREATE)[2]:
        tables.execute(suppression.TABLE)
    try:
        tables.wait(tables.connection.execute(statement("thresholds.sql")))
    except (
        asyncpg.PostgresError
    ) as error:  # such as a lock of somebody's; the next start tries again
        _log.warning("the thresholds of autovacuum were not set", error=str(error))
    tables.execute("SELECT pg_advisory_unlock(?)", (_MIGRATION_LOCK,))


def check_schema(tables: ConnectionTables) -> None:
    """Raise SpoolFormatError, as schema_version(), and for tables that differ from this schema,
    which they claim to have. Those that a start brings to it do not.
    """
    is_older = schema_version(tables) < SCHEMA
    text = schema_difference(statement("schema.sql"), tables.fetch(_COLUMNS))
    if text and not is_older:
        raise SpoolFormatError(
            f"the spool says schema {SCHEMA}, and has other tables. {text}."
            " See docs/operation-backup.md, Upgrade"
        )


def tables_there(tables: ConnectionTables) -> frozenset[str]:
    """Return which tables of a spool there are, perhaps those of another program."""
    rows = tables.fetch(_THERE, (sorted(_ALWAYS),))
    return frozenset(name for (name,) in rows)


def schema_version(tables: ConnectionTables) -> int:
    """Return the version of the schema, 0 without tables. Raises SpoolFormatError for a newer one,
    and for tables that are not Relay's, or those of a Relay before 0.2.0.
    """
    if not (there := tables_there(tables)):
        return 0
    if there != _ALWAYS:
        raise SpoolFormatError(
            f"the database has a table {min(there)} of another program, or of a Relay before 0.2.0:"
            " use a database of its own, and empty the queue of an old Relay with that version"
            " (docs/operation-backup.md, Upgrade)"
        )
    (version,) = tables.fetch_one("SELECT coalesce(max(version), 0) FROM schema_version")
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
