"""The tables of the spool: which there are, of which schema, and whether the role may use them."""

from relay.spool.postgres.tables import ConnectionTables, statement
from relay.spool.types import SpoolFormatError

SCHEMA = 2
_MIGRATION_LOCK = 0x72656C6179_000002  # "relay" and the number of the lock, as a 64-bit key
_TO_SCHEMA = {  # what leads to a schema from the one before it
    2: 'CREATE TABLE standing_hold (domain text COLLATE "C" PRIMARY KEY, reason text COLLATE "C"'
    " NOT NULL, since_us bigint NOT NULL, until_us bigint);"
}
# One transaction creates all tables of a schema.
_ALWAYS = frozenset(
    {"message", "content", "body", "entry", "recipient", "event", "schema_version", "node"}
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


def bring_to_schema(tables: ConnectionTables, *, now_us: int) -> None:
    """Create the tables if there are none, or add what those of an older schema lack. Raises
    SpoolFormatError, as schema_version().
    """
    tables.execute("SELECT pg_advisory_lock(?)", (_MIGRATION_LOCK,))  # an error ends the session
    if (found := schema_version(tables)) < SCHEMA:
        missing = [_TO_SCHEMA[version] for version in range(found + 1, SCHEMA + 1)] if found else ()
        script = "\n".join(missing) or statement("schema.sql")
        record = f"INSERT INTO schema_version VALUES ({SCHEMA}, {int(now_us)});"
        tables.wait(tables.connection.execute(f"BEGIN;\n{script}\n{record}\nCOMMIT;"))
    tables.execute("SELECT pg_advisory_unlock(?)", (_MIGRATION_LOCK,))


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
