"""A fake AccountDirectory with fixed bearer tokens, and the authentication of accounts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from joserfc.jwk import ECKey

from relay.base.accounts.account import Account, AccountDirectory, Expansion, RegisteredClient
from relay.base.accounts.directory import FileAccounts
from relay.base.clock import Clock
from relay.front_door.sign_in.access_tokens import AccessTokens
from relay.front_door.sign_in.authentication import HttpAuthentication
from tests.support.manual_clock import ManualClock

HOSTNAME = "relay.example.test"


@dataclass(frozen=True)
class TokenAccounts:
    """Accounts by their bearer tokens."""

    accounts: Mapping[str, Account]

    def by_token(self, token: str, *, client: str = "") -> Account | None:
        return self.accounts.get(token)

    def by_address(self, address: str) -> Account | None:
        return next((one for one in self.accounts.values() if one.owns(address)), None)

    def expand(self, address: str) -> Expansion | None:
        return None

    def opened(self, address: str, caller: Account) -> Account | None:
        owner = self.by_address(address)
        return owner if owner is not None and caller.may_open(owner) else None

    in_path = FileAccounts.in_path

    def every(self) -> Sequence[Account]:
        return tuple(self.accounts.values())

    async def by_password(self, user: str, password: str, *, client: str) -> Account | None:
        raise NotImplementedError

    def by_client_id(self, client_id: str) -> RegisteredClient | None:
        return None


def authentication_of(accounts: AccountDirectory, clock: Clock | None = None) -> HttpAuthentication:
    """Return the authentication of these accounts, with a token key of its own."""
    tokens = AccessTokens(lambda: ECKey.generate_key("P-256"), clock or ManualClock())
    return HttpAuthentication(accounts, tokens, realm=HOSTNAME)
