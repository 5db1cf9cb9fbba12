"""The account of a request, from its bearer token (RFC 6750)."""

from starlette.datastructures import Headers

from relay.accounts.access_tokens import AccessTokens, InvalidTokenError
from relay.accounts.account import Account, AccountDirectory
from relay.http.errors import ApiError


class HttpAuthentication:
    """Finds the accounts of bearer tokens: those of accounts, and those of the token endpoint.

    A token is never logged or echoed.
    """

    def __init__(self, accounts: AccountDirectory, tokens: AccessTokens, *, realm: str) -> None:
        self.accounts = accounts
        self._tokens = tokens
        self._realm = realm

    def account(self, headers: Headers) -> Account:
        """Return the account of the bearer token.

        Raises ApiError 401 with WWW-Authenticate (RFC 6750 3) if there is no valid one.
        """
        scheme, _, token = headers.get("authorization", "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise self._unauthorized("Access token is empty.")
        if (account := self.accounts.by_token(token)) is not None:
            return account
        try:
            client = self._tokens.client_of(token, self.accounts)
        except InvalidTokenError as error:
            raise self._unauthorized(str(error)) from None
        if client is None:
            raise self._unauthorized("Access token is not known here.")
        return client.account

    def _unauthorized(self, message: str) -> ApiError:
        headers = {"www-authenticate": f'Bearer realm="{self._realm}"'}
        return ApiError(401, "InvalidAuthenticationToken", message, headers=headers)
