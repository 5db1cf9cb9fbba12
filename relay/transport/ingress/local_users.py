"""The users that send on the socket of [sendmail], and from which addresses they may send.

The kernel names the user. Root and the users that the configuration names may send from any
address, others from USER@hostname. If the name of a user is no valid local part, the uid takes its
place.
"""

import pwd
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec import Struct

from relay.base.message.address import AddressError, own_mailbox, parse_mailbox

if TYPE_CHECKING:
    import asyncio  # commands do without

_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid


class LocalUser(Struct, frozen=True):
    """A user of this machine."""

    name: str
    address: str  # USER@hostname
    any_sender: bool = False  # may send from any address
    uid: int = -1  # -1: not known
    domain: str = ""  # of recipients without one

    def may_send_as(self, address: str) -> bool:
        """Whether mail of this user may have this sender."""
        return self.any_sender or own_mailbox(address) == own_mailbox(self.address)


@dataclass(frozen=True, slots=True)
class LocalUsers:
    """Finds users by their uid."""

    hostname: str  # the domain of senders without one
    domain: str  # the domain of recipients without one
    trusted: Collection[str] = ()  # users that, as root, may send from any address

    def find(self, uid: int) -> LocalUser:
        """Return the user. This may block on a directory service."""
        try:
            name = pwd.getpwuid(uid).pw_name
            address = parse_mailbox(f"{name}@{self.hostname}")
        except (KeyError, AddressError):
            name, address = str(uid), f"{uid}@{self.hostname}"
        return LocalUser(name, address, not uid or name in self.trusted, uid, self.domain)


def peer_uid(transport: "asyncio.BaseTransport") -> int:
    """Return the uid of the client of a Unix socket, as it was when it connected."""
    credentials = transport.get_extra_info("socket").getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size
    )
    return int(_PEER.unpack(credentials)[1])
