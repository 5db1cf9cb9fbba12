"""One account, and the Protocol by which rooms look up accounts.

Addresses are in lower case, local parts as well: mailboxes are matched without regard to case
(RFC 5321 2.3.11).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

DEAD_LETTER = "dead-letter"  # the Maildir in state_dir if no postmaster is configured


class Role(StrEnum):
    """The rights of an account's token beyond its own mailbox."""

    USER = "user"
    READ = "read"  # sees all messages
    OPERATE = "operate"  # may also change the queue


def untagged(address: str) -> str:
    """Return `local+tag@domain` as `local@domain`, another address as it is (RFC 5233)."""
    local_part, at, domain = address.rpartition("@")
    return f"{local_part.partition('+')[0]}{at}{domain}"


@dataclass(frozen=True, slots=True)
class Account:
    """An account with its mailbox.

    `quota` is in bytes, `quota_messages` a number; None means no limit. `aliases` are further
    addresses of the mailbox. `send_as` are other addresses that it may send from; `*@domain` is a
    whole domain. `reserved` are the addresses with a tag (local+tag) that belong to an account by
    name.
    """

    address: str
    aliases: tuple[str, ...] = ()
    quota: int | None = None
    role: Role = Role.USER
    send_as: tuple[str, ...] = ()
    quota_messages: int | None = None
    reserved: frozenset[str] = frozenset()

    def owns(self, address: str) -> bool:
        """Whether `address` belongs to this account, with or without a tag."""
        wanted, own = address.lower(), (self.address, *self.aliases)
        return wanted in own or (wanted not in self.reserved and untagged(wanted) in own)

    def may_send_as(self, address: str) -> bool:
        """Whether it may send mail from `address`, its own or one that `send_as` lists."""
        if self.owns(address):
            return True
        _, at, domain = address.lower().rpartition("@")
        return address.lower() in self.send_as or f"*{at}{domain}" in self.send_as


class AccountDirectory(Protocol):
    """Looks up accounts."""

    def by_token(self, token: str) -> Account | None:
        """Return the account of a bearer token, or None; compares in constant time."""
        ...

    def by_address(self, address: str) -> Account | None:
        """Return the account whose address, alias or `local+tag` is `address`, or None.

        Case-insensitive; never creates an account.
        """
        ...

    async def by_password(self, user: str, password: str, *, client: str) -> Account | None:
        """Return the account that logs in from the address `client` ("" on a Unix socket), or None.

        Argon2 runs in a bounded thread; successes are cached briefly. Raises LoginDelayedError if
        the password is not checked now.
        """
        ...
