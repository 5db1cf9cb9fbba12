"""Copy the database of a spool by pg_dump, and restore it by pg_restore.

Both get the connection by libpq's environment variables, so that no list of processes shows the
password, and connect to the host of the connection that asks for them. They use nothing else of
the environment or of the user's files, as a node does. Where root works as the owner of state_dir,
they run as this user. The lock that keeps nodes away meanwhile is in nodes.py.

See the PostgreSQL documentation, "Environment Variables" and "Snapshot Synchronization Functions".
"""

import os
import shutil
import ssl
import subprocess
from collections.abc import Mapping
from tempfile import TemporaryFile
from typing import IO, Any

from relay.base.settings.environment import read_environment
from relay.base.settings.postgres_url import ServerOptions
from relay.store.spool.postgres.schema import schema_version
from relay.store.spool.postgres.server import system_user
from relay.store.spool.postgres.tables import ConnectionTables
from relay.store.spool.shared.stats import copied
from relay.store.spool.types import SpoolNotEmptyError, SpoolUnsupportedError

_NO_FILE = "/dev/null/none"
_SAID_MAX = 1000
_RELATIONS = (
    "SELECT format('%I', c.relname), c.relkind = 'r' FROM pg_class c"
    " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = current_schema()"
    " AND c.relkind <> 'i' AND NOT EXISTS"
    " (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')"  # of an extension
    " ORDER BY c.relkind <> 'r', 1"
)


def dump(tables: ConnectionTables, file: IO[bytes]) -> dict[str, Any]:
    """Write one snapshot of the tables into a file; return the counts for the manifest."""
    with tables.snapshot():
        tables.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        (snapshot,) = tables.fetch_one("SELECT pg_export_snapshot()")
        counts = {"schema": schema_version(tables)} | copied(tables)
        pattern = '"{}"'.format(_schema(tables).replace('"', '""'))
        words = (f"--snapshot={snapshot}", "--format=custom", f"--schema={pattern}")
        _run(tables.connection.place, "pg_dump", *words, stdout=file)
    return counts


def load(tables: ConnectionTables, file: IO[bytes]) -> None:
    """Create the tables that a file has, all or none. Raises SpoolNotEmptyError."""
    place = tables.connection.place
    if relations := tables.fetch(_RELATIONS):
        raise SpoolNotEmptyError(f"{place}: the schema is not empty: found {relations[0][0]}")
    words = ("--single-transaction", "--exit-on-error", "--no-owner", "--no-acl", "--dbname=")
    _run(place, "pg_restore", *words, f"--schema={_schema(tables)}", stdin=file)


def unload(tables: ConnectionTables) -> None:
    """Remove what load() has created."""
    names = [name for name, is_table in tables.fetch(_RELATIONS) if is_table]
    tables.execute(f"DROP TABLE {', '.join(names)}")
    tables.execute("DROP SEQUENCE event_number")


def keys_in(options: ServerOptions, file: IO[bytes], keys: set[str]) -> set[str]:
    """Return which of these submission keys are in a file of dump()."""
    with TemporaryFile() as rows:
        words = ("--data-only", "--table=submission", "--file=-")
        _run(options, "pg_restore", *words, stdin=file, stdout=rows)
        rows.seek(0)
        return {key for row in rows if (key := row.partition(b"\t")[0].decode()) in keys}


def _schema(tables: ConnectionTables) -> str:
    return str(tables.fetch_one("SELECT current_schema()")[0])


def _run(options: ServerOptions, program: str, *words: str, **files: IO[bytes]) -> None:
    """Run a program to its end. Raises SpoolUnsupportedError if it is missing, and with its message
    if it fails: one that is older than the server fails.
    """
    path = shutil.which(program)
    if path is None:
        raise SpoolUnsupportedError(
            f"{options}: there is no {program} in PATH, expected that of PostgreSQL's client"
            " programs, as new as the server or newer (Debian: postgresql-client)"
        )
    done = subprocess.run(  # type: ignore[call-overload] # noqa: S603 - words of this module
        [path, "--no-password", *words],
        env=_environment(options),
        **files,
        check=False,
        cwd="/",
        stderr=subprocess.PIPE,
        user=os.geteuid(),
        group=os.getegid(),
    )
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split())[:_SAID_MAX]
        raise SpoolUnsupportedError(f"{options}: {program} {done.returncode}: {said}")


def _environment(options: ServerOptions) -> Mapping[str, str]:
    hosts, ports = zip(*options.hosts, strict=True)
    authorities = _NO_FILE  # else libpq would verify with sslmode=require too
    if options.tls.startswith("verify-"):
        authorities = options.authorities or ssl.get_default_verify_paths().cafile or "system"
    own = {
        "PGHOST": ",".join(hosts),
        "PGPORT": ",".join(map(str, ports)),
        "PGDATABASE": options.database,
        "PGUSER": options.user or system_user(),
        "PGPASSWORD": options.password,
        "PGPASSFILE": _NO_FILE,
        "PGSSLMODE": options.tls,
        "PGSSLROOTCERT": authorities,
        "PGSSLCERT": options.certificate,
        "PGSSLKEY": options.key,
        "PGCONNECT_TIMEOUT": f"{options.timeout_s:.0f}",
        "PGAPPNAME": f"{options.application_name} backup",
        "LC_ALL": "C",
    }
    others = read_environment().variables.items()
    return {name: text for name, text in others if not name.startswith("PG")} | own
