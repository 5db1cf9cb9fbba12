"""Logins by SMTP with a bearer token in place of a password (RFC 7628).

Every token that the Graph API accepts is valid: tokens of accounts and of the token endpoint.
"""

from functools import partial
from pathlib import Path

from relay.base.accounts.account import Account, AccountDirectory, LoginRefusedError, Scope
from relay.base.clock import Clock
from relay.front_door.sign_in import access_tokens

MAY_SEND = (Scope.SMTP_SEND, Scope.MAIL_SEND)


class TokenLogin:
    """Finds the account of a user name and a token."""

    def __init__(self, accounts: AccountDirectory, state_dir: Path, clock: Clock) -> None:
        """`state_dir` contains the key of the token endpoint, if there is one."""
        self._accounts = accounts
        self._file = state_dir / access_tokens.TOKEN_KEY_FILE
        key = partial(access_tokens.read_token_key, self._file)
        self._tokens = access_tokens.AccessTokens(key, clock)

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
        account = self._accounts.opened(user, caller)
        if account is None:
            raise LoginRefusedError(f"The token of {caller.address} is not for this user")
        return account

    def _of_token(self, token: str, client: str) -> Account | None:
        if not self._file.exists():  # the token endpoint has not issued any
            return self._accounts.by_token(token, client=client)
        try:
            return self._tokens.account_of(token, self._accounts, client=client)
        except access_tokens.InvalidTokenError as error:
            raise LoginRefusedError(str(error)) from None
