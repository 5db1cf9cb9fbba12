"""PgBouncer between a node and its server: only its session mode is one session for each connection."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from relay.base.settings.postgres_url import parse_postgres_url
from relay.store.spool.postgres.server import DatabaseHosts, server_faults
from tests.support.ports import free_port
from tests.support.postgres import database_of, process_owner, running_server
from tests.support.relay_process import WAIT_S, until
from tests.support.unpacked import UNPACKED, copied

CONFIGURATION = """\
[databases]
{database} = host={server.folder} port={server.port} dbname={database} user=relay
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
auth_file = {folder}/users
pool_mode = {mode}
default_pool_size = 3
{more}
"""


@pytest.fixture(scope="module")
def server():
    with running_server(is_synced=True) as server:
        yield server


@pytest.fixture
def pooled_url(server, request):
    """The URL of a database through PgBouncer, in the mode that the test has as its parameter."""
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin") or UNPACKED / "sbin/pgbouncer"
    if not Path(program).exists():
        pytest.skip("pgbouncer is not there: make test unpacks it")
    url, port = server.create(), free_port()
    database = database_of(url)
    with tempfile.TemporaryDirectory(prefix="relay-pgb-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        Path(folder, "users").write_text('"relay" ""\n')
        configuration = Path(folder, "pgbouncer.ini")
        command = [copied(Path(program), Path(folder)), "-q", configuration]
        configuration.write_text(
            CONFIGURATION.format(
                database=database,
                server=server,
                port=port,
                folder=folder,
                mode=request.param,
                more="" if version(command[0], folder) < (1, 21) else "max_prepared_statements = 0",
            )
        )
        with subprocess.Popen(
            command,
            env=os.environ | {"LD_LIBRARY_PATH": folder},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **process_owner(),
        ) as pooler:
            until("PgBouncer listens", lambda: is_open(port) or pooler.poll() is not None)
            assert pooler.poll() is None, "PgBouncer has ended"
            yield f"postgresql://relay@127.0.0.1:{port}/{database}"
            pooler.kill()
            pooler.wait(WAIT_S)
    server.drop(url)


def version(program, folder):
    """From 1.21 on a pooler keeps statements apart in each mode, unless it is told not to."""
    done = subprocess.run(
        [program, "--version"],
        env={"LD_LIBRARY_PATH": folder},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return tuple(map(int, done.stdout.split()[1].split(".")[:2]))


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    ("pooled_url", "count"),
    [("session", 0), ("transaction", 1), ("statement", 1)],
    indirect=["pooled_url"],
)
async def test_the_mode_of_a_pooler(pooled_url, count):
    hosts = DatabaseHosts(parse_postgres_url(pooled_url))
    connection = await hosts.connect(purpose="check")
    try:
        faults = await server_faults(hosts, connection)
    finally:
        connection.terminate()
    assert len(faults) == count
    assert all("PgBouncer's pool_mode=transaction" in one for one in faults)
