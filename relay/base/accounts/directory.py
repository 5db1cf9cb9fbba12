"""The accounts of accounts.toml in memory, and which of them a login or a token belongs to.

FileAccounts is an AccountDirectory: it finds an account by address, token, password, client id,
client secret or client assertion. relay.base.accounts.accounts_file makes it.
"""

import hmac
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

from relay.base.accounts.account import (
    Account,
    DovecotUser,
    Expansion,
    RegisteredClient,
    UnknownUserError,
    is_listed,
)
from relay.base.accounts.aliases import AliasTable
from relay.base.accounts.password_schemes import Password
from relay.base.accounts.passwords import (
    FORGOTTEN_S,
    DovecotPassword,
    PasswordChecker,
    SuccessTable,
    digest_of,
)
from relay.base.clock import Clock
from relay.base.message.address import AddressError, lower_case, own_mailbox, untagged
from relay.base.message.address import parse_mailbox as parse_any_mailbox
from relay.base.observe.logs import get_logger
from relay.base.settings.document import Fault

_NOBODY = Password(
    # a check for an unknown user must take as long as for a known one
    hashed="$argon2id$v=19$m=65536,t=3,p=4$cmVsYXlyZWxheXJlbGF5cg$"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
)
_TOKEN_LENGTH_MAX = 4096
_USER_LENGTH_MAX = 320  # user names of failed logins are stored for a while
_OF_CLIENT = "client "  # prefix of a client id where failures are counted

_log = get_logger("accounts")


@dataclass(slots=True)
class AccountTables:
    """The content of accounts.toml. It does not change after the file is loaded."""

    accounts: list[Account] = field(default_factory=list)  # in the order of the file
    by_address: dict[str, Account] = field(default_factory=dict)  # and by alias
    by_token: dict[bytes, tuple[bytes, Account]] = field(default_factory=dict)  # by its digest
    passwords: dict[str, Password] = field(default_factory=dict)  # by the address of the account
    scheme_of: dict[str, str] = field(default_factory=dict)  # also of disabled accounts
    # by client id in lower case; with its secret
    clients: dict[str, tuple[RegisteredClient, Password]] = field(default_factory=dict)
    aliases: AliasTable = field(default_factory=AliasTable)  # and accounts that forward
    nobody: Password = field(default_factory=lambda: _NOBODY)  # is checked for unknown users
    # for `relay check`: secrets in plain text or readable by others, and own addresses in aliases
    # that no account has
    warnings: list[str] = field(default_factory=list)
    removed_keys: Sequence[Fault] = ()  # of older releases, which are ignored
    digest: str = ""  # of the file

    def add(self, account: Account, *, password: Password | None, token: bytes | None) -> None:
        """Add an account whose addresses and token are unique; `token` is a digest."""
        self.accounts.append(account)
        for address in (account.address, *account.aliases):
            self.by_address[address] = account
        if password:
            self.passwords[account.address] = password
        if token:
            self.by_token[token] = (token, account)

    def add_client(self, client: RegisteredClient, secret: Password) -> None:
        """Add an application whose client id is unique."""
        self.clients[lower_case(client.client_id)] = (client, secret)

    def schemes(self) -> Counter[str]:
        """Count the passwords by their scheme."""
        return Counter(self.scheme_of.values())

    def take_time_of_most(self) -> None:
        """Make the check for unknown users take as long as the check of most passwords.

        Passwords in plain text are not counted: their check takes no time, and so reveals that the
        user exists in any case.
        """
        count = self.schemes()
        if self.passwords:
            most = max(
                self.passwords.values(),
                key=lambda password: (bool(password.hashed), count[password.scheme]),
            )
            self.nobody = most.for_nobody()

    def find(self, address: str) -> Account | None:
        """Return the account whose address, alias or `local+tag` is `address`, or None."""
        mailbox = own_mailbox(address)
        return self.by_address.get(mailbox) or self.by_address.get(untagged(mailbox))


class FileAccounts:
    """The accounts of a file as it was last loaded (an AccountDirectory)."""

    def __init__(self, tables: AccountTables, clock: Clock, *, dovecot_auth: str = "") -> None:
        """`dovecot_auth` is the path of a socket, or ""."""
        self.tables, self._dovecot_auth = tables, dovecot_auth
        self._clock = clock
        self._begin_checks(SuccessTable())

    def _begin_checks(self, successes: SuccessTable) -> None:
        self._checker = PasswordChecker(
            self._clock, rng=os.urandom, on_delay=self._log_delay, successes=successes
        )
        self._delays_logged_s: dict[str, float] = {}

    def use(self, tables: AccountTables, *, dovecot_auth: str) -> None:
        """Replace the accounts. May run in a thread.

        Failed logins and remembered passwords are forgotten; the clients from which users have
        logged in are kept.
        """
        before = self._checker
        self.tables, self._dovecot_auth = tables, dovecot_auth
        self._begin_checks(before.successes)
        before.close()

    def opened(self, address: str, caller: Account) -> Account | None:
        """See AccountDirectory."""
        owner = self.by_address(address)
        return owner if owner is not None and caller.may_open(owner) else None

    async def in_path(self, text: str, caller: Account) -> Account | None:
        """See AccountDirectory. An address that `caller.acts_for` lists may be known to it."""
        if self.by_address(text) is None and is_listed(text, caller.acts_for):
            raise UnknownUserError("There is no account of this address.")
        return self.opened(text, caller)

    def every(self) -> Sequence[Account]:
        """Return all accounts, in the order of the file."""
        return tuple(self.tables.accounts)

    def by_token(
        self,
        token: str,
        *,
        client: str = "",  # noqa: ARG002 -- tokens made by `relay account` cannot be guessed
    ) -> Account | None:
        """Return the account of a bearer token: found by its digest, then compared in full."""
        if not token or len(token) > _TOKEN_LENGTH_MAX:
            return None
        digest = digest_of(token)
        stored, account = self.tables.by_token.get(digest, (b"", None))
        return account if hmac.compare_digest(stored, digest) else None

    def by_address(self, address: str) -> Account | None:
        """Return the account whose address, alias or `local+tag` is `address`, or None."""
        return self.tables.find(address)

    def expand(self, address: str) -> Expansion | None:
        """See AccountDirectory."""
        return self.tables.aliases.expand(address)

    async def by_password(self, user: str, password: str, *, client: str) -> Account | None:
        """Return the account that logs in with its address or an alias, or None.

        An unknown user takes as much time, and is delayed as much, as a known one. Raises
        LoginDelayedError.
        """
        account = self.tables.by_address.get(own_mailbox(user))
        name = account.address if account else lower_case(user[:_USER_LENGTH_MAX])
        stored = self.tables.passwords.get(name)
        nobody = self.tables.nobody
        is_right = await self._checker.check(name, stored or nobody, password, client=client)
        return account if is_right and stored else None

    async def by_smtp_login(self, user: str, password: str, *, client: str) -> Account | None:
        """See AccountDirectory. A user in accounts.toml logs in with the password in that file."""
        address = self._in_dovecot(user)
        if not address:
            return await self.by_password(user, password, client=client)
        stored = DovecotPassword(self._dovecot_auth, user, client)
        is_right = await self._checker.check(address, stored, password, client=client)
        return DovecotUser(address) if is_right else None

    def of_login(self, login: str) -> Account | None:
        """See AccountDirectory."""
        if address := self._in_dovecot(login):
            return DovecotUser(address)
        account = self.tables.by_address.get(login)
        return account if account and account.address == login else None

    def is_in_use(self, mailbox: str) -> bool:
        """See AccountDirectory. Whom Dovecot knows is not known."""
        tables = self.tables
        holders = (account for _, account in tables.by_token.values())
        clients = (client.account for client, _ in tables.clients.values())
        others = (account for account in tables.accounts if account.address != mailbox)
        return (
            bool(self._dovecot_auth)
            or mailbox in tables.passwords
            or any(account.address == mailbox for account in chain(holders, clients))
            or any(is_listed(mailbox, account.acts_for) for account in others)
        )

    def _in_dovecot(self, user: str) -> str:
        """Return the address of a user whose password only Dovecot may know, else ""."""
        if not self._dovecot_auth or self.tables.find(user) is not None:
            return ""
        try:
            return own_mailbox(parse_any_mailbox(user, smtputf8=True))
        except AddressError:
            return ""

    def by_client_id(self, client_id: str) -> RegisteredClient | None:
        """See AccountDirectory."""
        client, _ = self.tables.clients.get(lower_case(client_id), (None, None))
        return client

    async def by_client_secret(
        self, client_id: str, secret: str, *, client: str
    ) -> RegisteredClient | None:
        """Return the client if this is its secret, or None.

        An unknown client takes as much time, and is delayed as much, as a known one. Raises
        LoginDelayedError.
        """
        name = lower_case(client_id[:_USER_LENGTH_MAX])
        application, stored = self.tables.clients.get(name, (None, _NOBODY))
        # failures are not counted for a user of the same name
        is_right = await self._checker.check(_OF_CLIENT + name, stored, secret, client=client)
        return application if is_right else None

    def unlock(self, address: str) -> int:
        """See AccountDirectory."""
        account = self.tables.by_address.get(own_mailbox(address))
        name = account.address if account else self._in_dovecot(address)
        if not name:
            raise UnknownUserError(address)
        names = [name]
        names += [
            _OF_CLIENT + name
            for name, (application, _) in self.tables.clients.items()
            if application.account is account
        ]
        delayed = 0
        for name in names:
            self._delays_logged_s.pop(name, None)
            delayed += self._checker.unlock(name)
        return delayed

    def _log_delay(self, name: str, client: str) -> None:
        """Log that the logins of a known user or client id are delayed.

        Guesses from many addresses cause one line within FORGOTTEN_S.
        """
        client_id = name.removeprefix(_OF_CLIENT) if name.startswith(_OF_CLIENT) else ""
        known = self.tables.clients if client_id else self.tables.passwords
        now = self._clock.monotonic()
        before_s = self._delays_logged_s.get(name)
        if (client_id or name) in known and (before_s is None or now - before_s >= FORGOTTEN_S):
            self._delays_logged_s[name] = now
            who = {"client_id": client_id} if client_id else {"user": name}
            _log.warning("logins delayed", client=client, **who)

    def close(self) -> None:
        """Stop the threads that check passwords."""
        self._checker.close()
