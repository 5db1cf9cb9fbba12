"""Connect to the PostgreSQL server, say what is wrong with it, and translate its errors.

No error text contains the password: the texts of the server do not, and the URL is shown as
str(ServerOptions). See the PostgreSQL documentation, "Error Codes" and "Client Connection
Defaults".
"""

import asyncio
import contextlib
import os
import pwd
import secrets
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import asyncpg
from msgspec.structs import replace

from relay.base.clock import boot_s
from relay.base.phrases import words_in
from relay.base.settings.postgres_url import ServerOptions, parse_postgres_url
from relay.base.socket_address import Address
from relay.store.spool.types import (
    SpoolDamagedError,
    SpoolError,
    SpoolFormatError,
    SpoolFullError,
    SpoolUnavailableError,
)

VERSION_MIN = 15
# These override the settings of a role or a database. A server that has lost its client ends the
# session, and so releases its lock, as soon as the client notices the loss.
_SESSION = """\
SET standard_conforming_strings = on;
SET default_transaction_isolation = 'read committed';
SET default_transaction_deferrable = off;
SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = '10s';
SET client_min_messages = warning;
SET jit = off;
SET tcp_keepalives_idle = 5;
SET tcp_keepalives_interval = 5;
SET tcp_keepalives_count = 3;
SET tcp_user_timeout = '20s';
"""
_KEEPALIVE = {
    socket.TCP_KEEPIDLE: 5,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 20_000,
}
_STATEMENTS_KEPT = 500
_HOST_MIN_S = 2.0
_PASSWORD_S = 10.0
# "CLUSTER/TIMELINE", the system identifier and 8 hexadecimal digits: a promotion raises them.
TIMELINE = (
    "(SELECT CAST(system_identifier AS text) FROM pg_control_system()) || '/'"
    " || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)"
)
_PID = "SELECT pg_backend_pid()"
_POOLER_ROUNDS = 3
_POOLER_WAIT_S = 5.0
# A session lacks what this connection prepared, or has it already; or commit.sql found the process
# of another session.
OTHER_SESSION = (
    asyncpg.InvalidSQLStatementNameError,
    asyncpg.DuplicatePreparedStatementError,
    asyncpg.InvalidArgumentForLogarithmError,
)
# Of a login: the server's, and PgBouncer's.
_REFUSALS = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.ProtocolViolationError)
_SETTINGS_THAT_LOSE_MAIL = ("fsync", "full_page_writes", "synchronous_commit")

_NO_ANSWER = "the database does not answer"
_POOLED = (
    "a pooler gives each transaction another session (PgBouncer's pool_mode=transaction): connect"
    " to the server itself, or set pool_mode=session"
)
# By SQLSTATE, or its class of two characters.
_TEXTS = {
    **dict.fromkeys((error.sqlstate for error in OTHER_SESSION), _POOLED),
    "28P01": "the server refuses the password",
    "28": "the server refuses the login",
    "3D000": "there is no such database",
    "42501": "the role lacks a right that the spool needs: the database's owner has it",
    "3F": "the role has no schema for the spool: the database's owner has one",
    "25006": "the server takes no writes: it is a standby, or was set to read only",
    "53100": "the disk of the server is full",
    "53300": "the server has no connection left",
    "57P03": "the server is starting, or stopping",
    "57P01": "the server ended the connection",
    "57P02": "the server ended the connection, because another one crashed",
    "08": _NO_ANSWER,
    "08P01": "a pooler refuses the login, or what answers does not speak PostgreSQL's protocol",
    "0A000": "the server does not support what the spool needs",
}
_UNAVAILABLE = words_in("2201E 26000 42P05 3D000 42501 3F 08 25 28 40 53 55 57 58")
_KINDS: Mapping[str, type[SpoolError]] = {
    **dict.fromkeys(_UNAVAILABLE, SpoolUnavailableError),
    "53100": SpoolFullError,
    "XX001": SpoolDamagedError,
    "XX002": SpoolDamagedError,
    "42": SpoolFormatError,  # no such table or column, or one of another type
}


class _KeptConnection(asyncpg.Connection):  # type: ignore[misc] # asyncpg has no types
    """A connection whose loss is noticed within 20 s, although nothing is written. The names of its
    prepared statements are its own: a pooler may give the session to another connection.
    """

    # ServerOptions with its host only; the server's process for its session
    __slots__ = ("_suffix", "pid", "place")

    def __init__(self, protocol: Any, transport: asyncio.Transport, *others: Any) -> None:
        super().__init__(protocol, transport, *others)
        self._suffix = secrets.token_hex(8)
        own = transport.get_extra_info("socket")
        if own is not None and own.family != socket.AF_UNIX:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE.items():
                own.setsockopt(socket.IPPROTO_TCP, option, value)

    def _get_unique_id(self, prefix: str) -> str:
        return f"{super()._get_unique_id(prefix)}{self._suffix}"

    def abort(self) -> None:
        """End the connection. What uses it raises asyncpg's exceptions; after terminate() some of
        it raises AttributeError.
        """
        self._transport.abort()


class DatabaseHosts:
    """The hosts of the URL, and what this process knows of them: which was used last, the newest
    timeline of which database cluster, and which are poolers that may be used. Threads share it.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self._used = options.hosts[0]  # last
        self._newest = ""  # as TIMELINE
        self._poolers: set[tuple[str, int]] = set()  # whose mode was asked for
        # each connection with its loop, also closed ones
        self._connections: WeakKeyDictionary[Any, asyncio.AbstractEventLoop] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._password_s = 0.0  # when the password may be read again

    def __str__(self) -> str:
        return str(self.options)

    async def connect(self, *, purpose: str, lost: Any = None) -> asyncpg.Connection:
        """Return a connection to a host that takes writes. The search begins with the host that
        was used last, or behind it if the connection replaces one to it, which was `lost`.

        `purpose` is a part of its name in pg_stat_activity. Raises SpoolError with what the hosts
        say, first that which was used last: others are most often healthy standbys.
        """
        hosts, errors = self.options.hosts, dict[tuple[str, int], SpoolError]()
        first = hosts.index(self._used) + (lost is not None and lost.place.hosts[0] == self._used)
        for host in hosts[first:] + hosts[:first]:
            try:
                return await self.connect_to(host, purpose=purpose)
            except SpoolError as error:
                errors[host] = error
        if len(errors) == 1:
            raise errors.popitem()[1]
        raise SpoolUnavailableError(f"{self}: {self._said(errors)}")

    def _said(self, errors: Mapping[tuple[str, int], SpoolError]) -> str:
        """Return a sentence with what hosts say; those that say the same are named together."""
        hosts_of: dict[str, list[str]] = {}
        for host in sorted(errors, key=lambda host: host != self._used):
            said = str(errors[host]).removeprefix(f"{replace(self.options, hosts=(host,))}: ")
            hosts_of.setdefault(said, []).append(str(Address(*host)))
        return "; ".join(f"{', '.join(hosts)}: {said}" for said, hosts in hosts_of.items())

    async def faults_of_others(self, used: asyncpg.Connection) -> list[str]:
        """Return a sentence for each host, other than that of a connection, that could not take
        over, as a standby could. If another one has taken over, the connection may end.
        """
        faults, newest = list[str](), self._newest
        others = [host for host in self.options.hosts if (host,) != used.place.hosts]
        for host in others:
            try:
                (await self.connect_to(host, purpose="check")).terminate()
            except SpoolError as error:
                if not isinstance(error.__cause__, asyncpg.TargetServerAttributeNotMatched):
                    faults.append(str(error))
        if self._newest != newest:
            faults.append(f"{used.place}: an old primary still takes writes: stop this server")
        return faults

    async def connect_to(self, host: tuple[str, int], *, purpose: str) -> asyncpg.Connection:
        """Return a connection to one of the hosts, if it takes writes. Raises SpoolError."""
        used = self.options.password
        try:
            return await self._connect_to(host, purpose)
        except SpoolUnavailableError as error:
            if not (isinstance(error.__cause__, _REFUSALS) and self._has_other_password(used)):
                raise
        return await self._connect_to(host, purpose)

    def _has_other_password(self, used: str) -> bool:
        """Whether there is another password than the server has refused: it is read again."""
        with self._lock:
            read, now_s = self.options.read_url, boot_s()
            if read and used == self.options.password and now_s >= self._password_s:
                self._password_s = now_s + _PASSWORD_S
                with contextlib.suppress(ValueError):  # such as no such file: the refusal stays
                    password = parse_postgres_url(read()).password
                    self.options = replace(self.options, password=password)
            return used != self.options.password

    async def _connect_to(self, host: tuple[str, int], purpose: str) -> asyncpg.Connection:
        share_s = max(self.options.timeout_s / len(self.options.hosts), _HOST_MIN_S)
        place = replace(self.options, hosts=(host,), timeout_s=share_s)
        with translate_postgres_errors(place):
            connection = await _session(place, purpose)
            try:
                async with asyncio.timeout(share_s):  # real time: the server
                    await self._compare(connection)
                await self._ask_mode(connection)
            except BaseException:
                connection.terminate()
                raise
        self._used = host
        return connection

    async def _ask_mode(self, connection: asyncpg.Connection) -> None:
        """Raise SpoolUnavailableError for a pooler that changes sessions. It is asked once."""
        (host,) = connection.place.hosts
        if connection.pid != connection.get_server_pid() and host not in self._poolers:
            if await _changes_sessions(connection):
                raise SpoolUnavailableError(f"{connection.place}: {_POOLED}")
            self._poolers.add(host)

    def end_all(self) -> None:
        """End all connections: a pooler has mixed their sessions. The next asks for its mode."""
        with self._lock:
            self._poolers.clear()
            self._end_connections()

    def _end_connections(self) -> None:
        for connection, loop in self._connections.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(connection.abort)

    async def _compare(self, connection: asyncpg.Connection) -> None:
        """Compare the server's timeline with the newest one. Raises SpoolUnavailableError if it is
        older, or another cluster's, and TargetServerAttributeNotMatched if it takes no writes. A
        newer one ends the connections to the older, with what is not yet answered. A pooler in
        session mode has one server for each connection.
        """
        # It is asked: PgBouncer reports what the first server said.
        if await connection.fetchval("SHOW transaction_read_only") == "on":
            raise asyncpg.TargetServerAttributeNotMatched
        row = await connection.fetchrow(f"SELECT {TIMELINE}, pg_backend_pid()")
        timeline, connection.pid = row
        with self._lock:
            newest = self._newest or timeline
            if timeline < newest or timeline.partition("/")[0] != newest.partition("/")[0]:
                raise SpoolUnavailableError(
                    f"{connection.place}: found timeline {timeline}, expected {newest} or newer:"
                    " stop this server, or restart Relay to use it"
                )
            if timeline > newest:
                self._end_connections()
            self._newest = timeline
            self._connections[connection] = asyncio.get_running_loop()


async def server_faults(connection: asyncpg.Connection) -> Sequence[str]:
    """Return a sentence for each fault that makes the server unsafe or unfit for mail."""
    faults = []
    with translate_postgres_errors(connection.place):
        major = connection.get_server_version().major
        if major < VERSION_MIN:
            faults.append(f"the server is PostgreSQL {major}, expected {VERSION_MIN} or newer")
        names = (*_SETTINGS_THAT_LOSE_MAIL, "server_encoding", "transaction_read_only")
        rows = await connection.fetch(
            "SELECT name, current_setting(name) FROM unnest($1::text[]) AS name", names
        )
    values = {name: str(value) for name, value in rows}
    faults += [
        f"{name} is off: a crash of the server loses accepted mail"
        for name in _SETTINGS_THAT_LOSE_MAIL
        if values[name] == "off"
    ]
    if values["server_encoding"] != "UTF8":
        faults.append(f"the encoding of the database is {values['server_encoding']}, expected UTF8")
    if values["transaction_read_only"] == "on":  # a standby as well
        faults.append(_TEXTS["25006"])
    return faults


async def _session(place: ServerOptions, purpose: str) -> asyncpg.Connection:
    """Return a connection to the one host of `place` that is ready for use."""
    async with asyncio.timeout(place.timeout_s):  # real time: the server
        connection = await asyncpg.connect(
            host=place.hosts[0][0],
            port=place.hosts[0][1],
            user=place.user or system_user(),
            password=place.password,
            database=place.database,
            ssl=_tls_context(place),
            direct_tls=False,
            timeout=place.timeout_s,
            target_session_attrs="any",  # by what is reported: see _compare()
            server_settings={"application_name": f"{place.application_name} {purpose}"},
            connection_class=_KeptConnection,
            statement_cache_size=_STATEMENTS_KEPT,
            max_cached_statement_lifetime=0,  # for ever
            max_cacheable_statement_size=0,  # of any size
        )
        connection.place = place
        try:
            await connection.execute(_SESSION)
        except BaseException:
            connection.terminate()
            raise
    return connection


async def _changes_sessions(connection: asyncpg.Connection) -> bool:
    """Whether a pooler runs the transactions of one connection in several sessions of the server.

    A pooler has other process ids than the server. In its transaction mode, the session that one
    client has left serves the next client, and the first client gets another session, or waits. A
    pooler without a place for a second client is trusted: commit.sql looks.
    """
    try:
        other = await _session(replace(connection.place, timeout_s=_POOLER_WAIT_S), "check")
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
    try:
        async with asyncio.timeout(_POOLER_WAIT_S):  # real time: the server
            for _ in range(_POOLER_ROUNDS):
                async with other.transaction():
                    taken = await other.fetchval(_PID)
                    now = await connection.fetchval(_PID)
                left = await connection.fetchval(_PID)
                if {now, left} != {connection.pid} or taken == connection.pid:
                    return True
    except (TimeoutError, asyncpg.PostgresError):  # such as "no transactions in this mode"
        return True
    finally:
        other.terminate()
    return False


@contextlib.contextmanager
def translate_postgres_errors(place: object = "the spool") -> Iterator[None]:
    """Turn the exceptions of asyncpg and of the connection into the spool's; `place` names the
    server in their texts. If it is DatabaseHosts, an error of another session ends all connections.
    """
    try:
        yield
    except asyncpg.PostgresError as error:
        code, said = error.sqlstate or "", str(error.args[0]).partition("\n")[0]
        known = _TEXTS.get(code) or _TEXTS.get(code[:2])
        kind = _KINDS.get(code) or _KINDS.get(code[:2], SpoolError)
        if isinstance(error, OTHER_SESSION) and isinstance(place, DatabaseHosts):
            place.end_all()
        raise kind(f"{place}: {known} ({said})" if known else f"{place}: {said}") from error
    except asyncpg.TargetServerAttributeNotMatched as error:
        raise SpoolUnavailableError(f"{place}: {_TEXTS['25006']}") from error
    except ssl.SSLCertVerificationError as error:
        reason = error.verify_message or str(error)
        raise SpoolUnavailableError(
            f"{place}: the server's certificate is not accepted: {reason}"
        ) from error
    except ssl.SSLError as error:
        raise SpoolUnavailableError(f"{place}: TLS fails: {error.reason or error}") from error
    except TimeoutError as error:
        raise SpoolUnavailableError(f"{place}: {_NO_ANSWER} in time") from error
    except OSError as error:
        reason = error.strerror or str(error)
        if "connection_lost" in reason:  # asyncpg's words for the end of a connection
            reason = "the connection was closed, as by a proxy without a server"
        raise SpoolUnavailableError(f"{place}: {_NO_ANSWER}: {reason}") from error
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, BufferError) as error:
        raise SpoolUnavailableError(f"{place}: {error.args[0]}") from error


def system_user() -> str:
    """Return the name of the system's user, which peer authentication compares."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise SpoolUnavailableError("the URL names no user, nor does the system") from None


def _tls_context(options: ServerOptions) -> ssl.SSLContext | bool:
    if options.tls == "disable":
        return False
    context = ssl.create_default_context(cafile=options.authorities or None)
    context.check_hostname = options.tls == "verify-full"
    if options.tls == "require":
        context.verify_mode = ssl.CERT_NONE
    if options.certificate:
        context.load_cert_chain(options.certificate, options.key)
    return context
