"""PgBouncer, HAProxy and Pgpool-II between nodes and their server: what gives a connection one session takes mail,
and nothing is lost in what changes sessions.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import pytest

from tests.postgres.conftest import PortsUrl, StartNode
from tests.postgres.test_server_away import ready_status, submit_code
from tests.postgres.test_several_hosts import CLIENTS, LOSE_WRITER
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer, database_of, process_owner, running_server
from tests.support.relay_process import RelayProcess, until
from tests.support.unpacked import UNPACKED, copied

POOLED = "a pooler gives each transaction another session (PgBouncer's pool_mode=transaction)"
NEEDED = 5  # connections of a service
PGBOUNCER = """\
[databases]
* = host={server.folder} port={server.port} user=relay
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
auth_file = {folder}/users
pool_mode = {mode}
default_pool_size = {size}
"""
PGPOOL = """\
backend_clustering_mode = 'streaming_replication'
backend_hostname0 = '{server.folder}'
backend_port0 = {server.port}
port = {port}
pcp_listen_addresses = ''
{sockets} = '{folder}'
pcp_socket_dir = '{folder}'
pid_file_name = '{folder}/pgpool.pid'
num_init_children = 12
max_pool = 1
sr_check_period = 0
load_balance_mode = off
"""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_server(is_synced=True) as started:
        yield started


class Front:
    """A program that a test starts in front of a server, at a port."""

    def __init__(self, server: PostgresServer | None, folder: Path, until_end: ExitStack) -> None:
        self._server = server
        self.folder = folder
        self._until_end = until_end
        self._environment = os.environ | {"LD_LIBRARY_PATH": str(folder)}
        self._file = folder / "configuration"
        self.port = free_port()

    def pgbouncer(
        self, mode: str = "session", *, text: str = PGBOUNCER, password: str = ""
    ) -> None:
        (self.folder / "users").write_text(f'"relay" "{password}"\n')
        self._write(text, mode=mode)
        self._start(self._found("pgbouncer"), "-q", self._file)

    def reload(self, mode: str) -> None:
        """Have PgBouncer take another mode."""
        self._write(PGBOUNCER, mode=mode)
        self.process.send_signal(signal.SIGHUP)

    def haproxy(self, text: str) -> None:
        self._write(text)
        self._start(self._found("haproxy"), "-db", "-f", self._file)

    def pgpool(self) -> None:
        program, name = self._found("pgpool"), "unix_socket_directories"  # since 4.4
        name = name if name.encode() in program.read_bytes() else "socket_dir"
        self._write(PGPOOL, sockets=name)
        self._start(program, "-n", "-f", self._file, "-F", os.devnull, "-a", os.devnull)

    def _write(self, text: str, **values: str) -> None:
        fixed = {"server": self._server, "port": self.port, "folder": self.folder}
        self._file.write_text(text.format(size=NEEDED + 1, **fixed, **values))

    def _found(self, name: str) -> Path:
        found = shutil.which(name, path="/usr/sbin:/usr/bin") or UNPACKED / "sbin" / name
        if not Path(found).exists():
            pytest.skip(f"{name} is not installed: tests/system-packages.sh")
        return copied(Path(found), self.folder)

    def _start(self, *command: object) -> None:
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=self.folder,  # HAProxy returns to its own, which may be closed to the other user
            env=self._environment,
            **process_owner(),
        )
        self.process = self._until_end.enter_context(process)
        self._until_end.callback(process.kill)


@contextmanager
def opened_front(server: PostgresServer | None = None) -> Iterator[Front]:
    """Yield a program that a text of the caller's configures, or that is in front of `server`."""
    with (
        tempfile.TemporaryDirectory(prefix="relay-pool-", dir="/tmp") as folder,
        ExitStack() as until_end,
    ):
        Path(folder).chmod(0o777)
        yield Front(server, Path(folder), until_end)


@pytest.fixture
def front(server: PostgresServer) -> Iterator[Front]:
    with opened_front(server) as found:
        yield found


@pytest.fixture
def behind(
    front: Front, node: StartNode, server: PostgresServer, url_by_ports: PortsUrl
) -> Callable[[], RelayProcess]:
    """Return a function that starts a relay behind the program."""
    return lambda: node("one", url=url_by_ports(database_of(server.create()), front.port))


def test_what_keeps_sessions_takes_mail(server: PostgresServer, front: Front, behind) -> None:
    """A pool has room for the service and one command: a probe that finds no place there says nothing."""
    front.pgpool()
    relay = behind()
    until("it takes mail", lambda: submit_code(relay, 1) == 250)
    until("all are connected", lambda: server.sql(CLIENTS) == str(NEEDED))
    assert relay.cli("check").returncode == 0
    server.sql(LOSE_WRITER)
    until("it takes mail again", lambda: submit_code(relay, 2) == 250)


def test_a_server_that_takes_no_writes_is_left_and_used_again(
    server: PostgresServer, front: Front, behind
) -> None:
    """PgBouncer tells each client what the server has told the first."""
    front.pgbouncer()
    relay = behind()
    server.configure(default_transaction_read_only="on")
    front.process.kill()
    front.process.wait()
    front.pgbouncer()
    until("left", lambda: b"takes no writes" in relay.request("GET", "/readyz").body)
    server.configure(default_transaction_read_only=None)
    until("used again", lambda: submit_code(relay, 1) == 250)


def test_no_mail_is_lost_where_the_mode_changes(front: Front, behind) -> None:
    front.pgbouncer("transaction")
    relay = behind()
    until("found", lambda: POOLED in relay.request("GET", "/readyz").body.decode())
    done = relay.cli("check")
    assert (done.returncode, POOLED in done.stderr) == (69, True)
    front.reload("session")
    until("ready", lambda: ready_status(relay) == 200)
    numbers, taken, identities = count(1), set(), []

    def send() -> int:
        """Send a message by SMTP and one by sendMail; return the reply to the first."""
        number = next(numbers)
        if (code := submit_code(relay, number)) == 250:
            taken.add(f"smtp {number}")
        identities.append(relay.send_mail(to=["bob@example.test"], subject=f"graph {number}"))
        taken.add(f"graph {number}")
        return code

    for mode, status, code in [("transaction", 503, 451), ("session", 200, 250)] * 2:
        front.reload(mode)
        until(f"{mode}: {status}", lambda: send() and ready_status(relay) == status)  # noqa: B023
        assert {send() for _ in range(10)} == {code}
    for identity in identities:
        relay.until_final(identity)
    until("all is there", lambda: taken <= set(relay.subjects("bob")))
    there = relay.subjects("bob")
    assert len(there) == len(set(there))
    assert "Traceback" not in relay.log
