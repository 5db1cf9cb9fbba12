"""Connections to a real server: who gets one, what a refusal says, and which servers lose mail."""

import asyncio
import os
import socket
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import asyncpg
import pytest
import uvloop

from relay.base.settings.postgres_url import parse_postgres_url
from relay.store.spool.postgres.backup import dump
from relay.store.spool.postgres.server import (
    DatabaseHosts,
    server_faults,
    translate_postgres_errors,
)
from relay.store.spool.postgres.storage import PostgresStorage
from relay.store.spool.postgres.tables import ConnectionTables
from relay.store.spool.types import (
    SpoolDamagedError,
    SpoolError,
    SpoolFormatError,
    SpoolFullError,
    SpoolUnavailableError,
    SpoolUnsupportedError,
)
from tests.support.ports import free_port
from tests.support.postgres import PASSWORD, PostgresServer, database_of, running_server
from tests.support.relay_process import until
from tests.support.tables import each_row
from tests.support.tls import authority  # noqa: F401


@pytest.fixture
def tcp_url(postgres_server, postgres_url):
    return postgres_server.tcp_url(database_of(postgres_url))


async def connect(url: str) -> asyncpg.Connection:
    return await DatabaseHosts(parse_postgres_url(url)).connect(purpose="test")


async def refusal(url: str) -> str:
    """What a connection that must fail reports; never the password."""
    with pytest.raises(SpoolUnavailableError) as caught:
        await connect(url)
    text = str(caught.value)
    assert "secret" not in text
    return text


async def test_a_roles_own_settings_do_not_count(postgres_server, postgres_url):
    name = database_of(postgres_url)
    for setting in ("statement_timeout = 1", "default_transaction_isolation = 'serializable'"):
        postgres_server.sql(f"ALTER DATABASE {name} SET {setting}")
    connection = await connect(postgres_url)
    try:
        assert await connection.fetchval("SHOW statement_timeout") == "0"
        assert await connection.fetchval("SHOW transaction_isolation") == "read committed"
    finally:
        await connection.close()


async def test_no_password(postgres_server, postgres_url, monkeypatch, tmp_path):
    """None is taken from the environment."""
    (tmp_path / "pgpass").write_text(f"*:*:*:*:{PASSWORD}\n")
    (tmp_path / "pgpass").chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pgpass"))
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    url = postgres_server.tcp_url(database_of(postgres_url), password="")
    assert "the server refuses the password" in await refusal(url)


async def test_the_environment_does_not_count(postgres_url, tcp_url, monkeypatch):
    for name in ("HOST", "PORT", "USER", "DATABASE", "OPTIONS", "SSLMODE", "TARGETSESSIONATTRS"):
        monkeypatch.setenv(f"PG{name}", "1")
    monkeypatch.setenv("PGSSLNEGOTIATION", "direct")
    monkeypatch.setenv("PGSERVICE", "other")
    for url in (postgres_url, tcp_url):
        connection = await connect(url)
        assert await connection.fetchval("SELECT current_database()") == database_of(postgres_url)
        await connection.close()


async def test_the_first_host_that_takes_writes_is_taken(postgres_server, postgres_url):
    name, place = database_of(postgres_url), quote(str(postgres_server.folder), safe="")
    url = f"postgresql://relay@127.0.0.1:{free_port()},{place}:{postgres_server.port}/{name}"
    connection = await connect(url)
    await connection.close()
    postgres_server.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert "the server takes no writes: it is a standby" in await refusal(postgres_url)


async def test_what_is_lost_is_noticed(tcp_url):
    connection = await connect(tcp_url)
    try:
        own = connection._transport.get_extra_info("socket")
        assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
        assert await connection.fetchval("SHOW tcp_keepalives_idle") == "5"
    finally:
        await connection.close()


async def test_no_two_connections_use_a_name_of_a_statement(postgres_url, monkeypatch):
    """A pooler may give the session of one to that of another process, which must not run its statements."""
    hosts, names, count = DatabaseHosts(parse_postgres_url(postgres_url)), set(), 0
    for _ in range(2):
        monkeypatch.setattr(asyncpg.connection, "_uid", 0)  # as in another process
        connection = await hosts.connect(purpose="test")
        rows = await connection.fetch("SELECT name FROM pg_prepared_statements")
        names, count = names | {name for (name,) in rows}, count + len(rows)
        await connection.close()
    assert len(names) == count > 0


async def test_a_query_may_run_when_all_connections_end(postgres_url, monkeypatch):
    hosts = DatabaseHosts(parse_postgres_url(postgres_url))
    connection = await hosts.connect(purpose="test")
    prepare = asyncpg.Connection._get_statement

    async def end_after(*words, **more):
        prepared = await prepare(*words, **more)
        hosts.end_all()
        await asyncio.sleep(0)
        return prepared

    monkeypatch.setattr(asyncpg.Connection, "_get_statement", end_after)
    with pytest.raises(SpoolUnavailableError), translate_postgres_errors(hosts):
        await connection.fetchval("SELECT 1")


@pytest.fixture(scope="module")
def safe_server():
    """A server of whose settings the test may change any."""
    with running_server(is_synced=True) as server:
        yield server


@pytest.fixture
def safe_url(safe_server):
    url = safe_server.create()
    yield url
    safe_server.drop(url)


async def faults_of(url: str) -> list[str]:
    connection = await connect(url)
    try:
        return list(await server_faults(connection))
    finally:
        await connection.close()


async def test_a_safe_server_has_no_faults(safe_url):
    assert await faults_of(safe_url) == []


@pytest.mark.parametrize("name", ["fsync", "full_page_writes", "synchronous_commit"])
async def test_settings_that_lose_mail(safe_server, safe_url, name):
    safe_server.configure(**{name: "off"})
    try:
        until("the setting is read", lambda: safe_server.sql(f"SHOW {name}") == "off")
        assert await faults_of(safe_url) == [
            f"{name} is off: a crash of the server loses accepted mail"
        ]
    finally:
        safe_server.configure(**{name: None})
        until("the setting is read", lambda: safe_server.sql(f"SHOW {name}") == "on")


async def test_a_certificate_for_another_name(safe_server, safe_url, authority):  # noqa: F811
    url = safe_server.tcp_url(database_of(safe_url))
    url += f"?sslmode=verify-full&sslrootcert={authority.certificate}"
    serve_certificate(safe_server, authority.issue("DNS:other.test"))
    assert "certificate is not accepted: IP address mismatch" in await refusal(url)
    connection = await connect(url.replace("verify-full", "verify-ca"))
    await connection.close()
    assert "certificate is not accepted" in await refusal(url.partition("&")[0])  # the system's

    serve_certificate(safe_server, authority.issue("IP:127.0.0.1"))
    connection = await connect(url)
    assert await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    await connection.close()


@pytest.mark.parametrize("mode", ["disable", "require", "verify-ca", "verify-full"])
def test_pg_dump_connects_as_a_node_does(safe_server, authority, tmp_path, mode):  # noqa: F811
    serve_certificate(safe_server, authority.issue("IP:127.0.0.1"))
    url = safe_server.tcp_url(database_of(safe_server.create_spool())) + f"?sslmode={mode}"
    other = safe_server.tcp_url(database_of(safe_server.create())) + f"?sslmode={mode}"
    trusted = f"&sslrootcert={authority.certificate}" if mode.startswith("verify") else ""
    assert PostgresStorage(url + trusted, store="main", domains=()).back_up(tmp_path).counts
    target = PostgresStorage(other + trusted, store="main", domains=())
    with target.restored(tmp_path):
        assert target.exists()
    for one in (url, other):
        safe_server.drop(one.partition("?")[0])


def test_pg_dump_verifies_the_certificate(safe_server, authority, tmp_path):  # noqa: F811
    serve_certificate(safe_server, authority.issue("DNS:other.test"))
    spool = safe_server.create_spool()
    url = f"{safe_server.tcp_url(database_of(spool))}?sslmode=verify-full"
    for trusted in (f"&sslrootcert={authority.certificate}", ""):  # "": those of the system
        with closing(uvloop.new_event_loop()) as loop, (tmp_path / "dump").open("wb") as file:
            connection = loop.run_until_complete(connect(spool))
            connection.place = parse_postgres_url(url + trusted)
            with pytest.raises(SpoolUnsupportedError, match="certificate"):
                dump(ConnectionTables(loop, connection), file)
            loop.run_until_complete(connection.close())
    safe_server.drop(spool)


def serve_certificate(server: PostgresServer, made) -> None:
    """Have a server show a certificate in new connections."""
    for name, file in (("server.crt", made.certificate), ("server.key", made.key)):
        place = server.data / name
        place.write_bytes(file.read_bytes())
        place.chmod(0o600)
        os.chown(place, *owner_of(server.data))
    server.configure(ssl="off")
    server.configure(ssl="on")
    until("TLS is on", lambda: server.sql("SHOW ssl") == "on")


def owner_of(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid


@pytest.mark.parametrize(
    ("statement", "kind", "said"),
    [
        ("SELECT * FROM message", SpoolFormatError, 'relation "message" does not exist'),
        ("CREATE ROLE other", SpoolUnavailableError, "the role lacks a right"),
        ("SELECT 1/0", SpoolError, "division by zero"),
    ],
)
async def test_errors_of_statements(empty_database, statement, kind, said):
    connection = await connect(empty_database)
    try:
        with pytest.raises(kind, match=said) as caught, translate_postgres_errors():
            await connection.execute(statement)
        assert type(caught.value) is kind
    finally:
        await connection.close()


@each_row(
    "error, kind",
    [
        (asyncpg.DiskFullError("could not extend file"), SpoolFullError),
        (asyncpg.DataCorruptedError("invalid page"), SpoolDamagedError),
        (asyncpg.ReadOnlySQLTransactionError("cannot execute INSERT"), SpoolUnavailableError),
        (asyncpg.DeadlockDetectedError("deadlock detected"), SpoolUnavailableError),
        (asyncpg.InterfaceError("connection is closed"), SpoolUnavailableError),
        (ConnectionResetError(104, "Connection reset by peer"), SpoolUnavailableError),
        (BufferError("unexpected trailing 32 bytes in buffer"), SpoolUnavailableError),
    ],
)
def test_errors_that_need_a_broken_server(error, kind):
    with pytest.raises(kind) as caught, translate_postgres_errors("db"):
        raise error
    assert type(caught.value) is kind
    assert str(caught.value).startswith("db: ")


async def test_a_proxy_without_a_server_is_named_so() -> None:
    async with await asyncio.start_server(
        lambda _, writer: writer.close(), "127.0.0.1", 0
    ) as proxy:
        port = proxy.sockets[0].getsockname()[1]
        url = f"postgresql://relay@127.0.0.1:{port}/relay?sslmode=require"
        with pytest.raises(SpoolUnavailableError, match="closed, as by a proxy without a server"):
            await DatabaseHosts(parse_postgres_url(url)).connect(purpose="test")
