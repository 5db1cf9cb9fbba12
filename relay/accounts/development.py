"""The accounts of `relay dev`: alice, bob, and whoever logs in.

On the path: app uses them in dev mode instead of a file.
Holds: token and password are the name; at most ACCOUNTS_MAX accounts; mail alone never makes one.
Fails: never; look-ups return None.
Standards: RFC 5321 2.3.11, RFC 5233, RFC 6761 6.2 (the domain test).
"""

import contextlib

from relay.accounts.account import Account, Role
from relay.settings.values import parse_mailbox

DOMAIN = "example.test"
NAMES = ("alice", "bob")
ACCOUNTS_MAX = 1000


class DevelopmentAccounts:
    """Accounts that need no set-up (an AccountDirectory); for loopback only: nothing is secret."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        for name in NAMES:
            self._named(name)

    def by_token(self, token: str) -> Account | None:
        """The account that the token names, by local part or address; it is made if need be."""
        return self._named(token)

    def by_address(self, address: str) -> Account | None:
        """The account that gets mail for `address`, if there is one already."""
        local_part, _, domain = address.lower().rpartition("@")
        if domain != DOMAIN:
            return None
        return self._accounts.get(local_part) or self._accounts.get(local_part.partition("+")[0])

    async def by_password(
        self,
        user: str,
        password: str,
        *,
        client: str = "",  # noqa: ARG002 -- no password is secret here, so guesses need no delay
    ) -> Account | None:
        """The account `user`, whose password is its name; it is made if need be."""
        name = user.lower().removesuffix(f"@{DOMAIN}")
        return self._named(name) if password.lower() in (name, f"{name}@{DOMAIN}") else None

    def _named(self, name: str) -> Account | None:
        local_part = name.lower().removesuffix(f"@{DOMAIN}")
        known = self._accounts.get(local_part)
        if known or "@" in local_part or len(self._accounts) >= ACCOUNTS_MAX:
            return known
        with contextlib.suppress(ValueError):
            account = Account(parse_mailbox(f"{local_part}@{DOMAIN}"), role=Role.USER)
            self._accounts[local_part] = account
            return account
        return None
