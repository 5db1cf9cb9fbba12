"""What SIGHUP renews: rules and accounts, read again together, taken over together or not at all.

On the path: beside it; acceptance asks for the rules at every message, rooms ask the accounts.
Holds: what is in force was whole and without a fault; a bad file changes nothing.
Fails: SettingsError (PolicyError among it) from the reading, with file and line of every fault.
Standards: docs/names.md (SIGHUP); the set of rules is atomic.
"""

from collections.abc import Callable
from dataclasses import dataclass

from relay.accounts import Account, FileAccounts
from relay.policy import RuleSet
from relay.settings import Settings


@dataclass(frozen=True, slots=True)
class Configured:
    """Everything that the files say at one moment."""

    settings: Settings
    accounts: FileAccounts
    rules: RuleSet


class InForce:
    """The files as last read without a fault; an AccountDirectory that follows them."""

    def __init__(self, read: Callable[[], Configured]) -> None:
        """Read for the first time. Raises what `read` raises."""
        self._read = read
        self._now = read()

    @property
    def settings(self) -> Settings:
        """Those of the start: they need a restart."""
        return self._now.settings

    def rules(self) -> RuleSet:
        """The rules for the next message."""
        return self._now.rules

    def renew(self) -> bool:
        """Read again and take rules and accounts over; whether the settings differ (blocking).

        Raises SettingsError; then nothing has changed.
        """
        before, read = self._now, self._read()
        self._now = Configured(before.settings, read.accounts, read.rules)
        before.accounts.close()
        return read.settings != before.settings

    def close(self) -> None:
        """End the threads of the accounts."""
        self._now.accounts.close()

    # -- AccountDirectory
    def by_token(self, token: str) -> Account | None:
        """See AccountDirectory."""
        return self._now.accounts.by_token(token)

    def by_address(self, address: str) -> Account | None:
        """See AccountDirectory."""
        return self._now.accounts.by_address(address)

    async def by_password(self, user: str, password: str, *, client: str) -> Account | None:
        """See AccountDirectory."""
        return await self._now.accounts.by_password(user, password, client=client)
