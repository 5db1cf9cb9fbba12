"""The account of a request, from its bearer token (RFC 6750), and the 401 without one.

`access_tokens` decides which tokens of the token endpoint are valid,
relay/base/accounts/directory.py which tokens of accounts.
"""

import math
from dataclasses import dataclass
from functools import partial

from relay.base.accounts.account import Account, AccountDirectory, LoginDelayedError
from relay.front_door.http.browsers import is_from_here
from relay.front_door.http.errors import ApiError, service_unavailable
from relay.front_door.http.http_request import HttpRequest
from relay.front_door.sign_in.access_tokens import AccessTokens, InvalidTokenError, TokenKeyError


@dataclass(eq=False, repr=False)
class HttpAuthentication:
    """Finds the account of a bearer token, from accounts.toml or from the token endpoint.

    A token is never logged or echoed.
    """

    accounts: AccountDirectory
    tokens: AccessTokens
    realm: str
    anonymous: str = ""  # the address of the account of local requests without a token

    def account(self, request: HttpRequest) -> Account:
        """Return the account of the bearer token.

        Raises ApiError 401 with WWW-Authenticate (RFC 6750 3) if there is no valid one, and 429 for
        a client after failed attempts; 503 while the key of access tokens cannot be used.
        """
        account = self._account_of(request)
        request.rights = partial(self._check_rights, account)
        return account

    def _check_rights(self, before: Account, request: HttpRequest) -> None:
        """Raise ApiError as account(), and 503 if the account of the request has other rights."""
        now = self._account_of(request)
        if _rights_of(now) != _rights_of(before):
            text = "The rights of the account have changed since the request began; repeat it."
            raise service_unavailable(text, retry_after_s=1)

    def _account_of(self, request: HttpRequest) -> Account:
        headers = request.headers
        if (
            self.anonymous
            and "authorization" not in headers
            and is_from_here(request)
            and (anonymous := self.accounts.by_address(self.anonymous)) is not None
            and not anonymous.is_disabled  # since a reload that was refused
        ):
            request.account = anonymous.address
            return anonymous
        scheme, _, token = headers.get("authorization", "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise self._unauthorized("Access token is empty.")
        try:
            account = self.tokens.account_of(token, self.accounts, client=request.counted_address)
        except InvalidTokenError as error:
            raise self._unauthorized(str(error)) from None
        except LoginDelayedError as error:
            after_s, message = max(1, math.ceil(error.retry_after_s)), f"{error}; try again later."
            if isinstance(error, TokenKeyError):
                raise service_unavailable(message, retry_after_s=after_s) from None
            after = {"retry-after": str(after_s)}
            raise ApiError(429, "TooManyRequests", message, headers=after) from None
        if account is None:
            raise self._unauthorized("Access token is not known here.")
        request.account = account.address
        return account

    def _unauthorized(self, message: str) -> ApiError:
        headers = {"www-authenticate": f'Bearer realm="{self.realm}"'}
        return ApiError(401, "InvalidAuthenticationToken", message, headers=headers)


def _rights_of(account: Account) -> tuple[object, ...]:
    return account.address, account.role, account.scopes, account.acts_for
