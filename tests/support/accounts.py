"""A fake AccountDirectory with fixed bearer tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from relay.accounts.account import Account


@dataclass(frozen=True)
class TokenAccounts:
    """Accounts by their bearer tokens."""

    accounts: Mapping[str, Account]

    def by_token(self, token: str) -> Account | None:
        return self.accounts.get(token)

    def by_address(self, address: str) -> Account | None:
        return next((one for one in self.accounts.values() if one.owns(address)), None)

    def every(self) -> Sequence[Account]:
        return tuple(self.accounts.values())

    async def by_password(self, user: str, password: str, *, client: str) -> Account | None:
        raise NotImplementedError
