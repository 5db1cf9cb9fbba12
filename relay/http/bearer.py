"""From the Authorization header to an account.

On the path: graph and web ask before they read a body.
Holds: the scheme is matched without regard to case; a token is never logged nor echoed.
Fails: ApiError 401 with WWW-Authenticate.
Standards: RFC 6750 2.1, 3; Graph's InvalidAuthenticationToken.
"""

from starlette.datastructures import Headers

from relay.accounts import Account, AccountDirectory
from relay.http.errors import ApiError


def bearer_account(headers: Headers, accounts: AccountDirectory, *, realm: str) -> Account:
    """Return whose token the request carries.

    Raises ApiError 401 when there is none, or nobody's.
    """
    scheme, _, token = headers.get("authorization", "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise _unauthorized("Access token is empty.", realm)
    account = accounts.by_token(token)
    if account is None:
        raise _unauthorized("Access token is not known here.", realm)
    return account


def _unauthorized(message: str, realm: str) -> ApiError:
    return ApiError(
        401,
        "InvalidAuthenticationToken",
        message,
        headers={"www-authenticate": f'Bearer realm="{realm}"'},
    )
