"""One account, and the Protocol by which rooms look accounts up.

On the path: see the room.
Holds: addresses are lower case, local parts too: mailboxes are matched without regard to case.
Fails: never; look-ups return None.
Standards: RFC 5321 2.3.11.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

DEAD_LETTER = "dead-letter"  # the postmaster's Maildir in state_dir, where none is configured


class Role(StrEnum):
    """What an account's token may see and do beyond its own mailbox."""

    USER = "user"
    READ = "read"  # sees all messages
    OPERATE = "operate"  # may also change the queue


def untagged(address: str) -> str:
    """Return `local+tag@domain` as `local@domain`, another address as it is (RFC 5233)."""
    local_part, at, domain = address.rpartition("@")
    return f"{local_part.partition('+')[0]}{at}{domain}"


@dataclass(frozen=True, slots=True)
class Account:
    """`quota` is in bytes, `quota_messages` a number, each None for no limit; `aliases` are more
    addresses of the same mailbox.

    `send_as` are others' addresses that it may send from; `*@domain` is all of a domain. `reserved`
    are the addresses with a tag (local+tag) that some account has as its own.
    """

    address: str
    aliases: tuple[str, ...] = ()
    quota: int | None = None
    role: Role = Role.USER
    send_as: tuple[str, ...] = ()
    quota_messages: int | None = None
    reserved: frozenset[str] = frozenset()

    def owns(self, address: str) -> bool:
        """Whether mail from `address` is this account's own: so is an address with a tag."""
        wanted, own = address.lower(), (self.address, *self.aliases)
        return wanted in own or (wanted not in self.reserved and untagged(wanted) in own)

    def may_send_as(self, address: str) -> bool:
        """Whether it may send mail from `address`, its own or one that `send_as` lists."""
        if self.owns(address):
            return True
        _, at, domain = address.lower().rpartition("@")
        return address.lower() in self.send_as or f"*{at}{domain}" in self.send_as


class AccountDirectory(Protocol):
    """Who there is."""

    def by_token(self, token: str) -> Account | None:
        """The account of a bearer token; constant time per candidate."""
        ...

    def by_address(self, address: str) -> Account | None:
        """The account that gets mail for `address`: itself, an alias, or `local+tag`.

        Case-insensitive; never makes an account.
        """
        ...

    async def by_password(self, user: str, password: str, *, client: str) -> Account | None:
        """The account that logs in so from the address `client` ("" on a Unix socket).

        Argon2 runs in a bounded thread; successes are cached briefly. Raises LoginDelayedError for
        what is not checked now.
        """
        ...
