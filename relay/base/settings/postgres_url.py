"""Read the URL of a PostgreSQL spool: postgresql://USER:PASSWORD@HOST:PORT,…/DATABASE?NAME=VALUE.

Its syntax is libpq's, with the parameters below. Nothing that it does not say is taken from the
environment or from files of the user. The password goes to the server, and into no text: str() and
repr() leave out what stands before the hosts. See RFC 3986 2.1 (the percent-encoding of each part).
"""

import re
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from urllib.parse import unquote_to_bytes

from msgspec import Struct
from msgspec.structs import replace

from relay.base.socket_address import Address, is_loopback

SCHEME = "postgresql://"
POSTGRES_EXPECTED = '"postgresql://USER@HOST/DATABASE"'
_PORT = 5432
_SOCKETS = "/run/postgresql"  # of Debian's server
_TLS = ("disable", "require", "verify-ca", "verify-full")
_PATHS = ("sslrootcert", "sslcert", "sslkey")
_PARAMETERS = ("application_name", "connect_timeout", "host", "port", "sslmode", *_PATHS)
_CONNECT_TIMEOUT_S = 10
_SECONDS = range(1, 601)
_NAME = re.compile(r"[a-z_]{1,40}")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:.]{2,45}")


class ServerUrl(str):
    """A URL with references. It equals another that differs in the password only: that is read
    again when the server refuses it.
    """

    __slots__ = ("read",)
    read: Callable[[], str]  # returns the URL as it is now; raises ValueError

    def __eq__(self, other: object) -> bool:
        is_url = isinstance(other, str) and other.startswith(SCHEME)
        return is_url and _without_password(self) == _without_password(str(other))

    def __hash__(self) -> int:
        return hash(_without_password(self))


class ServerOptions(Struct, frozen=True):
    """Where the server is, and as whom a node connects to which database."""

    # each with its port, in the order in which they are tried; "/…": the directory of a socket
    hosts: tuple[tuple[str, int], ...]
    database: str  # its name
    user: str = ""  # "": the name of the system's user
    password: str = ""  # "": none
    tls: str = "disable"  # libpq's sslmode; a socket has no TLS
    authorities: str = ""  # a PEM file; "": the system's
    certificate: str = ""  # of the client, a PEM file; "": none
    key: str = ""  # its key
    application_name: str = "relay"  # the names of its sessions begin with it
    timeout_s: float = _CONNECT_TIMEOUT_S  # to connect to all hosts together
    read_url: Callable[[], str] | None = None  # of a ServerUrl

    def __str__(self) -> str:
        places = ",".join(str(Address(host, port)) for host, port in self.hosts)
        return f"{SCHEME}{places}/{self.database}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self})"


def parse_postgres_url(text: str) -> ServerOptions:
    """Return what the URL says. Raises ValueError with what was expected."""
    authority, slash, rest = text.removeprefix(SCHEME).partition("/")
    path, _, query = rest.partition("?")
    login, at, places = authority.rpartition("@")
    user, colon, password = login.partition(":")
    if not text.startswith(SCHEME) or "?" in authority or "#" in text or (at and not user):
        raise ValueError(POSTGRES_EXPECTED)
    if "@" in rest:  # no text may have what may be the rest of a password
        raise ValueError(f'{POSTGRES_EXPECTED}, with "/" in a password as "%2F"')
    if not slash or not path or "/" in path:
        raise ValueError(f"{POSTGRES_EXPECTED}, with the name of a database")
    parameters = _parameters(query)
    named = parameters.get("host", "")
    if (places and named) or (not named and "port" in parameters):
        raise ValueError("the hosts with their ports either before the database, or in ?host=")
    if named:
        ports = parameters.get("port", "").split(",")
        hosts = _named_hosts(named.split(","), ports)
    else:
        hosts = tuple(map(_host, places.split(","))) if places else ((_SOCKETS, _PORT),)
    return ServerOptions(
        hosts,
        _decoded(path),
        _decoded(user),
        _decoded(password) if colon else "",
        tls=_tls(parameters, hosts),
        authorities=parameters.get("sslrootcert", ""),
        certificate=parameters.get("sslcert", ""),
        key=parameters.get("sslkey", ""),
        application_name=parameters.get("application_name", "relay"),
        timeout_s=_seconds(parameters.get("connect_timeout", str(_CONNECT_TIMEOUT_S))),
        read_url=text.read if isinstance(text, ServerUrl) else None,
    )


def _without_password(url: str) -> ServerOptions:
    return replace(parse_postgres_url(url), password="", read_url=None)


def check_no_password(written: str) -> None:
    """Raise ValueError if a URL, less its references, has a password that everybody could read who
    reads the file.
    """
    login, _, _ = written.removeprefix(SCHEME).rpartition("@")
    if written.startswith(SCHEME) and login.partition(":")[2]:
        raise ValueError("the password as ${file:PATH} or ${env:NAME}")


def _parameters(query: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for part in query.split("&") if query else ():
        name, equals, value = part.partition("=")
        if name not in _PARAMETERS:
            known = ", ".join(_PARAMETERS)
            what = f", not {name}" if equals and _NAME.fullmatch(name) else ""
            raise ValueError(f"no other parameters than {known}{what}")
        if not equals or not value or name in parameters:
            raise ValueError(f"one value for the parameter {name}")
        parameters[name] = _decoded(value)
        if name in _PATHS and not PurePosixPath(parameters[name]).is_absolute():
            raise ValueError(f"an absolute path as {name}")
    if ("sslcert" in parameters) != ("sslkey" in parameters):
        raise ValueError("both sslcert and sslkey, or neither")
    return parameters


def _decoded(text: str) -> str:
    if _BAD_ESCAPE.search(text):
        raise ValueError('"%" in the URL as "%25"')
    try:
        decoded = unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise ValueError("a URL in UTF-8") from None
    if not decoded.isprintable():
        raise ValueError("a URL of printable characters")
    return decoded


def _named_hosts(hosts: list[str], ports: list[str]) -> tuple[tuple[str, int], ...]:
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) != len(hosts):
        raise ValueError("one port for all hosts, or one for each")
    pairs = zip(hosts, ports, strict=True)
    return tuple((_checked(host), _port(port) if port else _PORT) for host, port in pairs)


def _host(text: str) -> tuple[str, int]:
    """Read HOST, HOST:PORT, [IPV6]:PORT, or the directory of a socket in percent-encoding."""
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError("an IPv6 address in brackets, as [::1]:5432")
        port = port[1:]
        is_complete = text.endswith("]") or bool(port)
    else:
        host, colon, port = text.partition(":")
        is_complete = not colon or bool(port)
    if not is_complete:
        raise ValueError("a port of 1 to 65535")
    return _checked(_decoded(host)), _port(port) if port else _PORT


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 0 < int(text) <= 65535):
        raise ValueError("a port of 1 to 65535")
    return int(text)


def _checked(host: str) -> str:
    if not host.startswith("/") and not _HOST.fullmatch(host):
        raise ValueError("a host name, an IP address, or the absolute path of a socket's directory")
    return host


def _tls(parameters: dict[str, str], hosts: Iterable[tuple[str, int]]) -> str:
    mode = parameters.get("sslmode", "disable")
    if mode not in _TLS:
        raise ValueError(f"sslmode as one of {', '.join(_TLS)}")
    if mode != "verify-full" and not all(_is_here(host) for host, _ in hosts):
        raise ValueError(
            "sslmode=verify-full, which a host that is neither loopback nor a socket needs"
        )
    return mode


def _is_here(host: str) -> bool:
    return host.startswith("/") or host.lower() == "localhost" or is_loopback(host)


def _seconds(text: str) -> float:
    if not (text.isascii() and text.isdecimal() and len(text) <= 3 and int(text) in _SECONDS):
        raise ValueError("a connect_timeout of 1 to 600 seconds")
    return float(text)
