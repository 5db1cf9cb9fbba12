"""Logins by SMTP with a bearer token in place of a password (RFC 7628).

Every token that the Graph API accepts is valid: tokens of accounts and of the token endpoint.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from relay.base.accounts.account import (
    Account,
    AccountDirectory,
    LoginRefusedError,
    Scope,
    UnknownUserError,
)
from relay.base.clock import Clock

if TYPE_CHECKING:
    from relay.front_door.sign_in.access_tokens import AccessTokens

MAY_SEND = (Scope.SMTP_SEND, Scope.MAIL_SEND)


class TokenLogin:
    """Finds the account of a user name and a token."""

    def __init__(self, accounts: AccountDirectory, state_dir: Path, clock: Clock) -> None:
        """`state_dir` contains the key of the token endpoint, if there is one."""
        self._accounts = accounts
        self._state_dir = state_dir
        self._clock = clock
        self._tokens: AccessTokens | None = None

    async def check(self, user: str, password: str, *, client: str) -> Account | None:
        """Return the account `user` if the token may open its mailbox, None for an unknown token.

        If `user` is "", return the account of the token.

        Raises LoginRefusedError for what another token would not have, LoginDelayedError.
        """
        caller = self._of_token(password, client)
        if caller is None:
            return None
        if caller.scopes.isdisjoint(MAY_SEND):
            expected = " or ".join(MAY_SEND)
            raise LoginRefusedError(f"The token lacks the permission {expected}")
        if not user:
            return caller
        try:
            account = self._accounts.opened(user, caller)
        except UnknownUserError:
            account = None
        if account is None:
            raise LoginRefusedError(f"The token of {caller.address} is not for this user")
        return account

    def _of_token(self, token: str, client: str) -> Account | None:
        if (tokens := self._issued()) is None:
            return self._accounts.by_token(token, client=client)
        # see below
        from relay.front_door.sign_in.access_tokens import InvalidTokenError  # noqa: PLC0415

        try:
            return tokens.account_of(token, self._accounts, client=client)
        except InvalidTokenError as error:
            raise LoginRefusedError(str(error)) from None

    def _issued(self) -> "AccessTokens | None":
        """Return the tokens of the token endpoint, None if it was never enabled."""
        if self._tokens is None:
            # imported here: signature checks take memory, and most relays never need them
            from relay.front_door.sign_in import access_tokens  # noqa: PLC0415

            if (self._state_dir / access_tokens.TOKEN_KEY_FILE).exists():
                key = access_tokens.token_key(self._state_dir)
                self._tokens = access_tokens.AccessTokens(key, self._clock)
        return self._tokens
