"""A PostgreSQL server of the tests' own: its data, socket and log in a folder of its own, on a free loopback port.

    with PostgresServer() as server:
        url = server.create()
        ... a relay with `[spool] url` = url ...
        server.drop(url)

It touches no other server of the machine. The fixtures `postgres_server`, one for each process of
pytest, and `postgres_url` and `empty_database`, a fresh database for each test, are in
tests/conftest.py. Local connections are trusted; those to the port need the password of the owner. Raises NoPostgresError,
with the reason to skip, where the programs are missing.
"""

import itertools
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import quote

import pytest

from relay.store.spool.postgres.schema import SCHEMA
from relay.store.spool.postgres.tables import statement
from tests.support.disks import short_place
from tests.support.ports import free_port
from tests.support.relay_process import WAIT_S, until

OWNER, PASSWORD = "relay", "a%secret"  # the role that owns each database
_PLACES = Path("/usr/lib/postgresql")  # Debian's
_NOBODIES = ("postgres", "nobody")  # who runs it where the tests run as root, which it refuses
_ADMIN = "postgres"
_COPIES_FILES = 15  # the first version whose CREATE DATABASE has a choice
# sh is the server from its `exec` on. What it leaves behind ends it, and its folder, where pytest
# was killed.
_START = """\
ended() { ! [ -e "$0/data/postmaster.pid" ]; }
clean() { kill -INT $$; for _ in $(seq 100); do ended && break; sleep 0.1; done; rm -rf "$0"; }
((read _ <&3 || clean) &) 3<&0
exec "$@" </dev/null
"""
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "max_wal_size": "256MB",
    "log_line_prefix": "%m [%p] %a: ",
}
_SYNCED = {"fsync": "on", "full_page_writes": "on"}
_EMPTY_SPOOL = """\
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid();
DO $$ BEGIN EXECUTE (
    SELECT 'TRUNCATE ' || string_agg(quote_ident(tablename), ', ') || ' RESTART IDENTITY'
    FROM pg_tables WHERE schemaname = 'public' AND tablename NOT IN ('salt', 'schema_version')
); END $$;
ALTER SEQUENCE event_number RESTART;
"""
_HBA = """\
local all all trust
local replication all trust
host all all 127.0.0.1/32 scram-sha-256
"""


class NoPostgresError(Exception):
    """Why there is no PostgreSQL here."""


class PostgresServer:
    """One server. With `is_synced` a commit is on the disk, as tests of crashes need it."""

    disk: ClassVar[str] = "/tmp"  # where data is that is synced

    def __init__(
        self, *, is_synced: bool = False, settings: Mapping[str, str] | None = None
    ) -> None:
        self._programs = _programs()
        self._is_synced = is_synced
        self._settings = _SETTINGS | (_SYNCED if is_synced else {}) | dict(settings or {})
        self._owner = process_owner()
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self._with_tables = ""  # a database
        self._used_again = ""  # the URL of one
        self.folder = Path()  # its socket is here
        self.port = 0

    def __enter__(self) -> Self:
        place = self.disk if self._is_synced else short_place()
        self.folder = Path(tempfile.mkdtemp(prefix="relay-pg-", dir=place))
        try:
            self.folder.chmod(0o755)
            if self._owner:
                os.chown(self.folder, self._owner["user"], self._owner["group"])
            self.port = free_port()
            self._fill()
            self._configure()
            self.start()
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(immediate=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def is_running(self) -> bool:
        """Whether it was started, and not stopped."""
        return self._process is not None

    @property
    def data(self) -> Path:
        """Its data directory."""
        return self.folder / "data"

    @property
    def log(self) -> str:
        """What it has logged since it was created."""
        return (self.folder / "log").read_text(errors="replace")

    @property
    def version(self) -> int:
        """Its major version."""
        return int((self.data / "PG_VERSION").read_text())

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        assert self._process is None, "it runs already"
        command = ["sh", "-c", _START, str(self.folder), *self._command()]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, **self._environment()
            )
        until("PostgreSQL is ready, or ends", self._is_ready_or_ended)
        assert self._process.poll() is None, self.log

    def stop(self, *, immediate: bool = False) -> None:
        """Stop it: connections are closed, and with `immediate` nothing is written any more."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.send_signal(signal.SIGQUIT if immediate else signal.SIGINT)
        process.wait(WAIT_S)
        with process.stdin as watcher:
            watcher.write(b"ended\n")

    def configure(self, **settings: str | None) -> None:
        """Change settings that take effect with a reload; None: as they were."""
        for name, value in settings.items():
            what = f"RESET {name}" if value is None else f"SET {name} = '{value}'"
            self.sql(f"ALTER SYSTEM {what}")
        self.sql("SELECT pg_reload_conf()")

    def sql(self, statement: str, *, database: str = _ADMIN, user: str = _ADMIN) -> str:
        """Run a statement as a superuser; return the rows as psql prints them unaligned."""
        return self._psql("-c", statement, database=database, user=user)

    def load(self, script: Path, *, database: str, user: str) -> None:
        """Run the statements of a file."""
        self._psql("-f", str(script), database=database, user=user)

    def _psql(self, *words: str, database: str, user: str) -> str:
        command = [
            str(self._programs / "psql"),
            "-XAtq",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            str(self.folder),
            "-p",
            str(self.port),
            "-U",
            user,
            "-d",
            database,
            *words,
        ]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=WAIT_S, cwd="/"
        )
        assert done.returncode == 0, f"{words[-1]}: {done.stderr}"
        return done.stdout.strip()

    def create(self, *, template: str = "template1", options: str = "") -> str:
        """Create a database, which OWNER owns; return its URL. `options` are of CREATE DATABASE."""
        name = f"relay_{next(self._numbers)}"
        if not self._is_synced and self.version >= _COPIES_FILES:
            options += " STRATEGY FILE_COPY"  # which is faster where nothing is synced
        self.sql(f"CREATE DATABASE {name} OWNER {OWNER} TEMPLATE {template} {options}")
        return self.url(name)

    def create_spool(self) -> str:
        """Create a database with the tables of a spool; return its URL. It is the copy of one."""
        if not self._with_tables:
            self._with_tables = database_of(self.create())
            record = f"INSERT INTO schema_version VALUES ({SCHEMA}, 0);"
            script = f"BEGIN;{statement('schema.sql')}{record}COMMIT"  # as bring_to_schema() does
            self.sql(script, database=self._with_tables, user=OWNER)
        return self.create(template=self._with_tables)

    def emptied_spool(self) -> str:
        """Return the URL of one database, as create_spool() makes them, for each test that changes rows
        only: to empty it takes a third of what a new one takes. What is still connected is cut off.
        """
        if not self._used_again:
            self._used_again = self.create_spool()
        self.sql(_EMPTY_SPOOL, database=database_of(self._used_again))
        return self._used_again

    def empty(self, url: str) -> None:
        """Remove all that is in a database."""
        again = f"CREATE SCHEMA public AUTHORIZATION {OWNER}"
        self.sql(f"DROP SCHEMA public CASCADE; {again}", database=database_of(url))

    def drop(self, url: str) -> None:
        """Remove a database, and end the connections to it."""
        self.sql(f"DROP DATABASE IF EXISTS {database_of(url)} WITH (FORCE)")

    def url(self, database: str, *, user: str = OWNER) -> str:
        """A URL that uses the socket, and needs no password."""
        return f"postgresql://{user}@/{database}?host={self.folder}&port={self.port}"

    def tcp_url(self, database: str, *, user: str = OWNER, password: str = PASSWORD) -> str:
        """A URL that uses the port."""
        return f"postgresql://{user}:{quote(password)}@127.0.0.1:{self.port}/{database}"

    def _fill(self) -> None:
        """Make its data directory."""
        self._run(
            "initdb",
            "-U",
            _ADMIN,
            "--no-instructions",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
        )
        (self.data / "pg_hba.conf").write_text(_HBA)

    def _begin(self) -> None:
        """Make what all tests use."""
        self.sql(f"CREATE ROLE {OWNER} LOGIN PASSWORD '{PASSWORD}'")

    def _command(self) -> list[str]:
        """What runs it, and ends it by SIGINT."""
        return [str(self._programs / "postgres"), "-D", str(self.data)]

    def _run(self, program: str, *words: str) -> None:
        command = [str(self._programs / program), "-D", str(self.data), "--no-sync", *words]
        done = subprocess.run(
            command, check=False, capture_output=True, timeout=WAIT_S, **self._environment()
        )
        assert done.returncode == 0, done.stderr.decode()

    def _configure(self) -> None:
        settings = self._settings | {
            "unix_socket_directories": str(self.folder),
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
        }
        lines = [f"{name} = '{value}'\n" for name, value in settings.items()]
        (self.data / "postgresql.conf").write_text("".join(lines))

    def _environment(self) -> dict[str, Any]:
        """How a program of the server runs."""
        environ = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
        return {"cwd": self.folder, "env": environ, **self._owner}

    def _is_ready_or_ended(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            return True
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        is_own = lines[:1] == [str(self._process.pid)]
        return is_own and len(lines) == 8 and lines[7].strip() in ("ready", "standby")


class StandbyServer(PostgresServer):
    """A copy of a running server that follows it, and confirms nothing."""

    def __init__(self, primary: PostgresServer) -> None:
        super().__init__()
        self._primary = primary

    def catch_up(self) -> None:
        """Wait until it has what its primary has committed."""
        place = self._primary.sql("SELECT pg_current_wal_lsn()")
        reached = f"SELECT pg_last_wal_replay_lsn() >= '{place}'"
        until("the standby has it", lambda: self.sql(reached) == "t")

    def cut_off(self) -> None:
        """From now on nothing comes from the primary."""
        self.configure(primary_conninfo="")
        receiving = "SELECT count(*) FROM pg_stat_wal_receiver"
        until("nothing is received", lambda: self.sql(receiving) == "0")

    def promote(self) -> None:
        """Take writes, without what has not come."""
        self.sql("SELECT pg_promote()")

    def _fill(self) -> None:
        primary = ("-h", str(self._primary.folder), "-p", str(self._primary.port), "-U", _ADMIN)
        self._run("pg_basebackup", *primary, "--write-recovery-conf", "--checkpoint=fast")

    def _begin(self) -> None:
        """It has what its primary has."""


def database_of(url: str) -> str:
    """The name of the database of a URL of PostgresServer."""
    return url.partition("?")[0].rpartition("/")[2]


def running_server(*, is_synced: bool = False) -> PostgresServer:
    """Return a server, not started; the test is skipped without programs, and fails in CI."""
    try:
        return PostgresServer(is_synced=is_synced)
    except NoPostgresError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(str(error))


def _programs() -> Path:
    """Return the directory of the newest programs, or of those that RELAY_TEST_PG names."""
    if chosen := os.environ.get("RELAY_TEST_PG"):
        found = [Path(chosen)]
    else:
        found = sorted(_PLACES.glob("*/bin"), key=_version, reverse=True)
    for place in found:
        if all((place / name).exists() for name in ("initdb", "postgres", "psql")):
            return place
    raise NoPostgresError("PostgreSQL is not installed: tests/system-packages.sh installs it")


def _version(place: Path) -> int:
    number = re.match(r"\d+", place.parent.name)
    return int(number[0]) if number else 0


def process_owner() -> dict[str, Any]:
    """Return who runs a program that refuses to be root's, as subprocess takes it."""
    if os.geteuid():
        return {}
    for name in _NOBODIES:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
    raise NoPostgresError("PostgreSQL does not run as root, and there is no user nobody")
