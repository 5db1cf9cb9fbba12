"""Whether a relay could listen at an address: nothing listens there meanwhile."""

import errno
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from relay.app.state_dir import owner_of
from relay.base.socket_address import Address
from relay.base.sockets import LACKING_ADDRESS

WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
_LISTENING = "0A"  # TCP_LISTEN in /proc/net/tcp
_LISTENING_UNIX = "00010000"  # SO_ACCEPTCON in /proc/net/unix


def port_fault(address: Address, run_dir: Path) -> str:
    """Return what is expected if a relay cannot listen at `address`, or "".

    An address used by the running relay of this `run_dir` is not a fault.
    """
    if address.path:
        return _unix_fault(Path(address.path), run_dir)
    if not address.port:
        return ""
    try:
        places = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE,
        )  # fmt: skip
    except (OSError, UnicodeError):
        return "an address of this machine, or a name that has one"
    lacking = []
    for family, _, _, _, place in places:
        error = _bind_error(family, place)
        if error == errno.EADDRINUSE:
            if _is_own(run_dir, _holders(str(place[0]), address.port)):
                continue
            hint = f"`ss -Hltnp 'sport = :{address.port}'` as root shows which"
            return f"a free address: another program listens there ({hint})"
        if error in (errno.EACCES, errno.EPERM):
            return (
                "a port that this user may bind: a port below 1024 needs the capability "
                "CAP_NET_BIND_SERVICE, which the shipped unit gives"
            )
        if error in LACKING_ADDRESS:
            lacking.append(error)
        elif error:
            return f"an address of this machine ({os.strerror(error).lower()})"
    if len(lacking) == len(places):
        return f"an address of this machine ({os.strerror(lacking[0]).lower()})"
    return ""


def _bind_error(family: int, place: Any) -> int:
    """Bind as the servers do, without listening; return the errno, 0 on success."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            with _own_rights():
                probe.bind(place)
    except OSError as error:
        return 0 if error.errno == errno.EAFNOSUPPORT else error.errno or errno.EINVAL
    return 0


@contextmanager
def _own_rights() -> Iterator[None]:
    """Let root that checks as the service bind any port, as the unit lets the service, and see what
    the service has open.
    """
    user = os.geteuid()
    if os.getuid() == 0:
        os.seteuid(0)
    try:
        yield
    finally:
        os.seteuid(user)


def _unix_fault(path: Path, run_dir: Path) -> str:
    if not path.parent.exists() and path.parent in (run_dir, run_dir.parent):
        return ""  # created at start
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK | os.X_OK, effective_ids=True)):
        return f"a socket in a directory that this user can write, which {path.parent} is not"
    if not path.exists():
        return ""
    if not path.is_socket():
        return "the path of a socket, or a path that does not exist"
    holders = _unix_holders(path)
    if not holders or _is_own(run_dir, holders):  # a start replaces an unused socket
        return ""
    return "a free socket: another program listens there"


def _is_own(run_dir: Path, inodes: set[str]) -> bool:
    """Whether the relay of this `run_dir` holds these sockets.

    True if it runs and this user cannot read its open files.
    """
    pid = owner_of(run_dir)
    if pid is None:
        return False
    held = set()
    try:
        with _own_rights():
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    held.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    except OSError:
        return True
    return inodes <= held


def _holders(host: str, port: int) -> set[str]:
    """Return the inodes of sockets that listen at `host` and `port`, else at an overlapping one."""
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
        elif there in WILDCARDS or host in WILDCARDS:
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
    """Parse an address of /proc/net/tcp: words of four bytes in the byte order of the machine."""
    words = [bytes.fromhex(written[at : at + 8]) for at in range(0, len(written), 8)]
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
