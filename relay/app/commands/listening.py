"""What a relay would find where it is to listen: ports that others have, and its certificates.

On the path: before it; `relay check` asks.
Holds: a port is bound for a moment and never listened at, so that no client and no other program
    notices; a certificate is shown to a client within this process.
Fails: never; what is wrong becomes a text: what was found, what was expected.
Standards: bind(2), proc(5); RFC 9525 (names of certificates).
"""

import errno
import os
import socket
import ssl
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from relay.app.lock import owner_of
from relay.settings import Settings
from relay.settings.document import KeyPath
from relay.settings.tree import Address, Tls
from relay.settings.validation import is_loopback
from relay.smtp.tls import is_for, shown_names

SOON_S = 14 * 86400
_LISTENING = "0A"  # TCP_LISTEN in /proc/net/tcp
_LISTENING_UNIX = "00010000"  # SO_ACCEPTCON in /proc/net/unix
_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)  # X509_V_FLAG_NO_CHECK_TIME; the clock passed in decides
_HANDSHAKE_ROUNDS_MAX = 10
_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


@dataclass(frozen=True, slots=True)
class Listener:
    """One address of the configuration, and the certificate that is shown there."""

    key: KeyPath
    address: Address
    tls: Tls | None = None
    tls_key: KeyPath = ()

    @property
    def is_open(self) -> bool:
        """Whether other machines reach it."""
        return not is_loopback(self.address)


def http_listeners(settings: Settings) -> list[Listener]:
    """Return the addresses at which tokens are taken, in plain HTTP."""
    found = [
        Listener(("http", "listen", number), address)
        for number, address in enumerate(settings.http.listen)
    ]
    if settings.observe.metrics is not None:
        found.append(Listener(("observe", "metrics"), settings.observe.metrics))
    return found


def smtp_listeners(settings: Settings) -> list[Listener]:
    """Return the SMTP listeners."""
    return [
        Listener(("smtp", number, "listen"), one.listen, one.tls, ("smtp", number, "tls"))
        for number, one in enumerate(settings.smtp)
    ]


# -- ports
def port_fault(address: Address, run_dir: Path, *, is_http: bool = False) -> str:
    """Return what is expected where a relay could not listen at `address`, or "".

    No fault is that the relay of this `run_dir` runs, and listens there. HTTP takes one address of
    a name, SMTP all of them.
    """
    if address.path:
        return _unix_fault(Path(address.path), run_dir)
    if not address.port:
        return ""
    one_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        places = socket.getaddrinfo(
            address.host, address.port, family=one_family if is_http else socket.AF_UNSPEC,
            type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE,
        )  # fmt: skip
    except (OSError, UnicodeError):
        return "an address of this machine, or a name that has one"
    for family, _, _, _, place in places:
        error = _bind_error(family, place)
        if error == errno.EADDRINUSE:
            if _is_own(run_dir, _holders(str(place[0]), address.port)):
                continue
            hint = f"`ss -Hltnp 'sport = :{address.port}'` as root shows which"
            return f"an address that is free: another program listens there ({hint})"
        if error in (errno.EACCES, errno.EPERM):
            return (
                "a port that this user may bind: a port below 1024 needs the capability "
                "CAP_NET_BIND_SERVICE, which the shipped unit gives"
            )
        if error:
            return f"an address of this machine ({os.strerror(error).lower()})"
    return ""


def _bind_error(family: int, place: Any) -> int:
    """Bind as the servers do, but never listen; return the errno, 0 where it works."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(place)
    except OSError as error:
        return 0 if error.errno == errno.EAFNOSUPPORT else error.errno or errno.EINVAL
    return 0


def _unix_fault(path: Path, run_dir: Path) -> str:
    if not path.parent.exists() and path.parent in (run_dir, run_dir.parent):
        return ""  # a start makes them before it listens
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK | os.X_OK)):
        return f"a socket in a folder that this user can write; {path.parent} is none"
    if not path.exists():
        return ""
    if not path.is_socket():
        return "the path of a socket, or of nothing that is there"
    holders = _unix_holders(path)
    if not holders or _is_own(run_dir, holders):  # a start replaces an unused socket
        return ""
    return "a socket that is free: another program listens there"


def _is_own(run_dir: Path, inodes: set[str]) -> bool:
    """Whether the relay of this `run_dir` holds these sockets.

    Where it runs and this user cannot look into it, it is believed to.
    """
    pid = owner_of(run_dir)
    if pid is None:
        return False
    held = set()
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                held.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    except OSError:
        return True
    return inodes <= held


def _holders(host: str, port: int) -> set[str]:
    """Return the inode of what listens at `host` and `port`, else of all that overlaps with it."""
    exact, overlapping = set(), set()
    for line in (*_lines("/proc/net/tcp"), *_lines("/proc/net/tcp6")):
        if len(line) < 10 or line[3] != _LISTENING:
            continue
        place, _, number = line[1].partition(":")
        if int(number, 16) != port:
            continue
        there = _address(place)
        if there == host:
            exact.add(line[9])
        elif there in _WILDCARDS or host in _WILDCARDS:
            overlapping.add(line[9])
    return exact or overlapping


def _unix_holders(path: Path) -> set[str]:
    return {
        line[6]
        for line in _lines("/proc/net/unix", columns=8)
        if line[-1] == str(path) and line[3] == _LISTENING_UNIX
    }


def _lines(file: str, *, columns: int = 0) -> Iterator[Sequence[str]]:
    with suppress(OSError):
        for line in Path(file).read_text().splitlines()[1:]:
            yield line.split(maxsplit=columns - 1)


def _address(written: str) -> str:
    """Read an address of /proc/net/tcp: words of four bytes, each in the machine's order."""
    words = [bytes.fromhex(written[at : at + 8]) for at in range(0, len(written), 8)]
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


# -- certificates
@dataclass(frozen=True, slots=True)
class Judgement:
    """What clients would say of a certificate: a fault, or a warning, or neither."""

    fault: str = ""
    warning: str = ""


def judge(listener: Listener, hostname: str, now_s: float) -> Judgement:
    """Return what is wrong with the certificate of a listener for clients that verify it."""
    assert listener.tls is not None
    try:
        certificate = _as_a_client_sees_it(listener.tls)
    except ssl.SSLCertVerificationError as error:
        return Judgement(f"found one that clients refuse: {error.verify_message}")
    except OSError as error:
        return Judgement(f"found one that fails in a handshake: {error.strerror or error}")
    return judge_certificate(certificate, _names(listener, hostname), now_s)


def judge_certificate(
    certificate: Mapping[str, Any], names: Sequence[str], now_s: float
) -> Judgement:
    """Return what is wrong with a certificate for clients that ask for one of `names` (pure)."""
    begin_s = ssl.cert_time_to_seconds(certificate["notBefore"])
    end_s = ssl.cert_time_to_seconds(certificate["notAfter"])
    if end_s <= now_s:
        return Judgement(f"found one that expired on {_day(end_s)}, expected one that is valid")
    if begin_s > now_s:
        return Judgement(f"found one that begins on {_day(begin_s)}, expected one that is valid")
    if not any(is_for(certificate, name) for name in names):
        found = shown_names(certificate)
        return Judgement(f"found one for {found}, expected one for {' or '.join(names)}")
    if end_s - now_s < SOON_S:
        return Judgement(warning=f"found one that expires on {_day(end_s)}: renew it")
    return Judgement()


def _day(moment_s: float) -> str:
    return datetime.fromtimestamp(moment_s, UTC).date().isoformat()


def _names(listener: Listener, hostname: str) -> list[str]:
    """Return the names by which clients may know the listener."""
    names = [hostname]
    host = listener.address.host
    if host and host not in _WILDCARDS:
        names.append(host)
    if not listener.is_open:
        names.append("localhost")
    return list(dict.fromkeys(names))


def _as_a_client_sees_it(tls: Tls) -> Mapping[str, Any]:
    """Return the certificate from a handshake in memory, with a client that trusts it.

    Raises OSError, ssl.SSLError.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tls.certificate, tls.key, password="-")  # noqa: S106 - for no prompt
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(cafile=tls.certificate)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(_HANDSHAKE_ROUNDS_MAX):
        waiting = 0
        for side in (asking, answering):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                waiting += 1
        if not waiting:
            break
    return asking.getpeercert() or {}
